"""Evaluate a bundle on a whole test set.

Every figure comes from the engines, the exit rule and the codec that serve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.codec.codecs import Codec, get_codec
from shared.codec.packet import Checksum, SampleEncoder
from shared.errors import ConfigError
from shared.exit_rule import Confidence
from shared.model.bundle import WEIGHTS, Bundle
from training.calibrate import (
    CODE_LAYER,
    Decisions,
    LabelledFrames,
    distribution,
    exit_accuracy,
    exit_timesteps,
    judge,
    named_engine,
    run_engines,
)
from training.progress import SILENT, Progress

Alphas = Mapping[str, tuple[float, ...]]


class EarlyExit(msgspec.Struct, frozen=True, kw_only=True):
    """A network under the exit rule."""

    accuracy: float
    mean_timesteps: float
    exit_distribution: tuple[float, ...]
    """Share of samples that exit at t = 0..T-1."""


class CoInference(EarlyExit, frozen=True, kw_only=True):
    """Head, encoder, decoder and compressed tail under the exit rule, and what they send."""

    payload_bytes_per_image: float
    """Code after the codec, over the timesteps sent."""
    payload_bytes_per_timestep: float
    """Same, per timestep sent."""
    packed_bytes_per_image: float
    """The bits themselves, not coded further."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle reaches on the test set."""

    name: str
    digest: str
    weights_sha256: str
    data: str
    """The data set's name; simulated ones say ``sim``."""
    images: int
    """Samples, images or recordings."""
    accuracy_compressed: tuple[float, ...]
    """Without early exit, after timestep t = 0..T-1: head, encoder, decoder, compressed tail."""
    accuracy_whole: tuple[float, ...]
    """Same, of the network before the bottleneck was inserted."""
    alpha: dict[str, tuple[float, ...]]
    """The bundle's alphas by name."""
    default_alpha: str
    """The entry of ``alpha`` used when the user sets none."""
    co_inference: dict[str, CoInference]
    """By name of the alpha."""
    edge_only_exit: dict[str, EarlyExit]
    """The network before the bottleneck was inserted under the same exit rule, by alpha."""
    codec: str
    """The bundle's own."""
    code_bits_per_timestep: int
    packed_bytes_per_timestep: int
    """Bit-packed and not coded further."""
    payload_bytes_by_timestep: tuple[float, ...]
    """Mean code of timestep t = 0..T-1 after the codec, raw where coding does not win, over all
    samples."""
    code_firing_rate: float
    """Share of the code's bits that are spikes."""


def load_evaluation(path: Path) -> Evaluation:
    """Read an evaluation's JSON; ConfigError if it is not there or something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Evaluation)
    except OSError as error:
        raise ConfigError(f"expected an evaluation at {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected an evaluation at {path}: {error}") from error


def to_json(evaluation: Evaluation) -> bytes:
    """Return an evaluation as :func:`load_evaluation` reads it."""
    return msgspec.json.format(msgspec.json.encode(evaluation)) + b"\n"


def evaluate(
    bundle: Bundle,
    data: LabelledFrames,
    data_name: str,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Evaluation:
    """Run every sample through both networks.

    Args:
        bundle: with all three parts.
        data: samples that neither training nor calibration has seen.
        data_name: of the data set.
        threads: CPU threads of the engines.
        progress: hears of every batch.

    Raises:
        CodecError: the bundle has not the codec that it names.
    """
    spec, calibration = bundle.spec, bundle.calibration()
    kind, temperature = Confidence(calibration.confidence), calibration.temperature
    head, tail, whole = (named_engine(bundle, part, threads) for part in ("head", "tail", "whole"))
    preprocessing = bundle.manifest.preprocessing
    codec = get_codec(bundle.manifest.codec, bundle.codecs)
    sizes: list[NDArray[np.int64]] = []
    compressed = run_engines(
        [head, tail],
        data.frames,
        spec,
        preprocessing,
        progress=progress,
        between=lambda codes: sizes.append(payload_sizes(codes, codec)),
    )
    uncompressed = run_engines([whole], data.frames, spec, preprocessing, progress=progress)
    judged = judge(compressed.logits, temperature, kind)
    judged_whole = judge(uncompressed.logits, temperature, kind)
    payload_bytes = np.concatenate(sizes, axis=1)
    packed_bytes = math.ceil(spec.code_bits / 8)
    alphas = calibration.alpha
    return Evaluation(
        name=bundle.manifest.name,
        digest=bundle.digest,
        weights_sha256=bundle.manifest.files[WEIGHTS],
        data=data_name,
        images=len(data.labels),
        accuracy_compressed=accuracy_by_timestep(judged, data.labels),
        accuracy_whole=accuracy_by_timestep(judged_whole, data.labels),
        alpha=alphas,
        default_alpha=calibration.default_alpha,
        co_inference={
            name: co_inference(judged, data.labels, alpha, payload_bytes, packed_bytes)
            for name, alpha in alphas.items()
        },
        edge_only_exit={
            name: early_exit(judged_whole, data.labels, alpha) for name, alpha in alphas.items()
        },
        codec=codec.name,
        code_bits_per_timestep=spec.code_bits,
        packed_bytes_per_timestep=packed_bytes,
        payload_bytes_by_timestep=tuple(payload_bytes.mean(1).tolist()),
        code_firing_rate=compressed.firing_rates[CODE_LAYER],
    )


def payload_sizes(codes: NDArray[np.uint8], codec: Codec) -> NDArray[np.int64]:
    """Return the bytes of every timestep's payload as the edge sends it, int64 ``[T, N]``.

    Args:
        codes: uint8 0/1, ``[T, N, C, H, W]``.
        codec: the stream's; a timestep goes raw where coding does not win.
    """
    timesteps, samples, *shape = codes.shape
    channels, height, width = shape
    sizes = np.empty((timesteps, samples), np.int64)
    for sample in range(samples):
        encoder = SampleEncoder(codec, (channels, height, width), timesteps, Checksum.NONE)
        for timestep in range(timesteps):
            (packet,) = encoder.encode(codes[timestep, sample][np.newaxis])
            sizes[timestep, sample] = packet.payload_bytes
    return sizes


def accuracy_by_timestep(decisions: Decisions, labels: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the accuracy after every timestep without early exit."""
    return tuple((decisions.labels == labels).mean(1).tolist())


def early_exit(
    decisions: Decisions, labels: NDArray[np.int64], alpha: tuple[float, ...]
) -> EarlyExit:
    """Apply the exit rule to the decisions of every timestep."""
    exit_at = exit_timesteps(decisions, alpha)
    return EarlyExit(
        accuracy=exit_accuracy(decisions, labels, exit_at),
        mean_timesteps=float(exit_at.mean()) + 1,
        exit_distribution=distribution(exit_at, len(decisions.labels)),
    )


def co_inference(
    decisions: Decisions,
    labels: NDArray[np.int64],
    alpha: tuple[float, ...],
    payload_bytes: NDArray[np.int64],
    packed_bytes: int,
) -> CoInference:
    """Apply the exit rule and add up what is sent until then.

    Args:
        decisions: of every timestep.
        labels: int64, ``[N]``.
        alpha: T - 1 numbers.
        payload_bytes: int64, ``[T, N]``.
        packed_bytes: of one timestep.
    """
    exits = early_exit(decisions, labels, alpha)
    exit_at = exit_timesteps(decisions, alpha)
    sent = np.arange(len(payload_bytes))[:, None] <= exit_at
    per_image = float(payload_bytes[sent].sum()) / len(labels)
    return CoInference(
        accuracy=exits.accuracy,
        mean_timesteps=exits.mean_timesteps,
        exit_distribution=exits.exit_distribution,
        payload_bytes_per_image=per_image,
        payload_bytes_per_timestep=per_image / exits.mean_timesteps,
        packed_bytes_per_image=packed_bytes * exits.mean_timesteps,
    )
