"""Messages to protobuf and back; the only module that knows protobuf.

Everything that arrives is checked here for form: a value outside its enumeration, a digest or an
array of another size than announced is refused before anything is built from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protos import co_inference_pb2 as pb
from shared.codec.packet import Checksum
from shared.errors import InputError, ProtocolError, SampleCode
from shared.exit_rule import Confidence
from shared.messages import (
    CloudMessage,
    Draining,
    EdgeMessage,
    Failure,
    Open,
    Opened,
    ReplyMode,
    Settings,
    TraceContext,
    Verdict,
)

Value = TypeVar("Value")

MAX_INPUT_BYTES = 32 << 20
"""An encoded image or array larger than this is refused."""

_CONFIDENCES: dict[int, Confidence] = {
    pb.CONFIDENCE_UNSPECIFIED: Confidence.MAX_SOFTMAX,
    pb.MAX_SOFTMAX: Confidence.MAX_SOFTMAX,
    pb.ENTROPY: Confidence.ENTROPY,
    pb.MARGIN: Confidence.MARGIN,
}
_REPLY_MODES: dict[int, ReplyMode] = {
    pb.REPLY_MODE_UNSPECIFIED: ReplyMode.STEP,
    pb.STEP: ReplyMode.STEP,
    pb.EXIT: ReplyMode.EXIT,
}
_CHECKSUMS: dict[int, Checksum] = {
    pb.CHECKSUM_UNSPECIFIED: Checksum.NONE,
    pb.NONE: Checksum.NONE,
    pb.CRC16: Checksum.CRC16,
}
_CODES: dict[int, SampleCode] = {int(code): code for code in SampleCode}
_DTYPES: dict[int, np.dtype[np.generic]] = {
    pb.Array.UINT8: np.dtype(np.uint8),
    pb.Array.FLOAT32: np.dtype("<f4"),
}


def _known(table: dict[int, Value], number: int, what: str) -> Value:
    try:
        return table[number]
    except KeyError:
        known = ", ".join(str(key) for key in table)
        raise ProtocolError(f"expected a {what} of {known}, got {number}") from None


def _number(table: dict[int, Value], value: Value) -> int:
    # The last entry, since the first may be the "unspecified" alias.
    return next(number for number, entry in reversed(table.items()) if entry == value)


def settings_to_proto(settings: Settings) -> pb.Settings:
    """Encode settings."""
    return pb.Settings(
        alpha=settings.alpha,
        confidence=_number(_CONFIDENCES, settings.confidence),  # type: ignore[arg-type]
        reply_mode=_number(_REPLY_MODES, settings.reply_mode),  # type: ignore[arg-type]
        window=settings.window,
        steps_per_packet=settings.steps_per_packet,
        codec=settings.codec,
    )


def settings_from_proto(message: pb.Settings) -> Settings:
    """Decode settings, alpha as sent (see :meth:`Settings.resolved`); ProtocolError if wrong."""
    if not all(0 <= value <= 1 for value in message.alpha):
        raise ProtocolError(f"expected alpha values in [0, 1], got {list(message.alpha)}")
    return Settings(
        alpha=tuple(message.alpha),
        confidence=_known(_CONFIDENCES, message.confidence, "confidence"),
        reply_mode=_known(_REPLY_MODES, message.reply_mode, "reply mode"),
        window=message.window,
        steps_per_packet=message.steps_per_packet,
        codec=message.codec,
    )


def _digest(digest: bytes) -> bytes:
    if len(digest) != 32:
        raise ProtocolError(f"expected a model digest of 32 bytes, got {len(digest)}")
    return digest


def _open_to_proto(message: Open) -> pb.Open:
    return pb.Open(
        protocol_version=message.protocol_version,
        model_digest=message.model_digest,
        checksum=_number(_CHECKSUMS, message.checksum),  # type: ignore[arg-type]
        settings=settings_to_proto(message.settings),
        samples_in_flight=message.samples_in_flight,
        want_logits=message.want_logits,
    )


def _open_from_proto(message: pb.Open) -> Open:
    return Open(
        protocol_version=message.protocol_version,
        model_digest=_digest(message.model_digest),
        checksum=_known(_CHECKSUMS, message.checksum, "checksum"),
        settings=settings_from_proto(message.settings),
        samples_in_flight=message.samples_in_flight,
        want_logits=message.want_logits,
    )


def edge_message_to_proto(message: EdgeMessage) -> pb.EdgeMessage:
    """Encode an upward message."""
    return pb.EdgeMessage(
        open=None if message.open is None else _open_to_proto(message.open),
        settings=None if message.settings is None else settings_to_proto(message.settings),
        packets=message.packets,
        cancels=message.cancels,
        traces=map(trace_to_proto, message.traces),
    )


def edge_message_from_proto(message: pb.EdgeMessage) -> EdgeMessage:
    """Decode an upward message.

    Raises:
        ProtocolError: a value outside its range, a digest of another size than 32 bytes.
    """
    return EdgeMessage(
        open=_open_from_proto(message.open) if message.HasField("open") else None,
        settings=settings_from_proto(message.settings) if message.HasField("settings") else None,
        packets=tuple(message.packets),
        cancels=tuple(message.cancels) if message.cancels else (),
        traces=traces_from_proto(message.traces) if message.traces else (),
    )


def trace_to_proto(trace: TraceContext) -> pb.Trace:
    """Encode which trace a sample belongs to."""
    return pb.Trace(sample=trace.sample, traceparent=trace.traceparent)


def traces_from_proto(traces: Iterable[pb.Trace]) -> tuple[TraceContext, ...]:
    """Decode which traces samples belong to."""
    return tuple(TraceContext(each.sample, each.traceparent) for each in traces)


def _opened_to_proto(message: Opened) -> pb.Opened:
    return pb.Opened(
        protocol_version=message.protocol_version,
        max_window=message.max_window,
        max_steps_per_packet=message.max_steps_per_packet,
        samples_in_flight=message.samples_in_flight,
        codecs=message.codecs,
        packet_idle_seconds=message.packet_idle_seconds,
        model=message.model,
    )


def _opened_from_proto(message: pb.Opened) -> Opened:
    if min(message.max_window, message.max_steps_per_packet, message.samples_in_flight) < 1:
        raise ProtocolError(f"expected limits of at least 1 in Opened, got {message}")
    return Opened(
        protocol_version=message.protocol_version,
        max_window=message.max_window,
        max_steps_per_packet=message.max_steps_per_packet,
        samples_in_flight=message.samples_in_flight,
        codecs=tuple(message.codecs),
        packet_idle_seconds=message.packet_idle_seconds,
        model=message.model,
    )


def _fill_verdict(message: pb.Verdict, verdict: Verdict) -> None:
    # Field by field: as keyword arguments it takes a server, which does this all the time, twice
    # as long.
    message.sample = verdict.sample
    message.timestep = verdict.timestep
    message.label = verdict.label
    message.confidence = verdict.confidence
    message.service_microseconds = min(round(verdict.service_seconds * 1e6), 0xFFFFFFFF)
    if verdict.logits:
        message.logits.extend(verdict.logits)


def _verdict_from_proto(verdict: pb.Verdict) -> Verdict:
    if not 0 <= verdict.confidence <= 1:
        raise ProtocolError(f"expected a confidence in [0, 1], got {verdict.confidence}")
    return Verdict(
        verdict.sample,
        verdict.timestep,
        verdict.label,
        verdict.confidence,
        verdict.service_microseconds / 1e6,
        tuple(verdict.logits),
    )


def _failure_to_proto(failure: Failure) -> pb.SampleError:
    return pb.SampleError(
        sample=failure.sample,
        code=int(failure.code),  # type: ignore[arg-type]
        message=failure.message,
        retry_after_seconds=failure.retry_after_seconds,
    )


def _failure_from_proto(failure: pb.SampleError) -> Failure:
    retry_after_seconds = failure.retry_after_seconds
    if not (math.isfinite(retry_after_seconds) and retry_after_seconds >= 0):
        raise ProtocolError(f"expected a retry time of 0 s or more, got {retry_after_seconds}")
    code = _known(_CODES, failure.code, "sample error code")
    return Failure(failure.sample, code, failure.message, retry_after_seconds)


def cloud_message_to_proto(message: CloudMessage) -> pb.CloudMessage:
    """Encode a downward message."""
    encoded = pb.CloudMessage()
    for verdict in message.verdicts:
        _fill_verdict(encoded.verdicts.add(), verdict)
    if message.failures:
        encoded.errors.extend(map(_failure_to_proto, message.failures))
    if message.draining is not None:
        encoded.draining.CopyFrom(pb.Draining(last_sample=message.draining.last_sample))
    if message.opened is not None:
        encoded.opened.CopyFrom(_opened_to_proto(message.opened))
    if message.wall_seconds is not None:
        encoded.wall_microseconds = round(message.wall_seconds * 1e6)
    return encoded


def cloud_message_from_proto(message: pb.CloudMessage) -> CloudMessage:
    """Decode a downward message.

    Raises:
        ProtocolError: a value outside its range.
    """
    draining = None
    if message.HasField("draining"):
        last = message.draining
        draining = Draining(last.last_sample if last.HasField("last_sample") else None)
    return CloudMessage(
        verdicts=tuple(map(_verdict_from_proto, message.verdicts)),
        failures=tuple(map(_failure_from_proto, message.errors)),
        draining=draining,
        opened=_opened_from_proto(message.opened) if message.HasField("opened") else None,
        wall_seconds=message.wall_microseconds / 1e6 if message.wall_microseconds else None,
    )


def array_to_proto(array: NDArray[np.generic]) -> pb.Array:
    """Encode a uint8 or float32 array; InputError for another dtype."""
    for number, dtype in _DTYPES.items():
        if array.dtype == dtype:
            data = np.ascontiguousarray(array, dtype).tobytes()
            return pb.Array(shape=array.shape, dtype=number, data=data)  # type: ignore[arg-type]
    raise InputError(f"expected an array of uint8 or float32, got {array.dtype}")


def array_from_proto(message: pb.Array) -> NDArray[np.generic]:
    """Decode an array ``[C, H, W]`` or ``[T, C, H, W]``.

    Raises:
        InputError: an unknown element type, another rank, or data of another size than the shape
            asks for.
    """
    if message.dtype not in _DTYPES:
        raise InputError(f"expected an array of UINT8 or FLOAT32, got dtype {message.dtype}")
    dtype = _DTYPES[message.dtype]
    shape = tuple(message.shape)
    if len(shape) not in (3, 4):
        raise InputError(f"expected an array [C, H, W] or [T, C, H, W], got shape {shape}")
    expected = math.prod(shape) * dtype.itemsize
    if not 0 < expected <= MAX_INPUT_BYTES:
        raise InputError(
            f"expected 1 to {MAX_INPUT_BYTES} bytes of array, shape {shape} has none "
            f"or more ({expected})"
        )
    if len(message.data) != expected:
        raise InputError(f"expected {expected} bytes for shape {shape}, got {len(message.data)}")
    return np.frombuffer(message.data, dtype).reshape(shape)


def input_to_proto(value: bytes | NDArray[np.generic]) -> pb.SampleInput:
    """Encode a sample's whole input: an image file's bytes or an array."""
    if isinstance(value, bytes):
        return pb.SampleInput(encoded_image=value)
    return pb.SampleInput(array=array_to_proto(value))


def input_from_proto(message: pb.SampleInput) -> bytes | NDArray[np.generic]:
    """Decode a sample's whole input; InputError if there is none or it is too large."""
    kind = message.WhichOneof("kind")
    if kind == "array":
        return array_from_proto(message.array)
    if kind is None or not message.encoded_image:
        raise InputError("expected an encoded image or an array, got nothing")
    if len(message.encoded_image) > MAX_INPUT_BYTES:
        raise InputError(
            f"expected an image of at most {MAX_INPUT_BYTES} bytes, "
            f"got {len(message.encoded_image)}"
        )
    return message.encoded_image
