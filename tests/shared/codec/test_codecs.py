import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.codec.bitpack import Frames, pack
from shared.codec.codecs import CODECS, get_codec
from shared.errors import CodecError

FRAMES = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 4), st.integers(1, 300)),
    elements=st.integers(0, 1),
)
NAMES = sorted(CODECS)


def sparse_frames(steps: int, bits: int, rate: float = 0.02) -> Frames:
    return (np.random.default_rng(7).random((steps, bits)) < rate).astype(np.uint8)


def zstd_frame(data: bytes, write_content_size: bool) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=write_content_size
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(frames=FRAMES)
def test_decoding_undoes_encoding(name: str, frames: Frames) -> None:
    codec = get_codec(name)
    steps, bits = frames.shape
    again = codec.decode(codec.encode(frames, []), steps, bits, [])
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, frames)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.binary(max_size=80), steps=st.integers(1, 4), bits=st.integers(1, 200))
def test_any_bytes_give_frames_of_the_agreed_size_or_a_codec_error(
    name: str, data: bytes, steps: int, bits: int
) -> None:
    try:
        frames = get_codec(name).decode(data, steps, bits, [])
    except CodecError:
        return
    assert frames.shape == (steps, bits)


@pytest.mark.parametrize("name", NAMES)
def test_a_codec_may_be_shared_by_threads(name: str) -> None:
    codec = get_codec(name)
    batches = [sparse_frames(2, 4096, rate) for rate in (0.01, 0.05, 0.1, 0.3)]

    def round_trip(frames: Frames) -> None:
        for _ in range(50):
            again = codec.decode(codec.encode(frames, []), 2, 4096, [])
            np.testing.assert_array_equal(again, frames)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(round_trip, batches))


def test_zstd_shortens_large_sparse_frames() -> None:
    frames = sparse_frames(1, 8192)
    assert len(get_codec("zstd").encode(frames, [])) < len(pack(frames)) / 2


def test_a_zstd_frame_that_states_its_true_size_is_read() -> None:
    frames = sparse_frames(2, 1024)
    data = zstd_frame(pack(frames), write_content_size=True)
    np.testing.assert_array_equal(get_codec("zstd").decode(data, 2, 1024, []), frames)


def test_a_zstd_bomb_is_refused_before_anything_is_allocated() -> None:
    bomb = zstd_frame(bytes(64 << 20), write_content_size=True)
    assert len(bomb) < 5000
    get_codec("zstd").encode(sparse_frames(1, 256), [])
    tracemalloc.start()
    with pytest.raises(CodecError, match="expected a zstd frame of 32 bytes, got 67108864"):
        get_codec("zstd").decode(bomb, 1, 256, [])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000


def test_a_zstd_bomb_without_a_size_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        window_log=10,
    )
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(1 << 20))
    with pytest.raises(CodecError, match="32 bytes"):
        get_codec("zstd").decode(bomb, 1, 256, [])


def test_a_zstd_frame_that_claims_a_tebibyte_is_refused() -> None:
    claim = bytes([0b1110_0000]) + (1 << 40).to_bytes(8, "little") + bytes(7)
    with pytest.raises(CodecError, match="got 1099511627776"):
        get_codec("zstd").decode(claim, 1, 256, [])


def test_a_zstd_window_beyond_need_is_refused() -> None:
    window_of_128_mib = bytes([0, 17 << 3])
    with pytest.raises(CodecError, match="window of at most 1024 bytes, got 134217728"):
        get_codec("zstd").decode(window_of_128_mib + bytes(6), 1, 256, [])


@pytest.mark.parametrize("size", [31, 33])
def test_a_zstd_frame_of_another_size_is_refused(size: int) -> None:
    data = zstd_frame(bytes(size), write_content_size=False)
    with pytest.raises(CodecError, match="32"):
        get_codec("zstd").decode(data, 1, 256, [])


def test_bytes_behind_a_zstd_frame_are_refused() -> None:
    codec = get_codec("zstd")
    data = codec.encode(sparse_frames(1, 1024), [])
    with pytest.raises(CodecError):
        codec.decode(data + b"\x00", 1, 1024, [])


def test_every_truncation_of_a_zstd_frame_is_refused() -> None:
    codec = get_codec("zstd")
    data = codec.encode(sparse_frames(1, 1024), [])
    for length in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:length], 1, 1024, [])


def test_a_zstd_frame_with_ones_behind_the_last_spike_is_refused() -> None:
    data = zstd_frame(b"\xff" * 2, write_content_size=False)
    with pytest.raises(CodecError, match="zeros after 10 bits"):
        get_codec("zstd").decode(data, 1, 10, [])


def test_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(CodecError, match="expected a codec of raw, zstd; got 'lz5'"):
        get_codec("lz5")
