"""The context codecs: a model of :mod:`shared.codec.context_model` under a range coder.

The classes here pick the C implementation where there is one; the functions are the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from shared.codec.bitpack import Frames
from shared.codec.context_model import (
    ContextTables,
    Integers,
    MixingWeights,
    Shape,
    current_logits,
    history_contexts,
    neighbour_contexts,
    past_logits,
    squash,
    surroundings,
)
from shared.codec.native import AVAILABLE, NativeCoder
from shared.codec.range_coder import RangeDecoder, encode_bits

History = Sequence[Frames]


class ContextCodec:
    """``ctx``: a table of contexts.

    Args:
        tables: fitted to the code.
        native: use the C implementation where there is one.
    """

    name = "ctx"

    def __init__(self, tables: ContextTables, *, native: bool = True) -> None:
        self._tables = tables
        self._native = NativeCoder(tables, mixing=False) if native and AVAILABLE else None

    def encode(self, frames: Frames, history: History) -> bytes:
        """Return the code word of ``frames``, uint8 ``[k, n]``.

        Raises:
            ValueError: frames of another size than the tables'.
        """
        check_size(self._tables.shape, frames.shape[1])
        if self._native is not None:
            return self._native.encode(frames, history)
        probabilities: list[int] = []
        for frame, timestep, past in walk(frames, history):
            row = self._tables.probabilities[self._tables.row(timestep)]
            contexts = contexts_of(frame, past, self._tables.shape)
            probabilities += np.take_along_axis(row, contexts, 1).ravel().tolist()
        return encode_bits(frames.ravel().tolist(), probabilities)

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        """Return the frames, uint8 ``[steps, bits]``; see :class:`shared.codec.codecs.Codec`."""
        check_size(self._tables.shape, bits)
        if self._native is not None:
            return self._native.decode(data, steps, bits, history)
        return decode_frames(data, steps, history, self._decode_frame)

    def _decode_frame(self, decoder: RangeDecoder, timestep: int, past: History) -> Frames:
        row = self._rows[self._tables.row(timestep)]
        contexts = history_contexts(past, self._tables.shape).tolist()
        bits = [
            bit
            for probabilities, plane in zip(row, contexts, strict=True)
            for bit in decode_plane(decoder, probabilities, plane)
        ]
        return np.array(bits, np.uint8)

    @cached_property
    def _rows(self) -> list[list[list[int]]]:
        rows: list[list[list[int]]] = self._tables.probabilities.tolist()
        return rows


class MixingCodec:
    """``ctx-max``: the table's logit plus weighed surroundings.

    Args:
        tables: fitted to the code, with mixing weights.
        native: use the C implementation where there is one.

    Raises:
        ValueError: the tables have no mixing weights.
    """

    name = "ctx-max"

    def __init__(self, tables: ContextTables, *, native: bool = True) -> None:
        if tables.mixing is None:
            raise ValueError("expected tables with mixing weights")
        self._tables = tables
        self._mixing = tables.mixing
        self._native = NativeCoder(tables, mixing=True) if native and AVAILABLE else None

    def encode(self, frames: Frames, history: History) -> bytes:
        """Return the code word of ``frames``, uint8 ``[k, n]``.

        Raises:
            ValueError: frames of another size than the tables'.
        """
        shape, mixing = self._tables.shape, self._mixing
        check_size(shape, frames.shape[1])
        if self._native is not None:
            return self._native.encode(frames, history)
        probabilities: list[int] = []
        for frame, timestep, past in walk(frames, history):
            row = self._tables.row(timestep)
            contexts = contexts_of(frame, past, shape)
            logits = np.take_along_axis(mixing.logits[row].astype(np.int64), contexts, 1)
            logits = logits.reshape(shape) + past_logits(mixing, row, past, shape)
            logits += current_logits(mixing, row, frame, shape)
            probabilities += squash(mixing, logits).ravel().tolist()
        return encode_bits(frames.ravel().tolist(), probabilities)

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        """Return the frames, uint8 ``[steps, bits]``; see :class:`shared.codec.codecs.Codec`."""
        check_size(self._tables.shape, bits)
        if self._native is not None:
            return self._native.decode(data, steps, bits, history)
        return decode_frames(data, steps, history, self._decode_frame)

    def _decode_frame(self, decoder: RangeDecoder, timestep: int, past: History) -> Frames:
        shape, mixing, row = self._tables.shape, self._mixing, self._tables.row(timestep)
        sums = past_logits(mixing, row, past, shape)
        contexts = history_contexts(past, shape)
        planes = []
        for channel in range(shape[0]):
            plane = self._decode_plane(decoder, row, channel, sums[channel], contexts[channel])
            weights = mixing.current[row, channel].reshape(9, shape[0]).astype(np.int64)
            added = weights.T @ surroundings(plane, (1, *shape[1:]))
            # What this adds to channels that have been decoded is not used.
            sums += added.reshape(shape)
            planes.append(plane)
        return np.concatenate(planes)

    def _decode_plane(
        self,
        decoder: RangeDecoder,
        row: int,
        channel: int,
        sums: Integers,
        contexts: Integers,
    ) -> Frames:
        """Decode one channel; a logit is the table's, the own channel's and the sum given."""
        table = self._mixing.logits[row, channel].astype(np.int64) + near_logits(
            self._mixing, row, channel
        )
        lookup, squashed = table.tolist(), self._squash
        last = len(squashed) - 1
        bits: list[int] = []
        above = [0] * (sums.shape[1] + 2)
        for sum_line, context_line in zip(sums.tolist(), contexts.tolist(), strict=True):
            line, west, window = [0], 0, above[1]
            for x, (total, context) in enumerate(zip(sum_line, context_line, strict=True), start=2):
                window = (window << 1 | above[x]) & 7
                index = total + lookup[context | west << 3 | window] + (last + 1) // 2
                west = decoder.decode(squashed[min(max(index, 0), last)])
                line.append(west)
            bits += line[1:]
            above = [*line, 0]
        return np.array(bits, np.uint8)

    @cached_property
    def _squash(self) -> list[int]:
        squashed: list[int] = self._mixing.squash.tolist()
        return squashed


def check_size(shape: Shape, bits: int) -> None:
    """Raise ValueError unless frames have as many bits as the tables were made for."""
    expected = shape[0] * shape[1] * shape[2]
    if bits != expected:
        raise ValueError(f"expected frames of {expected} bits, as the tables, got {bits}")


def decode_frames(
    data: bytes,
    steps: int,
    history: History,
    decode_frame: Callable[[RangeDecoder, int, History], Frames],
) -> Frames:
    """Return the frames of a code word, uint8 ``[steps, n]``, decoded one after the other.

    Args:
        data: the code word.
        steps: how many frames.
        history: the frames before them.
        decode_frame: takes decoder, timestep and all frames before it.

    Raises:
        CodecError: the code word is too long.
    """
    decoder, known = RangeDecoder(data), list(history)
    for timestep in range(len(history), len(history) + steps):
        known.append(decode_frame(decoder, timestep, known))
    decoder.finish()
    return np.stack(known[len(history) :])


def walk(frames: Frames, history: History) -> Iterator[tuple[Frames, int, History]]:
    """Yield every frame with its timestep and the frames before it."""
    known = [*history, *frames]
    for timestep in range(len(history), len(known)):
        yield known[timestep], timestep, known[:timestep]


def contexts_of(frame: Frames, past: History, shape: Shape) -> Integers:
    """Return every neuron's context, int64 ``[C, H * W]``."""
    contexts = history_contexts(past, shape) | neighbour_contexts(frame, shape)
    return contexts.reshape(shape[0], -1)


def near_logits(mixing: MixingWeights, row: int, channel: int) -> Integers:
    """Return what the own channel's weights add in every context, int64 ``[256]``."""
    weights = mixing.current[row, channel, :, :, channel]
    (north_west, north, north_east), (west, _, _), _ = weights.tolist()
    near = np.arange(256)
    added: Integers = (
        (near >> 3 & 1) * west
        + (near >> 2 & 1) * north_west
        + (near >> 1 & 1) * north
        + (near & 1) * north_east
    )
    return added


def decode_plane(
    decoder: RangeDecoder, probabilities: list[int], contexts: list[list[int]]
) -> list[int]:
    """Decode one channel: P(1) by context, and the history's part of every neuron's context."""
    decode = decoder.decode
    bits: list[int] = []
    above = [0] * (len(contexts[0]) + 2)
    for context_line in contexts:
        line, west, window = [0], 0, above[1]
        for x, context in enumerate(context_line, start=2):
            # The three bits NW, N, NE slide along the line above.
            window = (window << 1 | above[x]) & 7
            west = decode(probabilities[context | west << 3 | window])
            line.append(west)
        bits += line[1:]
        above = [*line, 0]
    return bits
