"""The link over gRPC: what it makes of the ways a stream can end, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from edge_agent.grpc_link import GrpcLink
from edge_agent.link import CloudFullError
from edge_agent.session import Reconnect
from examples.pair import run_cloud
from protos import co_inference_pb2 as pb
from shared import rpc
from shared.errors import LinkLostError, NeucodexError, ProtocolError, RefusedError
from shared.messages import EdgeMessage, Open, Settings
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import Clouds, Edges, Relay, png, until

ESTABLISHED = "01"


class NoCounter:
    def poll(self) -> None:
        return None


def link_to(address: str) -> GrpcLink:
    return GrpcLink(address, EdgeMetrics(CollectorRegistry(), model="tiny"), NoCounter())


def opening(bundle: Bundle, **fields: Any) -> Open:
    values: dict[str, Any] = {
        "model_digest": bytes.fromhex(bundle.digest),
        "settings": Settings(alpha=(1.0,)),
    }
    return Open(**(values | fields))


def connections(address: str) -> int:
    """Count the open TCP connections of this network to an address."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table.splitlines()[1:]]
    return sum(field[2].endswith(f":{port}") and field[3] == ESTABLISHED for field in fields)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Leave reference cycles alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_a_closed_link_leaves_no_connection_to_the_garbage_collector(
    clouds: Clouds, tiny_bundle: Bundle
) -> None:
    async with clouds() as cloud:
        for _ in range(3):
            link = link_to(cloud.address)
            await link.open(opening(tiny_bundle))
            reading = asyncio.ensure_future(anext(link.messages()))
            link.send(EdgeMessage(settings=Settings(alpha=(0.5,))))
            await asyncio.sleep(0)
            assert connections(cloud.address) == 1
            reading.cancel()
            del reading  # A task that was cancelled keeps where it was.
            await link.close()
            await until(lambda: connections(cloud.address) == 0)


@pytest.mark.usefixtures("uncollected")
async def test_a_stream_that_was_left_leaves_none_either(clouds: Clouds, edges: Edges) -> None:
    waits = {"reconnect_min_seconds": 3600.0, "reconnect_max_seconds": 3600.0}
    async with clouds() as cloud, edges(cloud=cloud.address, **waits) as edge:
        assert (await edge.loop.submit(png(0))).timesteps_used == 4
        assert connections(cloud.address) == 1
        edge.loop._carry_out([Reconnect()])
        await until(lambda: connections(cloud.address) == 0)


@pytest.mark.usefixtures("uncollected")
async def test_an_error_that_is_kept_holds_no_connection(
    clouds: Clouds, tiny_bundle: Bundle
) -> None:
    kept: list[NeucodexError] = []
    async with clouds() as cloud:
        link = link_to(cloud.address)
        with pytest.raises(RefusedError) as raised:
            await link.open(opening(tiny_bundle, model_digest=bytes(32)))
        kept.append(raised.value)
        await link.close()
        await until(lambda: connections(cloud.address) == 0)


async def test_a_stream_too_many_is_always_told_so_and_when_to_come_again(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    async def refused(address: str) -> float:
        link = link_to(address)
        with pytest.raises(CloudFullError, match="at most 1 streams") as raised:
            await link.open(opening(tiny_bundle))
        await link.close()
        return raised.value.retry_after_seconds

    config = tmp_path / "cloud.toml"
    config.write_text("max_streams = 1\noverload_retry_seconds = 7.5\n")
    # In a process of its own: on one event loop a refusal never overtakes the first message.
    with run_cloud(tmp_path, tiny_bundle.path, "--config", str(config)) as cloud:
        held = link_to(cloud.address)
        await held.open(opening(tiny_bundle))
        for _ in range(10):
            every = await asyncio.gather(*(refused(cloud.address) for _ in range(40)))
            assert set(every) == {7.5}
        await held.close()


Handler = Callable[[grpc.aio.ServicerContext[Any, Any]], Any]


@contextlib.asynccontextmanager
async def scripted(handle: Handler) -> AsyncIterator[str]:
    """Run a server whose streams do as the test says; yield its address."""

    async def serve(_: Any, context: Any) -> None:
        await handle(context)

    class Streams(grpc.GenericRpcHandler):
        def service(self, _: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(
                serve,
                request_deserializer=pb.EdgeMessage.FromString,
                response_serializer=pb.CloudMessage.SerializeToString,
            )

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Streams(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


OPENED = pb.CloudMessage(
    opened=pb.Opened(
        protocol_version=1,
        max_window=1,
        max_steps_per_packet=1,
        samples_in_flight=1,
        codecs=["raw"],
    )
)
LOST = sorted(rpc.LOST_CODES | {grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED}, key=str)


@pytest.mark.parametrize("code", LOST, ids=lambda code: code.name)
@pytest.mark.parametrize("when", ["opening", "later"])
async def test_every_status_of_a_dead_server_is_a_lost_link(
    tiny_bundle: Bundle, code: grpc.StatusCode, when: str
) -> None:
    async def die(context: Any) -> None:
        await context.read()
        if when == "later":
            await context.write(OPENED)
            await context.read()
        await context.abort(code, "scripted")

    async with scripted(die) as address:
        link = link_to(address)
        with pytest.raises(LinkLostError, match=code.name):
            await link.open(opening(tiny_bundle))
            link.send(EdgeMessage(packets=(b"packet",)))
            await anext(link.messages())
        await link.close()


async def test_a_write_after_the_end_of_the_stream_goes_unnoticed(tiny_bundle: Bundle) -> None:
    async def end(context: Any) -> None:
        await context.read()
        await context.write(OPENED)

    async with scripted(end) as address:
        link = link_to(address)
        await link.open(opening(tiny_bundle))
        assert [message async for message in link.messages()] == []
        link.send(EdgeMessage(packets=(b"too late",)))
        await until(lambda: link._writer is not None and link._writer.done())
        assert link._writer is not None and link._writer.exception() is None
        await link.close()


async def test_a_server_that_answers_something_else_than_opened_is_refused(
    tiny_bundle: Bundle,
) -> None:
    async def babble(context: Any) -> None:
        await context.read()
        await context.write(pb.CloudMessage())

    async with scripted(babble) as address:
        link = link_to(address)
        with pytest.raises(ProtocolError, match="expected Opened"):
            await link.open(opening(tiny_bundle))
        await link.close()


async def test_a_peer_that_stops_answering_is_found_on_an_idle_stream(
    clouds: Clouds, relay: Relay, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "KEEPALIVE_SECONDS", 0.5)
    monkeypatch.setattr(rpc, "PING_TIMEOUT_SECONDS", 0.5)
    async with clouds() as cloud:
        relay.target = cloud.address
        link = link_to(relay.address)
        await link.open(opening(tiny_bundle))
        relay.hold()
        with pytest.raises(LinkLostError, match="UNAVAILABLE"):
            async with asyncio.timeout(20):
                await anext(link.messages())
        await link.close()


@pytest.mark.parametrize(
    ("metadata", "seconds"),
    [
        ((), 0.0),
        (rpc.retry_pushback(None), 0.0),
        (rpc.retry_pushback(0.25), 0.25),
        (((rpc.RETRY_PUSHBACK, "-1"),), 0.0),
        (((rpc.RETRY_PUSHBACK, "soon"),), 0.0),
        (((rpc.RETRY_PUSHBACK, "9" * 10),), rpc.MAX_PUSHBACK_SECONDS),
        (((rpc.RETRY_PUSHBACK, "9" * 5000),), 0.0),
    ],
    ids=str,
)
def test_a_hint_is_taken_only_if_it_makes_sense(
    metadata: tuple[tuple[str, str], ...], seconds: float
) -> None:
    assert rpc.pushback_seconds(metadata) == seconds
