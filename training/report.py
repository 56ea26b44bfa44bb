"""The trade-off between accuracy, bytes and timesteps of evaluated bundles: table and picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from training.evaluate import Evaluation
from training.loss_budget import BudgetAlpha


class Point(NamedTuple):
    """One way to run a bundle and what it gives."""

    name: str
    accuracy: float
    timesteps: float
    """Mean per sample."""
    payload_bytes: float
    """Mean per sample, after the codec."""
    packed_bytes: float
    """Mean per sample, the code's bits themselves."""


def fixed_points(evaluation: Evaluation) -> list[Point]:
    """Return co-inference without early exit, stopped after each timestep."""
    payload_bytes = accumulate(evaluation.payload_bytes_by_timestep)
    return [
        Point(f"t = {steps}", accuracy, steps, sent, steps * evaluation.packed_bytes_per_timestep)
        for steps, (accuracy, sent) in enumerate(
            zip(evaluation.accuracy_compressed, payload_bytes, strict=True), start=1
        )
    ]


def exit_points(evaluation: Evaluation) -> list[Point]:
    """Return co-inference under each of the bundle's alphas, fewest timesteps first."""
    points = [
        Point(
            name,
            exits.accuracy,
            exits.mean_timesteps,
            exits.payload_bytes_per_image,
            exits.packed_bytes_per_image,
        )
        for name, exits in evaluation.co_inference.items()
    ]
    return sorted(points, key=lambda point: point.timesteps)


def trade_off_table(evaluation: Evaluation) -> Table:
    """Return every point of a bundle, beside its network without the bottleneck."""
    samples = f"{evaluation.images:,} samples, means per sample"
    title = f"{evaluation.name}, {evaluation.data}, {samples}"
    table = Table(title=title, caption="* the default")
    table.add_column("run", no_wrap=True)
    for heading in ("accuracy\n%", "points\nlost", "timesteps", "payload\nbytes", "packed\nbytes"):
        table.add_column(heading, justify="right")
    full = evaluation.accuracy_whole[-1]
    default = evaluation.default_alpha
    edge_only = evaluation.edge_only_exit[default]
    table.add_row("edge-only-full", *_of(full, full, len(evaluation.accuracy_whole)))
    table.add_row("edge-only-exit", *_of(edge_only.accuracy, full, edge_only.mean_timesteps))
    table.add_section()
    for point in fixed_points(evaluation) + exit_points(evaluation):
        name = f"{point.name} *" if point.name == default else point.name
        sent = f"{point.payload_bytes:.1f}", f"{point.packed_bytes:.1f}"
        table.add_row(name, *_of(point.accuracy, full, point.timesteps), *sent)
    return table


def _of(accuracy: float, full: float, timesteps: float) -> tuple[str, str, str]:
    return f"{100 * accuracy:.2f}", f"{100 * (full - accuracy):.2f}", f"{timesteps:.2f}"


def draw_trade_off(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Draw accuracy over payload bytes and over timesteps, a colour for each bundle.

    Crosses stop after a fixed timestep, dots by the exit rule; the dashed line is the network
    without the bottleneck after all T timesteps.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    by_bytes, by_timesteps = figure.subplots(1, 2, sharey=True)
    for index, evaluation in enumerate(evaluations):
        colour, bundle = f"C{index}", f"{evaluation.name}, {evaluation.data}"
        lines = (
            (fixed_points(evaluation), "x:", f"{bundle}, fixed"),
            (exit_points(evaluation), "o-", f"{bundle}, exit rule"),
        )
        for points, style, label in lines:
            accuracies = [100 * point.accuracy for point in points]
            payload_bytes = [point.payload_bytes for point in points]
            timesteps = [point.timesteps for point in points]
            by_bytes.plot(payload_bytes, accuracies, style, color=colour)
            by_timesteps.plot(timesteps, accuracies, style, color=colour, label=label)
        for axes in (by_bytes, by_timesteps):
            axes.axhline(100 * evaluation.accuracy_whole[-1], color=colour, linestyle="--")
    by_bytes.set_xlabel("payload bytes per sample")
    by_bytes.set_ylabel("accuracy, %")
    by_timesteps.set_xlabel("timesteps per sample")
    by_timesteps.legend()
    for axes in (by_bytes, by_timesteps):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png")


def budget_table(alphas: Iterable[BudgetAlpha], images: int) -> Table:
    """Return the alphas of loss budgets, tested on so many held-out samples."""
    table = Table(
        title=f"On {images:,} held-out samples; of other inputs this says nothing",
        caption="risk: right after all T timesteps and wrong at the exit; "
        "alpha 1: no early exit could be shown to keep the budget",
    )
    headings = (
        "budget, points",
        "alpha (at t = 0, 1, ...)",
        "risk, points",
        "accuracy %",
        "timesteps",
        "exits at t, %",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for each in alphas:
        test = each.test
        table.add_row(
            f"{test.points:g}",
            ", ".join(f"{value:.6g}" for value in _shortest(each.alpha)),
            f"{100 * test.observed_risk:.2f}",
            f"{100 * test.accuracy:.2f}",
            f"{test.mean_timesteps:.2f}",
            ", ".join(f"{100 * share:.1f}" for share in test.exit_distribution),
        )
    return table


def _shortest(alpha: tuple[float, ...]) -> tuple[float, ...]:
    """Return one number where all timesteps have the same."""
    return alpha[:1] if len(set(alpha)) == 1 else alpha
