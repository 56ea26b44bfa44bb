"""From a configuration and inputs to a report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge_agent.config import EdgeConfig
from edge_agent.measure.energy import measure_energy, usable_sensors
from edge_agent.measure.inputs import Inputs
from edge_agent.measure.modes import Mode, all_modes, obstacle
from edge_agent.measure.report import Report, make_report
from edge_agent.measure.run import Plan, Runner
from shared.errors import ConfigError, RefusedError
from shared.model.bundle import Bundle

log = logging.getLogger(__name__)


def choose_modes(bundle: Bundle, names: Sequence[str] | None) -> tuple[Mode, ...]:
    """Return the modes of these names, all if there are none; ConfigError for an unknown name."""
    known = {mode.name: mode for mode in all_modes(bundle.spec)}
    if not names:
        return tuple(known.values())
    for name in names:
        if name not in known:
            raise ConfigError(f"modes: expected some of {', '.join(known)}, got {name!r}")
    return tuple(known[name] for name in dict.fromkeys(names))


async def measure(
    config: EdgeConfig,
    bundle: Bundle,
    inputs: Inputs,
    plan: Plan,
    modes: Sequence[Mode],
    *,
    emulated: Mapping[str, Any] | None = None,
    told: Callable[[str, int], None] = lambda mode, round_: None,
) -> Report:
    """Run all inputs in all modes that can be run.

    Args:
        config: what the modes start from; names the cloud.
        bundle: the model.
        inputs: of the network's shape.
        plan: how much.
        modes: which.
        emulated: facts of the network, if it is an emulated one.
        told: called with a mode's name and the round's number before each block.

    Raises:
        ConfigError: energy is to be measured and no sensor can be read.
        RefusedError: the cloud refuses every mode.
        NeucodexError: the cloud cannot be reached, an input cannot be used, an engine failed.
    """
    sensors = None if plan.energy is None else usable_sensors(config)
    skipped = {
        mode.name: why
        for mode in modes
        if (why := obstacle(mode, bundle, inputs.arrays)) is not None
    }
    possible = [mode for mode in modes if mode.name not in skipped]
    runner = Runner(config, bundle, inputs.arrays, plan)
    tallies, refused = await runner.run(possible, told)
    if not tallies:
        raise RefusedError("; ".join((skipped | refused).values()))
    report = make_report(config, bundle, inputs, plan, modes, tallies, skipped | refused, emulated)
    if plan.energy is None or sensors is None:
        return report
    wanted = [mode for mode in possible if mode.name in tallies and mode.name in plan.energy.modes]
    count = len(inputs.arrays)
    energy = await measure_energy(sensors, runner, count, wanted, plan.energy, told)
    return msgspec.structs.replace(report, energy=energy)
