"""A daemon's live page in a terminal, frame after frame."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any, Protocol

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.errors import LinkLostError
from shared.live.client import events

FIRST_SECONDS = 1.0
"""How long one frame waits for a sample besides the figures."""
FRAMES_PER_SECOND = 8
NONE = "-"


class Screen(Protocol):
    """What is shown of a side."""

    @property
    def kinds(self) -> Mapping[str, type[msgspec.Struct]]:
        """The events it takes in, by name; the first has the figures."""
        ...

    def take(self, event: Any) -> None:
        """Take in an event."""
        ...

    def draw(self) -> RenderableType:
        """Return a frame; after the first figures."""
        ...


def run(arguments: argparse.Namespace, screen: Screen, console: Console | None = None) -> None:
    """Show a daemon's events until interrupted; once if asked, or where there is no terminal.

    Args:
        arguments: of :func:`shared.live.client.add_flags`.
        screen: of the daemon's side.
        console: where to; None for standard output.

    Raises:
        ConfigError, LinkLostError, RefusedError: see :func:`shared.live.client.events`;
            LinkLostError also for a daemon of the other side.
    """
    console = console or Console()
    frames = _frames(arguments, screen)
    if arguments.once or not console.is_terminal:
        console.print(_one(frames, screen))
        return
    with Live(console=console, screen=True, auto_refresh=False) as shown:
        due = 0.0
        for _ in frames:
            if monotonic() >= due:
                due = monotonic() + 1 / FRAMES_PER_SECOND
                shown.update(screen.draw(), refresh=True)


def _frames(arguments: argparse.Namespace, screen: Screen) -> Iterator[str]:
    """Yield the name of every event that the screen took in, from the first figures on."""
    figures, has_figures = next(iter(screen.kinds)), False
    for event in events(arguments):
        kind = screen.kinds.get(event.name)
        if kind is None:
            raise LinkLostError(
                f"expected events {', '.join(screen.kinds)} from {arguments.metrics}, got "
                f"{event.name!r}: a daemon of the other side"
            )
        try:
            screen.take(msgspec.json.decode(event.data, type=kind))
        except msgspec.DecodeError as error:
            raise LinkLostError(
                f"expected an event {event.name} of this version: {error}"
            ) from error
        has_figures = has_figures or event.name == figures
        if has_figures:
            yield event.name


def _one(frames: Iterator[str], screen: Screen) -> RenderableType:
    """Return a frame with a sample, if one comes soon."""
    began = monotonic()
    seen: set[str] = set()
    for name in frames:
        seen.add(name)
        if len(seen) == len(screen.kinds) or monotonic() - began > FIRST_SECONDS:
            break
    return screen.draw()


def plain(text: str, style: str = "") -> Text:
    """Return text that a stranger may have written: no markup, nothing a terminal would obey."""
    return Text(
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text), style
    )


def table(title: str, rows: Mapping[str, str]) -> Table:
    """Return names and values."""
    shown = Table(
        title=plain(title), title_justify="left", show_header=False, box=None, expand=True
    )
    shown.add_column(style="dim")
    shown.add_column(justify="right")
    for name, value in rows.items():
        shown.add_row(name, plain(value))
    return shown


def written(value: float | None, how: Callable[[float], str]) -> str:
    """Return a value as text; a dash where it is not known."""
    return NONE if value is None else how(value)


def amount(value: float) -> str:
    """Return bytes for people."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def duration(seconds: float) -> str:
    """Return seconds for people."""
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    return _scaled(1e6 * seconds, ("µs", "ms", "s"))


def energy(joules: float) -> str:
    """Return joules for people."""
    return _scaled(1e6 * joules, ("µJ", "mJ", "J", "kJ"))


def power(watts: Mapping[str, float]) -> str:
    """Return watts by source for people."""
    return ", ".join(f"{source} {each:.2f} W" for source, each in watts.items()) or NONE


def _scaled(value: float, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= 1000 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    digits = 0 if not index and value == round(value) else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f} {units[index]}"
