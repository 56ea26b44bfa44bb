"""Two kinds of charts as SVG, by hand: a device has no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a5195",
    "#8c6d31",
    "#222222",
    "#999999",
)
"""The first six are Okabe and Ito's, told apart by colour-blind readers."""
WIDTH = 820
PLOT_WIDTH, PLOT_HEIGHT = 540, 320
LEFT, TOP = 70, 40
LINE_HEIGHT = 20
BAR_LEFT, BAR_WIDTH = 160, 430
BAR_HEIGHT, BAR_GAP = 14, 10
FINE_DECADES = 3
"""A logarithmic axis of at most so many powers of ten shows 2 and 5 times each, too."""
TICKS = 6
"""About so many on a linear axis."""


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]


class Row(NamedTuple):
    """One group of bars, a value per part; None where there is none."""

    name: str
    values: Sequence[float | None]


class _Axis:
    """Maps values to pixels.

    Args:
        low: smallest value; above 0 on a logarithmic axis.
        high: largest.
        start: where ``low`` is, in pixels.
        end: where ``high`` is.
        log: whether it is logarithmic.
    """

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool) -> None:
        self._log = log
        if log:
            first = math.floor(math.log10(low))
            self.low, self.high = 10.0**first, 10.0 ** max(_ceil_log10(high), first + 1)
        else:
            step = _step(max(high - low, 1e-6 * abs(high)) or 1.0)
            self.low = step * math.floor(low / step)
            self.high = max(step * math.ceil(high / step), self.low + step)
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self._log:
            share = math.log10(value / low) / math.log10(high / low)
        else:
            share = (value - low) / (high - low)
        return round(self._start + share * (self._end - self._start), 2)

    def ticks(self) -> Iterator[float]:
        if self._log:
            first, last = _ceil_log10(self.low), _ceil_log10(self.high)
            factors = (1, 2, 5) if last - first <= FINE_DECADES else (1,)
            for power in range(first, last):
                yield from (factor * 10.0**power for factor in factors)
            yield 10.0**last
            return
        step = _step(self.high - self.low)
        for index in range(round((self.high - self.low) / step) + 1):
            yield self.low + index * step


def _ceil_log10(value: float) -> int:
    return math.ceil(math.log10(value) - 1e-9)


def _step(span: float) -> float:
    """Return a round distance of ticks."""
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def line_chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, log_x: bool = False
) -> str:
    """Draw lines over common axes; the y axis begins at 0.

    Args:
        title: above.
        x_label: with the unit.
        y_label: with the unit.
        lines: at least one point in all.
        log_x: whether the x axis is logarithmic; all x are then above 0.

    Returns:
        The SVG file.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    bottom = TOP + PLOT_HEIGHT
    x_axis = _Axis(min(xs), max(xs), LEFT, LEFT + PLOT_WIDTH, log=log_x)
    y_axis = _Axis(0, max(ys), bottom, TOP, log=False)
    shapes = [_text(LEFT, TOP - 16, title, weight="bold")]
    shapes += _grid(x_axis, y_axis)
    middle = (LEFT + PLOT_WIDTH / 2, bottom + 38)
    shapes.append(_text(*middle, x_label, anchor="middle"))
    shapes.append(_text(16, TOP + PLOT_HEIGHT / 2, y_label, anchor="middle", turned=True))
    for index, line in enumerate(lines):
        points = " ".join(f"{x_axis.at(x)},{y_axis.at(y)}" for x, y in line.points)
        dashes = ' stroke-dasharray="6 3"' if index % 2 else ""
        shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{_colour(index)}" '
            f'stroke-width="1.8"{dashes}/>'
        )
    shapes += _legend([line.name for line in lines], LEFT + PLOT_WIDTH + 20, TOP + 10)
    return _svg(shapes, max(bottom + 50, TOP + LINE_HEIGHT * len(lines) + 20))


def _grid(x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    bottom, right = TOP + PLOT_HEIGHT, LEFT + PLOT_WIDTH
    for value in x_axis.ticks():
        x = x_axis.at(value)
        yield _rule(x, TOP, x, bottom)
        yield _text(x, bottom + 16, _number(value), anchor="middle")
    for value in y_axis.ticks():
        y = y_axis.at(value)
        yield _rule(LEFT, y, right, y)
        yield _text(LEFT - 6, y + 4, _number(value), anchor="end")


def bar_chart(
    title: str,
    label: str,
    parts: Sequence[str],
    rows: Sequence[Row],
    *,
    stacked: bool = True,
    log: bool = False,
    totals: bool = True,
) -> str:
    """Draw horizontal bars, of which each row has one of stacked parts, or one per part.

    Args:
        title: above.
        label: of the axis, with the unit.
        parts: their names; a single one has no legend.
        rows: at least one, each with a value per part.
        stacked: whether the parts of a row are put end to end.
        log: whether the axis is logarithmic, from the smallest value on; not with stacked bars.
        totals: whether each bar's length is written behind it.

    Returns:
        The SVG file.
    """
    sums = [sum(filter(None, row.values)) for row in rows]
    values = sums if stacked else [each for row in rows for each in row.values if each]
    high = max(values, default=0.0) or 1.0
    low = min(filter(None, values), default=high) if log else 0.0
    axis = _Axis(low / 2, high, BAR_LEFT, BAR_LEFT + BAR_WIDTH, log=log)
    height = BAR_HEIGHT * (1 if stacked else len(parts)) + BAR_GAP
    bottom = TOP + height * len(rows)
    shapes = [_text(LEFT, TOP - 16, title, weight="bold")]
    for value in axis.ticks():
        shapes.append(_rule(axis.at(value), TOP, axis.at(value), bottom))
        shapes.append(_text(axis.at(value), bottom + 16, _number(value), anchor="middle"))
    shapes.append(_text(BAR_LEFT + BAR_WIDTH / 2, bottom + 36, label, anchor="middle"))
    for index, row in enumerate(rows):
        top = TOP + height * index + BAR_GAP / 2
        shapes.append(_text(BAR_LEFT - 8, top + height / 2, row.name, anchor="end"))
        shapes += _row(row, top, axis, stacked=stacked, totals=totals)
    if len(parts) > 1:
        shapes += _legend(parts, BAR_LEFT + BAR_WIDTH + 60, TOP + 10)
    return _svg(shapes, max(bottom + 50, TOP + LINE_HEIGHT * len(parts) + 20))


def _row(row: Row, top: float, axis: _Axis, *, stacked: bool, totals: bool) -> Iterator[str]:
    start, total = axis.at(axis.low), 0.0
    for index, value in enumerate(row.values):
        total = total + (value or 0.0) if stacked else (value or 0.0)
        end = axis.at(max(total, axis.low))
        y = top if stacked else top + index * BAR_HEIGHT
        if value:
            yield (
                f'<rect x="{start}" y="{y}" width="{round(end - start, 2)}" '
                f'height="{BAR_HEIGHT - 1}" fill="{_colour(index)}"/>'
            )
        start = end if stacked else start
        if totals and (not stacked or index == len(row.values) - 1):
            told = "not told" if value is None and not stacked else _number(total)
            yield _text(end + 4, y + BAR_HEIGHT - 3, told)


def _legend(names: Sequence[str], left: float, top: float) -> Iterator[str]:
    for index, name in enumerate(names):
        y = top + LINE_HEIGHT * index
        yield f'<rect x="{left}" y="{y}" width="12" height="12" fill="{_colour(index)}"/>'
        yield _text(left + 18, y + 10, name)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#dddddd"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    turned: bool = False,
) -> str:
    turn = f' transform="rotate(-90 {x} {y})"' if turned else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}"{turn}>'
        f"{escape(text)}</text>"
    )


def _svg(shapes: Sequence[str], height: float) -> str:
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
