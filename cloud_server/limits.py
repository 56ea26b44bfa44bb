"""What one edge may take of the server: streams, samples and bytes per second, a stream's time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Literal

from cloud_server.admission import AdmissionError
from cloud_server.config import CloudConfig
from cloud_server.identity import Edge
from cloud_server.session import Hold
from shared.metrics import CloudMetrics, RejectReason

BURST_SECONDS = 1.0
"""An edge that was quiet may take at once what it may take in so long."""
MOST_DEBT_SECONDS = 10.0
"""An edge that sends on although nothing of it begins is cut off once it is so far ahead."""
LIFE_JITTER = 0.2
"""Up to this share of a stream's life is left out at random: streams that began together end
apart."""
FEWEST_SWEPT = 64

Kind = Literal["stream", "fetch"]
_PLURALS: dict[Kind, str] = {"stream": "streams", "fetch": "fetches"}
_UNITS = {RejectReason.EDGE_SAMPLES: "samples", RejectReason.EDGE_BYTES: "bytes"}

Clock = Callable[[], float]


class Bucket:
    """What may be taken at a rate: it fills up to one burst, and may be left in debt.

    Args:
        per_second: the rate.
        clock: tells the time in seconds.
    """

    def __init__(self, per_second: float, clock: Clock) -> None:
        self.per_second = per_second
        self._most = max(1.0, BURST_SECONDS * per_second)
        self._clock = clock
        self._level = self._most
        self._filled_at = clock()

    def take(self, amount: float) -> None:
        """Take so much, whether it is there or not."""
        self._level = self._filled() - amount

    @property
    def wait_seconds(self) -> float:
        """How long until there is one to take; 0 if there is."""
        return max(0.0, (1 - self._filled()) / self.per_second)

    @property
    def is_full(self) -> bool:
        """Whether it is as if nothing had been taken."""
        return self._filled() >= self._most

    def _filled(self) -> float:
        now = self._clock()
        self._level += (now - self._filled_at) * self.per_second
        self._level, self._filled_at = min(self._most, self._level), now
        return self._level


class _Account:
    """What one edge has open and has taken."""

    def __init__(self, config: CloudConfig, clock: Clock) -> None:
        self.places = {kind: 0 for kind in _PLURALS}
        self.buckets: dict[RejectReason, Bucket] = {}
        rates = {
            RejectReason.EDGE_SAMPLES: config.edge_samples_per_second,
            RejectReason.EDGE_BYTES: config.edge_bytes_per_second,
        }
        for reason, per_second in rates.items():
            if per_second is not None:
                self.buckets[reason] = Bucket(per_second, clock)
        fetch_rate = config.edge_fetch_bytes_per_second
        self.fetching = None if fetch_rate is None else Bucket(fetch_rate, clock)

    def take(self, reason: RejectReason, amount: float) -> None:
        """Take from a bucket if there is one."""
        if reason in self.buckets:
            self.buckets[reason].take(amount)

    def hold(self) -> Hold | None:
        """Return why no sample may begin now; None if one may."""
        held = (self.hold_of(reason) for reason in self.buckets)
        return next((hold for hold in held if hold is not None), None)

    def hold_of(self, reason: RejectReason) -> Hold | None:
        """Return what holds this edge back for one reason; None if that does not."""
        bucket = self.buckets.get(reason)
        if bucket is None or not (seconds := bucket.wait_seconds):
            return None
        message = f"expected at most {bucket.per_second:g} {_UNITS[reason]} per second of one edge"
        return Hold(reason, f"{message}, got more", seconds)

    @property
    def is_idle(self) -> bool:
        """Whether it is as that of an edge never seen."""
        buckets = [*self.buckets.values(), *filter(None, [self.fetching])]
        return not any(self.places.values()) and all(bucket.is_full for bucket in buckets)


class Visit:
    """One open stream of an edge, or a file on its way there; made by :meth:`EdgeLimits.visit`.

    Attributes:
        edge: whose.
        heard_at: when something last came, on the clock.
        ends_at: when it is to end between two samples, on the clock.
    """

    def __init__(
        self, edge: Edge, account: _Account, metrics: CloudMetrics, clock: Clock, ends_at: float
    ) -> None:
        self.edge = edge
        self.heard_at = clock()
        self.ends_at = ends_at
        self._account = account
        self._metrics = metrics
        self._clock = clock

    def received(self, size_bytes: int) -> None:
        """A message came; AdmissionError if the edge is too far ahead of its rate of bytes."""
        self.heard_at = self._clock()
        hold = self._account.hold_of(RejectReason.EDGE_BYTES)
        if hold is not None and hold.seconds > MOST_DEBT_SECONDS:
            raise AdmissionError(RejectReason.EDGE_BYTES, hold.message, hold.seconds)
        self._account.take(RejectReason.EDGE_BYTES, size_bytes)

    def fetched(self, size_bytes: int) -> float:
        """Bytes of a file are on their way; return the seconds until there may be more."""
        bucket = self._account.fetching
        if bucket is None:
            return 0.0
        bucket.take(size_bytes)
        return bucket.wait_seconds

    def hold(self) -> Hold | None:
        """Return why no sample of this edge may begin now; None if one may."""
        return self._account.hold()

    def begun(self) -> None:
        """A sample began."""
        self._account.take(RejectReason.EDGE_SAMPLES, 1)

    def held_back(self, hold: Hold) -> None:
        """A sample was not begun for this reason."""
        self._metrics.rejected(RejectReason(hold.reason))


class EdgeLimits:
    """The limits of all edges.

    Args:
        config: the server's.
        metrics: the server's.
        clock: tells the time in seconds.
        draw: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        config: CloudConfig,
        metrics: CloudMetrics,
        clock: Clock = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._accounts: dict[str, _Account] = {}
        self._sweep_at = FEWEST_SWEPT

    @contextmanager
    def visit(self, edge: Edge, kind: Kind = "stream") -> Iterator[Visit]:
        """Hold a place for one stream of an edge, or for one file that it fetches.

        Of each it may have as many: who fetches a model need not leave its stream.

        Raises:
            AdmissionError: it has as many as it may.
        """
        account = self._account(edge.name)
        self._check(account, kind)
        account.places[kind] += 1
        try:
            yield Visit(edge, account, self._metrics, self._clock, self._end())
        finally:
            account.places[kind] -= 1

    def _check(self, account: _Account, kind: Kind) -> None:
        most, retry_seconds = self._config.edge_max_streams, self._config.overload_retry_seconds
        if most is not None and account.places[kind] >= most:
            plural = _PLURALS[kind]
            message = f"expected at most {most} {plural} of one edge at once, got another"
            raise AdmissionError(RejectReason.EDGE_STREAMS, message, retry_seconds)

    def _end(self) -> float:
        life_seconds = self._config.stream_life_seconds
        if life_seconds is None:
            return inf
        return self._clock() + life_seconds * (1 - LIFE_JITTER * self._draw())

    def _account(self, name: str) -> _Account:
        if len(self._accounts) >= self._sweep_at:
            self._sweep()
        if name not in self._accounts:
            self._accounts[name] = _Account(self._config, self._clock)
        return self._accounts[name]

    def _sweep(self) -> None:
        """Forget edges that have nothing open and owe nothing: strangers must not fill memory."""
        kept = {name: account for name, account in self._accounts.items() if not account.is_idle}
        self._accounts = kept
        self._sweep_at = max(FEWEST_SWEPT, 2 * len(kept))
