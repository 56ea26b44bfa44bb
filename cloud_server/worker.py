"""A thread that runs calls for the event loop, and can be given up.

Unlike those of ``concurrent.futures`` it is a daemon thread: one that hangs in an engine does not
keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

R = TypeVar("R")
_Todo = tuple[asyncio.Future[Any], Callable[[], Any]]


class Worker:
    """Runs calls one after the other; the thread starts with the first.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._calls: SimpleQueue[_Todo | None] = SimpleQueue()

    def run(self, call: Callable[[], R]) -> asyncio.Future[R]:
        """Return the future of a call's result, or of whatever it raises."""
        future: asyncio.Future[R] = self._loop.create_future()
        if self._thread.ident is None:
            self._thread.start()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """Let the thread end after the calls asked for so far; waits for nothing."""
        self._calls.put(None)

    def _work(self) -> None:
        while self._do(self._calls.get()):
            pass

    def _do(self, todo: _Todo | None) -> bool:
        """Do one call; by itself, so that an idle thread holds nothing of the last one."""
        if todo is None:
            return False
        future, call = todo
        try:
            outcome = call()
        except BaseException as error:
            self._tell(_fail, future, error)
        else:
            self._tell(_settle, future, outcome)
        return True

    def _tell(self, tell: Callable[[asyncio.Future[Any], Any], None], *told: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(tell, *told)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        future.set_result(outcome)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
