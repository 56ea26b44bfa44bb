"""Evaluate a bundle on the whole test set: ``python -m training.evaluate BUNDLE --data DIR``.

Every figure comes from the engines and the exit rule that serve.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

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
from training.data.cifar10 import load_cifar10


class EarlyExit(msgspec.Struct, frozen=True, kw_only=True):
    """A network under the exit rule."""

    accuracy: float
    mean_timesteps: float
    exit_distribution: tuple[float, ...]
    """Share of samples that exit at t = 0..T-1."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle reaches on the test set."""

    name: str
    digest: str
    weights_sha256: str
    images: int
    accuracy_compressed: tuple[float, ...]
    """Without early exit, after timestep t = 0..T-1: head, encoder, decoder, compressed tail."""
    accuracy_whole: tuple[float, ...]
    """Same, of the network before the bottleneck was inserted."""
    alpha_name: str
    alpha: tuple[float, ...]
    co_inference: EarlyExit
    edge_only_exit: EarlyExit
    """The network before the bottleneck was inserted, under the same exit rule."""
    code_bits_per_timestep: int
    code_bytes_per_timestep: int
    """Bit-packed and not coded further."""
    code_bytes_per_image: float
    """Under the exit rule."""
    code_firing_rate: float
    """Share of the code's bits that are spikes."""


def evaluate(bundle: Bundle, data: LabelledFrames, *, threads: int = 1) -> Evaluation:
    """Run every sample through both networks.

    Args:
        bundle: with all three parts.
        data: samples that neither training nor calibration has seen.
        threads: CPU threads of the engines.
    """
    spec, calibration = bundle.spec, bundle.calibration()
    kind, alpha = Confidence(calibration.confidence), calibration.alpha[calibration.default_alpha]
    head, tail, whole = (named_engine(bundle, part, threads) for part in ("head", "tail", "whole"))
    preprocessing = bundle.manifest.preprocessing
    compressed = run_engines([head, tail], data.frames, spec, preprocessing)
    uncompressed = run_engines([whole], data.frames, spec, preprocessing)
    judged = judge(compressed.logits, calibration.temperature, kind)
    judged_whole = judge(uncompressed.logits, calibration.temperature, kind)
    exits = early_exit(judged, data.labels, alpha)
    code_bytes = math.ceil(spec.code_bits / 8)
    return Evaluation(
        name=bundle.manifest.name,
        digest=bundle.digest,
        weights_sha256=bundle.manifest.files[WEIGHTS],
        images=len(data.labels),
        accuracy_compressed=accuracy_by_timestep(judged, data.labels),
        accuracy_whole=accuracy_by_timestep(judged_whole, data.labels),
        alpha_name=calibration.default_alpha,
        alpha=alpha,
        co_inference=exits,
        edge_only_exit=early_exit(judged_whole, data.labels, alpha),
        code_bits_per_timestep=spec.code_bits,
        code_bytes_per_timestep=code_bytes,
        code_bytes_per_image=code_bytes * exits.mean_timesteps,
        code_firing_rate=compressed.firing_rates[CODE_LAYER],
    )


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


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: standard output)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    images = load_cifar10(arguments.data, train=False)
    data = LabelledFrames(images.pixels, images.labels)
    evaluation = evaluate(Bundle(arguments.bundle), data, threads=arguments.threads)
    text = msgspec.json.format(msgspec.json.encode(evaluation)) + b"\n"
    if arguments.out is None:
        sys.stdout.write(text.decode())
    else:
        arguments.out.write_bytes(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
