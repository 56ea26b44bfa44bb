"""What this device does to a sample before the link: its input becomes packets.

A feed belongs to one sample. It keeps what it computed, so that the sample can be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.answers import Latency
from edge_agent.inputs import Data, Frames, Reader, Recording, Source
from edge_agent.session import SendPacket
from shared import wire
from shared.codec.codecs import Codec, get_codec
from shared.codec.packet import Checksum, Header, Kind, SampleEncoder
from shared.engine.base import CountingEngine, Engine, zero_state
from shared.errors import InputError
from shared.messages import Settings
from shared.metrics import Basis, EdgeMetrics, EdgeStage, Part
from shared.model.bundle import Operations
from shared.model.spec import NetworkSpec
from shared.worker import Worker


@dataclass(frozen=True, slots=True)
class Packet:
    """Bytes for the link."""

    data: bytes
    timestep: int
    """The first timestep in it."""
    payload_bytes: int
    """Code bits in it, in bytes; 0 where there is no code."""


class Shown(NamedTuple):
    """What people can look at."""

    frame: Data | None
    """The input, its latest timestep where it is being recorded; None before it was read."""
    codes: tuple[NDArray[np.uint8], ...] = ()
    """Of the timesteps computed, ``[C', H', W']`` each."""


class Feed(Protocol):
    """Turns one sample's input into packets, timestep by timestep."""

    @property
    def complete(self) -> bool:
        """Whether the whole input is here."""
        ...

    @property
    def joules(self) -> float:
        """Modelled energy of what has been computed."""
        ...

    async def compute(self, timestep: int) -> None:
        """Compute what the packet of this timestep needs; called in order, once each.

        Raises:
            InputError: the input cannot be used.
            EngineError: the engine failed.
        """
        ...

    def packets(self, send: SendPacket, settings: Settings) -> list[Packet]:
        """Return the packets of timesteps already computed; ``timestep == 0`` starts afresh."""
        ...

    def shown(self) -> Shown:
        """Return what there is to be seen so far."""
        ...


class Counting:
    """Picks the samples whose operations are counted: the first, and one in every so many.

    Args:
        engine: of the head.
        every: how many.
    """

    def __init__(self, engine: CountingEngine, every: int) -> None:
        self._engine = engine
        self._every = every
        self._samples = 0

    def pick(self) -> CountingEngine | None:
        """Return the engine for the next sample if it is one of them."""
        self._samples += 1
        return self._engine if (self._samples - 1) % self._every == 0 else None


@dataclass(frozen=True, kw_only=True)
class Head:
    """Head and encoder as all samples share them."""

    engine: Engine
    counting: Counting | None
    spec: NetworkSpec
    operations: Operations
    """Mean of one timestep."""
    worker: Worker
    codecs: Mapping[str, Codec]
    checksum: Checksum
    metrics: EdgeMetrics


class HeadFeed:
    """Head and encoder run here; packets carry the binary code.

    Args:
        head: shared by all samples.
        frames: the sample's.
        latency: the sample's.
    """

    def __init__(self, head: Head, frames: Frames, latency: Latency) -> None:
        self._head = head
        self._frames = frames
        self._latency = latency
        self._counting = None if head.counting is None else head.counting.pick()
        self._state = zero_state(head.engine, 1)
        self._codes: list[NDArray[np.uint8]] = []
        self._encoder: SampleEncoder | None = None
        self.joules = 0.0
        """Modelled energy of head and encoder so far."""

    @property
    def complete(self) -> bool:
        """Whether the whole input is here."""
        return self._frames.complete

    async def compute(self, timestep: int) -> None:
        """Run head and encoder on the timestep's frame."""
        frame = await self._frames.at(timestep)
        seconds, code, counted = await self._head.worker.run(self._step, frame[np.newaxis])
        self._codes.append(code)
        self._latency.head_seconds += seconds
        metrics = self._head.metrics
        metrics.stage(EdgeStage.HEAD, seconds)
        metrics.spikes(code)
        if counted is None:
            self.joules += metrics.operations(Part.HEAD, self._head.operations, 1)
        else:
            self.joules += metrics.operations(Part.HEAD, counted, 1, Basis.COUNTED)

    def _step(self, x: NDArray[np.float32]) -> tuple[float, NDArray[np.uint8], Operations | None]:
        began, counted = perf_counter(), None
        if self._counting is None:
            code, self._state = self._head.engine.step(x, self._state)
        else:
            code, self._state, ((mac, ac),) = self._counting.count(x, self._state)
            counted = Operations(mac=mac, ac=ac, neuron=self._head.operations.neuron)
        return perf_counter() - began, code[0], counted

    def shown(self) -> Shown:
        """Return frame and codes so far."""
        return Shown(self._frames.latest, tuple(self._codes))

    async def code(self, timestep: int) -> NDArray[np.uint8]:
        """Return the code of a timestep, uint8 ``[C', H', W']``, computing it if need be."""
        while len(self._codes) <= timestep:
            await self.compute(len(self._codes))
        return self._codes[timestep]

    def packets(self, send: SendPacket, settings: Settings) -> list[Packet]:
        """Encode timesteps for the sample's present number."""
        began = perf_counter()
        encoder = self._encoder
        if encoder is None or send.timestep == 0:
            head = self._head
            encoder = self._encoder = SampleEncoder(
                get_codec(settings.codec, head.codecs),
                head.spec.code_shape,
                head.spec.timesteps,
                head.checksum,
                raw=send.raw,
            )
        encoded = encoder.encode(np.stack(self._codes[send.timestep : send.timestep + send.steps]))
        seconds = perf_counter() - began
        self._latency.codec_seconds += seconds
        self._head.metrics.stage(EdgeStage.CODE, seconds)
        return [
            Packet(each.to_bytes(send.number), each.timestep, each.payload_bytes)
            for each in encoded
        ]


class FrameFeed:
    """Nothing is computed before the link: packets carry float32 frames to a network next door.

    Args:
        frames: the sample's.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._ready: list[NDArray[np.float32]] = []
        self.joules = 0.0
        """Nothing is computed."""

    @property
    def complete(self) -> bool:
        """Whether the whole input is here."""
        return self._frames.complete

    async def compute(self, timestep: int) -> None:
        """Wait for the timestep's frame."""
        self._ready.append(await self._frames.at(timestep))

    def packets(self, send: SendPacket, settings: Settings) -> list[Packet]:
        """Return one packet per frame: the header of a raw packet, then the numbers."""
        timesteps = range(send.timestep, send.timestep + send.steps)
        return [Packet(self._packet(send.number, each), each, 0) for each in timesteps]

    def shown(self) -> Shown:
        """Return the frame; there is no code."""
        return Shown(self._frames.latest)

    def _packet(self, number: int, timestep: int) -> bytes:
        header = Header(timestep % 8, timestep == 0, number % 4, Kind.RAW, 1)
        return header.to_bytes() + np.ascontiguousarray(self._ready[timestep]).tobytes()


class InputFeed:
    """The input travels as it came, once, as a serialised ``SampleInput``.

    Args:
        source: what the caller handed over.
        timesteps: T.
    """

    def __init__(self, source: Source, timesteps: int) -> None:
        self._source = source
        self._timesteps = timesteps
        self._data: Data | None = None
        self.joules = 0.0
        """Nothing is computed."""

    @property
    def complete(self) -> bool:
        """Whether the whole input is here."""
        return not isinstance(self._source, Recording) or self._source.complete

    async def compute(self, timestep: int) -> None:
        """Wait until the whole input is here."""
        if self._data is None:
            self._data = await self._gather()

    async def _gather(self) -> Data:
        if not isinstance(self._source, Recording):
            return self._source
        frames = [await self._source.frame(timestep) for timestep in range(self._timesteps)]
        kinds = {(frame.shape, frame.dtype) for frame in frames}
        if len(kinds) > 1:
            raise InputError(
                f"expected frames of one shape and dtype, got {sorted(map(str, kinds))}"
            )
        return np.stack(frames)

    def packets(self, send: SendPacket, settings: Settings) -> list[Packet]:
        """Return the whole input as the only packet."""
        if self._data is None:
            raise ValueError("expected compute() before packets()")
        data = wire.input_to_proto(self._data).SerializeToString()
        return [Packet(data, 0, 0)]

    def shown(self) -> Shown:
        """Return the input; there is no code."""
        return Shown(self._data)


def head_feeds(head: Head, reader: Reader, source: Source, latency: Latency) -> HeadFeed:
    """Make the feed of a sample whose code is sent."""
    return HeadFeed(head, Frames(source, reader, latency), latency)


def frame_feeds(reader: Reader, source: Source, latency: Latency) -> FrameFeed:
    """Make the feed of a sample whose frames are sent."""
    return FrameFeed(Frames(source, reader, latency))


def input_feeds(timesteps: int, source: Source, latency: Latency) -> InputFeed:
    """Make the feed of a sample that is sent as it came."""
    return InputFeed(source, timesteps)
