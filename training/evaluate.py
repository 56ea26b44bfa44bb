"""Evaluate a bundle on a whole test set.

Accuracy, operations and bytes come from the engines, the exit rule and the codecs that serve.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.codec.codecs import Codec, get_codec
from shared.codec.packet import Checksum, SampleEncoder
from shared.errors import ConfigError
from shared.exit_rule import Confidence, expand_alpha
from shared.model.bundle import WEIGHTS, Bundle, Calibration, Manifest, Operations, PartName
from training.calibrate import (
    CODE_LAYER,
    Decisions,
    LabelledFrames,
    Run,
    distribution,
    exit_accuracy,
    exit_timesteps,
    judge,
    named_engine,
    run_engines,
)
from training.operations import Counts
from training.progress import SILENT, Progress


class EarlyExit(msgspec.Struct, frozen=True, kw_only=True):
    """A network under an exit rule, and what the device computes for it."""

    accuracy: float
    mean_timesteps: float
    exit_distribution: tuple[float, ...]
    """Share of samples that exit at t = 0..T-1."""
    edge_operations: Operations
    """Mean per sample, over the timesteps it uses."""


class CoInference(EarlyExit, frozen=True, kw_only=True):
    """Head, encoder, decoder and compressed tail under an exit rule, and what they send."""

    cloud_operations: Operations
    """Mean per sample, over the timesteps it uses."""
    payload_bytes_per_image: float
    """Code after the bundle's codec, over the timesteps sent."""
    payload_bytes_per_timestep: float
    """Same, per timestep sent."""
    payload_bytes_per_image_by_codec: dict[str, float]
    """As ``payload_bytes_per_image``, with each codec the bundle has; ``raw`` is bit-packed."""


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
    """The same network under the same alpha, all on the device: the same answers."""
    edge_only_full: EarlyExit
    """The network before the bottleneck was inserted, all T timesteps, on the device."""
    whole_exit: dict[str, EarlyExit]
    """That network under the exit rule, by alpha; temperature and alpha were not fitted to it."""
    operations_by_timestep: dict[PartName, tuple[Operations, ...]]
    """Mean over all samples at t = 0..T-1, by part: ``head`` (encoder included), ``tail``,
    ``whole``."""
    firing_rates_compressed: dict[str, float]
    """Mean spikes per neuron and timestep over all T, by LIF layer; ``code`` is the code's."""
    firing_rates_whole: dict[str, float]
    """Same, of the network before the bottleneck was inserted."""
    codec: str
    """The bundle's own."""
    payload_bits_by_timestep: dict[str, tuple[float, ...]]
    """Mean code of timestep t = 0..T-1 over all samples, by codec: whole bytes as they are sent,
    raw where coding does not win."""
    code_bits_per_timestep: int
    float32_feature_bytes_per_image: int
    """The features at the split point as float32, over all T timesteps."""

    def is_of(self, manifest: Manifest, calibration: Calibration) -> bool:
        """Say whether it was made with these weights and alphas; a bundle's card may differ."""
        weights = manifest.files[WEIGHTS]
        return (self.weights_sha256, self.alpha) == (weights, calibration.alpha)


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


class Ran(NamedTuple):
    """What both networks did for every sample at every timestep."""

    compressed: Run
    whole: Run
    counts: dict[PartName, Counts]
    payload_bytes: dict[str, NDArray[np.int64]]
    """By codec, ``[T, N]``."""


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
    spec, calibration, labels = bundle.spec, bundle.calibration(), data.labels
    codec = get_codec(bundle.manifest.codec, bundle.codecs).name
    ran = run_networks(bundle, data.frames, threads=threads, progress=progress)
    compressed, whole = (
        judge(run.logits, calibration.temperature, Confidence(calibration.confidence))
        for run in (ran.compressed, ran.whole)
    )
    counts, rates, alphas = ran.counts, ran.compressed.firing_rates, calibration.alpha
    all_parts = counts["head"].plus(counts["tail"])
    never_early = expand_alpha(1.0, spec.timesteps)
    return Evaluation(
        name=bundle.manifest.name,
        digest=bundle.digest,
        weights_sha256=bundle.manifest.files[WEIGHTS],
        data=data_name,
        images=len(labels),
        accuracy_compressed=accuracy_by_timestep(compressed, labels),
        accuracy_whole=accuracy_by_timestep(whole, labels),
        alpha=alphas,
        default_alpha=calibration.default_alpha,
        co_inference={
            name: co_inference(compressed, labels, alpha, ran, codec)
            for name, alpha in alphas.items()
        },
        edge_only_exit={
            name: early_exit(compressed, labels, alpha, all_parts) for name, alpha in alphas.items()
        },
        edge_only_full=early_exit(whole, labels, never_early, counts["whole"]),
        whole_exit={
            name: early_exit(whole, labels, alpha, counts["whole"])
            for name, alpha in alphas.items()
        },
        operations_by_timestep={part: each.by_timestep() for part, each in counts.items()},
        firing_rates_compressed=rates | {"code": rates[CODE_LAYER]},
        firing_rates_whole=ran.whole.firing_rates,
        codec=codec,
        payload_bits_by_timestep={
            name: tuple((8 * sizes.mean(1)).tolist()) for name, sizes in ran.payload_bytes.items()
        },
        code_bits_per_timestep=spec.code_bits,
        float32_feature_bytes_per_image=4 * math.prod(spec.feature_shape) * spec.timesteps,
    )


def run_networks(
    bundle: Bundle, frames: NDArray[np.uint8], *, threads: int = 1, progress: Progress = SILENT
) -> Ran:
    """Run samples through both networks of a bundle for all T timesteps; see :func:`evaluate`."""
    spec, preprocessing = bundle.spec, bundle.manifest.preprocessing
    head, tail, whole = (named_engine(bundle, part, threads) for part in ("head", "tail", "whole"))
    sizes: dict[str, list[NDArray[np.int64]]] = {name: [] for name in bundle.codecs}

    def encode(codes: NDArray[np.uint8]) -> None:
        for name, codec in bundle.codecs.items():
            sizes[name].append(payload_sizes(codes, codec))

    compressed = run_engines(
        [head, tail], frames, spec, preprocessing, progress=progress, between=encode
    )
    uncompressed = run_engines([whole], frames, spec, preprocessing, progress=progress)
    (head_counts, tail_counts), (whole_counts,) = compressed.counts, uncompressed.counts
    return Ran(
        compressed,
        uncompressed,
        {"head": head_counts, "tail": tail_counts, "whole": whole_counts},
        {name: np.concatenate(each, axis=1) for name, each in sizes.items()},
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
    decisions: Decisions, labels: NDArray[np.int64], alpha: tuple[float, ...], edge: Counts
) -> EarlyExit:
    """Apply the exit rule to the decisions of every timestep.

    Args:
        decisions: of every timestep.
        labels: int64, ``[N]``.
        alpha: T - 1 numbers.
        edge: what the device computes.
    """
    exit_at = exit_timesteps(decisions, alpha)
    return EarlyExit(
        accuracy=exit_accuracy(decisions, labels, exit_at),
        mean_timesteps=float(exit_at.mean()) + 1,
        exit_distribution=distribution(exit_at, len(decisions.labels)),
        edge_operations=edge.per_sample(used_until(exit_at, len(decisions.labels))),
    )


def co_inference(
    decisions: Decisions,
    labels: NDArray[np.int64],
    alpha: tuple[float, ...],
    ran: Ran,
    codec: str,
) -> CoInference:
    """Apply the exit rule and add up what is computed and sent until then.

    Args:
        decisions: of every timestep.
        labels: int64, ``[N]``.
        alpha: T - 1 numbers.
        ran: what computing and sending every timestep takes.
        codec: the bundle's own.
    """
    exits = early_exit(decisions, labels, alpha, ran.counts["head"])
    used = used_until(exit_timesteps(decisions, alpha), len(decisions.labels))
    by_codec = {
        name: float(sizes[used].sum()) / len(labels) for name, sizes in ran.payload_bytes.items()
    }
    return CoInference(
        **msgspec.structs.asdict(exits),
        cloud_operations=ran.counts["tail"].per_sample(used),
        payload_bytes_per_image=by_codec[codec],
        payload_bytes_per_timestep=by_codec[codec] / exits.mean_timesteps,
        payload_bytes_per_image_by_codec=by_codec,
    )


def used_until(exit_at: NDArray[np.int64], timesteps: int) -> NDArray[np.bool_]:
    """Return which timesteps of each sample are used, ``[T, N]``, if it exits at ``exit_at``."""
    used: NDArray[np.bool_] = np.arange(timesteps)[:, None] <= exit_at
    return used
