"""What device, link, cloud and samples are like now: smoothed measurements for the policy.

Pure: the times of events are handed in. All are of this device's monotonic clock, in seconds; of
the cloud's clock only durations are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.policy import Conditions

MEMORY_SECONDS = 0.5
"""A measurement's weight falls to 1/e in this time, however many follow: a changed link is known
within a second or two, and a single late packet does not count for much."""
MOST_WEIGHT = 0.5
"""Of the newest measurement, when the one before is old."""
PRIOR_SAMPLES = 30
"""The bundle's exit distribution counts as so many samples seen before the first."""
EXIT_MEMORY_SAMPLES = 300
"""A sample's weight in the exit distribution falls to 1/e while so many follow."""


class Smoothed:
    """The mean of what was measured lately.

    Attributes:
        value: None before the first measurement.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self._count = 0
        self._at = -math.inf

    def add(self, value: float, now: float) -> None:
        """Take in a measurement of this moment."""
        self._count += 1
        if self.value is None:
            self.value = value
        else:
            recent = min(MOST_WEIGHT, 1 - math.exp((self._at - now) / MEMORY_SECONDS))
            # The first few count alike, or the very first, often a slow one, would stay for long.
            self.value += max(recent, 1 / self._count) * (value - self.value)
        self._at = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What of the conditions comes with the bundle and the configuration."""

    exits: tuple[float, ...]
    """Calibrated share of samples that exit at t = 0..T-1."""
    check_bytes: int
    head_joules: float
    """Modelled, per timestep."""
    tail_joules: float


class Observer:
    """Collects measurements.

    Args:
        model: what needs no measuring.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._exits = [PRIOR_SAMPLES * share for share in model.exits]
        self._payload_bytes = Smoothed()
        self._code = Smoothed()
        self._head = Smoothed()
        self._service = Smoothed()
        self._transport = Smoothed()
        self._tail = Smoothed()
        self.link_bytes_per_second: float | None = None
        """Rate of the way up, where the system could tell it."""

    def head(self, seconds: float, now: float) -> None:
        """One timestep of head and encoder took so long."""
        self._head.add(seconds, now)

    def packets(self, steps: int, payload_bytes: int, seconds: float, now: float) -> None:
        """So many timesteps became packets."""
        self._payload_bytes.add(payload_bytes / steps, now)
        self._code.add(seconds / steps, now)

    def verdict(
        self, sent: Sequence[tuple[int, float]], timestep: int, service_seconds: float, now: float
    ) -> None:
        """A verdict came.

        Args:
            sent: first timestep of every packet of the sample, and when it was sent.
            timestep: that is judged, in one of these packets.
            service_seconds: as the cloud told, from that packet's arrival to the verdict.
            now: when it came.
        """
        sent = [(first, at) for first, at in sent if first <= timestep]
        last_at = sent[-1][1]
        self._transport.add(max(0.0, now - last_at - service_seconds), now)
        # The packet may have waited in the cloud for those before it: with s per timestep, the
        # verdict is ready at the latest of  arrival(i) + (timesteps from i on) s  over packets i.
        self._service.add(
            min((service_seconds + last_at - at) / (timestep - first + 1) for first, at in sent),
            now,
        )

    def round_trip(self, seconds: float, now: float) -> None:
        """Something that takes the cloud no time went there and back."""
        self._transport.add(seconds, now)

    def tail(self, seconds: float, now: float) -> None:
        """One timestep of the tail took so long on this device."""
        self._tail.add(seconds, now)

    def answered(self, timesteps_used: int) -> None:
        """A sample was answered."""
        keep = 1 - 1 / EXIT_MEMORY_SAMPLES
        self._exits = [keep * count for count in self._exits]
        self._exits[timesteps_used - 1] += 1

    def estimates(self) -> dict[str, float]:
        """Return what has been measured, in seconds, by name."""
        known = {
            "head": self._head_seconds(),
            "service": self._service.value,
            "transport": self._transport.value,
            "tail_local": self._tail.value,
        }
        return {name: value for name, value in known.items() if value is not None}

    def conditions(self) -> Conditions | None:
        """Return what holds now; None until a sample went over the link."""
        head_seconds, payload_bytes = self._head_seconds(), self._payload_bytes.value
        service_seconds, transport_seconds = self._service.value, self._transport.value
        if (
            head_seconds is None
            or payload_bytes is None
            or service_seconds is None
            or transport_seconds is None
        ):
            return None
        total = sum(self._exits)
        return Conditions(
            exits=tuple(count / total for count in self._exits),
            head_seconds=head_seconds,
            service_seconds=service_seconds,
            transport_seconds=transport_seconds,
            payload_bytes=payload_bytes,
            check_bytes=self._model.check_bytes,
            link_bytes_per_second=self.link_bytes_per_second,
            head_joules=self._model.head_joules,
            tail_joules=self._model.tail_joules,
            tail_seconds=self._tail.value,
        )

    def _head_seconds(self) -> float | None:
        """Return what one timestep occupies this device for, codec included."""
        if self._head.value is None:
            return None
        return self._head.value + (self._code.value or 0.0)
