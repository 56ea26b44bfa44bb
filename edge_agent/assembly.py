"""From a configuration to a loop: which engine, feed and link each placement takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

from edge_agent import feeds
from edge_agent.alpha import choose_alpha, exit_shares
from edge_agent.breaker import Pace
from edge_agent.config import EdgeConfig
from edge_agent.describe import describing
from edge_agent.fallback import Fallback
from edge_agent.grpc_link import GrpcImageLink, GrpcLink
from edge_agent.inputs import Reader
from edge_agent.local_link import LocalLink, code_decoder, frame_decoder
from edge_agent.local_network import LocalNetwork
from edge_agent.loop import EdgeLoop, Options
from edge_agent.observer import Model, Observer
from edge_agent.peer_clock import PeerClock
from edge_agent.tuner import Here, Tuner, Wishes
from shared.addresses import peers
from shared.codec.packet import Checksum
from shared.credentials import ClientCredentials
from shared.energy.operations import EnergyModel, load_model
from shared.engine.base import Engine
from shared.errors import BundleError, ConfigError
from shared.exit_rule import Confidence
from shared.messages import ReplyMode, Settings
from shared.metrics import EdgeMetrics, Part, Placement, QueuePolicy
from shared.model.bundle import HEAD_INT8, HEAD_OPERATIONS, Bundle, Calibration, PartName
from shared.tcp_info import WireCounter
from shared.tracing import Tracing
from shared.watched import Watched
from shared.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What every placement is put together from."""

    config: EdgeConfig
    bundle: Bundle
    calibration: Calibration
    metrics: EdgeMetrics
    worker: Worker
    """The thread of head and input decoding."""
    load: Callable[[PartName], Engine]
    """Makes the engine of a part."""
    tracing: Tracing | None = None
    """Makes traces of samples."""

    @property
    def reader(self) -> Reader:
        """What reads inputs."""
        preprocessing = self.bundle.manifest.preprocessing
        return Reader(self.bundle.spec, preprocessing, self.worker, self.metrics)

    @property
    def head(self) -> feeds.Head:
        """Head and encoder, loaded."""
        config = self.config
        is_remote = config.placement == "co_inference"
        return feeds.Head(
            engine=self.load("head"),
            counting=self._counting(),
            spec=self.bundle.spec,
            operations=self.calibration.operations["head"],
            worker=self.worker,
            codecs=self.bundle.codecs,
            checksum=config.check if is_remote else Checksum.NONE,
            metrics=self.metrics,
        )

    def _counting(self) -> feeds.Counting | None:
        """Return what counts the head's operations, where bundle, engine and settings allow."""
        config, bundle = self.config, self.bundle
        every = config.energy.count_every
        counts = config.engine == "onnxruntime" and config.head == "float"
        if not every or not counts or not bundle.has_file(HEAD_OPERATIONS):
            return None
        from shared.engine.onnx_runtime import load_counting_engine

        graph = bundle.read(HEAD_OPERATIONS)
        engine = load_counting_engine(bundle, "head", graph, threads=config.threads)
        return feeds.Counting(engine, every)

    @cached_property
    def credentials(self) -> Watched[ClientCredentials]:
        """What this device shows to the cloud and asks of it."""
        return self.config.credentials.watched()

    def links(self, kind: type[GrpcLink], wire_bytes: WireCounter) -> Callable[[], GrpcLink]:
        """Return what makes the links of one loop."""
        session = uuid4().hex
        cloud, metrics, credentials = self.config.cloud, self.metrics, self.credentials
        return lambda: kind(cloud, metrics, wire_bytes, credentials, session)

    def options(self, settings: Settings, local: Part | None = None) -> Options:
        """Return the loop's options; ``local`` runs here after the feed."""
        config = self.config
        return Options(
            local_step_joules=0.0 if local is None else self._step_joules(local),
            placement=Placement(config.placement),
            settings=settings,
            clock=PeerClock(self.metrics, config.cloud),
            samples_in_flight=config.samples_in_flight,
            deadline_seconds=config.deadline_seconds,
            queue_limit=config.queue_limit,
            queue_policy=QueuePolicy(config.queue_policy),
            pace=Pace(
                min_seconds=config.reconnect_min_seconds,
                max_seconds=config.reconnect_max_seconds,
                failures=config.breaker_failures,
                probe_seconds=config.breaker_probe_seconds,
            ),
        )

    def settings(self) -> Settings:
        """Return how samples are run over packets: as configured, in lock-step where it is not."""
        config = self.config
        steps = config.steps_per_packet or 1
        return Settings(
            alpha=self.alpha(),
            confidence=Confidence(config.confidence or self.calibration.confidence),
            reply_mode=ReplyMode(config.reply_mode or "step"),
            window=config.window or steps,
            steps_per_packet=steps,
            codec=self.codec(),
        )

    def tuner(
        self, settings: Settings, fallback: Fallback | None, wire_bytes: WireCounter
    ) -> Tuner:
        """Return what chooses the settings that the configuration leaves open."""
        config = self.config
        here = None
        if config.choose_local and fallback is not None:
            probing = partial(describing, config.cloud, self.credentials, self.metrics.rpc_client)
            here = Here(rehearse=fallback.rehearse, probing=probing)
        wishes = Wishes(goal=config.goal, fixed=config.fixed, here=here)
        model = Model(
            exits=exit_shares(self.calibration, settings.alpha),
            check_bytes=config.check.size_bytes,
            head_joules=self._step_joules(Part.HEAD),
            tail_joules=self._step_joules(Part.TAIL),
        )
        return Tuner(settings, wishes, Observer(model), self.metrics, wire_bytes)

    def _step_joules(self, part: Part) -> float:
        """Return the modelled energy of one timestep of a part."""
        return self._energy.joules(self.calibration.operations[part.value], 1)

    @cached_property
    def _energy(self) -> EnergyModel:
        return load_model(self.config.energy)

    def codec(self) -> str:
        """Return the configured codec, else the bundle's; ConfigError if the bundle has it not."""
        name = self.config.codec or self.bundle.manifest.codec
        if name not in self.bundle.codecs:
            known = ", ".join(self.bundle.codecs)
            raise ConfigError(f"codec: expected one of {known} with this bundle, got {name!r}")
        return name

    def alpha(self) -> tuple[float, ...]:
        """Return alpha for T; ConfigError if what is configured does not fit the bundle."""
        return choose_alpha(self.config, self.calibration, self.bundle.spec.timesteps).values

    def network(self, part: Part) -> LocalNetwork:
        """Return a part to run here, not loaded yet."""
        name: PartName = "whole" if part is Part.WHOLE else "tail"
        load = partial(self.load, name)
        return LocalNetwork(part, load, self.calibration, self.metrics)


def load_engine(config: EdgeConfig, bundle: Bundle, part: PartName) -> Engine:
    """Load a part with the configured engine; torch is imported only if it is that.

    Raises:
        ConfigError: the bundle has no int8 head.
        BundleError: the part is absent or damaged.
        EngineError: the device, or a provider, cannot be used.
    """
    if config.engine == "torch":
        from shared.engine import torch_engine

        return torch_engine.load_engine(bundle, part, device=config.device)
    from shared.engine import onnx_runtime

    graph = None
    if part == "head" and config.head == "int8":
        if not bundle.has_file(HEAD_INT8):
            raise ConfigError(
                f"head: expected {HEAD_INT8} in {bundle.path} (neucodex-train quantise makes one), "
                "there is none"
            )
        graph = HEAD_INT8
    return onnx_runtime.load_engine(
        bundle, part, threads=config.threads, providers=config.providers, graph=graph
    )


def build_loop(
    config: EdgeConfig,
    bundle: Bundle,
    metrics: EdgeMetrics,
    load: Callable[[PartName], Engine] | None = None,
    wire_bytes: WireCounter | None = None,
    tracing: Tracing | None = None,
) -> EdgeLoop[Any]:
    """Put a loop together, engines loaded, not started.

    Args:
        config: of the daemon.
        bundle: the model.
        metrics: told of everything.
        load: makes the engine of a part; None for the configured engine.
        wire_bytes: from :func:`count_wire`; None to count anew.
        tracing: makes traces of samples; None for none.

    Raises:
        ConfigError: a value that does not fit the bundle.
        BundleError: a part that is needed is absent or damaged.
        EngineError: the device cannot be used.
    """
    kit = Kit(
        config=config,
        bundle=bundle,
        calibration=bundle.calibration(),
        metrics=metrics,
        worker=Worker("edge-head"),
        load=load or partial(load_engine, config, bundle),
        tracing=tracing,
    )
    if config.placement == "edge_only":
        return _whole_here(kit) if config.network == "whole" else _split_here(kit)
    if wire_bytes is None:
        wire_bytes = count_wire(config, metrics)
    if config.placement == "cloud_only":
        return _cloud_only(kit, wire_bytes)
    return _co_inference(kit, wire_bytes)


def count_wire(config: EdgeConfig, metrics: EdgeMetrics) -> WireCounter:
    """Return what counts the bytes on this process's connections to the cloud, shown by metrics."""
    wire_bytes = WireCounter(peers=peers(config.cloud))
    metrics.watch_wire(wire_bytes, config.cloud)
    return wire_bytes


def _co_inference(kit: Kit, wire_bytes: WireCounter) -> EdgeLoop[feeds.HeadFeed]:
    settings = kit.settings()
    fallback = None
    if kit.config.fallback == "local":
        if not kit.bundle.has("tail"):
            raise BundleError(f"fallback: expected a tail in {kit.bundle.path}, there is none")
        fallback = Fallback(kit.network(Part.TAIL), settings, Worker("edge-fallback"))
    options = replace(
        kit.options(settings, Part.TAIL),
        checksum=kit.config.check,
        timestep_deadline_seconds=kit.config.timestep_deadline_seconds,
        tuner=kit.tuner(settings, fallback, wire_bytes),
    )
    return EdgeLoop(
        kit.bundle,
        options,
        partial(feeds.head_feeds, kit.head, kit.reader),
        kit.links(GrpcLink, wire_bytes),
        kit.metrics,
        None if fallback is None else fallback.finish,
        tracing=kit.tracing,
    )


def _split_here(kit: Kit) -> EdgeLoop[feeds.HeadFeed]:
    tail, worker = kit.network(Part.TAIL), Worker("edge-tail")
    tail.engine()
    return EdgeLoop(
        kit.bundle,
        kit.options(kit.settings(), Part.TAIL),
        partial(feeds.head_feeds, kit.head, kit.reader),
        lambda: LocalLink(tail, kit.bundle, code_decoder, worker),
        kit.metrics,
        tracing=kit.tracing,
    )


def _whole_here(kit: Kit) -> EdgeLoop[feeds.FrameFeed]:
    whole, worker = kit.network(Part.WHOLE), Worker("edge-whole")
    whole.engine()
    return EdgeLoop(
        kit.bundle,
        kit.options(kit.settings(), Part.WHOLE),
        partial(feeds.frame_feeds, kit.reader),
        lambda: LocalLink(whole, kit.bundle, frame_decoder, worker),
        kit.metrics,
        tracing=kit.tracing,
    )


def _cloud_only(kit: Kit, wire_bytes: WireCounter) -> EdgeLoop[feeds.InputFeed]:
    """To the session, an input is one packet of all T timesteps, answered once."""
    timesteps = kit.bundle.spec.timesteps
    settings = Settings(
        alpha=kit.alpha(),
        confidence=kit.settings().confidence,
        reply_mode=ReplyMode.EXIT,
        window=timesteps,
        steps_per_packet=timesteps,
    )
    return EdgeLoop(
        kit.bundle,
        kit.options(settings),
        partial(feeds.input_feeds, timesteps),
        kit.links(GrpcImageLink, wire_bytes),
        kit.metrics,
        tracing=kit.tracing,
    )
