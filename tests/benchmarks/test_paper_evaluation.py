"""What the comparison is put together from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper_evaluation import crossing, paced, transports
from cloud_server.config import load
from edge_agent.config import EdgeConfig
from edge_agent.measure.run import Drive, Outcome, in_flight
from shared.errors import ConfigError


@given(st.floats(0.001, 0.5), st.floats(0.1, 10), st.lists(st.floats(0.6, 1), max_size=3))
def test_a_straight_line_crosses_where_it_does(
    x: float, slope: float, later: Sequence[float]
) -> None:
    xs = [0.0, 0.55, *sorted(later)]
    found = crossing(xs, [slope * (x - each) for each in xs])
    assert found == pytest.approx(x)


def test_what_never_gains_or_always_does_has_no_crossing() -> None:
    assert crossing([1, 2, 3], [3, 2, 1]) is None
    assert crossing([1, 2, 3], [-1, -2, -3]) is None
    assert crossing([1, 2, 3], [-1, 2, -2]) == pytest.approx(2.5)


async def drive(driver: Drive, count: int) -> tuple[list[Outcome], int, list[float]]:
    """Run inputs that take a while; return outcomes, most at once, and when each began."""
    running, most = 0, 0
    began: list[float] = []

    async def ask(index: int) -> Outcome:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        began.append(time.perf_counter())
        await asyncio.sleep(0.01)
        running -= 1
        return ConfigError(str(index))

    return await driver(ask, range(count)), most, began


async def test_so_many_are_kept_in_flight() -> None:
    outcomes, most, _ = await drive(in_flight(8), 40)
    assert most == 8
    assert sorted(int(str(outcome)) for outcome in outcomes) == list(range(40))


async def test_a_pace_is_kept() -> None:
    outcomes, most, began = await drive(paced(0.05), 5)
    assert most == 1
    assert [int(str(outcome)) for outcome in outcomes] == list(range(5))
    assert all(later - began[0] >= 0.05 * number for number, later in enumerate(began))


def test_every_transport_is_one_that_both_sides_take(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="makes certificates")
    found = transports(tmp_path)
    assert set(found) == {"without_tls", "mutual_tls"}
    for name, transport in found.items():
        flags = dict(flag.removeprefix("--").split("=") for flag in transport.cloud_flags)
        keys = {key.replace("-", "_"): value for key, value in flags.items()}
        cloud = load(None, {"listen": "127.0.0.1:0"} | keys)
        edge = EdgeConfig(bundle="b", cloud="192.0.2.1:1", **transport.edge_changes)
        assert (cloud.tls is not None) == (edge.tls_ca is not None) == (name == "mutual_tls")
        if cloud.tls is not None:
            assert cloud.tls.read().ca is not None
        edge.credentials.read()
