"""How much memory an idle daemon holds, with the shipped bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo import BUNDLE
from examples.pair import Pair, pair

EDGE_LIMIT_BYTES = 120_000_000
"""Of the edge daemon, the fallback tail not loaded."""
CLOUD_LIMIT_BYTES = 150_000_000


@pytest.fixture(scope="module")
def idle_pair() -> Iterator[Pair]:
    with pair(BUNDLE) as both:
        yield both


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.timeout(600)
def test_an_idle_edge_daemon_is_small(idle_pair: Pair) -> None:
    assert resident_bytes(idle_pair.edge.pid) <= EDGE_LIMIT_BYTES


@pytest.mark.timeout(600)
def test_an_idle_cloud_server_is_small(idle_pair: Pair) -> None:
    assert resident_bytes(idle_pair.cloud.pid) <= CLOUD_LIMIT_BYTES
