from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.labelled import DataError, MissingDataError
from training.data.trees import find_files, open_tree

FILES = {"data/a/1.bin": b"one", "data/b/2.bin": b"two", "data/notes.txt": b"three"}


def write_folder(path: Path) -> Path:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "files.zip", "w") as archive:
        archive.mkdir("data")
        for name, content in FILES.items():
            archive.writestr(name, content)
    return path / "files.zip"


def write_tar(path: Path) -> Path:
    with tarfile.open(path / "files.tar.xz", "w:xz") as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path / "files.tar.xz"


@pytest.fixture(params=[write_folder, write_zip, write_tar], ids=["folder", "zip", "tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path)


def test_files_read_the_same_from_every_place(place: Path) -> None:
    tree = open_tree(place)

    assert sorted(tree.names()) == sorted(FILES)
    assert dict(tree.read(["data/b/2.bin", "data/a/1.bin"])) == {
        "data/a/1.bin": b"one",
        "data/b/2.bin": b"two",
    }


def test_wanted_files_are_found_in_order(place: Path) -> None:
    _, names = find_files(place, lambda name: name.endswith(".bin"), "recordings")

    assert names == ["data/a/1.bin", "data/b/2.bin"]


@pytest.mark.parametrize("below", [".", "deeper"])
def test_an_archive_in_the_folder_is_opened(tmp_path: Path, below: str) -> None:
    (tmp_path / below).mkdir(exist_ok=True)
    write_tar(tmp_path / below)

    tree, names = find_files(tmp_path, lambda name: name.endswith(".bin"), "recordings")

    assert dict(tree.read(names)) == {"data/a/1.bin": b"one", "data/b/2.bin": b"two"}
    assert tree.folder == tmp_path / below


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        for name in ("a/1.bin", "a/._1.bin", "__MACOSX/a/1.bin"):
            archive.writestr(name, b"")

    _, names = find_files(tmp_path, lambda name: name.endswith(".bin"), "recordings")

    assert names == ["a/1.bin"]


def test_nothing_found_says_what_was_looked_for_and_where(place: Path) -> None:
    with pytest.raises(MissingDataError, match=f"expected pictures in {place}, found none"):
        find_files(place, lambda name: name.endswith(".jpg"), "pictures")


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="expected a folder or an archive at .*nowhere"):
        open_tree(tmp_path / "nowhere")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"")

    with pytest.raises(DataError, match=r"expected a folder or one of .zip, .*got .*a.rar"):
        open_tree(tmp_path / "a.rar")


@pytest.mark.parametrize("write", [write_zip, write_tar], ids=["zip", "tar"])
def test_a_truncated_archive_is_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(DataError, match="expected a .*archive at .*files"):
        open_tree(path).names()


def test_a_damaged_file_in_a_zip_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"two", b"TWO"))

    with pytest.raises(DataError, match=r"data/b/2.bin in .*files.zip is damaged"):
        list(open_tree(path).read(["data/b/2.bin"]))
