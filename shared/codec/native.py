"""The C implementation of the context codecs, where it was built; else nothing.

Its results equal the reference's byte for byte; only the time differs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.codec.bitpack import Frames
from shared.codec.context_model import HISTORY, ContextTables, as_seen_from_spikes
from shared.errors import CodecError

try:
    _native: Any = importlib.import_module("shared.codec._native")
except ImportError:  # No compiler when the package was installed.
    _native = None

IMPLEMENTATION = "python" if _native is None else "c"
"""Which implementation of the context codecs runs: ``c`` or ``python``."""
AVAILABLE = _native is not None

_NONE = b""


class NativeCoder:
    """Codes frames with one set of tables.

    Args:
        tables: of the code.
        mixing: use ``ctx-max`` instead of ``ctx``.
    """

    def __init__(self, tables: ContextTables, *, mixing: bool) -> None:
        self._shape = tables.shape
        self._rows = tables.rows
        weights = tables.mixing if mixing else None
        arrays: tuple[Any, ...] = (_NONE,) * 6 if weights is None else weights
        self._mixing = (0, 0, 0, 0)
        if weights is not None:
            sizes = len(weights.places), len(weights.past), weights.maps, weights.side
            self._mixing = sizes
            arrays = weights._replace(
                past=as_seen_from_spikes(weights.past),
                current=as_seen_from_spikes(weights.current),
            )
        self._parameters = tuple(
            array if array is _NONE else np.ascontiguousarray(array)
            for array in (tables.probabilities, *arrays)
        )

    def encode(self, frames: Frames, history: Sequence[Frames]) -> bytes:
        """Return the code word of frames ``[k, n]``."""
        word: bytes = self._run(_native.encode, np.ascontiguousarray(frames), len(frames), history)
        return word

    def decode(self, data: bytes, steps: int, bits: int, history: Sequence[Frames]) -> Frames:
        """Return the frames of a code word; CodecError if it is too long."""
        try:
            decoded = self._run(_native.decode, data, steps, history)
        except ValueError as error:
            raise CodecError(str(error)) from error
        return np.frombuffer(decoded, np.uint8).reshape(steps, bits)

    def _run(
        self, code: Callable[..., bytes], data: Any, steps: int, history: Sequence[Frames]
    ) -> bytes:
        recent = history[-HISTORY:]
        past = np.concatenate(recent) if recent else _NONE
        return code(
            data,
            steps,
            past,
            len(history),
            self._shape,
            self._rows,
            self._mixing,
            self._parameters,
        )
