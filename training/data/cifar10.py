"""CIFAR-10 (Krizhevsky 2009) as uint8 arrays, from any of three layouts on disk.

Understood are the published ``cifar-10-batches-py`` and ``cifar-10-batches-bin`` folders, and
lossless image sheets: one image per batch (``data_batch_1`` .. ``5``, ``test_batch``; WebP or
PNG), each 100 x 100 tiles of 32 x 32 RGB, row by row, with ``labels.npz`` (``y_train``,
``y_test``).
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.labelled import DataError, MissingDataError

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
RECORD_BYTES = 1 + 3 * 32 * 32
SHEET_ENDINGS = (".png", ".webp")
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


class Images(NamedTuple):
    """Pictures and their labels."""

    pixels: NDArray[np.uint8]
    """uint8, ``[N, 3, 32, 32]``."""
    labels: NDArray[np.int64]
    """int64, ``[N]``, 0..9 in the order of :data:`CLASSES`."""


class _ArraysOnly(pickle.Unpickler):
    """Unpickler for the published batches that can build NumPy arrays and nothing else."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"a CIFAR-10 batch must not contain {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_cifar10(folder: Path, *, train: bool) -> Images:
    """Read the 50,000 training or the 10,000 test images from ``folder``.

    Raises:
        DataError: a file is damaged, or holds something else.
        MissingDataError: none of the three layouts is there, or a part of one is missing.
    """
    names = TRAIN_BATCHES if train else (TEST_BATCH,)
    for inside in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        if (inside / "labels.npz").is_file():
            return _read_sheets(inside, names, "y_train" if train else "y_test")
        if (inside / f"{names[0]}.bin").is_file():
            return _join([_read_binary(inside / f"{name}.bin") for name in names])
        if (inside / names[0]).is_file():
            return _join([_read_pickle(inside / name) for name in names])
    raise MissingDataError(
        f"expected CIFAR-10 in {folder} as cifar-10-batches-py, cifar-10-batches-bin or image "
        "sheets with labels.npz; get it from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _join(parts: list[Images]) -> Images:
    return Images(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _read_binary(path: Path) -> Images:
    content = _content(path)
    if not content or len(content) % RECORD_BYTES:
        raise DataError(
            f"expected records of {RECORD_BYTES} bytes in {path}, got {len(content)} bytes"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    return Images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))


def _read_pickle(path: Path) -> Images:
    try:
        batch = _ArraysOnly(io.BytesIO(_content(path)), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return Images(pixels, np.asarray(batch[b"labels"], np.int64))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"expected a CIFAR-10 batch in {path}: {error}") from error


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise MissingDataError(f"expected all batches of CIFAR-10, found no {path}")
    return path.read_bytes()


def _read_sheets(folder: Path, names: tuple[str, ...], key: str) -> Images:
    pixels = np.concatenate([_read_sheet(folder, name) for name in names])
    with np.load(folder / "labels.npz") as file:
        labels = file[key]
    if len(labels) != len(pixels):
        raise DataError(f"expected {len(pixels)} labels {key} in {folder}, got {len(labels)}")
    return Images(pixels, labels.astype(np.int64))


def _read_sheet(folder: Path, name: str) -> NDArray[np.uint8]:
    path = next((p for p in sorted(folder.glob(f"{name}.*")) if p.suffix in SHEET_ENDINGS), None)
    if path is None:
        raise MissingDataError(f"expected {name}{' or '.join(SHEET_ENDINGS)} in {folder}")
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    if sheet.shape[0] % 32 or sheet.shape[1] % 32:
        raise DataError(f"expected tiles of 32 x 32 in {path}, got {sheet.shape[:2]}")
    tiles = sheet.reshape(sheet.shape[0] // 32, 32, sheet.shape[1] // 32, 32, 3)
    return tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
