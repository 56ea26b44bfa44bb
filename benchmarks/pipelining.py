"""How much of the round trip is hidden, and whether the policy finds the best way to hide it.

Edge (this process, on one core) and cloud (another, on another) with an emulated link between, in a
network of their own where that can be had. Each side has its core to itself: an edge that computes
in vain must not take the cloud's. In every comparison all ways take turns, picture by picture and
in changing order, over connections of their own. A pause after each answer lets what was begun in
vain come to its end, so that every sample is measured by itself.

*bound*: RTT + max(n h + s, h + n s) + serialisation, for the n timesteps a sample used. RTT is
a TCP ping-pong of a packet's size over the same link, serialisation included; h and s are the
medians of head (codec included) and service time of the lock-step samples of the same run.

*typical* latency, for the link profiles: the median of the samples that used n timesteps, weighted
over n by how many did; a few packets lost on the way weigh little in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from random import Random
from statistics import mean, median
from time import perf_counter
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from benchmarks.links import PROFILES, Link, Profile, emulated, enter_private_network
from benchmarks.load import server_process
from benchmarks.report import Result, figure, run
from edge_agent.answers import Answer
from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from edge_agent.inputs import Array
from edge_agent.loop import EdgeLoop
from edge_agent.policy import Choice, Conditions, Fixed, Limits, choices, expect
from examples.pictures import load_pictures
from shared.addresses import parse_address
from shared.messages import ReplyMode
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle

RATE_BITS_PER_SECOND = 20e6
"""Of the link whose round trip is varied."""
PACKET_BYTES, VERDICT_BYTES = 60, 50
"""Of the ping-pong: what a packet and a verdict put into TCP, about."""
PINGS = 40
PAUSE_SECONDS = 0.01
WARM_UP = 5
ORDER = Random(0)
"""Shuffles the turns."""
LOCK_STEP: Mapping[str, Any] = {"window": 1}
CHANGES = (("lan", "satellite"), ("satellite", "lan"), ("wifi", "4g"), ("4g", "wifi"))
"""From one profile to another while samples run."""
SETTLE_SECONDS = 5.0
"""How long samples run after a change."""
RECOVERY_PICTURES = 100
GOOD_ENOUGH = 1.1
"""Of the best fixed way's typical latency."""


class Extent(NamedTuple):
    """How much is measured."""

    rtts_seconds: tuple[float, ...]
    rounds: int
    samples: int
    """Per round and way, at every round trip."""
    profiles: tuple[str, ...]
    profile_seconds: float
    """Of samples, per profile and way, as far as its round trip goes."""
    changes: tuple[tuple[str, str], ...]

    def samples_on(self, profile: Profile) -> int:
        """Return how many samples each way runs on a profile: fewer where they take long."""
        fewest, most = self.samples // 2, 2 * self.samples
        seconds = 2 * profile.delay_seconds + PAUSE_SECONDS
        return min(max(fewest, round(self.profile_seconds / seconds)), most)


FULL = Extent((0.005, 0.020, 0.040, 0.080), 5, 40, tuple(PROFILES), 10.0, CHANGES)
QUICK = Extent((0.005, 0.040), 2, 8, ("lan", "4g"), 0.5, (("lan", "4g"),))


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure everything."""
    private = enter_private_network()
    facts, results = asyncio.run(_measure(bundle, QUICK if quick else FULL))
    return {"private_network": private, "pause_seconds": PAUSE_SECONDS} | facts, results


async def _measure(bundle: Bundle, extent: Extent) -> tuple[dict[str, Any], list[Result]]:
    results = await own_software(bundle, extent)
    facts: dict[str, Any] = {"extent": extent._asdict()}
    serve = ["cloud_server.cli", "serve", "--listen", "127.0.0.1:0", "--metrics", ""]
    serve += ["--log-level", "warning", "--bundle", str(bundle.path)]
    with server_process(serve) as (_, address):
        for rtt_seconds in extent.rtts_seconds:
            name = f"{rtt_seconds * 1000:.0f}ms"
            profile = Profile(name, RATE_BITS_PER_SECOND, rtt_seconds / 2)
            with emulated(profile, address) as link:
                facts[name] = link.facts
                results += await at_round_trip(link, bundle, extent)
        typical = {}
        for name in extent.profiles:
            with emulated(PROFILES[name], address) as link:
                typical[name], chosen, found = await on_profile(link, bundle, extent)
                facts[name] = link.facts | {"policy_chose": chosen}
                results += found
        for before, after in extent.changes:
            with emulated(PROFILES[before], address) as link:
                results.append(await recovery(link, PROFILES[after], bundle, typical[after]))
    return facts, results


# Running samples.


@contextlib.asynccontextmanager
async def running(
    address: str, bundle: Bundle, ways: Mapping[str, Mapping[str, Any]]
) -> AsyncIterator[dict[str, EdgeLoop[Any]]]:
    """Run an edge for every way; each has configuration keys of its own."""
    async with contextlib.AsyncExitStack() as stack:
        loops: dict[str, EdgeLoop[Any]] = {}
        for name, keys in ways.items():
            config = EdgeConfig(
                bundle=str(bundle.path), cloud=address, insecure=True, metrics="", **keys
            )
            metrics = EdgeMetrics(CollectorRegistry(), model=bundle.manifest.name)
            loops[name] = build_loop(config, bundle, metrics)
            loops[name].start()
            stack.push_async_callback(loops[name].close)
        yield loops


async def take_turns(
    loops: Mapping[str, EdgeLoop[Any]], pictures: Sequence[Array]
) -> dict[str, list[Answer]]:
    """Give every picture to every loop, in an order that changes; return their answers."""
    answers: dict[str, list[Answer]] = {name: [] for name in loops}
    for picture in pictures:
        for name in ORDER.sample(list(loops), len(loops)):
            answers[name].append(await loops[name].submit(picture))
            await asyncio.sleep(PAUSE_SECONDS)
    return answers


def pictures(count: int) -> list[Array]:
    """Return the first ``count`` of the shipped pictures, those for the warm-up before them."""
    return list(load_pictures(WARM_UP + count).pixels)


@contextlib.contextmanager
def ping_server() -> Iterator[str]:
    """Answer every read with a verdict's size, in a thread; yield the address."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while connection.recv(PACKET_BYTES):
                        connection.sendall(bytes(VERDICT_BYTES))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def ping(address: str) -> float:
    """Return the median round trip of a packet and a verdict over plain TCP, in seconds."""
    seconds = []
    with socket.create_connection(parse_address(address)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            began = perf_counter()
            connection.sendall(bytes(PACKET_BYTES))
            connection.recv(VERDICT_BYTES)
            seconds.append(perf_counter() - began)
    return median(seconds)


def ping_over(profile: Profile) -> float:
    """Return :func:`ping` over a link of its own that behaves like this."""
    with ping_server() as address, emulated(profile, address) as link:
        return ping(link.address)


# What is compared.


async def own_software(bundle: Bundle, extent: Extent) -> list[Result]:
    """Return what a timestep takes beside the network, from its sending to its verdict."""
    with ping_server() as address:
        tcp_seconds = ping(address)
    timesteps = bundle.spec.timesteps
    values = []
    null = ["benchmarks.servers", "null", "--bundle", str(bundle.path)]
    with server_process(null) as (_, address):
        async with running(address, bundle, {"lock_step": {**LOCK_STEP, "alpha": 1.0}}) as loops:
            for _ in range(extent.rounds):
                found = await take_turns(loops, pictures(extent.samples))
                latencies = [answer.latency for answer in found["lock_step"][WARM_UP:]]
                round_trips = [each.transport_seconds + each.service_seconds for each in latencies]
                values.append(median(round_trips) / timesteps - tcp_seconds)
    return [
        figure("own_software_per_timestep", values, "seconds", "at most 0.0006"),
        figure("tcp_round_trip_on_loopback", [tcp_seconds], "seconds"),
    ]


async def at_round_trip(link: Link, bundle: Bundle, extent: Extent) -> list[Result]:
    """Compare pipelined, lock-step and policy with each other, the bound and the closed form."""
    timesteps = bundle.spec.timesteps
    ways: dict[str, Mapping[str, Any]] = {
        "lock_step": LOCK_STEP,
        "pipelined": {"window": timesteps, "steps_per_packet": 1},
        "one_packet": {"reply_mode": "exit", "steps_per_packet": timesteps},
        "policy": {},
    }
    rtt_seconds = ping_over(link.profile)
    rounds = []
    async with running(link.address, bundle, ways) as loops:
        for _ in range(extent.rounds):
            answers = await take_turns(loops, pictures(extent.samples))
            rounds.append(
                Round(rtt_seconds, {name: each[WARM_UP:] for name, each in answers.items()})
            )
    return figures_at(link.profile.name, rounds, bundle)


class Round(NamedTuple):
    """One round's answers."""

    rtt_seconds: float
    answers: dict[str, list[Answer]]

    @property
    def head_seconds(self) -> float:
        """Of one timestep."""
        return median(
            (each.latency.head_seconds + each.latency.codec_seconds) / each.timesteps_used
            for each in self.answers["lock_step"]
        )

    @property
    def service_seconds(self) -> float:
        """Of one timestep."""
        lock_step = self.answers["lock_step"]
        return median(each.latency.service_seconds / each.timesteps_used for each in lock_step)

    def median_bound(self) -> float:
        """Return the median over the samples of the least that their latency could be."""
        head, service = self.head_seconds, self.service_seconds
        used = [each.timesteps_used for each in self.answers["pipelined"]]
        return self.rtt_seconds + median(max(n * head + service, head + n * service) for n in used)

    def median_latency(self, way: str, from_timesteps: int = 1) -> float:
        """Return the median of the samples that used at least so many timesteps."""
        answers = self.answers[way]
        return median(
            each.latency.total_seconds for each in answers if each.timesteps_used >= from_timesteps
        )

    def expected_over_measured(self, way: str, choice: Choice, bundle: Bundle) -> float:
        """Return the closed form's mean latency, from the lock-step samples, over that measured."""
        answers, lock_step = self.answers[way], self.answers["lock_step"]
        used = [each.timesteps_used for each in answers]
        conditions = Conditions(
            exits=tuple(used.count(t + 1) / len(used) for t in range(bundle.spec.timesteps)),
            head_seconds=self.head_seconds,
            service_seconds=self.service_seconds,
            transport_seconds=median(
                each.latency.transport_seconds / each.timesteps_used for each in lock_step
            ),
            payload_bytes=0.0,
            follows=0.0,
        )
        measured = mean(each.latency.total_seconds for each in answers)
        return expect(choice, conditions).latency_seconds / measured


def figures_at(name: str, rounds: Sequence[Round], bundle: Bundle) -> list[Result]:
    """Return the figures of one round trip."""
    timesteps = bundle.spec.timesteps
    forms = {
        "lock_step": Choice(),
        "pipelined": Choice(window=timesteps),
        "one_packet": Choice(reply_mode=ReplyMode.EXIT, steps_per_packet=timesteps),
    }

    def ratio(above: str, below: str, from_timesteps: int = 1) -> list[float]:
        return [
            each.median_latency(above, from_timesteps) / each.median_latency(below, from_timesteps)
            for each in rounds
        ]

    over_bound = [each.median_latency("pipelined") / each.median_bound() for each in rounds]
    goal = "at least 2" if name == "40ms" else None
    return [
        figure(f"pipelined_p50_over_bound_{name}", over_bound, "ratio", "at most 1.15"),
        figure(
            f"pipelined_p50_over_lock_step_{name}",
            ratio("pipelined", "lock_step"),
            "ratio",
            "at most 1.03",
        ),
        figure(
            f"lock_step_over_pipelined_from_3_timesteps_{name}",
            ratio("lock_step", "pipelined", 3),
            "ratio",
            goal,
        ),
        figure(f"policy_p50_over_pipelined_{name}", ratio("policy", "pipelined"), "ratio"),
        *(
            figure(f"{way}_p50_{name}", [each.median_latency(way) for each in rounds], "seconds")
            for way in rounds[0].answers
        ),
        *(
            figure(
                f"{way}_expected_over_measured_{name}",
                [each.expected_over_measured(way, choice, bundle) for each in rounds],
                "ratio",
            )
            for way, choice in forms.items()
        ),
        figure(f"tcp_round_trip_{name}", [rounds[0].rtt_seconds], "seconds"),
        figure(f"head_{name}", [each.head_seconds for each in rounds], "seconds"),
        figure(f"service_{name}", [each.service_seconds for each in rounds], "seconds"),
    ]


def fixed_ways(bundle: Bundle) -> dict[Choice, dict[str, Any]]:
    """Return what the policy chooses from, each as the configuration that fixes it."""
    open_ = choices(bundle.spec.timesteps, Limits(max_window=16, max_steps_per_packet=16), Fixed())
    return {
        choice: {
            "reply_mode": choice.reply_mode.value,
            "window": choice.window,
            "steps_per_packet": choice.steps_per_packet,
        }
        for choice in open_
    }


def typical_seconds(answers: Sequence[Answer]) -> float:
    """Return the typical latency; see the module's docstring."""
    by_used: dict[int, list[float]] = {}
    for answer in answers:
        by_used.setdefault(answer.timesteps_used, []).append(answer.latency.total_seconds)
    return sum(len(each) * median(each) for each in by_used.values()) / len(answers)


async def on_profile(
    link: Link, bundle: Bundle, extent: Extent
) -> tuple[dict[Choice, float], dict[str, int], list[Result]]:
    """Compare the policy with every fixed way.

    Returns:
        The typical latency of every fixed way, how often the policy chose each, and the figures.
    """
    fixed = fixed_ways(bundle)
    ways: dict[str, Mapping[str, Any]] = {str(choice): keys for choice, keys in fixed.items()}
    chosen: list[str] = []
    async with running(link.address, bundle, ways | {"policy": {}}) as loops:
        answers: dict[str, list[Answer]] = {name: [] for name in loops}
        for picture in pictures(extent.samples_on(link.profile)):
            for name, found in (await take_turns(loops, [picture])).items():
                answers[name] += found
            chosen.append(str(loops["policy"].choice))
    seconds = {name: typical_seconds(each[WARM_UP:]) for name, each in answers.items()}
    best = min(seconds[name] for name in ways)
    name = link.profile.name
    typical = {choice: seconds[str(choice)] for choice in fixed}
    return (
        typical,
        Counter(chosen[WARM_UP:]),
        [
            figure(
                f"policy_over_best_fixed_{name}", [seconds["policy"] / best], "ratio", "at most 1.1"
            ),
            *(
                figure(f"typical_latency_{name}: {way}", [value], "seconds")
                for way, value in seconds.items()
            ),
        ],
    )


async def recovery(
    link: Link, after: Profile, bundle: Bundle, typical: Mapping[Choice, float]
) -> Result:
    """Return how long after a change the policy's way is good enough and remains so."""
    best = min(typical.values())
    name = f"recovery_{link.profile.name}_to_{after.name}"
    async with running(link.address, bundle, {"policy": {}}) as loops:
        loop = loops["policy"]
        await _run_for(loop, SETTLE_SECONDS)
        link.change(after)
        ways = await _run_for(loop, SETTLE_SECONDS)
    poor = [at for at, choice in ways if typical[choice] > GOOD_ENOUGH * best]
    return figure(name, [max(poor, default=0.0)], "seconds", "at most 2")


async def _run_for(loop: EdgeLoop[Any], seconds: float) -> list[tuple[float, Choice]]:
    """Run samples for some time; return the way in use at the answer of each."""
    began, ways = perf_counter(), []
    for picture in itertools.cycle(pictures(RECOVERY_PICTURES)):
        await loop.submit(picture)
        at = perf_counter() - began
        if loop.choice is not None:
            ways.append((at, loop.choice))
        if at > seconds:
            return ways
        await asyncio.sleep(PAUSE_SECONDS)
    return ways


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("pipelining", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
