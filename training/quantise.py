"""Give a bundle a head with int8 convolutions, if it loses next to nothing by it.

Weights are int8 by output channel, activations uint8, with ranges seen on training samples; the
neurons and their membrane potentials stay float32. The code differs where a potential is near its
threshold, which is expected; so it is judged by its answers. Samples that neither trained the
network nor set the ranges go through the head, the codec (packets, decoded again), the float tail
and the exit rule of the bundle, once with each head.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from shared.codec.codecs import Codec, get_codec
from shared.codec.packet import Checksum, SampleDecoder, SampleEncoder
from shared.engine.base import Array, Engine, zero_state
from shared.engine.onnx_runtime import load_engine
from shared.errors import ConfigError
from shared.exit_rule import Confidence
from shared.model.bundle import HEAD_INT8, WEIGHTS, Bundle
from training.calibrate import LabelledFrames, batches, exit_accuracy, exit_timesteps, judge
from training.card import INT8_HEADING
from training.progress import SILENT, Progress

RANGE_SAMPLES = 64
"""Training samples, all T timesteps of each, behind the ranges of the activations."""
MOST_LOST_POINTS = 0.5


class Through(NamedTuple):
    """What samples came to through the pair with one head."""

    accuracy: float
    """At their exits under the default alpha."""
    mean_timesteps: float
    bytes_per_sample: float
    """Payload of the timesteps used."""
    codes: NDArray[np.uint8]
    """uint8 0/1, ``[T, N, C', H', W']``."""


class Comparison(NamedTuple):
    """An int8 head beside the float one, on the same samples."""

    float_head: Through
    int8_head: Through
    samples: int

    @property
    def lost_points(self) -> float:
        """Percentage points of accuracy that the int8 head loses; negative where it gains."""
        return 100 * (self.float_head.accuracy - self.int8_head.accuracy)

    @property
    def flipped(self) -> float:
        """Share of the code's bits, over all T timesteps, that differ."""
        return float((self.float_head.codes != self.int8_head.codes).mean())


def int8_head(bundle: Bundle, frames: NDArray[np.uint8]) -> bytes:
    """Return the head's graph with int8 convolutions and its weights in it.

    Args:
        bundle: with the float head.
        frames: samples that set the ranges, as in :class:`LabelledFrames`.
    """
    with tempfile.TemporaryDirectory(prefix="neucodex-") as name:
        whole, small = Path(name) / "float.onnx", Path(name) / "int8.onnx"
        _write_with_weights(bundle, whole)
        quantize_static(
            whole,
            small,
            _Reader(bundle, frames),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return small.read_bytes()


def _write_with_weights(bundle: Bundle, path: Path) -> None:
    """Write the head's graph with its weights in it, as float32."""
    weights, options = bundle.read(WEIGHTS), ort.SessionOptions()
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    # Basic: constants are folded, nothing becomes an operator that is not of the standard.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    graph = bundle.read(bundle.part("head").graph)
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the quantiser inputs and membrane potentials as they are in service.

    Args:
        bundle: with the float head.
        frames: samples, as in :class:`LabelledFrames`.
    """

    def __init__(self, bundle: Bundle, frames: NDArray[np.uint8]) -> None:
        self._feeds = _feeds(bundle, frames)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next inputs, or None."""
        return next(self._feeds, None)


def _feeds(bundle: Bundle, frames: NDArray[np.uint8]) -> Iterator[dict[str, Array]]:
    engine, spec = load_engine(bundle, "head"), bundle.part("head")
    names = [state.name for state in spec.states]
    for batch in batches(frames, bundle.spec, bundle.manifest.preprocessing):
        state = zero_state(engine, len(batch[0]))
        for x in batch:
            yield {spec.input.name: x} | dict(zip(names, state, strict=True))
            _, state = engine.step(x, state)


def compare(
    bundle: Bundle, data: LabelledFrames, *, threads: int = 1, progress: Progress = SILENT
) -> Comparison:
    """Run samples through the pair with either head.

    Args:
        bundle: with both.
        data: samples that neither trained the network nor set the ranges.
        threads: CPU threads.
        progress: hears of every batch.
    """
    tail = load_engine(bundle, "tail", threads=threads)
    heads = [load_engine(bundle, "head", threads=threads, graph=g) for g in (None, HEAD_INT8)]
    found = [_through(bundle, head, tail, data, progress) for head in heads]
    return Comparison(found[0], found[1], len(data.labels))


def check(comparison: Comparison) -> None:
    """Refuse a head that loses too much; ConfigError, with the figures."""
    # What rounding adds is no loss.
    if comparison.lost_points > MOST_LOST_POINTS + 1e-4:
        raise ConfigError(
            f"expected an int8 head that loses at most {MOST_LOST_POINTS} points on "
            f"{comparison.samples} held-out samples, this one loses {comparison.lost_points:.2f} "
            f"({100 * comparison.float_head.accuracy:.2f} to "
            f"{100 * comparison.int8_head.accuracy:.2f} %)"
        )


def _through(
    bundle: Bundle, head: Engine, tail: Engine, data: LabelledFrames, progress: Progress
) -> Through:
    manifest, calibration = bundle.manifest, bundle.calibration()
    codec = get_codec(manifest.codec, bundle.codecs)
    codes, logits, sizes = [], [], []
    preprocessing = manifest.preprocessing
    every = list(batches(data.frames, bundle.spec, preprocessing))
    progress.begin("samples through the pair", len(every))
    for batch in every:
        sent = _run(head, batch)
        received, size_bytes = _over_the_wire(sent, codec)
        codes.append(sent)
        logits.append(_run(tail, list(received)))
        sizes.append(size_bytes)
        progress.advance()
    decisions = judge(
        np.concatenate(logits, 1), calibration.temperature, Confidence(calibration.confidence)
    )
    exit_at = exit_timesteps(decisions, calibration.alpha[calibration.default_alpha])
    used = np.arange(bundle.spec.timesteps)[:, None] <= exit_at
    return Through(
        accuracy=exit_accuracy(decisions, data.labels, exit_at),
        mean_timesteps=float(exit_at.mean()) + 1,
        bytes_per_sample=float(np.concatenate(sizes, 1)[used].sum()) / len(data.labels),
        codes=np.concatenate(codes, 1),
    )


def _run(engine: Engine, inputs: list[Array]) -> Array:
    """Run a batch for all T timesteps; return ``[T, n, ...]``."""
    state, outputs = zero_state(engine, len(inputs[0])), []
    for x in inputs:
        y, state = engine.step(x, state)
        outputs.append(y)
    return np.stack(outputs)


def _over_the_wire(codes: Array, codec: Codec) -> tuple[Array, NDArray[np.int64]]:
    """Encode a batch sample by sample and decode the packets; return codes and payload bytes."""
    timesteps, samples, *shape = codes.shape
    channels, height, width = shape
    received, sizes = np.empty_like(codes), np.empty((timesteps, samples), np.int64)
    for sample in range(samples):
        border: Any = (codec, (channels, height, width), timesteps, Checksum.CRC16)
        encoder, decoder = SampleEncoder(*border), SampleDecoder(*border)
        for timestep in range(timesteps):
            (packet,) = encoder.encode(codes[timestep, sample][np.newaxis])
            _, frames = decoder.decode(packet.to_bytes(0))
            received[timestep, sample] = frames[0]
            sizes[timestep, sample] = packet.payload_bytes
    return received, sizes


def int8_section(comparison: Comparison) -> str:
    """Return the card's section on the int8 head."""
    rows = "\n".join(
        f"| {name} | {100 * each.accuracy:.2f} % | {each.mean_timesteps:.3f} | "
        f"{each.bytes_per_sample:.1f} |"
        for name, each in (("float", comparison.float_head), ("int8", comparison.int8_head))
    )
    return f"""{INT8_HEADING}

With `head = "int8"` the device runs `{HEAD_INT8}`: the same head, its convolutions in int8,
ranges from {RANGE_SAMPLES} training samples. {comparison.samples:,} held-out samples through head,
codec, float tail and exit rule with the default alpha:

| head | accuracy | mean timesteps | payload bytes per sample |
|---|---|---|---|
{rows}

It loses {comparison.lost_points:.2f} points (at most {MOST_LOST_POINTS} are accepted);
{100 * comparison.flipped:.2f} % of the code's bits differ. The temperature, the alphas and their
promises were measured with the float head.
"""
