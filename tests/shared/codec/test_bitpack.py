import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.codec.bitpack import Frames, pack, packed_bytes, unpack
from shared.errors import CodecError

FRAMES = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    elements=st.integers(0, 1),
)


def test_the_first_spike_is_the_most_significant_bit() -> None:
    assert pack(np.array([1, 0, 0, 0, 0, 0, 1, 0, 1, 1], np.uint8)) == bytes([0x82, 0xC0])


def test_every_frame_begins_at_a_byte() -> None:
    assert pack(np.array([[1, 1, 1], [0, 0, 1]], bool)) == bytes([0xE0, 0x20])


@settings(deadline=None)
@given(FRAMES)
def test_unpacking_undoes_packing(frames: Frames) -> None:
    steps, bits = frames.shape
    data = pack(frames)
    assert len(data) == steps * packed_bytes(bits)
    again = unpack(data, bits, steps)
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, frames)


def test_a_one_behind_the_last_spike_is_refused() -> None:
    with pytest.raises(CodecError, match="zeros after 10 bits"):
        unpack(bytes([0xFF, 0xE0]), 10)
    with pytest.raises(CodecError, match="zeros after 10 bits"):
        unpack(bytes([0xFF, 0xC1, 0xFF, 0xC0]), 10, steps=2)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00\x00"])
def test_a_wrong_length_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match=f"expected 2 bytes .* got {len(data)}"):
        unpack(data, 16)
