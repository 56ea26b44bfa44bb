"""The trade-off between accuracy, bytes and timesteps of evaluated bundles: table and picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from training.evaluate import Evaluation
from training.loss_budget import BudgetAlpha

FIXED_REDUCTION = 2048
"""The paper's: float32 features over all T timesteps, over the bytes sent."""
PICTURE, MARKDOWN = "trade-off.png", "trade-off.md"
HEADINGS = ("run", "accuracy %", "points lost", "timesteps", "payload bytes", "times less")
CAPTION = f"""\
Means per sample. Points are lost against edge-only-full, the network before the bottleneck was
inserted, over all T timesteps. * is the default alpha, edge-only-exit its network and exits on the
edge alone. The payload is so many times less than the features at the split as float32, over all T
timesteps; {FIXED_REDUCTION}x is a code of that fixed size, + is on a run that sends no more."""


class Point(NamedTuple):
    """One way to run a bundle and what it gives."""

    name: str
    accuracy: float
    timesteps: float
    """Mean per sample."""
    payload_bytes: float
    """Mean per sample, after the codec."""


def fixed_points(evaluation: Evaluation) -> list[Point]:
    """Return co-inference without early exit, stopped after each timestep."""
    sent_bits = accumulate(evaluation.payload_bits_by_timestep[evaluation.codec])
    return [
        Point(f"t = {steps}", accuracy, steps, bits / 8)
        for steps, (accuracy, bits) in enumerate(
            zip(evaluation.accuracy_compressed, sent_bits, strict=True), start=1
        )
    ]


def exit_points(evaluation: Evaluation) -> list[Point]:
    """Return co-inference under each of the bundle's alphas, fewest timesteps first."""
    points = [
        Point(name, exits.accuracy, exits.mean_timesteps, exits.payload_bytes_per_image)
        for name, exits in evaluation.co_inference.items()
    ]
    return sorted(points, key=lambda point: point.timesteps)


def fixed_reduction_bytes(evaluation: Evaluation) -> float:
    """Return what a code of the fixed geometry sends for a sample."""
    return evaluation.float32_feature_bytes_per_image / FIXED_REDUCTION


def trade_off_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    """Yield the cells of every run of a bundle, in the order of :data:`HEADINGS`."""
    full, default = evaluation.edge_only_full, evaluation.default_alpha

    def figures(accuracy: float, timesteps: float) -> tuple[str, str, str]:
        lost = 100 * (full.accuracy - accuracy)
        return f"{100 * accuracy:.2f}", f"{lost:.2f}", f"{timesteps:.2f}"

    alone = evaluation.edge_only_exit[default]
    yield "edge-only-full", *figures(full.accuracy, full.mean_timesteps), "", ""
    yield "edge-only-exit", *figures(alone.accuracy, alone.mean_timesteps), "", ""
    for point in fixed_points(evaluation) + exit_points(evaluation):
        name = f"{point.name} *" if point.name == default else point.name
        yield name, *figures(point.accuracy, point.timesteps), *_sent(point, evaluation)
    fixed = f"{fixed_reduction_bytes(evaluation):.1f}"
    yield f"{FIXED_REDUCTION}x", "", "", "", fixed, f"{FIXED_REDUCTION:,}"


def _sent(point: Point, evaluation: Evaluation) -> tuple[str, str]:
    """Return the cells of what a run sends; a code may be of no bytes at all."""
    reference, sent = evaluation.float32_feature_bytes_per_image, point.payload_bytes
    mark = " +" if sent <= fixed_reduction_bytes(evaluation) else ""
    return f"{sent:.1f}", f"{reference / sent:,.0f}{mark}" if sent else mark


def trade_off_table(evaluations: Iterable[Evaluation]) -> Table:
    """Return every run of every bundle."""
    caption = CAPTION.replace("\n", " ")
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    rows = [(_title(evaluation), [*trade_off_rows(evaluation)]) for evaluation in evaluations]
    # Titles are folded, and the names of runs where there is no room; figures never.
    width = max(len(name) for _, runs in rows for name, *_ in runs)
    table.add_column(HEADINGS[0], max_width=width, overflow="fold")
    for heading in HEADINGS[1:]:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for title, runs in rows:
        table.add_row(title, style="bold")
        for run in runs:
            table.add_row(*run)
        table.add_section()
    return table


def trade_off_markdown(evaluations: Iterable[Evaluation]) -> str:
    """Return the same table for a document."""
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1))]
    for evaluation in evaluations:
        rows += [(f"**{_title(evaluation)}**", *[""] * (len(HEADINGS) - 1))]
        rows += trade_off_rows(evaluation)
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", CAPTION, ""])


def _title(evaluation: Evaluation) -> str:
    return f"{evaluation.name}, {evaluation.data}, {evaluation.images:,} samples"


def draw_trade_off(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Draw accuracy over payload bytes and over timesteps, a colour for each bundle.

    Crosses stop after a fixed timestep, dots by the exit rule. The dashed line is the network
    without the bottleneck after all T timesteps, the dotted one the fixed geometry's bytes.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    by_bytes, by_timesteps = figure.subplots(1, 2, sharey=True)
    for index, evaluation in enumerate(evaluations):
        _draw_runs(by_bytes, by_timesteps, evaluation, f"C{index}")
    by_bytes.set_xlim(left=0)
    by_bytes.set_xlabel("payload bytes per sample")
    by_bytes.set_ylabel("accuracy, %")
    by_timesteps.set_xlabel("timesteps per sample")
    by_timesteps.legend()
    for axes in (by_bytes, by_timesteps):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png")


def _draw_runs(by_bytes: Axes, by_timesteps: Axes, evaluation: Evaluation, colour: str) -> None:
    title = f"{evaluation.name}, {evaluation.data}"
    for points, style, kind in (
        (fixed_points(evaluation), "x:", "fixed"),
        (exit_points(evaluation), "o-", "exit rule"),
    ):
        accuracies = [100 * point.accuracy for point in points]
        payload_bytes = [point.payload_bytes for point in points]
        timesteps = [point.timesteps for point in points]
        by_bytes.plot(payload_bytes, accuracies, style, color=colour)
        by_timesteps.plot(timesteps, accuracies, style, color=colour, label=f"{title}, {kind}")
    by_bytes.axvline(fixed_reduction_bytes(evaluation), color=colour, linestyle=":")
    for axes in (by_bytes, by_timesteps):
        axes.axhline(100 * evaluation.edge_only_full.accuracy, color=colour, linestyle="--")


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
