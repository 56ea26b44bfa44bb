"""Ends streams whose time is over: silent for too long, open for too long, no longer let in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Container
from math import inf

from cloud_server.admission import AdmissionError
from cloud_server.config import CloudConfig
from cloud_server.identity import Identities
from cloud_server.stream import Stream
from shared.metrics import CloudMetrics, RejectReason
from shared.tokens import Entry

ROUND_SECONDS = 0.25
"""Time between two rounds; one for all streams, so that an idle one costs next to nothing."""


class Warden:
    """Goes round the open streams.

    Args:
        config: the server's.
        identities: who may be here.
        streams: those that are open; may change.
        metrics: the server's.
    """

    def __init__(
        self,
        config: CloudConfig,
        identities: Identities,
        streams: Collection[Stream],
        metrics: CloudMetrics,
    ) -> None:
        self._idle_seconds = config.stream_idle_seconds or inf
        self._identities = identities
        self._streams = streams
        self._metrics = metrics

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            now, welcome = time.monotonic(), self._identities.welcome
            for stream in tuple(self._streams):
                self._look_at(stream, now, welcome)

    def _look_at(self, stream: Stream, now: float, welcome: Container[Entry | None]) -> None:
        visit = stream.visit
        if stream.session.live:
            visit.heard_at = now  # A sample has time limits of its own.
        if visit.edge.token not in welcome:
            message = "expected a token that this server knows, it no longer knows this one"
            stream.break_off(AdmissionError(RejectReason.AUTH, message))
        elif now - visit.heard_at > self._idle_seconds:
            message = f"expected a message within {self._idle_seconds} s, nothing came"
            stream.break_off(AdmissionError(RejectReason.IDLE, message))
        elif now >= visit.ends_at:
            visit.ends_at = inf
            self._metrics.stream_rotated()
            stream.drain()
