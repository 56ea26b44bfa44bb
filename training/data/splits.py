"""Which files are for training and which for the test, repeatably; a file's class is its folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from training.data.labelled import DataError, MissingDataError


def class_of(name: str) -> str:
    """Return the name of the folder that a file lies in."""
    return PurePosixPath(name).parent.name


def first_share(names: Sequence[str], share: float, *, train: bool) -> list[str]:
    """Split each class by file name: the first ``ceil(share * n)`` files are for training.

    The rule of EC-SNN (IJCAI 2024), which is SpikingJelly's ``split_to_train_test_set`` without
    shuffling. Neighbouring files, often nearly the same picture, mostly fall into one part.

    Args:
        names: files, in any order.
        share: share of the training part, between 0 and 1.
        train: which part to return.

    Returns:
        The files of that part, sorted by name.

    Raises:
        ValueError: ``share`` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"expected a training share between 0 and 1, got {share}")
    by_class: dict[str, list[str]] = {}
    for name in sorted(names):
        by_class.setdefault(class_of(name), []).append(name)
    chosen: list[str] = []
    for files in by_class.values():
        cut = math.ceil(share * len(files))
        chosen += files[:cut] if train else files[cut:]
    return sorted(chosen)


def describe_share(share: float, *, train: bool) -> str:
    """Return what to say of a part that :func:`first_share` chose."""
    if train:
        return f"train (first {share:.0%} of each class by file name)"
    return f"test (last {1 - share:.0%} of each class by file name)"


def labels_of(names: Sequence[str], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return each file's label, int64 ``[N]``: the place of its class in ``classes``.

    Raises:
        DataError: a file lies in a folder that is no class.
    """
    index = {name: label for label, name in enumerate(classes)}
    stray = next((name for name in names if class_of(name) not in index), None)
    if stray is not None:
        raise DataError(f"expected a folder named {', '.join(classes)}, got {stray}")
    return np.array([index[class_of(name)] for name in names], np.int64)


def check_all_there(names: Sequence[str], classes: tuple[str, ...], folder: Path) -> None:
    """Check that there is a file of every class.

    Raises:
        MissingDataError: there is none of some class.
    """
    missing = sorted(set(classes) - set(map(class_of, names)))
    if missing:
        some = ", ".join(missing[:5]) + (" ..." if missing[5:] else "")
        raise MissingDataError(
            f"expected files of {len(classes)} classes in {folder}, found none of {some}"
        )
