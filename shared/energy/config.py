"""Settings of both daemons about energy: table ``[energy]`` of their files."""

from __future__ import annotations

import msgspec


class EnergyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured, and how the model reckons."""

    sensors: bool = True
    """Whether the machine's power sensors are looked for and read."""
    external_meter: str = ""
    """A meter of the user's: path of a file or FIFO, or URL, of JSON lines; empty: none."""
