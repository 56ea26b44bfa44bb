"""Reads the events of a daemon's live page, for programs in a terminal."""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from shared.addresses import parse_address
from shared.credentials import ClientCredentials, ClientFiles, add_client_flags
from shared.errors import ConfigError, LinkLostError, RefusedError
from shared.live.site import EVENTS

SILENCE_SECONDS = 10.0
"""A daemon that says nothing for so long counts as lost."""
REFUSAL_BYTES = 4096


class Event(NamedTuple):
    """Something that a daemon tells."""

    name: str
    data: bytes
    """JSON."""


def add_flags(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the flags that say which daemon is asked, what is shown to it, and for how long."""
    parser.add_argument(
        "--metrics",
        metavar="ADDRESS",
        default=default,
        help="where the daemon serves /metrics and its live page: host:port (default: %(default)s)",
    )
    add_client_flags(parser)
    parser.add_argument(
        "--user", metavar="NAME", help="whose token --token-file has, in the daemon's metrics_users"
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one frame and end, as also where the output is no terminal",
    )


def events(arguments: argparse.Namespace) -> Iterator[Event]:
    """Yield a daemon's events as they come, without end.

    Args:
        arguments: of :func:`add_flags`.

    Raises:
        ConfigError: arguments that do not belong together, or a file that cannot be used.
        LinkLostError: nobody answers there, or no longer.
        RefusedError: the daemon shows its page to others, or to nobody.
    """
    files = ClientFiles(
        **{key: getattr(arguments, key) for key in ClientFiles.__dataclass_fields__}
    )
    if (arguments.user is None) != (files.token_file is None):
        raise ConfigError("expected --user and --token-file together, got one of them")
    try:
        files.check(arguments.metrics, insecure=bool(arguments.insecure))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with contextlib.closing(_connect(arguments.metrics, files)) as connection:
        yield from _read(connection, arguments.metrics, files.read(), arguments.user)


def _connect(address: str, files: ClientFiles) -> http.client.HTTPConnection:
    """Connect; LinkLostError where nobody listens, or TLS fails."""
    host, port = parse_address(address)
    connection = http.client.HTTPConnection(host, port)
    try:
        plain = socket.create_connection((host, port), timeout=SILENCE_SECONDS)
        context = files.context()
        name = files.tls_server_name or host
        connection.sock = (
            plain if context is None else context.wrap_socket(plain, server_hostname=name)
        )
    except OSError as error:
        hint = "does it serve TLS?" if isinstance(error, ssl.SSLError) else "does it run?"
        raise LinkLostError(f"expected a daemon at {address} ({hint}): {error}") from error
    return connection


def _read(
    connection: http.client.HTTPConnection,
    address: str,
    credentials: ClientCredentials,
    user: str | None,
) -> Iterator[Event]:
    headers = {}
    if user is not None:
        shown = base64.b64encode(f"{user}:{credentials.token}".encode()).decode("ascii")
        headers["Authorization"] = f"Basic {shown}"
    try:
        connection.request("GET", EVENTS, headers=headers)
        reply = connection.getresponse()
        if reply.status != http.HTTPStatus.OK:
            said = reply.read(REFUSAL_BYTES).decode(errors="replace").strip()
            raise RefusedError(f"{address}: {reply.status} {reply.reason}: {said}")
        while name := reply.readline():
            data = reply.readline()
            reply.readline()
            yield Event(_field(name, b"event: ").decode(), _field(data, b"data: "))
    except (OSError, http.client.HTTPException) as error:
        what = "nothing came" if isinstance(error, TimeoutError) else str(error)
        raise LinkLostError(f"expected events from {address}, got: {what}") from error
    raise LinkLostError(f"{address} ended the events: it was stopped, or we were too slow")


def _field(line: bytes, name: bytes) -> bytes:
    if not line.startswith(name):
        raise LinkLostError(f"expected a line that begins with {name!r}, got {line[:80]!r}")
    return line.removeprefix(name).strip()
