"""gRPC as both sides use it: options, credentials, status codes; the only such module in here.

Measured behind the options: keepalive alone does not notice a dead peer, it takes
``ping_timeout_ms`` besides; bandwidth probing costs about 28 bytes per message each way on a
paced stream of small messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any

import grpc
import grpc.aio

from shared.addresses import grpc_target, has_replicas
from shared.credentials import OPEN, ClientCredentials, Pems
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
from shared.metrics import GrpcType, RpcMetrics, RpcTally, Tell
from shared.watched import Watched

Options = Sequence[tuple[str, Any]]

AUTHORIZATION = "authorization"
BEARER = "Bearer "
SESSION = "neucodex-session"
KEEPALIVE_SECONDS = 20.0
PING_TIMEOUT_SECONDS = 10.0
ANY_REPLICA = '{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}'
"""One of several equal servers, drawn by lot, and the next one where that cannot be reached.

Not ``round_robin``: a stream has a channel of its own, and the first call on a new channel goes to
whichever server is connected first, which of 60 streams opened at once took 59 to the same one; it
would hold a connection to every server besides. By lot they went 26, 20 and 14.
"""
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

_FORMS = {
    (False, False): (GrpcType.UNARY, "unary_unary"),
    (False, True): (GrpcType.SERVER_STREAM, "unary_stream"),
    (True, False): (GrpcType.CLIENT_STREAM, "stream_unary"),
    (True, True): (GrpcType.BIDI_STREAM, "stream_stream"),
}
"""By whether requests and replies are streams: the label, and what gRPC calls such a method."""
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
        # A channel of ours owns its connections, so that its bytes can be told apart, and goes to a
        # server of its own choice: with the shared pool, 59 of 60 streams met at one of three.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def channel(address: str, credentials: ClientCredentials = OPEN) -> grpc.aio.Channel:
    """Return a channel to servers; a token goes with :func:`metadata`.

    Args:
        address: ``unix:PATH``, or as :func:`shared.addresses.peers` takes it.
        credentials: shown to the server.

    Raises:
        ConfigError: it is no address.
    """
    options, pems = list(channel_options()), credentials.pems
    target = grpc_target(address)
    if has_replicas(address):
        options.append(("grpc.service_config", ANY_REPLICA))
    if pems is None:
        return grpc.aio.insecure_channel(target, options=options)
    if credentials.server_name is not None:
        options.append(("grpc.ssl_target_name_override", credentials.server_name))
    secured = grpc.ssl_channel_credentials(pems.ca, pems.key, pems.certificate)
    return grpc.aio.secure_channel(target, secured, options=options)


def metadata(
    credentials: ClientCredentials, session: str | None = None
) -> tuple[tuple[str, str], ...]:
    """Return what every call of a client carries.

    The token is plain metadata: gRPC's own call credentials want TLS, which a proxy may have ended.

    Args:
        credentials: the client's.
        session: names who keeps opening streams, for a balancer on the way that keeps such
            together; None to leave it out.
    """
    found = [] if session is None else [(SESSION, session)]
    if credentials.token is not None:
        found.append((AUTHORIZATION, f"{BEARER}{credentials.token}"))
    return tuple(found)


def token_of(context: Any) -> str | None:
    """Return the token that came with a call, if one did."""
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION and isinstance(value, str) and value.startswith(BEARER):
            return value.removeprefix(BEARER)
    return None


def server(metrics: RpcMetrics | None = None) -> grpc.aio.Server:
    """Return a server with our options and no services yet; ``metrics`` are told of its calls."""
    interceptors = () if metrics is None else (_Counting(metrics),)
    return grpc.aio.server(options=list(server_options()), interceptors=interceptors)


class _Counting(grpc.aio.ServerInterceptor):
    """Tells the standard metrics of every call of a method that exists.

    What it adds to a message is one call of a function around its (de)serialiser. Ours because
    py-grpc-prometheus has none for grpc.aio, and grpcio-observability brings the OpenTelemetry SDK
    and one exact grpcio along.
    """

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the method's handler, made to tell; None where there is no such method."""
        path = handler_call_details.method
        if path not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._handlers[path] = _counted(handler, path, self._metrics)
        return self._handlers[path]


def _counted(
    handler: grpc.RpcMethodHandler[Any, Any], path: str, metrics: RpcMetrics
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler that does the same and tells of it."""
    kind, form = _FORMS[bool(handler.request_streaming), bool(handler.response_streaming)]
    tally = metrics.method(path, kind)
    counted: grpc.RpcMethodHandler[Any, Any] = getattr(grpc, f"{form}_rpc_method_handler")(
        _counted_behaviour(getattr(handler, form), tally),
        _telling(handler.request_deserializer, tally.received),
        _telling(handler.response_serializer, tally.sent),
    )
    return counted


def _telling(convert: Callable[[Any], Any] | None, tell: Tell) -> Callable[[Any], Any]:
    """Return a (de)serialiser that tells of every message; None stands for bytes as they are."""

    def told(message: Any) -> Any:
        tell(1)
        return message if convert is None else convert(message)

    return told


def _counted_behaviour(behaviour: Any, tally: RpcTally) -> Any:
    """Return an asynchronous method, of either form that grpc.aio has, that tells of its calls."""
    if inspect.isasyncgenfunction(behaviour):

        async def replies(request: Any, context: Any) -> Any:
            with _call(tally, context):
                async for reply in behaviour(request, context):
                    yield reply

        return replies

    async def reply(request: Any, context: Any) -> Any:
        with _call(tally, context):
            return await behaviour(request, context)

    return reply


@contextlib.contextmanager
def _call(tally: RpcTally, context: Any) -> Iterator[None]:
    """Tell of one call, and of the status it ends with."""
    began, failure = perf_counter(), None
    tally.started(1)
    try:
        yield
    except BaseException as error:
        cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
        failure = "CANCELLED" if cancelled else "UNKNOWN"
        raise
    finally:
        # A status that was set counts, also where an exception carries it (abort).
        code = context.code()
        tally.handled(code.name if code else failure or "OK", perf_counter() - began)


def bind(target: grpc.aio.Server, address: str, pems: Watched[Pems] | None = None) -> int:
    """Bind a server to ``host:port`` (0 picks a port) or ``unix:PATH`` and return the port.

    Args:
        target: the server.
        address: where it is to listen.
        pems: its certificate and key, and the authorities whose clients alone may connect; None
            for a server without TLS.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        if pems is None:
            port = target.add_insecure_port(address)
        else:
            port = target.add_secure_port(address, _server_credentials(pems))
    except RuntimeError as error:
        raise ConfigError(f"expected an address that can be bound, got {address!r}: {error}") from (
            error
        )
    if port == 0 and not address.startswith("unix:"):
        raise ConfigError(f"expected an address that can be bound, got {address!r}")
    return port


def _server_credentials(pems: Watched[Pems]) -> grpc.ServerCredentials:
    """Return credentials that every new connection meets as the files then are."""
    used = pems.current()

    def changed() -> Any:  # The stubs leave out the None for no change.
        # On a thread of gRPC's.
        nonlocal used
        now = pems.current()
        if now is used:
            return None
        used = now
        return _certificates(now)

    return grpc.dynamic_ssl_server_credentials(_certificates(used), changed, used.ca is not None)


def _certificates(pems: Pems) -> grpc.ServerCertificateConfiguration:
    if pems.key is None or pems.certificate is None:
        raise ValueError("expected a certificate and its key")
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca)
