"""How the loop shows samples to whoever looks at the live page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge_agent.answers import Answer
from edge_agent.feeds import Shown
from shared.messages import Verdict
from shared.model.bundle import Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How far a sample has come."""

    bundle: Bundle
    """It is run with."""
    sample: int
    """Its number, from 0, with that bundle."""
    alpha: tuple[float, ...]
    shown: Shown
    packets: tuple[tuple[int, int], ...]
    """Those sent: first timestep, payload bytes."""
    verdicts: tuple[Verdict, ...]
    """The first on each timestep."""
    answer: Answer | None
    """None while it is under way."""


class Onlooker(Protocol):
    """One who may look."""

    @property
    def looking(self) -> bool:
        """Whether it does: only then is a view made."""
        ...

    def see(self, view: View) -> None:
        """Take in a view, at once, on the event loop."""
        ...


class _Nobody:
    looking = False

    def see(self, view: View) -> None:
        """Look away."""


NOBODY: Onlooker = _Nobody()
