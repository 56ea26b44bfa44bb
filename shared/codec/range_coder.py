"""Binary range coder: a run of bits and their probabilities to a code word and back.

After G. N. N. Martin 1979, "Range encoding", with carries settled by arithmetic instead of by a
byte-wise cache: the reference keeps the whole code word as one integer, so that it reads like the
textbook. Probabilities are integers, P(1) = p / 65536, so that every machine computes the same.

The code word is the shortest byte string that names a number inside the final interval, read as
if zeros followed it for ever: it never ends in a zero byte, and a run of highly probable bits
takes none at all.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.errors import CodecError

PROBABILITY_BITS = 16
"""Probabilities are given in units of 2 ** -16, 1 to 65535."""
_START = 1 << 32
"""Width of the interval at first."""
_LEAST = 1 << 24
"""An interval narrower than this is widened by a byte."""


def encode_bits(bits: Iterable[int], probabilities: Iterable[int]) -> bytes:
    """Return the code word of ``bits`` (0 or 1), ``probabilities`` being P(1) of each."""
    low, width, size_bytes = 0, _START, 4
    for bit, probability in zip(bits, probabilities, strict=True):
        part = (width >> PROBABILITY_BITS) * probability
        if bit:
            width = part
        else:
            low += part
            width -= part
        while width < _LEAST:
            low <<= 8
            width <<= 8
            size_bytes += 1
    return _shortest(low, width, size_bytes)


def _shortest(low: int, width: int, size_bytes: int) -> bytes:
    """Return the fewest bytes of a number in ``[low, low + width)`` of ``size_bytes`` bytes."""
    # Of a unit wider than the interval there is at most one multiple inside.
    dropped_bytes = min(size_bytes, (width.bit_length() + 7) // 8)
    while True:
        number = -(-low >> 8 * dropped_bytes)
        if number << 8 * dropped_bytes < low + width:
            return number.to_bytes(size_bytes - dropped_bytes, "big").rstrip(b"\0")
        dropped_bytes -= 1


class RangeDecoder:
    """Reads the bits of a code word back, one by one.

    Args:
        data: the code word, from a stranger.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = 4
        self._offset = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        """Where the code word lies in the present interval."""
        self._width = _START

    def decode(self, probability: int) -> int:
        """Return the next bit, ``probability`` being its P(1)."""
        part = (self._width >> PROBABILITY_BITS) * probability
        if self._offset < part:
            self._width, bit = part, 1
        else:
            self._offset -= part
            self._width, bit = self._width - part, 0
        while self._width < _LEAST:
            byte = self._data[self._next] if self._next < len(self._data) else 0
            self._offset = self._offset << 8 | byte
            self._width <<= 8
            self._next += 1
        return bit

    def finish(self) -> None:
        """Check that the code word held no more than the bits read.

        Raises:
            CodecError: it is longer, or ends in a zero byte, which no encoder writes.
        """
        if len(self._data) > self._next or self._data.endswith(b"\0"):
            raise CodecError(
                f"expected a code word of at most {self._next} bytes that ends in no zero, "
                f"got {len(self._data)} bytes"
            )
