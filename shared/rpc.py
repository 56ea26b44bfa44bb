"""gRPC as both sides use it: options, channels, servers and status codes; the only such module.

Measured behind the options: keepalive alone does not notice a dead peer, it takes
``ping_timeout_ms`` besides; bandwidth probing costs about 28 bytes per message each way on a
paced stream of small messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import grpc.aio

from shared.errors import (
    BundleError,
    ConfigError,
    InputError,
    LinkLostError,
    NeucodexError,
    ProtocolError,
    RefusedError,
    SampleCode,
    SampleError,
)

Options = Sequence[tuple[str, Any]]

KEEPALIVE_SECONDS = 20.0
PING_TIMEOUT_SECONDS = 10.0
MAX_MESSAGE_BYTES = 33 << 20
"""Room for one encoded image or array of ``wire.MAX_INPUT_BYTES``."""

LOST_CODES = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}
)
"""A dead server shows up as any of these, depending on the proxy in between."""

REFUSED_CODES = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""The server is there and said no."""

RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata with which a server says when to ask again (gRPC proposal A6)."""
MAX_PUSHBACK_SECONDS = 3600.0

_STATUS = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    BundleError: grpc.StatusCode.FAILED_PRECONDITION,
    LinkLostError: grpc.StatusCode.UNAVAILABLE,
}
_SAMPLE_STATUS = {
    SampleCode.NO_SLOT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SampleCode.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    SampleCode.CHECK_FAILED: grpc.StatusCode.DATA_LOSS,
    SampleCode.BAD_PACKET: grpc.StatusCode.INTERNAL,
    SampleCode.WORKER_LOST: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: NeucodexError) -> grpc.StatusCode:
    """Return the gRPC status that tells a caller of this error."""
    if isinstance(error, SampleError):
        return _SAMPLE_STATUS[error.code]
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.INTERNAL


def retry_pushback(seconds: float | None) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata that ask a client to wait so long; none for None."""
    return () if seconds is None else ((RETRY_PUSHBACK, str(round(seconds * 1000))),)


def pushback_seconds(metadata: Iterable[tuple[str, str | bytes]]) -> float:
    """Return how long a server asks to wait; 0 where it says nothing, or nothing sensible."""
    asked = dict(metadata).get(RETRY_PUSHBACK, "")
    if not isinstance(asked, str) or re.fullmatch("[0-9]{1,10}", asked) is None:
        return 0.0
    return min(int(asked) / 1000, MAX_PUSHBACK_SECONDS)


def common_options() -> Options:
    """Return the options of channels and servers alike."""
    return [
        # Find a dead peer within KEEPALIVE + PING_TIMEOUT; without the second it takes minutes.
        ("grpc.keepalive_time_ms", int(KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT_SECONDS * 1000)),
        ("grpc.http2.ping_timeout_ms", int(PING_TIMEOUT_SECONDS * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        # Messages are tens of bytes: measuring the bandwidth-delay product only adds pings.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]


def server_options() -> Options:
    """Return the options of a server."""
    return [
        *common_options(),
        # Edges ping idle streams: allow it, twice as often as they do.
        ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_SECONDS * 500)),
        # A second server on a taken port must fail, not share it.
        ("grpc.so_reuseport", 0),
    ]


def channel_options() -> Options:
    """Return the options of a client channel."""
    return [
        *common_options(),
        # The daemon has its own backoff; the channel's must not be slower.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name: how long one attempt to connect may take. Slow links need round trips.
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A channel of ours owns its connections, so that its bytes can be told apart.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def channel(address: str) -> grpc.aio.Channel:
    """Return an insecure channel to ``host:port`` or ``unix:PATH``."""
    return grpc.aio.insecure_channel(address, options=list(channel_options()))


def server() -> grpc.aio.Server:
    """Return a server with our options and no services yet."""
    return grpc.aio.server(options=list(server_options()))


def bind(target: grpc.aio.Server, address: str) -> int:
    """Bind a server to ``host:port`` (0 picks a port) or ``unix:PATH`` and return the port.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        port = target.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"expected an address that can be bound, got {address!r}: {error}") from (
            error
        )
    if port == 0 and not address.startswith("unix:"):
        raise ConfigError(f"expected an address that can be bound, got {address!r}")
    return port
