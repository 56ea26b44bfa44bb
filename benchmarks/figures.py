"""Draw the figures of the docs from ``benchmarks/results``: ``python -m benchmarks.figures``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import msgspec
from matplotlib.figure import Figure

from benchmarks.report import ROOT, Report

RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"
CODECS = {"zstd-3": "-", "raw": "-", "ctx": "-", "ctx-max": "-", "float_model": ":"}
"""What is drawn of them, and how."""


def read(name: str) -> dict[str, float]:
    """Return a benchmark's published figures by name."""
    report = msgspec.json.decode((RESULTS / f"{name}.json").read_bytes(), type=Report)
    return {result.name: result.value for result in report.results}


def codec() -> Figure:
    """Draw bytes per timestep t for each codec and the floating-point bound, bundle by bundle."""
    bundles: dict[str, dict[str, dict[int, float]]] = {}
    for each, value in read("codec").items():
        if found := re.fullmatch(r"(?:([^.]+)\.)?(.+)_bytes_at_t(\d+)", each):
            lines = bundles.setdefault(found[1] or "", {})
            lines.setdefault(found[2], {})[int(found[3])] = value
    figure = Figure(figsize=(1 + 5 * len(bundles), 3.6), layout="constrained")
    panels = figure.subplots(1, len(bundles), squeeze=False)[0]
    for axes, (bundle, lines) in zip(panels, bundles.items(), strict=True):
        for name, style in CODECS.items():
            points = lines.get(name, {})
            label = name.replace("_", " ")
            axes.plot(list(points), list(points.values()), style, marker="o", label=label)
            axes.set_xticks(list(points))
        axes.set(title=bundle, xlabel="timestep t", ylabel="bytes", ylim=(0, None))
        axes.legend()
    return figure


def paper_evaluation() -> Figure:
    """Draw mean latency over round trip for each mode, and where co-inference meets a baseline."""
    values, figure = read("paper_evaluation"), Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, float]]] = {}
    for each, value in values.items():
        if found := re.fullmatch(r"latency_mean_(.+)_at_([\d.]+)_ms", each):
            lines.setdefault(found[1], []).append((float(found[2]), 1e3 * value))
        elif found := re.fullmatch(r"crossover_rtt_(.+?)_(edge_only_.+)", each):
            label = f"{found[1]} meets {found[2]}: {1e3 * value:.0f} ms".replace("_", "-")
            axes.axvline(1e3 * value, linestyle=":", color="grey")
            axes.annotate(label, (1e3 * value, 0), rotation=90, fontsize=7, ha="right", va="bottom")
    for name, points in lines.items():
        style = "--" if name.startswith("edge_only") else "-"
        axes.plot(
            *zip(*sorted(points), strict=True), style, marker="o", label=name.replace("_", "-")
        )
    axes.set(xlabel="round trip, ms", ylabel="mean latency, ms", ylim=(0, None))
    axes.legend()
    return figure


DRAWINGS = {"codec": codec, "paper_evaluation": paper_evaluation}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder for the figures")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    # Without a date and with fixed ids the same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "neucodex"
    for name, draw in DRAWINGS.items():
        if not (RESULTS / f"{name}.json").exists():
            continue
        draw().savefig(out / f"{name}.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
