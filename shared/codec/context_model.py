"""How probable is a spike, given what both sides know already? Integer models of the code.

Two models, both fitted on calibration samples and stored in the bundle as integers, so that every
machine computes the same probabilities:

* ``ctx``: a table, by timestep and channel, over the last four spikes of the same neuron in this
  sample and its W, NW, N and NE neighbours in this timestep. LIF neurons alternate rather than
  repeat, which is why the neuron's own history says most.
* ``ctx-max``: the table's logit plus a weight for every spike in the 3x3 surroundings, over all
  channels, in the last two timesteps and in what of this timestep has been coded already.

Neurons are coded channel by channel, row by row. Outside the frame, and before the sample, nothing
spikes. The arithmetic here is the reference; :mod:`shared.codec.native` does the same in C.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.codec.bitpack import Frames
from shared.errors import CodecError

Shape = tuple[int, int, int]
"""``[C, H, W]`` of one code frame."""
Integers = NDArray[np.int64]

HISTORY = 4
"""Earlier spikes of a neuron that the table looks at."""
CONTEXTS = 1 << (HISTORY + 4)
"""Contexts per timestep and channel: bits 7-4 the neuron's history, the most recent spike lowest;
bits 3-0 its W, NW, N and NE neighbours."""
MAX_ROWS = 8
"""Timesteps with parameters of their own; later ones share the last row."""
LAGS = 2
"""Earlier timesteps whose surroundings ``ctx-max`` weighs."""
LOGIT_UNITS = 256
"""Logits are in units of 1/256."""
SQUASH_SIZE = 4096
"""Logits from -8 to 8 have an entry in the table that turns them into probabilities."""
MAX_BYTES = 16 << 20
"""A parameter file larger than this, unpacked, is refused."""


class MixingWeights(NamedTuple):
    """What ``ctx-max`` adds to the table."""

    logits: NDArray[np.int16]
    """``[rows, C, 256]``: the table as logits."""
    past: NDArray[np.int16]
    """``[rows, 2, C', 3, 3, C]``: weight of a spike of channel C', one or two timesteps ago, in
    the surroundings (dy, dx) of a neuron of channel C."""
    current: NDArray[np.int16]
    """``[rows, C', 3, 3, C]``: the same in this timestep. Channels C' < C count whole, C' = C only
    where it has been coded already (NW, N, NE, W), C' > C not at all: those weights are zero."""
    squash: NDArray[np.uint16]
    """``[4096]``: probability by logit + 2048."""


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
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
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
    shape = arrays.get("shape", np.empty(0)).tolist()
    if len(shape) != 3 or min(shape) < 1:
        raise CodecError(f"expected a code shape [C, H, W] in the codec tables, got {shape}")
    channels = shape[0]
    probabilities = arrays.get("probabilities", np.empty((0, 0, 0)))
    rows = len(probabilities)
    _check("probabilities", probabilities, np.uint16, (rows, channels, CONTEXTS))
    if not 1 <= rows <= MAX_ROWS or probabilities.min() < 1:
        raise CodecError(
            f"expected 1 to {MAX_ROWS} rows of probabilities of at least 1, got {rows} rows"
        )
    mixing = _mixing(arrays, rows, channels) if "past" in arrays else None
    return ContextTables(
        (channels, shape[1], shape[2]), probabilities.astype(np.uint16, copy=False), mixing
    )


_DAMAGED = (
    zipfile.BadZipFile,  # no archive, or a member's CRC is wrong
    NotImplementedError,  # a compression or an encryption that zipfile does not know
    EOFError,  # a member ends early
    KeyError,  # listed and not there
    OSError,  # a seek before the start
    ValueError,  # no array, or one that would have to be unpickled
)
"""What zipfile and NumPy raise for damaged files, as flipping their bytes brings out."""


def _read_arrays(data: bytes) -> dict[str, NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > MAX_BYTES:
                raise CodecError(f"expected at most {MAX_BYTES} bytes of codec tables, got {size}")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: np.asarray(file[name]) for name in file.files}
    except _DAMAGED as error:
        raise CodecError(f"expected codec tables (npz): {error}") from error
    return {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}


def _mixing(arrays: dict[str, NDArray[np.generic]], rows: int, channels: int) -> MixingWeights:
    none = np.empty(0)
    kernel = (channels, 3, 3, channels)
    shapes: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
        "logits": (np.int16, (rows, channels, CONTEXTS)),
        "past": (np.int16, (rows, LAGS, *kernel)),
        "current": (np.int16, (rows, *kernel)),
        "squash": (np.uint16, (SQUASH_SIZE,)),
    }
    for name, (dtype, shape) in shapes.items():
        _check(name, arrays.get(name, none), dtype, shape)
    mixing = MixingWeights(**{name: arrays[name] for name in shapes})  # type: ignore[arg-type]
    if mixing.squash.min() < 1:
        raise CodecError("expected probabilities of at least 1 in the table of ctx-max, got 0")
    if (mixing.current[:, ~causal(channels)] != 0).any():
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


def causal(channels: int) -> NDArray[np.bool_]:
    """Return which entries ``[C', 3, 3, C]`` lie before the neuron in coding order."""
    mask = np.zeros((channels, 3, 3, channels), np.bool_)
    for channel in range(channels):
        mask[:channel, :, :, channel] = True
        mask[channel, 0, :, channel] = True
        mask[channel, 1, 0, channel] = True
    return mask


def history_contexts(past: Sequence[Frames], shape: Shape) -> Integers:
    """Return the history's part of every neuron's context, int64 ``[C, H, W]``."""
    contexts = np.zeros(shape, np.int64)
    for lag, frame in enumerate(reversed(past[-HISTORY:])):
        contexts += frame.reshape(shape).astype(np.int64) << (4 + lag)
    return contexts


def neighbour_contexts(frame: Frames, shape: Shape) -> Integers:
    """Return the neighbours' part of every neuron's context, int64 ``[C, H, W]``."""
    padded = np.pad(frame.reshape(shape).astype(np.int64), ((0, 0), (1, 0), (1, 1)))
    west = padded[:, 1:, :-2]
    north_west, north, north_east = padded[:, :-1, :-2], padded[:, :-1, 1:-1], padded[:, :-1, 2:]
    return west << 3 | north_west << 2 | north << 1 | north_east


def surroundings(frame: Frames, shape: Shape) -> Integers:
    """Return the 3x3 surroundings of every place, int64 ``[C * 9, H * W]``."""
    channels, height, width = shape
    padded = np.pad(frame.reshape(shape).astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return windows.transpose(0, 3, 4, 1, 2).reshape(channels * 9, height * width)


def past_logits(mixing: MixingWeights, row: int, past: Sequence[Frames], shape: Shape) -> Integers:
    """Return what earlier timesteps add to every neuron's logit, int64 ``[C, H, W]``."""
    total = np.zeros((shape[0], shape[1] * shape[2]), np.int64)
    for lag, frame in enumerate(reversed(past[-LAGS:])):
        weights = mixing.past[row, lag].reshape(-1, shape[0]).astype(np.int64)
        total += weights.T @ surroundings(frame, shape)
    return total.reshape(shape)


def current_logits(mixing: MixingWeights, row: int, frame: Frames, shape: Shape) -> Integers:
    """Return what this timestep's spikes add to the logits of the neurons after them."""
    weights = mixing.current[row].reshape(-1, shape[0]).astype(np.int64)
    total: Integers = weights.T @ surroundings(frame, shape)
    return total.reshape(shape)


def squash(mixing: MixingWeights, logits: Integers) -> NDArray[np.uint16]:
    """Return the probabilities of logits."""
    probabilities: NDArray[np.uint16] = mixing.squash[
        np.clip(logits + SQUASH_SIZE // 2, 0, SQUASH_SIZE - 1)
    ]
    return probabilities
