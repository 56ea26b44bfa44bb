from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from training.progress import Bars, Lines, shown_on


def test_a_terminal_shows_a_bar() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)

    with shown_on(console) as progress:
        assert isinstance(progress, Bars)
        for what in ("first epoch", "second epoch"):
            progress.begin(what, 4)
            for step in range(4):
                progress.advance(f"loss {step}")

    drawn = screen.getvalue()
    assert "second epoch" in drawn
    assert "4/4" in drawn
    assert "loss 3" in drawn


def test_a_log_gets_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    with shown_on(Console(file=io.StringIO())) as progress:
        assert isinstance(progress, Lines)
        progress.begin("epoch 1", 120)
        for step in range(120):
            progress.advance(f"loss {step}")

    assert caplog.messages == [f"epoch 1: step {step} of 120 loss {step}" for step in (0, 50, 100)]
