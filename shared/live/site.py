"""What a daemon serves over HTTP: ``/metrics``, and beside it a page that shows what happens.

The page shows the pictures that are classified. It is therefore served only where readers show who
they are (``metrics_users``, ``metrics_client_ca``) or are programs on this machine; of those, a
browser that was led here by another site's name is refused, as its page would read along.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shared import web
from shared.addresses import is_local
from shared.live.board import Board, FullError
from shared.web import Access, Application, WebServer

ASSETS = Path(__file__).parent / "assets"
EVENTS = "/events"
METRICS = "/metrics"
KINDS = MappingProxyType(
    {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
)
HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-cache"),
)
"""Of everything but ``/metrics``: nothing from elsewhere is loaded, nothing in here is run."""
EXPOSED = (
    "the live page shows what is classified: expected metrics_users or metrics_client_ca, so that "
    "readers show who they are, or an address of this machine alone; got neither"
)
LED_HERE = "expected an address or localhost as the name of this host, got another"

Start = Callable[..., Callable[[bytes], Any]]


class File(NamedTuple):
    """Something that does not change."""

    kind: str
    content: bytes


class Site:
    """Answers requests.

    Args:
        metrics: answers scrapes.
        board: tells events; None where there is no page.
        side: whose page: ``edge`` or ``cloud``.
        forbidden: says why a request, of which the host name is given, gets no page; None where
            it does.
    """

    def __init__(
        self,
        metrics: Application,
        board: Board | None,
        side: str,
        forbidden: Callable[[str], str | None],
    ) -> None:
        self._metrics = metrics
        self._board = board
        self._files = {} if board is None else _files(side)
        self._forbidden = forbidden

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        """Answer one request (WSGI)."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == METRICS:
            return self._metrics(environ, start_response)
        if self._board is None or (path != EVENTS and path not in self._files):
            pages = METRICS if self._board is None else f"/, {EVENTS} or {METRICS}"
            return _refuse(start_response, "404 Not Found", f"expected {pages}, got another path")
        if method != "GET":
            return _refuse(start_response, "405 Method Not Allowed", "expected GET, got another")
        reason = self._forbidden(environ.get("HTTP_HOST", ""))
        if reason is not None:
            return _refuse(start_response, "403 Forbidden", reason)
        if path == EVENTS:
            return _tell_events(self._board, start_response)
        return _send(start_response, "200 OK", self._files[path])


def serve(
    metrics: Application,
    address: str,
    access: Access = web.ANYBODY,
    *,
    side: str,
    board: Board | None = None,
) -> WebServer:
    """Serve a daemon's site.

    Args:
        metrics: answers scrapes.
        address: ``host:port``, ``[host]:port`` for IPv6; port 0 takes a free one.
        access: who may read.
        side: ``edge`` or ``cloud``.
        board: tells the events of the page; None for no page.

    Raises:
        ConfigError: the address is malformed or cannot be listened on, or a file cannot be used.
    """
    site = Site(metrics, board, side, partial(_forbidden, address, access))
    if board is None:
        return web.serve(site, address, access)
    return web.serve(site, address, access, on_close=board.close)


def _forbidden(address: str, access: Access, host: str) -> str | None:
    """Return why a request for a host of this name gets no page; None where it does."""
    if access.knows_readers:
        return None
    if not is_local(address):
        return EXPOSED
    return None if _is_no_name(host) else LED_HERE


def _is_no_name(host: str) -> bool:
    """Say whether a ``Host`` header is none that another site may have given to this machine."""
    try:
        name = urlsplit(f"//{host}").hostname
        return name in (None, "localhost") or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _files(side: str) -> Mapping[str, File]:
    """Return what belongs to the page of a side, by path."""
    files = {
        f"/{path.name}": File(f"{KINDS[path.suffix]}; charset=utf-8", path.read_bytes())
        for path in ASSETS.iterdir()
        if path.suffix != ".html"
    }
    page = (ASSETS / f"{side}.html").read_bytes()
    return files | {"/": File("text/html; charset=utf-8", page)}


def _send(start_response: Start, status: str, file: File) -> Iterable[bytes]:
    headers = [("Content-Type", file.kind), ("Content-Length", str(len(file.content))), *HEADERS]
    start_response(status, headers)
    return [file.content]


def _refuse(start_response: Start, status: str, reason: str) -> Iterable[bytes]:
    return _send(start_response, status, File("text/plain; charset=utf-8", f"{reason}\n".encode()))


def _tell_events(board: Board, start_response: Start) -> Iterable[bytes]:
    """Send events for as long as both sides want."""
    try:
        with board.listener() as listener:
            write = start_response("200 OK", [("Content-Type", "text/event-stream"), *HEADERS])
            for event in listener:
                write(event)
    except FullError as error:
        return _refuse(start_response, "503 Service Unavailable", str(error))
    except OSError:
        pass  # Gone, or too slow: nothing can be said to it any more.
    return []
