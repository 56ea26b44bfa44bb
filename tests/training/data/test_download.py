from __future__ import annotations

import hashlib
import io
import re
import socket
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.progress import Progress

from training.data import download as module
from training.data.archives import unpack
from training.data.download import REMOTES, DownloadError, Remote, download, fetch, main
from training.data.labelled import DataError

CONTENT = bytes(range(256)) * 40


class Site(ThreadingHTTPServer):
    """A web server on 127.0.0.1 that can resume, and can be told to break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.break_off_after: int | None = None
        self.resumes = True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def remote(self, name: str, content: bytes, *, unpacked: bool = False) -> Remote:
        self.files[name] = content
        return Remote(self.url(name), name, hashlib.md5(content).hexdigest(), unpacked)


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        content = self.server.files.get(self.path[1:])
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        if content is None:
            self.send_error(404)
            return
        start = 0
        if wanted is not None and self.server.resumes:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.break_off_after])

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def progress() -> Progress:
    return Progress(disable=True)


def test_a_file_is_fetched_and_checked(site: Site, tmp_path: Path, progress: Progress) -> None:
    download((site.remote("a.zip", CONTENT),), tmp_path / "new", progress)

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.zip"]
    assert (tmp_path / "new" / "a.zip").read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_fetched_again(
    site: Site, tmp_path: Path, progress: Progress
) -> None:
    remote = site.remote("a.zip", CONTENT)
    (tmp_path / "a.zip").write_bytes(CONTENT)

    download((remote,), tmp_path, progress)

    assert site.ranges == []


def test_a_broken_off_file_is_resumed(site: Site, tmp_path: Path, progress: Progress) -> None:
    remote = site.remote("a.zip", CONTENT)
    site.break_off_after = 3000
    with pytest.raises(DownloadError, match=f"3000 of {len(CONTENT)} bytes.* again to go on"):
        fetch(remote, tmp_path / "a.zip", progress)
    assert not (tmp_path / "a.zip").exists()

    site.break_off_after = None
    fetch(remote, tmp_path / "a.zip", progress)

    assert site.ranges == [None, "bytes=3000-"]
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert not (tmp_path / "a.zip.part").exists()


def test_a_site_that_cannot_resume_sends_all_again(
    site: Site, tmp_path: Path, progress: Progress
) -> None:
    site.resumes = False
    (tmp_path / "a.zip.part").write_bytes(b"something else")

    fetch(site.remote("a.zip", CONTENT), tmp_path / "a.zip", progress)

    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_part_that_is_already_whole_becomes_the_file(
    site: Site, tmp_path: Path, progress: Progress
) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)

    fetch(site.remote("a.zip", CONTENT), tmp_path / "a.zip", progress)

    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_kept(
    site: Site, tmp_path: Path, progress: Progress
) -> None:
    remote = site.remote("a.zip", CONTENT)._replace(md5="0" * 32)

    with pytest.raises(DataError, match=f"expected MD5 {'0' * 32} of .*, got [0-9a-f]{{32}}"):
        download((remote,), tmp_path, progress)
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_there_by_hand_is_checked_too(
    site: Site, tmp_path: Path, progress: Progress
) -> None:
    remote = site.remote("a.zip", CONTENT)
    (tmp_path / "a.zip").write_bytes(b"half")

    with pytest.raises(DataError, match=r"of .*a.zip, got .*; delete the file and run again"):
        download((remote,), tmp_path, progress)
    assert (tmp_path / "a.zip").read_bytes() == b"half"


def test_a_missing_file_names_the_address_and_where_to_put_it(
    site: Site, tmp_path: Path, progress: Progress
) -> None:
    remote = Remote(site.url("gone.zip"), "gone.zip", "0" * 32)

    with pytest.raises(DownloadError, match=r"could not fetch http://127.* \(HTTP Error 404"):
        download((remote,), tmp_path, progress)


def test_without_a_network_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.zip"
    monkeypatch.setattr(module, "REMOTES", {"some": (Remote(url, "a.zip", "0" * 32),)})

    assert main(["some", "--out", str(tmp_path)]) == 1

    message = capsys.readouterr().err
    assert re.search(rf"could not fetch {url} \(.*refused", message)
    assert f"put it at {tmp_path / 'a.zip'} and run the command again" in message


def test_the_command_fetches_and_unpacks(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = zipped({"cat/a.aedat": b"events"})
    remote = site.remote("cat.zip", content, unpacked=True)
    monkeypatch.setattr(module, "REMOTES", {"some": (remote,)})

    assert main(["some", "--out", str(tmp_path)]) == 0

    assert (tmp_path / "cat" / "a.aedat").read_bytes() == b"events"


def test_every_official_file_has_an_address_a_name_and_a_checksum() -> None:
    assert set(REMOTES) == {"cifar10", "caltech101", "n-mnist", "n-caltech101", "cifar10-dvs"}
    remotes = [remote for group in REMOTES.values() for remote in group]
    for remote in remotes:
        assert remote.url.startswith("https://")
        assert re.fullmatch("[0-9a-f]{32}", remote.md5)
        assert re.fullmatch(r"[\w-]+(\.\w+)+", remote.file)
    assert len({remote.url for remote in remotes}) == len(remotes)


def zipped(files: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return file.getvalue()


def tarred(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_are_unpacked_with_their_folders(
    tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    (tmp_path / "archive").write_bytes(pack({"a/b/1.bin": b"one", "2.bin": b"two"}))

    unpack(tmp_path / "archive", tmp_path / "out")

    assert (tmp_path / "out" / "a" / "b" / "1.bin").read_bytes() == b"one"
    assert (tmp_path / "out" / "2.bin").read_bytes() == b"two"


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name", ["../out.bin", "a/../../out.bin", "/absolute/out.bin", "C:\\out.bin"]
)
def test_a_name_outside_the_folder_is_refused_before_anything_is_written(
    tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes], name: str
) -> None:
    (tmp_path / "archive").write_bytes(pack({"good.bin": b"", name: b""}))

    with pytest.raises(DataError, match="expected names below the target folder"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(
    "content",
    [
        zipped({"link": b"/etc/passwd"}, stat.S_IFLNK | 0o777),
        tarred({"link": b""}, tarfile.SYMTYPE),
        tarred({"link": b""}, tarfile.LNKTYPE),
        tarred({"pipe": b""}, tarfile.FIFOTYPE),
    ],
    ids=["zip link", "tar link", "tar hard link", "tar pipe"],
)
def test_links_and_devices_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "archive").write_bytes(content)

    with pytest.raises(DataError, match="expected files and folders only"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", tarred({"a": bytes(9999)})[:-20]])
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "archive").write_bytes(content)

    with pytest.raises(DataError, match="expected a whole zip or tar archive at"):
        unpack(tmp_path / "archive", tmp_path / "out")
