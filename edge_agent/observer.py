"""What device, link, cloud and samples are like now: smoothed measurements for the policy.

Pure: the times of events are handed in. All are of this device's monotonic clock, in seconds; of
the cloud's clock only durations are used.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edge_agent.policy import Conditions

MEMORY_SECONDS = 1.0
"""Measurements count for so long: a changed link is known within a second or two."""
FEWEST = 3
"""The last so many count however old they are; one of them may be far off."""
MOST = 99
"""More than the last so many never count."""
PRIOR_SAMPLES = 30
"""The bundle's exit distribution counts as so many samples seen before the first."""
EXIT_MEMORY_SAMPLES = 300
"""A sample's weight in the exit distribution falls to 1/e while so many follow."""
FOLLOWING_SAMPLES = 20
"""Whether samples follow each other closely is the mean over about so many."""


class Recent:
    """The median of what was measured lately.

    It ignores a packet that had to be sent twice, and follows a link that has changed.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=MOST)
        """When, and what."""

    def add(self, value: float, now: float) -> None:
        """Take in a measurement of this moment."""
        self._seen.append((now, value))
        while len(self._seen) > FEWEST and self._seen[0][0] < now - MEMORY_SECONDS:
            self._seen.popleft()

    @property
    def value(self) -> float | None:
        """The median; None before the first measurement."""
        return median(value for _, value in self._seen) if self._seen else None


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
        self._payload_bytes = Recent()
        self._code = Recent()
        self._head = Recent()
        self._service = Recent()
        self._transport = Recent()
        self._tail = Recent()
        self._follows = 1.0
        self._answered_at = -math.inf
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

    def began(self, now: float) -> None:
        """A sample's first timestep is to be computed."""
        gap_seconds, head_seconds = now - self._answered_at, self._head.value or 0.0
        self._follows += ((gap_seconds < head_seconds) - self._follows) / FOLLOWING_SAMPLES

    def answered(self, timesteps_used: int, now: float) -> None:
        """A sample was answered."""
        self._answered_at = now
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
            follows=self._follows,
            check_bytes=self._model.check_bytes,
            link_bytes_per_second=self.link_bytes_per_second,
            head_joules=self._model.head_joules,
            tail_joules=self._model.tail_joules,
            tail_seconds=self._tail.value,
        )

    def _head_seconds(self) -> float | None:
        """Return what one timestep occupies this device for, codec included."""
        head_seconds = self._head.value
        return None if head_seconds is None else head_seconds + (self._code.value or 0.0)
