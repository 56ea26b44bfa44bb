"""How a program on the device asks the edge daemon.

::

    from edge_agent import Edge

    with Edge("unix:/run/neucodex/edge.sock") as edge:
        answer = edge.classify("street.jpg")
        print(answer.name, answer.confidence)
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_agent.answers import Answer, Latency, QueueFullError
from protos import edge_service_pb2 as pb
from shared import wire
from shared.errors import (
    EngineError,
    InputError,
    LinkLostError,
    NeucodexError,
    RefusedError,
    SampleCode,
    SampleError,
)

Picture = bytes | str | os.PathLike[str] | Image.Image | NDArray[Any]
"""An image file's content or path, a PIL image, or an array ``[C, H, W]`` or ``[T, C, H, W]``."""
SERVICE = "/neucodex.v1.EdgeService/"
R = TypeVar("R")


class Edge:
    """A connection to the edge daemon. Safe to share between threads.

    Args:
        address: ``unix:PATH`` or ``host:port``, as the daemon's ``listen``.
        timeout_seconds: longest wait for an answer.
    """

    def __init__(self, address: str, *, timeout_seconds: float = 60.0) -> None:
        self._address = address
        self._timeout_seconds = timeout_seconds
        options = [
            ("grpc.max_send_message_length", wire.MAX_INPUT_BYTES + (1 << 20)),
            # A daemon that was restarted is found at once, not after gRPC's minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self._classify: Any = self._channel.unary_unary(
            SERVICE + "Classify",
            request_serializer=pb.ClassifyRequest.SerializeToString,
            response_deserializer=pb.ClassifyReply.FromString,
        )
        self._classify_stream: Any = self._channel.stream_stream(
            SERVICE + "ClassifyStream",
            request_serializer=pb.ClassifyPart.SerializeToString,
            response_deserializer=pb.ClassifyReply.FromString,
        )
        self._status: Any = self._channel.unary_unary(
            SERVICE + "Status",
            request_serializer=pb.StatusRequest.SerializeToString,
            response_deserializer=pb.StatusReply.FromString,
        )

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
            picture: the input.
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
        request = pb.ClassifyRequest(
            input=wire.input_to_proto(_data(picture)), deadline_seconds=deadline_seconds
        )
        return _answer(self._call(self._classify, request))

    def classify_stream(self, pictures: Iterable[Picture]) -> Iterator[Answer | NeucodexError]:
        """Classify inputs as they come; yield, in their order, an answer or an error for each.

        Raises:
            LinkLostError: the daemon is gone.
        """
        parts = (
            pb.ClassifyPart(whole=pb.ClassifyRequest(input=wire.input_to_proto(_data(picture))))
            for picture in pictures
        )
        yield from self._stream(parts)

    def classify_recording(self, frames: Iterable[NDArray[Any]]) -> Answer:
        """Classify one input while it is recorded: a frame ``[C, H, W]`` per timestep.

        Raises:
            NeucodexError: as :meth:`classify`.
        """
        replies = self._stream(_timesteps(frames))
        answer = next(replies, None)
        if answer is None:
            raise InputError("expected at least one timestep, got none")
        if isinstance(answer, NeucodexError):
            raise answer
        return answer

    def status(self) -> dict[str, Any]:
        """Return what the daemon tells of itself; LinkLostError if it does not answer."""
        reply = self._call(self._status, pb.StatusRequest())
        values = {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}
        return values | {"model_digest": reply.model_digest.hex()}

    def _stream(self, parts: Iterator[pb.ClassifyPart]) -> Iterator[Answer | NeucodexError]:
        call = self._classify_stream(parts)
        try:
            for reply in call:
                yield _failed(reply.error) if reply.error else _answer(reply)
        except grpc.RpcError as error:
            raise _error(error.code().name, f"{self._address}: {error.details()}") from error
        finally:
            call.cancel()

    def _call(self, method: Callable[..., R], request: Any) -> R:
        try:
            return method(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            # What grpc raises from a call is both a call and an error.
            call: Any = error
            raise _error(call.code().name, f"{self._address}: {call.details()}") from error


def _data(picture: Picture) -> bytes | NDArray[Any]:
    if isinstance(picture, bytes | np.ndarray):
        return picture
    if isinstance(picture, Image.Image):
        # Without loss, and at its own size: the daemon resizes as the network wants it.
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()
    with open(picture, "rb") as file:
        return file.read()


def _timesteps(frames: Iterable[NDArray[Any]]) -> Iterator[pb.ClassifyPart]:
    """Yield each frame when it comes; the end of the stream ends the recording."""
    for frame in frames:
        yield pb.ClassifyPart(timestep=pb.Timestep(frame=wire.array_to_proto(frame)))


def _answer(reply: pb.ClassifyReply) -> Answer:
    latency = {
        field.name: getattr(reply.latency, field.name) for field in pb.Latency.DESCRIPTOR.fields
    }
    return Answer(
        label=reply.label,
        name=reply.name,
        confidence=reply.confidence,
        timesteps_used=reply.timesteps_used,
        placement=pb.Placement.Name(reply.placement).lower(),
        latency=Latency(**latency),
        payload_bytes=reply.payload_bytes,
    )


def _failed(text: str) -> NeucodexError:
    """Return the error that a reply of a stream carries as ``STATUS: message``."""
    status, _, message = text.partition(": ")
    return _error(status, message)


def _error(status: str, message: str) -> NeucodexError:
    match status:
        case "INVALID_ARGUMENT":
            return InputError(message)
        case "RESOURCE_EXHAUSTED":
            return QueueFullError(message)
        case "DEADLINE_EXCEEDED":
            return SampleError(SampleCode.DEADLINE, message)
        case "FAILED_PRECONDITION":
            return RefusedError(message)
        case "UNAVAILABLE" | "CANCELLED":
            return LinkLostError(message)
        case _:
            return EngineError(f"{status}: {message}")
