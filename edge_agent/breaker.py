"""When to ask the cloud again, as a pure state machine: what happened in, how long to wait out.

::

    closed ── so many failures in a row ──► open ── wait over: one attempt, the probe ──► probing
      ▲                                      ▲                                              │
      │                                      └──────────────── failed ──────────────────────┤
      └──────────────────────────────────────────── a stream opened ────────────────────────┘

*Closed*, the waits between attempts double up to a limit, so that a short trouble is over soon.
*Open*, the cloud counts as dead: it is left alone but for a probe now and then. Every wait is
shortened at random, so that many edges do not come at once; never below what the cloud asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from shared.metrics import BreakerState as State

JITTER = 0.5
"""Up to this share of a wait is left out."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How patient a breaker is."""

    min_seconds: float = 0.1
    """First wait; doubles from then on."""
    max_seconds: float = 5.0
    """Longest wait while closed."""
    failures: int = 8
    """Failed attempts in a row that open it."""
    probe_seconds: float = 30.0
    """Wait between probes."""


class Breaker:
    """Counts failures in a row.

    Args:
        pace: how patient it is.
        chance: returns numbers uniform in [0, 1).
    """

    def __init__(self, pace: Pace, chance: Callable[[], float] = random.random) -> None:
        self._pace = pace
        self._chance = chance
        self._failures = 0
        self._next_seconds = pace.min_seconds
        self._asked_seconds = 0.0
        self.state = State.CLOSED
        """What is thought of the cloud now."""

    def attempt(self) -> None:
        """A stream is about to be asked for."""
        if self.state is State.OPEN:
            self.state = State.PROBING

    def opened(self) -> None:
        """The cloud opened a stream: it lives."""
        self.state = State.CLOSED
        self._failures = 0

    def answered(self) -> None:
        """The cloud said something on it: begin with the shortest wait again."""
        self._next_seconds = self._pace.min_seconds

    def full(self, retry_after_seconds: float) -> None:
        """The cloud has no room for a stream: it lives, and asks to be left alone so long."""
        self.opened()
        self._asked_seconds = retry_after_seconds

    def failed(self) -> None:
        """No stream was to be had."""
        self._failures += 1
        if self.state is State.PROBING or self._failures >= self._pace.failures:
            self.state = State.OPEN

    def wait_seconds(self) -> float:
        """Return how long to wait before the next attempt.

        What the cloud asked for comes on top, so that those told the same do not come at once.
        """
        if self.state is State.OPEN:
            longest_seconds = self._pace.probe_seconds
        else:
            longest_seconds = self._next_seconds
            self._next_seconds = min(2 * self._next_seconds, self._pace.max_seconds)
        asked_seconds, self._asked_seconds = self._asked_seconds, 0.0
        return asked_seconds + longest_seconds * (1 - JITTER * self._chance())
