"""Settings of both daemons about energy: table ``[energy]`` of their files."""

from __future__ import annotations

from typing import Annotated

import msgspec


class EnergyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured, and how the model reckons."""

    sensors: bool = True
    """Whether the machine's power sensors are looked for and read."""
    external_meter: str = ""
    """A meter of the user's: path of a file or FIFO, or URL, of JSON lines; empty: none."""
    table: str = ""
    """Prices of the energy model: path of a TOML file; empty: ``ops_45nm.toml`` here."""
    memory: bool = False
    """Whether the model prices moving operands, too."""
    radio: str = ""
    """Radio profile of the table by which messages are priced; empty: the radio is left out."""
    count_every: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 64
    """On the edge: of one sample in so many operations are counted; 0: of none."""
