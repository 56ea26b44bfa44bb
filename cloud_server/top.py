"""The cloud's live page in a terminal: ``neucodex-cloud top``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cloud_server.live import Figures, Model
from shared.live.terminal import NONE, amount, duration, energy, power, table, written


class CloudScreen:
    """What is shown of a server."""

    kinds: Mapping[str, type[msgspec.Struct]] = MappingProxyType({"cloud": Figures})

    def __init__(self) -> None:
        self._figures: Figures | None = None

    def take(self, event: Figures) -> None:
        """Take in an event."""
        self._figures = event

    def draw(self) -> RenderableType:
        """Return a frame."""
        if self._figures is None:
            raise ValueError("expected figures before a frame")
        figures, rows = self._figures, list[RenderableType]()
        rows.append(Text.assemble(("NeuCODEX cloud ", "bold"), f"edges at {figures.address}"))
        rows += [Rule(), _server(figures)]
        for model in figures.models:
            rows += [Rule(), _model(model)]
        return Group(*rows)


def _server(figures: Figures) -> Table:
    rows = {
        "streams of code; of images": f"{figures.streams}; {figures.image_streams}",
        "ended because of their age": f"{figures.rotations:,}",
        "requests refused": _counts(figures.rejected),
        "wire, both directions, all edges": written(figures.wire_bytes, amount),
        "modelled energy": energy(figures.modelled_joules),
        "measured power": power(figures.watts),
    }
    return table("Server", rows)


def _model(model: Model) -> Table:
    batches = [f"{bar.calls:,} up to {bar.up_to:g}" for bar in model.batches if bar.calls]
    rows = {
        "split; T": f"{model.split}; {model.timesteps}",
        "slots in use; there are": f"{model.slots_in_use}; {model.slots_limit}",
        "membrane state in them": amount(model.state_bytes),
        "timesteps waiting for the engine": f"{model.queue}",
        "samples ended": _counts(model.samples),
        "timesteps computed; received in vain": f"{model.computed:,}; {model.wasted:,}",
        "engine calls by size of their batch": ", ".join(batches) or NONE,
        "timesteps in a call, mean": written(model.batch_size, "{:.2f}".format),
        "packet to verdict, mean": written(model.service_seconds, duration),
        "one engine call, mean": written(model.engine_seconds, duration),
        "payload; messages": f"{amount(model.payload_bytes)}; {amount(model.message_bytes)}",
    }
    return table(model.name, rows)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or NONE
