from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.data.cifar10 import Images, load_cifar10
from training.data.make_demo_images import COLUMNS, main, tile, write


@pytest.fixture
def images() -> Images:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (3 * COLUMNS, 3, 32, 32), np.uint8)
    return Images(pixels, generator.integers(0, 10, 3 * COLUMNS))


def test_what_is_written_reads_back_exactly(images: Images, tmp_path: Path) -> None:
    write(images, tmp_path)
    again = load_cifar10(tmp_path, train=False)
    assert np.array_equal(again.pixels, images.pixels)
    assert np.array_equal(again.labels, images.labels)


def test_the_first_images_are_taken(images: Images, tmp_path: Path) -> None:
    write(images, tmp_path / "all")
    flags = ("--data", str(tmp_path / "all"), "--out", str(tmp_path / "some"))
    assert main([*flags, "--images", str(COLUMNS)]) == 0
    some = load_cifar10(tmp_path / "some", train=False)
    assert np.array_equal(some.pixels, images.pixels[:COLUMNS])


def test_an_incomplete_row_is_refused(images: Images) -> None:
    with pytest.raises(ValueError, match=f"multiple of {COLUMNS} pictures, got 41"):
        tile(images.pixels[:41], COLUMNS)
