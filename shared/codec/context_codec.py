"""The context codecs: a model of :mod:`shared.codec.context_model` under a range coder.

The classes here pick the C implementation where there is one; the functions are the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from shared.codec.bitpack import Frames
from shared.codec.context_model import (
    HIDDEN_LIMIT,
    LOGIT_UNITS,
    SQUASH_SIZE,
    ContextTables,
    Integers,
    Maps,
    Shape,
    as_seen_from_spikes,
    current_maps,
    history_contexts,
    neighbour_contexts,
    past_maps,
    squashed,
    weighted,
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
        return encode_frames(frames, history, self.probabilities)

    def probabilities(self, frame: Frames, past: History) -> Integers:
        """Return P(spike) of every neuron of the frame after ``past``, in units of 2 ** -16."""
        row = self._tables.probabilities[self._tables.row(len(past))]
        contexts = contexts_of(frame, past, self._tables.shape)
        return np.take_along_axis(row, contexts, 1).ravel().astype(np.int64)

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        """Return the frames, uint8 ``[steps, bits]``; see :class:`shared.codec.codecs.Codec`."""
        check_size(self._tables.shape, bits)
        if self._native is not None:
            return self._native.decode(data, steps, bits, history)
        return decode_frames(data, steps, history, self._decode_frame)

    def _decode_frame(self, decoder: RangeDecoder, past: History) -> Frames:
        row = self._rows[self._tables.row(len(past))]
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
    """``ctx-max``: the table's logit plus a small network over the surroundings.

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
        check_size(self._tables.shape, frames.shape[1])
        if self._native is not None:
            return self._native.encode(frames, history)
        return encode_frames(frames, history, self.probabilities)

    def probabilities(self, frame: Frames, past: History) -> Integers:
        """Return P(spike) of every neuron of the frame after ``past``, in units of 2 ** -16."""
        mixing, shape, row = self._mixing, self._tables.shape, self._tables.row(len(past))
        contexts = contexts_of(frame, past, shape)
        logits = np.take_along_axis(mixing.logits[row].astype(np.int64), contexts, 1)
        maps = past_maps(mixing, row, past, shape) + current_maps(mixing, row, frame, shape)
        by_channel = maps.reshape(-1, shape[0], mixing.maps).swapaxes(0, 1)
        found = squashed(mixing, logits, by_channel, mixing.hidden[:, None])
        return found.ravel().astype(np.int64)

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        """Return the frames, uint8 ``[steps, bits]``; see :class:`shared.codec.codecs.Codec`."""
        check_size(self._tables.shape, bits)
        if self._native is not None:
            return self._native.decode(data, steps, bits, history)
        return decode_frames(data, steps, history, self._decode_frame)

    def _decode_frame(self, decoder: RangeDecoder, past: History) -> Frames:
        shape, mixing, row = self._tables.shape, self._mixing, self._tables.row(len(past))
        maps = past_maps(mixing, row, past, shape)
        contexts = history_contexts(past, shape)
        planes = []
        for channel in range(shape[0]):
            own = slice(channel * mixing.maps, (channel + 1) * mixing.maps)
            plane = self._decode_plane(decoder, row, channel, maps[..., own], contexts[channel])
            weights = mixing.current[mixing.set_of(row), channel : channel + 1]
            # What this adds to channels that have been decoded is not used.
            maps += weighted(weights, plane, (1, *shape[1:]))
            planes.append(plane)
        return np.concatenate(planes)

    def _decode_plane(
        self, decoder: RangeDecoder, row: int, channel: int, maps: Maps, contexts: Integers
    ) -> Frames:
        """Decode one channel; ``maps``, int16 ``[H, W, M]``, lack the channel's own spikes."""
        mixing, squash = self._mixing, self._squash
        logits = mixing.logits[row, channel].tolist()
        hidden = mixing.hidden[channel].tolist()
        own = slice(channel * mixing.maps, (channel + 1) * mixing.maps)
        around = as_seen_from_spikes(mixing.current[mixing.set_of(row), channel, ..., own])
        border, side = mixing.side // 2, mixing.side
        sums = np.pad(maps, ((border, border), (border, border), (0, 0)))
        bits: list[int] = []
        above = [0] * (maps.shape[1] + 2)
        for y, context_line in enumerate(contexts.tolist()):
            line, west, window = [0], 0, above[1]
            for x, context in enumerate(context_line):
                window = (window << 1 | above[x + 2]) & 7
                first, *units = sums[y + border, x + border].tolist()
                total = (logits[context | west << 3 | window] + first) * LOGIT_UNITS
                for unit, weight in zip(units, hidden, strict=True):
                    total += min(max(unit, 0), HIDDEN_LIMIT) * weight
                index = min(max(total // LOGIT_UNITS + SQUASH_SIZE // 2, 0), SQUASH_SIZE - 1)
                west = decoder.decode(squash[index])
                if west:
                    sums[y : y + side, x : x + side] += around
                line.append(west)
            bits += line[1:]
            above = [*line, 0]
        return np.array(bits, np.uint8)

    @cached_property
    def _squash(self) -> list[int]:
        squash: list[int] = self._mixing.squash.tolist()
        return squash


def check_size(shape: Shape, bits: int) -> None:
    """Raise ValueError unless frames have as many bits as the tables were made for."""
    expected = shape[0] * shape[1] * shape[2]
    if bits != expected:
        raise ValueError(f"expected frames of {expected} bits, as the tables, got {bits}")


def encode_frames(
    frames: Frames, history: History, probabilities: Callable[[Frames, History], Integers]
) -> bytes:
    """Return the code word of frames, uint8 ``[k, n]``, one after the other.

    Args:
        frames: to encode.
        history: the frames before them.
        probabilities: takes a frame and all frames before it; returns P(spike) of its neurons.
    """
    found = [probabilities(frame, past) for frame, past in walk(frames, history)]
    return encode_bits(frames.ravel().tolist(), np.concatenate(found).tolist())


def decode_frames(
    data: bytes,
    steps: int,
    history: History,
    decode_frame: Callable[[RangeDecoder, History], Frames],
) -> Frames:
    """Return the frames of a code word, uint8 ``[steps, n]``, decoded one after the other.

    Args:
        data: the code word.
        steps: how many frames.
        history: the frames before them.
        decode_frame: takes the decoder and all frames before.

    Raises:
        CodecError: the code word is too long.
    """
    decoder, known = RangeDecoder(data), list(history)
    for _ in range(steps):
        known.append(decode_frame(decoder, known))
    decoder.finish()
    return np.stack(known[len(history) :])


def walk(frames: Frames, history: History) -> Iterator[tuple[Frames, History]]:
    """Yield every frame with the frames before it."""
    known = [*history, *frames]
    for timestep in range(len(history), len(known)):
        yield known[timestep], known[:timestep]


def contexts_of(frame: Frames, past: History, shape: Shape) -> Integers:
    """Return every neuron's context, int64 ``[C, H * W]``."""
    contexts = history_contexts(past, shape) | neighbour_contexts(frame, shape)
    return contexts.reshape(shape[0], -1)


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
