"""What is read from files and read again when they change, in a program that runs on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from shared.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Signature = tuple[tuple[int, int, int] | None, ...]


class Watched(Generic[T]):
    """A value that follows its files; asked from any thread.

    A change is seen when somebody asks. Where the new files cannot be used, as in the middle of
    their replacement, the old value stays, and a warning names what is wrong, once per change.

    Args:
        paths: the files.
        read: makes the value of them; raises ConfigError where they cannot be used.

    Raises:
        ConfigError: they cannot be used at the start.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = Lock()
        # Before they are read: what changes meanwhile differs from it, and is read again.
        self._signature = self._look()
        self._value = read()

    def current(self) -> T:
        """Return the value of the files as they are now, or the last that could be used."""
        with self._lock:
            signature = self._look()
            if signature != self._signature:
                self._signature = signature
                self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._read()
        except ConfigError as error:
            logger.warning("what was read before stays in use: %s", error)
        else:
            logger.info("read again: %s", ", ".join(map(str, self._paths)))

    def _look(self) -> Signature:
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Return what differs once a file, or what a link leads to, was written or replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_file(path: Path, what: str) -> bytes:
    """Return a file's content; ConfigError, naming ``what`` was expected, if it is unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected {what}: {error.strerror}") from error
