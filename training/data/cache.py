"""Keep an array that takes minutes to make, under a name that says how it was made."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.labelled import DataError


def fingerprint(description: bytes, array: NDArray[np.uint8]) -> str:
    """Return 16 hexadecimal digits of SHA-256 over a description and an array's contents."""
    digest = hashlib.sha256(hashlib.sha256(description).digest())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def cached(path: Path, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Read the array at ``path``, or make it and write it there, whole or not at all.

    Args:
        path: a compressed ``.npz`` file, whose name must stand for everything the array depends on.
        make: makes the array.

    Raises:
        DataError: the file is damaged.
    """
    if path.is_file():
        return _read(path)
    array = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, array=array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return array


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        # np.load leaves a damaged file open; the file opened here is closed in any case.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            array: NDArray[np.uint8] = arrays["array"]
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise DataError(f"expected a cached array in {path}; delete it: {error}") from error
    return array
