"""Fit the context codecs to codes: counts for the table, gradient descent for ``ctx-max``.

Everything is rounded to the integers that :mod:`shared.codec.context_model` computes with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared.codec.context_model import (
    CONTEXTS,
    HIDDEN_LIMIT,
    LAGS,
    LOGIT_UNITS,
    MAX_ROWS,
    PAST_SIDE,
    SQUASH_SIZE,
    ContextTables,
    MixingWeights,
    Shape,
    causal,
    history_contexts,
    neighbour_contexts,
)

PRIOR_COUNT = 8.0
"""A context counts as if it had been seen so often with the rate of its more general one."""
MAPS, SIDE = 9, 5
"""The size of ``ctx-max``: a map that is added as it is and eight hidden units a channel. On a
ResNet-18's codes of CIFAR-10, fitted to 2,500 images, no hidden units take 3 % more bytes and four
0.5 % more, on those of N-MNIST four take 2 % more; 3x3 in this timestep takes 1.4 % more, weights
of spikes for every timestep 1.5 % more. Places for every timestep take 3.5 % less on N-MNIST."""
NETWORK_BYTES = 8 << 20
"""A network that would take more has no hidden units, or is left out: a bundle is to be small."""
BATCH = 256
VALIDATED_SHARE = 10
"""One sample in so many tells how long to descend; then all are fitted to."""
STEP_FACTORS = (1, 4)
"""How long that may be, in multiples of :func:`steps_for`."""
LEARNING_RATE = 0.02
TABLE_DECAY, NETWORK_DECAY = 1e-4, 1e-2
NEURONS = 8_000_000
"""Spikes and silences behind ``ctx-max``: of more samples some are left out."""
LEAST_STEPS = 30
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
    tables = ContextTables((channels, height, width), probabilities)
    maps = most_maps(tables.shape, tables.rows)
    return tables._replace(mixing=fit_mixing(codes, rates, maps, seed)) if maps else tables


def most_maps(shape: Shape, rows: int) -> int:
    """Return how many maps a channel may have; 0 where the network would be too large at all."""
    channels, height, width = shape
    weights = channels * (channels * (LAGS * PAST_SIDE**2 + SIDE**2) + rows * height * width)
    return next((maps for maps in (MAPS, 1) if 2 * maps * weights <= NETWORK_BYTES), 0)


def contexts(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return every neuron's context, int64 ``[N, T, C, H, W]``."""
    shape: Shape = codes.shape[2:]
    steps = list(codes.reshape(*codes.shape[:2], -1).swapaxes(0, 1))
    found = [
        history_contexts(steps[:t], shape) | neighbour_contexts(step, shape)
        for t, step in enumerate(steps)
    ]
    return np.stack(found, axis=1)


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


class Inputs(NamedTuple):
    """What models of codes take of one timestep."""

    frames: Tensor
    """float, ``[N, C, H, W]``."""
    past: Tensor | None
    """The frames before them, latest first, float ``[N, lags * C, H, W]``; None at first."""
    contexts: Tensor
    """int64, ``[N, C, H, W]``: which of a table's entries, ``[rows * C * 256]``."""

    def of(self, samples: Tensor) -> Inputs:
        """Return those of some samples."""
        past = None if self.past is None else self.past[samples]
        return Inputs(self.frames[samples], past, self.contexts[samples])


class CodeModel(Protocol):
    """A model of one timestep's spikes: a torch module, or a function."""

    def __call__(self, inputs: Inputs, timestep: int) -> Tensor:
        """Return the logits of every neuron, float ``[N, C, H, W]``."""
        ...


class Mixing(nn.Module):
    """``ctx-max`` in floating point: the table's logits plus a small network.

    Args:
        logits: float, ``[rows, C, 256]``, to begin with.
        shape: ``[C, H, W]`` of the code.
        maps: M.
    """

    def __init__(self, logits: Tensor, shape: Shape, maps: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.maps = maps
        self.logits = nn.Parameter(logits)
        # For all timesteps, and what each row adds.
        self.places = _parameter(channels, maps, height, width)
        self.row_places = _parameter(len(logits), channels, maps, height, width)
        self.past = _parameter(channels, maps, LAGS * channels, PAST_SIDE, PAST_SIDE)
        self.current = _parameter(channels, maps, channels, SIDE, SIDE)
        self.hidden = _parameter(channels, maps - 1)
        self.register_buffer("mask", torch.from_numpy(causal(channels, SIDE, maps)).float())
        reach = 1 / math.sqrt(LAGS * channels * PAST_SIDE**2 + channels * SIDE**2)
        with torch.no_grad():
            # Hidden units must begin unlike each other; they count for nothing yet.
            for each in (self.places, self.past, self.current):
                each[:, 1:].uniform_(-reach, reach)

    def causal_weights(self) -> Tensor:
        """Return the weights of this timestep, float ``[C * M, C', side, side]``."""
        mask: Tensor = self.mask  # type: ignore[assignment]
        return self.current.flatten(0, 1) * mask.permute(3, 0, 1, 2)

    def forward(self, inputs: Inputs, timestep: int) -> Tensor:
        """Return the logits of one timestep, float ``[N, C, H, W]``."""
        row = min(timestep, len(self.logits) - 1)
        flat = functional.conv2d(inputs.frames, self.causal_weights(), padding=SIDE // 2)
        flat = flat + (self.places + self.row_places[row]).flatten(0, 1)
        if inputs.past is not None:
            weights = self.past.flatten(0, 1)
            flat = flat + functional.conv2d(inputs.past, weights, padding=PAST_SIDE // 2)
        count, _, height, width = flat.shape
        maps = flat.reshape(count, -1, self.maps, height, width)
        units = maps[:, :, 1:].clamp(0, HIDDEN_LIMIT / LOGIT_UNITS)
        added = torch.einsum("ncuyx,cu->ncyx", units, self.hidden)
        logits: Tensor = self.logits.flatten()[inputs.contexts] + maps[:, :, 0] + added
        return logits


def _parameter(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(sizes))


def fit_mixing(
    codes: NDArray[np.uint8], rates: NDArray[np.float64], maps: int = MAPS, seed: int = 0
) -> MixingWeights:
    """Fit ``ctx-max`` by gradient descent that starts from the table."""
    most = max(1, NEURONS // codes[0].size)
    codes = codes[:: -(-len(codes) // most)]
    with torch.random.fork_rng(devices=[]), deterministic():
        steps = _best_steps(codes, maps, seed)
        return quantised(_fitted(codes, rates, maps, steps, seed))


def _best_steps(codes: NDArray[np.uint8], maps: int, seed: int) -> int:
    """Return the number of steps after which samples that were set aside take the fewest bits."""
    kept, steps = len(codes) // VALIDATED_SHARE, steps_for(codes.size)
    if not kept:
        return steps
    rates = fit_rates(codes[kept:])
    checking = list(timestep_inputs(codes[:kept], len(rates)))

    def bits(factor: int) -> float:
        model = _fitted(codes[kept:], rates, maps, factor * steps, seed)
        return sum(frame_bits(model, checking))

    return steps * min(STEP_FACTORS, key=bits)


def _fitted(
    codes: NDArray[np.uint8], rates: NDArray[np.float64], maps: int, steps: int, seed: int
) -> Mixing:
    torch.manual_seed(seed)
    clipped = rates.clip(1e-5, 1 - 1e-5)
    logits = torch.from_numpy(np.log(clipped / (1 - clipped))).float()
    shape: Shape = codes.shape[2:]
    model = Mixing(logits, shape, maps)
    _descend(model, list(timestep_inputs(codes, len(rates))), steps)
    return model


@torch.no_grad()
def frame_bits(model: CodeModel, inputs: Sequence[Inputs]) -> list[float]:
    """Return the mean bits of a frame under a model, at every timestep."""
    found = []
    for timestep, each in enumerate(inputs):
        every = parts(torch.arange(len(each.frames)))
        total = sum(float(nats(model, each.of(part), timestep, "sum")) for part in every)
        found.append(total / len(each.frames) / math.log(2))
    return found


def nats(model: CodeModel, inputs: Inputs, timestep: int, reduction: str) -> Tensor:
    """Return the bits of spikes and silences under a model, times ln 2; the mean or the sum."""
    return functional.binary_cross_entropy_with_logits(
        model(inputs, timestep), inputs.frames, reduction=reduction
    )


@contextmanager
def deterministic() -> Iterator[None]:
    """Have equal inputs give equal bits: threads that add gradients of a table race otherwise."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def timestep_inputs(codes: NDArray[np.uint8], rows: int, lags: int = LAGS) -> Iterator[Inputs]:
    """Yield what models of codes ``[N, T, C, H, W]`` take, for every timestep."""
    spikes = torch.from_numpy(codes).float()
    places = torch.from_numpy(contexts(codes))
    channels = torch.arange(codes.shape[2])[:, None, None]
    for timestep in range(codes.shape[1]):
        before = [
            spikes[:, timestep - lag] if lag <= timestep else torch.zeros_like(spikes[:, 0])
            for lag in range(1, lags + 1)
        ]
        base = (min(timestep, rows - 1) * codes.shape[2] + channels) * CONTEXTS
        past = torch.cat(before, 1) if timestep else None
        yield Inputs(spikes[:, timestep], past, base + places[:, timestep])


def parts(order: Tensor) -> tuple[Tensor, ...]:
    """Cut an order of samples into batches."""
    cut: tuple[Tensor, ...] = order.split(BATCH)  # type: ignore[no-untyped-call]
    return cut


def batches(inputs: Sequence[Inputs]) -> Iterator[tuple[int, Inputs]]:
    """Yield batches of one timestep each, with that timestep, in random order, for ever."""
    while True:
        chosen = [
            (timestep, part)
            for timestep, each in enumerate(inputs)
            for part in parts(torch.randperm(len(each.frames)))
        ]
        for at in torch.randperm(len(chosen)).tolist():
            timestep, part = chosen[at]
            yield timestep, inputs[timestep].of(part)


def steps_for(neurons: int) -> int:
    """Return how many steps of descent to take over so many spikes and silences, at least.

    More may learn few samples by heart: a ResNet-18's codes of 2,048 neurons did best with about
    100 steps on 50 samples, 300 on 500 and 800 on 2,500. Events repeat themselves less: those of
    N-MNIST gained from four times as many.
    """
    return max(LEAST_STEPS, math.isqrt(neurons) // 3)


def _descend(model: Mixing, inputs: Sequence[Inputs], steps: int) -> None:
    network = [each for name, each in model.named_parameters() if name != "logits"]
    optimiser = torch.optim.AdamW(
        [
            {"params": [model.logits], "weight_decay": TABLE_DECAY},
            {"params": network, "weight_decay": NETWORK_DECAY},
        ],
        lr=LEARNING_RATE,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    for timestep, batch in itertools.islice(batches(inputs), steps):
        optimiser.zero_grad()
        loss = nats(model, batch, timestep, "mean")
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def quantised(model: Mixing) -> MixingWeights:
    """Return the model in integers."""
    every, side = len(model.hidden) * model.maps, PAST_SIDE
    past = model.past.reshape(every, LAGS, -1, side, side).permute(1, 2, 3, 4, 0)
    return MixingWeights(
        logits=_units(model.logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)),
        places=_units((model.places + model.row_places).flatten(1, 2).permute(0, 2, 3, 1)),
        past=_units(past)[None],
        current=_units(model.causal_weights().permute(1, 2, 3, 0))[None],
        hidden=_units(model.hidden),
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
