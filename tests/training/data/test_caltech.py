from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.caltech import CLASSES_10, CLASSES_101
from training.data.labelled import DataError, LabelledData, MissingDataError
from training.data.sets import Options, load

Write = Callable[[Path, bytes], None]
NUMBERS = (1, 2, 3)
SMALL = Options(size=8)


def picture(label: int, number: int) -> bytes:
    """Make a picture whose colour tells its class and number, some of them grey."""
    red = 2 * label
    image = Image.new("RGB", (20 + number, 12), (red, 200 - red, 60 * number))
    if label % 10 == 4:
        image = image.convert("L")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """Three pictures of each class, and some of the background, by name."""
    names = {
        f"101_ObjectCategories/{name}/image_{number:04}.jpg": picture(label, number)
        for label, name in enumerate(CLASSES_101)
        for number in NUMBERS
    }
    return names | {"101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": picture(0, 1)}


@pytest.fixture
def caltech(tmp_path: Path, pictures: dict[str, bytes], write: Write) -> Path:
    folder = tmp_path / "caltech"
    for name, content in pictures.items():
        write(folder / name, content)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def lists(test_number: int) -> dict[str, bytes]:
    """Make lists by which one number of each class is for the test."""
    lines: dict[str, list[str]] = {"train.txt": [], "test.txt": []}
    for name in CLASSES_101:
        for number in NUMBERS:
            part = "test.txt" if number == test_number else "train.txt"
            lines[part].append(f"{name}/image_{number:04}.jpg\n")
    return {name: "".join(reversed(text)).encode() for name, text in lines.items()}


def check(data: LabelledData, numbers: tuple[int, ...]) -> None:
    """Check that every class has these numbers in order, and each picture its own colour."""
    assert data.inputs.shape[0] == len(data.classes) * len(numbers)
    by_class = {label: data.part(data.labels == label) for label in range(len(data.classes))}
    for label, name in enumerate(data.classes):
        found = by_class[label].inputs.mean(axis=(2, 3))
        place = CLASSES_101.index(name)
        for pixel, number in zip(found, numbers, strict=True):
            expected = np.array([2 * place, 200 - 2 * place, 60 * number])
            if place % 10 == 4:
                expected = np.full(3, expected @ (0.299, 0.587, 0.114))
            np.testing.assert_allclose(pixel, expected, atol=4)


def test_the_protocols_have_these_classes() -> None:
    assert len(CLASSES_101) == 101
    assert list(CLASSES_101) == sorted(CLASSES_101)
    assert CLASSES_10 == (
        "airplanes", "Motorbikes", "Faces", "Faces_easy", "watch",
        "Leopards", "bonsai", "car_side", "ketch", "chandelier",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["caltech101", "caltech10"])
def test_folders_are_split_by_file_name(caltech: Path, name: str) -> None:
    options = Options(size=8, train_share=0.6)
    train = load(name, caltech, train=True, options=options)
    test = load(name, caltech, train=False, options=options)

    check(train, (1, 2))
    check(test, (3,))
    assert train.name == name
    assert train.inputs.shape[1:] == (3, 8, 8)
    assert train.split == "train (first 60% of each class by file name)"


def test_the_default_share_is_that_of_ec_snn(caltech: Path) -> None:
    assert load("caltech10", caltech, train=True, options=SMALL).split.startswith(
        "train (first 80%"
    )


def test_the_folder_of_classes_itself_will_do(caltech: Path, write: Write) -> None:
    for name, content in lists(1).items():
        write(caltech / name, content)

    data = load("caltech10", caltech / "101_ObjectCategories", train=False, options=SMALL)

    check(data, (1,))
    assert data.split == "test (published lists)"


def test_lists_inside_a_zip_decide(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    write_zip(tmp_path / "caltech.zip", pictures | lists(2))

    for folder in (tmp_path, tmp_path / "caltech.zip"):
        check(load("caltech101", folder, train=True, options=SMALL), (1, 3))
        check(load("caltech10", folder, train=False, options=SMALL), (2,))


def test_lists_beside_the_published_archive_decide(
    tmp_path: Path, pictures: dict[str, bytes], write: Write
) -> None:
    (tmp_path / "caltech-101").mkdir()
    with tarfile.open(tmp_path / "caltech-101" / "101_ObjectCategories.tar.gz", "w:gz") as archive:
        for name, content in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for name, content in lists(3).items():
        write(tmp_path / name, content)

    check(load("caltech10", tmp_path, train=False, options=SMALL), (3,))


def test_a_share_overrules_the_lists(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    write_zip(tmp_path / "caltech.zip", pictures | lists(2))
    options = Options(size=8, train_share=0.6)

    check(load("caltech10", tmp_path, train=False, options=options), (3,))


def test_pictures_are_224_pixels_wide_by_default(tmp_path: Path) -> None:
    files = {f"101_ObjectCategories/{name}/image_0001.jpg": picture(1, 1) for name in CLASSES_10}
    write_zip(tmp_path / "caltech.zip", files)

    assert load("caltech10", tmp_path, train=True).inputs.shape == (10, 3, 224, 224)


def test_one_list_alone_is_refused(caltech: Path, write: Write) -> None:
    write(caltech / "train.txt", lists(1)["train.txt"])

    with pytest.raises(MissingDataError, match=r"expected both .* found no test.txt"):
        load("caltech10", caltech, train=True, options=SMALL)


def test_a_picture_on_both_lists_is_refused(caltech: Path, write: Write) -> None:
    both = lists(1)
    write(caltech / "train.txt", both["train.txt"] + both["test.txt"])
    write(caltech / "test.txt", both["test.txt"])

    with pytest.raises(
        DataError, match=r"expected no picture in train.txt and test.txt, got Faces"
    ):
        load("caltech10", caltech, train=True, options=SMALL)


def test_lists_that_name_other_pictures_are_refused(caltech: Path, write: Write) -> None:
    for name, content in lists(1).items():
        write(caltech / name, content)
    (caltech / "101_ObjectCategories" / "watch" / "image_0002.jpg").unlink()

    with pytest.raises(DataError, match=r"differing in 1, e.g. watch/image_0002.jpg"):
        load("caltech10", caltech, train=True, options=SMALL)


def test_a_missing_class_is_named(caltech: Path) -> None:
    for path in (caltech / "101_ObjectCategories" / "ketch").iterdir():
        path.unlink()

    with pytest.raises(
        MissingDataError, match="expected files of 10 classes .* found none of ketch"
    ):
        load("caltech10", caltech, train=True, options=SMALL)


def test_a_damaged_picture_is_named(caltech: Path) -> None:
    path = caltech / "101_ObjectCategories" / "watch" / "image_0001.jpg"
    whole = path.read_bytes()
    for content in (b"no picture", whole[: len(whole) - 40]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"expected a picture, got .*watch/image_0001.jpg"):
            load("caltech10", caltech, train=True, options=SMALL)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        MissingDataError, match=r"expected 101_ObjectCategories/.* of Caltech-101 in"
    ):
        load("caltech101", tmp_path, train=True)
