"""How much memory an idle daemon holds, with the shipped bundle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.soak import resident_bytes
from examples.demo import BUNDLE
from examples.pair import Pair, pair

EDGE_LIMIT_BYTES = 120_000_000
"""Of the edge daemon, the fallback tail not loaded."""
CLOUD_LIMIT_BYTES = 150_000_000


@pytest.fixture(scope="module")
def idle_pair() -> Iterator[Pair]:
    with pair(BUNDLE) as both:
        yield both


@pytest.mark.timeout(600)
def test_an_idle_edge_daemon_is_small(idle_pair: Pair) -> None:
    assert resident_bytes(idle_pair.edge.pid) <= EDGE_LIMIT_BYTES


@pytest.mark.timeout(600)
def test_an_idle_cloud_server_is_small(idle_pair: Pair) -> None:
    assert resident_bytes(idle_pair.cloud.pid) <= CLOUD_LIMIT_BYTES
