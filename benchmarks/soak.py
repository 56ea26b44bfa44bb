"""Run the pair under steady load and watch both daemons' memory and open descriptors.

Callers ask without pause; resident memory and descriptors of both processes are read from /proc.
What matters is the slope of the memory after a warm-up, by least squares, and that descriptors do
not become more. Some callers connect anew for every sample, so that what a connection leaves behind
would add up.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.report import Result, figure, run
from edge_agent import Edge
from examples.pair import Pair, pair
from shared.errors import NeucodexError
from shared.model.bundle import Bundle

SECONDS, QUICK_SECONDS = 1800.0, 30.0
WARM_UP_SHARE = 0.2
"""Of the time; what is read in it does not count."""
SLOPE_LIMIT_BYTES = 1_000_000
"""Per ten minutes."""
CALLERS = 4


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One process at one moment."""

    seconds: float
    """Since the start."""
    resident_bytes: int
    descriptors: int


class Watch:
    """Reads a process.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = time.monotonic()
        self.readings: list[Reading] = []

    def read(self) -> None:
        """Take a reading."""
        self.readings.append(
            Reading(
                seconds=time.monotonic() - self._began,
                resident_bytes=resident_bytes(self._pid),
                descriptors=len(list(Path("/proc", str(self._pid), "fd").iterdir())),
            )
        )

    def results(self, name: str) -> list[Result]:
        """Return the figures of what was read after the warm-up."""
        late = self.readings[int(WARM_UP_SHARE * len(self.readings)) :]
        return [
            figure(
                f"{name}_resident_slope",
                [slope([(each.seconds, each.resident_bytes) for each in late]) * 600],
                "bytes per 10 minutes",
                f"less than {SLOPE_LIMIT_BYTES}",
            ),
            figure(f"{name}_resident", [late[-1].resident_bytes], "bytes"),
            figure(
                f"{name}_descriptors_gained",
                [growth([each.descriptors for each in late])],
                "descriptors",
                "0",
            ),
        ]


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process (Linux)."""
    status = Path("/proc", str(pid), "status")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    if found is None:
        raise NeucodexError(f"expected VmRSS in {status}")
    return 1024 * int(found[1])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through points ``(x, y)``, by least squares."""
    x, y = np.array(points, float).T
    return float(np.polyfit(x - x.mean(), y, 1)[0])


def growth(values: Sequence[int]) -> float:
    """Return by how much the least of the second half exceeds the least of the first.

    Descriptors come and go with callers; those that stay raise the least that there are.
    """
    middle = len(values) // 2
    return float(min(values[middle:]) - min(values[:middle]))


class Load:
    """Callers that ask without pause.

    Args:
        address: of the edge daemon.
        bundle: its model.
    """

    def __init__(self, address: str, bundle: Bundle) -> None:
        self.answered = 0
        self.errors = 0
        self._address = address
        self._pictures = np.random.default_rng(0).integers(
            0, 256, (16, *bundle.spec.input_shape), dtype=np.uint8
        )
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(number,)) for number in range(CALLERS)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, number: int) -> None:
        per_connection = 1 if number == 0 else len(self._pictures)
        while not self._stop.is_set():
            with Edge(self._address) as edge:
                for picture in self._pictures[:per_connection]:
                    self._ask(edge, picture)

    def _ask(self, edge: Edge, picture: Any) -> None:
        try:
            edge.classify(picture)
        except NeucodexError as error:
            sys.stderr.write(f"{error}\n")
            with self._lock:
                self.errors += 1
        else:
            with self._lock:
                self.answered += 1


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Run it; the report's format is that of every benchmark."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with pair(bundle.path) as both:
        watches, load = _soak(both, bundle, seconds)
    results = [
        figure("answered", [load.answered], "samples"),
        figure("errors", [load.errors], "samples", "0"),
        *watches["edge"].results("edge"),
        *watches["cloud"].results("cloud"),
    ]
    return {"seconds": seconds, "callers": CALLERS}, results


def _soak(both: Pair, bundle: Bundle, seconds: float) -> tuple[dict[str, Watch], Load]:
    watches = {"edge": Watch(both.edge.pid), "cloud": Watch(both.cloud.pid)}
    load, deadline = Load(both.edge.address, bundle), time.monotonic() + seconds
    load.start()
    try:
        while time.monotonic() < deadline:
            time.sleep(seconds / 300)
            for watch in watches.values():
                watch.read()
    finally:
        load.stop()
    return watches, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("soak", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
