"""From what a caller hands over to what a network reads: pictures and arrays to float32 frames."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import InputError
from shared.model.bundle import Preprocessing
from shared.model.spec import NetworkSpec

MAX_PIXELS = 50_000_000
"""A picture with more pixels is refused before it is decompressed."""
MODES = {1: "L", 3: "RGB"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM")
"""The decoders a stranger's bytes may reach; some of Pillow's others start programs."""
Fit = Literal["stretch", "crop"]
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error)
"""What those decoders raise for a truncated or damaged file."""


def decode_image(
    data: bytes, input_shape: tuple[int, int, int], fit: Fit = "stretch"
) -> NDArray[np.uint8]:
    """Decode a picture file of :data:`FORMATS` and resize it (bilinear) to the network's input.

    It is turned upright where the file says how (EXIF), and laid on white where it is transparent;
    16-bit grey keeps its upper 8 bits.

    Args:
        data: the file's content.
        input_shape: ``[C, H, W]``; C = 1 asks for grey, 3 for RGB.
        fit: as in :class:`shared.model.bundle.Preprocessing`.

    Returns:
        uint8, ``[C, H, W]``.

    Raises:
        InputError: not a picture, damaged, more than :data:`MAX_PIXELS`, or a network that does
            not read pictures.
    """
    return fit_picture(_open(data, _mode(input_shape)), input_shape, fit)


def fit_picture(
    picture: Image.Image, input_shape: tuple[int, int, int], fit: Fit = "stretch"
) -> NDArray[np.uint8]:
    """Give a picture the network's size and colours; see :func:`decode_image`."""
    channels, height, width = input_shape
    picture = picture.convert(_mode(input_shape))
    if picture.size != (width, height):
        if fit == "crop":
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
        else:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(picture, np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _mode(input_shape: tuple[int, int, int]) -> str:
    channels = input_shape[0]
    if channels not in MODES:
        raise InputError(
            f"expected an array: this network reads {channels} channels, a picture has 1 or 3"
        )
    return MODES[channels]


def _open(data: bytes, mode: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a picture above its own, larger limit, and of odd EXIF.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"expected at most {MAX_PIXELS} pixels, got {image.width}x{image.height}"
                    )
                return _upright(image, mode)
    except UnidentifiedImageError as error:
        raise InputError(
            f"expected an image file ({', '.join(FORMATS)}), got {len(data)} bytes of no such kind"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"expected at most {MAX_PIXELS} pixels: {error}") from error
    except DAMAGE as error:
        raise InputError(f"expected a whole image file, got a damaged one: {error}") from error


def _upright(image: Image.Image, mode: str) -> Image.Image:
    """Return the picture's pixels in grey (L) or RGB, as a viewer shows them."""
    image.load()
    upright = _exif_transposed(image)
    if upright.mode.startswith("I;16") or upright.mode == "I":
        upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        shown = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return upright.convert(mode)


def _exif_transposed(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE:
        return image  # The pixels are whole; only what the file says beside them is not.


def read_input(
    value: bytes | NDArray[Any], spec: NetworkSpec, preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Turn an image file's content, or a caller's array, into the network's input.

    Args:
        value: see :func:`decode_image` and :func:`prepare`.
        spec: the network.
        preprocessing: its own.

    Returns:
        float32, ``[C, H, W]`` or ``[T, C, H, W]``.

    Raises:
        InputError: it cannot be used.
    """
    if isinstance(value, bytes):
        value = decode_image(value, spec.input_shape, preprocessing.fit)
    return prepare(value, spec, preprocessing)


def prepare(
    frames: NDArray[Any], spec: NetworkSpec, preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Turn a caller's array into the network's input.

    Args:
        frames: ``[C, H, W]``, the same at every timestep (networks of kind ``static`` only), or
            ``[T, C, H, W]``; uint8 pixels, which are normalised, or float32, taken as normalised.
        spec: the network.
        preprocessing: its normalisation.

    Returns:
        float32, of the shape of ``frames``.

    Raises:
        InputError: another shape or dtype, or a float that is not finite.
    """
    _check_shape(frames, spec)
    if frames.dtype == np.uint8:
        mean, std = (
            np.asarray(values, np.float32).reshape(-1, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        normalised: NDArray[np.float32] = (frames.astype(np.float32) / np.float32(255) - mean) / std
        return normalised
    if frames.dtype != np.float32:
        raise InputError(f"expected uint8 or float32, got {frames.dtype}")
    if not np.isfinite(frames).all():
        raise InputError("expected finite numbers, got NaN or infinity")
    return np.ascontiguousarray(frames)


def to_pixels(frames: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Turn network input back into pixels, for people to look at.

    Args:
        frames: as :func:`prepare` takes or returns them.
        preprocessing: their normalisation.

    Returns:
        uint8, of the shape of ``frames``.
    """
    if frames.dtype == np.uint8:
        return frames
    mean, std = (
        np.asarray(values, np.float32).reshape(-1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    pixels: NDArray[np.uint8] = np.rint(255 * (frames * std + mean)).clip(0, 255).astype(np.uint8)
    return pixels


def _check_shape(frames: NDArray[Any], spec: NetworkSpec) -> None:
    channels, height, width = spec.input_shape
    run = (spec.timesteps, *spec.input_shape)
    wanted = f"[{spec.timesteps}, {channels}, {height}, {width}]"
    accepted: list[tuple[int, ...]] = [run]
    if spec.input_kind == "static":
        accepted.append(spec.input_shape)
        wanted = f"[{channels}, {height}, {width}] or {wanted}"
    if frames.shape not in accepted:
        raise InputError(f"expected an array {wanted}, got {list(frames.shape)}")
