"""Measured energy: what a power sensor is, and the thread that turns its readings into joules.

A sensor gives readings of one or several components, each with its time: power in watts, which is
integrated by the trapezoid rule, or a count of joules that only rises, of which differences are
taken. Readings too far apart are a gap: no energy is made up for it, its length is counted. Times
between readings are drawn at random, because a load that recurs as regularly as it is sampled would
be met at the same point each time.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Event, Lock, Thread
from time import monotonic
from typing import NamedTuple, Protocol

from shared.errors import SensorError, SensorReason

JITTER = 0.5
"""Share of the interval by which the time between two readings is longer or shorter, at most."""


class Source(StrEnum):
    """What measured energy is read from."""

    INA3221 = "ina3221"
    """Rail monitors of a Jetson."""
    INA238 = "ina238"
    """Input monitor of a Jetson Thor."""
    RPI_PMIC = "rpi_pmic"
    """Power management chip of a Raspberry Pi 5."""
    RAPL = "rapl"
    """Counters of an x86 processor."""
    NVML = "nvml"
    """NVIDIA's driver."""
    EXTERNAL_METER = "external_meter"
    """A meter of the user's, outside the board."""


class Component(StrEnum):
    """What draws the power. ``total`` is what the sensor calls the whole and contains the others.

    What the whole is differs from sensor to sensor; ``docs/energy.md`` says it for each.
    """

    TOTAL = "total"
    CPU = "cpu"
    GPU = "gpu"
    CPU_GPU = "cpu_gpu"
    CPU_CV = "cpu_cv"
    GPU_SOC = "gpu_soc"
    SOC = "soc"
    CV = "cv"
    DRAM = "dram"
    SYSTEM = "system"


class Reading(NamedTuple):
    """One component at one moment; at least one of watts and joules is there."""

    component: Component
    time_seconds: float
    """On the sensor's own clock: this machine's monotonic clock, if it has none."""
    watts: float | None = None
    joules: float | None = None
    """Since some fixed point; taken, and not the watts, where both are there."""


class Sensor(Protocol):
    """Something that tells power or energy.

    Attributes:
        source: its kind.
        interval_seconds: how often it is worth reading, on average.
        max_gap_seconds: longest time between two readings for which energy can still be told.
    """

    @property
    def source(self) -> Source: ...  # noqa: D102
    @property
    def interval_seconds(self) -> float: ...  # noqa: D102
    @property
    def max_gap_seconds(self) -> float: ...  # noqa: D102

    def read(self) -> Sequence[Reading]:
        """Return what is new, oldest first; nothing if the sensor has nothing new.

        Raises:
            SensorError: it cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Finding(NamedTuple):
    """What a search for one kind of sensor came to."""

    source: Source
    found: str
    """What is there, or why it cannot be used and what would help."""
    sensor: Sensor | None = None
    """Absent where it cannot be used."""


@dataclass
class Total:
    """What one component has drawn since its first reading."""

    joules: float = 0.0
    sampled_seconds: float = 0.0
    """Time for which energy is counted."""
    unsampled_seconds: float = 0.0
    """Time within gaps."""
    watts: float | None = None
    """Latest power; None where readings have stopped or have been too few to tell."""

    def since(self, earlier: Total | None) -> Total:
        """Return what came after an earlier total of the same component."""
        if earlier is None:
            return self
        return Total(
            self.joules - earlier.joules,
            self.sampled_seconds - earlier.sampled_seconds,
            self.unsampled_seconds - earlier.unsampled_seconds,
            self.watts,
        )

    @property
    def mean_watts(self) -> float | None:
        """Mean over the sampled time; None without any."""
        return self.joules / self.sampled_seconds if self.sampled_seconds > 0 else None


@dataclass
class _Integral:
    """Readings of one component, added up.

    Attributes:
        max_gap_seconds: longest time between two readings that counts.
    """

    max_gap_seconds: float
    total: Total = field(default_factory=Total)
    last: Reading | None = None

    def take(self, reading: Reading) -> None:
        """Add a reading."""
        before, self.last = self.last, reading
        if before is None:
            self.total.watts = reading.watts
            return
        seconds = reading.time_seconds - before.time_seconds
        joules = _between(before, reading, seconds)
        if seconds <= 0 or seconds > self.max_gap_seconds or joules is None:
            self.total.unsampled_seconds += max(0.0, seconds)
            self.total.watts = reading.watts
            return
        self.total.joules += joules
        self.total.sampled_seconds += seconds
        self.total.watts = joules / seconds if reading.watts is None else reading.watts


def _between(before: Reading, after: Reading, seconds: float) -> float | None:
    """Return the joules between two readings; None where they do not tell."""
    if before.joules is not None and after.joules is not None:
        joules = after.joules - before.joules
        return joules if joules >= 0 else None  # A counter that began anew.
    if before.watts is not None and after.watts is not None:
        return (before.watts + after.watts) / 2 * seconds
    return None


class Sampler:
    """Reads one sensor again and again, on a thread of its own.

    Args:
        sensor: closed with the sampler.
        clock: monotonic, in seconds.
        jitter: gives numbers of [0, 1).
    """

    def __init__(
        self,
        sensor: Sensor,
        *,
        clock: Callable[[], float] = monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.source = sensor.source
        self._sensor = sensor
        self._clock = clock
        self._jitter = jitter
        self._integrals: dict[Component, _Integral] = {}
        self._errors: Counter[SensorReason] = Counter()
        self._logged: set[SensorReason] = set()
        self._log = logging.getLogger(f"{__name__}.{self.source}")
        self._last_seconds = clock()
        self._lock = Lock()
        self._reading = Lock()
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"energy-{self.source}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading; harmless when called again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sensor.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(self.wait_seconds())

    def wait_seconds(self) -> float:
        """Draw the time to the next reading."""
        return self._sensor.interval_seconds * (1 + JITTER * (2 * self._jitter() - 1))

    def poll(self) -> None:
        """Read once; also for a caller who wants to be up to date now."""
        with self._reading:
            try:
                readings = self._sensor.read()
            except SensorError as error:
                self._failed(error)
                return
            self._take(readings)

    def _take(self, readings: Sequence[Reading]) -> None:
        with self._lock:
            for reading in readings:
                if reading.component not in self._integrals:
                    integral = _Integral(self._sensor.max_gap_seconds)
                    self._integrals[reading.component] = integral
                self._integrals[reading.component].take(reading)
            if readings:
                self._last_seconds = self._clock()

    def _failed(self, error: SensorError) -> None:
        with self._lock:
            self._errors[error.reason] += 1
        if error.reason not in self._logged:  # Once: it would come some ten times a second.
            self._logged.add(error.reason)
            self._log.warning("%s", error)

    def totals(self) -> dict[Component, Total]:
        """Return what each component has drawn; those without a reading are absent."""
        with self._lock:
            silent_seconds = self._clock() - self._last_seconds
            is_stale = silent_seconds > self._sensor.max_gap_seconds
            totals = {}
            for component, integral in self._integrals.items():
                total = integral.total
                totals[component] = Total(
                    total.joules,
                    total.sampled_seconds,
                    total.unsampled_seconds,
                    None if is_stale else total.watts,
                )
            return totals

    def errors(self) -> Mapping[SensorReason, int]:
        """Return how many readings have failed, by reason."""
        with self._lock:
            return dict(self._errors)


class Meter:
    """All sensors of this machine.

    Args:
        sensors: closed with the meter.
    """

    def __init__(self, sensors: Iterable[Sensor]) -> None:
        self.samplers = tuple(Sampler(sensor) for sensor in sensors)

    def start(self) -> None:
        """Begin to read."""
        for sampler in self.samplers:
            sampler.start()

    def close(self) -> None:
        """Stop reading; harmless when called again."""
        for sampler in self.samplers:
            sampler.close()
