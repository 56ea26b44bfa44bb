"""What waits to be written on one stream, so that reading and computing never wait for writing."""

from __future__ import annotations

import asyncio

from shared.errors import ProtocolError
from shared.messages import CloudMessage, Draining, Failure, Opened, Verdict

MAX_UNREAD = 4096
"""Verdicts and failures that may wait for an edge that does not read."""


class Outbox:
    """Collects answers; the writer takes all that is ready as one message."""

    def __init__(self) -> None:
        self._opened: Opened | None = None
        self._verdicts: list[Verdict] = []
        self._failures: list[Failure] = []
        self._draining: Draining | None = None
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    def put(self, item: Opened | Verdict | Failure | Draining) -> None:
        """Add something to be written.

        Raises:
            ProtocolError: too much waits: the edge does not read its answers.
        """
        if len(self._verdicts) + len(self._failures) >= MAX_UNREAD:
            raise ProtocolError(
                f"expected the edge to read its answers, {MAX_UNREAD} of them wait unread"
            )
        match item:
            case Verdict():
                self._verdicts.append(item)
            case Failure():
                self._failures.append(item)
            case Opened():
                self._opened = item
            case Draining():
                self._draining = item
        self._wake()

    def end(self) -> None:
        """Let :meth:`take` return None once everything has been taken."""
        self._ended = True
        self._wake()

    async def take(self) -> CloudMessage | None:
        """Wait for something to write and return all of it; None after the end.

        For one caller at a time.
        """
        while self._is_empty():
            if self._ended:
                return None
            # Not an Event: making and waking its waiters costs a server twice as much.
            self._waiting = self._loop.create_future()
            await self._waiting
        message = CloudMessage(
            opened=self._opened,
            verdicts=tuple(self._verdicts),
            failures=tuple(self._failures),
            draining=self._draining,
        )
        self._opened = self._draining = None
        self._verdicts.clear()
        self._failures.clear()
        return message

    def _is_empty(self) -> bool:
        return not (self._verdicts or self._failures or self._opened or self._draining)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
