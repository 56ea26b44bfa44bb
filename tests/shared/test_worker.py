"""The worker thread: order, errors, cancelled calls, and a call that never ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from benchmarks.report import ROOT
from shared.worker import Worker


async def test_calls_run_in_order_on_one_thread_of_that_name() -> None:
    worker = Worker("works")
    found = await asyncio.gather(
        *(worker.run(lambda n: (n, threading.current_thread().name), n) for n in range(9))
    )
    assert found == [(n, "works") for n in range(9)]


async def test_an_error_is_the_callers() -> None:
    worker = Worker("works")
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    assert await worker.run(lambda: 7) == 7


async def test_a_call_cancelled_before_its_turn_is_not_made() -> None:
    worker, go = Worker("works"), threading.Event()
    made: list[str] = []
    first = worker.run(go.wait)
    cancelled = worker.run(made.append, "cancelled")
    kept = worker.run(made.append, "kept")
    cancelled.cancel()
    go.set()
    await asyncio.gather(first, kept)
    assert made == ["kept"]


async def test_a_stopped_worker_ends_after_its_calls() -> None:
    worker = Worker("stops")
    thread = await worker.run(threading.current_thread)
    last = worker.run(lambda: "last")
    worker.stop()
    assert await last == "last"
    thread.join(10)
    assert not thread.is_alive()


def test_a_call_that_never_ends_does_not_keep_the_process() -> None:
    program = (
        "import asyncio, threading; from shared.worker import Worker\n"
        "async def main():\n"
        "    Worker('hangs').run(threading.Event().wait)\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=30)
