"""Learning curves of a training run, as a picture beside its log."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LOG = "log.jsonl"
CURVES = "curves.png"
COLOURS = {"full": "tab:blue", "compressed": "tab:orange"}


def read_log(run: Path) -> tuple[dict[str, Any], ...]:
    """Return the epochs of a run, one line of its log each; none if there is no log yet."""
    path = run / LOG
    lines = path.read_text().splitlines() if path.exists() else []
    return tuple(json.loads(line) for line in lines)


def draw_curves(run: Path) -> None:
    """Draw loss, held-out accuracy and estimated code bits over the run's epochs."""
    epochs = read_log(run)
    figure = Figure(figsize=(7, 9), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, bits = figure.subplots(3, 1, sharex=True)
    loss.plot(_numbers(epochs), _values(epochs, "loss"), color="tab:gray")
    loss.set_ylabel("training loss")
    _draw_accuracy(accuracy, epochs)
    bits.plot(_numbers(epochs), _values(epochs, "holdout_code_bits"), color="tab:green")
    bits.set_ylabel("bits per neuron and timestep\n(estimate)")
    bits.set_xlabel("epoch, over all phases")
    for axes in (loss, accuracy, bits):
        _mark_phases(axes, epochs)
    figure.savefig(run / CURVES, format="png")


def _draw_accuracy(axes: Axes, epochs: tuple[dict[str, Any], ...]) -> None:
    for name, colour in COLOURS.items():
        accuracies = [epoch["holdout_accuracy"][name] for epoch in epochs]
        last = [100 * each[-1] for each in accuracies]
        first = [100 * each[0] for each in accuracies]
        axes.plot(_numbers(epochs), last, color=colour, label=f"{name}, last timestep")
        axes.plot(_numbers(epochs), first, color=colour, linestyle=":", label=f"{name}, first")
    axes.set_ylabel("held-out accuracy, %")
    axes.legend()


def _mark_phases(axes: Axes, epochs: tuple[dict[str, Any], ...]) -> None:
    axes.grid(alpha=0.3)
    for number, (before, after) in enumerate(zip(epochs, epochs[1:], strict=False), start=1):
        if before["phase"] != after["phase"]:
            axes.axvline(number + 0.5, color="black", linewidth=0.5)


def _numbers(epochs: tuple[dict[str, Any], ...]) -> list[int]:
    return list(range(1, len(epochs) + 1))


def _values(epochs: tuple[dict[str, Any], ...], key: str) -> list[float]:
    """Return a figure of every epoch; logs of older runs lack some, which leaves a gap."""
    return [epoch.get(key, math.nan) for epoch in epochs]
