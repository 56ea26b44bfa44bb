from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.pair import run_cloud
from shared.logs import MAX_TEXTS, REPEAT_SECONDS, HoldBack, JsonFormatter
from shared.model.bundle import Bundle


def record(
    text: str, *arguments: object, level: int = logging.ERROR, name: str = "room"
) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, text, arguments, None)


def test_a_line_of_json_holds_what_was_said() -> None:
    line = json.loads(JsonFormatter().format(record('50 %% of "%s"\n', "ä")))
    time = line.pop("time")
    assert time.endswith("+00:00")
    assert line == {"level": "error", "logger": "room", "message": '50 % of "ä"\n'}


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise ValueError("expected less")
    except ValueError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    line = JsonFormatter().format(failed)
    assert "\n" not in line
    assert "ValueError: expected less" in json.loads(line)["traceback"]


@pytest.fixture
def at() -> Callable[[float], HoldBack]:
    """Return a filter whose clock the test sets by calling this."""
    now = 0.0
    held = HoldBack(lambda: now)

    def set_clock(seconds: float) -> HoldBack:
        nonlocal now
        now = seconds
        return held

    return set_clock


def test_repeated_errors_are_held_back_and_counted(at: Callable[[float], HoldBack]) -> None:
    held = at(0)
    assert held.filter(record("stream to %s lost", "a"))
    assert not held.filter(record("stream to %s lost", "b"))
    assert not held.filter(record("stream to %s lost", "c"))
    assert held.filter(record("another"))
    assert held.filter(record("stream to %s lost", "a", name="elsewhere"))
    again = record("stream to %s lost, 100 %%", "d")
    assert held.filter(again)
    again = record("stream to %s lost", "e")
    assert at(REPEAT_SECONDS).filter(again)
    assert again.getMessage() == "stream to e lost (2 more like it held back)"
    last = record("stream to %s lost", "f")
    assert at(2 * REPEAT_SECONDS).filter(last)
    assert last.getMessage() == "stream to f lost"


def test_events_are_never_held_back(at: Callable[[float], HoldBack]) -> None:
    held = at(0)
    assert all(held.filter(record("stream open", level=logging.INFO)) for _ in range(5))


def test_texts_without_end_take_no_memory_without_end(at: Callable[[float], HoldBack]) -> None:
    held = at(0)
    for number in range(3 * MAX_TEXTS):
        assert held.filter(record(f"text {number}"))
    assert len(held._seen) <= MAX_TEXTS


def test_a_daemon_logs_json_when_it_is_told_to(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with run_cloud(tmp_path, tiny_bundle.path, "--log-format", "json"):
        pass
    lines = [json.loads(line) for line in (tmp_path / "cloud.log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert any(line["message"].startswith("serving untrained") for line in lines)
    assert any(line["message"].startswith("draining") for line in lines)


def test_an_unknown_format_is_refused() -> None:
    command = (sys.executable, "-m", "edge_agent.cli", "run", "--bundle", "b", "--log-format", "x")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "log_format" in done.stderr
