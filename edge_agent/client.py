"""How a program on the device asks the edge daemon; :mod:`edge_agent.async_client` with asyncio.

::

    from edge_agent import Edge

    with Edge("unix:/run/neucodex/edge.sock") as edge:
        answer = edge.classify("street.jpg")
        print(answer.name, answer.confidence)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from numpy.typing import NDArray

from edge_agent import exchange
from edge_agent.answers import Answer
from edge_agent.config import DEFAULT_LISTEN
from edge_agent.exchange import Network, Picture
from protos import edge_service_pb2 as pb
from protos.edge_service_pb2_grpc import EdgeServiceStub
from shared.errors import NeucodexError
from shared.events.recording import Events

R = TypeVar("R")


class Edge:
    """A connection to the edge daemon. Safe to share between threads.

    Args:
        address: ``unix:PATH`` or ``host:port``, as the daemon's ``listen``.
        timeout_seconds: longest wait for an answer.

    Raises:
        ValueError: ``address`` is none.
    """

    def __init__(self, address: str = DEFAULT_LISTEN, *, timeout_seconds: float = 60.0) -> None:
        self._address = exchange.channel_target(address)
        self._timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(address, options=exchange.CHANNEL_OPTIONS)
        stub: Any = EdgeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._classify, self._classify_stream = stub.Classify, stub.ClassifyStream
        self._status = stub.Status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def classify(self, picture: Picture, *, deadline_seconds: float = 0.0) -> Answer:
        """Classify one input.

        Args:
            picture: the input: a picture of any size, as a file's content, its path or a PIL
                image; or an array of the network's own shape.
            deadline_seconds: past it there is an error; 0 for the daemon's own.

        Raises:
            InputError: the input cannot be used.
            QueueFullError: too many samples wait.
            SampleError: no answer in time.
            LinkLostError: the daemon, or the cloud behind it, cannot be reached.
            RefusedError: the cloud refuses the daemon.
            EngineError: the computation failed.
            OSError: ``picture`` is a path that cannot be read.
        """
        request = exchange.request_of(picture, deadline_seconds)
        return exchange.answer_of(self._call(self._classify, request))

    def classify_stream(self, pictures: Iterable[Picture]) -> Iterator[Answer | NeucodexError]:
        """Classify inputs as they come; yield, in their order, an answer or an error for each.

        Raises:
            LinkLostError: the daemon is gone.
            Exception: whatever ``pictures`` raised.
        """
        yield from self._stream(map(exchange.part_of, pictures))

    def classify_recording(self, frames: Iterable[NDArray[Any]]) -> Answer:
        """Classify one input while it is recorded: a frame ``[C, H, W]`` per timestep.

        The answer comes as soon as it is certain enough; frames that come later are not used.

        Raises:
            NeucodexError: as :meth:`classify`.
            Exception: whatever ``frames`` raised.
        """
        return exchange.one_of(next(self._stream(map(exchange.timestep_of, frames)), None))

    def classify_events(self, events: Events | Iterable[Events]) -> Answer:
        """Classify what an event camera saw.

        Args:
            events: a recording, whole, or in pieces as it is recorded, of any camera. Times count
                from its start. How they become timesteps is the bundle's business.

        Raises:
            NeucodexError: as :meth:`classify`.
            Exception: whatever ``events`` raised.
        """
        network = self.network()
        if isinstance(events, Events):
            return self.classify(network.frames(events))
        return self.classify_recording(_frames(events, network))

    def status(self) -> dict[str, Any]:
        """Return what the daemon tells of itself; LinkLostError if it does not answer."""
        return exchange.status_of(self._call(self._status, pb.StatusRequest()))

    def network(self) -> Network:
        """Return what the network reads and answers; LinkLostError if the daemon is gone."""
        return exchange.network_of(self._call(self._status, pb.StatusRequest()))

    def _stream(self, parts: Iterable[pb.ClassifyPart]) -> Iterator[Answer | NeucodexError]:
        failed: list[Exception] = []
        call = self._classify_stream(_watched(parts, failed))
        try:
            for reply in call:
                yield exchange.outcome_of(reply)
        except grpc.RpcError as error:
            if failed:
                raise failed[0] from None
            raise exchange.error_of(error, self._address) from error
        finally:
            call.cancel()

    def _call(self, method: Callable[..., R], request: Any) -> R:
        try:
            return method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise exchange.error_of(error, self._address) from error


def _watched(
    parts: Iterable[pb.ClassifyPart], failed: list[Exception]
) -> Iterator[pb.ClassifyPart]:
    """Yield parts on a thread of gRPC's, and keep the caller's own exception for the caller."""
    try:
        yield from parts
    except Exception as error:
        failed.append(error)
        raise


def _frames(pieces: Iterable[Events], network: Network) -> Iterator[NDArray[Any]]:
    """Yield each frame when it is complete."""
    framer = network.framer()
    for piece in pieces:
        yield from exchange.as_frames(framer.push(network.resized(piece)))
        if framer.complete:
            return
    yield from exchange.as_frames(framer.end())
