"""Cut a live event stream into samples, timestep by timestep; pure, without clock or socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.event_packets import Piece
from shared.events.framing import ByTime, Framer, Framing, saturated
from shared.events.recording import Events


@dataclass(frozen=True)
class Begin:
    """Another sample begins."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The next timestep of the sample is complete."""

    frame: NDArray[np.uint8]
    """``[2, H, W]``, event counts."""


@dataclass(frozen=True)
class End:
    """No more timesteps follow for this sample."""


Step = Begin | Frame | End


class Cutter:
    """Makes samples of T timesteps of what a camera sees.

    Args:
        framing: how events become timesteps; its window must be given.
        size: ``[H, W]`` of the network's frames.
        continuous: whether samples follow one another for as long as a recording lasts, each from
            the timestep after the last one's exit; else a recording is one sample. In silence none
            begins.

    Raises:
        ValueError: the framing has no window.
    """

    def __init__(self, framing: Framing, size: tuple[int, int], *, continuous: bool) -> None:
        Framer(framing, size)
        self._framing = framing
        self._size = size
        self._continuous = continuous
        self._framer: Framer | None = None
        self._start = 0
        """Time at which the sample's first timestep begins, in the recording."""
        self._from = 0
        """Events before this time are passed over."""
        self._over = True
        """Whether no further sample of this recording is wanted."""

    def push(self, piece: Piece) -> Iterator[Step]:
        """Take in what came; yield what follows from it."""
        if piece.begins:
            yield from self._end()
            self._from, self._over = 0, False
        events = piece.events.resized(self._size)
        while not self._over:
            if self._framer is None:
                events = _since(events, self._from)
                if not len(events):
                    break
                yield self._begin(int(events.microseconds[0]))
            events, steps = self._fill(events, piece.now_microseconds)
            yield from steps
            if self._framer is not None:
                break
        if piece.ends:
            yield from self._end()

    def answered(self) -> None:
        """The sample under way needs no further timesteps."""
        if self._framer is not None:
            self._from = self._start
            if isinstance(self._framing, ByTime):
                self._from += (self._framer.done + 1) * (self._framing.window or 0)
            self._framer, self._over = None, not self._continuous

    def end(self) -> list[Step]:
        """End the recording: the camera fell silent."""
        steps = self._end()
        self._over = True
        return steps

    def _begin(self, first: int) -> Begin:
        self._framer = Framer(self._framing, self._size)
        self._start = 0
        if self._continuous:
            window = self._framing.window or 1
            by_time = isinstance(self._framing, ByTime)
            self._start = first // window * window if by_time else first
        return Begin()

    def _fill(self, events: Events, now: int) -> tuple[Events, list[Step]]:
        """Give events to the sample; return those that it has no room for, and its frames."""
        framer, most = self._framer, self._framing.timesteps * (self._framing.window or 0)
        if framer is None:
            raise ValueError("expected a sample under way")
        if isinstance(self._framing, ByTime):
            room = int(np.searchsorted(events.microseconds, self._start + most))
        else:
            room = most - framer.seen
        counts = framer.push(_shifted(events.part(0, room), self._start))
        if isinstance(self._framing, ByTime):
            counts += framer.advance(now - self._start)
        steps: list[Step] = [Frame(saturated(each)) for each in counts]
        rest = events.part(room, len(events))
        if framer.complete:
            steps.append(End())
            self._from = self._start + most if isinstance(self._framing, ByTime) else 0
            self._framer, self._over = None, not self._continuous
        return rest, steps

    def _end(self) -> list[Step]:
        """End the sample, if there is one, with what its open timestep has seen."""
        if self._framer is None:
            return []
        rest = [saturated(each) for each in self._framer.end()[:1] if each.any()]
        self._framer = None
        return [*map(Frame, rest), End()]


def _since(events: Events, microseconds: int) -> Events:
    return events.part(int(np.searchsorted(events.microseconds, microseconds)), len(events))


def _shifted(events: Events, start: int) -> Events:
    return Events(events.microseconds - start, events.x, events.y, events.polarity, events.sensor)
