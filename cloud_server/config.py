"""The cloud server's settings: one TOML file, flags on top, every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shared import config as settings
from shared.codec.codecs import NAMES
from shared.energy.config import EnergyConfig

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Steps = Annotated[int, msgspec.Meta(ge=1, le=255)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class CloudConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set; ``examples/cloud.toml`` explains each key."""

    listen: str = "127.0.0.1:50051"
    """Where edges connect: ``host:port`` (0 picks a port) or ``unix:PATH``."""
    metrics: str = "127.0.0.1:9464"
    """Where Prometheus scrapes: ``host:port``; empty: nowhere."""
    bundles: tuple[str, ...] = ()
    """Directories of the model bundles to serve."""
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What runs the network."""
    device: str = "cpu"
    """Where the torch engine runs: ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """CPU threads of one call of the onnxruntime engine."""
    slots: Count = 128
    """Samples that can hold membrane state at once, per model."""
    max_batch: Count = 32
    """Most timesteps, each of another sample, in one engine call."""
    max_wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Longest wait of an idle engine for a fuller batch."""
    max_streams: Count = 64
    """Streams at once, over all edges."""
    max_window: Steps = 16
    """Largest window W: timesteps of a sample in flight without their verdict."""
    max_steps_per_packet: Steps = 16
    """Largest k: timesteps in one packet."""
    max_samples_in_flight: Annotated[int, msgspec.Meta(ge=1, le=3)] = 3
    """Largest S: samples of one stream begun and not ended."""
    codecs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = NAMES
    """Codecs that edges may choose from."""
    open_timeout_seconds: Seconds = 10.0
    """A stream whose first message does not come within this time is ended."""
    packet_idle_seconds: Seconds = 10.0
    """Longest silence between two packets of one sample."""
    sample_deadline_seconds: Seconds = 30.0
    """Longest life of a sample on the server."""
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 10.0
    """On SIGTERM: time for the samples under way to finish."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important messages that are logged."""
    log_format: Literal["text", "json"] = "text"
    """How a line of the log looks."""
    energy: EnergyConfig = EnergyConfig()
    """What is measured of the power drawn here, and how the energy model reckons."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.codecs if name not in NAMES]
        if unknown:
            raise ValueError(f"codecs: expected names of {', '.join(NAMES)}, got {unknown}")
        if self.engine == "onnxruntime" and self.device != "cpu":
            raise ValueError(
                f"device: expected 'cpu' with the onnxruntime engine, got {self.device!r}"
            )


def load(path: Path | None, flags: Mapping[str, Any]) -> CloudConfig:
    """Read a configuration; see :func:`shared.config.load`."""
    return settings.load(CloudConfig, path, flags, {"energy": EnergyConfig})
