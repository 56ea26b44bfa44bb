"""A small HTTP server for figures: on loopback or beyond, with TLS and passwords if need be.

Requests run on threads of their own, the TLS handshake included, so that a client that says
nothing holds up no other.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec

from shared.addresses import is_local, parse_address
from shared.credentials import File, TlsFiles, check_pair, check_path
from shared.errors import ConfigError
from shared.tokens import Entry, bearer, watch_tokens
from shared.watched import Watched

logger = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
REQUEST_SECONDS = 30.0
"""A client that takes longer for its handshake, between two pieces of a request, or to take in a
piece of the answer, is left."""
SEND_BUFFER_BYTES = 1 << 16
"""What the kernel holds for a client that is slow to read; without a limit it may be megabytes."""
REALM = 'Basic realm="NeuCODEX", charset="UTF-8"'


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may read; each as the key of that name, after ``metrics_``, says."""

    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    users: str | None = None

    def check(self, address: str, *, insecure: bool) -> None:
        """Check the values, and that no password goes unencrypted to another machine.

        Raises:
            ValueError: it would, or values do not belong together.
        """
        check_pair(self.certificate, self.key, "metrics_")
        check_path("metrics_users", self.users)
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("metrics_certificate: expected one with metrics_client_ca, got none")
        exposed = bool(address) and not is_local(address) and not insecure
        if exposed and self.users is not None and self.certificate is None:
            raise ValueError(
                "metrics_certificate: expected one with metrics_users at an address of other "
                f"machines, where passwords would travel unencrypted, got none for {address!r}"
            )

    @property
    def knows_readers(self) -> bool:
        """Whether a reader has to show who it is."""
        return self.users is not None or self.client_ca is not None

    @property
    def tls(self) -> TlsFiles | None:
        """The files that TLS takes; None for plain HTTP."""
        if self.certificate is None:
            return None
        names = self.certificate, self.key, self.client_ca
        return TlsFiles(*(None if name is None else Path(name) for name in names))


ANYBODY = Access()
"""Plain HTTP for whoever can connect."""


class AccessKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration keys of :class:`Access` and of the live page, the same for both daemons."""

    metrics_certificate: File | None = None
    """PEM certificate of ``/metrics``, which is then served over TLS alone."""
    metrics_key: File | None = None
    """Its PEM private key."""
    metrics_client_ca: File | None = None
    """PEM certificates of who may have signed those of whoever scrapes: nobody else can then."""
    metrics_users: File | None = None
    """File with the names, and the hashes of the tokens, of who may scrape (basic
    authentication)."""
    live_page: bool = True
    """Whether a page that shows what happens is served beside ``/metrics``."""

    @property
    def metrics_access(self) -> Access:
        """Who may scrape."""
        return Access(
            certificate=self.metrics_certificate,
            key=self.metrics_key,
            client_ca=self.metrics_client_ca,
            users=self.metrics_users,
        )


def add_access_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of :class:`AccessKeys`."""
    for name, text in (
        ("certificate", "serve /metrics over TLS; PEM certificate"),
        ("key", "its PEM private key"),
        (
            "client-ca",
            "answer only scrapers with a certificate; PEM certificates of its authorities",
        ),
        ("users", "answer only scrapers with a name and token of this file"),
    ):
        parser.add_argument(f"--metrics-{name}", metavar="FILE", help=text)
    parser.add_argument(
        "--no-live-page",
        dest="live_page",
        action="store_const",
        const=False,
        help="serve /metrics alone, without the live page",
    )


class WebServer:
    """A running server.

    Args:
        server: listening.
        on_close: called at the end.

    Attributes:
        port: the port it listens on.
    """

    def __init__(self, server: WSGIServer, on_close: Callable[[], None]) -> None:
        self._server = server
        self._on_close = on_close
        self._thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port = server.server_port

    def close(self) -> None:
        """Stop listening and free the port; harmless when called again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._on_close()


def serve(
    application: Any,
    address: str,
    access: Access = ANYBODY,
    on_close: Callable[[], None] = lambda: None,
) -> WebServer:
    """Serve a WSGI application.

    Args:
        application: what answers.
        address: ``host:port``, ``[host]:port`` for IPv6; port 0 takes a free one.
        access: who may ask.
        on_close: called when the server has been closed.

    Raises:
        ConfigError: the address is malformed or cannot be listened on, or a file cannot be used.
    """
    host, port = parse_address(address)
    if access.users is not None:
        application = _guarded(application, watch_tokens(Path(access.users)))
    context = None if access.tls is None else _watched_context(access.tls)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        kind = type("_Server", (_Server,), {"address_family": family, "context": context})
        return WebServer(make_server(host, port, application, kind, _Handler), on_close)
    except OSError as error:
        raise ConfigError(f"metrics address {address}: cannot listen: {error}") from error


def _watched_context(files: TlsFiles) -> Watched[ssl.SSLContext]:
    def read() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files.load_into(context)
        if files.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    return Watched(files.paths, read)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    context: Watched[ssl.SSLContext] | None = None
    """What connections are met with; None for plain HTTP."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection, on its thread."""
        request.settimeout(REQUEST_SECONDS)
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if self.context is None:
            super().finish_request(request, client_address)
            return
        with self.context.current().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of a connection that failed: a port scan is no reason for a traceback."""
        logger.debug("a request of %s failed", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: scrapes are many."""


def _guarded(application: Any, users: Watched[tuple[Entry, ...]]) -> Application:
    """Return an application that answers those who show name and token of a line of the file."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        name, token = _shown(environ.get("HTTP_AUTHORIZATION", ""))
        if bearer(token, users.current(), name) is None:
            headers = [("WWW-Authenticate", REALM), ("Content-Type", "text/plain; charset=utf-8")]
            start_response("401 Unauthorized", headers)
            return [b"expected the name and the token of a user, got others or none\n"]
        answer: Iterable[bytes] = application(environ, start_response)
        return answer

    return guarded


def _shown(header: str) -> tuple[str, str]:
    """Return the name and the token of basic authentication; empty ones where there are none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, _, token = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        return "", ""
    return name, token
