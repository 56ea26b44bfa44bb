"""What the live page of the edge shows: figures, all of them read from the metrics, and samples.

Nothing is collected here while nobody looks. The board's thread reads figures and draws samples;
the event loop only leaves the latest view for it.
"""

from __future__ import annotations

from base64 import b64encode
from time import monotonic

import msgspec
from prometheus_client import CollectorRegistry

from edge_agent.answers import Answer
from edge_agent.config import EdgeConfig
from edge_agent.local_api import About
from edge_agent.onlooker import View
from edge_agent.picture import to_png
from edge_agent.policy import Expected, Objective, cost
from edge_agent.switch import Switch
from edge_agent.tuner import Tuner
from shared.codec.bitpack import pack
from shared.errors import NeucodexError
from shared.live.board import Board, Source
from shared.live.figures import watts
from shared.metrics import Baseline, Direction, EdgeStage, Estimate, ExitReason, Placement
from shared.readings import Readings

FIGURES_SECONDS = 0.5
SAMPLE_SECONDS = 0.25
"""Shortest times between two events: six a second."""
ANSWERED = (ExitReason.CONFIDENT, ExitReason.MAX_TIMESTEPS)


class AboutEdge(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change."""

    version: str
    model: str
    digest: str
    split: str
    timesteps: int
    code_shape: tuple[int, ...]
    placement: str
    cloud: str
    """Address; empty where there is none."""


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start."""

    answered: int
    early: int
    """Answered before the last timestep."""
    fallback: int
    """Answered on this device because the cloud did not, or not in time."""
    failed: int
    waiting: int
    """Now."""
    timesteps_used: int
    timesteps_skipped: int
    timesteps_wasted: int


class Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes since the start; the three counts are never mixed."""

    payload: int
    messages: int
    """Both directions."""
    wire: int | None
    """Both directions; None where the system does not tell."""
    features: int
    """Float32 features of the split over full T, of the same samples."""
    raw_input: int
    """Their pixels."""
    payload_ratio: float | None
    """Features over payload, and so on; None before there is any."""
    messages_ratio: float | None
    wire_ratio: float | None


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds with the model in use; means since the start. None where it is not known."""

    sample: float | None
    """Acceptance to answer."""
    head: float | None
    """Head and encoder, one timestep."""
    tail: float | None
    """One timestep of the tail, where it was timed on this device."""
    saved_by_exits: float | None
    """Timesteps skipped, each taken to last as long as the mean one: against full T."""
    saved_by_cloud: float | None
    """Against head and tail on this device over full T, as they were timed; may be negative."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The way to the cloud."""

    state: str
    breaker: str
    trouble: str
    """Why there is no stream; empty where there is no reason."""
    round_trips: int
    round_trip_sum_seconds: float
    round_trip_seconds: float | None
    """Mean of one packet and its verdict."""
    min_rtt_seconds: float | None
    """The kernel's."""
    bytes_per_second: float | None
    """Rate at which the link took what was sent, where that showed."""
    retries: int
    replays: int


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How samples are run."""

    mode: str
    """step, exit or local; empty where there is no choice."""
    window: int
    steps_per_packet: int
    expected_seconds: float | None
    changes: int
    why: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One event ``edge``."""

    time_seconds: float
    """Of this device's monotonic clock."""
    about: AboutEdge
    samples: Samples
    bytes: Bytes
    time: Time
    link: Link
    policy: Policy
    modelled_joules: float
    watts: dict[str, float]
    """Measured now, by source."""


class Packet(msgspec.Struct, frozen=True):
    """Something that was sent."""

    timestep: int
    payload_bytes: int


class Step(msgspec.Struct, frozen=True):
    """A verdict."""

    timestep: int
    confidence: float
    name: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a sample ended."""

    timesteps_used: int
    confidence: float
    name: str
    placement: str
    total_seconds: float
    payload_bytes: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One event ``sample``."""

    sample: int
    timesteps: int
    alpha: tuple[float, ...]
    picture: str
    """PNG in base64; empty where there is none."""
    code_shape: tuple[int, ...]
    codes: tuple[str, ...]
    """Per timestep computed, packed as on the wire, in base64."""
    packets: tuple[Packet, ...]
    verdicts: tuple[Step, ...]
    end: End | None
    """None while it is under way."""


class Showcase:
    """The loops' onlooker: keeps the latest view until it is drawn.

    Args:
        board: on which views are drawn.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        board.add(Source("sample", SAMPLE_SECONDS, self.draw))
        self._under_way: View | None = None
        self._ended: View | None = None

    @property
    def looking(self) -> bool:
        """Whether somebody looks at the page."""
        return self._board.looking

    def see(self, view: View) -> None:
        """Keep a view; one of a sample that has ended goes before those under way."""
        if view.answer is None:
            self._under_way = view
        else:
            self._ended, self._under_way = view, None

    def draw(self) -> Sample | None:
        """Return the latest view as an event; None if there is none since the last."""
        view, self._ended = self._ended, None
        if view is None:
            view, self._under_way = self._under_way, None
        return None if view is None else _as_sample(view)


def _as_sample(view: View) -> Sample:
    spec, manifest = view.bundle.spec, view.bundle.manifest
    frame = view.shown.frame
    png = None if frame is None else to_png(frame, spec, manifest.preprocessing)
    return Sample(
        sample=view.sample,
        timesteps=spec.timesteps,
        alpha=view.alpha,
        picture=_base64(png or b""),
        code_shape=spec.code_shape,
        codes=tuple(_base64(pack(code.reshape(-1))) for code in view.shown.codes),
        packets=tuple(Packet(*packet) for packet in view.packets),
        verdicts=tuple(
            Step(each.timestep, each.confidence, manifest.labels[each.label])
            for each in view.verdicts
        ),
        end=None if view.answer is None else _as_end(view.answer),
    )


def _as_end(answer: Answer) -> End:
    return End(
        timesteps_used=answer.timesteps_used,
        confidence=answer.confidence,
        name=answer.name,
        placement=answer.placement,
        total_seconds=answer.latency.total_seconds,
        payload_bytes=answer.payload_bytes,
    )


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


class Reader:
    """Reads the figures.

    Args:
        registry: of the daemon's metrics.
        loops: the model in use, the link's trouble and the policy's reasons are no metrics.
        about: the daemon.
        config: likewise.
    """

    def __init__(
        self, registry: CollectorRegistry, loops: Switch, about: About, config: EdgeConfig
    ) -> None:
        self._registry = registry
        self._loops = loops
        self._about = about
        self._config = config

    def read(self) -> Figures:
        """Return the figures of this moment."""
        readings, loop = Readings(self._registry.collect()), self._loops.loop
        bundle = loop.bundle
        about = AboutEdge(
            version=self._about.version,
            model=bundle.manifest.name,
            digest=bundle.digest,
            split=bundle.spec.bottleneck.split,
            timesteps=bundle.spec.timesteps,
            code_shape=bundle.spec.code_shape,
            placement=loop.placement.value,
            cloud=self._about.cloud,
        )
        return Figures(
            time_seconds=monotonic(),
            about=about,
            samples=_samples(readings),
            bytes=_bytes(readings),
            time=_time(readings, about),
            link=_link(readings, loop.trouble),
            policy=_policy(readings, about, _why(loop.tuner, self._config)),
            modelled_joules=readings.total("modelled_energy_joules_total"),
            watts=watts(readings),
        )


def _link(readings: Readings, trouble: NeucodexError | None) -> Link:
    return Link(
        state=readings.state("edge_connection_state"),
        breaker=readings.state("edge_breaker_state"),
        trouble="" if trouble is None else str(trouble),
        round_trips=int(readings.total("edge_roundtrip_seconds_count")),
        round_trip_sum_seconds=readings.total("edge_roundtrip_seconds_sum"),
        round_trip_seconds=readings.mean("edge_roundtrip_seconds"),
        min_rtt_seconds=readings.known("edge_tcp_min_rtt_seconds"),
        bytes_per_second=readings.known("edge_link_rate_bytes_per_second"),
        retries=int(readings.total("edge_retries_total")),
        replays=int(readings.total("edge_replays_total")),
    )


def _policy(readings: Readings, about: AboutEdge, why: str) -> Policy:
    model = about.model
    return Policy(
        mode=readings.state("edge_setting_mode", model=model),
        window=int(readings.total("edge_setting_window_timesteps", model=model)),
        steps_per_packet=int(readings.total("edge_setting_packet_timesteps", model=model)),
        expected_seconds=readings.known("edge_expected_latency_seconds", model=model),
        changes=int(readings.total("edge_setting_changes_total")),
        why=why,
    )


def _samples(readings: Readings) -> Samples:
    ends = readings.labels("edge_inferences_total", "exit_reason")
    timesteps = readings.labels("edge_timesteps_total", "outcome")
    fallback = [
        readings.total("edge_inferences_total", placement=Placement.FALLBACK, exit_reason=reason)
        for reason in ANSWERED
    ]
    answered = sum(ends.get(reason, 0) for reason in ANSWERED)
    return Samples(
        answered=int(answered),
        early=int(ends.get(ExitReason.CONFIDENT, 0)),
        fallback=int(sum(fallback)),
        failed=int(sum(ends.values()) - answered),
        waiting=int(readings.total("edge_queue_depth")),
        timesteps_used=int(timesteps.get("used", 0)),
        timesteps_skipped=int(timesteps.get("skipped", 0)),
        timesteps_wasted=int(timesteps.get("wasted", 0)),
    )


def _bytes(readings: Readings) -> Bytes:
    payload = readings.total("edge_payload_bytes_total", direction=Direction.SENT)
    messages = readings.total("edge_message_bytes_total")
    wire = readings.known("edge_wire_bytes_total")
    baselines = readings.labels("edge_baseline_bytes_total", "baseline")
    features = baselines.get(Baseline.FLOAT32_FEATURES, 0)
    return Bytes(
        payload=int(payload),
        messages=int(messages),
        wire=None if wire is None else int(wire),
        features=int(features),
        raw_input=int(baselines.get(Baseline.RAW_INPUT, 0)),
        payload_ratio=_ratio(features, payload),
        messages_ratio=_ratio(features, messages),
        wire_ratio=_ratio(features, wire),
    )


def _time(readings: Readings, about: AboutEdge) -> Time:
    model, stages = about.model, "edge_stage_duration_seconds"
    head = readings.mean(stages, model=model, stage=EdgeStage.HEAD)
    tail = readings.mean(stages, model=model, stage=EdgeStage.TAIL_LOCAL)
    if tail is None:
        tail = readings.known("edge_estimate_seconds", model=model, quantity=Estimate.TAIL_LOCAL)

    def of_answers(what: str, **labels: str) -> float:
        name = f"edge_inference_duration_seconds_{what}"
        return sum(
            readings.total(name, model=model, exit_reason=reason, **labels) for reason in ANSWERED
        )

    answered, seconds = of_answers("count"), of_answers("sum")
    # What a sample waits for others is nothing that fewer timesteps, or another place, would save.
    waited = readings.total(f"{stages}_sum", model=model, stage=EdgeStage.QUEUE)
    busy_seconds = max(0.0, seconds - waited)
    steps = readings.labels("edge_timesteps_total", "outcome", model=model)
    by_cloud = of_answers("count", placement=Placement.CO_INFERENCE)
    saved_by_exits = saved_by_cloud = None
    if answered:
        saved_by_exits = steps["skipped"] * busy_seconds / steps["used"]
    if by_cloud and head is not None and tail is not None:
        at_full_t = about.timesteps * (head + tail)
        saved_by_cloud = by_cloud * (at_full_t - busy_seconds / answered)
    return Time(
        sample=seconds / answered if answered else None,
        head=head,
        tail=tail,
        saved_by_exits=saved_by_exits,
        saved_by_cloud=saved_by_cloud,
    )


def _ratio(baseline: float, count: float | None) -> float | None:
    return baseline / count if count and baseline else None


def _why(tuner: Tuner | None, config: EdgeConfig) -> str:
    """Say why samples are run as they are."""
    if tuner is None:
        return f"placement {config.placement}: nothing is left to choose"
    keys = ("reply_mode", "window", "steps_per_packet")
    fixed = ", ".join(key for key in keys if getattr(config, key) is not None)
    configured = f"configured: {fixed}; " if fixed else ""
    if not tuner.expected:
        return f"{configured}the plainest way until samples have been measured"
    objective = config.goal.objective
    ways = sorted(tuner.expected, key=lambda each: cost(each, objective))
    shown = [each for each in ways if each.choice == tuner.choice]
    shown += [each for each in ways if each.choice != tuner.choice][:1]
    costs = ", else ".join(f"{each.choice}: {_told(each, objective)}" for each in shown)
    return f"{configured}for low {objective}, of {len(ways)} way(s): {costs}"


def _told(expected: Expected, objective: Objective) -> str:
    """Return what a way is expected to cost of what is to be low."""
    value = cost(expected, objective)
    if objective is Objective.LATENCY:
        return f"{1e3 * value:.1f} ms"
    return f"{value:.0f} B on the wire" if objective is Objective.BYTES else f"{1e6 * value:.3g} µJ"
