"""A real server on loopback, and an edge that speaks the protocol by hand."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from cloud_server.config import CloudConfig
from cloud_server.server import CloudServer, create
from protos import co_inference_pb2 as pb
from protos import co_inference_pb2_grpc
from shared import rpc, wire
from shared.codec.codecs import get_codec
from shared.codec.packet import Checksum, SampleEncoder
from shared.engine import onnx_runtime
from shared.engine.base import Array, Engine, zero_state
from shared.exit_rule import Decision, added, decide
from shared.messages import CloudMessage, EdgeMessage, Failure, Open, Opened, Settings, Verdict
from shared.model.bundle import Bundle

NEVER = (1.0, 1.0, 1.0)
"""Alpha that no confidence exceeds."""
ALWAYS = (0.0, 0.0, 0.0)
"""Alpha that every confidence exceeds."""
Codes = NDArray[np.uint8]
Start = Callable[..., Awaitable[CloudServer]]


def random_codes(bundle: Bundle, seed: int) -> Codes:
    """Return one sample's code frames, uint8 ``[T, C', H', W']``."""
    spec = bundle.spec
    return np.random.default_rng(seed).integers(
        0, 2, (spec.timesteps, *spec.code_shape), dtype=np.uint8
    )


def expected_decisions(
    engine: Engine, bundle: Bundle, frames: Sequence[Array], temperature: float | None = None
) -> list[Decision]:
    """Run one sample by itself and judge every timestep, at the bundle's temperature or another."""
    temperature = temperature or bundle.calibration().temperature
    state, total, decisions = zero_state(engine, 1), [0.0] * 10, []
    for timestep, frame in enumerate(frames):
        logits, state = engine.step(frame[np.newaxis], state)
        total = added(total, logits[0].tolist())
        decisions.append(decide(total, timestep, temperature))
    return decisions


class Edge:
    """The edge's end of an ``Infer`` stream."""

    def __init__(self, call: Any, bundle: Bundle, checksum: Checksum) -> None:
        self.call = call
        self.bundle = bundle
        self.checksum = checksum
        self.messages: list[CloudMessage] = []
        self._answers: list[Verdict | Failure] = []

    def packets(
        self, number: int, codes: Codes, *, steps: int = 1, codec: str = "raw"
    ) -> list[bytes]:
        """Encode a sample's frames."""
        spec = self.bundle.spec
        known = get_codec(codec, self.bundle.codecs)
        encoder = SampleEncoder(known, spec.code_shape, spec.timesteps, self.checksum)
        chunks = [codes[start : start + steps] for start in range(0, len(codes), steps)]
        return [packet.to_bytes(number) for chunk in chunks for packet in encoder.encode(chunk)]

    async def send(self, *packets: bytes, **fields: Any) -> None:
        await self.write(wire.edge_message_to_proto(EdgeMessage(packets=packets, **fields)))

    async def write(self, message: Any) -> None:
        """Write a message; where the server has ended the stream, :meth:`status` tells why."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.write(message)

    async def receive(self) -> CloudMessage:
        """Return the next message; the stream must not be over."""
        reply = await self.call.read()
        assert reply is not grpc.aio.EOF, "the stream ended"
        message = wire.cloud_message_from_proto(reply)
        self.messages.append(message)
        self._answers += [*message.verdicts, *message.failures]
        return message

    async def answers(self, count: int) -> list[Any]:
        """Wait for so many verdicts and failures."""
        while len(self._answers) < count:
            await self.receive()
        taken, self._answers = self._answers[:count], self._answers[count:]
        return taken

    async def answer(self) -> Any:
        return (await self.answers(1))[0]

    async def run(self, number: int, codes: Codes) -> list[Verdict]:
        """Send a sample's packets in lock-step until T and return the verdicts."""
        verdicts = []
        for packet in self.packets(number, codes):
            await self.send(packet)
            verdicts.append(await self.answer())
        return verdicts

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the end of the stream and return how it ended."""
        while await self.read_or_end() is not grpc.aio.EOF:
            pass
        return await self.call.code(), await self.call.details() or ""

    async def read_or_end(self) -> Any:
        try:
            return await self.call.read()
        except grpc.aio.AioRpcError:
            return grpc.aio.EOF


class Client:
    """A connection to a server."""

    def __init__(self, channel: grpc.aio.Channel, bundle: Bundle) -> None:
        self.channel = channel
        self.bundle = bundle
        self.stub: Any = co_inference_pb2_grpc.CoInferenceStub(channel)  # type: ignore[no-untyped-call]

    def request(self, **fields: Any) -> Open:
        """Return an Open that the server accepts, but for ``fields``."""
        defaults: dict[str, Any] = {
            "model_digest": bytes.fromhex(self.bundle.digest),
            "settings": Settings(alpha=NEVER),
        }
        return Open(**(defaults | fields))

    @contextlib.asynccontextmanager
    async def stream(self, **fields: Any) -> AsyncIterator[Edge]:
        """Open an ``Infer`` stream."""
        request = self.request(**fields)
        call = self.stub.Infer()
        edge = Edge(call, self.bundle, request.checksum)
        try:
            await edge.send(open=request)
            yield edge
        finally:
            call.cancel()

    @contextlib.asynccontextmanager
    async def opened(self, **fields: Any) -> AsyncIterator[Edge]:
        """Open an ``Infer`` stream and wait for Opened."""
        async with self.stream(**fields) as edge:
            message = await edge.receive()
            assert isinstance(message.opened, Opened)
            yield edge

    async def describe(self) -> pb.DescribeReply:
        reply: pb.DescribeReply = await self.stub.Describe(pb.DescribeRequest())
        return reply

    async def slots_in_use(self) -> int:
        return sum(model.slots_in_use for model in (await self.describe()).models)

    async def until_all_slots_are_back(self) -> None:
        async with asyncio.timeout(10):
            while await self.slots_in_use():
                await asyncio.sleep(0.005)


def scrape(server: CloudServer) -> dict[str, float]:
    """Return the server's metrics by sample name, and by ``name[reason]``, other labels summed."""
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as reply:
        text = reply.read().decode()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            reason = sample.labels.get("reason")
            for key in {sample.name, f"{sample.name}[{reason}]"}:
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums


@pytest.fixture(scope="session")
def tail(tiny_bundle: Bundle) -> Engine:
    return onnx_runtime.load_engine(tiny_bundle, "tail")


@pytest.fixture(scope="session")
def whole(tiny_bundle: Bundle) -> Engine:
    return onnx_runtime.load_engine(tiny_bundle, "whole")


@pytest.fixture
async def start(tiny_bundle: Bundle) -> AsyncIterator[Start]:
    """Start servers of the tiny bundle on free ports, metrics off unless asked for."""
    servers: list[CloudServer] = []

    async def start_one(**overrides: Any) -> CloudServer:
        defaults: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "metrics": "",
            "bundles": (str(tiny_bundle.path),),
            "drain_seconds": 5.0,
        }
        servers.append(await create(CloudConfig(**(defaults | overrides))))
        return servers[-1]

    yield start_one
    for server in servers:
        await server.stop()


@pytest.fixture
async def connect(tiny_bundle: Bundle) -> AsyncIterator[Callable[[CloudServer], Client]]:
    """Connect to servers."""
    channels: list[grpc.aio.Channel] = []

    def connect_one(server: CloudServer) -> Client:
        channels.append(rpc.channel(server.address))
        return Client(channels[-1], tiny_bundle)

    yield connect_one
    for channel in channels:
        await channel.close()


@pytest.fixture
async def client(start: Start, connect: Callable[[CloudServer], Client]) -> Client:
    """A connection to a server with the default limits."""
    return connect(await start())
