"""A thousand clients that crash, are idle, read slowly or send slowly, and one that is well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio

from cloud_server.server import CloudServer
from protos import co_inference_pb2 as pb
from shared import wire
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

Connect = Callable[[CloudServer], Client]
MANY = 1000
PER_PROCESS = 50
ROOT = Path(__file__).parents[2]

CRASHING = """
import asyncio, json, os, sys
import grpc.aio

address, messages = sys.argv[1], [bytes.fromhex(each) for each in json.load(sys.stdin)]

async def main():
    channel = grpc.aio.insecure_channel(address)
    infer = channel.stream_stream("/neucodex.v1.CoInference/Infer")
    calls = [infer() for _ in range(int(sys.argv[2]))]
    for call in calls:
        for message in messages:
            await call.write(message)
        await call.read()
    print("in the middle", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
"""A process with many streams, each in the middle of a sample when it is killed."""


async def assert_well(client: Client, tail: Engine, seed: int = 3) -> None:
    """An edge that does everything right is answered right."""
    codes = random_codes(client.bundle, seed)
    async with client.opened() as edge:
        verdicts = await edge.run(0, codes)
    decisions = expected_decisions(tail, client.bundle, list(codes))
    assert [verdict.label for verdict in verdicts] == [each.label for each in decisions]


@contextlib.asynccontextmanager
async def crashing(server: CloudServer, client: Client, streams: int) -> AsyncIterator[Any]:
    """Run a process with that many streams in the middle of samples."""
    first = wire.edge_message_to_proto(EdgeMessage(open=client.request()))
    codes = random_codes(client.bundle, 0)
    packet = Edge(None, client.bundle, client.request().checksum).packets(0, codes)[0]
    messages = [first.SerializeToString(), pb.EdgeMessage(packets=[packet]).SerializeToString()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CRASHING, server.address, str(streams)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([message.hex() for message in messages]).encode())
    process.stdin.close()
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"in the middle\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_thousand_crashing_clients_leave_nothing_behind(
    start: Start, connect: Connect, tail: Engine
) -> None:
    server = await start(max_streams=PER_PROCESS + 2, slots=PER_PROCESS + 2)
    client = connect(server)
    await assert_well(client, tail)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(MANY // PER_PROCESS):
        async with crashing(server, client, PER_PROCESS) as process:
            await until_slots(client, PER_PROCESS)
            process.send_signal(signal.SIGKILL)
            await client.until_all_slots_are_back()
    await assert_well(client, tail)
    assert server._servicer._admission.streams <= 1
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2


async def until_slots(client: Client, count: int) -> None:
    async with asyncio.timeout(30):
        while await client.slots_in_use() != count:
            await asyncio.sleep(0.005)


async def test_a_thousand_idle_streams_cost_others_nothing(
    start: Start, connect: Connect, tail: Engine
) -> None:
    server = await start(max_streams=MANY + 1, packet_idle_seconds=0.2)
    client, idle = connect(server), connect(server)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MANY):
            await stack.enter_async_context(idle.stream())
        async with asyncio.timeout(60):
            while server._servicer._admission.streams < MANY:
                await asyncio.sleep(0.01)
        # An idle stream is no idle sample: none of them is ended, and none holds a slot.
        await asyncio.sleep(0.5)
        assert server._servicer._admission.streams == MANY
        assert await client.slots_in_use() == 0
        await assert_well(client, tail)
    async with asyncio.timeout(60):
        while server._servicer._admission.streams:
            await asyncio.sleep(0.01)


async def test_clients_that_read_slowly_hold_up_nobody_and_get_every_answer(
    start: Start, connect: Connect, tail: Engine
) -> None:
    server = await start()
    client = connect(server)
    chosen = Settings(alpha=NEVER, reply_mode=ReplyMode.STEP, window=4)
    codes, samples = random_codes(client.bundle, 0), 50
    async with contextlib.AsyncExitStack() as stack:
        slow = [
            await stack.enter_async_context(client.opened(settings=chosen, want_logits=True))
            for _ in range(20)
        ]
        for number in range(samples):
            for edge in slow:
                await edge.send(*edge.packets(number, codes))
            # The next sample may begin once this one has ended; nobody has read a word of it.
            await client.until_all_slots_are_back()
        await assert_well(client, tail)
        for edge in slow:
            verdicts = await edge.answers(4 * samples)
            assert [(each.sample, each.timestep) for each in verdicts] == [
                (number, timestep) for number in range(samples) for timestep in range(4)
            ]


async def test_clients_that_send_slowly_lose_their_sample_and_not_their_stream(
    start: Start, connect: Connect, tail: Engine
) -> None:
    server = await start(packet_idle_seconds=0.3, metrics="127.0.0.1:0")
    client = connect(server)
    codes = random_codes(client.bundle, 0)

    async def slow() -> None:
        async with client.opened() as edge:
            first, *_ = edge.packets(0, codes)
            await edge.send(first)
            assert (await edge.answer()).timestep == 0
            failure = await edge.answer()
            assert isinstance(failure, Failure)
            assert failure.code is SampleCode.DEADLINE
            assert len(await edge.run(1, codes)) == 4

    async def steady() -> None:
        for seed in range(20):
            await assert_well(client, tail, seed)

    await asyncio.gather(steady(), *(slow() for _ in range(40)))
    figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_samples_total[deadline]"] == 40
    await client.until_all_slots_are_back()


async def test_bytes_that_trickle_in_are_a_stream_like_any_other(
    start: Start, connect: Connect, tail: Engine
) -> None:
    """The whole conversation passes a wire that carries a few bytes at a time."""
    server = await start()
    host, port = server.address.split(":")

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(7):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(OSError):
            await asyncio.gather(trickle(reader, there_writer), trickle(there_reader, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as middle:
        address = f"127.0.0.1:{middle.sockets[0].getsockname()[1]}"
        async with grpc.aio.insecure_channel(address) as channel:
            await assert_well(Client(channel, connect(server).bundle), tail)
