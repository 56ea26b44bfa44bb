"""What one edge may take: refusals and rotation over real connections, the accounts alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from cloud_server.admission import AdmissionError
from cloud_server.config import CloudConfig
from cloud_server.identity import FORWARDED
from cloud_server.identity import Edge as Identity
from cloud_server.limits import Bucket, EdgeLimits
from cloud_server.server import CloudServer
from shared import rpc, wire
from shared.credentials import ClientFiles
from shared.errors import SampleCode
from shared.messages import EdgeMessage, Failure
from shared.metrics import CloudMetrics
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import Client, Edge, Start, random_codes, scrape
from tests.conftest import Certificates

Connect = Callable[[CloudServer], Client]
EOF = grpc.aio.EOF
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
TOO_MANY_BYTES = "expected at most 300 bytes per second of one edge, got more"


async def counted(server: CloudServer, reason: str) -> float:
    figures = await asyncio.to_thread(scrape, server)
    return figures.get(f"neucodex_cloud_rejected_total[{reason}]", 0)


async def refusal(edge: Edge) -> tuple[grpc.StatusCode, str, float]:
    """Return status, message and retry hint with which a stream ended."""
    code, details = await edge.status()
    return code, details, rpc.pushback_seconds(await edge.call.trailing_metadata())


# Over real connections.


async def test_one_edge_has_so_many_streams_and_a_closed_one_makes_room(
    start: Start, connect: Connect
) -> None:
    server = await start(edge_max_streams=2, overload_retry_seconds=7.0, metrics="127.0.0.1:0")
    client = connect(server)
    async with client.opened() as first, client.opened():
        async with client.stream() as third:
            code, details, hint = await refusal(third)
        assert (code, hint) == (EXHAUSTED, 7.0)
        assert details == "expected at most 2 streams of one edge at once, got another"
        await first.call.done_writing()
        assert (await first.status())[0] is grpc.StatusCode.OK
        async with client.opened():
            pass
    assert await counted(server, "edge_streams") == 1


async def test_edges_with_certificates_do_not_share_a_limit(
    start: Start, tiny_bundle: Bundle, certificates: Certificates
) -> None:
    server = await start(edge_max_streams=1, **certificates.server(mutual=True))
    one, two = (ClientFiles(**certificates.edge(name)).read() for name in ("one", "two"))
    async with (
        rpc.channel(server.address, one) as a,
        rpc.channel(server.address, one) as b,
        rpc.channel(server.address, two) as c,
    ):
        clients = [Client(channel, tiny_bundle) for channel in (a, b, c)]
        async with clients[0].opened(), clients[2].opened(), clients[1].stream() as second:
            assert (await refusal(second))[0] is EXHAUSTED


async def test_edges_behind_a_proxy_do_not_share_a_limit(
    start: Start, tiny_bundle: Bundle, certificates: Certificates
) -> None:
    server = await start(
        edge_max_streams=1, proxies=("CN=one",), **certificates.server(mutual=True)
    )
    proxy, edge = (ClientFiles(**certificates.edge(name)).read() for name in ("one", "two"))
    first, second = ((FORWARDED, f'Hash={"0" * 64};Subject="CN={name}"') for name in ("a", "b"))

    async def opens(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> bool:
        client = Client(channel, tiny_bundle)
        call = client.stub.Infer(metadata=metadata)
        await call.write(wire.edge_message_to_proto(EdgeMessage(open=client.request())))
        calls.append(call)
        return await Edge(call, tiny_bundle, client.request().checksum).read_or_end() is not EOF

    calls: list[Any] = []
    async with (
        rpc.channel(server.address, proxy) as shared,
        rpc.channel(server.address, edge) as own,
    ):
        assert await opens(shared, first)
        assert not await opens(shared, first)
        assert await opens(shared, second)
        assert await opens(own, first)  # It is no proxy: what it says is not believed.
        assert not await opens(own)


async def until_held(edge: Edge, number: int) -> tuple[int, Failure]:
    """Begin samples, and give them up at once, until one is not begun; return the next number."""
    codes = random_codes(edge.bundle, 0)
    while True:
        await edge.send(edge.packets(number, codes)[0])
        answer = await edge.answer()
        if isinstance(answer, Failure):
            return number + 1, answer
        await edge.send(cancels=(number,))
        number += 1


async def test_more_samples_per_second_than_allowed_are_told_to_wait(
    start: Start, connect: Connect
) -> None:
    server = await start(edge_samples_per_second=2.0, metrics="127.0.0.1:0")
    client = connect(server)
    async with client.opened() as edge:
        for number in range(2):
            assert len(await edge.run(number, random_codes(client.bundle, number))) == 4
        number, failure = await until_held(edge, 2)
        assert failure.code is SampleCode.NO_SLOT
        assert failure.message == "expected at most 2 samples per second of one edge, got more"
        assert 0 < failure.retry_after_seconds <= 0.5
        await asyncio.sleep(failure.retry_after_seconds)
        assert len(await edge.run(number, random_codes(client.bundle, number))) == 4
    assert await counted(server, "edge_samples") == 1
    await client.until_all_slots_are_back()


async def test_who_is_ahead_in_bytes_waits_and_who_goes_on_is_cut_off(
    start: Start, connect: Connect
) -> None:
    server = await start(edge_bytes_per_second=300.0, metrics="127.0.0.1:0")
    client = connect(server)
    codes = random_codes(client.bundle, 0)
    async with client.opened() as edge:
        number, failure = await until_held(edge, 0)
        assert number > 1  # A burst was allowed.
        assert failure.code is SampleCode.NO_SLOT
        assert failure.message == TOO_MANY_BYTES
        assert failure.retry_after_seconds > 0
        # Ahead by more than ten seconds, and then another message. Few of them: the client library
        # calls a stream INTERNAL that ends while it is being written to.
        first = [edge.packets(each, codes)[0] for each in range(number, number + 101)]
        await edge.send(*first[:100])
        await edge.send(first[100])
        code, details, hint = await refusal(edge)
    assert (code, details) == (EXHAUSTED, TOO_MANY_BYTES)
    assert hint > 10
    async with client.stream() as again:
        assert (await refusal(again))[0] is EXHAUSTED
    assert await counted(server, "edge_bytes") >= 3
    await client.until_all_slots_are_back()


async def test_a_silent_stream_is_ended(start: Start, connect: Connect) -> None:
    server = await start(stream_idle_seconds=0.3, metrics="127.0.0.1:0")
    client = connect(server)
    async with client.opened() as edge:
        async with asyncio.timeout(10):
            code, details = await edge.status()
    assert (code, details) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "expected a message within 0.3 s, nothing came",
    )
    assert await counted(server, "idle") == 1


async def test_a_stream_with_a_sample_under_way_is_not_silent(
    start: Start, connect: Connect
) -> None:
    client = connect(await start(stream_idle_seconds=0.3))
    async with client.opened() as edge:
        packets = edge.packets(0, random_codes(client.bundle, 0))
        await edge.send(packets[0])
        await edge.answer()
        await asyncio.sleep(1.0)
        for packet in packets[1:]:
            await edge.send(packet)
            await edge.answer()


async def test_an_old_stream_ends_between_two_samples(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_server.warden.ROUND_SECONDS", 0.01)
    server = await start(stream_life_seconds=0.1, metrics="127.0.0.1:0")
    client = connect(server)
    async with client.opened() as edge:
        packets = edge.packets(0, random_codes(client.bundle, 0))
        await edge.send(packets[0])
        await edge.answer()
        draining = None
        while draining is None:
            draining = (await edge.receive()).draining
        assert draining.last_sample == 0
        for packet in packets[1:]:
            await edge.send(packet)
            await edge.answer()
        assert await edge.status() == (grpc.StatusCode.OK, "")
    async with client.opened():  # The server itself is not draining.
        figures = await asyncio.to_thread(scrape, server)
        assert figures["neucodex_cloud_stream_rotations_total"] == 1


async def test_without_limits_nothing_is_limited(start: Start, connect: Connect) -> None:
    client = connect(await start())
    async with client.opened(settings=client.request().settings) as edge:
        for number in range(50):
            await edge.run(number, random_codes(client.bundle, number))


# By themselves.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, draw: float = 0.0, **keys: Any) -> EdgeLimits:
    metrics = CloudMetrics(CollectorRegistry())
    return EdgeLimits(CloudConfig(**keys), metrics, clock, lambda: draw)


@given(
    per_second=st.floats(0.1, 1e6),
    waits=st.lists(st.floats(0, 10), min_size=1, max_size=50),
)
def test_no_more_is_taken_than_a_burst_and_the_rate(per_second: float, waits: list[float]) -> None:
    clock = Clock()
    bucket = Bucket(per_second, clock)
    taken = 0
    for wait in waits:
        clock.now += wait
        while bucket.wait_seconds == 0 and taken < 1000:
            bucket.take(1)
            taken += 1
    assert taken <= max(1.0, per_second) + per_second * clock.now + 1e-6


@given(per_second=st.floats(0.1, 1e6), amount=st.floats(0, 1e9))
def test_after_the_wait_there_is_one_to_take(per_second: float, amount: float) -> None:
    clock = Clock()
    bucket = Bucket(per_second, clock)
    bucket.take(amount)
    clock.now += bucket.wait_seconds * (1 + 1e-9) + 1e-9
    assert bucket.wait_seconds <= 1e-6 * max(1.0, clock.now)


def test_one_large_message_is_let_through_and_paid_for_later() -> None:
    clock = Clock()
    with limits(clock, edge_bytes_per_second=100.0).visit(Identity("a")) as visit:
        visit.received(100_000)
        hold = visit.hold()
        assert hold is not None
        assert hold.reason == "edge_bytes"
        assert hold.seconds == pytest.approx(999, abs=1)
        with pytest.raises(AdmissionError) as caught:
            visit.received(1)
        assert caught.value.retry_after_seconds == pytest.approx(999, abs=1)
        clock.now = 1000
        assert visit.hold() is None


def test_what_an_edge_owes_outlives_its_streams() -> None:
    clock = Clock()
    each = limits(clock, edge_samples_per_second=1.0)
    with each.visit(Identity("a")) as visit:
        visit.begun()
    with each.visit(Identity("a")) as visit, each.visit(Identity("b")) as other:
        assert visit.hold() is not None
        assert other.hold() is None


def test_lives_of_streams_differ() -> None:
    clock = Clock()
    for draw, end in ((0.0, 100.0), (1.0, 80.0), (0.5, 90.0)):
        with limits(clock, draw, stream_life_seconds=100.0).visit(Identity("a")) as visit:
            assert visit.ends_at == pytest.approx(end)


def test_strangers_do_not_fill_the_memory() -> None:
    clock = Clock()
    each = limits(clock, edge_samples_per_second=1.0)
    with ExitStack() as stack:
        kept = stack.enter_context(each.visit(Identity("kept")))
        for number in range(10_000):
            clock.now += 0.1
            with each.visit(Identity(f"stranger {number}")) as visit:
                visit.begun()
        assert len(each._accounts) < 200
        kept.begun()
        assert each._accounts["kept"].places["stream"] == 1
