from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shared.credentials import ClientFiles, TlsFiles
from shared.errors import ConfigError
from shared.tokens import make_token
from tests.conftest import Certificates


def files(certificates: Certificates, certificate: str, key: str, ca: str = "ca.pem") -> TlsFiles:
    folder = certificates.folder
    return TlsFiles(folder / certificate, folder / key, folder / ca)


def test_what_is_in_the_files_is_read(certificates: Certificates) -> None:
    pems = files(certificates, "server.pem", "server.key").read()
    assert pems.certificate == (certificates.folder / "server.pem").read_bytes()
    assert pems.key == (certificates.folder / "server.key").read_bytes()
    assert pems.ca == (certificates.folder / "ca.pem").read_bytes()


@pytest.mark.parametrize(
    ("certificate", "key", "ca", "complaint"),
    [
        ("server.pem", "edge-one.key", "ca.pem", "expected a certificate and its private key"),
        ("server.key", "server.pem", "ca.pem", "expected a certificate and its private key"),
        ("none.pem", "server.key", "ca.pem", "none.pem.*No such file"),
        ("server.pem", "server.key", "server.key", "server.key: expected certificates in PEM"),
        ("server.pem", "server.key", "none", "none: expected certificates in PEM.*No such file"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    certificates: Certificates, certificate: str, key: str, ca: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        files(certificates, certificate, key, ca).read()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="encrypts a key with openssl")
def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(
    certificates: Certificates,
) -> None:
    encrypt = "openssl pkcs8 -topk8 -in server.key -out locked.key -passout pass:secret"
    subprocess.run(encrypt.split(), cwd=certificates.folder, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="expected a private key without a passphrase"):
        files(certificates, "server.pem", "locked.key").read()


def test_secrets_are_not_in_what_is_printed(certificates: Certificates, tmp_path: Path) -> None:
    token = make_token()
    (tmp_path / "token").write_text(token)
    told = ClientFiles(**certificates.edge("one"), token_file=str(tmp_path / "token"))
    shown = told.read()
    assert shown.token == token
    assert shown.pems is not None
    assert shown.pems.key is not None
    printed = f"{told!r} {shown!r} {told.told}"
    assert token not in printed
    assert shown.pems.key.decode().splitlines()[1] not in printed
    assert "PRIVATE" not in printed


@pytest.mark.parametrize("address", ["10.0.0.1:5", "cloud.example:50051", "0.0.0.0:1", "[::]:1"])
def test_a_server_elsewhere_needs_tls_or_insecure(address: str) -> None:
    with pytest.raises(ValueError, match=r"tls_ca: expected one with a server that is not on this"):
        ClientFiles().check(address, insecure=False)
    ClientFiles().check(address, insecure=True)
    ClientFiles(tls_ca="ca.pem").check(address, insecure=False)


def test_a_server_here_needs_none() -> None:
    for address in ("127.0.0.1:5", "localhost:5", "unix:/a"):
        ClientFiles().check(address, insecure=False)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"tls_certificate": "a.pem"}, "tls_key: expected a file to go with a.pem, got none"),
        ({"tls_key": "a.key"}, "tls_certificate: expected a file to go with a.key, got none"),
        ({"tls_server_name": "x"}, "tls_server_name: expected tls_ca with it, got none"),
    ],
)
def test_values_that_do_not_belong_together_are_refused(
    given: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        ClientFiles(**given).check("127.0.0.1:1", insecure=True)


def test_a_token_instead_of_its_file_is_refused_and_not_shown() -> None:
    token = make_token()
    with pytest.raises(ValueError, match="got the token itself") as caught:
        ClientFiles(token_file=token).check("127.0.0.1:1", insecure=False)
    assert token not in str(caught.value)
