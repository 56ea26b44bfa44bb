"""Run a source: read its inputs, classify them, tell the results."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import asdict
from time import perf_counter
from typing import Protocol

import msgspec

from edge_agent.answers import Answer, ClosingError, QueueFullError
from edge_agent.inputs import Source as Input
from edge_agent.source_config import Full, Source
from edge_agent.sources.base import Item
from edge_agent.sources.results import Sink
from shared.errors import InputError, NeucodexError
from shared.metrics import DropReason, EdgeMetrics, SourceOutcome

log = logging.getLogger(__name__)

Outcome = asyncio.Future[Answer] | NeucodexError
Ended = Callable[[Item], None]
"""Told of every item that was answered or given up."""


class Classifier(Protocol):
    """What inputs are given to."""

    async def put(
        self, source: Input, *, deadline_seconds: float | None = None
    ) -> asyncio.Future[Answer]:
        """Accept an input; see :meth:`edge_agent.loop.EdgeLoop.put`."""
        ...


def pass_over(item: Item) -> None:
    """Do nothing about an item that has ended."""


class Waiting:
    """Inputs that were read and not begun.

    Args:
        places: how many.
        policy: what becomes of one more.
        drop: told of those that are dropped.
    """

    def __init__(self, places: int, policy: Full, drop: Ended) -> None:
        self._items: deque[Item] = deque()
        self._places = places
        self._policy = policy
        self._drop = drop
        self._changed = asyncio.Condition()
        self._ended = False

    async def put(self, item: Item) -> None:
        """Take an input in, as the policy has it."""
        async with self._changed:
            if len(self._items) == self._places:
                if self._policy == "drop_newest":
                    self._drop(item)
                    return
                if self._policy == "drop_oldest":
                    self._drop(self._items.popleft())
                await self._changed.wait_for(lambda: self._ended or len(self._items) < self._places)
            if not self._ended:
                self._items.append(item)
                self._changed.notify_all()

    async def take(self) -> Item | None:
        """Wait for the next input; nothing after the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or bool(self._items))
            item = self._items.popleft() if self._items else None
            self._changed.notify_all()
            return item

    async def end(self) -> None:
        """No more inputs follow."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()


class SourceTask:
    """Classifies what a source yields, and tells the results in its order.

    One that fails is told as such and the next follows.

    Args:
        config: of the source.
        loop: classifies.
        sink: takes the results.
        metrics: told of everything.
        ended: see :data:`Ended`.
    """

    def __init__(
        self,
        config: Source,
        loop: Classifier,
        sink: Sink,
        metrics: EdgeMetrics,
        ended: Ended,
    ) -> None:
        self._config = config
        self._loop = loop
        self._sink = sink
        self._metrics = metrics
        self._ended = ended
        self._waiting = Waiting(config.ahead, config.policy, self._drop)
        metrics.start_source(config.label)

    async def run(self, items: AsyncIterator[Item]) -> None:
        """Run until the end of the source, or until the loop closes."""
        reading = asyncio.create_task(self._read(items))
        try:
            await self._classify()
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled() and reading.exception() is not None:
                log.error("source %s failed", self._config.label, exc_info=reading.exception())
        log.info("source %s has ended", self._config.label)

    async def _read(self, items: AsyncIterator[Item]) -> None:
        try:
            async for item in items:
                await self._waiting.put(item)
        finally:
            await self._waiting.end()

    async def _classify(self) -> None:
        """Begin one input after the other; tell each in the order of their beginning."""
        begun: asyncio.Queue[tuple[Item, Outcome] | None] = asyncio.Queue()
        places = asyncio.Semaphore(self._config.ahead)
        telling = asyncio.create_task(self._tell_all(begun, places))
        try:
            await places.acquire()
            while (item := await self._waiting.take()) is not None:
                outcome = await self._begin(item)
                begun.put_nowait((item, outcome))
                if isinstance(outcome, ClosingError):
                    break
                await self._pace()
                await places.acquire()
        finally:
            begun.put_nowait(None)
            await telling

    async def _pace(self) -> None:
        if self._config.most_per_second is not None:
            await asyncio.sleep(1 / self._config.most_per_second)

    async def _begin(self, item: Item) -> Outcome:
        if isinstance(item.data, InputError):
            self._metrics.dropped(DropReason.INVALID)
            return item.data
        try:
            return await self._loop.put(item.data)
        except NeucodexError as error:
            return error

    async def _tell_all(
        self, begun: asyncio.Queue[tuple[Item, Outcome] | None], places: asyncio.Semaphore
    ) -> None:
        while (entry := await begun.get()) is not None:
            await self._tell(*entry)
            places.release()

    async def _tell(self, item: Item, outcome: Outcome) -> None:
        try:
            if isinstance(outcome, NeucodexError):
                raise outcome
            facts = asdict(await outcome)
            became = SourceOutcome.ANSWERED
        except NeucodexError as error:
            log.warning("%s: %s", item.name, error)
            facts, became = {"error": str(error)}, _became(error)
        self._ended(item)
        self._metrics.source_input(self._config.label, became)
        self._metrics.source_age(self._config.label, perf_counter() - item.arrived)
        told = {"source": self._config.label, "input": item.name} | facts
        self._sink.put(msgspec.json.encode(told))

    def _drop(self, item: Item) -> None:
        self._ended(item)
        self._metrics.source_input(self._config.label, SourceOutcome.DROPPED)


def _became(error: NeucodexError) -> SourceOutcome:
    if isinstance(error, InputError):
        return SourceOutcome.INVALID
    return SourceOutcome.DROPPED if isinstance(error, QueueFullError) else SourceOutcome.FAILED


async def on_a_thread(items: Iterator[Item], name: str) -> AsyncGenerator[Item, None]:
    """Yield what an iterator yields that blocks; its thread does not outlive the process.

    The iterator is asked for the next item only when the one before has been taken.
    """
    loop = asyncio.get_running_loop()
    wanted = threading.Semaphore(0)
    given: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()
    left = threading.Event()

    def give(item: Item | BaseException | None) -> None:
        if not left.is_set() and not loop.is_closed():
            loop.call_soon_threadsafe(given.put_nowait, item)

    def read() -> None:
        try:
            while wanted.acquire() and not left.is_set():
                item = next(items, None)
                give(item)
                if item is None:
                    return
        except Exception as error:
            give(error)

    threading.Thread(target=read, name=f"source-{name}", daemon=True).start()
    try:
        while True:
            wanted.release()
            item = await given.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item
    finally:
        left.set()
        wanted.release()
