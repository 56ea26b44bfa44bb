from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from shared.errors import EngineError
from shared.exit_rule import Confidence, decide, exits, expand_alpha

LOGITS = arrays(
    np.float32,
    st.integers(2, 20),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def probabilities(scaled: NDArray[np.float32]) -> NDArray[np.float64]:
    exponentials = np.exp(scaled.astype(np.float64) - scaled.max())
    normalised: NDArray[np.float64] = exponentials / exponentials.sum()
    return normalised


@given(LOGITS)
def test_confidences_are_their_formulas(scaled: NDArray[np.float32]) -> None:
    p = probabilities(scaled)
    second, first = np.sort(p)[-2:]
    entropy = -(p[p > 0] * np.log(p[p > 0])).sum()

    found = {kind: decide(scaled.tolist(), 0, 1.0, kind).confidence for kind in Confidence}

    assert found[Confidence.MAX_SOFTMAX] == pytest.approx(first, abs=1e-5)
    assert found[Confidence.MARGIN] == pytest.approx(first - second, abs=1e-5)
    assert found[Confidence.ENTROPY] == pytest.approx(1 - entropy / np.log(len(p)), abs=1e-4)
    for confidence in found.values():
        assert float(np.float32(confidence)) == confidence
        assert 0 <= confidence <= 1


@given(LOGITS, st.sampled_from(list(Confidence)), st.integers(0, 7))
def test_label_and_confidence_ignore_a_constant(
    logits: NDArray[np.float32], kind: Confidence, timestep: int
) -> None:
    rounded = np.round(logits)  # whole numbers, so that the shift itself is exact

    one = decide(rounded.tolist(), timestep, 2.0, kind)
    other = decide((rounded + 64 * (timestep + 1)).tolist(), timestep, 2.0, kind)

    assert rounded[one.label] == rounded.max()
    assert other.confidence == pytest.approx(one.confidence, abs=1e-3)


def test_the_mean_is_scaled_by_the_temperature() -> None:
    decision = decide([6.0, 0.0], 2, 2.0)

    assert decision.label == 0
    assert decision.confidence == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)


def test_equal_logits_are_as_unsure_as_can_be() -> None:
    found = {kind: decide([3.0] * 10, 2, 0.5, kind).confidence for kind in Confidence}

    assert found[Confidence.MAX_SOFTMAX] == pytest.approx(0.1)
    assert found[Confidence.MARGIN] == 0
    assert found[Confidence.ENTROPY] == pytest.approx(0, abs=1e-6)


@given(LOGITS, st.sampled_from(list(Confidence)))
def test_a_confidence_is_exactly_a_float32(logits: NDArray[np.float32], kind: Confidence) -> None:
    confidence = decide(logits.tolist(), 0, 1.0, kind).confidence

    assert float(np.float32(confidence)) == confidence


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(EngineError, match="expected finite logits"):
        decide([0.0, bad], 0, 1.0)


@given(st.floats(0, 1, width=32), st.integers(2, 8), st.data())
def test_exit_is_strict_and_the_last_timestep_always_exits(
    confidence: float, timesteps: int, data: st.DataObject
) -> None:
    alpha = expand_alpha(confidence, timesteps)
    timestep = data.draw(st.integers(0, timesteps - 2))
    above = float(np.nextafter(np.float32(confidence), np.float32(2)))

    assert not exits(confidence, timestep, alpha)
    assert exits(above, timestep, alpha)
    assert exits(0.0, timesteps - 1, alpha)


def test_alpha_one_never_exits_early() -> None:
    alpha = expand_alpha(1.0, 4)

    assert [exits(1.0, timestep, alpha) for timestep in range(4)] == [False, False, False, True]


@given(st.floats(0, 1), st.integers(1, 16))
def test_one_alpha_becomes_a_float32_per_early_timestep(alpha: float, timesteps: int) -> None:
    expanded = expand_alpha(alpha, timesteps)

    assert expanded == (float(np.float32(alpha)),) * (timesteps - 1)
    assert expand_alpha(expanded, timesteps) == expanded


def test_a_list_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 alpha values for 4 timesteps.*got 2"):
        expand_alpha((0.5, 0.5), 4)


@pytest.mark.parametrize("alpha", [math.nan, (0.5, math.nan, 0.5)])
def test_nan_is_no_alpha(alpha: float | tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected numbers for alpha"):
        expand_alpha(alpha, 4)
