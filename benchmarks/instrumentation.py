"""What all metrics together cost: the pair as it is against the same pair without them.

Both pairs run the bundle's network in lock-step on the same pictures, all T timesteps of each
(alpha 1). They take turns, picture by picture and in changing order, over connections of their own;
the edges are loops of this process, on one core, the clouds processes of their own, on another.
Without them means ``benchmarks.silent``: every method that is told something is a function that
does nothing. Tracing is off in both, as it is by default.

The goal is set by what a timestep takes on the clock and by the CPU time of both processes. Every
round has new server processes, because two of the same kind differ for as long as they live; a
second pair without metrics says by how much equal pairs differ (``difference_of_equals``).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.load import server_process
from benchmarks.report import Result, figure, run
from benchmarks.silent import SilentEdgeMetrics
from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from edge_agent.loop import EdgeLoop
from examples.pictures import load_pictures
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle

GOAL = "at most 0.03"
WARM_UP = 20
METERED, SILENT, CONTROL = "metered", "silent", "control"
WITHOUT = ("benchmarks.servers", "silent", "--log-level", "warning")
SERVERS: Mapping[str, Sequence[str]] = {
    METERED: (
        *("cloud_server.cli", "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"),
        *("--log-level", "warning"),
    ),
    SILENT: WITHOUT,
    CONTROL: WITHOUT,
}
ORDER = Random(0)
"""Shuffles the turns."""


class Cost(NamedTuple):
    """What a timestep took in one round."""

    seconds: float
    """Median over the samples, from acceptance to answer."""
    edge_cpu_seconds: float
    cloud_cpu_seconds: float

    def on_the_clock(self) -> float:
        """Return seconds."""
        return self.seconds

    def on_the_cpu(self) -> float:
        """Return CPU seconds of both processes."""
        return self.edge_cpu_seconds + self.cloud_cpu_seconds


class Side(NamedTuple):
    """One pair."""

    loop: EdgeLoop[Any]
    cloud: int
    """Process id."""


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure the pairs in turn."""
    rounds, samples = (2, 30) if quick else (15, 200)
    costs: dict[str, list[Cost]] = {name: [] for name in SERVERS}
    scrapes = []
    for _ in range(rounds):
        with _clouds(bundle) as clouds:
            found, scrape_seconds = asyncio.run(_measure(bundle, clouds, samples))
        scrapes.append(scrape_seconds)
        for name, cost in found.items():
            costs[name].append(cost)
    settings = {"rounds": rounds, "samples": samples, "timesteps": bundle.spec.timesteps}
    return settings, [*figures(costs), figure("edge_scrape", scrapes, "seconds")]


@contextmanager
def _clouds(bundle: Bundle) -> Iterator[dict[str, tuple[int, str]]]:
    """Run the servers; yield their process ids and addresses."""
    flags = ("--bundle", str(bundle.path))
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(server_process([*command, *flags]))
            for name, command in SERVERS.items()
        }


async def _measure(
    bundle: Bundle, clouds: Mapping[str, tuple[int, str]], samples: int
) -> tuple[dict[str, Cost], float]:
    """Return what a timestep cost with each pair, and the seconds of a scrape of the edge."""
    registry, model = CollectorRegistry(), bundle.manifest.name
    sides = {}
    for name, (pid, address) in clouds.items():
        config = EdgeConfig(bundle=str(bundle.path), cloud=address, metrics="", alpha=1.0, window=1)
        if name == METERED:
            loop = build_loop(config, bundle, EdgeMetrics(registry, model=model))
        else:
            # Counting the operations of one sample in 64 is instrumentation too.
            loop = build_loop(config.uncounted, bundle, SilentEdgeMetrics(model))
        sides[name] = Side(loop, pid)
        loop.start()
    try:
        await _round(sides, bundle, WARM_UP)
        return await _round(sides, bundle, samples), _scrape_seconds(registry)
    finally:
        for side in sides.values():
            await side.loop.close()


async def _round(sides: Mapping[str, Side], bundle: Bundle, samples: int) -> dict[str, Cost]:
    """Give every picture to every pair."""
    timesteps = bundle.spec.timesteps
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    edge_cpu = dict.fromkeys(sides, 0.0)
    before = {name: cpu_seconds(side.cloud) for name, side in sides.items()}
    for picture in load_pictures(samples).pixels:
        for name in ORDER.sample(list(sides), len(sides)):
            began, cpu_began = perf_counter(), process_time()
            await sides[name].loop.submit(picture)
            seconds[name].append(perf_counter() - began)
            edge_cpu[name] += process_time() - cpu_began
    return {
        name: Cost(
            median(seconds[name]) / timesteps,
            edge_cpu[name] / samples / timesteps,
            (cpu_seconds(side.cloud) - before[name]) / samples / timesteps,
        )
        for name, side in sides.items()
    }


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process, to the nanosecond (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _scrape_seconds(registry: CollectorRegistry) -> float:
    began = perf_counter()
    generate_latest(registry)
    return perf_counter() - began


def figures(costs: Mapping[str, Sequence[Cost]]) -> list[Result]:
    """Return the figures of all rounds."""

    def ratios(above: str, below: str, take: Callable[[Cost], float]) -> list[float]:
        pairs = zip(costs[above], costs[below], strict=True)
        return [take(one) / take(other) - 1 for one, other in pairs]

    results = []
    for kind, take in (("timestep", Cost.on_the_clock), ("cpu", Cost.on_the_cpu)):
        results += [
            figure(f"overhead_of_{kind}", ratios(METERED, SILENT, take), "ratio", GOAL),
            figure(f"difference_of_equals_{kind}", ratios(CONTROL, SILENT, take), "ratio"),
        ]
    for field in Cost._fields:
        unit = "seconds" if field == "seconds" else "CPU seconds"
        kind = "timestep" if field == "seconds" else f"timestep_{field.removesuffix('_seconds')}"
        values = {name: [getattr(cost, field) for cost in each] for name, each in costs.items()}
        added = [a - b for a, b in zip(values[METERED], values[SILENT], strict=True)]
        results += [figure(f"{kind}_{name}", each, unit) for name, each in values.items()]
        results.append(figure(f"{kind}_added", added, unit))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("instrumentation", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
