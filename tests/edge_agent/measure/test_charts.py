"""Charts: whatever the numbers, a file that a browser reads, with everything in its place."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.measure.charts import BAR_LEFT, BAR_WIDTH, Line, Row, bar_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"
positive = st.floats(1e-6, 1e9)
points = st.lists(st.tuples(positive, st.floats(0, 1e9)), min_size=1, max_size=20)


def shapes(svg: str, kind: str) -> list[ElementTree.Element]:
    """Return the elements of a kind; the file must be well formed and its numbers finite."""
    assert not re.search("nan|inf", svg, re.IGNORECASE)
    return ElementTree.fromstring(svg).findall(f"{SVG}{kind}")


def texts(svg: str) -> list[str]:
    """Return what is written."""
    return [shape.text or "" for shape in shapes(svg, "text")]


def bars(svg: str) -> list[tuple[float, float]]:
    """Return start and length of every bar."""
    found = [shape.attrib for shape in shapes(svg, "rect") if "x" in shape.attrib]
    return [(float(each["x"]), float(each["width"])) for each in found if each["width"] != "12"]


@given(st.lists(points, min_size=1, max_size=12), st.booleans())
def test_any_lines_can_be_drawn(lines: list[list[tuple[float, float]]], log_x: bool) -> None:
    named = [Line(f"line {index}", line) for index, line in enumerate(lines)]
    svg = line_chart("title", "x", "y", named, log_x=log_x)
    drawn = shapes(svg, "polyline")
    assert [len(shape.attrib["points"].split()) for shape in drawn] == [len(line) for line in lines]
    assert {line.name for line in named} | {"title", "x", "y"} <= set(texts(svg))


@given(
    st.integers(1, 5).flatmap(
        lambda parts: st.lists(
            st.lists(st.one_of(st.none(), st.just(0.0), positive), min_size=parts, max_size=parts),
            min_size=1,
            max_size=8,
        )
    ),
    st.booleans(),
)
def test_any_bars_can_be_drawn(rows: list[list[float | None]], stacked: bool) -> None:
    parts = [f"part {index}" for index in range(len(rows[0]))]
    named = [Row(f"row {index}", values) for index, values in enumerate(rows)]
    svg = bar_chart("title", "label", parts, named, stacked=stacked, log=not stacked)
    assert len(bars(svg)) == sum(1 for row in rows for value in row if value)
    for start, length in bars(svg):
        assert start >= BAR_LEFT
        assert start + length <= BAR_LEFT + BAR_WIDTH + 0.02


def test_stacked_bars_are_put_end_to_end_in_proportion() -> None:
    svg = bar_chart("t", "l", ["a", "b"], [Row("r", [30.0, 10.0]), Row("s", [20.0, 0.0])])
    (first, second), (other,) = bars(svg)[:2], bars(svg)[2:]
    assert math.isclose(first[1], 3 * second[1], rel_tol=0.01)
    assert math.isclose(first[0] + first[1], second[0], abs_tol=0.02)
    assert math.isclose(other[1], 2 * second[1], rel_tol=0.01)
    assert "40" in texts(svg)


def test_logarithmic_bars_grow_by_powers() -> None:
    values = [[10.0], [100.0], [1000.0]]
    rows = [Row(str(index), each) for index, each in enumerate(values)]
    ends = [start + width for start, width in bars(bar_chart("t", "l", ["a"], rows, log=True))]
    assert math.isclose(ends[1] - ends[0], ends[2] - ends[1], abs_tol=0.05)


def test_what_is_not_told_is_said_and_not_drawn_as_zero() -> None:
    svg = bar_chart("t", "l", ["a", "b"], [Row("r", [None, 5.0])], stacked=False)
    assert "not told" in texts(svg)
    assert len(bars(svg)) == 1


def test_names_are_escaped() -> None:
    svg = line_chart("a < b & c", "x", "y", [Line("<script>", [(1.0, 1.0)])])
    assert "a < b & c" in texts(svg)
    assert not shapes(svg, "script")
