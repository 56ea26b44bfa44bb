"""The gRPC service: opens streams, carries messages between them and the wire, answers errors.

Every message is read at once and handed to its stream; a writer of its own sends whatever waits in
the stream's outbox, so that reading never waits for writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from importlib import metadata
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from msgspec.structs import replace

from cloud_server import image_stream
from cloud_server.admission import Admission, AdmissionError
from cloud_server.code_stream import CodeStream, resolved
from cloud_server.config import CloudConfig
from cloud_server.files import file_chunks
from cloud_server.identity import Identities
from cloud_server.image_stream import Input
from cloud_server.limits import EdgeLimits, Visit
from cloud_server.model_store import Model, ModelStore
from cloud_server.stream import Stream
from cloud_server.warden import Warden
from protos import co_inference_pb2 as pb
from protos import co_inference_pb2_grpc
from shared import rpc, wire
from shared.errors import InputError, NeucodexError, ProtocolError
from shared.messages import PROTOCOL_VERSION, CloudMessage, Opened
from shared.metrics import CloudMetrics, RejectReason, Rpc
from shared.tracing import Tracing

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Kind = TypeVar("Kind", bound=Stream)

ABORT_SECONDS = 1.0
"""Time for streams that are cut at the end of a drain to tell their edges."""
HEAR_OUT_SECONDS = 1.0
"""How long a stream that is refused has for its first message."""
STALL_SECONDS = 60.0
"""Longest time for an edge to take in a chunk of a file."""
CLOCK_SECONDS = 10.0
"""How often a stream is told this machine's wall clock."""
MAX_DETAILS = 1000
"""Characters of a status message; it travels in a header, whose size is limited."""
_REFUSALS = {
    RejectReason.OVERLOAD: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.EDGE_STREAMS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.EDGE_BYTES: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RejectReason.AUTH: grpc.StatusCode.UNAUTHENTICATED,
    RejectReason.VERSION_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    RejectReason.IDLE: grpc.StatusCode.DEADLINE_EXCEEDED,
    RejectReason.DRAINING: grpc.StatusCode.UNAVAILABLE,
}


class CoInference(co_inference_pb2_grpc.CoInferenceServicer):
    """The service of one server.

    Args:
        store: what is served.
        config: the server's.
        metrics: the server's.
        tracing: goes on with the edges' traces; None for not.
    """

    def __init__(
        self,
        store: ModelStore,
        config: CloudConfig,
        metrics: CloudMetrics,
        tracing: Tracing | None = None,
    ) -> None:
        self._store = store
        self._tracing = tracing
        self._config = config
        self._metrics = metrics
        self._admission = Admission(config.max_streams, config.overload_retry_seconds, metrics)
        self._identities = Identities(config.tokens_file, config.proxies)
        self._limits = EdgeLimits(config, metrics)
        self._handlers: dict[Stream, asyncio.Task[Any]] = {}

    async def Infer(self, request_iterator: object, context: Context) -> None:
        """Serve one edge session."""
        await self._answer(
            context, self._serve(Rpc.INFER, context, self._open_codes, _receive_codes)
        )

    async def ImageStream(self, request_iterator: object, context: Context) -> None:
        """Serve one cloud-only session."""
        await self._answer(
            context, self._serve(Rpc.IMAGE_STREAM, context, self._open_images, _receive_images)
        )

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeReply:
        """Tell what is served, and the limits."""
        try:
            self._identities.of(context)
        except AdmissionError as error:
            await self._refuse(context, error)
        config = self._config
        return pb.DescribeReply(
            protocol_versions=[PROTOCOL_VERSION],
            models=[
                describe(model, is_default=model is self._store.default) for model in self._store
            ],
            server_version=metadata.version("neucodex"),
            max_window=config.max_window,
            max_steps_per_packet=config.max_steps_per_packet,
            max_samples_in_flight=config.max_samples_in_flight,
            max_streams=config.max_streams,
        )

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> None:
        """Send a file of a served model."""
        await self._answer(context, self._fetch(request, context))

    async def watch_streams(self) -> None:
        """End streams whose time is over, until cancelled."""
        await Warden(self._config, self._identities, self._handlers, self._metrics).run()

    async def drain(self) -> None:
        """Refuse new streams, let those open finish their samples, cut what takes too long."""
        self._admission.drain()
        for stream in tuple(self._handlers):
            stream.drain()
        await self._wait_for_handlers(self._config.drain_seconds)
        message = f"the server is stopping and has drained for {self._config.drain_seconds} s"
        for stream in tuple(self._handlers):
            stream.break_off(AdmissionError(RejectReason.DRAINING, message))
        await self._wait_for_handlers(ABORT_SECONDS)

    async def unload(self, model: Model, wait_seconds: float) -> int:
        """Take no further streams on a model, let those that are open end, and give it back.

        Args:
            model: to be unloaded.
            wait_seconds: how long streams may stay; then they end between two samples, or are cut
                where that takes longer than a drain.

        Returns:
            How many streams had not ended by themselves.

        Raises:
            ConfigError: it is the default, or being unloaded already.
        """
        self._store.retire(model)
        await model.unused(wait_seconds)
        ended = self._streams_on(model)
        for stream in ended:
            stream.drain()
        await model.unused(self._config.drain_seconds)
        for stream in self._streams_on(model):
            stream.break_off(model.refusal())
        await model.unused()
        await self._store.forget(model)
        return len(ended)

    def _streams_on(self, model: Model) -> list[Stream]:
        return [stream for stream in self._handlers if stream.part.bundle is model.bundle]

    async def _wait_for_handlers(self, seconds: float) -> None:
        if self._handlers:
            await asyncio.wait(self._handlers.values(), timeout=seconds)

    async def _serve(
        self,
        rpc_: Rpc,
        context: Context,
        open_: Callable[[Any, Model, float, Visit], Awaitable[Kind]],
        receive: Callable[[Kind, Any, float], None],
    ) -> None:
        """Serve one stream to its end."""
        async with self._place(rpc_, context) as visit:
            await self._converse(context, visit, open_, receive)

    async def _fetch(self, request: pb.FetchRequest, context: Context) -> None:
        edge = self._identities.of(context)
        with (
            self._admission.stream(Rpc.FETCH),
            self._limits.visit(edge, "fetch") as visit,
            self._store.lent(request.model_digest) as model,
        ):
            logger.info("%s fetches of %s: %.100r", edge.name, model.title, request.file)
            async for chunk in file_chunks(model.bundle, request.file, request.offset):
                await _write_in_time(context, chunk)
                await asyncio.sleep(visit.fetched(len(chunk.data)))

    async def _answer(self, context: Context, serving: Coroutine[Any, Any, None]) -> None:
        """Serve a call; answer an error once all that it held is free."""
        try:
            await serving
            return
        except NeucodexError as error:
            refusal = error
        except Exception:
            logger.exception("a stream failed")
            refusal = NeucodexError("internal error, see the server's log")
        await self._refuse(context, refusal)

    @contextlib.asynccontextmanager
    async def _place(self, rpc_: Rpc, context: Context) -> AsyncIterator[Visit]:
        """Hold the stream's place, if who calls may have one.

        Who is refused is heard out first: the client library calls a stream INTERNAL, whatever its
        status, that ends while its first message is being written.
        """
        with contextlib.ExitStack() as place:
            try:
                edge = self._identities.of(context)
                place.enter_context(self._admission.stream(rpc_))
                visit = place.enter_context(self._limits.visit(edge))
            except AdmissionError:
                with contextlib.suppress(TimeoutError, ProtocolError):
                    async with asyncio.timeout(HEAR_OUT_SECONDS):
                        await _message(context)
                raise
            logger.debug("%s: a stream of %s", context.peer(), edge.name)
            yield visit

    async def _refuse(self, context: Context, error: NeucodexError) -> None:
        status, retry_after_seconds = rpc.status_of(error), None
        if isinstance(error, AdmissionError):
            status, retry_after_seconds = _REFUSALS[error.reason], error.retry_after_seconds
            self._metrics.rejected(error.reason)
        elif isinstance(error, ProtocolError):
            self._metrics.rejected(RejectReason.PROTOCOL)
        self._metrics.error("stream", status.name)
        logger.info("%s: %s: %s", context.peer(), status.name, error)
        trailing = rpc.retry_pushback(retry_after_seconds)
        await context.abort(status, str(error)[:MAX_DETAILS], trailing)

    async def _converse(
        self,
        context: Context,
        visit: Visit,
        open_: Callable[[Any, Model, float, Visit], Awaitable[Kind]],
        receive: Callable[[Kind, Any, float], None],
    ) -> None:
        first = await self._first(context)
        visit.received(first.ByteSize())
        arrived_seconds = time.perf_counter()
        with self._store.lent(first.open.model_digest) as model:
            stream = await open_(first, model, arrived_seconds, visit)
            with self._handled(stream):
                self._admission.check_draining()
                model.check_staying()
                await _run(stream, context, receive)

    @contextlib.contextmanager
    def _handled(self, stream: Stream) -> Iterator[None]:
        """Be known as what handles the stream."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("expected to run in a task")
        self._handlers[stream] = task
        try:
            yield
        finally:
            stream.close()
            del self._handlers[stream]

    async def _first(self, context: Context) -> Any:
        """Return the first message, which must open the stream."""
        limit_seconds = self._config.open_timeout_seconds
        try:
            async with asyncio.timeout(limit_seconds):
                message = await _message(context)
        except TimeoutError:
            raise AdmissionError(
                RejectReason.IDLE, f"expected open within {limit_seconds} s, nothing came"
            ) from None
        if message is grpc.aio.EOF or not message.HasField("open"):
            raise ProtocolError("expected open in the first message, got none")
        version = message.open.protocol_version
        if version != PROTOCOL_VERSION:
            raise AdmissionError(
                RejectReason.VERSION_MISMATCH,
                f"expected protocol version {PROTOCOL_VERSION}, got {version}",
            )
        return message

    async def _open_codes(
        self, first: pb.EdgeMessage, model: Model, arrived_seconds: float, visit: Visit
    ) -> CodeStream:
        message = wire.edge_message_from_proto(first)
        if message.open is None:
            raise ProtocolError("expected open in the first message, got none")
        settings = resolved(message.open.settings, model.tail.timesteps)
        opened = self._opened(model, message.open.samples_in_flight)
        open_ = replace(message.open, settings=settings)
        stream = CodeStream(model.tail, open_, opened, self._config, visit, self._tracing)
        stream.guard(lambda: stream.receive(message, arrived_seconds))
        return stream

    async def _open_images(
        self, first: pb.ImageMessage, model: Model, arrived_seconds: float, visit: Visit
    ) -> image_stream.ImageStream:
        opened = self._opened(model, first.open.samples_in_flight)
        sent = wire.settings_from_proto(first.open.settings)
        # No packets: window, k and codec have no meaning here.
        settings = replace(sent, window=1, steps_per_packet=1, codec=opened.codecs[0])
        part = await model.whole()
        stream = image_stream.ImageStream(
            part, opened, resolved(settings, part.timesteps), self._config, visit, self._tracing
        )
        stream.guard(lambda: _take_in_images(stream, first, arrived_seconds))
        return stream

    def _opened(self, model: Model, samples_in_flight: int) -> Opened:
        config = self._config
        if samples_in_flight < 1:
            raise ProtocolError(
                f"expected 1 to {config.max_samples_in_flight} samples in flight, "
                f"got {samples_in_flight}"
            )
        return Opened(
            max_window=config.max_window,
            max_steps_per_packet=config.max_steps_per_packet,
            samples_in_flight=min(samples_in_flight, config.max_samples_in_flight),
            codecs=model.codecs,
            packet_idle_seconds=config.packet_idle_seconds,
            model=model.title,
        )


async def _run(stream: Kind, context: Context, receive: Callable[[Kind, Any, float], None]) -> None:
    """Read and write until the stream has said all, or raise the error that broke it."""
    reader = asyncio.create_task(_read(stream, context, receive))
    writer = asyncio.create_task(_write(stream, context))
    try:
        ends: set[asyncio.Future[Any]] = {writer, stream.broken}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if stream.broken.done():
            raise stream.broken.result()
        await writer
    finally:
        reader.cancel()
        writer.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)


async def _read(
    stream: Kind, context: Context, receive: Callable[[Kind, Any, float], None]
) -> None:
    """Hand every message to the stream; all that goes wrong reaches ``stream.broken``."""
    try:
        while (message := await _message(context)) is not grpc.aio.EOF:
            arrived_seconds = time.perf_counter()
            size_bytes = message.ByteSize()
            stream.part.metrics.received(size_bytes)
            stream.visit.received(size_bytes)
            receive(stream, message, arrived_seconds)
        stream.half_closed()
    except Exception as error:
        stream.break_off(error)


async def _message(context: Context) -> Any:
    """Return the next message, or EOF; ProtocolError if what came is none."""
    try:
        return await context.read()
    except DecodeError as error:
        raise ProtocolError(f"expected a message of the protocol: {error}") from error


async def _write(stream: Stream, context: Context) -> None:
    """Send whatever is ready, until the stream ends."""
    while (message := await stream.outbox.take()) is not None:
        await _send(stream, context, message)


async def _write_in_time(context: Context, chunk: pb.FetchChunk) -> None:
    """Write a chunk; AdmissionError if the edge does not take it in."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await context.write(chunk)
    except TimeoutError:
        message = f"expected what is fetched to be read within {STALL_SECONDS} s, it was not"
        raise AdmissionError(RejectReason.IDLE, message) from None


async def _send(stream: Stream, context: Context, message: CloudMessage) -> None:
    began = time.perf_counter()
    if began >= stream.clock_due and message.verdicts:
        stream.clock_due = began + CLOCK_SECONDS
        message = replace(message, wall_seconds=time.time())
    encoded = wire.cloud_message_to_proto(message)
    await context.write(encoded)
    metrics = stream.part.metrics
    metrics.replied(time.perf_counter() - began)
    metrics.sent(encoded.ByteSize())


def _receive_codes(stream: CodeStream, message: pb.EdgeMessage, arrived_seconds: float) -> None:
    if message.HasField("open"):
        raise ProtocolError("expected open in the first message only, got another")
    stream.receive(wire.edge_message_from_proto(message), arrived_seconds)


def _receive_images(
    stream: image_stream.ImageStream, message: pb.ImageMessage, arrived_seconds: float
) -> None:
    if message.HasField("open"):
        raise ProtocolError("expected open in the first message only, got another")
    _take_in_images(stream, message, arrived_seconds)


def _take_in_images(
    stream: image_stream.ImageStream, message: pb.ImageMessage, arrived_seconds: float
) -> None:
    value: Input | InputError | None = None
    if message.traces:
        stream.announce(wire.traces_from_proto(message.traces))
    if message.HasField("input"):
        try:
            value = wire.input_from_proto(message.input)
        except InputError as error:
            value = error
    stream.receive(value, tuple(message.cancels), arrived_seconds)


def describe(model: Model, *, is_default: bool) -> pb.Model:
    """Tell what a model is."""
    manifest, scheduler = model.bundle.manifest, model.tail.scheduler
    return pb.Model(
        name=manifest.name,
        version=manifest.version,
        digest=model.digest,
        code_shape=manifest.spec.code_shape,
        input_shape=manifest.spec.input_shape,
        timesteps=manifest.spec.timesteps,
        slots=scheduler.slots_limit,
        slots_in_use=scheduler.slots_in_use,
        whole=model.has_whole,
        is_default=is_default,
    )
