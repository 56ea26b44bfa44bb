"""How a program that runs on asyncio asks the edge daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio
from numpy.typing import NDArray

from edge_agent import exchange
from edge_agent.answers import Answer
from edge_agent.config import DEFAULT_LISTEN
from edge_agent.exchange import Network, Picture
from protos import edge_service_pb2 as pb
from protos.edge_service_pb2_grpc import EdgeServiceStub
from shared.errors import NeucodexError
from shared.events.recording import Events

T = TypeVar("T")
Stream = AsyncIterable[T] | Iterable[T]


class AsyncEdge:
    """A connection to the edge daemon, to be made and used within one event loop.

    Args:
        address: ``unix:PATH`` or ``host:port``, as the daemon's ``listen``.
        timeout_seconds: longest wait for an answer.

    Raises:
        ValueError: ``address`` is none.
    """

    def __init__(self, address: str = DEFAULT_LISTEN, *, timeout_seconds: float = 60.0) -> None:
        self._address = exchange.channel_target(address)
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.aio.insecure_channel(address, options=exchange.CHANNEL_OPTIONS)
        stub: Any = EdgeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._classify, self._classify_stream = stub.Classify, stub.ClassifyStream
        self._status = stub.Status

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def classify(self, picture: Picture, *, deadline_seconds: float = 0.0) -> Answer:
        """Classify one input; arguments and errors as :meth:`edge_agent.Edge.classify`."""
        request = exchange.request_of(picture, deadline_seconds)
        return exchange.answer_of(await self._call(self._classify, request))

    async def classify_stream(
        self, pictures: Stream[Picture]
    ) -> AsyncGenerator[Answer | NeucodexError, None]:
        """Classify inputs as they come; yield, in their order, an answer or an error for each.

        Raises:
            LinkLostError: the daemon is gone.
            Exception: whatever ``pictures`` raised.
        """
        parts = (exchange.part_of(picture) async for picture in _each(pictures))
        async with aclosing(self._stream(parts)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def classify_recording(self, frames: Stream[NDArray[Any]]) -> Answer:
        """Classify one input while it is recorded, as :meth:`edge_agent.Edge.classify_recording`.

        Raises:
            NeucodexError: as :meth:`classify`.
            Exception: whatever ``frames`` raised.
        """
        parts = (exchange.timestep_of(frame) async for frame in _each(frames))
        async with aclosing(self._stream(parts)) as outcomes:
            return exchange.one_of(await anext(outcomes, None))

    async def classify_events(self, events: Events | Stream[Events]) -> Answer:
        """Classify what an event camera saw, as :meth:`edge_agent.Edge.classify_events`.

        Raises:
            NeucodexError: as :meth:`classify`.
            Exception: whatever ``events`` raised.
        """
        network = await self.network()
        if isinstance(events, Events):
            return await self.classify(network.frames(events))
        return await self.classify_recording(_frames(events, network))

    async def status(self) -> dict[str, Any]:
        """Return what the daemon tells of itself; LinkLostError if it does not answer."""
        return exchange.status_of(await self._call(self._status, pb.StatusRequest()))

    async def network(self) -> Network:
        """Return what the network reads and answers; LinkLostError if the daemon is gone."""
        return exchange.network_of(await self._call(self._status, pb.StatusRequest()))

    async def _stream(
        self, parts: AsyncIterator[pb.ClassifyPart]
    ) -> AsyncGenerator[Answer | NeucodexError, None]:
        failed: list[Exception] = []
        call = self._classify_stream(_watched(parts, failed))
        try:
            async for reply in call:
                yield exchange.outcome_of(reply)
        except (grpc.RpcError, asyncio.CancelledError) as error:
            # What a caller's iterable raises cancels the call, seen from here as our own doing.
            if failed:
                raise failed[0] from None
            if isinstance(error, asyncio.CancelledError):
                raise
            raise exchange.error_of(error, self._address) from error
        finally:
            call.cancel()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise exchange.error_of(error, self._address) from error


async def _each(items: Stream[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item


async def _watched(
    parts: AsyncIterator[pb.ClassifyPart], failed: list[Exception]
) -> AsyncIterator[pb.ClassifyPart]:
    """Yield parts to gRPC, and keep the caller's own exception for the caller."""
    try:
        async for part in parts:
            yield part
    except Exception as error:
        failed.append(error)
        raise


async def _frames(pieces: Stream[Events], network: Network) -> AsyncIterator[NDArray[Any]]:
    """Yield each frame when it is complete."""
    framer = network.framer()
    async for piece in _each(pieces):
        for frame in exchange.as_frames(framer.push(network.resized(piece))):
            yield frame
        if framer.complete:
            return
    for frame in exchange.as_frames(framer.end()):
        yield frame
