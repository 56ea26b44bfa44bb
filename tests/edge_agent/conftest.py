"""A real cloud, a network between, and an edge, all in this process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import CollectorRegistry

from cloud_server.config import CloudConfig
from cloud_server.server import CloudServer, create
from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from edge_agent.loop import EdgeLoop
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle

PATIENCE_SECONDS = 60.0
"""How long a test waits for what must happen."""
FULL = (1.0, 1.0, 1.0)
"""Alpha that no confidence exceeds: all timesteps."""


def picture(seed: int) -> NDArray[np.uint8]:
    """Return a random picture, uint8 ``[3, 32, 32]``."""
    return np.random.default_rng(seed).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def png(seed: int) -> bytes:
    """Return the same picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture(seed).transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


class Results:
    """Keeps the results of a source."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def put(self, line: bytes) -> None:
        self.told.append(json.loads(line))

    async def close(self) -> None:
        pass


class Metered:
    """A loop and its metrics."""

    def __init__(self, loop: EdgeLoop[Any], registry: CollectorRegistry) -> None:
        self.loop = loop
        self._registry = registry

    def count(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that carry these labels."""
        return sum(
            sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == f"neucodex_{name}" and labels.items() <= sample.labels.items()
        )

    def counts(self, name: str, value: float, **labels: str) -> bool:
        """Say whether a metric has this value."""
        return self.count(name, **labels) == value


class Relay:
    """A TCP relay whose target can change, and whose connections can be cut, held up or slow.

    Attributes:
        delay_seconds: how much later than it came everything goes on, in both directions.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.delay_seconds = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def hold(self) -> None:
        """Deliver nothing that comes from the target from now on."""
        self._flowing.clear()

    def let_go(self) -> None:
        """Deliver again, what was held up first."""
        self._flowing.set()

    def cut(self) -> None:
        """Cut every connection; new ones are possible."""
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        ends = {writer}
        try:
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            ends.add(there_writer)
            self._writers |= ends
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there_writer, held=False))
                group.create_task(self._pump(there_reader, writer, held=True))
        except* OSError:
            pass
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool
    ) -> None:
        now = asyncio.get_running_loop().time
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - now())
                if held:
                    await self._flowing.wait()
                writer.write(data)
                if not data:
                    writer.transport.abort()
                    return

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            data = b"any"
            while data:
                data = await reader.read(1 << 16)
                under_way.put_nowait((now() + self.delay_seconds, data))


Clouds = Callable[..., contextlib.AbstractAsyncContextManager[CloudServer]]
Edges = Callable[..., contextlib.AbstractAsyncContextManager[Metered]]


@pytest.fixture
def clouds(tiny_bundle: Bundle) -> Clouds:
    """Make cloud servers in this process; keywords are configuration keys."""

    @contextlib.asynccontextmanager
    async def make(**values: Any) -> AsyncIterator[CloudServer]:
        settings = {"listen": "127.0.0.1:0", "metrics": "", "bundles": (str(tiny_bundle.path),)}
        server = await create(CloudConfig(**(settings | values)))
        try:
            yield server
        finally:
            await server.stop()

    return make


@pytest.fixture
def edge_config(tiny_bundle: Bundle) -> Callable[..., EdgeConfig]:
    """Make configurations, patient with slow machines and in lock-step; keywords override."""

    def make(**values: Any) -> EdgeConfig:
        settings: dict[str, Any] = {
            "bundle": str(tiny_bundle.path),
            "metrics": "",
            "alpha": FULL,
            "window": 1,
            "deadline_seconds": PATIENCE_SECONDS,
            "reconnect_min_seconds": 0.01,
            "reconnect_max_seconds": 0.05,
        }
        return EdgeConfig(**(settings | values))

    return make


@pytest.fixture
def edges(tiny_bundle: Bundle, edge_config: Callable[..., EdgeConfig]) -> Edges:
    """Make started loops; keywords are configuration keys."""

    @contextlib.asynccontextmanager
    async def make(**values: Any) -> AsyncIterator[Metered]:
        registry = CollectorRegistry()
        metrics = EdgeMetrics(registry, model="tiny")
        loop = build_loop(edge_config(**values), tiny_bundle, metrics)
        loop.start()
        try:
            yield Metered(loop, registry)
        finally:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await loop.close()

    return make


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    """A relay that has no target yet."""
    relay = Relay("")
    await relay.start()
    yield relay
    await relay.close()


@pytest.fixture
def image_files(tmp_path: Path) -> Iterator[list[Path]]:
    """Three pictures as files."""
    folder = tmp_path / "images"
    folder.mkdir()
    files = [folder / f"{seed}.png" for seed in range(3)]
    for seed, file in enumerate(files):
        file.write_bytes(png(seed))
    yield files
