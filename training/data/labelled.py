"""Labelled data as one value: static images or event frames, their labels and class names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import NeucodexError


class DataError(NeucodexError):
    """A data set's file is damaged, or not what its format says."""


class MissingDataError(DataError, FileNotFoundError):
    """A data set, or a part of it, is not where it was looked for."""


@dataclass(frozen=True, eq=False)
class LabelledData:
    """One part (training or test) of a data set.

    Event frames hold the number of events per cell as uint8: what a network reads, at a quarter
    of the memory of exact counts. A cell with more than 255 events holds 255
    (:func:`shared.events.framing.saturated`); the framing functions themselves count exactly.

    Raises:
        ValueError: shapes, types, labels and class names do not fit together.
    """

    name: str
    """The name to print in tables, e.g. ``n-mnist``; simulated events always say ``sim``."""
    inputs: NDArray[np.uint8]
    """Images ``uint8, [N, C, H, W]``, or event counts ``uint8, [N, T, 2, H, W]``: polarity 0 is
    OFF (darker), 1 is ON (brighter)."""
    labels: NDArray[np.int64]
    """int64, ``[N]``, indices into ``classes``."""
    classes: tuple[str, ...]
    """Class names in label order."""
    split: str
    """Which part this is and how it was chosen, e.g. ``train (published lists)``."""

    def __post_init__(self) -> None:
        shape = self.inputs.shape
        static = len(shape) == 4
        events = len(shape) == 5 and shape[2] == 2
        if self.inputs.dtype != np.uint8 or not (static or events):
            raise ValueError(
                "expected inputs as uint8 [N, C, H, W] or [N, T, 2, H, W], "
                f"got {self.inputs.dtype} {list(shape)}"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != shape[:1]:
            raise ValueError(
                f"expected labels as int64 [{shape[0]}], "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        known = (self.labels >= 0) & (self.labels < len(self.classes))
        if not known.all():
            raise ValueError(
                f"expected labels 0..{len(self.classes) - 1}, got {self.labels[~known][0]}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> Literal["static", "events"]:
        """What ``NetworkSpec.input_kind`` calls these inputs."""
        return "static" if self.inputs.ndim == 4 else "events"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``[C, H, W]`` of one timestep's input."""
        channels, height, width = self.inputs.shape[-3:]
        return channels, height, width

    def part(self, index: slice | NDArray[np.int64] | NDArray[np.bool_]) -> LabelledData:
        """Return the samples that ``index`` selects, in its order."""
        return replace(self, inputs=self.inputs[index], labels=self.labels[index])

    def shuffled(self, seed: int) -> LabelledData:
        """Return the same samples in random order: several sets come sorted by class."""
        return self.part(np.random.default_rng(seed).permutation(len(self)))
