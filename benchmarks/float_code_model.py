"""Floating-point models of codes: in how few bits could such a model say them?

Two models, both fitted to the samples that codec tables are fitted to, with one in ten kept back to
tell when to stop, and both looking further than ``ctx-max``: for every neuron at the table of
contexts and, of all channels, at 5x5 of the last three timesteps and 5x5 of what has been coded of
this one (masked, after van den Oord et al. 2016, "Pixel Recurrent Neural Networks").

* The *logistic* model adds these up, by place and with weights of its own for every timestep.
* The *network* puts them through two layers of hidden units besides, of every channel's own.

A bound of this kind is no floor: a larger model, or one fitted to more samples, might go lower. It
is no codec either: floating point differs between machines.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared.codec.context_model import causal
from training.fit_codec import Inputs, batches, fit_rates, frame_bits, nats, timestep_inputs

LAGS = 3
SIDE = 5
HIDDEN = 16
"""Hidden units of a channel, in each of the network's layers."""
LEARNING_RATE = 0.02
WEIGHT_DECAY = 1e-2
VALIDATED_SHARE = 10
"""One sample in so many tells when to stop."""
ROUNDS, STEPS_PER_ROUND = 12, 80
"""The model with the fewest bits on those samples after any round is kept."""


class FloatCodeModel(nn.Module):
    """Logits of every neuron of one timestep.

    Args:
        rates: P(spike) by context, ``[rows, C, 256]``, to begin with.
        shape: ``[T, C, H, W]``.
        hidden: units of a channel; 0 is the logistic model.
    """

    def __init__(self, rates: NDArray[np.float64], shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        timesteps, channels, height, width = shape
        clipped = rates.clip(1e-5, 1 - 1e-5)
        self.table = nn.Parameter(torch.from_numpy(np.log(clipped / (1 - clipped))).float())
        self.places = nn.Parameter(torch.zeros(timesteps, channels, height, width))
        # Of every timestep's own, and one for all.
        self.direct = nn.ModuleList(
            Surroundings(channels, 1, zero=True) for _ in range(timesteps + 1)
        )
        self.hidden = None
        if hidden:
            self.hidden = HiddenUnits(timesteps, channels, height, width, hidden)

    def forward(self, inputs: Inputs, timestep: int) -> Tensor:
        """Return the logits, float ``[N, C, H, W]``."""
        own, shared = self.direct[timestep](inputs), self.direct[-1](inputs)
        logits: Tensor = (
            self.table.flatten()[inputs.contexts] + own + shared + self.places[timestep]
        )
        return logits if self.hidden is None else logits + self.hidden(inputs, timestep)


class Surroundings(nn.Module):
    """Sums over a neuron's surroundings, of all that has been coded before it.

    Args:
        channels: C.
        maps: sums of a neuron.
        zero: begin with weights of zero.
    """

    def __init__(self, channels: int, maps: int, *, zero: bool = False) -> None:
        super().__init__()
        every = channels * maps
        self.past = nn.Conv2d(LAGS * channels, every, SIDE, padding=SIDE // 2, bias=False)
        self.current = nn.Conv2d(channels, every, SIDE, padding=SIDE // 2, bias=False)
        mask = torch.from_numpy(causal(channels, SIDE, maps)).float().permute(3, 0, 1, 2)
        self.register_buffer("mask", mask.contiguous())
        if zero:
            nn.init.zeros_(self.past.weight)
            nn.init.zeros_(self.current.weight)

    def forward(self, inputs: Inputs) -> Tensor:
        """Return ``[N, C * maps, H, W]``."""
        mask: Tensor = self.mask  # type: ignore[assignment]
        sums = functional.conv2d(inputs.frames, self.current.weight * mask, padding=SIDE // 2)
        return sums if inputs.past is None else sums + self.past(inputs.past)


class HiddenUnits(nn.Module):
    """Two layers of hidden units, of every channel's own."""

    def __init__(self, timesteps: int, channels: int, height: int, width: int, units: int) -> None:
        super().__init__()
        every = channels * units
        self.sums = Surroundings(channels, units)
        self.places = nn.Parameter(torch.zeros(every, height, width))
        self.timesteps = nn.Parameter(torch.zeros(timesteps, every, 1, 1))
        self.mix = nn.Conv2d(every, every, 1, groups=channels)
        self.out = nn.Conv2d(every, channels, 1, groups=channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, inputs: Inputs, timestep: int) -> Tensor:
        """Return what they add to the logits, float ``[N, C, H, W]``."""
        first = functional.relu(self.sums(inputs) + self.places + self.timesteps[timestep])
        added: Tensor = self.out(functional.relu(self.mix(first)))
        return added


def fit_float_model(
    codes: NDArray[np.uint8], hidden: int, *, rounds: int = ROUNDS
) -> FloatCodeModel:
    """Fit a model to codes, uint8 ``[N, T, C, H, W]``."""
    kept = max(1, len(codes) // VALIDATED_SHARE)
    rates = fit_rates(codes[kept:])
    fitting, checking = (
        list(timestep_inputs(part, len(rates), LAGS)) for part in (codes[kept:], codes[:kept])
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FloatCodeModel(rates, codes.shape[1:], hidden)
        found: list[tuple[float, FloatCodeModel]] = []
        for _ in _rounds(model, fitting, rounds):
            found.append((sum(frame_bits(model, checking)), copy.deepcopy(model)))
    return min(found, key=lambda each: each[0])[1]


def _rounds(model: FloatCodeModel, fitting: Sequence[Inputs], rounds: int) -> Iterator[None]:
    """Descend, and pause after every round."""
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = rounds * STEPS_PER_ROUND
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    for step, (timestep, batch) in enumerate(itertools.islice(batches(fitting), steps), start=1):
        optimiser.zero_grad()
        nats(model, batch, timestep, "mean").backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % STEPS_PER_ROUND == 0:
            yield


def ideal_bytes(model: FloatCodeModel, codes: NDArray[np.uint8]) -> list[float]:
    """Return the mean bytes of a frame of codes ``[N, T, C, H, W]``, at every timestep."""
    inputs = list(timestep_inputs(codes, len(model.table), LAGS))
    return [bits / 8 for bits in frame_bits(model, inputs)]
