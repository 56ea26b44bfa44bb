"""Caltech-101 (Fei-Fei, Fergus, Perona 2004) in two protocols, never to be compared.

``caltech101``: the 101 object classes, without the background. ``caltech10``: the ten classes of
EC-SNN (IJCAI 2024), whose "Caltech" is places 5, 3, 0, 1, 94, 2, 12, 19, 55, 23 of the sorted class
list, in this order (its ten largest classes); NeuCODEX does not say which of the two it uses.

Understood is the published layout ``101_ObjectCategories/<class>/image_<number>.jpg``, in a folder,
a zip or a tar, also ``101_ObjectCategories.tar.gz`` one folder deep as the published zip unpacks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from training.data.labelled import DataError, LabelledData, MissingDataError
from training.data.splits import (
    check_all_there,
    class_of,
    describe_share,
    first_share,
    labels_of,
)
from training.data.trees import Tree, find_files

CLASSES_101 = (
    "Faces",
    "Faces_easy",
    "Leopards",
    "Motorbikes",
    "accordion",
    "airplanes",
    "anchor",
    "ant",
    "barrel",
    "bass",
    "beaver",
    "binocular",
    "bonsai",
    "brain",
    "brontosaurus",
    "buddha",
    "butterfly",
    "camera",
    "cannon",
    "car_side",
    "ceiling_fan",
    "cellphone",
    "chair",
    "chandelier",
    "cougar_body",
    "cougar_face",
    "crab",
    "crayfish",
    "crocodile",
    "crocodile_head",
    "cup",
    "dalmatian",
    "dollar_bill",
    "dolphin",
    "dragonfly",
    "electric_guitar",
    "elephant",
    "emu",
    "euphonium",
    "ewer",
    "ferry",
    "flamingo",
    "flamingo_head",
    "garfield",
    "gerenuk",
    "gramophone",
    "grand_piano",
    "hawksbill",
    "headphone",
    "hedgehog",
    "helicopter",
    "ibis",
    "inline_skate",
    "joshua_tree",
    "kangaroo",
    "ketch",
    "lamp",
    "laptop",
    "llama",
    "lobster",
    "lotus",
    "mandolin",
    "mayfly",
    "menorah",
    "metronome",
    "minaret",
    "nautilus",
    "octopus",
    "okapi",
    "pagoda",
    "panda",
    "pigeon",
    "pizza",
    "platypus",
    "pyramid",
    "revolver",
    "rhino",
    "rooster",
    "saxophone",
    "schooner",
    "scissors",
    "scorpion",
    "sea_horse",
    "snoopy",
    "soccer_ball",
    "stapler",
    "starfish",
    "stegosaurus",
    "stop_sign",
    "strawberry",
    "sunflower",
    "tick",
    "trilobite",
    "umbrella",
    "watch",
    "water_lilly",
    "wheelchair",
    "wild_cat",
    "windsor_chair",
    "wrench",
    "yin_yang",
)
CLASSES_10 = tuple(CLASSES_101[index] for index in (5, 3, 0, 1, 94, 2, 12, 19, 55, 23))
ROOT = "101_ObjectCategories"
PUBLISHED_FOLDER = "caltech-101"
"""What the published zip unpacks to; it holds ``101_ObjectCategories.tar.gz``."""
DEFAULT_SIZE = 224
"""Height and width of EC-SNN's pictures."""
DEFAULT_SHARE = 0.8


def load_caltech(
    folder: Path,
    *,
    classes: tuple[str, ...],
    train: bool,
    share: float | None = None,
    size: int | None = None,
) -> LabelledData:
    """Read one protocol's training or test pictures.

    The split is that of the lists ``train.txt`` and ``test.txt`` (lines ``<class>/<file>``) where
    they lie in the archive or beside it; else, or with a ``share``, the first part of each class by
    file name is for training (EC-SNN: 0.8; its random flips, drawn once and kept for the test too,
    are not repeated).

    Args:
        folder: folder or archive that holds the pictures.
        classes: :data:`CLASSES_101` or :data:`CLASSES_10`.
        train: which part.
        share: share of each class for training; None for the lists, or 0.8 where there are none.
        size: height and width, to which pictures are squeezed (bilinear); 224 if None.

    Returns:
        Images ``uint8, [N, 3, size, size]``; grey pictures have three equal channels.

    Raises:
        DataError: a picture is damaged, or the lists do not fit the files.
        MissingDataError: no pictures, or none of some class.
    """
    tree, names = find_files(
        folder,
        lambda name: _is_picture(name) and class_of(name) in classes,
        f"{ROOT}/<class>/image_<number>.jpg of Caltech-101",
    )
    check_all_there(names, classes, folder)
    chosen, split = _split(tree, names, share, train=train)
    return LabelledData(
        name=f"caltech{len(classes)}",
        inputs=_pictures(tree, chosen, size or DEFAULT_SIZE),
        labels=labels_of(chosen, classes),
        classes=classes,
        split=split,
    )


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.endswith(".jpg") and (len(parts) == 2 or parts[-3:-2] == (ROOT,))


def _split(
    tree: Tree, names: Sequence[str], share: float | None, *, train: bool
) -> tuple[list[str], str]:
    """Return the files of one part, and how it was chosen."""
    lists = _published_lists(tree) if share is None else None
    if lists is None:
        share = share or DEFAULT_SHARE
        return first_share(names, share, train=train), describe_share(share, train=train)
    _check_lists(lists, names)
    part = "train" if train else "test"
    return [name for name in names if _short(name) in lists[part]], f"{part} (published lists)"


def _short(name: str) -> str:
    return "/".join(PurePosixPath(name).parts[-2:])


def _published_lists(tree: Tree) -> dict[str, set[str]] | None:
    """Return the lines of both lists, or None where there are none."""
    files = {"train": "train.txt", "test": "test.txt"}
    inside = [name for name in tree.names() if PurePosixPath(name).name in files.values()]
    texts = {PurePosixPath(name).name: text for name, text in tree.read(inside)}
    unpacked = tree.folder.name in (ROOT, PUBLISHED_FOLDER)
    beside = tree.folder.parent if unpacked else tree.folder
    for file in files.values():
        if file not in texts and (beside / file).is_file():
            texts[file] = (beside / file).read_bytes()
    if not texts:
        return None
    missing = set(files.values()) - set(texts)
    if missing:
        raise MissingDataError(
            f"expected both train.txt and test.txt in {beside}, found no {missing.pop()}"
        )
    return {part: set(texts[file].decode().split()) for part, file in files.items()}


def _check_lists(lists: dict[str, set[str]], names: Sequence[str]) -> None:
    """Check that each file is on exactly one list, and that no list names a missing one."""
    there = set(map(_short, names))
    classes = {class_of(name) for name in there}
    listed = {name for part in lists.values() for name in part if class_of(name) in classes}
    if twice := lists["train"] & lists["test"]:
        raise DataError(f"expected no picture in train.txt and test.txt, got {min(twice)}")
    if differing := there ^ listed:
        raise DataError(
            "expected train.txt and test.txt to name the pictures that are there, "
            f"differing in {len(differing)}, e.g. {min(differing)}"
        )


def _pictures(tree: Tree, names: Sequence[str], size: int) -> NDArray[np.uint8]:
    """Return uint8 ``[N, 3, size, size]`` in the order of ``names``."""
    place = {name: index for index, name in enumerate(names)}
    pictures = np.empty((len(names), 3, size, size), np.uint8)

    def decode(named: tuple[str, bytes]) -> None:
        name, content = named
        pictures[place[name]] = _picture(content, size, name)

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, tree.read(names)))
    return pictures


def _picture(content: bytes, size: int, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            squeezed = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"expected a picture, got {name}: {error}") from error
    return np.asarray(squeezed).transpose(2, 0, 1)
