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

from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from edge_agent.local_api import About, LocalApi, LocalServer
from edge_agent.loop import EdgeLoop
from edge_agent.sources import Sources
from shared.energy.operations import load_model
from shared.energy.sensors import open_meter
from shared.metrics import EdgeMetrics, serve
from shared.model.bundle import Bundle

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
        loop: started.
        keeper: keeps the loop connected; ends before the daemon only by a bug.
        address: of the service for applications.
        metrics: address of ``/metrics``; empty where that is off.
    """

    def __init__(
        self, loop: EdgeLoop[Any], keeper: asyncio.Task[None], address: str, metrics: str
    ) -> None:
        self.loop = loop
        self.keeper = keeper
        self.facts = {"pid": os.getpid(), "address": address, "metrics": metrics}


@contextlib.asynccontextmanager
async def running(config: EdgeConfig) -> AsyncIterator[Daemon]:
    """Run a daemon for the length of a block; errors as :func:`run`."""
    bundle = Bundle(Path(config.bundle))
    registry = CollectorRegistry()
    energy = load_model(config.energy)
    metrics = EdgeMetrics(registry, model=bundle.manifest.name, energy=energy)
    sources = Sources(config.sources, bundle.manifest, metrics)
    loop = build_loop(config, bundle, metrics)
    about = About(
        version=metadata.version("neucodex"),
        bundle=bundle,
        cloud="" if config.placement == "edge_only" else config.cloud,
    )
    async with contextlib.AsyncExitStack() as stack:
        meter = open_meter(config.energy)
        stack.push_async_callback(asyncio.to_thread, meter.close)
        meter.start()
        metrics.watch_energy(meter)
        metrics_address = ""
        if config.metrics:
            endpoint = serve(registry, config.metrics, config.metrics_access)
            stack.push_async_callback(asyncio.to_thread, endpoint.close)
            metrics_address = f"{config.metrics.rpartition(':')[0]}:{endpoint.port}"
        server = LocalServer(LocalApi(loop, about, metrics), config.listen)
        stack.push_async_callback(server.close)
        await server.start()
        keeper = loop.start()
        sources.start(loop)
        stack.push_async_callback(sources.close)
        # Unwound first: the loop answers what it holds, then the source and callers get it.
        stack.push_async_callback(loop.close)
        yield Daemon(loop, keeper, server.address, metrics_address)


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
