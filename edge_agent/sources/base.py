"""What a source yields."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

from edge_agent.inputs import Array, Recording
from shared.errors import InputError
from shared.events.framing import Framing
from shared.model.bundle import Manifest


@dataclass(frozen=True, eq=False)
class Item:
    """One input and the name by which its result is told."""

    name: str
    data: bytes | Array | Recording | InputError
    """The input, whole or still being recorded, or why it cannot be read."""
    arrived: float = field(default_factory=time.perf_counter)
    """When, by ``time.perf_counter()``."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What sources must know of the daemon."""

    current: Callable[[], Manifest]
    """Tells which network sees the inputs now."""
    stop: Event
    """Set when the daemon ends: sources that wait wait for this."""

    @property
    def manifest(self) -> Manifest:
        """Of the network that sees the inputs now."""
        return self.current()

    def framing(self, own: Framing | None, key: str) -> Framing:
        """Return how events become timesteps; ValueError where nobody says, or two do."""
        spec, told = self.manifest.spec, self.manifest.preprocessing.framing
        if spec.input_kind != "events":
            raise ValueError(
                f"{key}: expected a network that reads events, this one reads pictures"
            )
        if told is not None and own is not None:
            raise ValueError(f"{key}.framing: expected none, the bundle says how: {told}")
        framing = told or own
        if framing is None or framing.timesteps != spec.timesteps:
            raise ValueError(
                f"{key}.framing: expected one into {spec.timesteps} timesteps, got {framing}"
            )
        return framing
