"""The cloud over gRPC: the streams ``Infer`` and ``ImageStream`` as links."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from math import inf
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from msgspec.structs import replace

from edge_agent.link import CloudFullError, merge
from protos import co_inference_pb2 as pb
from shared import rpc, wire
from shared.credentials import ClientCredentials, ClientFiles
from shared.errors import LinkLostError, NeucodexError, ProtocolError, RefusedError
from shared.messages import CloudMessage, Draining, EdgeMessage, Open, Opened
from shared.metrics import ConnectionState, Direction, EdgeMetrics, EdgeStage, GrpcType, WireSource
from shared.watched import Watched

log = logging.getLogger(__name__)

OPEN_SECONDS = 10.0
"""A cloud that does not answer Open within this time counts as unreachable."""
WRITE_ERRORS = (grpc.aio.AioRpcError, asyncio.InvalidStateError)
"""What writing to a stream that has ended raises; the second if its end is known already."""
SERVICE = "/neucodex.v1.CoInference/"
LOOK_SECONDS = 1.0
"""Shortest time between two looks whether the files of the credentials have changed."""
ALL_BEGUN = (1 << 32) - 1
"""In Draining: every sample begun is answered."""


class GrpcLink:
    """One ``Infer`` stream, on a connection of its own.

    Messages that become ready while the writer is busy go together. Where the files of the
    credentials have changed, the link says Draining with the next message that comes: the stream
    ends between two samples, and the next one shows the new files.

    Args:
        address: of the cloud, as :func:`shared.rpc.channel` takes it.
        metrics: told of every message and of the connection's state.
        wire_bytes: asked for its counts before the connection closes.
        credentials: shown to the cloud, as they are when the stream is opened; None for none.
        session: whose streams these are, for a balancer on the way; None to leave it open.
    """

    METHOD = "Infer"

    def __init__(
        self,
        address: str,
        metrics: EdgeMetrics,
        wire_bytes: WireSource,
        credentials: Watched[ClientCredentials] | None = None,
        session: str | None = None,
    ) -> None:
        self._address = address
        self._session = session
        self._metrics = metrics
        self._wire_bytes = wire_bytes
        self._credentials = credentials or ClientFiles().watched()
        self._shown = self._credentials.current()
        self._looked = perf_counter()
        self._outbox: deque[EdgeMessage] = deque()
        self._filled = asyncio.Event()
        self._tally = metrics.rpc_client.method(SERVICE + self.METHOD, GrpcType.BIDI_STREAM)
        self._began: float | None = None
        """When the call began that has not been told to have ended."""
        self._writer: asyncio.Task[None] | None = None
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None

    async def open(self, request: Open) -> Opened:
        """Connect and agree; see :meth:`edge_agent.link.CloudLink.open`."""
        self._metrics.connection(ConnectionState.CONNECTING)
        self._channel = rpc.channel(self._address, self._shown)
        method: Any = self._channel.stream_stream(
            SERVICE + self.METHOD,
            request_serializer=self._serialise,
            response_deserializer=self._parse,
        )
        self._began = perf_counter()
        self._tally.started(1)
        self._call = method(metadata=rpc.metadata(self._shown, self._session))
        message, limit = None, asyncio.timeout(OPEN_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with limit:
                with contextlib.suppress(*WRITE_ERRORS):
                    await self._call.write(self._open_message(request))
                message = await self._read()
        if limit.expired():
            raise LinkLostError(
                f"expected {self._address} to answer within {OPEN_SECONDS:g} s, it did not"
            )
        if message is None or message.opened is None:
            raise ProtocolError(f"expected Opened from {self._address}, got {message}")
        self._writer = asyncio.create_task(self._write_outbox())
        self._metrics.connection(ConnectionState.READY)
        return message.opened

    def send(self, message: EdgeMessage) -> None:
        """Put a message into the outbox."""
        merged = merge(self._outbox[-1], message) if self._outbox else None
        if merged is None:
            self._outbox.append(message)
        else:
            self._outbox[-1] = merged
        self._filled.set()

    async def messages(self) -> AsyncIterator[CloudMessage]:
        """Yield what comes; see :meth:`edge_agent.link.CloudLink.messages`."""
        while (message := await self._read()) is not None:
            yield self._renewed(message)

    async def close(self) -> None:
        """Cancel the stream and close its connection."""
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None
        if self._channel is not None:
            channel, self._channel = self._channel, None
            # The call holds our methods: gone from here, it frees its connection at once.
            call, self._call = self._call, None
            call.cancel()
            self._ended("CANCELLED")
            # What the kernel counted is gone with the connection.
            self._wire_bytes.poll()
            await channel.close()
            self._metrics.connection(ConnectionState.IDLE)

    def _renewed(self, message: CloudMessage) -> CloudMessage:
        """Return the message, with Draining if other credentials are to be shown."""
        now = perf_counter()
        if now - self._looked < LOOK_SECONDS or message.draining is not None:
            return message
        self._looked = now
        if self._credentials.current() is self._shown:
            return message
        log.info("other credentials are to be shown to the cloud, by a new stream")
        self._looked = inf  # Said once.
        return replace(message, draining=Draining(ALL_BEGUN))

    def _open_message(self, request: Open) -> Message:
        return wire.edge_message_to_proto(EdgeMessage(open=request))

    def _messages_of(self, message: EdgeMessage) -> Iterator[Message]:
        """Yield the protobuf messages that say it."""
        yield wire.edge_message_to_proto(message)

    async def _write_outbox(self) -> None:
        while True:
            await self._filled.wait()
            while self._outbox:
                for message in self._messages_of(self._outbox.popleft()):
                    try:
                        await self._call.write(message)
                    except WRITE_ERRORS:
                        return  # The reader meets the same end, and tells.
            self._filled.clear()

    async def _read(self) -> CloudMessage | None:
        """Return the next message, or nothing where the stream ended in good order.

        Errors are made from the call's status and do not carry gRPC's own along: its traceback
        would hold the call, and with it the connection, for as long as somebody keeps the error.
        """
        message: Any = grpc.aio.EOF
        with contextlib.suppress(grpc.aio.AioRpcError):
            message = await self._call.read()
        if message is grpc.aio.EOF:
            code = await self._call.code()
            self._ended(code.name)
            if code is not grpc.StatusCode.OK:
                raise await self._error()
            return None
        began = perf_counter()
        result = wire.cloud_message_from_proto(message)
        self._metrics.stage(EdgeStage.UNPACK_REPLY, perf_counter() - began)
        return result

    def _ended(self, code: str) -> None:
        """Tell, once, that the call has ended."""
        if self._began is not None:
            self._tally.handled(code, perf_counter() - self._began)
            self._began = None

    async def _error(self) -> NeucodexError:
        """Return why the stream ended."""
        code, details = await self._call.code(), await self._call.details()
        self._metrics.connection(ConnectionState.TRANSIENT_FAILURE)
        self._metrics.error("receive" if self._writer else "connect", code.name)
        message = f"{self._address}: {code.name}: {details}{self._hint(details or '')}"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            asked_seconds = rpc.pushback_seconds(await self._call.trailing_metadata())
            return CloudFullError(message, asked_seconds)
        if code in rpc.REFUSED_CODES and code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return RefusedError(message)
        # DEADLINE_EXCEEDED ends a stream that was idle for too long: another may be opened.
        return LinkLostError(message)

    def _hint(self, details: str) -> str:
        """Return what a connection without good reason may have failed for."""
        if self._writer or not any(
            sign in details for sign in ("handshake", "erification", "Socket closed")
        ):
            return ""
        pems = self._shown.pems
        if pems is None:
            return " (no TLS was used; the server may expect it)"
        shown = "one was shown" if pems.certificate else "none was shown"
        return (
            " (TLS: expected a server certificate that is valid, of this name and of the "
            f"authorities trusted; the server may expect a certificate too, {shown})"
        )

    def _serialise(self, message: Message) -> bytes:
        data = message.SerializeToString()
        self._tally.sent(1)
        self._metrics.message(len(data), Direction.SENT)
        return data

    def _parse(self, data: bytes) -> pb.CloudMessage:
        self._tally.received(1)
        self._metrics.message(len(data), Direction.RECEIVED)
        return pb.CloudMessage.FromString(data)


class GrpcImageLink(GrpcLink):
    """One ``ImageStream``; a packet is a serialised ``SampleInput``."""

    METHOD = "ImageStream"

    def _open_message(self, request: Open) -> Message:
        # Window, k and codec mean nothing here; the least is within every limit.
        settings = replace(request.settings, window=1, steps_per_packet=1, codec="raw")
        return pb.ImageMessage(
            open=pb.OpenImages(
                protocol_version=request.protocol_version,
                model_digest=request.model_digest,
                settings=wire.settings_to_proto(settings),
                samples_in_flight=request.samples_in_flight,
            )
        )

    def _messages_of(self, message: EdgeMessage) -> Iterator[Message]:
        if message.traces:
            yield pb.ImageMessage(traces=map(wire.trace_to_proto, message.traces))
        for packet in message.packets:
            yield pb.ImageMessage(input=pb.SampleInput.FromString(packet))
        if message.cancels:
            yield pb.ImageMessage(cancels=message.cancels)
