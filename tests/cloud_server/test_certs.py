"""``neucodex-cloud certs``; that the certificates work shows in the tests of TLS."""

from __future__ import annotations

import builtins
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from cloud_server.cli import main

pytest.importorskip("cryptography", reason="makes certificates")


def run(folder: Path, *flags: str) -> int:
    return main(["certs", "--out", str(folder), *flags])


def test_they_are_signed_by_the_authority_and_their_keys_are_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "certs"
    assert (
        run(folder, "--server-name", "cloud.example", "--server-name", "::1", "--edge", "e1") == 0
    )
    said = capsys.readouterr().out
    stems = ("ca", "server", "edge-e1")
    assert [line.split(",")[0] for line in said.splitlines()] == [
        str(folder / f"{stem}.pem") for stem in stems
    ]
    assert "PRIVATE" not in said
    for stem in stems:
        assert stat.S_IMODE((folder / f"{stem}.key").stat().st_mode) == 0o600
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{stem}.pem", folder / f"{stem}.key")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{stem}.{kind}" for stem in stems for kind in ("pem", "key")
    )


def test_the_authority_stays_and_others_are_made_anew(tmp_path: Path) -> None:
    run(tmp_path, "--edge", "e1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(tmp_path, "--edge", "e1", "--edge", "e2") == 0
    for name in ("ca.pem", "ca.key"):
        assert (tmp_path / name).read_bytes() == before[name]
    assert (tmp_path / "edge-e1.pem").read_bytes() != before["edge-e1.pem"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--edge", "../evil"), "expected the name of an edge"),
        (("--edge", ""), "expected the name of an edge"),
        (("--server-name", "a b"), "expected a host name or an IP address"),
    ],
)
def test_names_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], complaint: str
) -> None:
    assert run(tmp_path, *flags) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_authority_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    (tmp_path / "ca.key").write_text("nothing")
    assert run(tmp_path, "--edge", "e1") == 2
    assert "expected an authority" in capsys.readouterr().err
    run(tmp_path / "other")
    (tmp_path / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    assert run(tmp_path, "--edge", "e1") == 2
    assert "expected the elliptic-curve key of" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 2
    assert "expected a folder to write to" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run(tmp_path) == 2
    assert "pip install 'neucodex[certs]'" in capsys.readouterr().err
