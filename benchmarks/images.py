"""CIFAR-10 test images through a running edge daemon."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent import Edge, Picture
from edge_agent.answers import Answer
from examples.pictures import load_pictures
from training.data.cifar10 import Images, load_cifar10

DATA = "NEUCODEX_CIFAR10"
"""Environment variable with the data set's folder; only 1,000 test images are shipped."""


class Answered(NamedTuple):
    """Means over images that were all answered."""

    accuracy: float
    timesteps: float
    payload_bytes: float


def load_test_images(count: int | None) -> Images:
    """Return the first ``count`` test images, of those shipped, or the whole test set."""
    if count is not None:
        pixels, labels = load_pictures(count)
        return Images(pixels, labels.astype(np.int64))
    folder = os.environ.get(DATA)
    if folder is None:
        raise SystemExit(f"expected the folder of CIFAR-10 in {DATA}, got none")
    return load_cifar10(Path(folder), train=False)


def classify(address: str, inputs: Iterable[Picture], labels: NDArray[np.int64]) -> Answered:
    """Have the edge daemon at ``address`` classify images one after the other.

    Raises:
        RuntimeError: one got no answer.
    """
    with Edge(address) as edge:
        replies = list(edge.classify_stream(iter(inputs)))
    found = [reply for reply in replies if isinstance(reply, Answer)]
    if len(found) < len(labels):
        raise RuntimeError(f"expected {len(labels)} answers, got {len(found)}")
    return Answered(
        float(np.mean([answer.label for answer in found] == labels)),
        float(np.mean([answer.timesteps_used for answer in found])),
        float(np.mean([answer.payload_bytes for answer in found])),
    )
