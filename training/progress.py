"""How far a long piece of work is: bars on a terminal, lines in a log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

LINE_EVERY_STEPS = 50


class Progress(Protocol):
    """Hears of one piece of work after the other."""

    def begin(self, what: str, steps: int) -> None:
        """A piece of work of so many steps begins; the one before is over."""

    def advance(self, note: str = "") -> None:
        """One more step is done; the note is worth showing, e.g. the loss."""


class Silent:
    """Tells nobody."""

    def begin(self, what: str, steps: int) -> None:
        """Do nothing."""

    def advance(self, note: str = "") -> None:
        """Do nothing."""


SILENT = Silent()


class Lines:
    """A log line now and then."""

    def __init__(self) -> None:
        self._what, self._steps, self._done = "", 0, 0

    def begin(self, what: str, steps: int) -> None:
        """Remember what the lines to come speak of."""
        self._what, self._steps, self._done = what, steps, 0

    def advance(self, note: str = "") -> None:
        """Write a line at the first step and at every fiftieth after it."""
        if self._done % LINE_EVERY_STEPS == 0:
            log.info("%s: step %d of %d %s", self._what, self._done, self._steps, note)
        self._done += 1


class Bars:
    """A bar for the work in hand, gone when it is over.

    Args:
        progress: on which to draw.
    """

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, what: str, steps: int) -> None:
        """Draw a new bar in place of the one before."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=steps, note="")

    def advance(self, note: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, advance=1, note=note)


@contextmanager
def shown_on(console: Console) -> Iterator[Progress]:
    """Yield what fits the console: bars on a terminal, log lines elsewhere."""
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=console, transient=True) as progress:
        yield Bars(progress)
