"""Fit the context codecs to codes: counts for the table, logistic regression for ``ctx-max``.

Everything is rounded to the integers that :mod:`shared.codec.context_model` computes with.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared.codec.context_model import (
    CONTEXTS,
    LAGS,
    LOGIT_UNITS,
    MAX_ROWS,
    SQUASH_SIZE,
    ContextTables,
    MixingWeights,
    causal,
    history_contexts,
    neighbour_contexts,
)

PRIOR_COUNT = 8.0
"""A context counts as if it had been seen so often with the rate of its more general one."""
EPOCHS = 20
BATCH = 128
LEARNING_RATE = 0.03
"""Found on the codes of a ResNet-18: 60 epochs in smaller batches took 1 % fewer bytes."""
WEIGHT_DECAY = 1e-4
LOGIT_LIMIT = SQUASH_SIZE / 2 / LOGIT_UNITS
"""Logits are kept within the squash table: 8."""


def fit_tables(codes: NDArray[np.uint8], *, seed: int = 0) -> ContextTables:
    """Fit both models; a few hundred samples suffice.

    Args:
        codes: spikes 0 or 1, uint8 ``[N, T, C, H, W]``.
        seed: of the order of the batches.

    Raises:
        ValueError: another rank, or no samples.
    """
    if codes.ndim != 5 or not len(codes):
        raise ValueError(f"expected codes [N, T, C, H, W], got {list(codes.shape)}")
    channels, height, width = codes.shape[2:]
    rates = fit_rates(codes)
    probabilities = np.clip(np.round(rates * 65536), 1, 65535).astype(np.uint16)
    return ContextTables((channels, height, width), probabilities, fit_mixing(codes, rates, seed))


def contexts(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return every neuron's context, int64 ``[N, T, C, H, W]``."""
    shape = codes.shape[2:]
    flat = codes.reshape(*codes.shape[:2], -1)
    return np.stack(
        [
            [
                history_contexts(list(run[:t]), shape) | neighbour_contexts(run[t], shape)
                for t in range(len(run))
            ]
            for run in flat
        ]
    )


def fit_rates(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return P(spike) by row, channel and context, float64 ``[rows, C, 256]``.

    A context that was seen seldom leans on the same context over all channels, that on the same
    over all timesteps, and that on the overall rate.
    """
    timesteps, channels = codes.shape[1:3]
    rows = min(timesteps, MAX_ROWS)
    row = np.minimum(np.arange(timesteps), rows - 1)[None, :, None, None, None]
    channel = np.arange(channels)[None, None, :, None, None]
    index = ((row * channels + channel) * CONTEXTS + contexts(codes)).ravel()
    size = rows * channels * CONTEXTS
    seen = np.bincount(index, minlength=size).reshape(rows, channels, CONTEXTS).astype(np.float64)
    fired = np.bincount(index, weights=codes.ravel(), minlength=size).reshape(seen.shape)
    overall = (fired.sum() + 0.5) / (seen.sum() + 1)
    by_context = _shrunk(fired.sum((0, 1)), seen.sum((0, 1)), overall)
    by_row = _shrunk(fired.sum(1), seen.sum(1), by_context)
    return _shrunk(fired, seen, by_row[:, None])


def _shrunk(
    fired: NDArray[Any], seen: NDArray[Any], prior: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    rates: NDArray[np.float64] = (fired + PRIOR_COUNT * prior) / (seen + PRIOR_COUNT)
    return rates


class Mixing(nn.Module):
    """``ctx-max`` in floating point: the table's logits plus weighed surroundings.

    Args:
        logits: float, ``[rows, C, 256]``, to begin with.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        rows, channels = logits.shape[:2]
        self.logits = nn.Parameter(logits)
        self.past = nn.Parameter(torch.zeros(rows, LAGS, channels, 3, 3, channels))
        self.current = nn.Parameter(torch.zeros(rows, channels, 3, 3, channels))
        self.register_buffer("mask", torch.from_numpy(causal(channels)).float())

    def forward(self, codes: Tensor, index: Tensor, timestep: int) -> Tensor:
        """Return the logits of one timestep, float ``[N, C, H, W]``.

        Args:
            codes: float, ``[N, T, C, H, W]``.
            index: int64, ``[N, C, H, W]``, the contexts of this timestep.
            timestep: 0-based.
        """
        rows, channels = self.logits.shape[:2]
        row = min(timestep, rows - 1)
        base = torch.arange(channels)[:, None, None] * CONTEXTS
        total = self.logits[row].flatten()[base + index]
        mask: Tensor = self.mask  # type: ignore[assignment]
        total = total + _conv(codes[:, timestep], self.current[row] * mask)
        for lag in range(min(LAGS, timestep)):
            total = total + _conv(codes[:, timestep - 1 - lag], self.past[row, lag])
        return total


def _conv(codes: Tensor, weights: Tensor) -> Tensor:
    """Weigh the surroundings: ``[N, C', H, W]`` and ``[C', 3, 3, C]`` to ``[N, C, H, W]``."""
    return functional.conv2d(codes, weights.permute(3, 0, 1, 2), padding=1)


def fit_mixing(
    codes: NDArray[np.uint8], rates: NDArray[np.float64], seed: int = 0
) -> MixingWeights:
    """Fit ``ctx-max`` by logistic regression that starts from the table."""
    clipped = rates.clip(1e-5, 1 - 1e-5)
    model = Mixing(torch.from_numpy(np.log(clipped / (1 - clipped))).float())
    spikes = torch.from_numpy(codes).float()
    index = torch.from_numpy(contexts(codes))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(codes) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        order = torch.randperm(len(codes), generator=generator)
        for chosen in torch.split(order, BATCH):
            batch, places = spikes[chosen], index[chosen]
            losses = [
                functional.binary_cross_entropy_with_logits(
                    model(batch, places[:, timestep], timestep), batch[:, timestep]
                )
                for timestep in range(codes.shape[1])
            ]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return quantised(model)


def quantised(model: Mixing) -> MixingWeights:
    """Return the model in integers."""
    mask: Tensor = model.mask  # type: ignore[assignment]
    return MixingWeights(
        logits=_units(model.logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)),
        past=_units(model.past),
        current=_units(model.current * mask),
        squash=squash_table(),
    )


def _units(values: Tensor) -> NDArray[np.int16]:
    scaled = (values.detach() * LOGIT_UNITS).round().clamp(-32768, 32767)
    units: NDArray[np.int16] = scaled.to(torch.int16).numpy()
    return units


def squash_table() -> NDArray[np.uint16]:
    """Return probabilities by logit, in decimal arithmetic, which rounds alike everywhere."""
    values = []
    for index in range(SQUASH_SIZE):
        logit = Decimal(index - SQUASH_SIZE // 2) / LOGIT_UNITS
        values.append(int((65536 / (1 + (-logit).exp())).to_integral_value()))
    return np.clip(values, 1, 65535).astype(np.uint16)
