"""Every data set by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.events.framing import ByTime, Framing
from training.data import caltech, cifar10, event_sets
from training.data.cache import cached, fingerprint
from training.data.labelled import LabelledData
from training.data.sim import Saccades, simulate_frames

DEFAULT_FRAMING = ByTime(timesteps=4)
CIFAR10_DVS_SHARE = 0.9
"""900 recordings of each class for training, 100 for the test: the usual protocol (TET, Deng et al.
2022). EC-SNN takes 0.8."""
N_CALTECH_SHARE = 0.8
"""That of EC-SNN."""
CACHE_VERSION = 1
"""Changes when the simulation does, so that older cached frames are not taken for new ones."""
SIM_CALTECH_SIZE = 64
"""Height and width of Caltech pictures before the simulated camera; the published N-Caltech101
fills up to 180 x 240 pixels, at eleven times the cost."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to read a data set; None stands for the set's own default."""

    size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Height and width in pixels."""
    framing: Framing | None = None
    """Events to frames; four equal parts of the recording's time if None."""
    train_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    """Share of each class for training; with it published lists are not used."""
    saccades: Saccades | None = None
    """Camera and motion of simulated events."""


class Request(NamedTuple):
    """What to read, from where."""

    folder: Path
    train: bool
    options: Options
    cache: Path | None


class DataSet(NamedTuple):
    """How to read a data set, and which options it has."""

    read: Callable[[Request], LabelledData]
    options: frozenset[str]


def load(
    name: str,
    folder: Path,
    *,
    train: bool,
    options: Options | None = None,
    cache: Path | None = None,
) -> LabelledData:
    """Read the training or the test part of a data set.

    Args:
        name: a key of :data:`DATA_SETS`.
        folder: folder (or archive, where its format allows) that holds the data set.
        train: which part.
        options: how to read it.
        cache: folder for simulated event frames, so that they are made once.

    Raises:
        DataError: a file is damaged.
        MissingDataError: the data set is not there.
        ValueError: there is no such data set, or it has no such option.
    """
    options = options or Options()
    check_options(name, options)
    return DATA_SETS[name].read(Request(folder, train, options, cache))


def check_options(name: str, options: Options) -> None:
    """Check that there is such a data set and that it has these options.

    Raises:
        ValueError: it is not so.
    """
    if name not in DATA_SETS:
        raise ValueError(f"expected a data set of {', '.join(DATA_SETS)}, got {name!r}")
    given = {key for key, value in msgspec.structs.asdict(options).items() if value is not None}
    has = DATA_SETS[name].options
    if stray := given - has:
        allowed = ", ".join(sorted(has)) or "none"
        raise ValueError(f"expected options of {name} ({allowed}), got {', '.join(sorted(stray))}")


def _cifar10(request: Request) -> LabelledData:
    images = cifar10.load_cifar10(request.folder, train=request.train)
    return LabelledData(
        name="cifar10",
        inputs=images.pixels,
        labels=images.labels,
        classes=cifar10.CLASSES,
        split=f"{'train' if request.train else 'test'} (the data set's own)",
    )


def _caltech(classes: tuple[str, ...]) -> Callable[[Request], LabelledData]:
    def read(request: Request) -> LabelledData:
        return caltech.load_caltech(
            request.folder,
            classes=classes,
            train=request.train,
            share=request.options.train_share,
            size=request.options.size,
        )

    return read


def _n_mnist(request: Request) -> LabelledData:
    return event_sets.load_n_mnist(
        request.folder, _framing(request), train=request.train, size=request.options.size
    )


def _n_caltech(classes: tuple[str, ...]) -> Callable[[Request], LabelledData]:
    def read(request: Request) -> LabelledData:
        return event_sets.load_n_caltech(
            request.folder,
            _framing(request),
            classes=classes,
            train=request.train,
            share=request.options.train_share or N_CALTECH_SHARE,
            size=request.options.size,
        )

    return read


def _cifar10_dvs(request: Request) -> LabelledData:
    return event_sets.load_cifar10_dvs(
        request.folder,
        _framing(request),
        train=request.train,
        share=request.options.train_share or CIFAR10_DVS_SHARE,
        size=request.options.size,
    )


def _sim(
    read: Callable[[Request], LabelledData], size: int | None = None
) -> Callable[[Request], LabelledData]:
    """Return a reader of events simulated from the pictures that ``read`` reads."""

    def read_and_simulate(request: Request) -> LabelledData:
        asked = request.options
        still = Options(size=asked.size or size, train_share=asked.train_share)
        pictures = read(request._replace(options=still))
        saccades, framing = asked.saccades or Saccades(), _framing(request)
        name = f"{pictures.name}-sim"

        def simulate() -> NDArray[np.uint8]:
            return simulate_frames(pictures.inputs, saccades, framing)

        if request.cache is None:
            return replace(pictures, name=name, inputs=simulate())
        made_of = msgspec.json.encode([CACHE_VERSION, saccades, framing, pictures.inputs.shape])
        file = f"{name}-{fingerprint(made_of, pictures.inputs)}.npz"
        return replace(pictures, name=name, inputs=cached(request.cache / file, simulate))

    return read_and_simulate


def _framing(request: Request) -> Framing:
    return request.options.framing or DEFAULT_FRAMING


_EVENTS = frozenset({"size", "framing"})
_SPLIT = frozenset({"train_share"})
_SIM = frozenset({"framing", "saccades"})
_CALTECH_10 = _caltech(caltech.CLASSES_10)
_CALTECH_101 = _caltech(caltech.CLASSES_101)

DATA_SETS = {
    "cifar10": DataSet(_cifar10, frozenset()),
    "caltech10": DataSet(_CALTECH_10, _SPLIT | {"size"}),
    "caltech101": DataSet(_CALTECH_101, _SPLIT | {"size"}),
    "n-mnist": DataSet(_n_mnist, _EVENTS),
    "n-caltech10": DataSet(_n_caltech(event_sets.N_CALTECH10_CLASSES), _EVENTS | _SPLIT),
    "n-caltech101": DataSet(_n_caltech(event_sets.N_CALTECH101_CLASSES), _EVENTS | _SPLIT),
    "cifar10-dvs": DataSet(_cifar10_dvs, _EVENTS | _SPLIT),
    "cifar10-sim": DataSet(_sim(_cifar10), _SIM),
    "caltech10-sim": DataSet(_sim(_CALTECH_10, SIM_CALTECH_SIZE), _SIM | _SPLIT | {"size"}),
    "caltech101-sim": DataSet(_sim(_CALTECH_101, SIM_CALTECH_SIZE), _SIM | _SPLIT | {"size"}),
}
"""Data sets by name: those with ``sim`` are simulated, all others as published."""

IN_RANDOM_ORDER = frozenset({"cifar10", "cifar10-sim"})
"""Data sets whose last samples are as good as any; the others come sorted by class."""
