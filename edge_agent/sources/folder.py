"""A folder of image files as a source, read once or watched."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import NamedTuple

from edge_agent.sources.base import Item
from shared.errors import ConfigError, InputError
from shared.wire import MAX_INPUT_BYTES

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
LOOKS_PER_SETTLING = 4
"""How often a watched folder is looked at in the time in which a file settles."""


def read_folder(path: Path) -> Iterator[Item]:
    """Return the image files of a folder, by name; files of other kinds are passed over.

    A file that cannot be read is an item with that error.

    Raises:
        ConfigError: no readable folder.
    """
    return map(_item, sorted(_pictures(path)))


def watch_folder(path: Path, settle_seconds: float, stop: Event) -> Iterator[Item]:
    """Yield the image files of a folder and those that come, oldest first, until ``stop``.

    The folder is looked at every now and then, which works on network file systems, too. A file
    is taken once it has had the same size and time of change for ``settle_seconds``, and again
    when it changes after that.

    Raises:
        ConfigError: no readable folder at the start.
    """
    _pictures(path)
    return _watch(path, settle_seconds, stop)


class _Stamp(NamedTuple):
    changed_ns: int
    size: int


def _watch(path: Path, settle_seconds: float, stop: Event) -> Iterator[Item]:
    taken: dict[Path, _Stamp] = {}
    settling: dict[Path, tuple[_Stamp, float]] = {}
    while True:
        now, found = time.monotonic(), _stamps(path)
        taken = {file: stamp for file, stamp in taken.items() if file in found}
        fresh = {file: stamp for file, stamp in found.items() if taken.get(file) != stamp}
        settling = {
            file: settling[file] if settling.get(file, (None,))[0] == stamp else (stamp, now)
            for file, stamp in fresh.items()
        }
        whole = [file for file, (_, since) in settling.items() if now - since >= settle_seconds]
        for file in sorted(whole, key=lambda file: (fresh[file].changed_ns, file)):
            taken[file] = fresh[file]
            yield _item(file)
        if stop.wait(settle_seconds / LOOKS_PER_SETTLING):
            return


def _stamps(path: Path) -> dict[Path, _Stamp]:
    """Return what is known of each picture; nothing of what is gone, or of a folder that is."""
    stamps = {}
    try:
        for file in _pictures(path):
            try:
                status = file.stat()
            except OSError:
                continue
            stamps[file] = _Stamp(status.st_mtime_ns, status.st_size)
    except ConfigError:
        return {}
    return stamps


def _pictures(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise ConfigError(f"source: expected a folder at {path}: {error.strerror}") from error
    return [
        path / name
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
    ]


def _item(file: Path) -> Item:
    try:
        size = file.stat().st_size
        if size > MAX_INPUT_BYTES:
            message = f"{file}: expected at most {MAX_INPUT_BYTES} bytes, got {size}"
            return Item(file.name, InputError(message))
        return Item(file.name, file.read_bytes())
    except OSError as error:
        return Item(file.name, InputError(f"{file}: {error.strerror}"))
