from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data.cifar10 import TEST_BATCH, TRAIN_BATCHES, Images, load_cifar10
from training.data.labelled import DataError, MissingDataError


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

    with pytest.raises(DataError, match="must not contain posix.mkdir"):
        load_cifar10(tmp_path, train=False)
    assert not (tmp_path / "made").exists()


def test_a_folder_without_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected CIFAR-10 in"):
        load_cifar10(tmp_path, train=True)


def test_a_missing_batch_is_named(tmp_path: Path, pictures: dict[str, Images]) -> None:
    write_pickles(tmp_path, pictures)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()

    with pytest.raises(MissingDataError, match="found no .*data_batch_3"):
        load_cifar10(tmp_path, train=True)


@pytest.mark.parametrize("kept_bytes", [0, 1, 3072, 3074])
def test_a_truncated_binary_batch_is_refused(
    tmp_path: Path, cifar10: Path, kept_bytes: int
) -> None:
    whole = (cifar10 / "cifar-10-batches-bin" / f"{TEST_BATCH}.bin").read_bytes()
    (tmp_path / f"{TEST_BATCH}.bin").write_bytes(whole[:kept_bytes])

    with pytest.raises(DataError, match=f"expected records of 3073 bytes .* got {kept_bytes}"):
        load_cifar10(tmp_path, train=False)


def test_a_truncated_python_batch_is_refused(tmp_path: Path, pictures: dict[str, Images]) -> None:
    write_pickles(tmp_path, pictures)
    path = tmp_path / "cifar-10-batches-py" / TEST_BATCH
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(DataError, match="expected a CIFAR-10 batch in"):
        load_cifar10(tmp_path, train=False)


def test_a_sheet_that_does_not_fit_its_labels_is_refused(
    tmp_path: Path, pictures: dict[str, Images]
) -> None:
    write_sheets(tmp_path, pictures)
    Image.new("RGB", (64, 64)).save(tmp_path / f"{TEST_BATCH}.webp", lossless=True)

    with pytest.raises(DataError, match="expected 4 labels y_test .* got 8"):
        load_cifar10(tmp_path, train=False)


def test_a_sheet_of_another_tile_size_is_refused(
    tmp_path: Path, pictures: dict[str, Images]
) -> None:
    write_sheets(tmp_path, pictures)
    Image.new("RGB", (40, 64)).save(tmp_path / f"{TEST_BATCH}.webp", lossless=True)

    with pytest.raises(DataError, match="expected tiles of 32 x 32"):
        load_cifar10(tmp_path, train=False)


def test_a_missing_sheet_is_named(tmp_path: Path, pictures: dict[str, Images]) -> None:
    write_sheets(tmp_path, pictures)
    (tmp_path / f"{TEST_BATCH}.webp").unlink()

    with pytest.raises(MissingDataError, match=f"expected {TEST_BATCH}.png or .webp"):
        load_cifar10(tmp_path, train=False)
