"""Read a data set's files from a folder, a zip or a tar (any compression) in the same way."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from training.data.labelled import DataError, MissingDataError

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


class Tree(Protocol):
    """Files by name, wherever they are kept."""

    folder: Path
    """The folder on disk that the tree is, or that its archive lies in."""

    def names(self) -> list[str]:
        """Return the names of all files, with ``/`` between folders."""
        ...

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the named files and their contents, in the order in which they are kept.

        Raises:
            DataError: the archive is damaged.
        """
        ...


class FolderTree:
    """A folder on disk."""

    def __init__(self, path: Path) -> None:
        self.folder = path

    def names(self) -> list[str]:
        """Return the names of all files below the folder."""
        return [
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        ]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the named files, in the order given."""
        for name in names:
            yield name, (self.folder / name).read_bytes()


class ZipTree:
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self._path = path

    def names(self) -> list[str]:
        """Return the names of all files in the archive."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                return [info.filename for info in archive.infolist() if not info.is_dir()]
        except zipfile.BadZipFile as error:
            raise DataError(f"expected a zip archive at {self._path}: {error}") from error

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the named files, in the order given."""
        with zipfile.ZipFile(self._path) as archive:
            for name in names:
                try:
                    content = archive.read(name)
                except (zipfile.BadZipFile, EOFError) as error:
                    raise DataError(f"{name} in {self._path} is damaged: {error}") from error
                yield name, content


class TarTree:
    """A tar archive, plain or compressed."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self._path = path

    def names(self) -> list[str]:
        """Return the names of all files in the archive."""
        return [member.name for _, member in self._members()]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the named files, in the order of the archive: one pass over it."""
        wanted = set(names)
        for archive, member in self._members():
            if member.name not in wanted:
                continue
            file = archive.extractfile(member)
            if file is None:
                raise DataError(f"expected a file, got a dangling link: {member.name}")
            yield member.name, file.read()

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        try:
            with tarfile.open(self._path) as archive:
                for member in archive:
                    if member.isfile():
                        yield archive, member
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"expected a whole tar archive at {self._path}: {error}") from error


def open_tree(path: Path) -> Tree:
    """Return the folder or archive at ``path``.

    Raises:
        DataError: ``path`` is a file with an unknown ending.
        MissingDataError: there is nothing at ``path``.
    """
    if path.is_dir():
        return FolderTree(path)
    if not path.is_file():
        raise MissingDataError(f"expected a folder or an archive at {path}, found nothing")
    if not path.name.endswith(ARCHIVE_ENDINGS):
        raise DataError(f"expected a folder or one of {', '.join(ARCHIVE_ENDINGS)}, got {path}")
    return ZipTree(path) if path.suffix == ".zip" else TarTree(path)


def find_files(path: Path, wanted: Callable[[str], bool], what: str) -> tuple[Tree, list[str]]:
    """Look for files in a folder, else in an archive at ``path`` or up to one folder below it.

    Args:
        path: a folder or an archive.
        wanted: tells by its name whether a file is one.
        what: the files' description, for the error.

    Returns:
        The first place that has any such file, and the names of those files, sorted. What macOS
        adds to archives is left out.

    Raises:
        MissingDataError: no place has one.
    """
    first = open_tree(path)
    below = sorted([*path.glob("*"), *path.glob("*/*")]) if path.is_dir() else []
    archives = [p for p in below if p.is_file() and p.name.endswith(ARCHIVE_ENDINGS)]
    for tree in (first, *map(open_tree, archives)):
        names = sorted(name for name in tree.names() if wanted(name) and not _of_macos(name))
        if names:
            return tree, names
    raise MissingDataError(f"expected {what} in {path}, found none there or in archives in it")


def _of_macos(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")
