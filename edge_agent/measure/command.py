"""The command line of ``neucodex-edge measure``, and of the benchmark that runs it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.config import EdgeConfig
from shared.errors import ConfigError

if TYPE_CHECKING:
    from edge_agent.measure.inputs import Inputs
    from edge_agent.measure.run import Plan


def add_images(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the flags that name the inputs."""
    parser.add_argument(
        "--images",
        type=Path,
        required=required,
        metavar="PATH",
        help="a folder of image files, or a .npy or .npz file of arrays",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="their classes, in their order: a .npy or .npz file, or a text, one per line",
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is measured, how much, and where it is told."""
    parser.add_argument("--count", type=int, default=100, metavar="N", help="images in each mode")
    parser.add_argument(
        "--modes",
        type=lambda text: text.split(","),
        metavar="M[,M...]",
        help="which modes; all if not given",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each mode")
    parser.add_argument(
        "--warm-up", type=int, default=5, metavar="N", help="images per turn that are not counted"
    )
    parser.add_argument(
        "--slow-edge",
        type=float,
        default=1.0,
        metavar="F",
        help="emulate a device F times slower: each engine call of duration d is followed by a "
        "wait of (F - 1) d",
    )
    parser.add_argument(
        "--energy",
        dest="measure_energy",  # ``energy`` is a key of the configuration
        action="store_true",
        help="measure this device's energy besides, by its power sensors or the external meter of "
        "the configuration: of the modes named, else of five",
    )
    parser.add_argument(
        "--energy-repeats", type=int, default=5, metavar="N", help="loads of each mode"
    )
    parser.add_argument(
        "--energy-load-seconds", type=float, default=10.0, metavar="S", help="length of a load"
    )
    parser.add_argument(
        "--energy-idle-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="length of the idle time between two loads",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("neucodex-measure"),
        metavar="DIR",
        help="where the report goes",
    )


def run(
    config: EdgeConfig,
    arguments: argparse.Namespace,
    inputs: Inputs | None = None,
    emulated: Mapping[str, Any] | None = None,
) -> int:
    """Measure and write the report; return the exit code.

    Args:
        config: what the modes start from.
        arguments: of :func:`add_plan`, and of :func:`add_images` if there are no ``inputs``.
        inputs: instead of those that the arguments name.
        emulated: facts of the network, if it is an emulated one.

    Raises:
        ConfigError: an argument that cannot be; inputs or labels that cannot be used.
        NeucodexError: see :func:`edge_agent.measure.instrument.measure`.
    """
    from edge_agent.measure.inputs import read_inputs
    from edge_agent.measure.instrument import choose_modes, measure
    from edge_agent.measure.markdown import write_report
    from shared.model.bundle import Bundle

    plan = _plan(arguments)
    if arguments.count < 1:
        raise ConfigError(f"count: expected at least 1, got {arguments.count}")
    bundle = Bundle(Path(config.bundle))
    modes = choose_modes(bundle, arguments.modes)
    if inputs is None:
        inputs = read_inputs(arguments.images, arguments.labels, bundle.manifest, arguments.count)

    def told(mode: str, round_: int) -> None:
        print(f"round {round_ + 1}: {mode}", file=sys.stderr)

    report = asyncio.run(measure(config, bundle, inputs, plan, modes, emulated=emulated, told=told))
    try:
        write_report(report, arguments.out)
    except OSError as error:
        raise ConfigError(f"out: expected a folder that can be written to: {error}") from error
    for name, mode in report.modes.items():
        print(f"{name:<18}{1e3 * mode.latency.p50_seconds:10.2f} ms p50")
    print(f"written to {arguments.out / 'report.md'}")
    return 0 if report.complete else 1


def _plan(arguments: argparse.Namespace) -> Plan:
    """Return what the arguments ask for; ConfigError if it cannot be."""
    import msgspec

    from edge_agent.measure.run import Plan

    given = {name: getattr(arguments, name) for name in ("rounds", "warm_up", "slow_edge")}
    if arguments.measure_energy:
        lengths = ("repeats", "load_seconds", "idle_seconds")
        energy = {name: getattr(arguments, f"energy_{name}") for name in lengths}
        given["energy"] = energy | ({"modes": arguments.modes} if arguments.modes else {})
    try:
        return msgspec.convert(given, Plan)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error
