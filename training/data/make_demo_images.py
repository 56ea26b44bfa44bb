"""Write the demo's pictures: the first 1,000 CIFAR-10 test images, lossless, with their labels.

``python -m training.data.make_demo_images --data DIR`` reads CIFAR-10 in any layout of
:mod:`training.data.cifar10` and writes the sheet layout of that module, which it then reads back
and compares pixel by pixel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.cifar10 import TEST_BATCH, Images, load_cifar10

COLUMNS = 40
OUT = Path(__file__).resolve().parents[2] / "examples" / "data"


def tile(pixels: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Lay pictures out row by row on one sheet.

    Args:
        pixels: uint8, ``[N, 3, H, W]``, N a multiple of ``columns``.
        columns: pictures in one row.

    Returns:
        uint8, ``[N / columns * H, columns * W, 3]``.

    Raises:
        ValueError: N is not a multiple of ``columns``.
    """
    count, channels, height, width = pixels.shape
    if count % columns:
        raise ValueError(f"expected a multiple of {columns} pictures, got {count}")
    grid = pixels.reshape(count // columns, columns, channels, height, width)
    return grid.transpose(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)


def write(images: Images, folder: Path) -> None:
    """Write one lossless sheet and ``labels.npz`` into ``folder``.

    Raises:
        RuntimeError: what was written does not read back as the same pixels and labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheet = Image.fromarray(tile(images.pixels, COLUMNS))
    sheet.save(folder / f"{TEST_BATCH}.webp", lossless=True, quality=100, method=6)
    np.savez_compressed(folder / "labels.npz", y_test=images.labels.astype(np.uint8))
    again = load_cifar10(folder, train=False)
    same_pixels = np.array_equal(again.pixels, images.pixels)
    if not (same_pixels and np.array_equal(again.labels, images.labels)):
        raise RuntimeError(f"expected the pictures read back from {folder} to be the same")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds CIFAR-10")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write")
    parser.add_argument("--images", type=int, default=1000, help=f"a multiple of {COLUMNS}")
    flags = parser.parse_args(argv)
    test = load_cifar10(flags.data, train=False)
    write(Images(test.pixels[: flags.images], test.labels[: flags.images]), flags.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
