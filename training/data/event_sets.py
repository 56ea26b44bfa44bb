"""N-MNIST, N-Caltech101 and CIFAR10-DVS: recordings of the published data sets as event frames.

Understood are the published layouts, unpacked or as archives where the format allows:

- N-MNIST: ``Train/<digit>/<id>.bin`` and ``Test/<digit>/<id>.bin``; folder, zip or tar.
- N-Caltech101: ``Caltech101/<class>/image_<number>.bin``; folder, zip or tar.
- CIFAR10-DVS: ``<class>/<name>.aedat`` as first published, or ``.aedat4`` (tonic's copy); folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from shared.events.framing import Framing, frame_events, saturated
from shared.events.recording import Events
from training.data.caltech import CLASSES_101
from training.data.cifar10 import CLASSES as CIFAR10_CLASSES
from training.data.labelled import DataError, LabelledData, MissingDataError
from training.data.recordings import DVS128, read_aedat2, read_aedat4, read_atis
from training.data.splits import check_all_there, class_of, describe_share, first_share, labels_of
from training.data.trees import FolderTree, Tree, find_files

N_MNIST_SENSOR = (34, 34)
N_CALTECH101_SENSOR = (180, 240)
"""``[H, W]`` of the ATIS window; each recording fills its upper left part."""
N_CALTECH101_CLASSES = ("BACKGROUND_Google", *CLASSES_101[1:])
"""Orchard et al. 2015 left out Faces (Faces_easy stays) and kept the background class."""
N_CALTECH10_CLASSES = tuple(
    N_CALTECH101_CLASSES[index] for index in (5, 3, 0, 1, 94, 2, 12, 19, 55, 23)
)
"""The ten classes of EC-SNN's N-Caltech: the same places as in its Caltech (see
:mod:`training.data.caltech`) in this set's class list, so the background takes Faces' place."""


def load_n_mnist(folder: Path, framing: Framing, *, train: bool, size: int | None) -> LabelledData:
    """Read N-MNIST; its own parts are the split.

    Args:
        folder: folder or archive that holds the recordings.
        framing: how to make T frames of a recording.
        train: which part.
        size: height and width of the frames; 34 if None.

    Raises:
        DataError: a recording is damaged.
        MissingDataError: the part is not there.
    """
    part = "Train" if train else "Test"
    tree, names = find_files(
        folder, lambda name: _is_below(name, part, ".bin"), f"{part}/<digit>/<id>.bin of N-MNIST"
    )
    classes = tuple("0123456789")
    recordings = _read_atis_all(tree, names, N_MNIST_SENSOR)
    return LabelledData(
        name="n-mnist",
        inputs=_frames(recordings, names, framing, _sensor(size, N_MNIST_SENSOR)),
        labels=labels_of(names, classes),
        classes=classes,
        split=f"{part.lower()} (the data set's own)",
    )


def load_n_caltech(
    folder: Path,
    framing: Framing,
    *,
    classes: tuple[str, ...],
    train: bool,
    share: float,
    size: int | None,
) -> LabelledData:
    """Read N-Caltech101 or the ten-class subset of it.

    Args:
        folder: folder or archive that holds the recordings.
        framing: how to make T frames of a recording.
        classes: :data:`N_CALTECH101_CLASSES` or :data:`N_CALTECH10_CLASSES`.
        train: which part.
        share: share of each class for training; none is published.
        size: height and width of the frames; the sensor's 180 x 240 if None.

    Raises:
        DataError: a recording is damaged.
        MissingDataError: no recordings, or none of some class.
    """
    tree, names = find_files(
        folder,
        lambda name: name.endswith(".bin") and class_of(name) in classes,
        "Caltech101/<class>/image_<number>.bin of N-Caltech101",
    )
    check_all_there(names, classes, folder)
    chosen = first_share(names, share, train=train)
    recordings = _read_atis_all(tree, chosen, N_CALTECH101_SENSOR)
    return LabelledData(
        name=f"n-caltech{len(classes)}",
        inputs=_frames(recordings, chosen, framing, _sensor(size, N_CALTECH101_SENSOR)),
        labels=labels_of(chosen, classes),
        classes=classes,
        split=describe_share(share, train=train),
    )


def load_cifar10_dvs(
    folder: Path, framing: Framing, *, train: bool, share: float, size: int | None
) -> LabelledData:
    """Read CIFAR10-DVS.

    Args:
        folder: folder that holds the class folders.
        framing: how to make T frames of a recording.
        train: which part.
        share: share of each class for training; none is published.
        size: height and width of the frames; 128 if None.

    Raises:
        DataError: a recording is damaged, or both formats are there.
        MissingDataError: no recordings, or none of some class.
    """
    what = "<class>/<name>.aedat (or .aedat4) of CIFAR10-DVS"
    tree, names = find_files(folder, _is_aedat, what)
    if not isinstance(tree, FolderTree):
        raise MissingDataError(f"expected {what} unpacked in {folder}, got an archive")
    endings = {PurePosixPath(name).suffix for name in names}
    if len(endings) > 1:
        raise DataError(f"expected one format in {folder}, got {' and '.join(sorted(endings))}")
    check_all_there(names, CIFAR10_CLASSES, folder)
    chosen = first_share(names, share, train=train)
    read = read_aedat4 if endings == {".aedat4"} else read_aedat2
    recordings = ((name, read(tree.folder / name)) for name in chosen)
    return LabelledData(
        name="cifar10-dvs",
        inputs=_frames(recordings, chosen, framing, _sensor(size, DVS128)),
        labels=labels_of(chosen, CIFAR10_CLASSES),
        classes=CIFAR10_CLASSES,
        split=describe_share(share, train=train),
    )


def _is_aedat(name: str) -> bool:
    return name.endswith((".aedat", ".aedat4")) and class_of(name) in CIFAR10_CLASSES


def _is_below(name: str, part: str, ending: str) -> bool:
    parents = PurePosixPath(name).parts[:-1]
    return name.endswith(ending) and len(parents) >= 2 and parents[-2] == part


def _read_atis_all(
    tree: Tree, names: Sequence[str], sensor: tuple[int, int]
) -> Iterator[tuple[str, Events]]:
    for name, content in tree.read(names):
        yield name, read_atis(content, sensor, name)


def _sensor(size: int | None, own: tuple[int, int]) -> tuple[int, int]:
    return own if size is None else (size, size)


def _frames(
    recordings: Iterable[tuple[str, Events]],
    names: Sequence[str],
    framing: Framing,
    sensor: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return uint8 ``[N, T, 2, H, W]`` in the order of ``names``; recordings come in any order."""
    place = {name: index for index, name in enumerate(names)}
    frames = np.empty((len(names), framing.timesteps, 2, *sensor), np.uint8)
    for name, events in recordings:
        frames[place[name]] = saturated(frame_events(events.resized(sensor), framing))
    return frames
