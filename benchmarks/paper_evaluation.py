"""The paper's comparison over an emulated link: latency against both baselines, bytes on the wire.

Edge (this process, on one core, its engine calls made 10 times slower) and cloud (another, on
another core) with a link between whose round trip is varied, in a network of their own. At every
round trip all modes take turns over the same pictures; the crossover is the round trip at which
co-inference takes as long as a baseline. Ratios are those of mean latencies, by round; medians
stand beside them.

Wire bytes are those of the kernel (TCP_INFO): both directions, all headers and acknowledgements,
no Ethernet; the opening of the stream is spread over 1,000 images. *8 in flight* means 8 images
accepted by the device and not answered; the stream carries 3 of them, the most there may be, and
the others wait for their turn. *Paced* is one image per second. Bytes are measured without TLS and
with mutual TLS, where packets carry no check of their own; latencies without.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.links import Link, Profile, emulated, enter_private_network
from benchmarks.report import LOAD_CORE, SERVER_CORE, Result, figure, pin, run
from cloud_server.certs import make_certificates
from edge_agent.config import EdgeConfig
from edge_agent.measure.inputs import Inputs
from edge_agent.measure.instrument import choose_modes, measure
from edge_agent.measure.modes import Mode
from edge_agent.measure.report import ModeReport, Report, computed_bytes
from edge_agent.measure.run import Ask, Drive, Outcome, Plan, Runner, Tally, in_flight, one_by_one
from examples.pair import run_cloud
from examples.pictures import load_pictures
from shared.model.bundle import Bundle

RATE_BITS_PER_SECOND = 100e6
SLOW_EDGE = 10.0
GOAL_RTT_SECONDS = 0.010
BASELINES = {"edge_only_full": "at least 3", "edge_only_exit": "at least 2"}
"""With the goal for the mean latency of co-inference below it."""
CO_INFERENCE = ("lock_step", "pipelined", "policy")
HEADLINE = "policy"
"""The mode of the goals: as the daemon runs if nothing is set."""
MODES = (*BASELINES, "cloud_only_webp", *CO_INFERENCE)
IMAGES_PER_STREAM = 1000
"""Over so many the bytes of its opening are spread."""
IN_FLIGHT = 8
PERIOD_SECONDS = 1.0


class Transport(NamedTuple):
    """What carries the stream."""

    cloud_flags: tuple[str, ...]
    edge_changes: Mapping[str, Any]


def transports(folder: Path) -> dict[str, Transport]:
    """Return them by name; wire bytes are measured with each.

    Args:
        folder: where certificates are made.
    """
    make_certificates(folder, ["cloud"], ["device"], days=1)
    cloud = {"certificate": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
    flags = (f"--tls-{name}={folder / file}" for name, file in cloud.items())
    edge = {"ca": "ca.pem", "certificate": "edge-device.pem", "key": "edge-device.key"}
    changes = {f"tls_{name}": str(folder / file) for name, file in edge.items()}
    return {
        # The network between is this process's own.
        "without_tls": Transport((), {"insecure": True}),
        "mutual_tls": Transport(tuple(flags), changes | {"tls_server_name": "cloud"}),
    }


class Extent(NamedTuple):
    """How much is measured."""

    rtts_seconds: tuple[float, ...]
    images: int
    rounds: int
    wire_images: int
    paced_images: int


FULL = Extent((0.001, 0.005, 0.010, 0.020, 0.040, 0.080, 0.160), 100, 5, 250, 20)
QUICK = Extent((0.010, 0.080), 8, 2, 24, 4)


def wire_modes(bundle: Bundle) -> tuple[Mode, ...]:
    """Return the settings whose wire bytes are measured."""
    timesteps = bundle.spec.timesteps
    lock_step, policy = choose_modes(bundle, ["lock_step", "policy"])
    exit_reply = {"reply_mode": "exit"}
    return (
        lock_step,
        Mode(
            name="policy_for_bytes",
            what="what the policy chooses for the fewest bytes",
            changes={**policy.changes, "objective": "bytes"},
        ),
        Mode(name="exit_reply", what="one verdict per image", changes=exit_reply),
        Mode(
            name="one_packet",
            what="all timesteps in one packet, one verdict",
            changes=exit_reply | {"steps_per_packet": timesteps},
        ),
    )


def paced(period_seconds: float) -> Drive:
    """Return what begins an input once per period."""

    async def drive(ask: Ask, indices: Sequence[int]) -> list[Outcome]:
        events, outcomes = asyncio.get_running_loop(), []
        due = events.time()
        for index in indices:
            outcomes.append(await ask(index))
            due += period_seconds
            await asyncio.sleep(due - events.time())
        return outcomes

    return drive


def measure_all(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure latency over all round trips, then bytes over the goal's."""
    extent = QUICK if quick else FULL
    enter_private_network()
    with tempfile.TemporaryDirectory() as folder:
        ways = transports(Path(folder))
        with _pair(bundle, ways["without_tls"]) as (config, link):
            facts = link.facts
            results = list(_latencies(config, bundle, link, extent))
        for name, transport in ways.items():
            with _pair(bundle, transport) as (config, _):
                results += asyncio.run(_wire(config, bundle, name, extent))
    settings = {
        "split": bundle.spec.bottleneck.split,
        "width": bundle.spec.width,
        "link": facts,
        "slow_edge": SLOW_EDGE,
        "headline": HEADLINE,
        "in_flight": IN_FLIGHT,
        "period_seconds": PERIOD_SECONDS,
        "images_per_stream": IMAGES_PER_STREAM,
    }
    return settings | extent._asdict(), results


@contextmanager
def _pair(bundle: Bundle, transport: Transport) -> Iterator[tuple[EdgeConfig, Link]]:
    """Run a cloud and the link to it; yield how an edge reaches it."""
    flags = ("--log-level", "warning", *transport.cloud_flags)
    with tempfile.TemporaryDirectory() as folder:
        pin(SERVER_CORE)  # a child inherits its parent's cores
        with (
            run_cloud(Path(folder), bundle.path, *flags) as cloud,
            emulated(_link(GOAL_RTT_SECONDS), cloud.address) as link,
        ):
            pin(LOAD_CORE)
            changes = dict(transport.edge_changes)
            yield EdgeConfig(bundle=str(bundle.path), cloud=link.address, **changes), link


def _link(rtt_seconds: float) -> Profile:
    return Profile(f"{1e3 * rtt_seconds:g} ms", RATE_BITS_PER_SECOND, rtt_seconds / 2)


def _inputs(count: int) -> Inputs:
    pictures = load_pictures(count)
    return Inputs(list(pictures.pixels), pictures.labels.tolist())


# Latency.


def _latencies(config: EdgeConfig, bundle: Bundle, link: Link, extent: Extent) -> Iterator[Result]:
    inputs, modes = _inputs(extent.images), choose_modes(bundle, MODES)
    plan = Plan(rounds=extent.rounds, slow_edge=SLOW_EDGE)
    reports: dict[float, Report] = {}
    for rtt_seconds in extent.rtts_seconds:
        link.change(_link(rtt_seconds))
        report = asyncio.run(measure(config, bundle, inputs, plan, modes, emulated=link.facts))
        reports[rtt_seconds] = report
        for name, mode in report.modes.items():
            where = f"{name}_at_{1e3 * rtt_seconds:g}_ms"
            yield figure(f"latency_mean_{where}", _rounds(mode, plan.rounds, np.mean), "seconds")
            yield figure(f"latency_p50_{where}", _rounds(mode, plan.rounds, np.median), "seconds")
    yield from _goals(reports[GOAL_RTT_SECONDS], plan.rounds)
    yield from _crossovers(reports)


def _rounds(mode: ModeReport, rounds: int, of: Any) -> list[float]:
    """Return a figure of the latencies of each round."""
    numbers, seconds = (np.array(mode.samples[name]) for name in ("input", "total_seconds"))
    return [float(of(seconds[numbers % rounds == each])) for each in range(rounds)]


def _goals(report: Report, rounds: int) -> Iterator[Result]:
    modes, where = report.modes, f"at_{1e3 * GOAL_RTT_SECONDS:g}_ms"
    kinds = (("mean", np.mean), ("p50", np.median))
    for name, baseline, (kind, of) in product(CO_INFERENCE, BASELINES, kinds):
        if baseline in modes:
            slow, fast = (_rounds(modes[each], rounds, of) for each in (baseline, name))
            ratios = [a / b for a, b in zip(slow, fast, strict=True)]
            goal = BASELINES[baseline] if (name, kind) == (HEADLINE, "mean") else None
            yield figure(f"{kind}_of_{name}_below_{baseline}_{where}", ratios, "ratio", goal)
    for name, mode in modes.items():
        if mode.accuracy is not None:
            yield figure(f"accuracy_{name}", [mode.accuracy], "share")
        yield figure(f"modelled_edge_energy_{name}", [mode.modelled_edge_joules], "joules")
        yield figure(f"mean_timesteps_{name}", [mode.mean_timesteps], "timesteps")


def _crossovers(reports: Mapping[float, Report]) -> Iterator[Result]:
    """Yield the round trips at which co-inference takes as long as a baseline; none if never."""
    rtts = sorted(reports)
    for baseline, name in product(BASELINES, CO_INFERENCE):
        if baseline in reports[rtts[0]].modes:
            gains = [_gain(reports[rtt], baseline, name) for rtt in rtts]
            found = crossing(rtts, gains)
            if found is not None:
                yield figure(f"crossover_rtt_{name}_{baseline}", [found], "seconds")


def _gain(report: Report, baseline: str, name: str) -> float:
    """Return by how many seconds a mode is faster than a baseline."""
    modes = report.modes
    return modes[baseline].latency.mean_seconds - modes[name].latency.mean_seconds


def crossing(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return the first x at which y falls through 0, between points on straight lines."""
    for (x, y), (next_x, next_y) in pairwise(zip(xs, ys, strict=True)):
        if y > 0 >= next_y:
            return x + (next_x - x) * y / (y - next_y)
    return None


# Bytes.


class Rhythm(NamedTuple):
    """How inputs follow each other."""

    name: str
    drive: Drive
    images: int
    samples_in_flight: int
    """S."""
    goal: str | None


def rhythms(extent: Extent) -> tuple[Rhythm, ...]:
    """Return those in which wire bytes are measured."""
    images, goal = extent.wire_images, "at least 2048"
    return (
        Rhythm("1_in_flight", one_by_one, images, 1, goal),
        Rhythm(f"{IN_FLIGHT}_in_flight", in_flight(IN_FLIGHT), images, 3, goal),
        Rhythm("paced", paced(PERIOD_SECONDS), extent.paced_images, 1, None),
    )


async def _wire(config: EdgeConfig, bundle: Bundle, transport: str, extent: Extent) -> list[Result]:
    inputs = _inputs(max(extent.wire_images, extent.paced_images))
    runner = Runner(config, bundle, inputs.arrays, Plan(rounds=1))
    features = computed_bytes(bundle.spec)["float32_features_full_t"]
    results: list[Result] = []
    for rhythm in rhythms(extent):
        sizes = []
        for mode in wire_modes(bundle):
            changes = dict(mode.changes) | {"samples_in_flight": rhythm.samples_in_flight}
            changed = Mode(name=mode.name, what=mode.what, changes=changes)
            block = await runner.block(changed, range(rhythm.images), rhythm.drive)
            name = f"{mode.name}_{rhythm.name}_{transport}"
            results += _sizes(name, block, rhythm.images)
            sizes.append(results[-1].value)
            results.append(
                figure(f"float32_features_over_wire_{name}", [features / sizes[-1]], "ratio")
            )
        best = features / min(sizes)
        name = f"float32_features_over_wire_best_{rhythm.name}_{transport}"
        results.append(figure(name, [best], "ratio", rhythm.goal))
    return results


def _sizes(name: str, block: Tally, images: int) -> Iterator[Result]:
    """Yield what an image took; the wire bytes, in both directions, last."""
    counts, opening = block.counts, block.opening[0]
    up, down = counts["wire_sent_bytes"] / images, counts["wire_received_bytes"] / images
    once = opening["wire_sent_bytes"] + opening["wire_received_bytes"]
    yield figure(f"payload_bytes_{name}", [counts["payload_bytes"] / images], "bytes per image")
    yield figure(f"wire_up_bytes_{name}", [up], "bytes per image")
    yield figure(f"wire_down_bytes_{name}", [down], "bytes per image")
    yield figure(f"opening_wire_bytes_{name}", [once], "bytes per stream")
    yield figure(f"wire_bytes_{name}", [up + down + once / IMAGES_PER_STREAM], "bytes per image")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("paper_evaluation", __doc__, measure_all, argv)


if __name__ == "__main__":
    sys.exit(main())
