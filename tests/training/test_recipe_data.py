from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.model.preprocessing import prepare
from training.batches import Normaliser
from training.data.cifar10 import TRAIN_BATCHES, Images
from training.data.labelled import LabelledData
from training.recipe import DataChoice, Recipe
from training.recipe_data import check_fits, load_test, load_training, normalisation, value_counts


def labelled(inputs: NDArray[np.uint8], classes: int = 3) -> LabelledData:
    labels = np.arange(len(inputs)) % classes
    names = tuple(f"class{number}" for number in range(classes))
    return LabelledData("made up", inputs, labels, names, "train")


def random_inputs(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_of_cifar10_the_last_images_are_held_out(
    recipe: Recipe, cifar10: Path, pictures: dict[str, Images]
) -> None:
    data = load_training(recipe, cifar10)

    assert (len(data.training), len(data.held_out)) == (32, 8)
    last = pictures[TRAIN_BATCHES[-1]]
    np.testing.assert_array_equal(data.held_out.inputs, last.pixels)
    np.testing.assert_array_equal(data.held_out.labels, last.labels)
    np.testing.assert_array_equal(data.training.inputs[:8], pictures[TRAIN_BATCHES[0]].pixels)
    assert data.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    test = load_test(recipe, cifar10)
    np.testing.assert_array_equal(test.inputs, pictures["test_batch"].pixels)


def test_of_a_sorted_set_random_samples_are_held_out(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = random_inputs(60, 3, 32, 32)
    labels = np.repeat(np.arange(10), 6)
    names = tuple("abcdefghij")
    by_class = LabelledData("caltech10", inputs, labels, names, "train")
    monkeypatch.setattr("training.recipe_data.load", lambda *_, **__: by_class)
    recipe = msgspec.structs.replace(recipe, data=DataChoice(name="caltech10"), holdout=20)

    first, again = load_training(recipe, tmp_path), load_training(recipe, tmp_path)
    other = load_training(msgspec.structs.replace(recipe, seed=2), tmp_path)

    assert len(set(first.held_out.labels.tolist())) > 5
    np.testing.assert_array_equal(first.held_out.inputs, again.held_out.inputs)
    assert not np.array_equal(first.held_out.inputs, other.held_out.inputs)
    both = np.concatenate([first.training.inputs, first.held_out.inputs])
    assert {sample.tobytes() for sample in both} == {sample.tobytes() for sample in inputs}


def test_a_holdout_that_leaves_no_batch_is_refused(recipe: Recipe, cifar10: Path) -> None:
    greedy = msgspec.structs.replace(recipe, holdout=33)
    with pytest.raises(ConfigError, match="holdout of 33 and a batch of 8, got 40"):
        load_training(greedy, cifar10)


@pytest.mark.parametrize(
    ("inputs", "classes", "message"),
    [
        (random_inputs(20, 3, 32, 32), 10, "network.input_kind static for made up, got events"),
        (random_inputs(20, 2, 2, 16, 32), 10, r"input_shape \[2, 16, 32\] .* got \[2, 32, 32\]"),
        (random_inputs(20, 2, 2, 32, 32), 7, "network.classes 7 for made up, got 10"),
        (random_inputs(20, 3, 2, 32, 32), 10, "network.timesteps 3 for made up, got 2"),
    ],
)
def test_data_that_does_not_fit_the_network_is_refused(
    events_recipe: Recipe, inputs: NDArray[np.uint8], classes: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fits(labelled(inputs, classes), events_recipe)


def test_every_value_is_counted() -> None:
    inputs = random_inputs(5, 3, 2, 4, 6)
    counts = value_counts(inputs)
    assert counts.shape == (2, 256)
    for channel in range(2):
        expected = np.bincount(inputs[:, :, channel].ravel(), minlength=256)
        np.testing.assert_array_equal(counts[channel], expected)


def test_images_are_normalised_to_mean_0_and_deviation_1() -> None:
    inputs = random_inputs(40, 3, 8, 8) // np.array([1, 2, 3], np.uint8)[:, None, None]
    normalise = Normaliser(normalisation(labelled(inputs)), torch.device("cpu"))

    normal = normalise(torch.from_numpy(inputs))

    assert normal.mean((0, 2, 3)).numpy() == pytest.approx(np.zeros(3), abs=1e-4)
    assert normal.std((0, 2, 3)).numpy() == pytest.approx(np.ones(3), rel=1e-3)


def test_event_counts_are_scaled_and_silence_stays_0() -> None:
    inputs = np.random.default_rng(0).poisson(0.4, (30, 3, 2, 8, 8)).astype(np.uint8)
    inputs[:, :, 1] = 0  # a polarity that never fires
    preprocessing = normalisation(labelled(inputs))

    normal = Normaliser(preprocessing, torch.device("cpu"))(torch.from_numpy(inputs))

    assert preprocessing.mean == (0.0, 0.0)
    np.testing.assert_array_equal(normal.numpy() == 0, inputs == 0)
    assert normal[:, :, 0].square().mean() == pytest.approx(1, rel=1e-3)


def test_training_normalises_as_serving_does(events_recipe: Recipe) -> None:
    inputs = random_inputs(4, 2, 2, 32, 32)
    preprocessing = normalisation(labelled(inputs))
    served = [prepare(each, events_recipe.network, preprocessing) for each in inputs]

    trained = Normaliser(preprocessing, torch.device("cpu"))(torch.from_numpy(inputs))

    np.testing.assert_array_equal(trained.numpy(), np.stack(served))
