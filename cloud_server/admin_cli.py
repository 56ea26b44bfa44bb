"""``neucodex-cloud models list|load|unload|default``: the models of a server on this machine."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cloud_server import config as configuration
from cloud_server.blocks import Block, print_blocks, served_block
from protos import model_admin_pb2 as pb
from protos.model_admin_pb2_grpc import ModelAdminStub
from shared import rpc
from shared.errors import ConfigError, LinkLostError, RefusedError

MODEL = "its label, or the first digits of its digest"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``models``."""
    commands = parser.add_subparsers(metavar="COMMAND")
    _add(commands, "list", _list, "list them, those that are being unloaded too")
    load = _add(commands, "load", _load, "serve a further bundle")
    load.add_argument("path", type=Path, metavar="DIR", help="the bundle, on this machine")
    load.add_argument("--default", action="store_true", help="and make it the default")
    unload = _add(commands, "unload", _unload, "open no further streams on a model, then free it")
    unload.add_argument("model", metavar="MODEL", help=MODEL)
    unload.add_argument(
        "--wait-seconds",
        type=float,
        default=60.0,
        help="streams on it end between two samples if they last longer (default: 60)",
    )
    default = _add(commands, "default", _default, "let a model run the streams that name none")
    default.add_argument("model", metavar="MODEL", help=MODEL)


def _add(
    commands: Any, name: str, ask: Callable[[Any, argparse.Namespace], Awaitable[None]], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--admin", metavar="ADDRESS", help="the server's admin socket: unix:PATH")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the server's TOML file, which names it"
    )
    parser.set_defaults(command=lambda arguments: asyncio.run(_run(ask, arguments)))
    return parser


async def _run(
    ask: Callable[[Any, argparse.Namespace], Awaitable[None]], arguments: argparse.Namespace
) -> None:
    config = configuration.load(arguments.config, {"admin": arguments.admin})
    if not config.admin:
        raise ConfigError("admin: expected the server's admin socket (--admin unix:PATH), got none")
    async with rpc.channel(config.admin) as channel:
        try:
            await ask(ModelAdminStub(channel), arguments)  # type: ignore[no-untyped-call]
        except grpc.aio.AioRpcError as error:
            if error.code() in rpc.LOST_CODES:
                raise LinkLostError(
                    f"{config.admin}: expected the admin socket of a NeuCODEX cloud server: "
                    f"{error.code().name}: {error.details()}"
                ) from error
            raise RefusedError(error.details() or error.code().name) from error


async def _list(stub: Any, arguments: argparse.Namespace) -> None:
    reply = await stub.List(pb.ListRequest())
    print_blocks(map(_block, reply.models))


async def _load(stub: Any, arguments: argparse.Namespace) -> None:
    path = str(arguments.path.resolve())
    model = await stub.Load(pb.LoadRequest(path=path, make_default=arguments.default))
    print_blocks([_block(model)])


async def _unload(stub: Any, arguments: argparse.Namespace) -> None:
    request = pb.UnloadRequest(model=arguments.model, wait_seconds=arguments.wait_seconds)
    reply = await stub.Unload(request)
    print(f"unloaded; {reply.ended_streams} streams had not ended by themselves")


async def _default(stub: Any, arguments: argparse.Namespace) -> None:
    print_blocks([_block(await stub.SetDefault(pb.SetDefaultRequest(model=arguments.model)))])


def _block(model: pb.AdminModel) -> Block:
    state = [("state", "being unloaded")] if model.unloading else []
    return [
        *served_block(model.model),
        ("label", model.label),
        ("path", model.path),
        ("streams", str(model.streams)),
        *state,
    ]
