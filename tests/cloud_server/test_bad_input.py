"""What a broken or hostile edge gets, and that nobody else notices.

Every test has a bystander: a sample of another stream, begun before the trouble, that must end
with the right answer; afterwards all slots are back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from msgspec.structs import replace

from cloud_server.server import CloudServer
from protos import co_inference_pb2 as pb
from shared import wire
from shared.codec.packet import Checksum
from shared.engine.base import Engine
from shared.errors import SampleCode
from shared.messages import EdgeMessage, Failure, ReplyMode, Settings
from tests.cloud_server.conftest import (
    NEVER,
    Client,
    Edge,
    Start,
    expected_decisions,
    random_codes,
    scrape,
)

Bystander = Callable[[Client], AbstractAsyncContextManager[None]]
Connect = Callable[[CloudServer], Client]


@pytest.fixture
def bystander(tail: Engine) -> Bystander:
    """Return a context in which another edge is in the middle of a sample."""

    @asynccontextmanager
    async def in_the_middle(client: Client) -> AsyncIterator[None]:
        codes = random_codes(client.bundle, 77)
        async with client.opened() as edge:
            packets = edge.packets(0, codes)
            await edge.send(packets[0])
            verdicts = await edge.answers(1)
            yield
            for packet in packets[1:]:
                await edge.send(packet)
                verdicts += await edge.answers(1)
        decisions = expected_decisions(tail, client.bundle, list(codes))
        assert [verdict.label for verdict in verdicts] == [each.label for each in decisions]
        await client.until_all_slots_are_back()

    return in_the_middle


def raw_open(client: Client, **fields: Any) -> pb.EdgeMessage:
    """Return a valid first message, in protobuf, with some fields of Open replaced."""
    message = wire.edge_message_to_proto(EdgeMessage(open=client.request()))
    for name, value in fields.items():
        setattr(message.open, name, value)
    return message


async def refusal(client: Client, first: pb.EdgeMessage) -> tuple[grpc.StatusCode, str]:
    """Send one message and return how the stream ends."""
    edge = Edge(client.stub.Infer(), client.bundle, Checksum.CRC16)
    await edge.write(first)
    return await edge.status()


OTHER_DIGEST = bytes(range(32))


async def test_a_wrong_digest_is_refused(client: Client, bystander: Bystander) -> None:
    async with bystander(client):
        code, details = await refusal(client, raw_open(client, model_digest=OTHER_DIGEST))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert client.bundle.digest in details
    assert OTHER_DIGEST.hex() in details


async def test_a_wrong_protocol_version_is_refused(client: Client, bystander: Bystander) -> None:
    async with bystander(client):
        code, details = await refusal(client, raw_open(client, protocol_version=2))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details == "expected protocol version 1, got 2"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"model_digest": b"short"}, "expected a model digest of 32 bytes, got 5"),
        ({"checksum": 9}, "expected a checksum of 0, 1, 2, got 9"),
        ({"samples_in_flight": 0}, "expected 1 to 3 samples in flight, got 0"),
    ],
)
async def test_a_malformed_open_is_refused(
    client: Client, bystander: Bystander, fields: dict[str, Any], complaint: str
) -> None:
    async with bystander(client):
        code, details = await refusal(client, raw_open(client, **fields))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, complaint)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (Settings(alpha=NEVER, window=0), "expected a window of 1 to 16, got 0"),
        (Settings(alpha=NEVER, window=17), "expected a window of 1 to 16, got 17"),
        (
            Settings(alpha=NEVER, window=2, steps_per_packet=3),
            "expected 1 to 2 timesteps per packet, got 3",
        ),
        (
            Settings(alpha=NEVER, reply_mode=ReplyMode.EXIT, steps_per_packet=17),
            "expected 1 to 16 timesteps per packet, got 17",
        ),
        (
            Settings(alpha=NEVER, codec="gzip"),
            "expected a codec of ctx, ctx-max, raw, zstd, got 'gzip'",
        ),
        (
            Settings(alpha=(0.5, 0.5)),
            "expected 3 alpha values for 4 timesteps, or one number; got 2",
        ),
        (Settings(alpha=(1.5,)), "expected alpha values in [0, 1], got [1.5]"),
    ],
)
@pytest.mark.parametrize("when", ["open", "later"])
async def test_bad_settings_end_the_stream(
    client: Client, bystander: Bystander, settings: Settings, complaint: str, when: str
) -> None:
    async with bystander(client):
        if when == "open":
            async with client.stream(settings=settings) as edge:
                code, details = await edge.status()
        else:
            async with client.opened() as edge:
                await edge.send(edge.packets(0, random_codes(client.bundle, 0))[0])
                await edge.send(settings=settings)
                code, details = await edge.status()
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, complaint)


async def test_a_first_message_without_open_ends_the_stream(
    client: Client, bystander: Bystander
) -> None:
    async with bystander(client):
        code, details = await refusal(client, pb.EdgeMessage(packets=[b"\x48abc"]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "expected open in the first message, got none"


async def test_a_second_open_ends_the_stream(client: Client, bystander: Bystander) -> None:
    async with bystander(client), client.opened() as edge:
        await edge.send(open=client.request())
        code, details = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "expected open in the first message only, got another"


@pytest.mark.parametrize("when", ["open", "later"])
async def test_bytes_that_are_no_message_end_the_stream(
    client: Client, bystander: Bystander, when: str
) -> None:
    async with bystander(client):
        edge = Edge(
            client.channel.stream_stream("/neucodex.v1.CoInference/Infer")(),
            client.bundle,
            Checksum.CRC16,
        )
        if when == "later":
            await edge.write(raw_open(client).SerializeToString())
            assert await edge.call.read()
        await edge.write(b"\xff\xff\xff")
        code, details = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("expected a message of the protocol")


def damaged(packet: bytes, how: str) -> bytes:
    header, rest = packet[0], packet[1:]
    return {
        "too long": packet + b"\0",
        "much too long": packet + bytes(100_000),
        "truncated": packet[:-1],
        "header alone": packet[:1],
        "out of order": bytes([header & ~7 | (header + 1) & 7]) + rest,
    }[how]


@pytest.mark.parametrize("checksum", list(Checksum))
@pytest.mark.parametrize(
    "how", ["too long", "much too long", "truncated", "header alone", "out of order"]
)
@pytest.mark.parametrize("at", [0, 1])
async def test_a_packet_that_cannot_be_decoded_ends_its_sample_alone(
    client: Client, bystander: Bystander, how: str, at: int, checksum: Checksum
) -> None:
    codes = random_codes(client.bundle, 0)
    async with bystander(client), client.opened(checksum=checksum) as edge:
        packets = edge.packets(0, codes)
        for packet in packets[:at]:
            await edge.send(packet)
            await edge.answer()
        await edge.send(damaged(packets[at], how))
        failure = await edge.answer()
        assert isinstance(failure, Failure)
        assert (failure.sample, failure.code) == (0, SampleCode.BAD_PACKET)
        assert failure.message.startswith("expected")
        verdicts = await edge.run(1, codes)
        assert [verdict.sample for verdict in verdicts] == [1] * 4


async def test_a_flipped_bit_fails_the_check(
    start: Start, connect: Connect, bystander: Bystander
) -> None:
    server = await start(metrics="127.0.0.1:0")
    client = connect(server)
    async with bystander(client), client.opened() as edge:
        packet = bytearray(edge.packets(0, random_codes(client.bundle, 0))[0])
        packet[5] ^= 1
        await edge.send(bytes(packet))
        failure = await edge.answer()
        assert (failure.sample, failure.code) == (0, SampleCode.CHECK_FAILED)
        assert "expected check" in failure.message
        await edge.run(1, random_codes(client.bundle, 1))
    figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_check_failures_total"] == 1


def header(timestep: int, sample: int, *, first: bool, kind: int = 1) -> int:
    return timestep | first << 3 | sample << 4 | kind << 6


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (b"", "expected a packet, got no bytes"),
        (bytes([header(0, 0, first=True, kind=3)]), "expected packet kind 0, 1 or 2, got 3"),
        (
            bytes([header(0, 0, first=True, kind=2)]),
            "expected the number of timesteps in byte 1, the packet ends before",
        ),
        (
            bytes([header(0, 0, first=True, kind=2), 4]) + bytes(64),
            "expected at most 1 timesteps per packet, got 4",
        ),
        (
            bytes([header(0, 2, first=True)]) + bytes(34),
            "expected the first packet of sample 0, which is 0 mod 4, got one that is 2 mod 4",
        ),
        (
            bytes([header(1, 3, first=False)]) + bytes(34),
            "got a packet of a sample that is 3 mod 4, none has begun",
        ),
    ],
)
async def test_a_packet_that_belongs_nowhere_ends_the_stream(
    client: Client, bystander: Bystander, packet: bytes, complaint: str
) -> None:
    async with bystander(client), client.opened() as edge:
        await edge.send(packet)
        code, details = await edge.status()
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, complaint)


async def test_more_timesteps_than_the_window_end_the_stream(
    start: Start, connect: Connect, bystander: Bystander
) -> None:
    server = await start(metrics="127.0.0.1:0")
    client = connect(server)
    async with bystander(client), client.opened() as edge:
        await edge.send(*edge.packets(0, random_codes(client.bundle, 0))[:2])
        code, details = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected at most 1 timesteps of a sample without verdict, got 2" in details
    figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_samples_total[error]"] == 1
    assert figures["neucodex_cloud_rejected_total[protocol]"] == 1


async def test_more_samples_than_agreed_end_the_stream(
    client: Client, bystander: Bystander
) -> None:
    async with bystander(client), client.opened(samples_in_flight=2) as edge:
        codes = random_codes(client.bundle, 0)
        await edge.send(*(edge.packets(number, codes)[0] for number in range(3)))
        code, details = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected at most 2 samples in flight" in details


async def test_a_cancel_of_a_sample_that_never_began_ends_the_stream(
    client: Client, bystander: Bystander
) -> None:
    async with bystander(client), client.opened() as edge:
        await edge.send(cancels=(0,))
        code, details = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "got a cancel of sample 0, which has not begun"


async def test_random_bytes_never_hurt_anybody_else(client: Client, bystander: Bystander) -> None:
    numbers = np.random.default_rng(0)
    async with bystander(client):
        for length in (1, 2, 3, 35, 36, 60):
            for _ in range(5):
                async with client.opened(settings=Settings(alpha=NEVER, codec="zstd")) as edge:
                    # The first byte fits, so that the rest reaches the decoder.
                    kind = int(numbers.integers(0, 3))
                    first = bytes([header(0, 0, first=True, kind=kind)])
                    await edge.send(first + numbers.bytes(length))
                    await edge.call.done_writing()
                    code, _ = await edge.status()
                    assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_long_complaint_still_fits_into_a_status(
    client: Client, bystander: Bystander
) -> None:
    settings = Settings(alpha=NEVER, codec="x" * 100_000)
    async with bystander(client), client.stream(settings=settings) as edge:
        code, details = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("expected a codec of ctx, ctx-max, raw, zstd, got 'xxx")


async def test_a_stream_that_never_sends_is_ended(
    start: Start, connect: Connect, bystander: Bystander
) -> None:
    client = connect(await start(open_timeout_seconds=0.2))
    async with bystander(client):
        code, details = await Edge(client.stub.Infer(), client.bundle, Checksum.NONE).status()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details == "expected open within 0.2 s, nothing came"


async def test_a_stream_that_ends_at_once_is_refused(client: Client, bystander: Bystander) -> None:
    async with bystander(client):
        call = client.stub.Infer()
        await call.done_writing()
        code, _ = await Edge(call, client.bundle, Checksum.NONE).status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("how", ["cancels the call", "closes the connection"])
async def test_an_edge_that_vanishes_in_mid_sample_leaves_nothing_behind(
    start: Start, connect: Connect, bystander: Bystander, how: str
) -> None:
    server = await start(metrics="127.0.0.1:0")
    client, vanishing = connect(server), connect(server)
    async with bystander(client):
        async with vanishing.opened(samples_in_flight=3) as edge:
            codes = random_codes(client.bundle, 0)
            for number in range(3):
                await edge.send(edge.packets(number, codes)[0])
            await edge.answers(3)
            assert await client.slots_in_use() == 4
            if how == "closes the connection":
                await vanishing.channel.close()
        async with asyncio.timeout(10):
            while await client.slots_in_use() > 1:
                await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        while (figures := await asyncio.to_thread(scrape, server))["neucodex_cloud_streams"]:
            await asyncio.sleep(0.005)
    assert figures["neucodex_cloud_samples_total[disconnected]"] == 3


async def test_a_silent_edge_loses_its_sample(
    start: Start, connect: Connect, bystander: Bystander
) -> None:
    client = connect(await start(packet_idle_seconds=0.4))
    async with client.opened() as edge:
        packets = edge.packets(0, random_codes(client.bundle, 0))
        await edge.send(packets[0])
        assert (await edge.answer()).timestep == 0
        failure = await edge.answer()
        assert (failure.sample, failure.code) == (0, SampleCode.DEADLINE)
        assert failure.message == "expected the next packet within 0.4 s"
        assert await client.slots_in_use() == 0
        await edge.send(packets[1], edge.packets(1, random_codes(client.bundle, 1))[0])
        assert (await edge.answer()).sample == 1


async def test_a_sample_that_takes_too_long_ends(start: Start, connect: Connect) -> None:
    client = connect(await start(sample_deadline_seconds=0.4))
    async with client.opened(settings=Settings(alpha=NEVER, reply_mode=ReplyMode.EXIT)) as edge:
        await edge.send(edge.packets(0, random_codes(client.bundle, 0))[0])
        failure = await edge.answer()
        assert (failure.sample, failure.code) == (0, SampleCode.DEADLINE)
        assert failure.message == "expected the sample to end within 0.4 s"
        assert await client.slots_in_use() == 0


async def test_without_a_free_slot_a_sample_is_told_to_come_again(
    start: Start, connect: Connect
) -> None:
    client = connect(await start(slots=1))
    codes = random_codes(client.bundle, 0)
    async with client.opened() as first, client.opened() as second:
        await first.send(first.packets(0, codes)[0])
        await first.answer()
        await second.send(second.packets(0, codes)[0])
        failure = await second.answer()
        assert (failure.sample, failure.code) == (0, SampleCode.NO_SLOT)
        assert failure.retry_after_seconds > 0
        await first.send(cancels=(0,))
        await client.until_all_slots_are_back()
        assert len(await second.run(1, codes)) == 4


async def test_a_thousand_streams_at_once_meet_the_limit(
    start: Start, connect: Connect, bystander: Bystander
) -> None:
    client = connect(await start(max_streams=64))
    async with bystander(client):
        held = [client.stub.Infer() for _ in range(63)]
        for call in held:
            await call.write(raw_open(client))
            assert await call.read() is not grpc.aio.EOF
        endings = await asyncio.gather(*(refusal(client, raw_open(client)) for _ in range(937)))
        assert set(endings) == {
            (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "expected at most 64 streams at once, got another",
            )
        }
        for call in held:
            await call.done_writing()
        for call in held:
            assert await call.code() is grpc.StatusCode.OK
    async with client.opened() as edge:
        assert len(await edge.run(0, random_codes(client.bundle, 0))) == 4


async def test_an_edge_that_does_not_read_is_cut_off(
    client: Client, bystander: Bystander, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_server.outbox.MAX_UNREAD", 2)
    codes = random_codes(client.bundle, 0)
    chosen = Settings(alpha=NEVER, window=4)
    async with bystander(client), client.opened(settings=chosen) as edge:
        # The whole sample at once: its verdicts come faster than the writer is let at them.
        monkeypatch.setattr("cloud_server.servicer._send", never)
        await edge.send(*edge.packets(0, codes))
        code, details = await edge.status()
        monkeypatch.undo()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "expected the edge to read its answers, 2 of them wait unread"


async def never(*_: object) -> None:
    await asyncio.Event().wait()


async def test_an_engine_that_fails_loses_the_sample_and_not_the_server(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Breakable()
    monkeypatch.setattr("cloud_server.model_store.load_engine", broken.load)
    server = await start(metrics="127.0.0.1:0")
    client = connect(server)
    codes = random_codes(client.bundle, 0)
    async with client.opened() as edge:
        broken.error = RuntimeError("out of memory")
        await edge.send(edge.packets(0, codes)[0])
        failure = await edge.answer()
        assert failure == replace(
            failure,
            sample=0,
            code=SampleCode.WORKER_LOST,
            message="the engine failed: out of memory",
        )
        broken.error = None
        assert len(await edge.run(1, codes)) == 4
    await client.until_all_slots_are_back()
    assert broken.loaded == 2
    figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_engine_restarts_total"] == 1


class Breakable:
    """An engine that raises ``error`` if there is one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.loaded = 0

    def load(self, bundle: Any, part: Any, config: Any) -> Breakable:
        from shared.engine import onnx_runtime

        self.loaded += 1
        self._engine = onnx_runtime.load_engine(bundle, part)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, x: Any, state: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self._engine.step(x, state)
