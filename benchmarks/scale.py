"""Many streams, several servers, several models: what it costs, and what a lost server costs.

Four parts, each with the demo's pictures on the machine's cores, which generator and servers share:

- *many*: 256 simulated edges in a closed loop against one server; how evenly they are served.
- *balance*: time per message over a list of two servers, and through Envoy, over the time per
  message of the same servers asked directly; in turn, so that a noisy machine is noisy for all.
- *kill*: streams over three servers, one of which is killed (SIGKILL) and later comes back; over a
  list, and through Envoy. Streams live for a few seconds, where in production it would be minutes:
  that is how those that are there come to a server that is new.
- *models*: two models asked at once while a third is loaded and unloaded.

Envoy is measured where it is installed (the extra ``envoy``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks import load
from benchmarks.fleet import Codes, Fleet, Level, Pace, Trace, fleet
from benchmarks.replicas import Replica, addresses, envoy, envoy_binary, replicas
from benchmarks.report import Result, figure, run
from edge_agent.config import EdgeConfig
from protos import model_admin_pb2 as admin_pb
from protos.model_admin_pb2_grpc import ModelAdminStub
from shared import rpc
from shared.model.bundle import MANIFEST, Bundle

MANY_EDGES = 256
KILL_EDGES = 64
SERVERS = 3
STREAM_LIFE_SECONDS = 6.0
"""Of the part *kill*; with the jitter all streams have moved once within it."""
EVEN_SHARE = 0.5
"""A server that has this share of the mean, or more, has its part of the load: streams are spread
by lot, or by a hash, which gives each server more or less than the mean for good."""
EVEN_LIMIT_SECONDS = 60.0
POLL_SECONDS = 0.05


class Edges:
    """Simulated edges with metrics of their own; made by :func:`edges`.

    Args:
        fleets: one edge each.
    """

    def __init__(self, fleets: Sequence[Fleet]) -> None:
        self.fleets = fleets
        self.traces = [Trace() for _ in fleets]
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let every edge keep one sample unanswered."""
        for edge, trace in zip(self.fleets, self.traces, strict=True):
            self._tasks.append(asyncio.create_task(edge.closed(trace, 1, self._stop)))

    async def stop(self) -> None:
        """Begin no further samples and wait for those under way."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def lost_streams(self) -> list[int]:
        """Return how many streams each edge has lost."""
        return [round(each.told("edge_retries_total", reason="link_lost")) for each in self.fleets]

    def replays(self) -> list[int]:
        """Return how many samples each edge has sent again because its stream was lost."""
        return [round(each.told("edge_replays_total", reason="link_lost")) for each in self.fleets]

    @property
    def begun(self) -> int:
        """Samples begun so far."""
        return sum(len(trace.began) for trace in self.traces)

    @property
    def answered(self) -> int:
        """Samples answered so far."""
        return sum(len(trace.answered) for trace in self.traces)


@contextlib.asynccontextmanager
async def edges(
    count: int, cloud: str, bundle: Bundle, samples: Sequence[Codes]
) -> AsyncIterator[Edges]:
    """Run so many edges for the length of a block."""
    config = EdgeConfig(
        bundle=str(bundle.path), cloud=cloud, window=1, deadline_seconds=30.0, metrics=""
    )
    async with contextlib.AsyncExitStack() as stack:
        opening = (
            stack.enter_async_context(fleet(config, bundle, samples, Level(edges=1), Pace()))
            for _ in range(count)
        )
        yield Edges([await each for each in opening])


# Many streams on one server.


class Fair(NamedTuple):
    """How evenly one server serves many streams."""

    answers_per_second: float
    p99_seconds: float
    slowest_over_mean: float
    """Answers of the slowest stream over the mean of all."""
    unanswered: int


async def many(
    cloud: str, bundle: Bundle, samples: Sequence[Codes], count: int, seconds: float
) -> Fair:
    """Measure ``seconds`` of ``count`` streams in a closed loop."""
    async with edges(count, cloud, bundle, samples) as there:
        there.start()
        await _until(lambda: all(trace.answered for trace in there.traces))
        begin = perf_counter()
        await asyncio.sleep(seconds)
        end = perf_counter()
        await there.stop()
    counts = [sum(begin <= each[1] < end for each in trace.answered) for trace in there.traces]
    latencies = [b - a for trace in there.traces for a, b, _ in trace.answered if begin <= b < end]
    return Fair(
        sum(counts) / (end - begin),
        float(np.percentile(latencies, 99)),
        min(counts) / statistics.mean(counts),
        there.begun - there.answered,
    )


def measure_many(bundle: Bundle, samples: Sequence[Codes], quick: bool) -> list[Result]:
    """Return the figures of one server under many streams."""
    count, seconds, rounds = (32, 2.0, 1) if quick else (MANY_EDGES, 20.0, 3)
    with replicas(1, bundle.path, max_streams=count, slots=count) as (server,):
        found = [
            asyncio.run(many(server.address, bundle, samples, count, seconds))
            for _ in range(rounds)
        ]
    name = f"one_server_{count}_streams"
    return [
        figure(f"{name}_unanswered", [each.unanswered for each in found], "samples", "0"),
        figure(
            f"{name}_slowest_stream_over_mean",
            [each.slowest_over_mean for each in found],
            "ratio",
            "at least 0.5",
        ),
        figure(f"{name}_p99", [each.p99_seconds for each in found], "s"),
        figure(f"{name}_answers", [each.answers_per_second for each in found], "samples/s"),
    ]


# What a balancer costs.


def measure_balance(bundle: Bundle, quick: bool) -> list[Result]:
    """Return seconds per message over ways to two servers, over those of asking them directly."""
    rounds, seconds = (2, 1.0) if quick else (9, 4.0)
    recorded, opening = load.record(bundle), load.open_message(bundle)
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(replicas(2, bundle.path))
        direct = [server.address for server in servers]
        ways = {"direct": direct, "list": [addresses(servers)]}
        if envoy_binary() is not None:
            ways["envoy"] = [stack.enter_context(envoy(direct))]
        results = []
        for streams in (1, 8):
            found: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(rounds):
                # Back and forth: what the machine does besides favours none of them.
                for way in list(ways)[:: -1 if number % 2 else 1]:
                    door = itertools.cycle(ways[way])
                    stream = partial(_play, door, opening, recorded)
                    measured = asyncio.run(load.drive(stream, streams, seconds, servers[0].pid))
                    found[way].append(measured.seconds / measured.messages)
            results += _balance_figures(streams, found)
    return results


async def _play(
    door: Iterator[str],
    opening: Any,
    recorded: list[load.Sample],
    stop: asyncio.Event,
    answered: list[int],
) -> None:
    await load.play(next(door), opening, recorded, stop, answered)


def _balance_figures(streams: int, found: dict[str, list[float]]) -> list[Result]:
    results = []
    for way, per_message in found.items():
        ratios = [a / b for a, b in zip(per_message, found["direct"], strict=True)]
        if way != "direct":
            name = f"{way}_over_direct_per_message_{streams}_streams"
            results.append(figure(name, ratios, "ratio", "1 lies within the spread"))
        results.append(figure(f"{way}_per_message_{streams}_streams", per_message, "s"))
    return results


# One of several servers is lost.


class Lost(NamedTuple):
    """What a killed server cost."""

    streams: int
    """That were on it."""
    unanswered: int
    most_replays: int
    """Of one stream, because it was lost."""
    first_answer_seconds: list[float]
    """Of each of its streams, from the kill to the next answer."""
    even_seconds: float
    """From its return until it has its share of the streams."""
    fullest_over_mean: float
    """Streams of the fullest server over the mean, a while later."""


async def kill_one(
    servers: Sequence[Replica],
    cloud: str,
    bundle: Bundle,
    samples: Sequence[Codes],
    count: int,
    seconds: float,
) -> Lost:
    """Kill a server under ``count`` streams and bring it back ``seconds`` later."""
    async with edges(count, cloud, bundle, samples) as there:
        there.start()
        await _until(lambda: all(trace.answered for trace in there.traces))
        await asyncio.sleep(seconds)
        victim = await asyncio.to_thread(_busiest, servers)
        killed = perf_counter()
        await asyncio.to_thread(victim.kill)
        await _until(lambda: all(trace.answered[-1][1] > killed for trace in there.traces))
        await asyncio.sleep(seconds)
        await asyncio.to_thread(victim.start)
        await asyncio.to_thread(victim.wait)
        even_seconds = await _share_back(victim, EVEN_SHARE * count / len(servers))
        await asyncio.sleep(seconds)
        held = await asyncio.to_thread(lambda: [server.streams() for server in servers])
        await there.stop()
    lost = [each for each in range(count) if there.lost_streams()[each]]
    return Lost(
        streams=len(lost),
        unanswered=there.begun - there.answered,
        most_replays=max(there.replays()),
        first_answer_seconds=[_back_seconds(there.traces[each], killed) for each in lost],
        even_seconds=even_seconds,
        fullest_over_mean=max(held) * len(servers) / sum(held),
    )


def _back_seconds(trace: Trace, killed: float) -> float:
    """Return how long after the kill answers came again.

    The first one may have been under way when the server was killed: what counts is the one that
    ends the longest wait.
    """
    after = [at - killed for _, at, _ in trace.answered if at > killed][:3]
    return max(itertools.pairwise([0.0, *after]), key=lambda wait: wait[1] - wait[0])[1]


def _busiest(servers: Sequence[Replica]) -> Replica:
    return max(servers, key=Replica.streams)


async def _share_back(server: Replica, streams: float) -> float:
    """Return the seconds until a server that is back holds so many streams."""
    began = perf_counter()
    while (held := await asyncio.to_thread(server.streams)) < streams:
        if perf_counter() - began > EVEN_LIMIT_SECONDS:
            raise RuntimeError(f"expected at least {streams:g} streams on a server, got {held}")
        await asyncio.sleep(POLL_SECONDS)
    return perf_counter() - began


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(POLL_SECONDS)


def measure_kill(bundle: Bundle, samples: Sequence[Codes], quick: bool) -> list[Result]:
    """Return the figures of a killed server behind each balancer."""
    count, seconds, rounds = (12, 1.0, 1) if quick else (KILL_EDGES, 8.0, 5)
    results = []
    for way in ("list", "envoy") if envoy_binary() is not None else ("list",):
        found = []
        for _ in range(rounds):
            with contextlib.ExitStack() as stack:
                servers = stack.enter_context(
                    replicas(SERVERS, bundle.path, stream_life_seconds=STREAM_LIFE_SECONDS)
                )
                cloud = addresses(servers)
                if way == "envoy":
                    cloud = stack.enter_context(envoy(cloud.split(",")))
                found.append(asyncio.run(kill_one(servers, cloud, bundle, samples, count, seconds)))
        results += _kill_figures(f"{way}_kill_{count}_streams", found)
    return results


def _kill_figures(name: str, found: Sequence[Lost]) -> list[Result]:
    firsts = [each.first_answer_seconds for each in found]
    return [
        figure(f"{name}_streams_lost", [each.streams for each in found], "streams"),
        figure(f"{name}_unanswered", [each.unanswered for each in found], "samples", "0"),
        figure(
            f"{name}_most_replays_of_a_stream",
            [each.most_replays for each in found],
            "samples",
            "at most 1",
        ),
        figure(f"{name}_first_answer_median", [statistics.median(each) for each in firsts], "s"),
        figure(f"{name}_first_answer_slowest", [max(each) for each in firsts], "s"),
        figure(f"{name}_share_back", [each.even_seconds for each in found], "s", "at most 10"),
        figure(
            f"{name}_fullest_server_over_mean",
            [each.fullest_over_mean for each in found],
            "ratio",
            "at most 1.5",
        ),
    ]


# Models that come and go.


class Changing(NamedTuple):
    """What streams noticed of models that came and went."""

    unanswered: int
    p99_seconds: float
    quiet_p99_seconds: float
    load_seconds: list[float]
    unload_seconds: list[float]
    """Of a model on which no stream is."""


def version(bundle: Bundle, folder: Path, name: str) -> Bundle:
    """Return a copy of a bundle that calls itself another version."""
    path = folder / name
    shutil.copytree(bundle.path, path)
    manifest = msgspec.json.decode((path / MANIFEST).read_bytes()) | {"version": name}
    (path / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return Bundle(path)


async def change_models(
    server: str,
    admin: str,
    versions: tuple[Bundle, Bundle, Bundle],
    samples: Sequence[Codes],
    count: int,
    changes: int,
    quiet_seconds: float,
) -> Changing:
    """Ask two versions at once, half of the edges each, while the third comes and goes.

    Args:
        server: its address.
        admin: its admin socket.
        versions: the first is served.
        samples: that are played.
        count: edges.
        changes: how often the third version is loaded and unloaded.
        quiet_seconds: how long nothing is changed, before.
    """
    first, second, third = versions
    load_seconds, unload_seconds = [], []
    async with rpc.channel(admin) as channel:
        stub: Any = ModelAdminStub(channel)  # type: ignore[no-untyped-call]
        await stub.Load(admin_pb.LoadRequest(path=str(second.path)))
        async with (
            edges(count // 2, server, first, samples) as old,
            edges(count // 2, server, second, samples) as new,
        ):
            for each in (old, new):
                each.start()
            traces = (*old.traces, *new.traces)
            await _until(lambda: all(trace.answered for trace in traces))
            borders = [perf_counter()]
            await asyncio.sleep(quiet_seconds)
            borders.append(perf_counter())
            for _ in range(changes):
                began = perf_counter()
                loaded = await stub.Load(admin_pb.LoadRequest(path=str(third.path)))
                load_seconds.append(perf_counter() - began)
                await asyncio.sleep(quiet_seconds / changes)
                began = perf_counter()
                await stub.Unload(admin_pb.UnloadRequest(model=loaded.label))
                unload_seconds.append(perf_counter() - began)
            borders.append(perf_counter())
            request = admin_pb.UnloadRequest(model=second.digest, wait_seconds=60)
            unloading = asyncio.ensure_future(stub.Unload(request))
            await old.stop()
            await new.stop()
        await unloading
    quiet, busy = (_p99(traces, *window) for window in itertools.pairwise(borders))
    unanswered = sum(each.begun - each.answered for each in (old, new))
    return Changing(unanswered, busy, quiet, load_seconds, unload_seconds)


def _p99(traces: Sequence[Trace], begin: float, end: float) -> float:
    latencies = [b - a for trace in traces for a, b, _ in trace.answered if begin <= b < end]
    return float(np.percentile(latencies, 99))


def measure_models(bundle: Bundle, samples: Sequence[Codes], quick: bool) -> list[Result]:
    """Return the figures of models that come and go."""
    count, changes, seconds, rounds = (4, 2, 1.0, 1) if quick else (32, 10, 10.0, 3)
    found = []
    with tempfile.TemporaryDirectory(prefix="neucodex-") as name:
        folder = Path(name)
        versions = (bundle, version(bundle, folder, "second"), version(bundle, folder, "third"))
        for _ in range(rounds):
            admin = f"unix:{folder / 'admin.sock'}"
            with replicas(1, bundle.path, admin=admin) as (server,):
                asked = change_models(
                    server.address, admin, versions, samples, count, changes, seconds
                )
                found.append(asyncio.run(asked))
    name = f"two_models_{count}_streams"
    loads = [each for one in found for each in one.load_seconds]
    unloads = [each for one in found for each in one.unload_seconds]
    return [
        figure(f"{name}_unanswered", [each.unanswered for each in found], "samples", "0"),
        figure(f"{name}_p99_while_a_third_comes_and_goes", [e.p99_seconds for e in found], "s"),
        figure(f"{name}_p99_before", [each.quiet_p99_seconds for each in found], "s"),
        figure("load_a_model", loads, "s"),
        figure("unload_an_unused_model", unloads, "s"),
    ]


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure the four parts."""
    samples = load.picture_codes(bundle)
    results = measure_many(bundle, samples, quick)
    results += measure_balance(bundle, quick)
    results += measure_kill(bundle, samples, quick)
    results += measure_models(bundle, samples, quick)
    settings = {
        "servers": SERVERS,
        "stream_life_seconds": STREAM_LIFE_SECONDS,
        "even_share": EVEN_SHARE,
        "envoy": envoy_binary() is not None,
    }
    return settings, results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("scale", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
