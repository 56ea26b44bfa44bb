"""What programs and the edge daemon say to each other, whichever client is used."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any

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
from shared.events.framing import ByCount, ByTime, Counts, Framer, Framing, frame_events, saturated
from shared.events.recording import Events

Picture = bytes | str | os.PathLike[str] | Image.Image | NDArray[Any]
"""An image file's content or path, a PIL image, or an array ``[C, H, W]`` or ``[T, C, H, W]``."""
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", wire.MAX_INPUT_BYTES + (1 << 20)),
    # A daemon that was restarted is found at once, not after gRPC's minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What the daemon's network reads and answers."""

    input_shape: tuple[int, int, int]
    """``[C, H, W]`` of one timestep; pictures are resized to it by the daemon."""
    events: bool
    """Whether it reads event frames, a frame per timestep, and not pictures."""
    timesteps: int
    """T."""
    labels: tuple[str, ...]
    """Class names by index."""
    framing: Framing | None
    """How events become its frames; None for pictures, or where its bundle does not say."""

    def frames(self, recording: Events) -> NDArray[np.uint8]:
        """Return a whole recording as input of this network, uint8 ``[T, 2, H, W]``.

        Raises:
            InputError: the network reads no events, or nobody said how it wants them.
        """
        return saturated(frame_events(self.resized(recording), self._known_framing()))

    def framer(self) -> Framer:
        """Return what makes frames of events as they come; pieces must be :meth:`resized`.

        Raises:
            InputError: as :meth:`frames`, or the network must see a recording whole.
        """
        framing = self._known_framing()
        if framing.window is None:
            raise InputError("expected a whole recording: this network's frames are parts of one")
        return Framer(framing, self.input_shape[1:])

    def resized(self, events: Events) -> Events:
        """Return events of any camera at this network's pixels."""
        return events.resized(self.input_shape[1:])

    def _known_framing(self) -> Framing:
        if not self.events:
            raise InputError("expected a network that reads events, this one reads pictures")
        if self.framing is None:
            raise InputError(
                "expected a bundle that says how events become frames: hand over frames instead"
            )
        return self.framing


def channel_target(address: str) -> str:
    """Check an address of the daemon; ValueError if it is none."""
    if not address.startswith("unix:") and ":" not in address:
        raise ValueError(f"expected unix:PATH or host:port, got {address!r}")
    return address


def request_of(picture: Picture, deadline_seconds: float = 0.0) -> pb.ClassifyRequest:
    """Return the request for one input; OSError if it is a path that cannot be read."""
    data = wire.input_to_proto(_data(picture))
    return pb.ClassifyRequest(input=data, deadline_seconds=deadline_seconds)


def part_of(picture: Picture) -> pb.ClassifyPart:
    """Return a whole input as part of a stream; OSError as :func:`request_of`."""
    return pb.ClassifyPart(whole=request_of(picture))


def timestep_of(frame: NDArray[Any]) -> pb.ClassifyPart:
    """Return one timestep of a recording as part of a stream."""
    return pb.ClassifyPart(timestep=pb.Timestep(frame=wire.array_to_proto(frame)))


def as_frames(counts: list[Counts]) -> list[NDArray[np.uint8]]:
    """Return event counts as frames that can be sent."""
    return [saturated(each) for each in counts]


def answer_of(reply: pb.ClassifyReply) -> Answer:
    """Return the answer in a reply."""
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


def outcome_of(reply: pb.ClassifyReply) -> Answer | NeucodexError:
    """Return the answer in a reply of a stream, or the error, ``STATUS: message``."""
    if not reply.error:
        return answer_of(reply)
    status, _, message = reply.error.partition(": ")
    return _error(status, message)


def one_of(outcome: Answer | NeucodexError | None) -> Answer:
    """Return the answer to a recording; raise the error it got instead."""
    if outcome is None:
        raise InputError("expected at least one timestep, got none")
    if isinstance(outcome, NeucodexError):
        raise outcome
    return outcome


def status_of(reply: pb.StatusReply) -> dict[str, Any]:
    """Return what the daemon told of itself, but for its network."""
    fields = (field.name for field in reply.DESCRIPTOR.fields if field.name != "network")
    return {name: getattr(reply, name) for name in fields} | {
        "model_digest": reply.model_digest.hex()
    }


def network_of(reply: pb.StatusReply) -> Network:
    """Return what the daemon told of its network."""
    told = reply.network
    channels, height, width = told.input_shape
    framing: Framing | None = None
    if told.framed_by == "time":
        framing = ByTime(timesteps=told.timesteps, window_microseconds=told.window or None)
    elif told.framed_by == "count":
        framing = ByCount(timesteps=told.timesteps, window_events=told.window or None)
    return Network(
        input_shape=(channels, height, width),
        events=told.events,
        timesteps=told.timesteps,
        labels=tuple(told.labels),
        framing=framing,
    )


def error_of(error: grpc.RpcError, address: str) -> NeucodexError:
    """Return the error that a call ended with."""
    # What grpc raises from a call is both a call and an error.
    call: Any = error
    return _error(call.code().name, f"{address}: {call.details()}")


def _data(picture: Picture) -> bytes | NDArray[Any]:
    if isinstance(picture, bytes | np.ndarray):
        return picture
    if isinstance(picture, Image.Image):
        # Without loss, and at its own size: the daemon resizes as the network wants it.
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    with open(picture, "rb") as file:
        return file.read()


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
