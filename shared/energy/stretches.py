"""Measured energy of stretches of time: what was drawn between two moments, idle or at work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from shared.energy.meter import Component, Meter, Source, Total

WHOLE = (Component.TOTAL, Component.GPU)
"""What a source tells of the whole: the first of these that it has."""
SAMPLED_SHARE = (0.5, 1.5)
"""A stretch is used where the readings span as much of it: a slow meter has few of them."""
STRETCH_SECONDS = 10.0
"""Long enough for a sensor, also the slow ones, and for many samples."""


class Drawn(NamedTuple):
    """What one source measured of a stretch of time."""

    component: Component
    watts: float
    """Mean."""


class Mark(NamedTuple):
    """A moment."""

    seconds: float
    """On the event loop's clock."""
    totals: Mapping[Source, tuple[Component, Total]]
    """Of each source's whole."""

    def since(self, earlier: Mark) -> dict[Source, Drawn]:
        """Return what was drawn since an earlier moment, by those sources that tell enough."""
        seconds = self.seconds - earlier.seconds
        least, most = (share * seconds for share in SAMPLED_SHARE)
        result = {}
        for source, (component, total) in self.totals.items():
            before = earlier.totals.get(source)
            drawn = total.since(None if before is None else before[1])
            if drawn.mean_watts is not None and least <= drawn.sampled_seconds <= most:
                result[source] = Drawn(component, drawn.mean_watts)
        return result


async def mark(meter: Meter) -> Mark:
    """Read the sensors now."""
    for sampler in meter.samplers:
        await asyncio.to_thread(sampler.poll)
    totals = {}
    for sampler in meter.samplers:
        found = sampler.totals()
        component = next((each for each in WHOLE if each in found), None)
        if component is not None:
            totals[sampler.source] = (component, found[component])
    return Mark(asyncio.get_running_loop().time(), totals)


class Work(Protocol):
    """What a daemon has done so far; values that can be compared."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        ...


W = TypeVar("W", bound=Work)


class Stretch(NamedTuple, Generic[W]):
    """A stretch of a daemon's time."""

    seconds: float
    drawn: Mapping[Source, Drawn]
    before: W
    after: W

    @property
    def was_idle(self) -> bool:
        """Whether nothing was done in it."""
        return self.before.is_idle and self.after == self.before


async def watch(
    meter: Meter,
    work: Callable[[], W],
    told: Callable[[Stretch[W]], None],
    seconds: float = STRETCH_SECONDS,
) -> None:
    """Tell of stretches of a daemon's time, until cancelled; of none where there is no sensor.

    Args:
        meter: started.
        work: says what has been done so far.
        told: takes in each stretch.
        seconds: how long they are.
    """
    if not meter.samplers:
        return
    before, done = await mark(meter), work()
    while True:
        await asyncio.sleep(seconds)
        after, now = await mark(meter), work()
        told(Stretch(after.seconds - before.seconds, after.since(before), done, now))
        before, done = after, now
