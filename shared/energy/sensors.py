"""Looks for every power sensor that this machine may have."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.energy import external, ina238, ina3221, nvml, rapl, rpi_pmic
from shared.energy.config import EnergyConfig
from shared.energy.meter import Finding, Meter
from shared.energy.rpi_pmic import Run, run_command

log = logging.getLogger(__name__)

Load = Callable[[str], Any]


def find_sensors(
    config: EnergyConfig,
    root: Path = Path("/"),
    run: Run = run_command,
    load: Load = importlib.import_module,
) -> list[Finding]:
    """Return what is there; whoever calls closes the sensors.

    Args:
        config: whether to look, and where an external meter is.
        root: where the system's files are.
        run: runs a command.
        load: imports a module by name.
    """
    found: list[Finding | None] = []
    if config.sensors:
        board = ina238.find(root)
        has_board = board is not None and board.sensor is not None
        # The input of the board is measured once: two totals would be added up by somebody.
        found += [board, ina3221.find(root, has_total=not has_board)]
        found += [rpi_pmic.find(root, run), rapl.find(root), nvml.find(root, load)]
    if config.external_meter:
        found.append(external.find(config.external_meter))
    return [finding for finding in found if finding is not None]


def open_meter(config: EnergyConfig, root: Path = Path("/")) -> Meter:
    """Return a meter of all sensors that can be used, not started; the others are logged."""
    findings = find_sensors(config, root)
    usable = [finding for finding in findings if finding.sensor is not None]
    for finding in usable:
        log.info("power sensor %s: %s", finding.source, finding.found)
    others = [f"{each.source}: {each.found}" for each in findings if each.sensor is None]
    if others:
        log.warning("power sensors that cannot be used: %s", "; ".join(others))
    return Meter(finding.sensor for finding in usable if finding.sensor is not None)
