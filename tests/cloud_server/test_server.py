"""The server around the streams: health, reflection, draining, start-up errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud_server.server import CloudServer
from shared import rpc
from shared.credentials import ClientFiles
from shared.errors import BundleError, ConfigError
from shared.messages import Draining
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import Client, Edge, Start, random_codes, scrape
from tests.conftest import Certificates

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "neucodex.v1.CoInference"
Connect = Callable[[CloudServer], Client]


async def health(client: Client, service: str) -> Any:
    stub = health_pb2_grpc.HealthStub(client.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_tells_serving(client: Client, service: str) -> None:
    assert await health(client, service) == SERVING


async def test_probes_without_tls_see_a_drain_begin_before_streams_end(
    start: Start, tiny_bundle: Bundle, certificates: Certificates
) -> None:
    server = await start(health="127.0.0.1:0", **certificates.server(mutual=True))
    edge = ClientFiles(**certificates.edge("one")).read()
    async with (
        rpc.channel(server.health_address) as plain,
        rpc.channel(server.address, edge) as tls,
    ):
        probe, client = Client(plain, tiny_bundle), Client(tls, tiny_bundle)
        assert await health(probe, SERVICE) == await health(probe, "") == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await probe.describe()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        async with client.opened() as busy:
            packets = busy.packets(0, random_codes(tiny_bundle, 0))
            await busy.send(packets[0])
            await busy.answer()
            draining = asyncio.create_task(server.drain())
            await drained(busy)
            assert await health(probe, SERVICE) == NOT_SERVING
            for packet in packets[1:]:
                await busy.send(packet)
                await busy.answer()
            assert await busy.status() == (grpc.StatusCode.OK, "")
        await draining


async def test_reflection_lists_the_services(client: Client) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    reply = await call.read()
    names = {service.name for service in reply.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    call.cancel()


async def drained(edge: Edge) -> Draining:
    """Wait for the Draining message."""
    while True:
        message = await edge.receive()
        if message.draining is not None:
            return message.draining


async def test_a_drain_finishes_the_samples_under_way(start: Start, connect: Connect) -> None:
    server = await start()
    client = connect(server)
    codes = random_codes(client.bundle, 0)
    async with client.opened(samples_in_flight=2) as busy, client.opened() as idle:
        packets = busy.packets(0, codes)
        await busy.send(packets[0])
        await busy.answer()
        draining = asyncio.create_task(server.drain())
        assert await drained(idle) == Draining(None)
        assert await idle.status() == (grpc.StatusCode.OK, "")
        assert await drained(busy) == Draining(0)
        assert await health(client, SERVICE) == NOT_SERVING
        # A sample that begins now is not answered, the one under way is.
        await busy.send(busy.packets(1, codes)[0])
        for timestep in (1, 2, 3):
            await busy.send(packets[timestep])
            verdict = await busy.answer()
            assert (verdict.sample, verdict.timestep) == (0, timestep)
        assert await busy.status() == (grpc.StatusCode.OK, "")
    await draining


async def test_readiness_goes_before_streams_are_told(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start()
    client = connect(server)
    drain, seen = server._servicer.drain, []

    async def watched() -> None:
        seen.append(await health(client, SERVICE))
        await drain()

    monkeypatch.setattr(server._servicer, "drain", watched)
    async with client.opened() as idle:
        draining = asyncio.create_task(server.drain())
        assert await drained(idle) == Draining(None)
        assert seen == [NOT_SERVING]
    await draining


async def test_a_draining_server_refuses_new_streams(start: Start, connect: Connect) -> None:
    server = await start()
    client = connect(server)
    async with client.opened() as busy:
        await busy.send(busy.packets(0, random_codes(client.bundle, 0))[0])
        await busy.answer()
        draining = asyncio.create_task(server.drain())
        await drained(busy)
        async with client.stream() as late:
            code, details = await late.status()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "draining" in details
        await busy.send(cancels=(0,))
        await draining


async def test_a_drain_cuts_what_takes_too_long(start: Start, connect: Connect) -> None:
    server = await start(drain_seconds=0.1)
    client = connect(server)
    async with client.opened() as edge:
        await edge.send(edge.packets(0, random_codes(client.bundle, 0))[0])
        await edge.answer()
        draining = asyncio.create_task(server.drain())
        code, details = await edge.status()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details == "the server is stopping and has drained for 0.1 s"
        await draining


async def test_a_stop_cuts_at_once(start: Start, connect: Connect) -> None:
    server = await start()
    client = connect(server)
    async with client.opened() as edge:
        await edge.send(edge.packets(0, random_codes(client.bundle, 0))[0])
        await edge.answer()
        await server.stop()
        code, _ = await edge.status()
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_metrics_are_served_and_stop_with_the_server(start: Start) -> None:
    server = await start(metrics="127.0.0.1:0")
    figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_slots_limit"] == 128
    assert figures["neucodex_cloud_slots_in_use"] == 0
    await server.stop()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scrape, server)


async def test_a_unix_socket_is_served(start: Start, connect: Connect, tmp_path: Any) -> None:
    client = connect(await start(listen=f"unix:{tmp_path}/cloud.sock"))
    async with client.opened() as edge:
        assert len(await edge.run(0, random_codes(client.bundle, 0))) == 4


async def test_a_taken_port_is_refused(start: Start) -> None:
    server = await start()
    with pytest.raises(ConfigError, match=server.address):
        await start(listen=server.address)


async def test_no_bundle_is_refused(start: Start) -> None:
    with pytest.raises(ConfigError, match="expected at least one directory"):
        await start(bundles=())


async def test_the_same_bundle_twice_is_refused(start: Start, tiny_bundle: Any) -> None:
    path = str(tiny_bundle.path)
    with pytest.raises(ConfigError, match="differ in name or version"):
        await start(bundles=(path, path))


async def test_a_directory_that_is_no_bundle_is_refused(start: Start, tmp_path: Any) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        await start(bundles=(str(tmp_path),))
