"""Who is at the other end of a connection, and whether they may be.

A proxy that ends the edges' TLS shows its own certificate, and tells that of the edge in a header.
The header is believed of the proxies that the configuration names, and of nobody else.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from cloud_server.admission import AdmissionError
from shared import rpc
from shared.metrics import RejectReason
from shared.tokens import Entry, bearer, watch_tokens

EXPECTED = "expected a token that this server knows, as metadata 'authorization: Bearer TOKEN'"
FORWARDED = "x-forwarded-client-cert"
"""Envoy's: ``Hash=...;Subject="..."``, quotes and backslashes of the subject behind a backslash."""
_SUBJECT = re.compile(r'(?:^|;)Subject="((?:[^"\\]|\\.)*)"')
_HASH = re.compile(r"(?:^|;)Hash=([0-9a-f]{64})")


class Edge(NamedTuple):
    """An edge as its connection shows it."""

    name: str
    """Subject of its certificate, shown here or to a proxy, else the name that its token is known
    by, else its address."""
    token: Entry | None = None
    """The token that let it in, where the server asks for one."""


class Identities:
    """Knows edges by what they show.

    Args:
        tokens_file: with those that may come in; None where no token is asked for.
        proxies: subjects of the certificates of proxies that are believed.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, tokens_file: str | None, proxies: Iterable[str] = ()) -> None:
        self._proxies = frozenset(proxies)
        self._tokens = None if tokens_file is None else watch_tokens(Path(tokens_file))

    def of(self, context: Any) -> Edge:
        """Return who calls; AdmissionError where a token is asked for and none that is known came.

        Args:
            context: gRPC's, of the call.
        """
        token = self._admitted(context)
        subject = _subject(context.auth_context())
        if subject in self._proxies:
            subject = forwarded_subject(context.invocation_metadata() or ())
        if subject is not None:
            return Edge(f"certificate {subject}", token)
        if token is not None:
            return Edge(f"token {token.name}", token)
        return Edge(f"address {peer_host(context.peer())}", token)

    @property
    def welcome(self) -> frozenset[Entry | None]:
        """What an edge that was let in has to have shown, to be let in still."""
        return frozenset((None,) if self._tokens is None else self._tokens.current())

    def _admitted(self, context: Any) -> Entry | None:
        if self._tokens is None:
            return None
        shown = rpc.token_of(context)
        if shown is None:
            raise AdmissionError(RejectReason.AUTH, f"{EXPECTED}, none came")
        entry = bearer(shown, self._tokens.current())
        if entry is None:
            raise AdmissionError(RejectReason.AUTH, f"{EXPECTED}, another came")
        return entry


def _subject(shown: Mapping[str, Any]) -> str | None:
    """Return the subject of the certificate that a connection showed, None if there is none."""
    certificates = shown.get("x509_pem_cert")
    if not certificates:
        return None
    subjects = shown.get("x509_subject")
    if subjects and subjects[0]:
        return str(subjects[0].decode(errors="replace"))
    return hashlib.sha256(certificates[0]).hexdigest()


def forwarded_subject(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the subject (else the hash) of the certificate that a proxy was shown, if it was."""
    told = dict(metadata).get(FORWARDED)
    if not isinstance(told, str):
        return None
    subject, digest = _SUBJECT.search(told), _HASH.search(told)
    if subject is not None and subject[1]:
        return re.sub(r"\\(.)", r"\1", subject[1])
    return None if digest is None else digest[1]


def peer_host(peer: str) -> str:
    """Return what tells a peer's machine from others: IPv4 address, IPv6 network of 64 bits.

    Args:
        peer: gRPC's name of it, as ``ipv4:10.0.0.1:4711`` or ``ipv6:%5B::1%5D:4711``; anything
            else is returned as it is.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # One machine has all the addresses of its network.
    return str(ipaddress.ip_network((address, 64), strict=False))
