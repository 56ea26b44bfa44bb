"""What continuous batching gains through the whole server, against the bare engine's own gain.

Lock-step streams play recorded packets to a real server with the bundle's tail on one engine
thread. ``gain_8`` is server CPU per timestep at 1 stream over that at 8; the bare engine's is CPU
per timestep at batch 1 over that at batch 8, measured in the same run on the same core.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks import load
from benchmarks.report import SERVER_CORE, Result, figure, pin, run
from shared.engine.base import Engine, zero_state
from shared.engine.onnx_runtime import load_engine
from shared.model.bundle import Bundle

STREAMS = (1, 8, 32)


def bare_cpu_seconds(engine: Engine, batch: int, calls: int) -> float:
    """Return process CPU seconds per timestep of one sample at this batch size."""
    generator = np.random.default_rng(0)
    x = (generator.random((batch, *engine.input_shape)) < 0.2).astype(np.uint8)
    state = zero_state(engine, batch)
    began = time.process_time()
    for _ in range(calls):
        _, state = engine.step(x, state)
    return (time.process_time() - began) / calls / batch


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure server and bare engine in turn."""
    rounds, seconds, calls = (2, 2.0, 100) if quick else (7, 5.0, 400)
    recorded, opening = load.record(bundle), load.open_message(bundle)
    engine = load_engine(bundle, "tail", threads=1)
    server: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    bare: dict[int, list[float]] = {batch: [] for batch in STREAMS}
    arguments = ["cloud_server.cli", "serve", "--listen", "127.0.0.1:0"]
    arguments += ["--metrics", "127.0.0.1:0", "--bundle", str(bundle.path)]
    with load.server_process(arguments) as (pid, address):
        play = partial(load.play, address, opening, recorded)
        cores = os.sched_getaffinity(0)
        for _ in range(rounds):
            for streams in STREAMS:
                measured = asyncio.run(load.drive(play, streams, seconds, pid))
                server[streams].append(measured.server_cpu_seconds / measured.messages)
            pin(SERVER_CORE)
            for batch in STREAMS:
                bare[batch].append(bare_cpu_seconds(engine, batch, max(1, calls // batch)))
            os.sched_setaffinity(0, cores)
    settings = {"rounds": rounds, "seconds": seconds, "engine_calls": calls, "engine_threads": 1}
    return settings, figures(server, bare)


def figures(server: dict[int, list[float]], bare: dict[int, list[float]]) -> list[Result]:
    """Return gains and costs."""
    gains = {n: [a / b for a, b in zip(server[1], server[n], strict=True)] for n in (8, 32)}
    bare_gains = {n: [a / b for a, b in zip(bare[1], bare[n], strict=True)] for n in (8, 32)}
    over = [a / b for a, b in zip(gains[8], bare_gains[8], strict=True)]
    results = [figure("gain_over_bare_engine_gain", over, "ratio", "at least 0.9")]
    for n in (8, 32):
        results.append(figure(f"gain_{n}_streams", gains[n], "ratio"))
        results.append(figure(f"bare_engine_gain_batch_{n}", bare_gains[n], "ratio"))
    for n in STREAMS:
        results.append(figure(f"server_{n}_streams", server[n], "CPU seconds per timestep"))
        results.append(figure(f"bare_engine_batch_{n}", bare[n], "CPU seconds per timestep"))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("batching", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
