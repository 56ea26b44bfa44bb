"""The cloud server's settings: one TOML file, flags on top, every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shared import config as settings
from shared.addresses import is_local
from shared.codec.codecs import NAMES
from shared.credentials import File, TlsFiles, check_pair, check_path
from shared.energy.config import EnergyConfig
from shared.sockets import UNIX
from shared.web import AccessKeys

DEFAULT_METRICS = "127.0.0.1:9464"
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Steps = Annotated[int, msgspec.Meta(ge=1, le=255)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class CloudConfig(AccessKeys, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set; ``examples/cloud.toml`` explains each key."""

    listen: str = "127.0.0.1:50051"
    """Where edges connect: ``host:port`` (0 picks a port) or ``unix:PATH``."""
    tls_certificate: File | None = None
    """PEM certificate, shown to edges: the server then speaks TLS alone."""
    tls_key: File | None = None
    """Its PEM private key."""
    tls_client_ca: File | None = None
    """PEM certificates of who may have signed the edges': no other edge can connect then."""
    tokens_file: File | None = None
    """File with the hashes of the tokens of which an edge has to show one."""
    proxies: tuple[str, ...] = ()
    """Subjects of the certificates of proxies that are believed whose certificate they were shown
    (``x-forwarded-client-cert``)."""
    insecure: bool = False
    """Whether others may reach ``listen`` without TLS, or without showing who they are."""
    health: str = ""
    """Where gRPC health answers besides, alone and without TLS, for probes: ``host:port``; empty:
    nowhere."""
    metrics: str = DEFAULT_METRICS
    """Where Prometheus scrapes: ``host:port``; empty: nowhere."""
    bundles: tuple[str, ...] = ()
    """Directories of the model bundles to serve; the first is the default."""
    admin: str = ""
    """Where models are loaded and unloaded while the server runs: ``unix:PATH``; empty: nowhere."""
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What runs the network."""
    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)\Z")] = "cpu"
    """Where the torch engine runs: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where it is
    there, else, with a warning, the CPU."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """CPU threads of one call of the onnxruntime engine."""
    slots: Count = 128
    """Samples that can hold membrane state at once, per model."""
    max_batch: Count = 32
    """Most timesteps, each of another sample, in one engine call."""
    max_wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Longest wait of an idle engine for a fuller batch."""
    engine_timeout_seconds: Seconds = 30.0
    """Longest engine call; one that takes longer is given up and the engine loaded anew."""
    max_streams: Count = 64
    """Streams at once, over all edges."""
    overload_retry_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 1.0
    """What a stream refused because there are too many is told to wait."""
    edge_max_streams: Count | None = None
    """Streams at once of one edge."""
    edge_samples_per_second: Rate | None = None
    """Samples that one edge may begin."""
    edge_bytes_per_second: Rate | None = None
    """Message bytes that one edge may send."""
    edge_fetch_bytes_per_second: Rate | None = None
    """Bytes of model files that one edge is sent; what it asks for beyond that waits."""
    stream_idle_seconds: Seconds | None = None
    """A stream on which nothing comes for so long is ended."""
    stream_life_seconds: Seconds | None = None
    """A stream is ended, between two samples, at this age or up to a fifth before."""
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
    tracing: bool = False
    """Whether samples that an edge traces are traced here too; takes the extra ``otel``."""
    energy: EnergyConfig = EnergyConfig()
    """What is measured of the power drawn here, and how the energy model reckons."""

    def __post_init__(self) -> None:
        _check_access(self)
        self.metrics_access.check(self.metrics, insecure=self.insecure)
        if self.admin and not (self.admin.startswith(UNIX) and is_local(self.admin)):
            raise ValueError(f"admin: expected unix:PATH or nothing, got {self.admin!r}")
        unknown = [name for name in self.codecs if name not in NAMES]
        if unknown:
            raise ValueError(f"codecs: expected names of {', '.join(NAMES)}, got {unknown}")
        if self.engine == "onnxruntime" and self.device != "cpu":
            raise ValueError(
                f"device: expected 'cpu' with the onnxruntime engine, got {self.device!r}"
            )

    @property
    def tls(self) -> TlsFiles | None:
        """The files that TLS takes; None where edges connect without."""
        if self.tls_certificate is None:
            return None
        names = self.tls_certificate, self.tls_key, self.tls_client_ca
        return TlsFiles(*(None if name is None else Path(name) for name in names))


def _check_access(config: CloudConfig) -> None:
    """Check that nobody gets in unencrypted or unknown unless that was asked for."""
    check_pair(config.tls_certificate, config.tls_key)
    if config.tls_client_ca is not None and config.tls_certificate is None:
        raise ValueError("tls_certificate: expected one with tls_client_ca, got none")
    if config.proxies and config.tls_client_ca is None:
        raise ValueError("tls_client_ca: expected one with proxies, which it signed, got none")
    check_path("tokens_file", config.tokens_file)
    if config.insecure or is_local(config.listen):
        return
    if config.tls_certificate is None:
        raise ValueError(
            "tls_certificate: expected one where others than this machine can connect (or "
            f"insecure, which lets them do so unencrypted), got none for {config.listen!r}"
        )
    if config.tls_client_ca is None and config.tokens_file is None:
        raise ValueError(
            "tls_client_ca: expected this or tokens_file, so that edges have to show who they are "
            f"(or insecure, which lets in anybody), got neither for {config.listen!r}"
        )


def load(path: Path | None, flags: Mapping[str, Any]) -> CloudConfig:
    """Read a configuration; see :func:`shared.config.load`."""
    return settings.load(CloudConfig, path, flags, {"energy": EnergyConfig})
