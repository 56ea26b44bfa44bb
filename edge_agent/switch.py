"""The loop in use, and how another takes over when the bundle's path leads elsewhere.

``neucodex-edge pull`` moves the link that the configuration calls the bundle. The daemon looks at
it once a second: that needs neither a signal to the right process nor a right to call it, and works
from another container. The new loop is built and opens its stream while the old one serves; then
new samples go to it, and the old one answers those that it has. So every sample is run by one
version alone, and one that cannot be run, or that the cloud does not serve, changes nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.answers import Answer, ClosingError
from edge_agent.energy_watch import NO_WORK, EdgeWork
from edge_agent.inputs import Source
from edge_agent.link import CloudFullError
from edge_agent.loop import EdgeLoop
from shared.errors import NeucodexError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Time between two looks at where the bundle's path leads."""
POLL_SECONDS = 0.1
"""Time between two looks whether the new loop can take over."""

Loop = EdgeLoop[Any]


class Switch:
    """Gives every sample to the loop in use.

    Args:
        path: of the bundle, which may be a link.
        build: makes a loop of the bundle in a folder, not started; called on another thread for
            all but the first.

    Raises:
        ConfigError, BundleError, EngineError: no loop can be made of what is there.
    """

    def __init__(self, path: Path, build: Callable[[Path], Loop]) -> None:
        self._path = path
        self._build = build
        self._seen = path.resolve()
        self.loop = build(self._seen)
        self._running: asyncio.Task[None] | None = None
        self._retiring: dict[Loop, asyncio.Task[None]] = {}
        self._work_before = NO_WORK

    @property
    def work(self) -> EdgeWork:
        """What has been done since the start."""
        works = [loop.work for loop in self._loops]
        return functools.reduce(EdgeWork.plus, works, self._work_before)

    @property
    def answered(self) -> int:
        """Samples answered since the start."""
        return sum(self.work.answered.values())

    @property
    def queue_depth(self) -> int:
        """Samples that wait to be begun."""
        return sum(loop.queue_depth for loop in self._loops)

    @property
    def _loops(self) -> tuple[Loop, ...]:
        return (*self._retiring, self.loop)

    async def put(
        self, source: Source, *, deadline_seconds: float | None = None
    ) -> asyncio.Future[Answer]:
        """Accept a sample; see :meth:`edge_agent.loop.EdgeLoop.put`."""
        while True:
            loop = self.loop
            try:
                return await loop.put(source, deadline_seconds=deadline_seconds)
            except ClosingError:
                if loop is self.loop:
                    raise

    def start(self) -> asyncio.Task[None]:
        """Begin; the task returned ends only with :meth:`close`, or on a bug."""
        self._running = asyncio.create_task(self._run(self.loop.start()))
        return self._running

    async def close(self) -> None:
        """Take no more samples, drop those not begun, answer those begun, and leave."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        await asyncio.gather(*(loop.close() for loop in self._loops), *self._retiring.values())

    async def _run(self, keeper: asyncio.Task[None]) -> None:
        while not keeper.done():
            await asyncio.wait({keeper}, timeout=LOOK_SECONDS)
            found = self._path.resolve()
            if found in (self._seen, self.loop.bundle.path):
                continue
            self._seen = found
            try:
                keeper = await self._change(found, keeper)
            except NeucodexError as error:
                log.warning("the model stays as it was: %s", error)
        keeper.result()

    async def _change(self, folder: Path, keeper: asyncio.Task[None]) -> asyncio.Task[None]:
        """Let the bundle in a folder take over; return the task of the loop that is in use then."""
        new = await asyncio.to_thread(self._build, folder)
        new_keeper, changed = new.start(), False
        self.loop.tell()  # Making another has told of that one.
        try:
            changed = await self._wait_for(new, folder, {keeper, new_keeper})
        finally:
            if not changed:
                await new.close()
                self.loop.tell()
        if not changed:
            return keeper
        old, self.loop = self.loop, new
        self._retiring[old] = asyncio.create_task(self._retire(old))
        log.info("samples now run with %s, digest %s", folder, new.bundle.digest)
        return new_keeper

    async def _wait_for(self, new: Loop, folder: Path, keepers: set[asyncio.Task[None]]) -> bool:
        """Wait until a loop can take over; return false if it no longer should."""
        while not _can_take_over(new):
            if self._path.resolve() != folder or any(keeper.done() for keeper in keepers):
                return False
            await asyncio.wait(keepers, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return True

    async def _retire(self, loop: Loop) -> None:
        await loop.finish()
        self._work_before = self._work_before.plus(loop.work)
        del self._retiring[loop]
        self.loop.tell()


def _can_take_over(loop: Loop) -> bool:
    """Say whether a loop can run samples, or could, had the old one left the server."""
    return loop.connected or isinstance(loop.trouble, CloudFullError)
