"""Runs the modes in turn, a block of inputs each, over and over.

One loop lives at a time, with a connection of its own, so that all that the process sends
belongs to it. The modes take turns in blocks, in another order each round, so that a network or a
device that changes slowly changes for all of them.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated, Any

import msgspec
from prometheus_client import CollectorRegistry

from edge_agent.answers import Latency
from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from edge_agent.inputs import Array
from edge_agent.loop import EdgeLoop
from edge_agent.measure.engines import Engines
from edge_agent.measure.modes import Mode
from shared.energy.operations import load_model
from shared.errors import LinkLostError, NeucodexError, RefusedError
from shared.metrics import NAMESPACE, RADIO, EdgeMetrics
from shared.model.bundle import Bundle

OPEN_SECONDS = 15.0
"""Longest wait for a stream to a cloud that does not answer."""
LATE_ACK_SECONDS = 0.2
"""TCP confirms data at the latest so long after it came, if there is nothing to send with it."""
POLL_SECONDS = 0.005

COUNTED: dict[str, tuple[str, dict[str, str]]] = {
    "payload_bytes": ("edge_payload_bytes_total", {"direction": "sent"}),
    "message_sent_bytes": ("edge_message_bytes_total", {"direction": "sent"}),
    "message_received_bytes": ("edge_message_bytes_total", {"direction": "received"}),
    "wire_sent_bytes": ("edge_wire_bytes_total", {"direction": "sent"}),
    "wire_received_bytes": ("edge_wire_bytes_total", {"direction": "received"}),
    "retransmitted_bytes": ("edge_retransmitted_bytes_total", {}),
    "wasted_timesteps": ("edge_timesteps_total", {"outcome": "wasted"}),
    "modelled_joules": ("modelled_energy_joules_total", {}),
    "modelled_radio_joules": ("modelled_energy_joules_total", {"component": RADIO}),
}
"""What is read from the loop's metrics, by our name for it."""

Counts = dict[str, float]
"""By the names of :data:`COUNTED`; one that the system does not tell is absent."""


class EnergyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How energy is measured."""

    modes: tuple[str, ...] = (
        "edge_only_full",
        "edge_only_exit",
        "cloud_only_raw",
        "lock_step",
        "pipelined",
    )
    """Of which modes."""
    repeats: Annotated[int, msgspec.Meta(ge=5)] = 5
    """Loads of each mode."""
    load_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Length of each load."""
    idle_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Length of the idle time between two loads."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured."""

    rounds: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Turns of each mode; the inputs are spread over them."""
    warm_up: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Inputs at the start of each block that are not counted; the policy learns from them."""
    slow_edge: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    """How many times slower the device's engine calls are made."""
    energy: EnergyPlan | None = None
    """None: energy is not measured."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answered input."""

    index: int
    """Of the input."""
    label: int
    timesteps_used: int
    total_seconds: float
    """From the input as an array to its answer, encoding it for a cloud-only mode included."""
    latency: Latency
    """Its parts; what was spent on encoding is in ``input_seconds``."""
    upload_bytes: int
    """Of what was handed to the loop."""


@dataclass(kw_only=True)
class Tally:
    """What a mode has cost."""

    samples: list[Sample] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=dict)
    """Of the samples."""
    opening: list[Counts] = field(default_factory=list)
    """Of opening each stream."""
    min_rtt_seconds: list[float] = field(default_factory=list)
    """The kernel's, by connection."""

    def add(self, other: Tally) -> None:
        """Take in what another block has cost."""
        self.samples += other.samples
        self.errors += other.errors
        self.opening += other.opening
        self.min_rtt_seconds += other.min_rtt_seconds
        for name, amount in other.counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + amount


Outcome = Sample | NeucodexError
Ask = Callable[[int], Awaitable[Outcome]]
"""Runs one input, by index."""
Drive = Callable[[Ask, Sequence[int]], Awaitable[list[Outcome]]]
"""Runs some inputs, in its own rhythm."""


async def one_by_one(ask: Ask, indices: Sequence[int]) -> list[Outcome]:
    """Run an input when the one before has its answer."""
    return [await ask(index) for index in indices]


def in_flight(count: int) -> Drive:
    """Return what keeps so many inputs unanswered."""

    async def drive(ask: Ask, indices: Sequence[int]) -> list[Outcome]:
        waiting = iter(indices)

        async def worker() -> list[Outcome]:
            return [await ask(index) for index in waiting]

        workers = await asyncio.gather(*(worker() for _ in range(count)))
        return [outcome for outcomes in workers for outcome in outcomes]

    return drive


class Runner:
    """Runs blocks of inputs.

    Args:
        config: what the modes' changes are made to.
        bundle: the model.
        arrays: the inputs.
        plan: how much.
    """

    def __init__(
        self, config: EdgeConfig, bundle: Bundle, arrays: Sequence[Array], plan: Plan
    ) -> None:
        self._config = config
        self._bundle = bundle
        self._arrays = arrays
        self._plan = plan
        self._engines = Engines(config, bundle, plan.slow_edge)

    async def block(self, mode: Mode, indices: Sequence[int], drive: Drive = one_by_one) -> Tally:
        """Run one mode over some inputs, on a stream of its own.

        Raises:
            NeucodexError: it cannot be run, or an input of the warm-up failed.
        """
        # A cancelled call lies in a cycle, and keeps the connection of the last block open.
        gc.collect()
        registry = CollectorRegistry()
        config = mode.config(self._config)
        energy = load_model(config.energy)
        metrics = EdgeMetrics(registry, model=self._bundle.manifest.name, energy=energy)
        loop = build_loop(config, self._bundle, metrics, self._engines.load)
        start = read(registry)
        loop.start()
        try:
            await _opened(loop)
            opening = _between(start, read(registry))
            ask = _asking(loop, mode, self._arrays)
            for index in indices[: self._plan.warm_up]:
                outcome = await ask(index)
                if isinstance(outcome, NeucodexError):
                    raise outcome
            await _settle(registry)
            before = read(registry)
            outcomes = await drive(ask, indices)
            await _settle(registry)
            counts, rtts = _between(before, read(registry)), _min_rtts(registry)
        finally:
            await loop.close()
        return Tally(
            samples=[outcome for outcome in outcomes if isinstance(outcome, Sample)],
            errors=Counter(str(each) for each in outcomes if isinstance(each, NeucodexError)),
            counts=counts,
            opening=[opening],
            min_rtt_seconds=rtts,
        )

    async def run(
        self, modes: Sequence[Mode], told: Callable[[str, int], None] = lambda mode, round_: None
    ) -> tuple[dict[str, Tally], dict[str, str]]:
        """Run all inputs in all modes.

        Args:
            modes: which.
            told: called with a mode's name and the round's number before each block.

        Returns:
            What each mode cost, and why some were refused.

        Raises:
            NeucodexError: the cloud cannot be reached, or an input cannot be run.
        """
        tallies, refused = {mode.name: Tally() for mode in modes}, {}
        for round_, mode, indices in self._blocks(modes):
            if mode.name in refused:
                continue
            told(mode.name, round_)
            try:
                drive = one_by_one if mode.in_flight == 1 else in_flight(mode.in_flight)
                tallies[mode.name].add(await self.block(mode, indices, drive))
            except RefusedError as error:
                refused[mode.name] = str(error)
                del tallies[mode.name]
        return tallies, refused

    def _blocks(self, modes: Sequence[Mode]) -> Iterator[tuple[int, Mode, Sequence[int]]]:
        rounds = min(self._plan.rounds, len(self._arrays))
        for round_ in range(rounds):
            indices = range(round_, len(self._arrays), rounds)
            first = round_ % len(modes)
            for mode in (*modes[first:], *modes[:first]):
                yield round_, mode, indices


def _asking(loop: EdgeLoop[Any], mode: Mode, arrays: Sequence[Array]) -> Ask:
    async def ask(index: int) -> Outcome:
        began = perf_counter()
        data = mode.encode(arrays[index])
        encoded_seconds = perf_counter() - began
        try:
            answer = await loop.submit(data)
        except NeucodexError as error:
            return error
        answer.latency.input_seconds += encoded_seconds
        return Sample(
            index=index,
            label=answer.label,
            timesteps_used=answer.timesteps_used,
            total_seconds=perf_counter() - began,
            latency=answer.latency,
            upload_bytes=len(data) if isinstance(data, bytes) else data.nbytes,
        )

    return ask


async def _opened(loop: EdgeLoop[Any]) -> None:
    deadline = perf_counter() + OPEN_SECONDS
    while not loop.connected:
        trouble = loop.trouble
        if isinstance(trouble, RefusedError):
            raise trouble
        if perf_counter() > deadline:
            raise trouble or LinkLostError(f"expected a stream within {OPEN_SECONDS} s")
        await asyncio.sleep(POLL_SECONDS)


async def _settle(registry: CollectorRegistry) -> None:
    """Wait for the last confirmations to come in."""
    await asyncio.sleep(LATE_ACK_SECONDS + sum(_min_rtts(registry)))


def read(registry: CollectorRegistry) -> Counts:
    """Return what the metrics of a loop count now."""
    samples = [sample for family in registry.collect() for sample in family.samples]
    counts: Counts = {}
    for name, (metric, labels) in COUNTED.items():
        for sample in samples:
            if sample.name == f"{NAMESPACE}_{metric}" and labels.items() <= sample.labels.items():
                counts[name] = counts.get(name, 0.0) + sample.value
    return counts


def _between(before: Counts, after: Counts) -> Counts:
    return {name: amount - before.get(name, 0.0) for name, amount in after.items()}


def _min_rtts(registry: CollectorRegistry) -> list[float]:
    """Return the kernel's smallest round trip of the connection, if there is one."""
    name = f"{NAMESPACE}_edge_tcp_min_rtt_seconds"
    return [
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    ]
