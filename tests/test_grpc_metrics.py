"""The standard gRPC metrics of both daemons agree with each other and with what was called."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from edge_agent import Edge
from edge_agent.describe import describing
from examples.pair import run_cloud, run_edge
from examples.scrape import Scrape, scrape
from shared import rpc
from shared.credentials import ClientFiles
from shared.errors import NeucodexError
from shared.metrics import RpcMetrics
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import PATIENCE_SECONDS, picture

SAMPLES, TIMESTEPS = 3, 4
INFER = {
    "grpc_type": "bidi_stream",
    "grpc_service": "neucodex.v1.CoInference",
    "grpc_method": "Infer",
}
HEALTH = {"grpc_type": "unary", "grpc_service": "grpc.health.v1.Health", "grpc_method": "Check"}
CLASSIFY = {"grpc_service": "neucodex.v1.EdgeService", "grpc_method": "Classify"}


def test_both_sides_tell_of_the_same_calls(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with run_cloud(tmp_path, tiny_bundle.path) as cloud:
        flags = ("--cloud", cloud.address, "--alpha", "1", "--window", "1")
        with run_edge(tmp_path, tiny_bundle.path, *flags) as edge:
            with Edge(edge.address) as client:
                for seed in range(SAMPLES):
                    client.classify(picture(seed))
                with pytest.raises(NeucodexError):
                    client.classify(b"no picture")
            # A refusal is told after it has gone out.
            here = scrape_until(edge.metrics, 1, **CLASSIFY, grpc_code="InvalidArgument")
            there = scrape(cloud.metrics)
        after = asyncio.run(_call_others(cloud.address, cloud.metrics))
    assert here.total("grpc_client_started_total", **INFER) == 1
    assert there.total("grpc_server_started_total", **INFER) == 1
    # Opened and a verdict per timestep came, Open and a packet per timestep went.
    messages = 1 + SAMPLES * TIMESTEPS
    for sent, received in (("client", "server"), ("server", "client")):
        from_, to = (here, there) if sent == "client" else (there, here)
        assert from_.total(f"grpc_{sent}_msg_sent_total", **INFER) == messages
        assert to.total(f"grpc_{received}_msg_received_total", **INFER) == messages
    assert there.labels("grpc_server_handled_total", "grpc_code") == {}
    assert here.labels("grpc_server_handled_total", "grpc_code", **CLASSIFY) == {
        "OK": SAMPLES,
        "InvalidArgument": 1,
    }
    # The edge has left meanwhile: its stream has ended.
    assert after.total("grpc_server_handled_total", **INFER) == 1
    assert after.total("grpc_server_handling_seconds_count", **INFER) == 1
    assert after.labels("grpc_server_handled_total", "grpc_code", **HEALTH) == {
        "OK": 1,
        "NotFound": 1,
    }
    assert after.total("grpc_server_handled_total", grpc_method="Describe", grpc_code="OK") == 1
    # A method that does not exist must not add a series.
    assert set(after.labels("grpc_server_started_total", "grpc_method")) == {
        "Infer",
        "Check",
        "Describe",
    }


def scrape_until(address: str, count: float, **labels: str) -> Scrape:
    """Scrape until so many calls have been told to have ended so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := scrape(address)).total("grpc_server_handled_total", **labels) < count:
        assert time.monotonic() < deadline, found.labels("grpc_server_handled_total", "grpc_code")
        time.sleep(0.01)
    return found


async def _call_others(address: str, metrics: str) -> Scrape:
    async with rpc.channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(service="no such service"))
        call: Any = channel.unary_unary("/made.up/Method")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"")
        async with describing(address, ClientFiles().watched()) as describe:
            await describe.reply()
        labels = {"grpc_method": "Check", "grpc_code": "NotFound"}
        return await asyncio.to_thread(scrape_until, metrics, 1, **labels)


async def test_a_generator_and_a_failing_method_are_told() -> None:
    registry = CollectorRegistry()

    async def replies(request: bytes, context: Any) -> Any:
        yield request
        yield request

    async def fails(request: bytes, context: Any) -> bytes:
        raise RuntimeError("as the test wants")

    server = rpc.server(RpcMetrics(registry, "server"))
    handlers: Any = {
        "Replies": grpc.unary_stream_rpc_method_handler(replies),
        "Fails": grpc.unary_unary_rpc_method_handler(fails),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("made.up", handlers),))
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        stream: Any = channel.unary_stream("/made.up/Replies")
        assert [reply async for reply in stream(b"twice")] == [b"twice", b"twice"]
        unary: Any = channel.unary_unary("/made.up/Fails")
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(b"")
    await server.stop(None)

    def read(name: str, method: str, kind: str, **more: str) -> float | None:
        labels = {"grpc_service": "made.up", "grpc_method": method, "grpc_type": kind} | more
        return registry.get_sample_value(f"grpc_server_{name}", labels)

    assert read("msg_sent_total", "Replies", "server_stream") == 2
    assert read("handled_total", "Replies", "server_stream", grpc_code="OK") == 1
    assert read("handled_total", "Fails", "unary", grpc_code="Unknown") == 1
