"""The edge's live page in a terminal: ``neucodex-edge top``."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Mapping
from types import MappingProxyType

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from edge_agent.live import Figures, Sample
from shared.codec.bitpack import unpack
from shared.live.terminal import NONE, amount, duration, energy, plain, power, table, written

PICTURE_SIDE = 24
"""Of a sample's picture, in half lines."""
BAR_WIDTH = 30
HALVES = np.array([[" ", "▄"], ["▀", "█"]])
"""By upper and lower bit."""


class EdgeScreen:
    """What is shown of an edge daemon."""

    kinds: Mapping[str, type[msgspec.Struct]] = MappingProxyType(
        {"edge": Figures, "sample": Sample}
    )

    def __init__(self) -> None:
        self._figures: Figures | None = None
        self._sample: Sample | None = None

    def take(self, event: Figures | Sample) -> None:
        """Take in an event."""
        if isinstance(event, Figures):
            self._figures = event
        else:
            self._sample = event

    def draw(self) -> RenderableType:
        """Return a frame."""
        if self._figures is None:
            raise ValueError("expected figures before a frame")
        figures, parts = self._figures, Table.grid(expand=True, padding=(0, 2))
        parts.add_column(ratio=1)
        parts.add_column(ratio=1)
        parts.add_row(_bytes(figures), _time(figures))
        parts.add_row(_samples(figures), _link(figures))
        why = Text.assemble(("how samples are run: ", "dim"), plain(figures.policy.why))
        rows: list[RenderableType] = [_about(figures), Rule(), _shown(self._sample), Rule(), parts]
        rows += [plain(figures.link.trouble, "red")] if figures.link.trouble else []
        return Group(*rows, why)


def _about(figures: Figures) -> Text:
    about = figures.about
    shape = " x ".join(map(str, about.code_shape))
    return Text.assemble(
        ("NeuCODEX edge ", "bold"),
        plain(
            f"{about.model}, split after {about.split}, T = {about.timesteps}, code {shape}, "
            f"{about.placement}, cloud {about.cloud or NONE}"
        ),
    )


def _shown(sample: Sample | None) -> RenderableType:
    """Return a sample: its picture, its codes and the confidence."""
    if sample is None:
        return Text("no sample has been run since the begin of this look", "dim")
    pictures: list[RenderableType] = [_picture(b64decode(sample.picture))] if sample.picture else []
    pictures += [
        Group(_bits(b64decode(code), sample.code_shape), Text(_caption(sample, timestep), "dim"))
        for timestep, code in enumerate(sample.codes)
    ]
    return Group(_headline(sample), Columns(pictures, padding=(0, 2)), _confidence(sample))


def _headline(sample: Sample) -> Text:
    end, number = sample.end, f"sample {sample.sample}: "
    if end is None:
        last = sample.verdicts[-1] if sample.verdicts else None
        word = f"{last.name}, {last.confidence:.3f} so far" if last else "no verdict yet"
        return plain(number + word)
    return Text.assemble(
        number,
        plain(end.name, "bold"),
        f", confidence {end.confidence:.3f} after {end.timesteps_used} of {sample.timesteps} "
        f"timesteps, {duration(end.total_seconds)}, {amount(end.payload_bytes)}, {end.placement}",
    )


def _caption(sample: Sample, timestep: int) -> str:
    sent = [each.payload_bytes for each in sample.packets if each.timestep == timestep]
    exited = sample.end is not None and sample.end.timesteps_used == timestep + 1
    return f"t = {timestep}" + (f": {amount(sent[0])}" if sent else "") + " exit" * exited


def _confidence(sample: Sample) -> Table:
    """Return a bar per timestep, with alpha in it."""
    bars = Table.grid(padding=(0, 1))
    verdicts = {each.timestep: each for each in sample.verdicts}
    for timestep in range(sample.timesteps):
        alpha = sample.alpha[timestep] if timestep < len(sample.alpha) else None
        verdict = verdicts.get(timestep)
        confidence = 0.0 if verdict is None else verdict.confidence
        bars.add_row(
            f"t = {timestep}",
            _bar(confidence, alpha),
            NONE if verdict is None else plain(f"{confidence:.3f} {verdict.name}"),
            "" if alpha is None else Text(f"alpha {alpha:.3f}", "dim"),
        )
    return bars


def _bar(confidence: float, alpha: float | None) -> Text:
    cells = ["█" if (cell + 0.5) / BAR_WIDTH < confidence else "·" for cell in range(BAR_WIDTH)]
    if alpha is not None:
        cells[min(BAR_WIDTH - 1, int(alpha * BAR_WIDTH))] = "|"
    above = alpha is None or confidence > alpha
    return Text("".join(cells), "green" if confidence and above else "blue")


def _picture(png: bytes) -> Text:
    """Return a picture in half blocks, two pixels a character."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX)
    rows = np.asarray(small, np.uint8)
    text = Text()
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", f"rgb{_colour(above)} on rgb{_colour(below)}")
        text.append("\n")
    text.rstrip()
    return text


def _colour(pixel: list[int]) -> str:
    return f"({pixel[0]},{pixel[1]},{pixel[2]})"


def _bits(packed: bytes, shape: tuple[int, ...]) -> Text:
    """Return bits ``[C, H, W]`` in half blocks, the channels side by side."""
    channels, height, width = shape
    planes = unpack(packed, channels * height * width).reshape(shape)
    columns = int(np.ceil(np.sqrt(2 * channels)))
    rows = [_side_by_side(planes[first : first + columns]) for first in range(0, channels, columns)]
    return Text("\n".join(rows), "blue")


def _side_by_side(planes: NDArray[np.uint8]) -> str:
    planes = np.pad(planes, ((0, 0), (0, planes.shape[1] % 2), (0, 0)))
    halves = HALVES[planes[:, ::2], planes[:, 1::2]]
    lines = halves.transpose(1, 0, 2)
    return "\n".join("│".join("".join(cells) for cells in line) for line in lines)


def _bytes(figures: Figures) -> Table:
    count = figures.bytes

    def reduced(value: int | None, ratio: float | None) -> str:
        return written(value, amount) + ("" if ratio is None else f", {ratio:,.0f}x less")

    rows = {
        "float32 features over full T": amount(count.features),
        "payload": reduced(count.payload, count.payload_ratio),
        "messages, both directions": reduced(count.messages, count.messages_ratio),
        "wire, both directions": reduced(count.wire, count.wire_ratio),
    }
    return table("Bytes so far", rows)


def _time(figures: Figures) -> Table:
    time = figures.time
    rows = {
        "saved by exits, against full T": written(time.saved_by_exits, duration),
        "saved by the cloud, against head and tail here over full T": written(
            time.saved_by_cloud, duration
        ),
        "one sample, mean": written(time.sample, duration),
        "head and encoder, one timestep": written(time.head, duration),
        "modelled energy": energy(figures.modelled_joules),
        "measured power": power(figures.watts),
    }
    return table("Time and energy so far", rows)


def _samples(figures: Figures) -> Table:
    samples = figures.samples
    timesteps = samples.timesteps_used, samples.timesteps_skipped, samples.timesteps_wasted
    rows = {
        "answered; before the last timestep": f"{samples.answered:,}; {samples.early:,}",
        "on this device instead; failed": f"{samples.fallback:,}; {samples.failed:,}",
        "waiting now": f"{samples.waiting:,}",
        "timesteps used; skipped; in vain": "; ".join(f"{count:,}" for count in timesteps),
    }
    return table("Samples so far", rows)


def _link(figures: Figures) -> Table:
    link, policy = figures.link, figures.policy
    rows = {
        "link; breaker": f"{link.state}; {link.breaker}",
        "round trip; the kernel's least": (
            f"{written(link.round_trip_seconds, duration)}; "
            f"{written(link.min_rtt_seconds, duration)}"
        ),
        "opened again; sent again": f"{link.retries}; {link.replays}",
        "reply mode; window; timesteps a packet": (
            f"{policy.mode or NONE}; {policy.window}; {policy.steps_per_packet}"
        ),
        "expected time of a sample": written(policy.expected_seconds, duration),
    }
    return table("Link and policy", rows)
