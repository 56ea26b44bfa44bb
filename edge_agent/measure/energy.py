"""Measured energy of the modes: idle, load, idle, over and over.

Between any two loads the device is left idle, engines loaded and no stream open, so that every load
has an idle time just before and just after it: what is drawn in these is taken off for the net
energy. Within a load one input follows the other. Sensors are read only here, never while times are
measured. No energy is told of a single input: sensors are too slow for that.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from time import perf_counter

import msgspec

from edge_agent.config import EdgeConfig
from edge_agent.measure.modes import Mode
from edge_agent.measure.run import Ask, EnergyPlan, Outcome, Runner
from shared.energy.meter import Finding, Meter, Source
from shared.energy.sensors import find_sensors
from shared.energy.stretches import Mark, mark
from shared.errors import ConfigError, NeucodexError
from shared.machine import governors, hottest_celsius


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of time."""

    mode: str | None
    """None for an idle one."""
    seconds: float
    inputs: int
    """Answered in it."""
    watts: dict[str, float]
    """Mean power by source, as far as a source has told enough."""
    hottest_celsius: float | None
    """At its end."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A figure over the repeats."""

    mean: float
    deviation: float
    """Standard deviation of a single one."""
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return that of at least two values."""
        return Spread(
            mean=fmean(values), deviation=stdev(values), least=min(values), most=max(values)
        )


class ModeEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """What one source measured of one mode."""

    repeats: int
    gross_joules: Spread
    """Per input: all that was drawn."""
    net_joules: Spread
    """Per input: what was drawn above the idle power before and after."""
    load_watts: Spread
    idle_watts: Spread


class EnergyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Measured energy of this device; the cloud's is not in it."""

    plan: EnergyPlan
    sensors: dict[str, str]
    """By source, what was found."""
    governors: tuple[str, ...]
    """Of the processor's cores."""
    hottest_celsius: Spread | None
    modes: dict[str, dict[str, ModeEnergy]]
    """By mode and source."""
    windows: list[Window]
    """In the order of time: idle, load, idle, load, ..., idle in each repeat."""


class EnergyRunner:
    """Measures.

    Args:
        runner: runs the modes.
        count: of the inputs.
        meter: started.
        plan: how long.
    """

    def __init__(self, runner: Runner, count: int, meter: Meter, plan: EnergyPlan) -> None:
        self._runner = runner
        self._count = count
        self._meter = meter
        self._plan = plan

    async def run(self, modes: Sequence[Mode], told: Callable[[str, int], None]) -> list[Window]:
        """Return all windows; ``told`` is called before each, with its mode or ``idle``.

        Raises:
            NeucodexError: an input has no answer.
        """
        windows = []
        for repeat in range(self._plan.repeats):
            told("idle", repeat)
            windows.append(await self._idle())
            for mode in modes:
                told(mode.name, repeat)
                windows.append(await self._load(mode))
                told("idle", repeat)
                windows.append(await self._idle())
        return windows

    async def _idle(self) -> Window:
        before = await mark(self._meter)
        await asyncio.sleep(self._plan.idle_seconds)
        return await self._window(None, before, 0)

    async def _load(self, mode: Mode) -> Window:
        windows = []

        async def drive(ask: Ask, indices: Sequence[int]) -> list[Outcome]:
            before = await mark(self._meter)
            waiting = itertools.cycle(indices)
            outcomes: list[Outcome] = []

            async def worker() -> None:
                while perf_counter() - before.seconds < self._plan.load_seconds:
                    outcome = await ask(next(waiting))
                    if isinstance(outcome, NeucodexError):
                        raise outcome
                    outcomes.append(outcome)

            await asyncio.gather(*(worker() for _ in range(mode.in_flight)))
            windows.append(await self._window(mode.name, before, len(outcomes)))
            return outcomes

        await self._runner.block(mode, range(self._count), drive)
        return windows[0]

    async def _window(self, mode: str | None, before: Mark, inputs: int) -> Window:
        after = await mark(self._meter)
        seconds = after.seconds - before.seconds
        watts = {str(source): drawn.watts for source, drawn in after.since(before).items()}
        return Window(
            mode=mode,
            seconds=seconds,
            inputs=inputs,
            watts=watts,
            hottest_celsius=hottest_celsius(),
        )


def mode_energy(windows: Sequence[Window], mode: str, source: str) -> ModeEnergy | None:
    """Return what a source measured of a mode; None where it told enough of less than two loads."""
    gross, net, loads, idles = [], [], [], []
    for before, load, after in zip(windows, windows[1:], windows[2:], strict=False):
        if load.mode != mode or not load.inputs:
            continue
        if any(source not in window.watts for window in (before, load, after)):
            continue
        idle = (before.watts[source] + after.watts[source]) / 2
        seconds = load.seconds / load.inputs
        loads.append(load.watts[source])
        idles.append(idle)
        gross.append(load.watts[source] * seconds)
        net.append((load.watts[source] - idle) * seconds)
    if len(loads) < 2:
        return None
    return ModeEnergy(
        repeats=len(loads),
        gross_joules=Spread.of(gross),
        net_joules=Spread.of(net),
        load_watts=Spread.of(loads),
        idle_watts=Spread.of(idles),
    )


def usable_sensors(config: EdgeConfig) -> dict[Source, Finding]:
    """Return the sensors of this device that can be read; ConfigError if there are none."""
    findings = find_sensors(config.energy)
    usable = {finding.source: finding for finding in findings if finding.sensor is not None}
    if not usable:
        why = "; ".join(f"{finding.source}: {finding.found}" for finding in findings)
        raise ConfigError(
            "energy: expected a power sensor or energy.external_meter in the configuration, found "
            + (f"none that can be read ({why})" if why else "none")
        )
    return usable


async def measure_energy(
    sensors: Mapping[Source, Finding],
    runner: Runner,
    count: int,
    modes: Sequence[Mode],
    plan: EnergyPlan,
    told: Callable[[str, int], None],
) -> EnergyReport:
    """Measure the energy of modes that are known to run.

    Args:
        sensors: those of :func:`usable_sensors`; closed at the end.
        runner: runs the modes.
        count: of the inputs.
        modes: which.
        plan: how long.
        told: called with ``idle`` or a mode's name and the repeat's number before each window.

    Raises:
        NeucodexError: an input has no answer.
    """
    meter = Meter(finding.sensor for finding in sensors.values() if finding.sensor is not None)
    meter.start()
    try:
        windows = await EnergyRunner(runner, count, meter, plan).run(modes, told)
    finally:
        await asyncio.to_thread(meter.close)
    celsius = [each.hottest_celsius for each in windows if each.hottest_celsius is not None]
    return EnergyReport(
        plan=plan,
        sensors={str(source): finding.found for source, finding in sensors.items()},
        governors=governors(),
        hottest_celsius=Spread.of(celsius) if celsius else None,
        modes={
            mode.name: {
                str(source): energy
                for source in sensors
                if (energy := mode_energy(windows, mode.name, source)) is not None
            }
            for mode in modes
        },
        windows=windows,
    )
