"""Keeps the way samples are run in step with device and link.

The loop tells the observer what it measures, asks after every sample whether the settings should
be others, and does as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from msgspec.structs import replace

from edge_agent.observer import Observer
from edge_agent.policy import Choice, Expected, Fixed, Goal, Limits, choices, choose, expect
from shared.errors import LinkLostError, NeucodexError
from shared.messages import Opened, ReplyMode, Settings
from shared.metrics import EdgeMetrics, Estimate, Mode, WireSource

log = logging.getLogger(__name__)

DECIDE_SECONDS = 0.25
"""Between two decisions."""
PROBE_SECONDS = 0.5
"""Between two looks at a link over which no sample goes."""


class Prober(Protocol):
    """Looks at the link; :class:`edge_agent.describe.Describe` is one."""

    async def round_trip(self) -> float:
        """Return the seconds of one to the cloud; LinkLostError where there is none."""


@dataclass(frozen=True, kw_only=True)
class Here:
    """What it takes to run samples wholly on this device."""

    rehearse: Callable[[], Awaitable[float]]
    """Runs the tail and returns its seconds per timestep."""
    probing: Callable[[], AbstractAsyncContextManager[Prober]]
    """Connects to the cloud for as long as one looks at the link."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user wants and has set."""

    goal: Goal = Goal()
    fixed: Fixed = Fixed()
    here: Here | None = None
    """None: no sample is run wholly on this device."""


class Tuner:
    """Chooses settings.

    Args:
        settings: alpha, confidence and codec, which are not chosen here.
        wishes: of the user.
        observer: told what the loop measures.
        metrics: told what was chosen, and why.
        wire: asked for the link's rate.
    """

    def __init__(
        self,
        settings: Settings,
        wishes: Wishes,
        observer: Observer,
        metrics: EdgeMetrics,
        wire: WireSource,
    ) -> None:
        self.observer = observer
        self._settings = settings
        self._wishes = wishes
        self._metrics = metrics
        self._wire = wire
        fixed = wishes.fixed
        mode, steps = fixed.reply_mode or ReplyMode.STEP, fixed.steps_per_packet or 1
        self._plain = Choice(
            reply_mode=mode,
            window=fixed.window or (steps if mode is ReplyMode.STEP else 1),
            steps_per_packet=steps,
        )
        self.choice = self._plain
        """The way in use."""
        self.expected: list[Expected] = []
        """What the open ways were expected to cost at the last decision."""
        self._options: list[Choice] = []
        """The ways that are open; none before there was a stream."""
        self._next_decision = 0.0
        self._tell()

    def opening(self) -> Settings:
        """Return the settings that a new stream begins with: as plain as the user allows."""
        return self._as_settings(self._plain)

    def opened(self, opened: Opened) -> Settings:
        """Return the settings for a stream with these limits."""
        limits = Limits(
            max_window=opened.max_window,
            max_steps_per_packet=opened.max_steps_per_packet,
            local=self._wishes.here is not None,
        )
        timesteps = len(self._settings.alpha) + 1
        self._options = choices(timesteps, limits, self._wishes.fixed)
        if self.choice not in self._options:
            self._use(self._plain)
        self._decide()
        return self._as_settings(self.choice)

    def settle(self, now: float) -> Settings | None:
        """Return other settings, if it is time to decide and others are better."""
        if now < self._next_decision:
            return None
        self._next_decision = now + DECIDE_SECONDS
        return self._as_settings(self.choice) if self._decide() else None

    async def watch(self, news: Callable[[], None]) -> None:
        """Time the tail here; then look at the link while no sample goes over it.

        Returns at once where no sample may be run here.

        Args:
            news: called after every look.
        """
        here = self._wishes.here
        if here is None:
            return
        try:
            self.observer.tail(await here.rehearse(), perf_counter())
        except NeucodexError as error:
            log.warning("no sample will be run wholly on this device: %s", error)
            return
        async with here.probing() as prober:
            while True:
                await asyncio.sleep(PROBE_SECONDS)
                if self.choice.local:
                    with contextlib.suppress(LinkLostError):
                        self.observer.round_trip(await prober.round_trip(), perf_counter())
                        news()

    def _decide(self) -> bool:
        """Look for the best way and say whether it is another than that in use."""
        totals = self._wire.poll()
        self.observer.link_bytes_per_second = totals and totals.link_bytes_per_second
        for name, seconds in self.observer.estimates().items():
            self._metrics.estimate(Estimate(name), seconds)
        self.expected = self._expected()
        if not self.expected:
            return False
        best = choose(self.expected, self._wishes.goal, self.choice)
        self._metrics.expected_latency(best.latency_seconds)
        if best.choice == self.choice:
            return False
        milliseconds = best.latency_seconds * 1000
        log.info("samples from now on: %s; expected %.1f ms each", best.choice, milliseconds)
        self._metrics.setting_changed()
        self._use(best.choice)
        return True

    def _expected(self) -> list[Expected]:
        """Return what every open way is expected to cost, once enough has been measured."""
        conditions = self.observer.conditions()
        if conditions is None:
            return []
        knows_tail = conditions.tail_seconds is not None
        options = [choice for choice in self._options if knows_tail or not choice.local]
        return [expect(choice, conditions) for choice in options]

    def _use(self, choice: Choice) -> None:
        self.choice = choice
        self._tell()

    def _tell(self) -> None:
        choice = self.choice
        mode = Mode.LOCAL if choice.local else Mode(choice.reply_mode.value)
        self._metrics.setting(mode, choice.window, choice.steps_per_packet)

    def _as_settings(self, choice: Choice) -> Settings:
        """Return a way as settings; one that uses no link as the plain ones."""
        over_link = self._plain if choice.local else choice
        return replace(
            self._settings,
            reply_mode=over_link.reply_mode,
            window=over_link.window,
            steps_per_packet=over_link.steps_per_packet,
        )
