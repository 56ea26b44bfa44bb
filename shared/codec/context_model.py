"""How probable is a spike, given what both sides know already? Integer models of the code.

Two models, both fitted on calibration samples and stored in the bundle as integers, so that every
machine computes the same probabilities:

* ``ctx``: a table, by timestep and channel, over the last four spikes of the same neuron in this
  sample and its W, NW, N and NE neighbours in this timestep. LIF neurons alternate rather than
  repeat, which is why the neuron's own history says most.
* ``ctx-max``: the table's logit plus a small network, one for each channel. Its maps are sums over
  the neuron's place in this timestep and the spikes around it, of all channels: 3x3 in the last two
  timesteps, 5x5 in what of this timestep has been coded already. The first map is added to the
  logit as it is; the others are hidden units, which count only where positive.

Neurons are coded channel by channel, row by row. Outside the frame, and before the sample, nothing
spikes. The arithmetic here is the reference; :mod:`shared.codec.native` does the same in C.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.codec.bitpack import Frames
from shared.errors import CodecError

Shape = tuple[int, int, int]
"""``[C, H, W]`` of one code frame."""
Integers = NDArray[np.int64]
Maps = NDArray[np.int16]
"""Sums of weights. They are taken modulo 2 ** 16, so that their order does not matter; those of
fitted weights stay far below."""

HISTORY = 4
"""Earlier spikes of a neuron that the table looks at."""
CONTEXTS = 1 << (HISTORY + 4)
"""Contexts per timestep and channel: bits 7-4 the neuron's history, the most recent spike lowest;
bits 3-0 its W, NW, N and NE neighbours."""
MAX_ROWS = 8
"""Timesteps with parameters of their own; later ones share the last row."""
LAGS = 2
"""Earlier timesteps whose surroundings ``ctx-max`` weighs."""
PAST_SIDE = 3
"""Neurons along a side of those surroundings."""
SIDES = (3, 5)
"""The same for this timestep, as the tables have it."""
MAX_MAPS = 9
"""Most maps of a channel of ``ctx-max``."""
LOGIT_UNITS = 256
"""Logits are in units of 1/256."""
SQUASH_SIZE = 4096
"""Logits from -8 to 8 have an entry in the table that turns them into probabilities."""
HIDDEN_LIMIT = 4095
"""What a hidden unit counts at most, in units of 1/256."""
MAX_BYTES = 64 << 20
"""A parameter file larger than this, unpacked, is refused."""


class MixingWeights(NamedTuple):
    """What ``ctx-max`` adds to the table: M maps for every channel, in units of 1/256.

    Of the C * M maps those of a channel lie together, in the order of the channels.
    """

    logits: NDArray[np.int16]
    """``[rows, C, 256]``: the table as logits."""
    places: NDArray[np.int16]
    """``[1 or rows, H, W, C * M]``: what a map is without any spike, at all timesteps or by row."""
    past: NDArray[np.int16]
    """``[sets, 2, C', 3, 3, C * M]``: weight of a spike of channel C', one or two timesteps ago, in
    the surroundings (dy, dx) of a map's neuron. One set of weights is for all timesteps, or there
    is one for each row."""
    current: NDArray[np.int16]
    """``[sets, C', side, side, C * M]``: the same in this timestep. Channels C' < C count whole,
    C' = C only where it has been coded already (above, or W of the neuron), C' > C not at all:
    those weights are zero."""
    hidden: NDArray[np.int16]
    """``[C, M - 1]``: what a hidden unit adds to the logit."""
    squash: NDArray[np.uint16]
    """``[4096]``: probability by logit + 2048."""

    @property
    def maps(self) -> int:
        """Maps of a channel: M."""
        units: int = self.hidden.shape[1]
        return 1 + units

    @property
    def side(self) -> int:
        """Neurons along a side of this timestep's surroundings."""
        side: int = self.current.shape[2]
        return side

    def places_of(self, row: int) -> NDArray[np.int16]:
        """Return the places of a row."""
        places: NDArray[np.int16] = self.places[min(row, len(self.places) - 1)]
        return places

    def set_of(self, row: int) -> int:
        """Return the set of weights of a row."""
        return min(row, len(self.past) - 1)


class ContextTables(NamedTuple):
    """The parameters of both models for one code."""

    shape: Shape
    probabilities: NDArray[np.uint16]
    """``[rows, C, 256]``: P(spike) in units of 2 ** -16, at least 1."""
    mixing: MixingWeights | None = None
    """None where the bundle has no ``ctx-max``."""

    @property
    def rows(self) -> int:
        """Timesteps with parameters of their own."""
        return len(self.probabilities)

    def row(self, timestep: int) -> int:
        """Return the row of a timestep."""
        return min(timestep, self.rows - 1)


def save_tables(tables: ContextTables) -> bytes:
    """Return a parameter file (NumPy ``.npz``); the same tables give the same bytes."""
    arrays: dict[str, NDArray[np.generic]] = {
        "shape": np.array(tables.shape, "<u2"),
        "probabilities": tables.probabilities.astype("<u2"),
    }
    if tables.mixing is not None:
        for name, array in tables.mixing._asdict().items():
            arrays[name] = array.astype(array.dtype.newbyteorder("<"))
    buffer = io.BytesIO()
    # Not compressed: that would give other bytes with another zlib.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            # With its date fixed an archive depends on nothing but its content.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    return buffer.getvalue()


def load_tables(data: bytes) -> ContextTables:
    """Read a parameter file from a stranger.

    Raises:
        CodecError: not such a file, too large, or arrays that do not fit each other.
    """
    arrays = _read_arrays(data)
    sizes = arrays.get("shape", _NO_ARRAY)
    _check("shape", sizes, np.uint16, (3,))
    channels, height, width = sizes.tolist()
    if not channels * height * width:
        raise CodecError(f"expected a code shape of positive sizes, got {sizes.tolist()}")
    probabilities = arrays.get("probabilities", _NO_ARRAY)
    rows = len(probabilities)
    _check("probabilities", probabilities, np.uint16, (rows, channels, CONTEXTS))
    if not 1 <= rows <= MAX_ROWS or probabilities.min() < 1:
        raise CodecError(
            f"expected 1 to {MAX_ROWS} rows of probabilities of at least 1, got {rows} rows"
        )
    shape = (channels, height, width)
    mixing = _mixing(arrays, rows, shape) if "past" in arrays else None
    return ContextTables(shape, probabilities.astype(np.uint16, copy=False), mixing)


_NO_ARRAY: NDArray[np.generic] = np.empty(0, np.uint16)


_DAMAGED = (
    zipfile.BadZipFile,  # no archive, or a member's CRC is wrong
    zlib.error,  # a member that does not unpack
    NotImplementedError,  # a compression or an encryption that zipfile does not know
    RuntimeError,  # a member that asks for a password
    EOFError,  # a member ends early
    OSError,  # a seek before the start
    ValueError,  # no array of 16-bit integers
)
"""What zipfile raises for damaged files, as damaging them brings out, and :func:`_array`."""
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<[iu]2)', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,9},? ?){1,7})\), \} *\n",
    re.DOTALL,
)
"""The head of a NumPy array file: read so, nothing in it is evaluated, as NumPy itself would."""


def _read_arrays(data: bytes) -> dict[str, NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > MAX_BYTES:
                raise CodecError(f"expected at most {MAX_BYTES} bytes of codec tables, got {size}")
            return {
                member.filename.removesuffix(".npy"): _array(archive.read(member))
                for member in members
            }
    except _DAMAGED as error:
        raise CodecError(f"expected codec tables (npz): {error}") from error


def _array(content: bytes) -> NDArray[np.generic]:
    head = _HEADER.match(content)
    if head is None:
        raise ValueError("expected arrays of 16-bit integers, got something else")
    shape = [int(size) for size in head[2].decode().replace(",", " ").split()]
    values = np.frombuffer(content, head[1].decode(), offset=head.end())
    if values.size != math.prod(shape):
        raise ValueError(f"expected {shape} integers, got {values.size}")
    return values.reshape(shape).astype(values.dtype.newbyteorder("="))


def _mixing(arrays: dict[str, NDArray[np.generic]], rows: int, shape: Shape) -> MixingWeights:
    channels, height, width = shape
    past, current = arrays["past"], arrays.get("current", _NO_ARRAY)
    sets, maps = len(past), past.shape[-1] // channels
    side = current.shape[2] if current.ndim == 5 else 0
    if sets not in (1, rows) or not 1 <= maps <= MAX_MAPS or side not in SIDES:
        raise CodecError(
            f"expected past and current weights of 1 or {rows} sets, 1 to {MAX_MAPS} maps of "
            f"{channels} channels and {SIDES[0]} or {SIDES[1]} neurons a side in the codec tables, "
            f"got {list(past.shape)} and {list(current.shape)}"
        )
    all_maps = channels * maps
    # A file whose maps depend on spikes alone and are all added as they are may leave these out.
    absent = {
        "places": np.zeros((1, height, width, all_maps), np.int16),
        "hidden": np.zeros((channels, 0), np.int16),
    }
    arrays = absent | arrays
    by_row = len(arrays["places"]) == rows
    shapes: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "logits": (np.int16, (rows, channels, CONTEXTS)),
        "places": (np.int16, (rows if by_row else 1, height, width, all_maps)),
        "past": (np.int16, (sets, LAGS, channels, PAST_SIDE, PAST_SIDE, all_maps)),
        "current": (np.int16, (sets, channels, side, side, all_maps)),
        "hidden": (np.int16, (channels, maps - 1)),
        "squash": (np.uint16, (SQUASH_SIZE,)),
    }
    for name, (dtype, expected) in shapes.items():
        _check(name, arrays.get(name, _NO_ARRAY), dtype, expected)
    mixing = MixingWeights(**{name: arrays[name] for name in shapes})  # type: ignore[arg-type]
    if mixing.squash.min() < 1:
        raise CodecError("expected probabilities of at least 1 in the table of ctx-max, got 0")
    if (mixing.current[:, ~causal(channels, side, maps)] != 0).any():
        raise CodecError("expected no weights for neurons that are coded later, got some")
    return mixing


def _check(
    name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]
) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise CodecError(
            f"expected {name} of {np.dtype(dtype)} {list(shape)} in the codec tables, "
            f"got {array.dtype} {list(array.shape)}"
        )


def causal(channels: int, side: int, maps: int = 1) -> NDArray[np.bool_]:
    """Return which entries ``[C', side, side, C * maps]`` lie before the neuron in coding order."""
    mask, middle = np.zeros((channels, side, side, channels), np.bool_), side // 2
    for channel in range(channels):
        mask[:channel, :, :, channel] = True
        mask[channel, :middle, :, channel] = True
        mask[channel, middle, :middle, channel] = True
    return mask.repeat(maps, axis=3)


def history_contexts(past: Sequence[Frames], shape: Shape) -> Integers:
    """Return the history's part of every neuron's context, int64 ``[..., C, H, W]``.

    Args:
        past: the frames before, uint8 ``[..., n]``, oldest first.
        shape: ``[C, H, W]``.
    """
    leading = past[0].shape[:-1] if past else ()
    contexts = np.zeros((*leading, *shape), np.int64)
    for lag, frame in enumerate(reversed(past[-HISTORY:])):
        contexts += frame.reshape(contexts.shape).astype(np.int64) << (4 + lag)
    return contexts


def neighbour_contexts(frame: Frames, shape: Shape) -> Integers:
    """Return the neighbours' part of every neuron's context, int64 ``[..., C, H, W]``.

    Args:
        frame: uint8, ``[..., n]``.
        shape: ``[C, H, W]``.
    """
    leading = frame.shape[:-1]
    borders = [(0, 0)] * (len(leading) + 1) + [(1, 0), (1, 1)]
    padded = np.pad(frame.reshape(*leading, *shape).astype(np.int64), borders)
    west, north_west = padded[..., 1:, :-2], padded[..., :-1, :-2]
    north, north_east = padded[..., :-1, 1:-1], padded[..., :-1, 2:]
    return west << 3 | north_west << 2 | north << 1 | north_east


def surroundings(frame: Frames, shape: Shape, side: int) -> Maps:
    """Return the surroundings of every place, int16 ``[H, W, C * side * side]``."""
    channels, height, width = shape
    border = (side // 2, side // 2)
    padded = np.pad(frame.reshape(shape).astype(np.int16), ((0, 0), border, border))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
    return windows.transpose(1, 2, 0, 3, 4).reshape(height, width, channels * side * side)


def past_maps(mixing: MixingWeights, row: int, past: Sequence[Frames], shape: Shape) -> Maps:
    """Return all maps as they are before this timestep's spikes, int16 ``[H, W, C * M]``."""
    maps: Maps = mixing.places_of(row).copy()
    for lag, frame in enumerate(reversed(past[-LAGS:])):
        maps += weighted(mixing.past[mixing.set_of(row), lag], frame, shape)
    return maps


def current_maps(mixing: MixingWeights, row: int, frame: Frames, shape: Shape) -> Maps:
    """Return what this timestep's spikes add to the maps of the neurons after them."""
    return weighted(mixing.current[mixing.set_of(row)], frame, shape)


def weighted(weights: NDArray[np.int16], frame: Frames, shape: Shape) -> Maps:
    """Return what the spikes of some channels add to all maps, int16 ``[H, W, C * M]``.

    Args:
        weights: int16, ``[C', side, side, C * M]``.
        frame: uint8, ``[C' * H * W]``.
        shape: ``[C', H, W]``.
    """
    around = surroundings(frame, shape, weights.shape[1])
    added: Maps = around @ weights.reshape(-1, weights.shape[3])
    return added


def as_seen_from_spikes(weights: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return ``[..., side, side, C * M]`` the other way round.

    What a spike adds to the neurons around it, instead of what a neuron takes from the spikes
    around it: the row above a neuron is the row below a spike.
    """
    turned: NDArray[np.int16] = weights[..., ::-1, ::-1, :]
    return turned


def squashed(
    mixing: MixingWeights, logits: Integers, maps: Maps, hidden: NDArray[np.int16]
) -> NDArray[np.uint16]:
    """Return P(spike) in units of 2 ** -16, uint16 ``[...]``.

    Args:
        mixing: the model.
        logits: of the table, int64 ``[...]``.
        maps: of the same neurons, int16 ``[..., M]``.
        hidden: what their hidden units add, int16 ``[..., M - 1]``.
    """
    units = maps[..., 1:].clip(0, HIDDEN_LIMIT).astype(np.int64)
    totals = (logits + maps[..., 0]) * LOGIT_UNITS + (units * hidden).sum(-1)
    index = (totals // LOGIT_UNITS + SQUASH_SIZE // 2).clip(0, SQUASH_SIZE - 1)
    probabilities: NDArray[np.uint16] = mixing.squash[index]
    return probabilities
