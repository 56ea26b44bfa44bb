"""The form of every benchmark's output, and the little that all of them share."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared.machine import machine, versions
from shared.model.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent
DEMO_BUNDLE = ROOT / "shared" / "zoo" / "resnet18-cifar10-demo"
LOAD_CORE, SERVER_CORE = 0, 1
"""Edge and load generator run on one core, the cloud on the other."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How far repeats lie apart."""

    p10: float
    p90: float
    repeats: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure."""

    name: str
    value: float
    """Median over the repeats."""
    unit: str
    goal: str | None = None
    spread: Spread | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark's output file."""

    benchmark: str
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    results: list[Result]


def figure(name: str, values: Sequence[float], unit: str, goal: str | None = None) -> Result:
    """Return the median of ``values`` with its spread (10th and 90th percentile)."""
    if len(values) == 1:
        return Result(name=name, value=values[0], unit=unit, goal=goal)
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    spread = Spread(p10=tenths[0], p90=tenths[-1], repeats=len(values))
    return Result(name=name, value=statistics.median(values), unit=unit, goal=goal, spread=spread)


def pin(core: int) -> None:
    """Keep this process on one core, where the system has that core and can."""
    if hasattr(os, "sched_setaffinity") and core < (os.cpu_count() or 1):
        os.sched_setaffinity(0, {core})


def run(
    name: str,
    description: str | None,
    measure: Callable[[Bundle, bool], tuple[dict[str, Any], list[Result]]],
    argv: Sequence[str] | None,
) -> int:
    """Parse a benchmark's command line, measure, write the report and print its figures.

    Args:
        name: of the benchmark's module.
        description: its module docstring.
        measure: takes the bundle and whether to be quick; returns settings and results.
        argv: the command line, None for that of the process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--out", type=Path, help="write the report to this JSON file")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="model bundle to use")
    parser.add_argument("--quick", action="store_true", help="few repeats, under a minute")
    arguments = parser.parse_args(argv)
    bundle = Bundle(arguments.bundle)
    settings, results = measure(bundle, arguments.quick)
    settings = {"bundle": bundle.manifest.name, "digest": bundle.digest} | settings
    tell(name, "--quick" if arguments.quick else "", settings, results, arguments.out)
    return 0


def line(result: Result) -> str:
    """Return a figure as one line of text."""
    spread = (
        "" if result.spread is None else f" [{result.spread.p10:.4g} .. {result.spread.p90:.4g}]"
    )
    goal = "" if result.goal is None else f"  (goal: {result.goal})"
    return f"{result.name}: {result.value:.4g} {result.unit}{spread}{goal}"


def tell(
    name: str, flags: str, settings: dict[str, Any], results: Sequence[Result], out: Path | None
) -> None:
    """Print the figures of a benchmark run with ``flags``, and write its report where asked to."""
    for result in results:
        sys.stdout.write(f"{line(result)}\n")
    if out is None:
        return
    report = Report(
        benchmark=name,
        command=" ".join(filter(None, (f"python -m benchmarks.{name}", flags, f"--out {out}"))),
        machine=machine(),
        versions=versions(),
        settings=settings,
        results=list(results),
    )
    out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
