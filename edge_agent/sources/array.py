"""A file of arrays as a source."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_agent.inputs import Array
from edge_agent.sources.base import Item
from shared.errors import ConfigError

DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))


def read_array(path: Path) -> Iterator[Item]:
    """Return the samples of a ``.npy`` file, read as they are used, or of all arrays of a ``.npz``.

    An array is ``[N, C, H, W]`` or ``[N, T, C, H, W]``, uint8 or float32.

    Raises:
        ConfigError: no such file, not of these formats (nothing is unpickled), another shape or
            dtype.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"source: expected a .npy or .npz file at {path}: {error}") from error
    if isinstance(loaded, np.ndarray):
        arrays = {path.stem: loaded}
    else:
        with loaded:
            arrays = {name: _member(loaded, name, path) for name in loaded.files}
    for name, array in arrays.items():
        if array.ndim not in (4, 5) or array.dtype not in DTYPES:
            raise ConfigError(
                f"source: {path}: expected {name} [N, C, H, W] or [N, T, C, H, W], uint8 or "
                f"float32, got {list(array.shape)} {array.dtype}"
            )
    return _items(arrays)


def _member(loaded: np.lib.npyio.NpzFile, name: str, path: Path) -> Array:
    try:
        array: Array = loaded[name]
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"source: {path}: {name}: {error}") from error
    return array


def _items(arrays: dict[str, Array]) -> Iterator[Item]:
    for name, array in arrays.items():
        for index, sample in enumerate(array):
            yield Item(f"{name}[{index}]", np.ascontiguousarray(sample))
