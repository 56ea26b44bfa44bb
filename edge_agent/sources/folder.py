"""A folder of image files as a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_agent.sources.base import Item
from shared.errors import ConfigError, InputError
from shared.wire import MAX_INPUT_BYTES

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


def read_folder(path: Path) -> Iterator[Item]:
    """Return the image files of a folder, by name; files of other kinds are passed over.

    A file that cannot be read is an item with that error.

    Raises:
        ConfigError: no readable folder.
    """
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise ConfigError(f"source: expected a folder at {path}: {error.strerror}") from error
    return map(_item, files)


def _item(file: Path) -> Item:
    try:
        size = file.stat().st_size
        if size > MAX_INPUT_BYTES:
            message = f"{file}: expected at most {MAX_INPUT_BYTES} bytes, got {size}"
            return Item(file.name, InputError(message))
        return Item(file.name, file.read_bytes())
    except OSError as error:
        return Item(file.name, InputError(f"{file}: {error.strerror}"))
