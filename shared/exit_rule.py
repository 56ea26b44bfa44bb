"""When is a sample sure enough to stop? Pure arithmetic in float32, the same on both sides.

Logits are averaged over the timesteps so far, divided by the bundle's calibrated temperature and
turned into a confidence; a sample exits at the first timestep whose confidence strictly exceeds
its alpha, and always at the last. NeuCODEX names the rule and alpha but not the formula; mean
logits (so that alpha means the same at every t) and the three confidences are our decision, after
SEENN (max softmax), DT-SNN (entropy) and SNNCutoff (top-1/top-2 gap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import EngineError

Logits = NDArray[np.float32]


class Confidence(StrEnum):
    """Which function of the class probabilities is compared with alpha."""

    MAX_SOFTMAX = "max_softmax"
    ENTROPY = "entropy"
    MARGIN = "margin"


class Decision(NamedTuple):
    """The classifier's word after some timestep."""

    label: int
    confidence: float
    """A float32 value, exactly representable as such."""


class Decisions(NamedTuple):
    """The classifier's word on many samples, ``[N]``, or after every timestep, ``[T, N]``."""

    labels: NDArray[np.int64]
    """int64."""
    confidences: NDArray[np.float32]
    """float32; NaN where the logits are not finite."""


def expand_alpha(alpha: float | tuple[float, ...], timesteps: int) -> tuple[float, ...]:
    """Return alpha as ``timesteps - 1`` float32 values, one per timestep that may exit early.

    Raises:
        ValueError: a list of another length, or a value that is NaN.
    """
    wanted = timesteps - 1
    values = (alpha,) * wanted if isinstance(alpha, int | float) else alpha
    if len(values) != wanted:
        raise ValueError(
            f"expected {wanted} alpha values for {timesteps} timesteps, or one number; "
            f"got {len(values)}"
        )
    if any(np.isnan(value) for value in values):
        raise ValueError(f"expected numbers for alpha, got {values}")
    return tuple(float(np.float32(value)) for value in values)


def exits(confidence: float, timestep: int, alpha: tuple[float, ...]) -> bool:
    """Say whether a sample ends after ``timestep`` (0-based); ``alpha`` as expanded."""
    # Both are float32 values, so that comparing them as float64 is the same and takes no array.
    return timestep >= len(alpha) or confidence > alpha[timestep]


def decide(
    logit_sum: Logits, timestep: int, temperature: float, kind: Confidence = Confidence.MAX_SOFTMAX
) -> Decision:
    """Judge the sum of the logits of timesteps 0..``timestep``.

    Args:
        logit_sum: float32, ``[K]``.
        timestep: 0-based.
        temperature: calibrated divisor of the mean logits, above 0.
        kind: which confidence.

    Raises:
        EngineError: the logits are not finite.
    """
    (label,), (confidence,) = decide_all(logit_sum[None], [timestep], temperature, kind)
    if np.isnan(confidence):
        raise EngineError(f"expected finite logits, got {logit_sum.tolist()}")
    return Decision(int(label), float(confidence))


def decide_all(
    logit_sums: Logits,
    timesteps: Sequence[int],
    temperature: float,
    kind: Confidence = Confidence.MAX_SOFTMAX,
) -> Decisions:
    """Judge many samples at once, each as :func:`decide` would alone.

    Args:
        logit_sums: float32, ``[N, K]``.
        timesteps: N of them, 0-based, each sample's own.
        temperature: see :func:`decide`.
        kind: which confidence.
    """
    # One sum, in float64 lest it overflow, tells whether all are finite; they nearly always are.
    if not math.isfinite(logit_sums.sum(dtype=np.float64)):
        return _decide_finite(logit_sums, timesteps, temperature, kind)
    divisors = np.array([[(timestep + 1) * temperature] for timestep in timesteps], np.float32)
    scaled = logit_sums / divisors
    return Decisions(scaled.argmax(axis=-1), confidence_of(scaled, kind))


def _decide_finite(
    logit_sums: Logits, timesteps: Sequence[int], temperature: float, kind: Confidence
) -> Decisions:
    """Judge the samples whose logits are finite; the others get a confidence of NaN."""
    wrong = np.flatnonzero(~np.isfinite(logit_sums).all(axis=-1))
    harmless = logit_sums.copy()
    harmless[wrong] = 0
    decisions = decide_all(harmless, timesteps, temperature, kind)
    decisions.confidences[wrong] = np.nan
    return decisions


def confidence_of(scaled: Logits, kind: Confidence) -> NDArray[np.float32]:
    """Return confidences, float32 ``[N]`` in [0, 1], of temperature-scaled logits ``[N, K]``."""
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=-1, keepdims=True)
    if kind is Confidence.MAX_SOFTMAX:
        # The largest exponential is exp(0).
        largest: NDArray[np.float32] = np.float32(1) / totals[:, 0]
        return largest
    probabilities = exponentials / totals
    if kind is Confidence.MARGIN:
        second, first = np.partition(probabilities, -2, axis=-1)[:, -2:].T
        margin: NDArray[np.float32] = first - second
        return margin
    entropies = -(probabilities * (shifted - np.log(totals))).sum(axis=-1)
    # Rounding may put the entropy of equal logits a hair above ln K.
    most = np.log(np.float32(scaled.shape[-1]))
    confidences: NDArray[np.float32] = np.maximum(np.float32(0), 1 - entropies / most)
    return confidences
