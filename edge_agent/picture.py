"""What people see of an input: a small PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_agent.inputs import Data
from shared.errors import InputError
from shared.model.bundle import Preprocessing
from shared.model.preprocessing import MODES, decode_image, to_pixels
from shared.model.spec import NetworkSpec

MAX_SIDE_PIXELS = 128


def to_png(frame: Data, spec: NetworkSpec, preprocessing: Preprocessing) -> bytes | None:
    """Return a picture of an input; None where it is none.

    Args:
        frame: an image file, ``[C, H, W]`` or ``[T, C, H, W]`` (its last timestep is shown), as
            a caller hands it over or as the network reads it.
        spec: the network.
        preprocessing: its normalisation.
    """
    try:
        pixels = decode_image(frame, spec.input_shape) if isinstance(frame, bytes) else frame
    except InputError:
        return None
    if pixels.ndim == 4:
        pixels = pixels[-1]
    if pixels.shape != spec.input_shape:
        return None
    shown = _visible(to_pixels(pixels, preprocessing))
    picture = Image.fromarray(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0])
    picture.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _visible(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one channel (grey) or three (RGB); of events, off in blue and on in red."""
    channels = len(pixels)
    if channels in MODES:
        return pixels
    # Counts of events are small: the highest is made as bright as can be.
    bright = pixels.astype(np.float32) * (255 / max(1, int(pixels.max())))
    shown = bright.mean(0, keepdims=True)
    if channels == 2:
        off, on = bright
        shown = np.stack([on, np.minimum(on, off), off])
    return np.asarray(shown, np.uint8)
