"""What the cloud's wall clock shows against this device's, and how far that may be wrong.

The cloud tells its time with a verdict now and then. Of a round trip only the two ends are known,
not how it divides between the directions: as in NTP half of it is taken, and half of it is the most
by which the offset can be wrong. Nothing is reckoned with it; it is for people who compare logs and
traces of two machines.
"""

from __future__ import annotations

from collections import deque
from time import time
from typing import NamedTuple

from shared.metrics import EdgeMetrics

REMEMBERED = 8
"""Comparisons of which the best is told: clocks drift, so that older ones say less and less."""


class Comparison(NamedTuple):
    """One comparison of the clocks."""

    error_seconds: float
    offset_seconds: float
    """Cloud minus device."""


class PeerClock:
    """Compares the clocks.

    Args:
        metrics: told.
        peer: configured name of the cloud.
    """

    def __init__(self, metrics: EdgeMetrics, peer: str) -> None:
        self._metrics = metrics
        self._peer = peer
        self._latest: deque[Comparison] = deque(maxlen=REMEMBERED)

    def told(self, cloud_seconds: float, round_trip_seconds: float, service_seconds: float) -> None:
        """Take in what the cloud's clock showed when it sent a verdict that has just come.

        Args:
            cloud_seconds: since 1970, by its clock.
            round_trip_seconds: from the packet's sending to now.
            service_seconds: of them, those between the packet's arrival there and the verdict.
        """
        error_seconds = max(0.0, round_trip_seconds - service_seconds) / 2
        self._latest.append(Comparison(error_seconds, cloud_seconds + error_seconds - time()))
        best = min(self._latest)
        self._metrics.peer_clock(self._peer, best.offset_seconds, best.error_seconds)
