"""Spike frames as bits, most significant first: the form that every byte count starts from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import CodecError

Frames = NDArray[np.uint8]
"""Spikes, 0 or 1 in one byte each."""


def packed_bytes(bits: int) -> int:
    """Return the bytes that ``bits`` bits fill."""
    return (bits + 7) // 8


def pack(frames: Frames | NDArray[np.bool_]) -> bytes:
    """Pack spikes, every frame from a byte boundary on, the last byte filled up with zeros.

    Args:
        frames: uint8 (0 or 1) or bool, ``[..., n]``.

    Returns:
        ``ceil(n / 8)`` bytes per frame, frame after frame.
    """
    return np.packbits(frames, axis=-1).tobytes()


def unpack(data: bytes, bits: int, steps: int = 1) -> Frames:
    """Undo :func:`pack`.

    Args:
        data: the packed frames.
        bits: n, spikes per frame.
        steps: number of frames.

    Returns:
        uint8, ``[steps, n]``.

    Raises:
        CodecError: wrong length, or a fill-up bit that is not zero.
    """
    expected = steps * packed_bytes(bits)
    if len(data) != expected:
        raise CodecError(
            f"expected {expected} bytes for {steps} frames of {bits} bits, got {len(data)}"
        )
    packed = np.frombuffer(data, np.uint8)
    used = bits % 8
    if used and (packed[packed_bytes(bits) - 1 :: packed_bytes(bits)] & (0xFF >> used)).any():
        raise CodecError(f"expected zeros after {bits} bits, got ones")
    if not used or steps == 1:
        return np.unpackbits(packed, count=steps * bits).reshape(steps, bits)
    return np.unpackbits(packed.reshape(steps, -1), axis=1, count=bits)
