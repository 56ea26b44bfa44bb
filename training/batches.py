"""Augmented batches of images or events, on the device that trains."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from shared.model.bundle import Preprocessing
from training.data.labelled import LabelledData
from training.loss import Batch
from training.recipe import Recipe


class Normaliser:
    """Does on a device what :func:`shared.model.preprocessing.prepare` does when serving.

    Args:
        preprocessing: mean and standard deviation per channel, of values divided by 255.
        device: where the samples are.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )

    def __call__(self, samples: Tensor) -> Tensor:
        """Map ``[..., C, H, W]`` with values 0 to 255, of any dtype, to normalised float32."""
        return (samples.float() / 255 - self._mean) / self._std


class Batches:
    """Shuffled, randomly shifted, mirrored and blanked batches of one data set.

    Args:
        data: moved to the device as a whole.
        normalise: applied to every batch.
        soft: a teacher's logits, float32 ``[2, N, K]``, of the samples and of their mirror images.
        recipe: says how to augment.
        device: of the batches.
    """

    def __init__(
        self,
        data: LabelledData,
        normalise: Normaliser,
        soft: Tensor | None,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self._samples = torch.from_numpy(data.inputs).to(device)
        self._labels = torch.from_numpy(data.labels).to(device)
        self._soft = None if soft is None else soft.to(device)
        self._normalise = normalise
        self._padding = "reflect" if data.kind == "static" else "constant"
        self._turned_padding = "reflection" if data.kind == "static" else "zeros"
        self._recipe = recipe

    def __len__(self) -> int:
        return len(self._labels) // self._recipe.batch_size

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch; the incomplete last batch is left out."""
        size, shift = self._recipe.batch_size, self._recipe.shift
        order = torch.randperm(len(self._labels), generator=generator)
        for chosen in torch.split(order[: len(self) * size], size):
            shifts = torch.randint(2 * shift + 1, (2, size, 1), generator=generator)
            mirrored = torch.rand(size, generator=generator) < 0.5
            mirrored &= self._recipe.mirrors
            samples = self._moved(self._samples[chosen], shifts, mirrored)
            if self._recipe.rotation_degrees or self._recipe.zoom:
                samples = self._turned(samples, generator)
            images = self._normalise(samples)
            soft = None if self._soft is None else self._soft[mirrored.long(), chosen]
            if self._recipe.cutout:
                images = self._cut_out(images, generator)
            if images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            yield Batch(images, self._labels[chosen], soft)

    def _moved(self, samples: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        """Return samples ``[N, ..., H, W]``, as float, cut out of their padded selves."""
        height, width = samples.shape[-2:]
        planes = samples.flatten(1, -3).float()
        padded = functional.pad(planes, (self._recipe.shift,) * 4, mode=self._padding)
        rows = shifts[0] + torch.arange(height)
        columns = shifts[1] + torch.arange(width)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        moved = padded[
            torch.arange(len(planes))[:, None, None, None],
            torch.arange(planes.shape[1])[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        return moved.view(samples.shape)

    def _turned(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Return samples ``[N, ..., H, W]`` turned and zoomed around their middle, bilinearly."""
        turns, zooms = 2 * torch.rand(2, len(samples), generator=generator) - 1
        angles = turns * math.radians(self._recipe.rotation_degrees)
        scales = 1 + zooms * self._recipe.zoom
        cosines, sines = angles.cos() * scales, angles.sin() * scales
        none = torch.zeros_like(angles)
        rows = [torch.stack(row, -1) for row in ((cosines, -sines, none), (sines, cosines, none))]
        planes = samples.flatten(1, -3)
        grid = functional.affine_grid(
            torch.stack(rows, 1).to(planes.device), list(planes.shape), align_corners=False
        )
        turned = functional.grid_sample(
            planes, grid, padding_mode=self._turned_padding, align_corners=False
        )
        return turned.view(samples.shape)

    def _cut_out(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Set a square around a random pixel of every sample to 0, at all its timesteps."""
        side = self._recipe.cutout
        inside = []
        for length in images.shape[-2:]:
            centres = torch.randint(length, (len(images), 1), generator=generator)
            offsets = torch.arange(length) - centres + side // 2
            inside.append((offsets >= 0) & (offsets < side))
        rows, columns = inside
        mask = (rows[:, :, None] & columns[:, None, :]).to(images.device)
        between = (1,) * (images.ndim - mask.ndim)
        return images.masked_fill(mask.view(len(mask), *between, *mask.shape[1:]), 0.0)
