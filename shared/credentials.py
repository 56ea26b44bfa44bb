"""What the two sides show each other: certificates in PEM files, and a token.

Files are checked before anything is served or connected with them, and followed when they change
(:mod:`shared.watched`). Secrets stay out of every ``repr``, and so out of logs and tracebacks.
"""

from __future__ import annotations

import argparse
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from shared.addresses import is_local, peers
from shared.errors import ConfigError
from shared.sockets import UNIX
from shared.tokens import is_token, read_token
from shared.watched import Watched, read_file

File = Annotated[str, msgspec.Meta(min_length=1)]
"""A configuration key that names a file."""
DEFAULT_CA = "default"
"""Instead of a file: the public authorities that gRPC brings along."""


@dataclass(frozen=True, kw_only=True)
class Pems:
    """What is in one side's PEM files."""

    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    ca: bytes | None = None


class TlsFiles(NamedTuple):
    """Where one side's PEM files are."""

    certificate: Path | None = None
    """Own certificate, below it those between it and the authority's."""
    key: Path | None = None
    """Its private key, without a passphrase."""
    ca: Path | None = None
    """Certificates of the authorities that may have signed the other side's."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files there are."""
        return tuple(path for path in self if path is not None)

    def watched(self) -> Watched[Pems]:
        """Return what is in the files, now and whenever they change; errors as :meth:`read`."""
        return Watched(self.paths, self.read)

    def read(self) -> Pems:
        """Return what is in the files.

        Raises:
            ConfigError: a file cannot be read or is no PEM, or the key is not the certificate's.
        """
        self.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        return Pems(
            certificate=_content(self.certificate), key=_content(self.key), ca=_content(self.ca)
        )

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let a context use the files; ConfigError as :meth:`read`."""
        if self.certificate is not None and self.key is not None:
            _load_pair(context, self.certificate, self.key)
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(f"{self.ca}: expected certificates in PEM: {error}") from error


def _content(path: Path | None) -> bytes | None:
    return None if path is None else read_file(path, "a PEM file")


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def no_passphrase() -> str:
        raise ConfigError(f"{key}: expected a private key without a passphrase")

    try:
        context.load_cert_chain(certificate, key, password=no_passphrase)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{certificate}, {key}: expected a certificate and its private key in PEM: {error}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ClientCredentials:
    """What a client shows and asks for."""

    pems: Pems | None = None
    """None: no TLS; without ``ca`` the public authorities are trusted."""
    server_name: str | None = None
    """The name that the server's certificate must have; None for that in the address."""
    token: str | None = field(default=None, repr=False)


OPEN = ClientCredentials()
"""Neither encryption nor a token."""


@dataclass(frozen=True, kw_only=True)
class ClientFiles:
    """Where a client has it from; each as the flag of that name says."""

    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_server_name: str | None = None
    token_file: str | None = None

    def check(self, address: str, *, insecure: bool) -> None:
        """Check that it is enough for a server.

        Raises:
            ConfigError: no address of a server.
            ValueError: the server is elsewhere, and neither TLS nor ``insecure`` is asked for; or
                values that do not belong together.
        """
        if not address.startswith(UNIX):
            peers(address)
        if "," in address and self.tls_ca is not None and self.tls_server_name is None:
            raise ValueError(
                "tls_server_name: expected the name in the certificates of the servers with a list "
                "of addresses, got none"
            )
        check_pair(self.tls_certificate, self.tls_key)
        for key in ("tls_certificate", "tls_server_name"):
            if getattr(self, key) is not None and self.tls_ca is None:
                raise ValueError(f"{key}: expected tls_ca with it, got none")
        check_path("token_file", self.token_file)
        if self.tls_ca is None and not insecure and not is_local(address):
            raise ValueError(
                "tls_ca: expected one with a server that is not on this machine (or insecure, "
                "where all on the way may read and change everything), got none for "
                f"{address!r}"
            )

    def watched(self) -> Watched[ClientCredentials]:
        """Return what is in the files, now and whenever they change; ConfigError as ``read``."""
        token = () if self.token_file is None else (Path(self.token_file),)
        return Watched((*self._tls.paths, *token), self.read)

    def read(self) -> ClientCredentials:
        """Return what is in the files; ConfigError where one cannot be used."""
        return ClientCredentials(
            pems=None if self.tls_ca is None else self._tls.read(),
            server_name=self.tls_server_name,
            token=None if self.token_file is None else read_token(Path(self.token_file)),
        )

    def context(self) -> ssl.SSLContext | None:
        """Return what TLS takes outside gRPC; None without. ConfigError as :meth:`read`."""
        if self.tls_ca is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.load_into(context)
        if self.tls_ca == DEFAULT_CA:
            context.load_default_certs()
        return context

    @property
    def told(self) -> str:
        """What it comes to, for people."""
        if self.tls_ca is None:
            return "not encrypted" + (", with a token" if self.token_file else "")
        parts = [f"TLS, trusting {self.tls_ca}"]
        parts += ["with a certificate"] if self.tls_certificate else []
        parts += ["with a token"] if self.token_file else []
        return ", ".join(parts)

    @property
    def _tls(self) -> TlsFiles:
        names = self.tls_certificate, self.tls_key, self.tls_ca
        return TlsFiles(*(None if name in (None, DEFAULT_CA) else Path(name) for name in names))


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of :class:`ClientFiles`, and ``--insecure``."""
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="connect with TLS; PEM certificates of who may have signed the server's, or "
        f"{DEFAULT_CA!r} for the public authorities",
    )
    parser.add_argument("--tls-certificate", metavar="FILE", help="PEM certificate to show")
    parser.add_argument("--tls-key", metavar="FILE", help="its PEM private key")
    parser.add_argument(
        "--tls-server-name", metavar="NAME", help="in the server's certificate, if not the address"
    )
    parser.add_argument("--token-file", metavar="FILE", help="file with the token to show")
    parser.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="do without TLS even if the server is not on this machine",
    )


def check_pair(certificate: str | None, key: str | None, prefix: str = "tls_") -> None:
    """Check that a certificate comes with its key; ValueError if not."""
    for path, missing, other in (
        (certificate, f"{prefix}key", key),
        (key, f"{prefix}certificate", certificate),
    ):
        if path is not None and other is None:
            raise ValueError(f"{missing}: expected a file to go with {path}, got none")


def check_path(key: str, path: str | None) -> None:
    """Check that the path of a token file is no token, which would be shown; ValueError if so."""
    if path is not None and is_token(path):
        raise ValueError(f"{key}: expected the path of a file with the token, got the token itself")
