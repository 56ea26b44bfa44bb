"""The rest of the network in this process, behind the same protocol as the cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np

from edge_agent.local_network import LocalNetwork, LocalRun
from shared.codec.codecs import get_codec
from shared.codec.packet import MAX_TIMESTEPS, SampleDecoder, parse_header
from shared.engine.base import Array
from shared.errors import (
    CheckError,
    CodecError,
    EngineError,
    NeucodexError,
    ProtocolError,
    SampleCode,
)
from shared.exit_rule import exits
from shared.messages import (
    MAX_SAMPLES_IN_FLIGHT,
    CloudMessage,
    EdgeMessage,
    Failure,
    Open,
    Opened,
    ReplyMode,
    Settings,
    Verdict,
)
from shared.model.bundle import Bundle
from shared.worker import Worker

Decode = Callable[[bytes], Array]
"""Packet to frames ``[k, ...]``; CodecError if it is none."""


def code_decoder(bundle: Bundle, request: Open, settings: Settings) -> Decode:
    """Return what decodes one sample's code packets, uint8 ``[k, C', H', W']``."""
    codec, spec = get_codec(settings.codec, bundle.codecs), bundle.spec
    decoder = SampleDecoder(codec, spec.code_shape, spec.timesteps, request.checksum)
    return lambda packet: decoder.decode(packet)[1]


def frame_decoder(bundle: Bundle, request: Open, settings: Settings) -> Decode:
    """Return what decodes packets of whole frames, float32 ``[1, C, H, W]``."""
    shape = (1, *bundle.spec.input_shape)
    return lambda packet: np.frombuffer(packet, "<f4", offset=1).reshape(shape)


@dataclass(slots=True)
class _Live:
    """A sample that has begun and not ended."""

    settings: Settings
    decode: Decode
    run: LocalRun
    told_seconds: float = 0.0
    """Of the run's seconds, those in verdicts already."""


class LocalLink:
    """A stream whose other end is a part of the network on this device.

    Messages are worked off in the order they were sent, on a thread of their own.

    Args:
        network: the tail, or the whole network.
        bundle: that it belongs to.
        decoder: how packets become the network's input.
        worker: the thread to compute on.
    """

    def __init__(
        self,
        network: LocalNetwork,
        bundle: Bundle,
        decoder: Callable[[Bundle, Open, Settings], Decode],
        worker: Worker,
    ) -> None:
        self._network = network
        self._bundle = bundle
        self._decoder = decoder
        self._worker = worker
        self._inbox: asyncio.Queue[EdgeMessage | None] = asyncio.Queue()
        self._live: dict[int, _Live] = {}
        self._next = 0

    async def open(self, request: Open) -> Opened:
        """Agree to everything that the protocol allows."""
        self._request = request
        self._settings = request.settings
        return Opened(
            max_window=MAX_TIMESTEPS,
            max_steps_per_packet=MAX_TIMESTEPS,
            samples_in_flight=min(request.samples_in_flight, MAX_SAMPLES_IN_FLIGHT),
            codecs=tuple(self._bundle.codecs),
            packet_idle_seconds=0.0,
            model="local",
        )

    def send(self, message: EdgeMessage) -> None:
        """Queue a message."""
        self._inbox.put_nowait(message)

    async def messages(self) -> AsyncIterator[CloudMessage]:
        """Compute and yield verdicts until the link is closed.

        Raises:
            ProtocolError: a packet of no sample.
        """
        while (message := await self._inbox.get()) is not None:
            self._settings = message.settings or self._settings
            for packet in message.packets:
                reply = await self._worker.run(self._packet, packet)
                if reply is not None:
                    yield reply
            for number in message.cancels:
                self._live.pop(number, None)

    async def close(self) -> None:
        """Let :meth:`messages` end."""
        self._inbox.put_nowait(None)

    def _packet(self, packet: bytes) -> CloudMessage | None:
        number = self._number(packet)
        live = self._live.get(number)
        if live is None:
            return None
        try:
            verdict = self._judge(number, live, live.decode(packet))
        except (CodecError, EngineError) as error:
            del self._live[number]
            return CloudMessage(failures=(Failure(number, _code(error), str(error)),))
        return None if verdict is None else CloudMessage(verdicts=(verdict,))

    def _number(self, packet: bytes) -> int:
        """Return the number of a packet's sample, and begin the sample with its first packet."""
        header = parse_header(packet)
        if not header.first:
            number = self._next - 1 - (self._next - 1 - header.sample_mod4) % 4
            if number < 0:
                raise ProtocolError("expected the first packet of a sample, got a later one")
            return number
        number, settings = self._next, self._settings
        run = self._network.begin(settings.confidence)
        decode = self._decoder(self._bundle, self._request, settings)
        self._live[number] = _Live(settings, decode, run)
        self._next += 1
        return number

    def _judge(self, number: int, live: _Live, frames: Array) -> Verdict | None:
        """Run a packet's timesteps up to the one on which the sample exits."""
        for frame in frames:
            timestep = live.run.timestep
            label, confidence = live.run.step(frame)
            exit_ = exits(confidence, timestep, live.settings.alpha)
            if exit_:
                del self._live[number]
                break
        if not exit_ and live.settings.reply_mode is ReplyMode.EXIT:
            return None
        seconds = live.run.seconds - live.told_seconds
        live.told_seconds = live.run.seconds
        return Verdict(number, timestep, label, confidence, seconds)


def _code(error: NeucodexError) -> SampleCode:
    if isinstance(error, CheckError):
        return SampleCode.CHECK_FAILED
    return SampleCode.BAD_PACKET if isinstance(error, CodecError) else SampleCode.WORKER_LOST
