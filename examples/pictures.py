"""The pictures of the demo, and what they weigh in common file formats.

``python -m examples.pictures FILE.npy`` writes them as a source of kind ``array`` takes them.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DATA = Path(__file__).resolve().parent / "data"
SIDE = 32
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "optimize": True},
    "jpeg": {"format": "JPEG", "quality": 75},
    "webp": {"format": "WebP", "quality": 75},
    "webp_lossless": {"format": "WebP", "lossless": True},
}
"""How Pillow is asked to write each format; quality 75 is what it does by default."""


class Pictures(NamedTuple):
    """Pictures and their labels."""

    pixels: NDArray[np.uint8]
    """uint8, ``[N, 3, 32, 32]``."""
    labels: NDArray[np.uint8]
    """uint8, ``[N]``."""


def load_pictures(count: int | None = None, folder: Path = DATA) -> Pictures:
    """Return the first ``count`` pictures shipped, or all.

    Raises:
        ValueError: fewer are shipped, or none are asked for.
    """
    with Image.open(folder / "test_batch.webp") as image:
        sheet = np.asarray(image.convert("RGB"))
    tiles = sheet.reshape(sheet.shape[0] // SIDE, SIDE, sheet.shape[1] // SIDE, SIDE, 3)
    pixels = np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE))
    with np.load(folder / "labels.npz") as arrays:
        labels = arrays["y_test"]
    if count is not None and not 1 <= count <= len(labels):
        raise ValueError(f"expected 1 to {len(labels)} pictures, got {count}")
    return Pictures(pixels[:count], labels[:count])


def mean_file_bytes(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Return the mean size of a picture written in each of :data:`FORMATS`, in bytes.

    Args:
        pixels: uint8, ``[N, 3, H, W]``.
    """
    images = [Image.fromarray(picture.transpose(1, 2, 0)) for picture in pixels]
    return {
        name: float(np.mean([_file_bytes(image, options) for image in images]))
        for name, options in FORMATS.items()
    }


def _file_bytes(image: Image.Image, options: dict[str, Any]) -> int:
    file = io.BytesIO()
    image.save(file, **options)
    return file.tell()


def main(argv: Sequence[str] | None = None) -> int:
    """Write pictures into a file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.pictures", description=main.__doc__)
    parser.add_argument("file", type=Path, help="a .npy file: uint8, [N, 3, 32, 32]")
    parser.add_argument("--count", type=int, metavar="N", help="the first so many (default: all)")
    arguments = parser.parse_args(argv)
    np.save(arguments.file, load_pictures(arguments.count).pixels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
