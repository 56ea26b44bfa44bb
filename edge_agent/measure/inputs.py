"""What is measured on: inputs of the network's own size, and their labels where there are some."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_agent.inputs import Array, Recording
from edge_agent.sources.array import read_array
from edge_agent.sources.base import Item
from edge_agent.sources.folder import read_folder
from shared.errors import ConfigError, InputError
from shared.model.bundle import Manifest
from shared.model.preprocessing import decode_image, prepare


class Inputs(NamedTuple):
    """Inputs, each ``[C, H, W]`` or ``[T, C, H, W]``, uint8 or float32, and their classes."""

    arrays: list[Array]
    labels: list[int] | None


def read_inputs(images: Path, labels: Path | None, manifest: Manifest, count: int) -> Inputs:
    """Read the first ``count`` inputs, or all if there are fewer.

    Args:
        images: a folder of image files, which are decoded and resized, or a file of arrays.
        labels: see :func:`read_labels`; None if the classes are not known.
        manifest: of the network.
        count: most inputs.

    Raises:
        ConfigError: an input that cannot be used, none at all, or labels that do not fit.
    """
    items = read_folder(images) if images.is_dir() else read_array(images)
    arrays = [_array(item, manifest) for item in islice(items, count)]
    if not arrays:
        raise ConfigError(f"expected images at {images}, there are none")
    if labels is None:
        return Inputs(arrays, None)
    classes = read_labels(labels, manifest.labels)
    total = len(arrays) + sum(1 for _ in items)
    if len(classes) != total:
        raise ConfigError(f"expected {total} labels in {labels}, one per image: got {len(classes)}")
    return Inputs(arrays, classes[: len(arrays)])


def _array(item: Item, manifest: Manifest) -> Array:
    spec, data = manifest.spec, item.data
    try:
        if isinstance(data, InputError):
            raise data
        if isinstance(data, Recording):
            raise InputError("expected a whole input, got one that is being recorded")
        array = (
            decode_image(data, spec.input_shape, manifest.preprocessing.fit)
            if isinstance(data, bytes)
            else data
        )
        prepare(array, spec, manifest.preprocessing)
    except InputError as error:
        raise ConfigError(f"{item.name}: {error}") from error
    return array


def read_labels(path: Path, names: tuple[str, ...]) -> list[int]:
    """Return the classes of all images, in their order.

    Args:
        path: a ``.npy`` file of integers ``[N]``, a ``.npz`` with one such array, or a text with
            a class, by number or name, on every line.
        names: of the classes.

    Raises:
        ConfigError: no such file, another content, or a class the network does not have.
    """
    try:
        if path.suffix in (".npy", ".npz"):
            return _checked([int(label) for label in _integers(path)], path, names)
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"labels: {path}: {error}") from error
    return _checked([_class(line, path, names) for line in _filled(lines)], path, names)


def _filled(lines: list[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


def _integers(path: Path) -> Array:
    with path.open("rb") as file:  # numpy leaves a damaged one open
        loaded: Any = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            if len(loaded.files) != 1:
                raise ValueError(f"expected one array, got {len(loaded.files)}")
            loaded = loaded[loaded.files[0]]
    if loaded.ndim != 1 or loaded.dtype.kind not in "iu":
        raise ValueError(f"expected integers [N], got {loaded.dtype} {list(loaded.shape)}")
    labels: Array = loaded
    return labels


def _class(line: str, path: Path, names: tuple[str, ...]) -> int:
    if line in names:
        return names.index(line)
    try:
        return int(line)
    except ValueError as error:
        known = ", ".join(names)
        raise ConfigError(
            f"labels: {path}: expected a number or one of {known}, got {line!r}"
        ) from error


def _checked(labels: list[int], path: Path, names: tuple[str, ...]) -> list[int]:
    for label in labels:
        if not 0 <= label < len(names):
            raise ConfigError(f"labels: {path}: expected 0 to {len(names) - 1}, got {label}")
    return labels
