"""The daemon: loop, service for applications, metrics and source; from start to SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from edge_agent.assembly import build_loop, count_wire
from edge_agent.config import EdgeConfig
from edge_agent.energy_watch import EnergyWatch
from edge_agent.live import FIGURES_SECONDS, Reader, Showcase
from edge_agent.local_api import About, LocalApi, LocalServer
from edge_agent.loop import EdgeLoop
from edge_agent.sources import Sources
from edge_agent.switch import Switch
from shared.energy import stretches
from shared.energy.operations import load_model
from shared.energy.sensors import open_meter
from shared.live.board import Board, Source
from shared.live.site import serve
from shared.metrics import EdgeMetrics, application
from shared.model.bundle import Bundle
from shared.tracing import open_tracing

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def run(config: EdgeConfig, ready_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; then answer the samples in hand and close.

    Args:
        config: of the daemon.
        ready_file: where to tell, in JSON, ``pid``, ``address`` and ``metrics`` once serving;
            removed at the end.

    Raises:
        ConfigError: an address that cannot be listened on, or a value that does not fit.
        BundleError: the bundle lacks a part, or is damaged.
        EngineError: the device cannot be used.
    """
    told_to_stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    async with running(config) as daemon:
        with _told_ready(daemon.facts, ready_file):
            log.info("serving applications at %s", daemon.facts["address"])
            stop = asyncio.create_task(told_to_stop.wait())
            await asyncio.wait({stop, daemon.keeper}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if daemon.keeper.done():
                daemon.keeper.result()
            log.info("shutting down")


class Daemon:
    """A running daemon; made by :func:`running`.

    Args:
        loops: started.
        keeper: keeps them connected; ends before the daemon only by a bug.
        address: of the service for applications.
        metrics: address of ``/metrics``; empty where that is off.
    """

    def __init__(
        self, loops: Switch, keeper: asyncio.Task[None], address: str, metrics: str
    ) -> None:
        self.loops = loops
        self.keeper = keeper
        self.facts = {"pid": os.getpid(), "address": address, "metrics": metrics}

    @property
    def loop(self) -> EdgeLoop[Any]:
        """What new samples go to."""
        return self.loops.loop


@contextlib.asynccontextmanager
async def running(config: EdgeConfig) -> AsyncIterator[Daemon]:
    """Run a daemon for the length of a block; errors as :func:`run`."""
    path = Path(config.bundle)
    registry = CollectorRegistry()
    energy = load_model(config.energy)
    metrics = EdgeMetrics(registry, model=Bundle(path).manifest.name, energy=energy)
    tracing = open_tracing("neucodex-edge", config.trace_ratio) if config.trace_ratio else None
    is_remote = config.placement != "edge_only"
    wire_bytes = count_wire(config, metrics) if is_remote else None
    board = Board()
    showcase = Showcase(board)

    def build(folder: Path) -> EdgeLoop[Any]:
        bundle = Bundle(folder)
        of_model = metrics.of_model(bundle.manifest.name)
        loop = build_loop(config, bundle, of_model, wire_bytes=wire_bytes, tracing=tracing)
        loop.onlooker = showcase
        return loop

    loops = Switch(path, build)
    sources = Sources(config.sources, lambda: loops.loop.bundle.manifest, metrics)
    about = About(
        version=metadata.version("neucodex"),
        cloud=config.cloud if is_remote else "",
    )
    async with contextlib.AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        meter = open_meter(config.energy)
        stack.push_async_callback(asyncio.to_thread, meter.close)
        meter.start()
        metrics.watch_energy(meter)
        watch = EnergyWatch(metrics)
        stack.push_async_callback(
            _ended, asyncio.create_task(stretches.watch(meter, lambda: loops.work, watch.told))
        )
        metrics_address = ""
        if config.metrics:
            board.add(Source("edge", FIGURES_SECONDS, Reader(registry, loops, about, config).read))
            endpoint = serve(
                application(registry),
                config.metrics,
                config.metrics_access,
                side="edge",
                board=board if config.live_page else None,
            )
            stack.push_async_callback(asyncio.to_thread, endpoint.close)
            metrics_address = f"{config.metrics.rpartition(':')[0]}:{endpoint.port}"
        server = LocalServer(LocalApi(loops, about, metrics), metrics.rpc_server, config.listen)
        stack.push_async_callback(server.close)
        await server.start()
        keeper = loops.start()
        sources.start(loops)
        stack.push_async_callback(sources.close)
        # Unwound first: the loops answer what they hold, then the source and callers get it.
        stack.push_async_callback(loops.close)
        yield Daemon(loops, keeper, server.address, metrics_address)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and see its end."""
    task.cancel()
    await asyncio.wait({task})


@contextlib.contextmanager
def _told_ready(facts: dict[str, Any], path: Path | None) -> Iterator[None]:
    """Hold the ready file, written whole or not at all."""
    if path is None:
        yield
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(msgspec.json.encode(facts))
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
