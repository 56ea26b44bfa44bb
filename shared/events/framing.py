"""Events to frames: how many events of each polarity fell on each pixel in each timestep.

Two ways, each for whole recordings (:func:`frame_events`) and for events as they arrive
(:class:`Framer`, :func:`stream_frames`): equal windows of time, or equal numbers of events. Every
counted event lands in exactly one cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.events.recording import Events, Ints

Positive = Annotated[int, msgspec.Meta(ge=1)]
Counts = NDArray[np.uint32]


class ByTime(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="by",
    tag="time",
):
    """Frame t holds the events of the t-th window of time."""

    timesteps: Positive
    """T, the number of frames."""
    window_microseconds: Positive | None = None
    """Length of a window. Frame t then holds the times ``t * window <= time < (t + 1) * window``
    and is known at ``(t + 1) * window``: what a running camera can do; events from ``T * window``
    on are left out. Without it the time from the first event to the last is cut into T windows
    (the length of a whole recording must be known for that) and every event is counted."""

    @property
    def window(self) -> int | None:
        """Length of a frame in microseconds, if it has one."""
        return self.window_microseconds


class ByCount(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="by",
    tag="count",
):
    """Frame t holds the t-th group of events in the order of time."""

    timesteps: Positive
    """T, the number of frames."""
    window_events: Positive | None = None
    """Events in a frame; further events after T full frames are left out, and frames of a short
    recording are partly filled or empty. Without it the recording is cut into T groups whose
    sizes differ by at most one, and every event is counted."""

    @property
    def window(self) -> int | None:
        """Length of a frame in events, if it has one."""
        return self.window_events


Framing = ByTime | ByCount


def frame_events(events: Events, framing: Framing) -> Counts:
    """Count a whole recording's events into frames.

    Args:
        events: E events on a sensor ``[H, W]``.
        framing: how to cut the recording.

    Returns:
        uint32, ``[T, 2, H, W]``; the sum is E less the events the framing leaves out.
    """
    frame = _frames_of_recording(events, framing)
    return _count(events, frame, framing.timesteps)


class Framer:
    """Makes the frames of one recording while it arrives.

    A frame by time is complete when an event at or after its end arrives, or when that much time
    is known to have passed; a frame by count with its last event. The frames are those that
    :func:`frame_events` makes of the joined pieces, however the recording was cut.

    Args:
        framing: its window must be given.
        sensor: ``[H, W]``, that of every piece.

    Raises:
        ValueError: the framing has no window.
    """

    def __init__(self, framing: Framing, sensor: tuple[int, int]) -> None:
        if framing.window is None:
            raise ValueError(f"expected a framing with a window for a stream, got {framing}")
        self._framing = framing
        self._sensor = sensor
        self._seen, self._latest = 0, 0
        self._done = 0
        """Frames that are complete."""
        self._open = self._empty()

    @property
    def done(self) -> int:
        """How many frames have been given away."""
        return self._done

    @property
    def seen(self) -> int:
        """How many events have been taken in."""
        return self._seen

    @property
    def complete(self) -> bool:
        """Whether all T have."""
        return self._done == self._framing.timesteps

    def push(self, piece: Events) -> list[Counts]:
        """Take in the next events; return the frames that they complete, uint32 ``[2, H, W]``.

        Raises:
            ValueError: they come from another sensor, or are earlier than those before.
        """
        _check_piece(piece, self._sensor, self._latest)
        if not len(piece):
            return []
        frame = _frames_in_stream(piece, self._framing, self._seen)
        self._seen, self._latest = self._seen + len(piece), int(piece.microseconds[-1])
        completed = self._complete_up_to_now(lambda t: _count(piece, frame - t, 1)[0])
        if not self.complete:
            self._open += _count(piece, frame - self._done, 1)[0]
        return completed

    def advance(self, microseconds: int) -> list[Counts]:
        """Learn that so much time has passed; return the frames that are complete by it."""
        self._latest = max(self._latest, microseconds)
        return self._complete_up_to_now(lambda _: 0)

    def end(self) -> list[Counts]:
        """Return the frames still open: no further events come."""
        rest = self._framing.timesteps - self._done
        return [self._take() for _ in range(rest)]

    def _complete_up_to_now(self, counts: Callable[[int], Counts | int]) -> list[Counts]:
        completed = []
        for t in range(self._done, _complete_frames(self._framing, self._seen, self._latest)):
            self._open += counts(t)
            completed.append(self._take())
        return completed

    def _take(self) -> Counts:
        taken, self._open = self._open, self._empty()
        self._done += 1
        return taken

    def _empty(self) -> Counts:
        return np.zeros((2, *self._sensor), np.uint32)


def stream_frames(
    pieces: Iterable[Events], framing: Framing, sensor: tuple[int, int]
) -> Iterator[Counts]:
    """Yield frames as soon as they are complete, T in all; those still open at the end follow.

    Args:
        pieces: a recording's events in the order of time, in pieces of any length.
        framing: see :class:`Framer`.
        sensor: see :class:`Framer`.

    Yields:
        uint32, ``[2, H, W]``.

    Raises:
        ValueError: as of :class:`Framer`.
    """
    framer = Framer(framing, sensor)
    for piece in pieces:
        yield from framer.push(piece)
        if framer.complete:
            return
    yield from framer.end()


def saturated(frames: Counts) -> NDArray[np.uint8]:
    """Return counts as uint8 of the same shape; cells above 255 become 255."""
    return np.minimum(frames, 255).astype(np.uint8)


def _frames_of_recording(events: Events, framing: Framing) -> Ints:
    """Return the frame of each event, int64 ``[E]``; T and above is left out."""
    if framing.window is not None or not len(events):
        return _frames_in_stream(events, framing, 0)
    if isinstance(framing, ByTime):
        first, last = int(events.microseconds[0]), int(events.microseconds[-1])
        return (events.microseconds - first) * framing.timesteps // (last - first + 1)
    # The first event of group t is ceil(t * E / T).
    return np.arange(len(events), dtype=np.int64) * framing.timesteps // len(events)


def _frames_in_stream(events: Events, framing: Framing, seen: int) -> Ints:
    window = framing.window or 1
    if isinstance(framing, ByTime):
        return events.microseconds // window
    return np.arange(seen, seen + len(events), dtype=np.int64) // window


def _complete_frames(framing: Framing, seen: int, latest: int) -> int:
    progress = latest if isinstance(framing, ByTime) else seen
    return min(framing.timesteps, progress // (framing.window or 1))


def _count(events: Events, frame: Ints, frames: int) -> Counts:
    height, width = events.sensor
    kept = (frame >= 0) & (frame < frames)
    plane = frame[kept] * 2 + events.polarity[kept]
    cell = (plane * height + events.y[kept]) * width + events.x[kept]
    counts = np.bincount(cell, minlength=frames * 2 * height * width)
    return counts.reshape(frames, 2, height, width).astype(np.uint32)


def _check_piece(piece: Events, sensor: tuple[int, int], latest: int) -> None:
    if piece.sensor != sensor:
        raise ValueError(f"expected events of a sensor {sensor}, got {piece.sensor}")
    if len(piece) and piece.microseconds[0] < latest:
        raise ValueError(
            f"expected events from {latest} microseconds on, got {piece.microseconds[0]}"
        )
