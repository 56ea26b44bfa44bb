"""A thread that runs calls for the event loop, and can be given up.

Not ``concurrent.futures``: its threads are waited for at the end of the process, even one that
hangs in an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_Todo = tuple[asyncio.Future[Any], Callable[[], Any]]


class Worker:
    """Runs calls one after the other, on a daemon thread that starts with the first.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._calls: SimpleQueue[_Todo | None] = SimpleQueue()

    def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Return the future of a call's result, or of whatever it raises.

        A call whose future was cancelled before its turn came is not made.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if self._thread.ident is None:
            self._thread.start()
        self._calls.put((future, partial(call, *args, **kwargs)))
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
        if future.cancelled():
            return True
        try:
            outcome = call()
        except BaseException as error:
            _tell(_fail, future, error)
        else:
            _tell(_settle, future, outcome)
        return True


def _tell(
    tell: Callable[[asyncio.Future[Any], Any], None], future: asyncio.Future[Any], told: Any
) -> None:
    with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
        future.get_loop().call_soon_threadsafe(tell, future, told)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        future.set_result(outcome)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
