from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from shared.errors import InputError
from shared.model.bundle import Preprocessing
from shared.model.preprocessing import FORMATS, decode_image, prepare
from shared.model.spec import BottleneckSpec, NetworkSpec

PREPROCESSING = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def spec(kind: Any = "static", channels: int = 3) -> NetworkSpec:
    return NetworkSpec(
        backbone="resnet18",
        input_shape=(channels, 8, 8),
        input_kind=kind,
        classes=2,
        timesteps=3,
        bottleneck=BottleneckSpec(split="layer1", channels=1),
    )


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def random_pixels(height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size without holding the pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + b"\0\0\0\0IDAT"


def test_a_lossless_picture_of_the_right_size_keeps_its_pixels() -> None:
    pixels = random_pixels()

    decoded = decode_image(encoded(pixels), (3, 8, 8))

    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_other_sizes_are_resized(kind: str) -> None:
    flat = np.full((30, 50, 3), (10, 200, 90), np.uint8)

    decoded = decode_image(encoded(flat, kind), (3, 8, 12))

    assert decoded.shape == (3, 8, 12)
    assert np.abs(decoded.reshape(3, -1).T.astype(int) - (10, 200, 90)).max() < 6


def test_colour_becomes_grey_where_the_network_reads_grey() -> None:
    assert decode_image(encoded(random_pixels()), (1, 8, 8)).shape == (1, 8, 8)


def test_a_picture_is_turned_as_its_file_says() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)

    turned = decode_image(buffer.getvalue(), (3, 8, 8))

    np.testing.assert_array_equal(turned[0, :, 7], 255)
    assert turned[0, :, :7].max() == 0


def test_what_is_transparent_shows_white() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")

    shown = decode_image(buffer.getvalue(), (3, 8, 8))

    assert shown[:, :4].max() == 0
    assert shown[:, 4:].min() == 255


def test_sixteen_bits_of_grey_keep_their_upper_half() -> None:
    grey = np.full((8, 8), 0x80FF, np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")

    assert set(decode_image(buffer.getvalue(), (1, 8, 8)).ravel().tolist()) == {0x80}


def test_crop_keeps_the_proportions_and_the_middle() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200

    assert decode_image(encoded(wide), (3, 8, 8), "crop").min() == 200
    assert decode_image(encoded(wide), (3, 8, 8)).min() == 0


@given(st.data())
def test_damaged_pictures_are_refused_or_decoded_and_nothing_else(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    content = bytearray(encoded(random_pixels(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(content), (3, 8, 8)).shape == (3, 8, 8)
    except InputError as error:
        assert "expected" in str(error)


def test_grey_and_palette_and_transparency_become_colour() -> None:
    for mode in ("L", "P", "RGBA", "1"):
        buffer = io.BytesIO()
        Image.fromarray(random_pixels()).convert(mode).save(buffer, "PNG")
        assert decode_image(buffer.getvalue(), (3, 8, 8)).shape == (3, 8, 8)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="expected"):
        decode_image(data, (3, 8, 8))


def test_kinds_whose_decoders_start_programs_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(random_pixels()).save(buffer, "EPS")

    with pytest.raises(InputError, match="expected an image file"):
        decode_image(buffer.getvalue(), (3, 8, 8))


def test_a_truncated_picture_is_refused() -> None:
    data = encoded(random_pixels(64, 64))

    with pytest.raises(InputError, match="expected a whole image file"):
        decode_image(data[: len(data) // 2], (3, 8, 8))


@pytest.mark.parametrize(("width", "height"), [(10_000, 6_000), (60_000, 60_000)])
def test_a_picture_of_too_many_pixels_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(InputError, match="expected at most 50000000 pixels"):
        decode_image(png_header(width, height), (3, 8, 8))


def test_a_network_of_other_channels_takes_no_picture() -> None:
    with pytest.raises(InputError, match="reads 2 channels"):
        decode_image(encoded(random_pixels()), (2, 8, 8))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_image(data, (3, 8, 8))


@given(
    kind=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.1, 1),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of corrupt metadata
def test_a_damaged_picture_raises_input_error_or_decodes(
    kind: str, edits: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(encoded(random_pixels(), kind))
    for position, value in edits:
        data[int(position * len(data))] = value
    del data[int(keep * len(data)) :]
    try:
        decoded = decode_image(bytes(data), (3, 8, 8))
    except InputError:
        return
    assert decoded.shape == (3, 8, 8)


def test_pixels_are_normalised_by_channel() -> None:
    frames = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1) * np.ones((3, 8, 8), np.uint8)

    prepared = prepare(frames, spec(), PREPROCESSING)

    assert prepared.dtype == np.float32
    assert prepared.shape == (3, 8, 8)
    np.testing.assert_allclose(prepared[:, 0, 0], [-1.0, (0.2 - 0.25) / 0.25, 1.0], rtol=1e-6)


def test_float32_is_taken_as_normalised() -> None:
    frames = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)

    np.testing.assert_array_equal(prepare(frames, spec(), PREPROCESSING), frames)


@pytest.mark.parametrize("kind", ["static", "events"])
def test_a_frame_per_timestep_is_accepted(kind: str) -> None:
    frames = np.zeros((3, 3, 8, 8), np.uint8)

    assert prepare(frames, spec(kind), PREPROCESSING).shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("static", (3, 8, 9), r"\[3, 8, 8\] or \[3, 3, 8, 8\], got \[3, 8, 9\]"),
        ("static", (8, 8, 3), r"got \[8, 8, 3\]"),
        ("static", (2, 3, 8, 8), r"got \[2, 3, 8, 8\]"),
        ("static", (8, 8), r"got \[8, 8\]"),
        ("static", (), r"got \[\]"),
        ("events", (3, 8, 8), r"expected an array \[3, 3, 8, 8\], got \[3, 8, 8\]"),
        ("events", (4, 3, 8, 8), r"got \[4, 3, 8, 8\]"),
    ],
)
def test_other_shapes_are_refused(kind: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(np.zeros(shape, np.uint8), spec(kind), PREPROCESSING)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.bool_, np.float16, np.int8, object])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match="expected uint8 or float32, got"):
        prepare(np.zeros((3, 8, 8), dtype), spec(), PREPROCESSING)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    frames = np.zeros((3, 8, 8), np.float32)
    frames[1, 2, 3] = bad

    with pytest.raises(InputError, match="finite"):
        prepare(frames, spec(), PREPROCESSING)
