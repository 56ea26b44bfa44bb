"""Who is looking, and what is told to them: events at a bounded rate, to a bounded number.

While nobody looks there is no thread and nothing is collected: whoever could tell of something
asks :attr:`Board.looking` first. While somebody does, one thread reads the sources, each at its
pace, and hands the same bytes to every listener. A listener that does not keep up is dismissed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Event, Lock, Thread, current_thread
from time import monotonic
from typing import Any

import msgspec

from shared.errors import NeucodexError

logger = logging.getLogger(__name__)

MAX_LISTENERS = 16
MAX_BEHIND = 32
"""Events that may wait for a listener; with one more it is dismissed."""


class FullError(NeucodexError):
    """As many look as may."""


@dataclass(frozen=True)
class Source:
    """Something that is shown."""

    name: str
    """Of its events."""
    pace_seconds: float
    """Shortest time between two."""
    read: Callable[[], Any]
    """Returns what msgspec can write as JSON; None where there is nothing new. Called on the
    board's thread."""


class Listener:
    """One who looks."""

    def __init__(self) -> None:
        self._news = Condition()
        self._waiting: deque[bytes] = deque()
        self._ended = False

    def tell(self, event: bytes) -> bool:
        """Hand over an event; say whether the listener stays."""
        with self._news:
            if len(self._waiting) >= MAX_BEHIND:
                self._ended = True
            self._waiting.append(event)
            self._news.notify()
            return not self._ended

    def dismiss(self) -> None:
        """Tell that nothing will follow."""
        with self._news:
            self._ended = True
            self._news.notify()

    def __iter__(self) -> Iterator[bytes]:
        """Yield events, waiting for them, until the listener is dismissed."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return
                event = self._waiting.popleft()
            yield event


class Board:
    """Tells listeners what the sources give."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._lock = Lock()
        self._listeners: list[Listener] = []
        self._thread: Thread | None = None
        self._closing = Event()
        self.looking = False
        """Whether anybody looks."""

    def add(self, source: Source) -> None:
        """Show something besides; before anybody looks."""
        self._sources.append(source)

    @contextmanager
    def listener(self) -> Iterator[Listener]:
        """Let somebody look for the length of a block.

        Raises:
            FullError: too many look already, or the daemon is shutting down.
        """
        listener = self._join()
        try:
            yield listener
        finally:
            self._leave(listener)

    def close(self) -> None:
        """Dismiss everybody and let nobody in any more."""
        self._closing.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _join(self) -> Listener:
        with self._lock:
            if self._closing.is_set():
                raise FullError("the daemon is shutting down")
            if len(self._listeners) >= MAX_LISTENERS:
                raise FullError(f"expected at most {MAX_LISTENERS} to look at once, so many do")
            self._listeners.append(listener := Listener())
            self.looking = True
            if self._thread is None:
                self._thread = Thread(target=self._run, name="live", daemon=True)
                self._thread.start()
            return listener

    def _leave(self, listener: Listener) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            self.looking = bool(self._listeners)

    def _run(self) -> None:
        """Tell events until nobody looks."""
        due = dict.fromkeys((source.name for source in self._sources), 0.0)
        try:
            while not self._closing.wait(max(0.0, min(due.values()) - monotonic())):
                if self._is_alone():
                    return
                for source in self._sources:
                    now = monotonic()
                    if due[source.name] <= now:
                        due[source.name] = now + source.pace_seconds
                        self._tell(source)
        except Exception:
            logger.exception("the live page can show no more to those who look")
        finally:
            self._end()

    def _is_alone(self) -> bool:
        """Say whether nobody looks; then the thread ends, and the next who comes starts another."""
        with self._lock:
            if not self._listeners:
                self._thread = None
            return not self._listeners

    def _end(self) -> None:
        """Dismiss those who are there although the thread ends."""
        with self._lock:
            if self._thread is current_thread():
                self._thread = None
                for listener in self._listeners:
                    listener.dismiss()

    def _tell(self, source: Source) -> None:
        value = source.read()
        if value is None:
            return
        event = b"event: %s\ndata: %s\n\n" % (source.name.encode(), msgspec.json.encode(value))
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            if not listener.tell(event):
                logger.info("somebody who looks at the live page is too slow: dismissed")
                self._leave(listener)
