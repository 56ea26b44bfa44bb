"""Servers to measure against.

``echo`` is plain grpc.aio, ``null`` ours with an empty tail, ``silent`` ours without metrics:
``python -m benchmarks.servers echo|null|silent --ready-file FILE [--bundle DIR]``.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np

from benchmarks.load import ECHO
from benchmarks.silent import SilentCloudMetrics
from cloud_server import cli, model_store
from cloud_server import server as cloud
from cloud_server.config import CloudConfig
from shared import rpc
from shared.engine.base import Array, Engine, Shape, State
from shared.metrics import Part
from shared.model.bundle import Bundle

REPLY_BYTES = 17
"""As long as a message with one verdict."""


class NullEngine:
    """A tail without work and without state."""

    def __init__(self, input_shape: Shape, output_shape: Shape) -> None:
        self.input_shape = input_shape
        self.output_shape = output_shape
        self.state_shapes: tuple[Shape, ...] = ()

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Return zero logits."""
        return np.zeros((len(x), *self.output_shape), np.float32), state


def load_null(bundle: Bundle, part: Part, config: CloudConfig) -> Engine:
    """Return an empty tail of the bundle's shapes."""
    spec = bundle.part(part.value)
    return NullEngine(spec.input.shape, spec.output.shape)


async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """Answer every message with a short one."""
    reply = bytes(REPLY_BYTES)
    async for _ in requests:
        yield reply


async def serve_echo(ready: Path) -> None:
    """Serve the echo until the process is ended."""
    server = rpc.server()
    _, service, method = ECHO.split("/")
    handler: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    ready.with_suffix(".new").write_bytes(msgspec.json.encode({"address": f"127.0.0.1:{port}"}))
    ready.with_suffix(".new").rename(ready)
    await server.wait_for_termination()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description=__doc__)
    parser.add_argument("kind", choices=("echo", "null", "silent"))
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args(argv)
    if arguments.kind == "echo":
        asyncio.run(serve_echo(arguments.ready_file))
        return 0
    if arguments.kind == "null":
        model_store.load_engine = load_null
    else:
        cloud.CloudMetrics = SilentCloudMetrics  # type: ignore[attr-defined]
    flags = ["--bundle", str(arguments.bundle), "--ready-file", str(arguments.ready_file)]
    flags += ["--log-level", arguments.log_level]
    return cli.main(["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *flags])


if __name__ == "__main__":
    sys.exit(main())
