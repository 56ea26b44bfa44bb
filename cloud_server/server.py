"""The whole server: service, health, reflection and metrics; from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from cloud_server.config import CloudConfig
from cloud_server.live import make_board
from cloud_server.model_admin import AdminServer, ModelAdmin
from cloud_server.model_store import CloudWork, ModelStore
from cloud_server.servicer import CoInference
from protos import co_inference_pb2, co_inference_pb2_grpc
from shared import rpc
from shared.energy import stretches
from shared.energy.meter import Meter
from shared.energy.operations import load_model
from shared.energy.sensors import open_meter
from shared.live.site import serve
from shared.metrics import CloudMetrics, application
from shared.tcp_info import WireCounter
from shared.tracing import Tracing, open_tracing
from shared.web import WebServer

logger = logging.getLogger(__name__)

SERVICE = co_inference_pb2.DESCRIPTOR.services_by_name["CoInference"].full_name
WIRE_PEER = "edges"
"""Value of the ``peer`` label of the wire metrics: all edges together."""
DRAIN_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class CloudServer:
    """A running server; made by :func:`create`.

    Attributes:
        address: of the gRPC service, with the real port.
        port: the port in it; 0 on a Unix socket.
        metrics_address: of ``/metrics``, with the real port; empty where that is off.
        metrics_port: the port in it, None where that is off.
        health_address: where health answers alone, with the real port; empty where that is off.
    """

    def __init__(
        self,
        config: CloudConfig,
        server: grpc.aio.Server,
        port: int,
        servicer: CoInference,
        store: ModelStore,
        metrics: CloudMetrics,
        meter: Meter,
        metrics_server: WebServer | None,
        tracing: Tracing | None,
    ) -> None:
        self.port = port
        self.address = _with_port(config.listen, port)
        self.metrics_port = None if metrics_server is None else metrics_server.port
        self.metrics_address = _with_port(config.metrics, self.metrics_port or 0)
        self._server = server
        self._servicer = servicer
        self._store = store
        self._metrics = metrics
        self._meter = meter
        self._metrics_server = metrics_server
        self._tracing = tracing
        self._admin: AdminServer | None = None
        if config.admin:
            self._admin = AdminServer(ModelAdmin(store, servicer), config.admin)
        self._health = health.aio.HealthServicer()
        self._probed: grpc.aio.Server | None = None
        self.health_address = ""
        if config.health:
            self._probed = rpc.server()
            self.health_address = _with_port(config.health, rpc.bind(self._probed, config.health))
        self._watching: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to serve, health and reflection included."""
        for server in self._listeners:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        for server in self._listeners:
            await server.start()
        if self._admin is not None:
            await self._admin.start()
        idle = stretches.watch(self._meter, lambda: self._store.work, self._told)
        self._watching = {
            asyncio.create_task(each) for each in (self._servicer.watch_streams(), idle)
        }

    def _told(self, stretch: stretches.Stretch[CloudWork]) -> None:
        """Take in what was measured of a stretch of time."""
        if stretch.was_idle:
            for source, drawn in stretch.drawn.items():
                self._metrics.idle(source, drawn.component, drawn.watts)

    @property
    def _listeners(self) -> list[grpc.aio.Server]:
        return [self._server] if self._probed is None else [self._server, self._probed]

    async def drain(self) -> None:
        """Report NOT_SERVING, let the samples under way finish, then stop."""
        await self._health.enter_graceful_shutdown()
        await self._servicer.drain()
        await self.stop()

    async def stop(self) -> None:
        """Stop at once, cutting what is open."""
        for task in self._watching:
            task.cancel()
        if self._admin is not None:
            await self._admin.close()
        for server in self._listeners:
            await server.stop(None)
        await self._store.close()
        await asyncio.to_thread(self._meter.close)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


async def create(config: CloudConfig) -> CloudServer:
    """Load the models and begin to serve.

    Raises:
        ConfigError: no bundle, a file of a certificate that cannot be used, or an address that
            cannot be listened on.
        BundleError: a bundle cannot be served.
        EngineError: the configured device cannot be used.
    """
    registry = CollectorRegistry()
    metrics = CloudMetrics(registry, load_model(config.energy))
    store = ModelStore(config, metrics)
    tracing = open_tracing("neucodex-cloud", ratio=0.0) if config.tracing else None
    servicer = CoInference(store, config, metrics, tracing)
    server = rpc.server(metrics.rpc_server)
    co_inference_pb2_grpc.add_CoInferenceServicer_to_server(  # type: ignore[no-untyped-call]
        servicer, server
    )
    pems = None if config.tls is None else config.tls.watched()
    bound = rpc.bind(server, config.listen, pems)
    # A Unix socket has no port, but gRPC reports one.
    port = 0 if config.listen.startswith("unix:") else bound
    if port:
        metrics.watch_wire(WireCounter(local_port=port), WIRE_PEER)
    board = make_board(registry, _with_port(config.listen, port)) if config.live_page else None
    metrics_server = None
    if config.metrics:
        metrics_server = serve(
            application(registry),
            config.metrics,
            config.metrics_access,
            side="cloud",
            board=board,
        )
    meter = open_meter(config.energy)
    running = CloudServer(
        config, server, port, servicer, store, metrics, meter, metrics_server, tracing
    )
    meter.start()
    metrics.watch_energy(meter)
    await running.start()
    for model in store:
        logger.info(
            "serving %s, digest %s, at %s", model.title, model.digest.hex(), running.address
        )
    return running


async def run(config: CloudConfig, ready_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        config: of the server.
        ready_file: where to tell, in JSON, ``pid``, ``address`` and ``metrics`` once serving;
            removed at the end.

    Raises:
        ConfigError, BundleError, EngineError: see :func:`create`.
    """
    told_to_stop = asyncio.Event()
    for number in DRAIN_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    server = await create(config)
    with _told_ready(server, ready_file):
        await told_to_stop.wait()
        logger.info("draining for at most %s s", config.drain_seconds)
        await server.drain()


@contextlib.contextmanager
def _told_ready(server: CloudServer, path: Path | None) -> Iterator[None]:
    """Hold the ready file, written whole or not at all."""
    if path is None:
        yield
        return
    facts = {"pid": os.getpid(), "address": server.address, "metrics": server.metrics_address}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(msgspec.json.encode(facts))
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _with_port(address: str, port: int) -> str:
    """Return ``host:port`` with the port that was bound; other addresses as they are."""
    host, colon, _ = address.rpartition(":")
    return f"{host}{colon}{port}" if port else address
