"""How many edges one core carries, and what a million would take: measured, then reckoned.

On this machine, server on one core and simulated edges on the other, with the demo's pictures in
lock-step, are measured: the server's CPU time per timestep at several loads, the bytes of a sample,
memory per open stream and per sample under way. From these follows a model of one server
(:func:`simulate`): samples arrive at random, as in the open loop of ``neucodex-bench load``; an
engine call of b timesteps takes the core ``call + b * step`` seconds. The model is held against
measured loads in between, then asked for what nobody can measure here: the load at which a core is
full (80 % busy, or the 99th percentile of latency twice that at low load, whichever comes first),
and so many servers that, streams being drawn by lot, the fullest one stays below that load.

``python -m benchmarks.capacity table REPORT`` prints a report as tables in Markdown.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks import load
from benchmarks.fleet import Codes, Level, Measured, Pace, Trace, fleet, run_level
from benchmarks.report import Report, Result, figure, run
from benchmarks.soak import resident_bytes
from edge_agent.alpha import exit_shares
from edge_agent.config import EdgeConfig
from examples.scrape import scrape
from protos.co_inference_pb2_grpc import CoInferenceStub
from shared import rpc
from shared.model.bundle import Bundle

MAX_BATCH = 32
"""The server's default."""
SLOWER = 2.0
"""A core is full when the 99th percentile of latency is so many times that at low load ..."""
MOST_BUSY = 0.8
"""... or it works for such a share of the time: what comes must not always be as expected."""
LOW_LOAD = 0.05
ROUND_TRIP_SECONDS = 0.04
"""Of the edges that are reckoned with; they ask once a second."""
FLEETS = (100, 1_000, 10_000, 100_000, 1_000_000)
DRAWS = 100
"""Of streams over servers: the fullest of 99 % of them counts."""
BYTES = {
    "payload_up": ("edge_payload_bytes_total", {"direction": "sent"}),
    "message_up": ("edge_message_bytes_total", {"direction": "sent"}),
    "message_down": ("edge_message_bytes_total", {"direction": "received"}),
    "wire_up": ("edge_wire_bytes_total", {"direction": "sent"}),
    "wire_down": ("edge_wire_bytes_total", {"direction": "received"}),
}


class Cost(NamedTuple):
    """What a server's core spends."""

    call_seconds: float
    """On an engine call, whatever is in it."""
    step_seconds: float
    """On a timestep, its messages included."""

    def of(self, batch: float) -> float:
        """Return the seconds of one call."""
        return self.call_seconds + batch * self.step_seconds


class Outcome(NamedTuple):
    """What a simulated server did."""

    p50_seconds: float
    p99_seconds: float
    mean_seconds: float
    mean_batch: float
    busy: float
    """Share of the time."""
    most_under_way: int
    """Samples at once."""


def simulate(
    rate: float,
    exits: Sequence[float],
    cost: Cost,
    away_seconds: float,
    samples: int = 20_000,
    seed: int = 0,
) -> Outcome:
    """Run one server and return what its edges see.

    Args:
        rate: mean arrivals per second.
        exits: share of samples that end at t = 0..T-1.
        cost: of the server's core.
        away_seconds: from a verdict until the next timestep is at the server: network and head.
        samples: how many arrive.
        seed: of arrivals and exits.
    """
    draw = np.random.default_rng(seed)
    begun = np.cumsum(draw.exponential(1 / rate, samples))
    left = draw.choice(len(exits), samples, p=np.asarray(exits) / sum(exits)) + 1
    events = [(at + away_seconds / 2, number) for number, at in enumerate(begun.tolist())]
    heapq.heapify(events)
    latencies = np.zeros(samples)
    now, busy_seconds, batches, steps = 0.0, 0.0, 0, int(left.sum())
    while events:
        now = max(now, events[0][0])
        batch: list[int] = []
        while events and events[0][0] <= now and len(batch) < MAX_BATCH:
            batch.append(heapq.heappop(events)[1])
        now += cost.of(len(batch))
        busy_seconds += cost.of(len(batch))
        batches += 1
        for number in batch:
            left[number] -= 1
            if left[number]:
                heapq.heappush(events, (now + away_seconds, number))
            else:
                latencies[number] = now + away_seconds / 2 - begun[number]
    p50, p99 = np.percentile(latencies, (50, 99)).tolist()
    most = _most_at_once(begun, begun + latencies)
    mean = float(latencies.mean())
    return Outcome(p50, p99, mean, steps / batches, busy_seconds / now, most)


def _most_at_once(begun: Any, ended: Any) -> int:
    """Return the largest number of intervals that overlap."""
    at = np.concatenate([begun, ended])
    change = np.concatenate([np.ones(len(begun), int), -np.ones(len(ended), int)])
    return int(np.cumsum(change[np.argsort(at, kind="stable")]).max())


def full_rate(exits: Sequence[float], cost: Cost, away_seconds: float, samples: int) -> float:
    """Return the samples per second at which a core is full."""
    steps = sum(share * steps for steps, share in enumerate(exits, start=1)) / sum(exits)
    most = 1 / (steps * cost.of(MAX_BATCH) / MAX_BATCH)
    limit = SLOWER * simulate(LOW_LOAD * most, exits, cost, away_seconds, samples).p99_seconds
    low: float = LOW_LOAD * most
    high = most
    for _ in range(12):
        middle = (low + high) / 2
        found = simulate(middle, exits, cost, away_seconds, samples)
        if found.p99_seconds <= limit and found.busy <= MOST_BUSY:
            low = middle
        else:
            high = middle
    return low


def servers_for(edges: int, edges_per_server: float, seed: int = 0) -> int:
    """Return how many servers carry so many edges, each of which draws its server by lot."""
    draw = np.random.default_rng(seed)
    servers = max(1, math.ceil(edges / edges_per_server))
    while True:
        drawn = draw.multinomial(edges, np.full(servers, 1 / servers), size=DRAWS).max(axis=1)
        if np.percentile(drawn, 99) <= edges_per_server:
            return servers
        servers = math.ceil(1.02 * servers) + (servers < 50)


def fitted(points: Sequence[tuple[float, float]]) -> Cost:
    """Return the cost that fits CPU seconds per timestep at some mean batch sizes best."""
    inverse = [1 / batch for batch, _ in points]
    call, step = np.polyfit(inverse, [seconds for _, seconds in points], 1).tolist()
    if call < 0:  # Batches save nothing here.
        call, step = 0.0, float(np.mean([seconds for _, seconds in points]))
    return Cost(call, step)


class Point(NamedTuple):
    """A server under a measured load."""

    measured: Measured
    cpu_seconds: float
    """Of the server, per timestep."""

    @property
    def mean_batch(self) -> float:
        """Timesteps in an engine call."""
        return self.measured.cloud["mean_batch_size"]


class Bench(NamedTuple):
    """A server to be measured, and what it is asked."""

    config: EdgeConfig
    bundle: Bundle
    samples: Sequence[Codes]
    pid: int
    metrics: str

    def point(self, level: Level, pace: Pace) -> Point:
        """Measure one load; the warm-up's CPU time is taken with its timesteps."""
        before, told = load.cpu_seconds(self.pid), self._timesteps()
        measured = asyncio.run(
            run_level(self.config, self.bundle, self.samples, level, pace, self.metrics)
        )
        steps = self._timesteps() - told
        return Point(measured, (load.cpu_seconds(self.pid) - before) / steps)

    def _timesteps(self) -> float:
        timesteps: float = scrape(self.metrics).total("cloud_timesteps_total")
        return timesteps

    async def bytes_per_sample(self, seconds: float) -> dict[str, float]:
        """Return the bytes of one sample by kind, opening of streams left out."""
        level = Level(edges=8)
        async with fleet(self.config, self.bundle, self.samples, level, Pace()) as edges:
            trace, stop = Trace(), asyncio.Event()
            before = {key: edges.told(name, **labels) for key, (name, labels) in BYTES.items()}
            asking = asyncio.create_task(edges.closed(trace, 1, stop))
            await asyncio.sleep(seconds)
            stop.set()
            await asking
            after = {key: edges.told(name, **labels) for key, (name, labels) in BYTES.items()}
        return {name: (after[name] - before[name]) / len(trace.answered) for name in BYTES}

    async def stream_bytes(self, count: int) -> float:
        """Return the server's resident bytes per open stream, on a connection of its own."""
        opening, calls = load.open_message(self.bundle), []
        before = resident_bytes(self.pid)
        for _ in range(count):
            channel = rpc.channel(self.config.cloud)
            call = CoInferenceStub(channel).Infer()  # type: ignore[no-untyped-call]
            await call.write(opening)
            await call.read()
            calls.append((channel, call))
        grown = resident_bytes(self.pid) - before
        for channel, call in calls:
            call.cancel()
            await channel.close()
        return grown / count


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure, fit, check and reckon."""
    samples = load.picture_codes(bundle)
    with tempfile.TemporaryDirectory(prefix="neucodex-") as folder:
        path = Path(folder) / "cloud.toml"
        path.write_text("max_streams = 1024\nslots = 512\n")
        arguments = ["cloud_server.cli", "serve", "--config", str(path)]
        arguments += ["--listen", "127.0.0.1:0", "--metrics", (metrics := _free_address())]
        arguments += ["--bundle", str(bundle.path)]
        with load.server_process(arguments) as (pid, address):
            config = EdgeConfig(bundle=str(bundle.path), cloud=address, window=1, metrics="")
            return _measured(Bench(config, bundle, samples, pid, metrics), quick)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _measured(bench: Bench, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    windows, seconds, arrivals = (1, 2.0, 3_000) if quick else (3, 10.0, 30_000)
    pace = Pace(seconds=seconds, windows=windows)
    closed = {n: bench.point(Level(edges=n), pace) for n in (1, 8, 32)}
    cost = fitted([(point.mean_batch, point.cpu_seconds) for point in closed.values()])
    alone = closed[1].measured
    away_seconds = max(0.0, alone.latency_mean_seconds / alone.mean_timesteps - cost.of(1))
    exits = _exits(bench, alone)
    results = [
        figure(f"cpu_per_timestep_{n}_streams", [point.cpu_seconds], "s")
        for n, point in closed.items()
    ]
    results += [
        figure("core_seconds_per_engine_call", [cost.call_seconds], "s"),
        figure("core_seconds_per_timestep", [cost.step_seconds], "s"),
    ]
    found = full_rate(exits, cost, away_seconds, arrivals)
    for share in (0.25, 0.5, 0.75):
        level = Level(edges=64, rate_per_second=share * found)
        point = bench.point(level, pace)
        model = simulate(share * found, exits, cost, away_seconds, arrivals)
        results += _check(round(100 * share), point, model)
    per_sample = asyncio.run(bench.bytes_per_sample(seconds))
    results += [figure(f"{name}_per_sample", [v], "B") for name, v in per_sample.items()]
    stream_bytes = asyncio.run(bench.stream_bytes(50 if quick else 500))
    state_bytes = 4 * sum(math.prod(each.shape) for each in bench.bundle.part("tail").states)
    results += [
        figure("memory_per_open_stream", [stream_bytes], "B"),
        figure("state_per_sample_under_way", [float(state_bytes)], "B"),
    ]
    results += _reckoned(exits, cost, arrivals, stream_bytes, state_bytes, per_sample)
    settings = {
        "exits": exits,
        "away_seconds": away_seconds,
        "round_trip_seconds": ROUND_TRIP_SECONDS,
        "samples_per_second_and_edge": 1,
        "slower": SLOWER,
        "most_busy": MOST_BUSY,
        "windows": windows,
        "window_seconds": seconds,
        "simulated_arrivals": arrivals,
    }
    return settings, results


def _exits(bench: Bench, alone: Measured) -> list[float]:
    """Return shares of exits with the mean that was measured, in the form of the calibration's."""
    calibration = bench.bundle.calibration()
    calibrated = exit_shares(calibration, calibration.alpha[calibration.default_alpha])
    timesteps, mean = len(calibrated), alone.mean_timesteps
    low, high = -20.0, 20.0
    for _ in range(60):  # Tilted by exp(w t) until the mean is right.
        weight = (low + high) / 2
        tilted = np.asarray(calibrated) * np.exp(weight * np.arange(timesteps))
        tilted /= tilted.sum()
        if float((tilted * np.arange(1, timesteps + 1)).sum()) < mean:
            low = weight
        else:
            high = weight
    shares: list[float] = tilted.tolist()
    return shares


def _check(percent: int, point: Point, model: Outcome) -> list[Result]:
    """Return how far the model lies from a measured load."""
    measured, name = point.measured, f"at_{percent}_percent"
    return [
        figure(f"{name}_p50", [measured.latency_p50_seconds], "s"),
        figure(f"{name}_p99", [measured.latency_p99_seconds], "s"),
        figure(
            f"{name}_model_over_measured_p50",
            [model.p50_seconds / measured.latency_p50_seconds],
            "ratio",
            "0.67 to 1.5",
        ),
        figure(
            f"{name}_model_over_measured_p99",
            [model.p99_seconds / measured.latency_p99_seconds],
            "ratio",
        ),
        figure(
            f"{name}_model_over_measured_mean_batch",
            [model.mean_batch / point.mean_batch],
            "ratio",
            "0.67 to 1.5",
        ),
        figure(f"{name}_generator_core", [measured.generator_cpu_share], "busy"),
        figure(f"{name}_unanswered", [float(measured.begun - measured.answered)], "samples", "0"),
    ]


def _reckoned(
    exits: Sequence[float],
    cost: Cost,
    arrivals: int,
    stream_bytes: float,
    state_bytes: int,
    per_sample: dict[str, float],
) -> list[Result]:
    """Return what fleets of edges take that ask once a second."""
    rate = full_rate(exits, cost, ROUND_TRIP_SECONDS, arrivals)
    full = simulate(rate, exits, cost, ROUND_TRIP_SECONDS, arrivals)
    results = [
        figure("edges_per_core", [rate], "edges"),
        figure("full_core_busy", [full.busy], "share"),
        figure("full_core_p99", [full.p99_seconds], "s"),
        figure("full_core_samples_under_way", [float(full.most_under_way)], "samples"),
    ]
    for edges in FLEETS:
        servers = servers_for(edges, rate)
        each = edges / servers
        part = simulate(each, exits, cost, ROUND_TRIP_SECONDS, arrivals)
        under_way = edges * part.mean_seconds
        results += [
            figure(f"fleet_{edges}_cores", [float(servers)], "cores"),
            figure(f"fleet_{edges}_edges_per_core", [each], "edges"),
            figure(f"fleet_{edges}_state", [under_way * state_bytes], "B"),
            figure(f"fleet_{edges}_streams", [edges * stream_bytes], "B"),
            figure(f"fleet_{edges}_wire_up", [edges * per_sample["wire_up"]], "B/s"),
            figure(f"fleet_{edges}_wire_down", [edges * per_sample["wire_down"]], "B/s"),
        ]
    return results


def tables(report: Report) -> str:
    """Return a report's figures as Markdown."""
    values = {result.name: result for result in report.results}
    lines = ["| measured | |", "|---|---|"]
    lines += [
        f"| {result.name.replace('_', ' ')} | {result.value:.4g} {result.unit} |"
        for result in report.results
        if not result.name.startswith("fleet_")
    ]
    lines += ["", "| edges | cores | edges per core | state | open streams | up | down |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for edges in FLEETS:
        row = [values[f"fleet_{edges}_{name}"].value for name in ("cores", "edges_per_core")]
        memory = [values[f"fleet_{edges}_{name}"].value / 1e6 for name in ("state", "streams")]
        wire = [values[f"fleet_{edges}_wire_{way}"].value / 1e6 for way in ("up", "down")]
        lines.append(
            f"| {edges:,} | {row[0]:,.0f} | {row[1]:.0f} | {memory[0]:,.1f} MB | "
            f"{memory[1]:,.1f} MB | {wire[0]:.3g} MB/s | {wire[1]:.3g} MB/s |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["table"] and len(arguments) == 2:
        content = Path(arguments[1]).read_bytes()
        sys.stdout.write(tables(msgspec.json.decode(content, type=Report)))
        return 0
    return run("capacity", __doc__, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
