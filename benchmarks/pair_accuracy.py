"""Accuracy of co-inference on the whole CIFAR-10 test set, through the two running processes.

Needs the data set (``NEUCODEX_CIFAR10`` names its folder): only its first 1,000 test images are
shipped. Beside it stands the network before the bottleneck was inserted, at full T, through an
edge daemon of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Result, figure, run
from edge_agent import Edge
from edge_agent.answers import Answer
from examples.pair import pair, run_edge
from shared.model.bundle import Bundle
from training.data.cifar10 import Images, load_cifar10

DATA = "NEUCODEX_CIFAR10"


def answers(address: str, images: Images) -> tuple[float, float, float]:
    """Return accuracy, mean timesteps and mean payload bytes of all images, each answered."""
    with Edge(address) as edge:
        replies = list(edge.classify_stream(iter(images.pixels)))
    found = [reply for reply in replies if isinstance(reply, Answer)]
    if len(found) < len(images.labels):
        raise RuntimeError(f"expected {len(images.labels)} answers, got {len(found)}")
    labels = np.array([answer.label for answer in found])
    return (
        float((labels == images.labels).mean()),
        float(np.mean([answer.timesteps_used for answer in found])),
        float(np.mean([answer.payload_bytes for answer in found])),
    )


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Run the test set through the pair, then through the whole network."""
    folder = os.environ.get(DATA)
    if folder is None:
        raise SystemExit(f"expected the folder of CIFAR-10 in {DATA}, got none")
    images = load_cifar10(Path(folder), train=False)
    if quick:
        images = Images(images.pixels[:1000], images.labels[:1000])
    with pair(bundle.path) as both:
        co_inference, timesteps, payload_bytes = answers(both.edge.address, images)
    flags = ("--placement", "edge_only", "--network", "whole")
    with tempfile.TemporaryDirectory() as name, run_edge(Path(name), bundle.path, *flags) as edge:
        full, _, _ = answers(edge.address, images)
    loss = 100 * (full - co_inference)
    results = [
        figure("accuracy_co_inference", [co_inference], "share", "at least 0.88"),
        figure("accuracy_full", [full], "share"),
        figure("accuracy_lost", [loss], "points", "at most 1"),
        figure("mean_timesteps", [timesteps], "timesteps"),
        figure("payload_bytes_per_image", [payload_bytes], "bytes"),
        figure("payload_bytes_per_timestep", [payload_bytes / timesteps], "bytes", "at most 64"),
    ]
    return {"images": len(images.labels)}, results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("pair_accuracy", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
