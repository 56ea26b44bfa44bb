"""Many simulated edges against one cloud: what it answers, how fast, and in which batches.

A simulated edge is the edge daemon's loop, protocol, codec and connection; only its head is
replaced by codes computed before. In a *closed* loop every edge begins a sample when one of its own
has ended; in an *open* loop samples arrive by themselves, at random with a given mean rate, and the
time until an answer runs from the arrival, whether or not an edge was free for it. All edges are in
one process: ``generator_cpu_share`` near 1 says that the generator, not the cloud, was the limit.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from time import perf_counter, process_time
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from edge_agent.answers import Latency, QueueFullError
from edge_agent.assembly import Kit, load_engine
from edge_agent.config import EdgeConfig
from edge_agent.feeds import Packet, Shown
from edge_agent.grpc_link import GrpcLink
from edge_agent.inputs import Source
from edge_agent.loop import EdgeLoop, Options
from edge_agent.session import SendPacket
from examples.scrape import Scrape, scrape
from shared.addresses import peers
from shared.codec.codecs import get_codec
from shared.codec.packet import SampleEncoder
from shared.errors import InputError, LinkLostError, NeucodexError
from shared.messages import Settings
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle
from shared.tcp_info import WireCounter
from shared.worker import Worker

Codes = NDArray[np.uint8]
"""One sample's, ``[T, C', H', W']``."""
OPEN_SECONDS = 30.0
"""Longest wait until every edge has its stream or was refused one."""
POLL_SECONDS = 0.01
STEADY = 0.1
"""Windows whose rates and medians lie within so much of each other are called steady."""


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """How much load."""

    edges: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Closed loop: samples each edge has unanswered."""
    rate_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Open loop: mean arrivals, over all edges; None for a closed loop."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long a level is measured."""

    seconds: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Of one window."""
    windows: Annotated[int, msgspec.Meta(ge=1)] = 3
    warm_up_seconds: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    head_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """What each timestep's head takes on the simulated devices."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one level."""

    level: Level
    seconds: float
    """Measured, over all windows."""
    edges_refused: int
    """Edges that the cloud gave no stream; their samples count as errors."""
    begun: int
    """Samples that began, or arrived, in this time."""
    answered: int
    """Of these, those that got their answer, also later."""
    errors: dict[str, int]
    """Samples without an answer, by what was said; also those of the warm-up."""
    answers_per_second: float
    """Answers that came in this time."""
    latency_mean_seconds: float
    latency_p50_seconds: float
    latency_p90_seconds: float
    latency_p95_seconds: float
    latency_p99_seconds: float
    mean_timesteps: float
    steady: bool
    """Whether rates and medians of the windows agree."""
    window_p50_seconds: list[float]
    window_answers_per_second: list[float]
    generator_cpu_share: float
    """CPU seconds of this process per second."""
    cloud: dict[str, float]
    """What the cloud's own metrics add up to in this time; empty where they are not read."""
    batch_sizes: dict[str, int]
    """Engine calls by size of their batch (upper bound), by the cloud's metrics."""


class RecordedFeed:
    """A sample whose codes are known.

    Args:
        kit: of the loop.
        codes: the sample's.
        head_seconds: what a timestep takes.
    """

    def __init__(self, kit: Kit, codes: Codes, head_seconds: float) -> None:
        self._kit = kit
        self._codes = codes
        self._head_seconds = head_seconds
        self._encoder: SampleEncoder | None = None
        self.joules = 0.0
        """Nothing is computed."""

    @property
    def complete(self) -> bool:
        """Whether the whole input is here."""
        return True

    async def compute(self, timestep: int) -> None:
        """Take as long as the head would."""
        if self._head_seconds:
            await asyncio.sleep(self._head_seconds)

    def packets(self, send: SendPacket, settings: Settings) -> list[Packet]:
        """Encode timesteps for the sample's present number."""
        if self._encoder is None or send.timestep == 0:
            bundle = self._kit.bundle
            self._encoder = SampleEncoder(
                get_codec(settings.codec, bundle.codecs),
                bundle.spec.code_shape,
                bundle.spec.timesteps,
                self._kit.config.check,
                raw=send.raw,
            )
        frames = self._codes[send.timestep : send.timestep + send.steps]
        return [
            Packet(each.to_bytes(send.number), each.timestep, each.payload_bytes)
            for each in self._encoder.encode(frames)
        ]

    def shown(self) -> Shown:
        """Return that nothing can be seen."""
        return Shown(None)


Edge = EdgeLoop[RecordedFeed]


@dataclass(slots=True)
class Trace:
    """What happened to the samples."""

    began: list[float] = field(default_factory=list)
    answered: list[tuple[float, float, int]] = field(default_factory=list)
    """When a sample began, when it was answered, timesteps used."""
    failed: Counter[str] = field(default_factory=Counter)
    """Samples without an answer, by why."""

    async def follow(self, edge: Edge, codes: Codes, began: float) -> bool:
        """Run a sample that began, or arrived, at ``began``; say whether it was answered."""
        self.began.append(began)
        try:
            answer = await edge.submit(codes)
        except NeucodexError as error:
            full = isinstance(error, QueueFullError)
            self.failed["the edge's queue is full" if full else str(error)] += 1
            return False
        self.answered.append((began, perf_counter(), answer.timesteps_used))
        return True


class Fleet:
    """Simulated edges with open streams; made by :func:`fleet`.

    Args:
        edges: their loops.
        samples: codes that they play in turn.
        registry: of the metrics they share.
    """

    def __init__(
        self, edges: Sequence[Edge], samples: Sequence[Codes], registry: CollectorRegistry
    ) -> None:
        self.edges = edges
        self.registry = registry
        self._samples = samples
        self._number = count()

    def told(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's series that carry these labels, over all edges."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"neucodex_{name}" and labels.items() <= sample.labels.items()
        )

    def next_sample(self) -> Codes:
        """Return codes, each of the samples in turn."""
        return self._samples[next(self._number) % len(self._samples)]

    async def closed(self, trace: Trace, in_flight: int, stop: asyncio.Event) -> None:
        """Keep so many samples of each edge unanswered."""

        async def keep(edge: Edge) -> None:
            while not stop.is_set():
                if not await trace.follow(edge, self.next_sample(), perf_counter()):
                    await asyncio.sleep(POLL_SECONDS)  # an edge without a stream fails at once

        await asyncio.gather(*(keep(edge) for edge in self.edges for _ in range(in_flight)))

    async def open(self, trace: Trace, rate_per_second: float, stop: asyncio.Event) -> None:
        """Let samples arrive at random, for each edge in turn."""
        arrivals, due = random.Random(0), perf_counter()
        tasks: set[asyncio.Task[bool]] = set()
        for number in count():
            due += arrivals.expovariate(rate_per_second)
            await asyncio.sleep(due - perf_counter())
            if stop.is_set():
                break
            edge = self.edges[number % len(self.edges)]
            task = asyncio.create_task(trace.follow(edge, self.next_sample(), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)


@asynccontextmanager
async def fleet(
    config: EdgeConfig, bundle: Bundle, samples: Sequence[Codes], level: Level, pace: Pace
) -> AsyncIterator[Fleet]:
    """Run edges for the length of a block.

    Raises:
        LinkLostError: the cloud cannot be reached.
    """
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry, model=bundle.manifest.name)
    wire = WireCounter(peers=peers(config.cloud))
    metrics.watch_wire(wire, config.cloud)
    kit = Kit(
        config=config,
        bundle=bundle,
        calibration=bundle.calibration(),
        metrics=metrics,
        worker=Worker("unused"),
        load=lambda part: load_engine(config, bundle, part),
    )
    options = replace(kit.options(kit.settings()), checksum=config.check)
    edges = [_edge(kit, options, wire, pace.head_seconds) for _ in range(level.edges)]
    for edge in edges:
        edge.start()
    try:
        await _opened(edges)
        yield Fleet(edges, samples, registry)
    finally:
        await asyncio.gather(*(edge.close() for edge in edges))


def _edge(kit: Kit, options: Options, wire: WireCounter, head_seconds: float) -> Edge:
    def feed(source: Source, latency: Latency) -> RecordedFeed:
        if not isinstance(source, np.ndarray):
            raise InputError(f"expected codes, got {type(source)}")
        return RecordedFeed(kit, source, head_seconds)

    return EdgeLoop(kit.bundle, options, feed, kit.links(GrpcLink, wire), kit.metrics)


async def _opened(edges: Sequence[Edge]) -> None:
    """Wait until every edge has a stream or a refusal; LinkLostError if all are without."""
    deadline = perf_counter() + OPEN_SECONDS
    while any(not edge.connected and edge.trouble is None for edge in edges):
        if perf_counter() > deadline:
            raise LinkLostError(f"expected {len(edges)} streams within {OPEN_SECONDS} s")
        await asyncio.sleep(POLL_SECONDS)
    if not any(edge.connected for edge in edges):
        raise LinkLostError(f"expected a stream for one edge at least: {edges[0].trouble}")


async def run_level(
    config: EdgeConfig,
    bundle: Bundle,
    samples: Sequence[Codes],
    level: Level,
    pace: Pace,
    metrics_address: str | None = None,
) -> Measured:
    """Measure one level.

    Args:
        config: how the edges run, and which cloud they ask.
        bundle: the model.
        samples: codes to play.
        level: how much load.
        pace: for how long.
        metrics_address: where the cloud's ``/metrics`` is; None if it is not to be read.

    Raises:
        LinkLostError: the cloud cannot be reached.
        OSError: its metrics cannot be read.
    """
    async with fleet(config, bundle, samples, level, pace) as edges:
        trace, stop = Trace(), asyncio.Event()
        if level.rate_per_second is None:
            load = asyncio.create_task(edges.closed(trace, level.in_flight, stop))
        else:
            load = asyncio.create_task(edges.open(trace, level.rate_per_second, stop))
        refused = sum(not edge.connected for edge in edges.edges)
        await _while(load, pace.warm_up_seconds)
        before, cpu_before = await _scraped(metrics_address), process_time()
        borders = [perf_counter()]
        for _ in range(pace.windows):
            await _while(load, pace.seconds)
            borders.append(perf_counter())
        cpu_seconds = process_time() - cpu_before
        after = await _scraped(metrics_address)
        stop.set()
        await load
    return _measured(level, trace, borders, refused, cpu_seconds, before, after)


async def _while(load: asyncio.Task[None], seconds: float) -> None:
    """Wait; if the load breaks off meanwhile, raise why."""
    done, _ = await asyncio.wait({load}, timeout=seconds)
    for task in done:
        task.result()


async def _scraped(address: str | None) -> Scrape | None:
    return None if address is None else await asyncio.to_thread(scrape, address)


def _measured(
    level: Level,
    trace: Trace,
    borders: list[float],
    refused: int,
    cpu_seconds: float,
    before: Scrape | None,
    after: Scrape | None,
) -> Measured:
    start, end = borders[0], borders[-1]
    samples = [each for each in trace.answered if start <= each[0] < end]
    latencies = [answered - began for began, answered, _ in samples]
    p50, p90, p95, p99 = _percentiles(latencies)
    windows = list(zip(borders, borders[1:], strict=False))
    rates = [_rate(trace, *window) for window in windows]
    medians = [_median(trace, *window) for window in windows]
    return Measured(
        level=level,
        seconds=end - start,
        edges_refused=refused,
        begun=sum(start <= began < end for began in trace.began),
        answered=len(samples),
        errors=dict(trace.failed),
        answers_per_second=_rate(trace, start, end),
        latency_mean_seconds=float(np.mean(latencies)) if latencies else 0.0,
        latency_p50_seconds=p50,
        latency_p90_seconds=p90,
        latency_p95_seconds=p95,
        latency_p99_seconds=p99,
        mean_timesteps=float(np.mean([used for *_, used in samples])) if samples else 0.0,
        steady=_agree(rates) and _agree(medians),
        window_p50_seconds=medians,
        window_answers_per_second=rates,
        generator_cpu_share=cpu_seconds / (end - start),
        cloud=_cloud(before, after),
        batch_sizes=_batches(before, after),
    )


def _percentiles(latencies: Sequence[float]) -> list[float]:
    found: list[float] = np.percentile(latencies or [0.0], (50, 90, 95, 99)).tolist()
    return found


def _rate(trace: Trace, start: float, end: float) -> float:
    return sum(start <= answered < end for _, answered, _ in trace.answered) / (end - start)


def _median(trace: Trace, start: float, end: float) -> float:
    return _percentiles([b - a for a, b, _ in trace.answered if start <= b < end])[0]


def _agree(values: Sequence[float]) -> bool:
    return max(values) <= (1 + STEADY) * min(values)


TOLD: dict[str, Callable[[Scrape], float]] = {
    "timesteps": lambda told: told.total("cloud_timesteps_total"),
    "engine_calls": lambda told: told.total("cloud_batch_size_count"),
    "samples_answered": lambda told: sum(
        told.total("cloud_samples_total", reason=reason)
        for reason in ("confident", "max_timesteps")
    ),
    "samples_without_slot": lambda told: told.total("cloud_samples_total", reason="no_slot"),
    "rejected": lambda told: told.total("cloud_rejected_total"),
}
"""What is read from the cloud's metrics."""


def _cloud(before: Scrape | None, after: Scrape | None) -> dict[str, float]:
    if before is None or after is None:
        return {}
    told = {name: read(after) - read(before) for name, read in TOLD.items()}
    return told | {"mean_batch_size": told["timesteps"] / max(1.0, told["engine_calls"])}


def _batches(before: Scrape | None, after: Scrape | None) -> dict[str, int]:
    if before is None or after is None:
        return {}
    counts, first = (told.histogram("cloud_batch_size") for told in (after, before))
    differences = {bound: number - first.get(bound, 0) for bound, number in counts.items()}
    return {f"{bound:g}": number for bound, number in differences.items() if number}
