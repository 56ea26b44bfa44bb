"""``EdgeService``: how applications on the device reach the daemon."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from edge_agent.answers import Answer, ClosingError, QueueFullError
from edge_agent.inputs import Recording
from edge_agent.switch import Switch
from protos import edge_service_pb2 as pb
from protos.edge_service_pb2_grpc import EdgeServiceServicer, add_EdgeServiceServicer_to_server
from shared import rpc, wire
from shared.errors import InputError, NeucodexError
from shared.events.framing import ByTime
from shared.metrics import EdgeMetrics, Placement, RpcMetrics
from shared.model.bundle import Manifest
from shared.model.spec import NetworkSpec
from shared.sockets import UNIX, private_socket

STREAM_AHEAD = 4
"""Inputs of one ClassifyStream under way at once; more are left in gRPC's flow control."""
CLOSE_GRACE_SECONDS = 1.0
"""Time for answers to leave before calls are cut."""
_PLACEMENTS: dict[str, pb.Placement] = {
    Placement.CO_INFERENCE: pb.CO_INFERENCE,
    Placement.EDGE_ONLY: pb.EDGE_ONLY,
    Placement.CLOUD_ONLY: pb.CLOUD_ONLY,
    Placement.FALLBACK: pb.FALLBACK,
}
Entry = asyncio.Future[Answer] | NeucodexError
"""What becomes of an input of a stream."""
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class About:
    """What Status tells that does not change."""

    version: str
    cloud: str
    """Address; empty where there is none."""


class LocalApi(EdgeServiceServicer):
    """Serves callers in the order of their arrival.

    Args:
        loops: what classifies.
        about: the daemon.
        metrics: told of errors.
    """

    def __init__(self, loops: Switch, about: About, metrics: EdgeMetrics) -> None:
        self._loops = loops
        self._about = about
        self._metrics = metrics

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyReply:
        """Classify one input; a caller that goes away ends its sample."""
        try:
            return _reply(await (await self._put_whole(request)))
        except NeucodexError as error:
            status = status_of(error)
            self._metrics.error("local_api", status.name)
            await context.abort(status, str(error))

    async def ClassifyStream(
        self, request_iterator: AsyncIterator[pb.ClassifyPart], context: Context
    ) -> AsyncIterator[pb.ClassifyReply]:
        """Classify inputs as they come, answered in their order."""
        pending: asyncio.Queue[Entry | None] = asyncio.Queue(STREAM_AHEAD)
        accepted: set[asyncio.Future[Answer]] = set()
        reader = asyncio.create_task(self._accept_parts(request_iterator, pending, accepted))
        try:
            while (entry := await pending.get()) is not None:
                yield await self._stream_reply(entry)
        finally:
            reader.cancel()
            for future in accepted:
                future.cancel()

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        """Tell what the daemon is and how it does."""
        about, loops, loop = self._about, self._loops, self._loops.loop
        manifest = loop.bundle.manifest
        return pb.StatusReply(
            version=about.version,
            model=f"{manifest.name} {manifest.version}",
            model_digest=bytes.fromhex(loop.bundle.digest),
            cloud=about.cloud,
            connected=bool(about.cloud) and loop.connected,
            placement=loop.placement.value,
            answered=loops.answered,
            queue_depth=loops.queue_depth,
            network=_network(manifest),
        )

    async def _put_whole(self, request: pb.ClassifyRequest) -> asyncio.Future[Answer]:
        data = wire.input_from_proto(request.input)
        seconds = request.deadline_seconds
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InputError(f"expected a deadline of 0 s or more, got {seconds}")
        return await self._loops.put(data, deadline_seconds=seconds or None)

    async def _accept_parts(
        self,
        parts: AsyncIterator[pb.ClassifyPart],
        pending: asyncio.Queue[Entry | None],
        accepted: set[asyncio.Future[Answer]],
    ) -> None:
        """Submit inputs as their parts come in, and tell the replier of each, in order."""
        recorder = _Recorder(lambda: self._loops.loop.spec)
        async for part in parts:
            entry = await self._accept(part, recorder)
            if isinstance(entry, asyncio.Future):
                accepted.add(entry)
                entry.add_done_callback(accepted.discard)
            if entry is not None:
                await pending.put(entry)
        recorder.end()
        await pending.put(None)

    async def _accept(self, part: pb.ClassifyPart, recorder: _Recorder) -> Entry | None:
        """Submit the input that a part begins; nothing where it begins none."""
        try:
            match part.WhichOneof("kind"):
                case "whole":
                    recorder.end()
                    return await self._put_whole(part.whole)
                case "timestep":
                    recording = recorder.take(part.timestep)
                    return None if recording is None else await self._loops.put(recording)
                case _:
                    raise InputError("expected a whole input or a timestep, got nothing")
        except NeucodexError as error:
            return error

    async def _stream_reply(self, entry: Entry) -> pb.ClassifyReply:
        try:
            if isinstance(entry, NeucodexError):
                raise entry
            return _reply(await entry)
        except NeucodexError as error:
            status = status_of(error).name
            self._metrics.error("local_api", status)
            return pb.ClassifyReply(error=f"{status}: {error}")


class _Recorder:
    """Sorts the timesteps of a stream into recordings.

    Args:
        spec: tells that of the network in use.
    """

    def __init__(self, spec: Callable[[], NetworkSpec]) -> None:
        self._spec = spec
        self._recording: Recording | None = None
        self._received = 0

    def take(self, timestep: pb.Timestep) -> Recording | None:
        """Add a timestep to its recording, which is returned if it begins with it.

        After ``last``, or after T of them, the next timestep begins another recording. An unusable
        one ends its recording with that error.
        """
        begun = self._recording is None
        recording = self._recording = self._recording or Recording(self._spec())
        self._received += 1
        try:
            recording.push(wire.array_from_proto(timestep.frame))
        except InputError as error:
            recording.fail(error)
        if timestep.last or self._received == recording.timesteps:
            self.end()
        return recording if begun else None

    def end(self) -> None:
        """End the recording under way, if there is one."""
        if self._recording is not None:
            self._recording.end()
        self._recording, self._received = None, 0


def _reply(answer: Answer) -> pb.ClassifyReply:
    return pb.ClassifyReply(
        label=answer.label,
        name=answer.name,
        confidence=answer.confidence,
        timesteps_used=answer.timesteps_used,
        placement=_PLACEMENTS[answer.placement],
        latency=pb.Latency(**asdict(answer.latency)),
        payload_bytes=answer.payload_bytes,
    )


def _network(manifest: Manifest) -> pb.Network:
    spec, framing = manifest.spec, manifest.preprocessing.framing
    network = pb.Network(
        input_shape=spec.input_shape,
        events=spec.input_kind == "events",
        timesteps=spec.timesteps,
        labels=manifest.labels,
    )
    if framing is not None:
        network.framed_by = "time" if isinstance(framing, ByTime) else "count"
        network.window = framing.window or 0
    return network


def status_of(error: NeucodexError) -> grpc.StatusCode:
    """Return the gRPC status that tells a caller of this error."""
    if isinstance(error, QueueFullError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if isinstance(error, ClosingError):
        return grpc.StatusCode.UNAVAILABLE
    return rpc.status_of(error)


class LocalServer:
    """The service on its socket.

    Args:
        api: the service.
        metrics: told of its calls.
        address: ``unix:PATH``, made with mode 0600, or ``host:port`` (0 picks a port).

    Raises:
        ConfigError: the address cannot be bound, or somebody else answers there.
    """

    def __init__(self, api: LocalApi, metrics: RpcMetrics, address: str) -> None:
        self._server = rpc.server(metrics)
        add_EdgeServiceServicer_to_server(api, self._server)  # type: ignore[no-untyped-call]
        self._path = Path(address.removeprefix(UNIX)) if address.startswith(UNIX) else None
        if self._path is None:
            host = address.rpartition(":")[0]
            self.address = f"{host}:{rpc.bind(self._server, address)}"
        else:
            with private_socket(self._path, "listen"):
                rpc.bind(self._server, address)
            self.address = address

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def close(self) -> None:
        """Take no more calls, let replies leave, and remove the socket."""
        await self._server.stop(CLOSE_GRACE_SECONDS)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
