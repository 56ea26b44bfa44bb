"""Load: many streams in lock-step, and the CPU time of the server process that answers them.

Shared by the benchmarks of the cloud side. Packets are recorded once from the bundle's own head on
synthetic pictures; every stream plays them, all T timesteps of each sample (alpha 1: no exits), one
timestep in flight.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import LOAD_CORE, ROOT, SERVER_CORE, pin
from examples.pictures import load_pictures
from protos import co_inference_pb2 as pb
from protos.co_inference_pb2_grpc import CoInferenceStub
from shared import rpc, wire
from shared.codec.codecs import get_codec
from shared.codec.packet import Checksum, EncodedPacket, SampleEncoder
from shared.engine.base import Array, zero_state
from shared.engine.onnx_runtime import load_engine
from shared.messages import EdgeMessage, Open, Settings
from shared.model.bundle import Bundle
from shared.model.preprocessing import prepare

Sample = list[EncodedPacket]
ECHO = "/benchmark.Echo/Echo"


class Measured(NamedTuple):
    """What a load run cost and moved."""

    messages: int
    seconds: float
    server_cpu_seconds: float


def smooth_pictures(
    shape: tuple[int, int, int], count: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return normalised pictures ``[count, C, H, W]`` of low-frequency noise."""
    generator = np.random.default_rng(0)
    channels, height, width = shape
    coarse = generator.standard_normal((count, channels, 4, 4), np.float32)
    return coarse.repeat(-(-height // 4), 2).repeat(-(-width // 4), 3)[:, :, :height, :width]


def head_codes(bundle: Bundle, inputs: Iterable[Array]) -> Iterator[NDArray[np.uint8]]:
    """Yield what the head makes of each input: uint8, ``[T, C', H', W']``.

    Args:
        bundle: the model.
        inputs: as the network reads them, float32 ``[C, H, W]`` or ``[T, C, H, W]``.
    """
    engine, timesteps = load_engine(bundle, "head"), bundle.spec.timesteps
    for frames in inputs:
        state, codes = zero_state(engine, 1), []
        for timestep in range(timesteps):
            frame = frames if frames.ndim == 3 else frames[timestep]
            code, state = engine.step(np.ascontiguousarray(frame[None]), state)
            codes.append(code)
        yield np.concatenate(codes)


def picture_codes(bundle: Bundle, count: int = 256) -> list[NDArray[np.uint8]]:
    """Return what the head makes of the demo's pictures, for bundles that read such."""
    preprocessing = bundle.manifest.preprocessing
    pixels = load_pictures(count).pixels
    return list(head_codes(bundle, (prepare(each, bundle.spec, preprocessing) for each in pixels)))


def record(bundle: Bundle, count: int = 32) -> list[Sample]:
    """Return the packets of ``count`` samples, T of one timestep each, as a raw stream's."""
    spec, codec = bundle.spec, get_codec("raw")
    recorded = []
    for codes in head_codes(bundle, smooth_pictures(spec.input_shape, count)):
        encoder = SampleEncoder(codec, spec.code_shape, spec.timesteps, Checksum.CRC16)
        recorded.append([packet for code in codes for packet in encoder.encode(code[None])])
    return recorded


def open_message(bundle: Bundle) -> pb.EdgeMessage:
    """Return the first message of a lock-step stream that never exits early."""
    settings = Settings(alpha=(1.0,), window=1, codec="raw")
    opening = Open(model_digest=bytes.fromhex(bundle.digest), settings=settings)
    return wire.edge_message_to_proto(EdgeMessage(open=opening))


async def play(
    address: str,
    opening: pb.EdgeMessage,
    recorded: list[Sample],
    stop: asyncio.Event,
    answered: list[int],
) -> None:
    """Run one stream until ``stop``, counting verdicts in ``answered[0]``."""
    async with rpc.channel(address) as channel:
        call = CoInferenceStub(channel).Infer()  # type: ignore[no-untyped-call]
        await call.write(opening)
        await call.read()
        number = 0
        while not stop.is_set():
            for packet in recorded[number % len(recorded)]:
                await call.write(pb.EdgeMessage(packets=[packet.to_bytes(number)]))
                reply = await call.read()
                if reply is grpc.aio.EOF or not reply.verdicts:
                    raise RuntimeError(f"expected a verdict, got {reply}")
                answered[0] += 1
            number += 1
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            continue


async def echo(address: str, request: bytes, stop: asyncio.Event, answered: list[int]) -> None:
    """Run one ping-pong stream against the echo server until ``stop``."""
    async with rpc.channel(address) as channel:
        call: Any = channel.stream_stream(ECHO)()
        while not stop.is_set():
            await call.write(request)
            await call.read()
            answered[0] += 1
        await call.done_writing()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def drive(
    stream: Callable[[asyncio.Event, list[int]], Awaitable[None]],
    streams: int,
    seconds: float,
    pid: int,
) -> Measured:
    """Run ``streams`` streams; measure ``seconds`` after each of them has been answered once."""
    stop, answered = asyncio.Event(), [[0] for _ in range(streams)]
    tasks = [asyncio.ensure_future(stream(stop, count)) for count in answered]
    while not all(count[0] for count in answered):
        done, _ = await asyncio.wait(tasks, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    before, cpu_before, began = sum(c[0] for c in answered), cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    measured = Measured(
        sum(count[0] for count in answered) - before,
        time.perf_counter() - began,
        cpu_seconds(pid) - cpu_before,
    )
    stop.set()
    await asyncio.gather(*tasks)
    return measured


@contextmanager
def server_process(arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Run ``python -m ARGUMENTS --ready-file FILE`` on the server's core; yield pid and address."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        pin(SERVER_CORE)  # a child inherits its parent's cores
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments, "--ready-file", str(ready)], cwd=ROOT
        )
        pin(LOAD_CORE)
        try:
            yield process.pid, wait_ready(process, ready)
        finally:
            process.terminate()
            process.wait()


def wait_ready(process: subprocess.Popen[bytes], ready: Path) -> str:
    """Return the address in the ready file once it is there."""
    deadline = time.monotonic() + 60
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"expected a server, its process ended with {process.returncode}")
        time.sleep(0.02)
    address: str = msgspec.json.decode(ready.read_bytes())["address"]
    return address
