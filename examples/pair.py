"""Start and stop the two daemons as separate processes on this machine.

For the demo, tests and benchmarks::

    with pair(bundle) as both:
        with Edge(both.edge.address) as edge:
            print(edge.classify(pixels))
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shared.errors import NeucodexError

START_SECONDS = 120.0
"""Longest time until a daemon says that it is ready."""
STOP_SECONDS = 20.0
"""Time to end after SIGTERM; then a daemon is killed."""
POLL_SECONDS = 0.02
LOG_TAIL_CHARACTERS = 2000


class DaemonError(NeucodexError):
    """A daemon did not start."""


class Ready(msgspec.Struct, frozen=True):
    """What a daemon writes into its ready file."""

    pid: int
    address: str
    """Where it listens: ``host:port`` or ``unix:PATH``."""
    metrics: str
    """Where it is scraped: ``host:port``."""


@dataclass(frozen=True)
class Pair:
    """A running cloud server and the edge daemon connected to it."""

    cloud: Ready
    edge: Ready


@contextlib.contextmanager
def pair(
    bundle: Path,
    *,
    edge_flags: Sequence[str] = (),
    cloud_flags: Sequence[str] = (),
    folder: Path | None = None,
) -> Iterator[Pair]:
    """Run both daemons in co-inference; both are stopped at the end.

    Args:
        bundle: directory of the model bundle.
        edge_flags: further flags of ``neucodex-edge run``.
        cloud_flags: further flags of ``neucodex-cloud serve``.
        folder: for sockets and logs; a temporary one, removed at the end, if none is given.

    Raises:
        DaemonError: one of them did not start.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="neucodex-")
            folder = Path(stack.enter_context(temporary))
        cloud = stack.enter_context(run_cloud(folder, bundle, *cloud_flags))
        edge = stack.enter_context(run_edge(folder, bundle, "--cloud", cloud.address, *edge_flags))
        yield Pair(cloud, edge)


def run_cloud(folder: Path, bundle: Path, *flags: str) -> contextlib.AbstractContextManager[Ready]:
    """Run ``neucodex-cloud serve`` on free ports of the loopback interface; log in ``folder``."""
    local = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--bundle", str(bundle))
    return _running(folder, "cloud", ("cloud_server.cli", "serve", *local, *flags))


def run_edge(folder: Path, bundle: Path, *flags: str) -> contextlib.AbstractContextManager[Ready]:
    """Run ``neucodex-edge run`` on a Unix socket in ``folder``; log there too."""
    listen = f"unix:{folder / 'edge.sock'}"
    local = ("--listen", listen, "--metrics", "127.0.0.1:0", "--bundle", str(bundle))
    return _running(folder, "edge", ("edge_agent.cli", "run", *local, *flags))


@contextlib.contextmanager
def _running(folder: Path, name: str, module: Sequence[str]) -> Iterator[Ready]:
    ready, log = folder / f"{name}.ready", folder / f"{name}.log"
    ready.unlink(missing_ok=True)
    command = (sys.executable, "-m", *module, "--ready-file", str(ready))
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C in a terminal reaches us alone, and we stop the daemons.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _await_ready(process, name, ready, log)
    finally:
        _stop(process)


def _await_ready(process: subprocess.Popen[bytes], name: str, ready: Path, log: Path) -> Ready:
    deadline = time.monotonic() + START_SECONDS
    while not ready.is_file():
        status = process.poll()
        if status is not None:
            raise DaemonError(f"{name}: ended with status {status}: {_tail(log)}")
        if time.monotonic() > deadline:
            raise DaemonError(f"{name}: expected to be ready in {START_SECONDS} s: {_tail(log)}")
        time.sleep(POLL_SECONDS)
    return msgspec.json.decode(ready.read_bytes(), type=Ready)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass  # Killed below, as when a second Ctrl-C ends the wait.
    finally:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip() or "it said nothing"
