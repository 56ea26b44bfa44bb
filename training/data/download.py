"""Fetch a data set from its official location: ``python -m training.data.download NAME --out DIR``.

A file is fetched under a temporary name, resumed where an earlier attempt ended, compared with its
published checksum, and only then given its name and, where the readers need it, unpacked. A file
that was put there by hand is checked and unpacked in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from shared.errors import NeucodexError
from training.data.archives import unpack
from training.data.cifar10 import CLASSES
from training.data.labelled import DataError

PIECE_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
USER_AGENT = "neucodex"


class DownloadError(NeucodexError):
    """A file could not be fetched; the message says how to go on."""


class Remote(NamedTuple):
    """One file of a data set."""

    url: str
    file: str
    """Name under which it is kept."""
    md5: str
    """As published, hexadecimal: guards against damage, not against forgery."""
    unpacked: bool = False
    """Whether the readers need it unpacked."""


_FIGSHARE = "https://ndownloader.figshare.com/files/"
_MENDELEY = "https://data.mendeley.com/public-files/datasets/"
_CIFAR10_DVS_FILES = (
    ("7712788", "0afd5c4bf9ae06af762a77b180354fdd"),
    ("7712791", "8438dfeba3bc970c94962d995b1b9bdd"),
    ("7712794", "a9c207c91c55b9dc2002dc21c684d785"),
    ("7712812", "52c63c677c2b15fa5146a8daf4d56687"),
    ("7712815", "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    ("7712818", "f379ebdf6703d16e0a690782e62639c3"),
    ("7712842", "cad6ed91214b1c7388a5f6ee56d08803"),
    ("7712851", "e7cbbf77bec584ffbf913f00e682782a"),
    ("7712836", "41c7bd7d6b251be82557c6cce9a7d5c9"),
    ("7712839", "89f3922fd147d9aeff89e76a2b0b70a7"),
)

REMOTES: Mapping[str, tuple[Remote, ...]] = {
    # https://www.cs.toronto.edu/~kriz/cifar.html gives the checksum.
    "cifar10": (
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            unpacked=True,
        ),
    ),
    # CaltechDATA, doi:10.22002/D1.20086. The tar.gz inside is read as is.
    "caltech101": (
        Remote(
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "caltech-101.zip",
            "3138e1922a9193bfa496528edbbc45d0",
            unpacked=True,
        ),
    ),
    # Mendeley Data 468j46mzdv, the authors' copy; file numbers and checksums as in tonic 1.7.
    "n-mnist": (
        Remote(
            f"{_MENDELEY}468j46mzdv/files/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
            "train.zip",
            "20959b8e626244a1b502305a9e6e2031",
        ),
        Remote(
            f"{_MENDELEY}468j46mzdv/files/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
            "test.zip",
            "69ca8762b2fe404d9b9bad1103e97832",
        ),
    ),
    # Mendeley Data cy6cvx3ryv, as in tonic 1.7. The zip inside is read as is.
    "n-caltech101": (
        Remote(
            f"{_MENDELEY}cy6cvx3ryv/files/36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
            "N-Caltech101-archive.zip",
            "66201824eabb0239c7ab992480b50ba3",
            unpacked=True,
        ),
    ),
    # figshare 4724671, the authors' AEDAT 2.0 files, one zip a class.
    "cifar10-dvs": tuple(
        Remote(f"{_FIGSHARE}{number}", f"{name}.zip", md5, unpacked=True)
        for name, (number, md5) in zip(CLASSES, _CIFAR10_DVS_FILES, strict=True)
    ),
}
"""Official files by data set."""


def download(remotes: tuple[Remote, ...], folder: Path, progress: Progress) -> None:
    """Bring all files of a data set into ``folder``, checked and unpacked.

    Args:
        remotes: the files.
        folder: where to put them; made if missing.
        progress: shows how far each file is.

    Raises:
        DataError: a file differs from its checksum, or its archive is not safe to unpack.
        DownloadError: a file could not be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for remote in remotes:
        path = folder / remote.file
        if path.is_file():
            _check(path, remote)
        else:
            fetch(remote, path, progress)
        if remote.unpacked:
            unpack(path, folder)


def fetch(remote: Remote, path: Path, progress: Progress) -> None:
    """Fetch one file to ``path``, going on where an earlier attempt ended.

    Until its checksum is right the file is called ``<path>.part``.

    Raises:
        DataError: what came differs from the checksum; it is thrown away.
        DownloadError: the file could not be fetched; what came is kept.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        _fetch_rest(remote.url, part, progress)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"could not fetch {remote.url} ({error}). Run the same command again to go on, or "
            f"fetch the file in another way, put it at {path} and run the command again"
        ) from error
    try:
        _check(part, remote)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(REMOTES), help="which data set")
    parser.add_argument("--out", type=Path, required=True, help="folder to put it in")
    flags = parser.parse_args(argv)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns) as progress:
            download(REMOTES[flags.name], flags.out, progress)
    except NeucodexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _fetch_rest(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        with error:
            if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # all of it is there; the checksum decides
        raise
    with reply:
        if reply.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        expected = have + int(reply.headers.get("Content-Length", -have))
        task = progress.add_task(part.stem, completed=have, total=expected or None)
        with part.open("ab" if have else "wb") as file:
            for piece in _pieces(reply):
                file.write(piece)
                progress.advance(task, len(piece))
            got = file.tell()
    if expected and got != expected:
        raise OSError(f"the connection ended after {got} of {expected} bytes")


def _pieces(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := reply.read(PIECE_BYTES):
        yield piece


def _check(path: Path, remote: Remote) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != remote.md5:
        raise DataError(
            f"expected MD5 {remote.md5} of {path}, got {found}; delete the file and run again, or "
            f"get it from {remote.url}"
        )


if __name__ == "__main__":
    sys.exit(main())
