"""Accuracy of co-inference on the whole CIFAR-10 test set, through the two running processes.

Needs the data set (``NEUCODEX_CIFAR10`` names its folder); ``--quick`` takes the 1,000 test images
that are shipped. Beside it stands the network before the bottleneck was inserted, at full T,
through an edge daemon of its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.images import classify, load_test_images
from benchmarks.report import Result, figure, run
from examples.pair import pair, run_edge
from shared.model.bundle import Bundle


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Run the test set through the pair, then through the whole network."""
    images = load_test_images(1000 if quick else None)
    # In lock-step nothing is sent in vain.
    with pair(bundle.path, edge_flags=("--window", "1")) as both:
        co_inference, timesteps, payload_bytes = classify(both.edge.address, *images)
    flags = ("--placement", "edge_only", "--network", "whole")
    with tempfile.TemporaryDirectory() as name, run_edge(Path(name), bundle.path, *flags) as edge:
        full, _, _ = classify(edge.address, *images)
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
