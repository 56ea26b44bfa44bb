"""``neucodex-cloud certs``: an authority of one's own, and certificates for a server and its edges.

For tests and for small installations: whoever holds ``ca.key`` can make more certificates. Needs
the ``cryptography`` package, the only file that does.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS = 3650
CLOCK_DAYS = 1
"""Certificates are valid from so long before now: devices' clocks may be behind."""
EDGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey


def make_certificates(
    folder: Path, server_names: Sequence[str], edge_names: Sequence[str], days: int
) -> list[Path]:
    """Make certificates and keys in a folder; those that are there already are replaced.

    The authority (``ca.pem``, ``ca.key``) is made if it is not there, and kept if it is.

    Args:
        folder: where to; made if need be.
        server_names: host names and IP addresses of the server (``server.pem``); none for no
            server.
        edge_names: a certificate each (``edge-NAME.pem``).
        days: how long the certificates are valid.

    Returns:
        The certificates, the authority's first.

    Raises:
        ConfigError: a name that is none, an authority that cannot be read, a folder that cannot be
            written, or the package ``cryptography`` is not installed.
    """
    _require_cryptography()
    _check_names(server_names, edge_names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority = _authority(folder)
        made = [folder / "ca.pem"]
        if server_names:
            made.append(_write(folder, "server", _signed(authority, "server", server_names, days)))
        for name in edge_names:
            made.append(_write(folder, f"edge-{name}", _signed(authority, name, (), days)))
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder to write to: {error.strerror}") from error
    return made


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "expected the Python package cryptography (pip install 'neucodex[certs]'), it is not "
            "installed"
        ) from error


def _check_names(server_names: Sequence[str], edge_names: Sequence[str]) -> None:
    for name in server_names:
        if not _is_address(name) and not HOST_NAME.fullmatch(name):
            raise ConfigError(f"expected a host name or an IP address of the server, got {name!r}")
    for name in edge_names:
        if not EDGE_NAME.fullmatch(name):
            raise ConfigError(
                "expected the name of an edge of at most 63 letters, digits, '.', '_' and '-', "
                f"not beginning with a sign, got {name!r}"
            )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _authority(folder: Path) -> Pair:
    """Return the folder's authority, made if there is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate, key = folder / "ca.pem", folder / "ca.key"
    if not certificate.exists() and not key.exists():
        made = _self_signed()
        _write(folder, "ca", made)
        return made
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        secret = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{certificate}, {key}: expected an authority: {error}") from error
    same = secret.public_key() == found.public_key()
    if not isinstance(secret, ec.EllipticCurvePrivateKey) or not same:
        raise ConfigError(f"{key}: expected the elliptic-curve key of {certificate}")
    return Pair(found, secret)


def _self_signed() -> Pair:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("NeuCODEX authority")
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _sealed(builder, key, key)


def _signed(authority: Pair, name: str, hosts: Sequence[str], days: int) -> Pair:
    """Return a server's certificate for these hosts, or without any an edge's."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(_name(name), authority.certificate.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(issuer, critical=False)
    )
    if hosts:
        names = [
            x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)
            for host in hosts
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _sealed(builder, key, authority.key)


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=CLOCK_DAYS))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(**granted: bool) -> x509.KeyUsage:
    from cryptography import x509

    uses = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{use: granted.get(use, False) for use in uses})


def _sealed(
    builder: x509.CertificateBuilder, own: EllipticCurvePrivateKey, signer: EllipticCurvePrivateKey
) -> Pair:
    from cryptography.hazmat.primitives.hashes import SHA256

    return Pair(builder.sign(signer, SHA256()), own)


def _write(folder: Path, stem: str, pair: Pair) -> Path:
    """Write a certificate, and its key so that its user alone can read it; return the first."""
    from cryptography.hazmat.primitives import serialization

    certificate, key = folder / f"{stem}.pem", folder / f"{stem}.key"
    pem = serialization.Encoding.PEM
    secret = pair.key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(key, secret, 0o600)
    _replace(certificate, pair.certificate.public_bytes(pem), 0o644)
    return certificate


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Put a file in its place, whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
