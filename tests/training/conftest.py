"""A data set and a training run small enough for a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.data.cifar10 import TEST_BATCH, TRAIN_BATCHES, Images
from training.recipe import Recipe, load_recipe

IMAGES_PER_BATCH = 8

RECIPE = """
name = "tiny"
holdout = 8
cutout = 6
batch_size = 8

[network]
backbone = "resnet18"
width = 0.125
input_shape = [3, 32, 32]
classes = 10
timesteps = 2

[network.bottleneck]
split = "layer3"
channels = 4

[[phases]]
name = "first"
train = "backbone"
epochs = 2
timesteps = 1
learning_rate = 0.05

[[phases]]
name = "second"
train = "joint"
epochs = 2
timesteps = 2
learning_rate = 0.02
fresh_tail = true
rate_weight = 0.3

[[phases]]
name = "third"
train = "joint"
epochs = 1
timesteps = 1
learning_rate = 0.01
begin_with_mean_of = [1, 2]
"""


EVENTS = (
    RECIPE.replace('name = "tiny"', 'name = "tiny-events"')
    .replace("input_shape = [3, 32, 32]", 'input_shape = [2, 32, 32]\ninput_kind = "events"')
    .replace(
        "[[phases]]",
        """[data]
name = "cifar10-sim"
[data.options]
framing = { by = "time", timesteps = 2 }

[[phases]]""",
        1,
    )
)


@pytest.fixture(scope="session")
def pictures() -> dict[str, Images]:
    """Random images and labels by batch name."""
    generator = np.random.default_rng(0)
    return {
        name: Images(
            generator.integers(0, 256, (IMAGES_PER_BATCH, 3, 32, 32), np.uint8),
            generator.integers(0, 10, IMAGES_PER_BATCH, np.int64),
        )
        for name in (*TRAIN_BATCHES, TEST_BATCH)
    }


@pytest.fixture(scope="session")
def cifar10(pictures: dict[str, Images], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures in the published binary layout."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name, images in pictures.items():
        records = [
            np.concatenate([[label], pixels.ravel()]).astype(np.uint8)
            for pixels, label in zip(images.pixels, images.labels, strict=True)
        ]
        np.concatenate(records).tofile(folder / f"{name}.bin")
    return root


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for CIFAR-10 of three phases with five epochs in all."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def events_recipe_file(recipe_file: Path) -> Path:
    """The same recipe for simulated events in two frames."""
    path = recipe_file.with_name("tiny-events.toml")
    path.write_text(EVENTS)
    return path


@pytest.fixture(scope="session")
def recipe(recipe_file: Path) -> Recipe:
    """The recipe for CIFAR-10."""
    return load_recipe(recipe_file)


@pytest.fixture(scope="session")
def events_recipe(events_recipe_file: Path) -> Recipe:
    """The recipe for simulated events."""
    return load_recipe(events_recipe_file)
