"""An ``Infer`` stream: code packets in, timesteps for the tail out."""

from __future__ import annotations

import time

from cloud_server.config import CloudConfig
from cloud_server.limits import Visit
from cloud_server.model_store import ServedPart
from cloud_server.session import Action, Begin, Discard, Release, Step
from cloud_server.stream import Stream
from shared.codec.codecs import get_codec
from shared.codec.packet import Checksum, SampleDecoder
from shared.errors import CheckError, CodecError, ProtocolError, SampleCode
from shared.messages import EdgeMessage, Open, Opened, Settings
from shared.tracing import Tracing


class CodeStream(Stream):
    """The samples of one edge session.

    Args:
        part: a tail.
        open_: the edge's first word, its settings resolved.
        opened: what the edge was told.
        config: the server's.
        visit: whose stream it is, and what they may take.
        tracing: goes on with the edge's traces; None for not.

    Raises:
        ProtocolError: the settings exceed the limits.
    """

    def __init__(
        self,
        part: ServedPart,
        open_: Open,
        opened: Opened,
        config: CloudConfig,
        visit: Visit,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(
            part,
            opened,
            open_.settings,
            config,
            visit,
            want_logits=open_.want_logits,
            tracing=tracing,
        )
        self._checksum = open_.checksum
        self._code_shape = part.bundle.spec.code_shape
        self._decoders: dict[int, SampleDecoder] = {}
        self._payloads: dict[int, list[int]] = {}
        """Code bytes of every packet of the samples under way."""
        self._arrived_seconds = 0.0

    def receive(self, message: EdgeMessage, arrived_seconds: float) -> None:
        """Take in one message.

        Args:
            message: not the first one's ``open``.
            arrived_seconds: ``time.perf_counter()`` when it was read.

        Raises:
            ProtocolError: the edge broke the protocol.
        """
        self._arrived_seconds = arrived_seconds
        if message.settings is not None:
            settings = resolved(message.settings, self.part.timesteps)
            self.perform(self.session.settings(settings))
        if message.traces:
            self.announce(message.traces)
        for packet in message.packets:
            slot_free = self.part.scheduler.has_slot()
            hold = self.visit.hold()
            self.perform(self.session.packet(packet, slot_free=slot_free, hold=hold))
        for number in message.cancels:
            self.perform(self.session.cancel(number))

    def carry_out(self, action: Action) -> None:
        """Carry out one action."""
        if isinstance(action, Step):
            self._step(action.sample, action.packet)
        elif isinstance(action, Discard):
            wasted_bytes = payload_bytes(action.size_bytes, action.steps, self._checksum)
            self.part.metrics.wasted(action.steps, wasted_bytes)
        else:
            super().carry_out(action)
            if isinstance(action, Begin):
                self._decoders[action.sample] = self._decoder(action.settings)
                self._payloads[action.sample] = []
            elif isinstance(action, Release):
                del self._decoders[action.sample]
                payloads = self._payloads.pop(action.sample)
                if action.unused_packets:
                    # The scheduler has counted the timesteps that were waiting for it.
                    self.part.metrics.wasted(0, sum(payloads[-action.unused_packets :]))

    def _decoder(self, settings: Settings) -> SampleDecoder:
        codec = get_codec(settings.codec, self.part.bundle.codecs)
        return SampleDecoder(codec, self._code_shape, self.part.timesteps, self._checksum)

    def _step(self, number: int, packet: bytes) -> None:
        """Decode a packet and queue its timesteps."""
        began = time.perf_counter()
        try:
            _, frames = self._decoders[number].decode(packet)
        except CodecError as error:
            is_check = isinstance(error, CheckError)
            code = SampleCode.CHECK_FAILED if is_check else SampleCode.BAD_PACKET
            self.perform(self.session.failed(number, code, str(error)))
            return
        metrics = self.part.metrics
        ended, live = time.perf_counter(), self._live[number]
        metrics.decoded(ended - began)
        size_bytes = payload_bytes(len(packet), len(frames), self._checksum)
        metrics.payload(size_bytes)
        self._payloads[number].append(size_bytes)
        if live.trace is not None:
            live.trace.stage(
                "decode", began, ended, timesteps=len(frames), payload_bytes=size_bytes
            )
        live.feed(frames[:, None], self._arrived_seconds)


def resolved(settings: Settings, timesteps: int) -> Settings:
    """Return the settings for T timesteps; ProtocolError where alpha does not fit."""
    try:
        return settings.resolved(timesteps)
    except ValueError as error:
        raise ProtocolError(str(error)) from error


def payload_bytes(packet_bytes: int, steps: int, checksum: Checksum) -> int:
    """Return a packet's code bytes: what is left without header and check."""
    header_bytes = 2 if steps > 1 else 1
    return max(0, packet_bytes - header_bytes - checksum.size_bytes)
