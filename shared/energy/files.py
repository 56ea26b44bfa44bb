"""Small files of the system, as sensors read them."""

from __future__ import annotations

from pathlib import Path

from shared.errors import SensorError, SensorReason


def text(path: Path) -> str:
    """Return a file's text without white space around it; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""


def number(path: Path) -> int:
    """Return the whole number that a file holds.

    Raises:
        SensorError: it cannot be read, or holds something else.
    """
    try:
        content = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise SensorError.of(error, path) from error
    try:
        return int(content)
    except ValueError:
        message = f"{path}: expected a whole number, got {content[:40]!r}"
        raise SensorError(SensorReason.MALFORMED, message) from None


def in_container(root: Path) -> bool:
    """Say whether this process runs in a container that leaves the usual marks."""
    return any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
