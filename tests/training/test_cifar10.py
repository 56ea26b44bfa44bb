from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data.cifar10 import TEST_BATCH, TRAIN_BATCHES, Images, load_cifar10


def published_pickle(batch: dict[bytes, Any]) -> bytes:
    """Pickle as the published files are: protocol 2, NumPy's module under its old name."""
    return pickle.dumps(batch, protocol=2).replace(b"numpy._core.", b"numpy.core.")


def write_pickles(folder: Path, pictures: dict[str, Images]) -> None:
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    for name, images in pictures.items():
        flat = images.pixels.reshape(len(images.labels), 3072)
        batch = {b"data": flat, b"labels": images.labels.tolist(), b"batch_label": b"x"}
        (inside / name).write_bytes(published_pickle(batch))


def write_sheets(folder: Path, pictures: dict[str, Images]) -> None:
    for name, images in pictures.items():
        tiles = images.pixels.reshape(2, 4, 3, 32, 32).transpose(0, 3, 1, 4, 2)
        Image.fromarray(tiles.reshape(64, 128, 3)).save(folder / f"{name}.webp", lossless=True)
    train = np.concatenate([pictures[name].labels for name in TRAIN_BATCHES])
    np.savez(folder / "labels.npz", y_train=train, y_test=pictures[TEST_BATCH].labels)


def check(folder: Path, pictures: dict[str, Images]) -> None:
    train, test = load_cifar10(folder, train=True), load_cifar10(folder, train=False)
    expected = [pictures[name] for name in TRAIN_BATCHES]
    np.testing.assert_array_equal(train.pixels, np.concatenate([e.pixels for e in expected]))
    np.testing.assert_array_equal(train.labels, np.concatenate([e.labels for e in expected]))
    np.testing.assert_array_equal(test.pixels, pictures[TEST_BATCH].pixels)
    np.testing.assert_array_equal(test.labels, pictures[TEST_BATCH].labels)
    assert train.pixels.dtype == np.uint8
    assert train.labels.dtype == np.int64


def test_binary_batches(cifar10: Path, pictures: dict[str, Images]) -> None:
    check(cifar10, pictures)
    check(cifar10 / "cifar-10-batches-bin", pictures)


def test_python_batches(tmp_path: Path, pictures: dict[str, Images]) -> None:
    write_pickles(tmp_path, pictures)

    check(tmp_path, pictures)


def test_image_sheets(tmp_path: Path, pictures: dict[str, Images]) -> None:
    write_sheets(tmp_path, pictures)

    check(tmp_path, pictures)


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, pictures: dict[str, Images]
) -> None:
    class Command:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    write_pickles(tmp_path, pictures)
    batch = pickle.dumps({b"data": Command()}, protocol=2)
    (tmp_path / "cifar-10-batches-py" / TEST_BATCH).write_bytes(batch)

    with pytest.raises(pickle.UnpicklingError, match="must not contain posix.mkdir"):
        load_cifar10(tmp_path, train=False)
    assert not (tmp_path / "made").exists()


def test_a_folder_without_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected CIFAR-10 in"):
        load_cifar10(tmp_path, train=True)
