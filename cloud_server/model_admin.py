"""Models loaded, unloaded and made the default while the server runs.

The service listens on a Unix socket that only the server's own user may open. Who loads a model
names a folder on the server and takes its memory: that is its operator's business, who is on the
machine (or in the container) anyway and gets a plain answer there, errors included. So no edge can
reach it, there is no second set of certificates and tokens, and nothing is to be guarded but a
file. What is done here lasts until the server ends; its configuration stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from cloud_server.model_store import Model, ModelStore, UnknownModelError
from cloud_server.servicer import CoInference, describe
from protos import model_admin_pb2 as pb
from protos.model_admin_pb2_grpc import ModelAdminServicer, add_ModelAdminServicer_to_server
from shared import rpc
from shared.engine.onnx_runtime import return_freed_memory
from shared.errors import InputError, NeucodexError
from shared.sockets import UNIX, private_socket

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")
CLOSE_GRACE_SECONDS = 1.0
"""Time for replies to leave."""
MAX_WAIT_SECONDS = 86400.0 * 366


class ModelAdmin(ModelAdminServicer):
    """The service.

    Args:
        store: whose models.
        service: on which streams of theirs are open.
    """

    def __init__(self, store: ModelStore, service: CoInference) -> None:
        self._store = store
        self._service = service
        self._unloading: set[asyncio.Task[int]] = set()

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListReply:
        """Tell the models."""
        return pb.ListReply(models=map(self._told, self._store.everything))

    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.AdminModel:
        """Serve a further bundle."""
        path = Path(request.path)
        if not path.is_absolute():
            await _refuse(context, InputError(f"expected an absolute path, got {request.path!r}"))
        model = await _answered(context, self._store.load(path))
        if request.make_default:
            self._store.make_default(model)
        logger.info("loaded %s, digest %s, from %s", model.title, model.digest.hex(), path)
        return self._told(model)

    async def Unload(self, request: pb.UnloadRequest, context: Context) -> pb.UnloadReply:
        """Unload a model once its streams have ended."""
        seconds = request.wait_seconds
        if not 0 <= seconds <= MAX_WAIT_SECONDS:  # Not a number is neither.
            error = InputError(f"expected to wait 0 to {MAX_WAIT_SECONDS:g} s, got {seconds}")
            await _refuse(context, error)
        task = asyncio.create_task(self._unload(request.model, seconds))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)
        # Goes on if the caller does not wait.
        return pb.UnloadReply(ended_streams=await _answered(context, asyncio.shield(task)))

    async def SetDefault(self, request: pb.SetDefaultRequest, context: Context) -> pb.AdminModel:
        """Make a model the default."""
        model = await _answered(context, self._made_default(request.model))
        logger.info("the default is now %s, digest %s", model.title, model.digest.hex())
        return self._told(model)

    def cancel(self) -> None:
        """Leave what is being unloaded to the server's end."""
        for task in self._unloading:
            task.cancel()

    async def _unload(self, name: str, wait_seconds: float) -> int:
        # Not held in here: whatever holds it holds its memory.
        title = self._store.find(name).title
        ended = await self._service.unload(self._store.find(name), wait_seconds)
        await asyncio.to_thread(return_freed_memory)
        logger.info("unloaded %s", title)
        return ended

    async def _made_default(self, name: str) -> Model:
        model = self._store.find(name)
        self._store.make_default(model)
        return model

    def _told(self, model: Model) -> pb.AdminModel:
        return pb.AdminModel(
            model=describe(model, is_default=model is self._store.default),
            label=model.label,
            path=str(model.bundle.path),
            streams=model.streams,
            unloading=model.leaving,
        )


async def _answered(context: Context, outcome: Awaitable[T]) -> T:
    """Return what comes of it, or end the call with what went wrong."""
    try:
        return await outcome
    except NeucodexError as error:
        await _refuse(context, error)
        raise  # Not reached: the call has ended.


async def _refuse(context: Context, error: NeucodexError) -> None:
    logger.warning("refused: %s", error)
    unknown = isinstance(error, UnknownModelError)
    await context.abort(grpc.StatusCode.NOT_FOUND if unknown else rpc.status_of(error), str(error))


class AdminServer:
    """The service on its socket.

    Args:
        admin: the service.
        address: ``unix:PATH``, made with mode 0600.

    Raises:
        ConfigError: the address cannot be bound, or somebody else answers there.
    """

    def __init__(self, admin: ModelAdmin, address: str) -> None:
        self._admin = admin
        self._server = rpc.server()
        add_ModelAdminServicer_to_server(admin, self._server)  # type: ignore[no-untyped-call]
        self._path = Path(address.removeprefix(UNIX))
        with private_socket(self._path, "admin"):
            rpc.bind(self._server, address)

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def close(self) -> None:
        """Take no more calls, let replies leave, and remove the socket."""
        await self._server.stop(CLOSE_GRACE_SECONDS)
        self._admin.cancel()
        self._path.unlink(missing_ok=True)
