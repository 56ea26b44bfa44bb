"""Sums and distributions that are told on every timestep."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.tallies import Distribution, Tally

NUMBERS = st.floats(-1e6, 1e6)


@given(st.lists(st.floats(0, 1e6)))
def test_a_tally_is_the_sum_of_what_it_was_told(amounts: list[float]) -> None:
    tally = Tally()
    for amount in amounts:
        tally.tell(amount)
    assert tally.total == pytest.approx(sum(amounts))


@given(st.lists(NUMBERS, min_size=1, unique=True), st.lists(NUMBERS))
def test_a_distribution_counts_what_is_at_most_each_bound(
    bounds: list[float], values: list[float]
) -> None:
    bounds.sort()
    distribution = Distribution(bounds)
    for value in (*values, *bounds):
        distribution.tell(value)
    told = sorted((*values, *bounds))
    expected = [bisect_right(told, bound) for bound in bounds]
    assert distribution.cumulative() == [*expected, len(told)]
    assert distribution.total == pytest.approx(sum(told), abs=1e-3)
