"""When is a sample sure enough to stop? Pure arithmetic in float32, the same on both sides.

Logits are averaged over the timesteps so far, divided by the bundle's calibrated temperature and
turned into a confidence; a sample exits at the first timestep whose confidence strictly exceeds
its alpha, and always at the last. NeuCODEX names the rule and alpha but not the formula; mean
logits (so that alpha means the same at every t) and the three confidences are our decision, after
SEENN (max softmax), DT-SNN (entropy) and SNNCutoff (top-1/top-2 gap).
"""

from __future__ import annotations

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
    return timestep >= len(alpha) or bool(np.float32(confidence) > np.float32(alpha[timestep]))


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
    if not np.isfinite(logit_sum).all():
        raise EngineError(f"expected finite logits, got {logit_sum.tolist()}")
    scaled = logit_sum / np.float32(timestep + 1) / np.float32(temperature)
    return Decision(int(scaled.argmax()), float(confidence_of(scaled, kind)))


def confidence_of(scaled: Logits, kind: Confidence) -> np.float32:
    """Return the confidence, float32 in [0, 1], of temperature-scaled logits ``[K]``."""
    shifted = scaled - scaled.max()
    exponentials = np.exp(shifted)
    probabilities = exponentials / exponentials.sum()
    if kind is Confidence.MAX_SOFTMAX:
        return np.float32(probabilities.max())
    if kind is Confidence.MARGIN:
        second, first = np.partition(probabilities, -2)[-2:]
        return np.float32(first - second)
    log_probabilities = shifted - np.log(exponentials.sum())
    entropy = -(probabilities * log_probabilities).sum()
    # Rounding may put the entropy of equal logits a hair above ln K.
    return np.float32(max(0.0, 1 - entropy / np.log(np.float32(len(scaled)))))
