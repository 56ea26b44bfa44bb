"""Unpack a downloaded archive: files and folders only, and nothing outside the target folder."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from training.data.labelled import DataError


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or a tar (any compression) into ``folder``.

    Every name is checked before the first file is written.

    Raises:
        DataError: not such an archive, or it has an absolute name, a name with ``..``, a link or
            a device.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"expected a whole zip or tar archive at {archive}: {error}") from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        infos = source.infolist()
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            _check(archive, info.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
        for info in infos:
            if not info.is_dir():
                with source.open(info) as content:
                    _write(content, folder / info.filename)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as source:
        members = source.getmembers()
        for member in members:
            _check(archive, member.name, plain=member.isfile() or member.isdir())
        for member in members:
            content = source.extractfile(member) if member.isfile() else None
            if content is not None:
                with content:
                    _write(content, folder / member.name)


def _check(archive: Path, name: str, *, plain: bool) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise DataError(f"expected names below the target folder in {archive}, got {name!r}")
    if not plain:
        raise DataError(f"expected files and folders only in {archive}, got {name!r}")


def _write(content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)
