"""The data of a recipe: what trains, what is held out, what tests, and how it is normalised."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.model.bundle import Preprocessing
from training.data.labelled import LabelledData
from training.data.sets import DEFAULT_FRAMING, IN_RANDOM_ORDER, load
from training.recipe import Recipe

CIFAR10 = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Per-channel mean and standard deviation of the training pixels, as shares of 255, as usually
given for CIFAR-10."""
DIGITS = 6
"""Significant digits that a measured normalisation keeps."""


class TrainingData(NamedTuple):
    """The training part of a data set, split in two."""

    training: LabelledData
    held_out: LabelledData
    """Samples that no phase of training sees."""
    preprocessing: Preprocessing
    """What training and serving make of uint8 samples."""


def load_training(recipe: Recipe, folder: Path, cache: Path | None = None) -> TrainingData:
    """Read a recipe's training part.

    Args:
        recipe: names the data set and says how much is held out.
        folder: where the data set lies.
        cache: folder for simulated event frames, so that they are made once.

    Raises:
        ConfigError: the data does not fit the recipe's network, or is too little to hold out so
            much and fill a batch.
        DataError: the data set is missing or damaged.
    """
    data = _load(recipe, folder, cache, train=True)
    if len(data) < recipe.holdout + recipe.batch_size:
        raise ConfigError(
            f"expected more samples of {data.name} than a holdout of {recipe.holdout} and a batch "
            f"of {recipe.batch_size}, got {len(data)}"
        )
    usual = CIFAR10 if recipe.data.name == "cifar10" else None
    preprocessing = recipe.preprocessing or usual or normalisation(data)
    if data.kind == "events":
        framing = recipe.data.options.framing or DEFAULT_FRAMING
        preprocessing = msgspec.structs.replace(preprocessing, framing=framing)
    if recipe.data.name not in IN_RANDOM_ORDER:
        data = data.shuffled(recipe.seed)
    cut = len(data) - recipe.holdout
    return TrainingData(data.part(slice(cut)), data.part(slice(cut, None)), preprocessing)


def load_test(recipe: Recipe, folder: Path, cache: Path | None = None) -> LabelledData:
    """Read a recipe's test part; arguments and errors as for :func:`load_training`."""
    return _load(recipe, folder, cache, train=False)


def _load(recipe: Recipe, folder: Path, cache: Path | None, *, train: bool) -> LabelledData:
    choice = recipe.data
    data = load(choice.name, folder, train=train, options=choice.options, cache=cache)
    check_fits(data, recipe)
    return data


def check_fits(data: LabelledData, recipe: Recipe) -> None:
    """Check that a recipe's network can read its data set.

    Raises:
        ConfigError: another kind, shape, number of timesteps or number of classes.
    """
    spec = recipe.network
    wanted = {
        "input_kind": (data.kind, spec.input_kind),
        "input_shape": (list(data.input_shape), list(spec.input_shape)),
        "classes": (len(data.classes), spec.classes),
    }
    if data.kind == "events":
        wanted["timesteps"] = (data.inputs.shape[1], spec.timesteps)
    for key, (of_data, of_network) in wanted.items():
        if of_data != of_network:
            raise ConfigError(
                f"recipe {recipe.name}: expected network.{key} {of_data} for {data.name}, "
                f"got {of_network}"
            )


def normalisation(data: LabelledData) -> Preprocessing:
    """Measure a data set's normalisation, exactly and therefore repeatably.

    Images get mean 0 and standard deviation 1 per channel over the training part. Event counts
    are divided by their root mean square and not shifted, so that silence stays 0 and costs
    nothing.
    """
    counts = value_counts(data.inputs)
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    means = shares @ values if data.kind == "static" else np.zeros(len(counts))
    squares = (shares * (values - means[:, None]) ** 2).sum(1)
    # A channel that never changes is left as it is.
    deviations = np.where(squares > 0, np.sqrt(squares), 1.0)
    return Preprocessing(mean=_rounded(means), std=_rounded(deviations))


def value_counts(inputs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each value occurs, int64 ``[C, 256]``, in uint8 ``[N, ..., C, H, W]``."""
    channels = inputs.shape[-3]
    counts = np.zeros((channels, 256), np.int64)
    for sample in inputs:
        planes = sample.reshape(-1, channels, sample.shape[-2] * sample.shape[-1])
        for channel in range(channels):
            counts[channel] += np.bincount(planes[:, channel].ravel(), minlength=256)
    return counts


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
