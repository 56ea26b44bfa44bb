"""The edge daemon's settings: one TOML file, flags on top, every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge_agent.policy import Fixed, Goal, Objective
from edge_agent.source_config import AnySource, check_names
from shared import config as settings
from shared.addresses import is_local
from shared.codec.codecs import NAMES
from shared.codec.packet import Checksum
from shared.credentials import ClientFiles, File
from shared.energy.config import EnergyConfig
from shared.messages import ReplyMode
from shared.web import AccessKeys

DEFAULT_LISTEN = "unix:/run/neucodex/edge.sock"
DEFAULT_METRICS = "127.0.0.1:9465"
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Steps = Annotated[int, msgspec.Meta(ge=1, le=255)]
Alpha = Annotated[float, msgspec.Meta(ge=0, le=1)]
Address = Annotated[str, msgspec.Meta(min_length=1)]


class EdgeConfig(AccessKeys, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set; ``examples/edge.toml`` explains each key."""

    bundle: Annotated[str, msgspec.Meta(min_length=1)]
    """Directory of the model bundle."""
    cloud: Address = "127.0.0.1:50051"
    """``host:port`` of the cloud server; ``dns:///name:port`` or several of ``IP:port`` with commas
    between for equal servers."""
    tls_ca: File | None = None
    """PEM certificates of who may have signed the cloud's, or ``default`` for the public
    authorities; absent: no TLS."""
    tls_certificate: File | None = None
    """PEM certificate that this device shows to the cloud."""
    tls_key: File | None = None
    """Its PEM private key."""
    tls_server_name: Address | None = None
    """Name that the cloud's certificate must have; absent: the host in ``cloud``."""
    token_file: File | None = None
    """File with the token that this device shows to the cloud."""
    insecure: bool = False
    """Whether to do without TLS even if the cloud is not on this machine."""
    placement: Literal["co_inference", "edge_only", "cloud_only"] = "co_inference"
    """Where the network runs."""
    network: Literal["split", "whole"] = "split"
    """With ``edge_only``: head and tail, or the network before the bottleneck was inserted."""
    listen: Address = DEFAULT_LISTEN
    """Where applications connect: ``unix:PATH`` or ``127.0.0.1:PORT`` (0 picks a port)."""
    metrics: str = DEFAULT_METRICS
    """Where Prometheus scrapes: ``host:port``; empty: nowhere."""
    alpha: Alpha | tuple[Alpha, ...] | None = None
    """Exit thresholds: one number, or one per timestep but the last."""
    loss_budget: float | str | None = None
    """Points of accuracy that early exits may lose, of those the bundle is calibrated for: takes
    the budget's alpha list with fewer timesteps (``pick_alpha`` of :mod:`shared.model.bundle`). Or
    the name of one of the bundle's lists. Instead of ``alpha``."""
    confidence: Literal["max_softmax", "entropy", "margin"] | None = None
    """What is compared with alpha; absent: as the bundle was calibrated. Another one needs
    ``alpha``."""
    objective: Literal["latency", "bytes", "energy"] = "latency"
    """What the policy keeps low with those of the next three keys that are absent."""
    window: Steps | None = None
    """W: timesteps of one sample in flight without their verdict."""
    steps_per_packet: Steps | None = None
    """k: most timesteps in one packet."""
    reply_mode: Literal["step", "exit"] | None = None
    """When the cloud answers: after every packet, or once per sample."""
    deadline_target_seconds: Seconds | None = None
    """With objective ``bytes`` or ``energy``: an answer within this time comes first."""
    choose_local: bool = False
    """Whether the policy may also run samples wholly on this device."""
    samples_in_flight: Annotated[int, msgspec.Meta(ge=1, le=3)] = 1
    """S: samples begun and not ended."""
    checksum: Literal["none", "crc16"] | None = None
    """Whether every packet carries two bytes that guard its bits; absent: ``none`` with TLS, which
    guards them itself, else ``crc16``."""
    codec: str | None = None
    """Codec of the code; absent: the bundle's."""
    fallback: Literal["none", "local"] = "none"
    """What becomes of a sample that the cloud cannot answer: an error, or it is finished here."""
    deadline_seconds: Seconds = 10.0
    """A sample's time from its acceptance."""
    timestep_deadline_seconds: Seconds = 5.0
    """Longest silence of a cloud that owes a word on a timestep; then another stream is opened.
    With ``co_inference`` only: whole inputs may take long to send."""
    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 64
    """Most samples that wait to be begun."""
    queue_policy: Literal["refuse", "block", "drop_oldest"] = "refuse"
    """What becomes of one more: an error, its caller waits, or the oldest one makes room."""
    engine: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What runs the network here."""
    device: str = "cpu"
    """Where the torch engine runs: ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """CPU threads of one call of the onnxruntime engine."""
    providers: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    """What the onnxruntime engine runs on, by ONNX Runtime's names, the first one first, the CPU
    after them: ``XnnpackExecutionProvider``, ``CUDAExecutionProvider``, ..."""
    head: Literal["float", "int8"] = "float"
    """Which head of the bundle runs here; the int8 one is there if ``neucodex-train quantise`` made
    it."""
    reconnect_min_seconds: Seconds = 0.1
    """First wait before the cloud is tried again; doubles from then on."""
    reconnect_max_seconds: Seconds = 5.0
    """Longest such wait."""
    breaker_failures: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    """Attempts in a row without a stream after which the cloud is left alone."""
    breaker_probe_seconds: Seconds = 30.0
    """How often it is then asked again."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important messages that are logged."""
    log_format: Literal["text", "json"] = "text"
    """How a line of the log looks."""
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Share of the samples that are traced with OpenTelemetry; above 0 it takes the extra
    ``otel``."""
    energy: EnergyConfig = EnergyConfig()
    """What is measured of the power drawn here, and how the energy model reckons."""
    sources: tuple[AnySource, ...] = ()
    """Inputs that the daemon classifies by itself."""

    def __post_init__(self) -> None:
        self.metrics_access.check(self.metrics, insecure=self.insecure)
        if self.placement != "edge_only":
            self.credentials.check(self.cloud, insecure=self.insecure)
        _check_steps(self)
        _check_policy(self)
        check_names(self.sources)
        if self.alpha is not None and self.loss_budget is not None:
            raise ValueError("loss_budget: expected only one of alpha and loss_budget, got both")
        if self.network == "whole" and self.placement != "edge_only":
            raise ValueError(
                f"network: expected 'split' unless placement is 'edge_only', got 'whole' with "
                f"{self.placement!r}"
            )
        if self.codec is not None and self.codec not in NAMES:
            raise ValueError(f"codec: expected one of {', '.join(NAMES)}, got {self.codec!r}")
        if self.engine == "onnxruntime" and self.device != "cpu":
            raise ValueError(
                f"device: expected 'cpu' with the onnxruntime engine, got {self.device!r}"
            )
        if self.engine == "torch" and (self.providers or self.head == "int8"):
            key = "providers" if self.providers else "head"
            raise ValueError(f"{key}: expected the onnxruntime engine with it, got 'torch'")
        if self.reconnect_max_seconds < self.reconnect_min_seconds:
            raise ValueError(
                f"reconnect_max_seconds: expected at least reconnect_min_seconds "
                f"({self.reconnect_min_seconds}), got {self.reconnect_max_seconds}"
            )
        if not is_local(self.listen):
            raise ValueError(
                f"listen: expected unix:PATH or a loopback host:port, got {self.listen!r}"
            )

    @property
    def uncounted(self) -> EdgeConfig:
        """The same without operations counted: for runs that are short, or timed."""
        energy = msgspec.structs.replace(self.energy, count_every=0)
        return msgspec.structs.replace(self, energy=energy)

    @property
    def credentials(self) -> ClientFiles:
        """What this device shows to the cloud and asks of it."""
        return ClientFiles(
            tls_ca=self.tls_ca,
            tls_certificate=self.tls_certificate,
            tls_key=self.tls_key,
            tls_server_name=self.tls_server_name,
            token_file=self.token_file,
        )

    @property
    def check(self) -> Checksum:
        """What guards the bits of a packet."""
        encrypted = self.tls_ca is not None
        return Checksum(self.checksum or ("none" if encrypted else "crc16"))

    @property
    def goal(self) -> Goal:
        """What the policy is to reach."""
        return Goal(
            objective=Objective(self.objective), deadline_seconds=self.deadline_target_seconds
        )

    @property
    def fixed(self) -> Fixed:
        """What the policy is to leave alone."""
        return Fixed(
            reply_mode=None if self.reply_mode is None else ReplyMode(self.reply_mode),
            window=self.window,
            steps_per_packet=self.steps_per_packet,
        )


def _check_steps(config: EdgeConfig) -> None:
    window, steps = config.window, config.steps_per_packet
    if config.reply_mode != "exit" and window is not None and steps is not None and steps > window:
        raise ValueError(
            f"steps_per_packet: expected at most the window ({window}) unless reply_mode is "
            f"'exit', got {steps}"
        )


def _check_policy(config: EdgeConfig) -> None:
    if config.deadline_target_seconds is not None and config.objective == "latency":
        raise ValueError(
            "deadline_target_seconds: expected objective 'bytes' or 'energy' with it, got "
            "'latency', which is kept as low as can be anyway"
        )
    if config.choose_local and config.fallback != "local":
        raise ValueError(
            f"choose_local: expected fallback 'local' with it, got {config.fallback!r}"
        )


def load(path: Path | None, flags: Mapping[str, Any]) -> EdgeConfig:
    """Read a configuration; see :func:`shared.config.load`."""
    return settings.load(EdgeConfig, path, flags, {"energy": EnergyConfig})
