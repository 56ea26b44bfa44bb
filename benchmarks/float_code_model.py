"""A floating-point model of codes: how few bits could they take?

Every channel has hidden units of its own that see the last four timesteps in 5x5 surroundings and,
of this timestep, what has been coded before (masked, after van den Oord et al. 2016, "Pixel
Recurrent Neural Networks"). It is no codec: floating point differs between machines.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

PAST = 4
HIDDEN = 24
"""Hidden units per channel."""
SIDE = 5
BATCH = 64
LEARNING_RATE = 3e-3


class FloatCodeModel(nn.Module):
    """Logits of every neuron of one timestep.

    Args:
        channels: C of the code.
        timesteps: T.
    """

    def __init__(self, channels: int, timesteps: int) -> None:
        super().__init__()
        width = channels * HIDDEN
        self.past = nn.Conv2d(PAST * channels, width, SIDE, padding=SIDE // 2)
        self.current = nn.Conv2d(channels, width, SIDE, padding=SIDE // 2, bias=False)
        self.timestep = nn.Embedding(timesteps, width)
        self.mix = nn.Conv2d(width, width, 1, groups=channels)
        self.out = nn.Conv2d(width, channels, 1, groups=channels)
        self.register_buffer("mask", _mask(channels))

    def forward(self, codes: Tensor, timestep: int) -> Tensor:
        """Map codes ``[N, T, C, H, W]`` to the logits of one timestep, ``[N, C, H, W]``."""
        before = [
            codes[:, timestep - lag] if timestep >= lag else torch.zeros_like(codes[:, 0])
            for lag in range(1, PAST + 1)
        ]
        mask: Tensor = self.mask  # type: ignore[assignment]
        seen = functional.conv2d(codes[:, timestep], self.current.weight * mask, padding=SIDE // 2)
        place = self.timestep.weight[timestep][None, :, None, None]
        hidden = functional.relu(self.past(torch.cat(before, 1)) + seen + place)
        logits: Tensor = self.out(functional.relu(self.mix(hidden)))
        return logits


def _mask(channels: int) -> Tensor:
    """Return which weights ``[C * HIDDEN, C', 5, 5]`` look at neurons coded before."""
    mask = torch.zeros(channels, channels, SIDE, SIDE)
    centre = SIDE // 2
    for channel in range(channels):
        mask[channel, :channel] = 1
        mask[channel, channel, :centre] = 1
        mask[channel, channel, centre, :centre] = 1
    return mask.repeat_interleave(HIDDEN, 0)


def fit_float_model(codes: NDArray[np.uint8], *, epochs: int, seed: int = 0) -> FloatCodeModel:
    """Fit the model to codes, uint8 ``[N, T, C, H, W]``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FloatCodeModel(codes.shape[2], codes.shape[1])
        spikes = torch.from_numpy(codes).float()
        optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        steps = epochs * math.ceil(len(codes) / BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(epochs):
            order = torch.randperm(len(codes))
            for start in range(0, len(codes), BATCH):
                optimiser.zero_grad()
                loss = _bits(model, spikes[order[start : start + BATCH]])
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    return model


def _bits(model: FloatCodeModel, spikes: Tensor) -> Tensor:
    """Return the mean bits of one timestep."""
    losses = [
        functional.binary_cross_entropy_with_logits(
            model(spikes, timestep), spikes[:, timestep], reduction="sum"
        )
        for timestep in range(spikes.shape[1])
    ]
    return torch.stack(losses).mean() / len(spikes) / math.log(2)


@torch.no_grad()
def bits_per_timestep(model: FloatCodeModel, codes: NDArray[np.uint8]) -> float:
    """Return the mean bits of one timestep under the model."""
    batches = torch.from_numpy(codes).float().split(BATCH)  # type: ignore[no-untyped-call]
    return sum(float(_bits(model, batch)) * len(batch) for batch in batches) / len(codes)
