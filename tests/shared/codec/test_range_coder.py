import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.codec.range_coder import RangeDecoder, encode_bits
from shared.errors import CodecError

RUNS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([1, 2, 300, 32768, 65000, 65534, 65535])),
    max_size=300,
)


def decoded(data: bytes, probabilities: list[int]) -> list[int]:
    decoder = RangeDecoder(data)
    bits = [decoder.decode(probability) for probability in probabilities]
    decoder.finish()
    return bits


@given(RUNS)
def test_decoding_undoes_encoding(run: list[tuple[int, int]]) -> None:
    bits, probabilities = [bit for bit, _ in run], [p for _, p in run]
    word = encode_bits(bits, probabilities)
    assert decoded(word, probabilities) == bits
    assert not word.endswith(b"\0")


@given(RUNS, st.binary(min_size=1, max_size=3))
def test_bytes_behind_the_code_word_are_refused(run: list[tuple[int, int]], more: bytes) -> None:
    bits, probabilities = [bit for bit, _ in run], [p for _, p in run]
    padded = encode_bits(bits, probabilities).ljust(400, b"\0") + b"\1" + more
    decoder = RangeDecoder(padded)
    for probability in probabilities[:150]:  # at most 300 bytes are read
        decoder.decode(probability)
    with pytest.raises(CodecError, match="expected a code word of at most"):
        decoder.finish()


def test_a_code_word_that_ends_in_zero_is_refused() -> None:
    word = encode_bits([1, 0, 1], [20000] * 3)
    with pytest.raises(CodecError, match="ends in no zero"):
        decoded(word + b"\0", [20000] * 3)


def test_golden_bytes() -> None:
    assert encode_bits([], []) == b""
    assert encode_bits([1] * 8, [65535] * 8) == b""
    assert encode_bits([0], [32768]) == b"\x80"
    assert encode_bits([0, 1, 1, 0, 1, 0, 0, 0], [32768] * 8) == b"\x97"
    bits = [i * i % 7 % 2 for i in range(64)]
    word = encode_bits(bits, [1000 * (i % 64) + 500 for i in range(64)])
    assert word.hex() == "035496a9f2c60791018aa2"


def test_the_overhead_is_below_half_a_byte_per_code_word() -> None:
    choose, over = random.Random(0), 0.0
    for _ in range(400):
        probabilities = [choose.randint(1, 65535) for _ in range(256)]
        bits = [int(choose.random() * 65536 < p) for p in probabilities]
        ideal = -sum(
            math.log2((p if bit else 65536 - p) / 65536)
            for bit, p in zip(bits, probabilities, strict=True)
        )
        over += len(encode_bits(bits, probabilities)) - ideal / 8
    assert over / 400 < 0.4


def test_as_many_probabilities_as_bits() -> None:
    with pytest.raises(ValueError, match="shorter"):
        encode_bits([1, 0], [5])
