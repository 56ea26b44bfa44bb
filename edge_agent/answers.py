"""What a caller gets for a sample: an answer, or an error of this module or of shared.errors."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import NeucodexError


class QueueFullError(NeucodexError):
    """As many samples wait as are allowed to."""


class ClosingError(NeucodexError):
    """The daemon is shutting down and did not begin this sample."""


@dataclass(slots=True, kw_only=True)
class Latency:
    """Where one sample's time went, in seconds of the device's monotonic clock.

    Filled while the sample is under way.
    """

    total_seconds: float = 0.0
    """Input accepted to answer."""
    queue_seconds: float = 0.0
    """Waiting for earlier samples."""
    input_seconds: float = 0.0
    """Decoding and normalising the input."""
    head_seconds: float = 0.0
    """Head and encoder, all timesteps."""
    codec_seconds: float = 0.0
    """Turning the code into packets."""
    transport_seconds: float = 0.0
    """Round trips less service: both directions and the gRPC stacks. Where round trips overlap,
    every moment counts once."""
    service_seconds: float = 0.0
    """In the cloud, by its own clock; no more than was waited for."""
    tail_seconds: float = 0.0
    """The rest of the network, where it ran on this device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample's class."""

    label: int
    """Class index."""
    name: str
    """Class name."""
    confidence: float
    """float32 value in [0, 1]."""
    timesteps_used: int
    """1 to T."""
    placement: str
    """Where it was computed: co_inference, edge_only, cloud_only or fallback."""
    latency: Latency
    payload_bytes: int
    """Code bytes sent for this sample, wasted and repeated ones included."""
