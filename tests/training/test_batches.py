from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.model.bundle import Preprocessing
from training.batches import Batches, Normaliser
from training.data.labelled import LabelledData
from training.recipe import Recipe

CPU = torch.device("cpu")


def data_of(inputs: NDArray[np.uint8]) -> LabelledData:
    labels = np.arange(len(inputs)) % 10
    return LabelledData("made up", inputs, labels, tuple("abcdefghij"), "train")


def identity(channels: int) -> Normaliser:
    """Return a normaliser that only divides by 255."""
    return Normaliser(Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels), CPU)


def epoch_of(
    inputs: NDArray[np.uint8], recipe: Recipe, seed: int, soft: Tensor | None = None
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    batches = Batches(data_of(inputs), identity(inputs.shape[-3]), soft, recipe, CPU)
    return list(batches.epoch(torch.Generator().manual_seed(seed)))


def expected_epoch(
    inputs: NDArray[np.uint8], recipe: Recipe, seed: int
) -> list[tuple[NDArray[np.float32], list[int], list[bool]]]:
    """One sample at a time; random numbers in the order that runs in progress rely on."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator).tolist()
    size, shift, height, width = recipe.batch_size, recipe.shift, *inputs.shape[-2:]
    mode = "reflect" if inputs.ndim == 4 else "constant"
    around = [(0, 0)] * (inputs.ndim - 3) + [(shift, shift)] * 2
    epoch = []
    for start in range(0, len(inputs) - size + 1, size):
        chosen = order[start : start + size]
        down, right = torch.randint(2 * shift + 1, (2, size, 1), generator=generator).tolist()
        mirrored = (torch.rand(size, generator=generator) < 0.5).tolist()
        samples = []
        for index, (y,), (x,), flip in zip(chosen, down, right, mirrored, strict=True):
            padded = np.pad(inputs[index], around, mode=mode)  # type: ignore[call-overload]
            cut = padded[..., y : y + height, x : x + width]
            samples.append(cut[..., ::-1] if flip and recipe.mirrors else cut)
        batch = np.stack(samples).astype(np.float32) / np.float32(255)
        if side := recipe.cutout:
            rows = torch.randint(height, (size, 1), generator=generator)[:, 0].tolist()
            columns = torch.randint(width, (size, 1), generator=generator)[:, 0].tolist()
            for sample, row, column in zip(batch, rows, columns, strict=True):
                top, left = max(0, row - side // 2), max(0, column - side // 2)
                bottom, end = row - side // 2 + side, column - side // 2 + side
                sample[..., top : max(0, bottom), left : max(0, end)] = 0
        epoch.append((batch, chosen, mirrored))
    return epoch


@pytest.mark.parametrize("cutout", [0, 5])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 2, 32, 32), (2, 2, 12, 20)])
@pytest.mark.parametrize("mirror", [None, True, False])
def test_batches_are_shifted_mirrored_and_blanked_sample_by_sample(
    recipe: Recipe,
    events_recipe: Recipe,
    shape: tuple[int, ...],
    cutout: int,
    mirror: bool | None,
) -> None:
    base = recipe if len(shape) == 3 else events_recipe
    tried = msgspec.structs.replace(base, cutout=cutout, mirror=mirror, batch_size=4)
    inputs = np.random.default_rng(0).integers(1, 256, (10, *shape), np.uint8)

    found, expected = epoch_of(inputs, tried, seed=3), expected_epoch(inputs, tried, seed=3)

    assert len(found) == len(expected) == 2
    for batch, (images, chosen, _) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch[0].numpy(), images)
        assert batch[1].tolist() == [index % 10 for index in chosen]


def test_random_numbers_of_height_and_width_are_drawn_as_one_after_the_other() -> None:
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    both = torch.randint(32, (2, 7, 1), generator=one)
    apart = [torch.randint(32, (7, 1), generator=other) for _ in range(2)]
    assert torch.equal(both, torch.stack(apart))


def test_a_mirrored_sample_gets_the_teachers_word_on_its_mirror_image(recipe: Recipe) -> None:
    inputs = np.zeros((16, 3, 32, 32), np.uint8)
    soft = torch.arange(2 * 16 * 10.0).view(2, 16, 10)

    found, expected = epoch_of(inputs, recipe, 1, soft), expected_epoch(inputs, recipe, 1)

    for batch, (_, chosen, mirrored) in zip(found, expected, strict=True):
        assert batch[2] is not None
        assert torch.equal(batch[2], soft[torch.tensor(mirrored).long(), chosen])
    assert {flip for _, _, mirrored in expected for flip in mirrored} == {True, False}


def test_samples_are_turned_and_zoomed_the_same_at_all_timesteps(events_recipe: Recipe) -> None:
    recipe = msgspec.structs.replace(
        events_recipe, shift=0, mirror=False, cutout=0, rotation_degrees=20, zoom=0.3, batch_size=16
    )
    inputs = np.zeros((16, 2, 2, 33, 33), np.uint8)
    inputs[..., 15:18, 25:28] = 200  # Ten pixels to the right of the middle.

    ((samples, *_),) = epoch_of(inputs, recipe, seed=2)

    assert torch.equal(samples[:, 0], samples[:, 1])
    plane = samples[:, 0, 0]
    weights = plane / plane.sum((1, 2), keepdim=True)
    places = torch.arange(33.0) - 16
    down, right = (weights.sum(2) @ places, weights.sum(1) @ places)
    angles, distances = torch.atan2(down, right).rad2deg(), torch.hypot(down, right)
    assert angles.abs().max() < 21
    assert angles.min() < -5
    assert angles.max() > 5
    assert distances.max() < 10 / 0.7 + 0.5
    assert distances.min() > 10 / 1.3 - 0.5
    assert distances.max() - distances.min() > 2


def test_what_comes_into_view_is_reflection_in_pictures_and_silence_in_events(
    recipe: Recipe, events_recipe: Recipe
) -> None:
    zoomed = {"shift": 0, "cutout": 0, "zoom": 0.9, "batch_size": 16}
    pictures = np.full((16, 3, 32, 32), 255, np.uint8)
    ((images, *_),) = epoch_of(pictures, msgspec.structs.replace(recipe, **zoomed), seed=0)
    torch.testing.assert_close(images, torch.ones_like(images))

    events = np.full((16, 2, 2, 32, 32), 255, np.uint8)
    ((frames, *_),) = epoch_of(events, msgspec.structs.replace(events_recipe, **zoomed), seed=0)
    assert (frames[..., 0, 0] == 0).any()
    assert (frames[..., 16, 16] > 0.9).all()
