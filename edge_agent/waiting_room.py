"""Callers that wait until the queue has room for their sample, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class WaitingRoom:
    """Keeps callers before a queue of limited length.

    Args:
        free: tells how many samples the queue can take now.
    """

    def __init__(self, free: Callable[[], float]) -> None:
        self._free = free
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._called = 0
        """Callers told to come in that have not come yet."""

    @property
    def full(self) -> bool:
        """Whether all room is taken, or kept for somebody who was called."""
        return self._free() <= self._called

    async def enter(self) -> None:
        """Wait for room; the caller then takes it before anything else can happen."""
        if not self._waiting and not self.full:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:
                self._called -= 1
                # Should the caller not take it after all, the next one can.
                asyncio.get_running_loop().call_soon(self.call)

    def call(self) -> None:
        """Let in as many as there is room for; to be called whenever the queue got shorter."""
        while self._waiting and not self.full:
            turn = self._waiting.popleft()
            self._called += 1
            if not turn.done():
                turn.set_result(None)
