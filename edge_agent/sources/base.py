"""What a source yields."""

from __future__ import annotations

from typing import NamedTuple

from edge_agent.inputs import Data
from shared.errors import InputError


class Item(NamedTuple):
    """One input and the name by which its result is told."""

    name: str
    data: Data | InputError
    """The input, or why it cannot be read."""
