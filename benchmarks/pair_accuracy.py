"""Accuracy of co-inference on a bundle's whole test set, through the two running processes.

Beside it stands the network before the bottleneck was inserted, at full T, through an edge daemon
of its own. Needs the data set of the bundle's recipe, whose folder an environment variable names:
``NEUCODEX_CIFAR10``, ``NEUCODEX_NMNIST`` or ``NEUCODEX_CALTECH101``. ``--quick`` takes 1,000
samples at most, and of CIFAR-10 the test images that are shipped.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.images import DATA, classify, load_test_images
from benchmarks.report import Result, figure, run
from examples.pair import pair, run_edge
from shared.model.bundle import Bundle
from training.cli import find_bundle, recipe_of
from training.recipe_data import load_test

FOLDERS = {"cifar10": DATA, "n-mnist": "NEUCODEX_NMNIST", "caltech10": "NEUCODEX_CALTECH101"}
"""Environment variable by data set."""
QUICK_SAMPLES = 1000


class Goals(NamedTuple):
    """What a shipped bundle is to reach."""

    accuracy: str
    lost: str | None = None
    payload: str | None = None


GOALS = {
    "resnet18-cifar10-demo": Goals("at least 0.88", "at most 1", "at most 64"),
    "resnet18-n-mnist": Goals("at least 0.97"),
    "resnet18-caltech10": Goals("at least 0.95"),
}


class Samples(NamedTuple):
    """A test set, or the beginning of one."""

    inputs: NDArray[np.uint8]
    """uint8, ``[N, C, H, W]``, or event frames ``[N, T, C, H, W]``."""
    labels: NDArray[np.int64]


def load_samples(bundle: Bundle, quick: bool) -> Samples:
    """Return the test set of a bundle's recipe."""
    recipe = recipe_of(find_bundle(bundle.path), None)
    if recipe.data.name == "cifar10":
        return Samples(*load_test_images(QUICK_SAMPLES if quick else None))
    variable = FOLDERS.get(recipe.data.name)
    folder = None if variable is None else os.environ.get(variable)
    if folder is None:
        raise SystemExit(f"expected the folder of {recipe.data.name} in {variable}, got none")
    data = load_test(recipe, Path(folder))
    count = QUICK_SAMPLES if quick else len(data)
    return Samples(data.inputs[:count], data.labels[:count])


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Run the test set through the pair, then through the whole network."""
    samples = load_samples(bundle, quick)
    # In lock-step nothing is sent in vain.
    with pair(bundle.path, edge_flags=("--window", "1")) as both:
        co_inference, timesteps, payload_bytes = classify(both.edge.address, *samples)
    flags = ("--placement", "edge_only", "--network", "whole")
    with tempfile.TemporaryDirectory() as name, run_edge(Path(name), bundle.path, *flags) as edge:
        full, _, _ = classify(edge.address, *samples)
    goals = GOALS.get(bundle.manifest.name, Goals("none"))
    results = [
        figure("accuracy_co_inference", [co_inference], "share", goals.accuracy),
        figure("accuracy_full", [full], "share"),
        figure("accuracy_lost", [100 * (full - co_inference)], "points", goals.lost),
        figure("mean_timesteps", [timesteps], "timesteps"),
        figure("payload_bytes_per_image", [payload_bytes], "bytes"),
        figure("payload_bytes_per_timestep", [payload_bytes / timesteps], "bytes", goals.payload),
    ]
    return {"images": len(samples.labels)}, results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("pair_accuracy", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
