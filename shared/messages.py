"""What the two sides say to each other, as plain values; :mod:`shared.wire` puts them on the wire.

The meaning of every field is told in ``protos/co_inference.proto``. msgspec structs, because a
server makes several per timestep and a frozen data class takes nine times as long to make.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from shared.codec.packet import Checksum
from shared.errors import SampleCode
from shared.exit_rule import Confidence, expand_alpha

PROTOCOL_VERSION = 1
MAX_SAMPLES_IN_FLIGHT = 3
"""S: a packet names its sample modulo 4, so at most three may be under way."""
REMEMBERED = 4
"""Ended samples both sides remember: the residues a late packet or verdict can name."""


class ReplyMode(Enum):
    """When the cloud answers."""

    STEP = "step"
    EXIT = "exit"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How samples are run; holds for the samples that begin after it."""

    alpha: tuple[float, ...]
    """float32 values in [0, 1]: one per timestep but the last, or (not yet resolved) one."""
    confidence: Confidence = Confidence.MAX_SOFTMAX
    reply_mode: ReplyMode = ReplyMode.STEP
    window: int = 1
    steps_per_packet: int = 1
    codec: str = "raw"

    def resolved(self, timesteps: int) -> Settings:
        """Return these settings with alpha expanded to ``timesteps - 1`` values.

        Raises:
            ValueError: alpha has another length than 1 or ``timesteps - 1``.
        """
        alpha = self.alpha[0] if len(self.alpha) == 1 else self.alpha
        return msgspec.structs.replace(self, alpha=expand_alpha(alpha, timesteps))


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """The edge's first message."""

    model_digest: bytes
    settings: Settings
    checksum: Checksum = Checksum.CRC16
    samples_in_flight: int = 1
    want_logits: bool = False
    protocol_version: int = PROTOCOL_VERSION


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud's first message: its limits and what was agreed."""

    max_window: int
    max_steps_per_packet: int
    samples_in_flight: int
    codecs: tuple[str, ...]
    packet_idle_seconds: float
    model: str
    protocol_version: int = PROTOCOL_VERSION


class Verdict(msgspec.Struct, frozen=True):
    """What the tail thinks of a sample after a timestep."""

    sample: int
    timestep: int
    label: int
    confidence: float
    service_seconds: float = 0.0
    logits: tuple[float, ...] = ()


class Failure(msgspec.Struct, frozen=True):
    """A sample that ended without an answer (``SampleError`` on the wire)."""

    sample: int
    code: SampleCode
    message: str
    retry_after_seconds: float = 0.0


class Draining(msgspec.Struct, frozen=True):
    """The server is about to stop; samples after ``last_sample`` were not begun."""

    last_sample: int | None


class TraceContext(msgspec.Struct, frozen=True):
    """Which trace a sample belongs to (``Trace`` on the wire)."""

    sample: int
    traceparent: str


class EdgeMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One upward message; takes effect in the order open, settings, traces, packets, cancels."""

    open: Open | None = None
    settings: Settings | None = None
    packets: tuple[bytes, ...] = ()
    cancels: tuple[int, ...] = ()
    traces: tuple[TraceContext, ...] = ()


class CloudMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One downward message."""

    opened: Opened | None = None
    verdicts: tuple[Verdict, ...] = ()
    failures: tuple[Failure, ...] = ()
    draining: Draining | None = None
    wall_seconds: float | None = None
    """The sender's wall clock, since 1970; told now and then."""
