"""What the demo found out: as JSON for programs, as tables for people.

Bytes and counts are those of the daemons' ``/metrics``; only the sizes of the picture in common
file formats, labels and the caller's clock are the demo's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from edge_agent import Answer
from examples.scrape import Scrape

ANSWERED = ("confident", "max_timesteps")
"""Exit reasons of a sample that got its answer."""
STAGES = (
    ("queue", "waiting its turn"),
    ("input", "normalise image"),
    ("head", "head, encoder"),
    ("codec", "codec"),
    ("transport", "transport"),
    ("service", "cloud"),
    ("tail", "tail or whole"),
)
"""Parts of an answer's latency, and how they are called in the table."""
REST = "local_api"
"""What remains of the caller's time: its call to the daemon and the daemon's own work."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One mode, finished."""

    answers: Sequence[Answer | None]
    """By image; None where there was no answer."""
    correct: int
    call_seconds: Sequence[float]
    """The caller's time for each answered image."""
    total_seconds: float
    edge: Scrape
    cloud: Scrape | None = None


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """One way of running the network."""

    images: int
    answered: int
    """By the edge daemon's count."""
    received: int
    """Answers that reached the application."""
    accuracy: float
    """Share of all images whose answer is right."""
    mean_timesteps: float
    exit_histogram: dict[str, int]
    """Images by timesteps used."""
    modelled_edge_joules_per_image: float
    """Counted operations at 45 nm arithmetic cost; not a measurement."""
    images_per_second: float
    latency_p50_seconds: float
    """An application's time from calling the daemon to its answer."""
    latency_p95_seconds: float
    latency_p99_seconds: float
    latency_mean_seconds: float
    latency_stage_seconds: dict[str, float]
    """Mean per image; they add up to ``latency_mean_seconds``."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``demo-report.json``; bytes and latencies are those of co-inference."""

    images: int
    answered: int
    """Images that co-inference answered."""
    accuracy_co_inference: float
    accuracy_full: float
    """Edge-only-full: the network before the bottleneck was inserted, full T, no exit."""
    accuracy_edge_only: float
    """Edge-only-exit: the same network and exit rule as co-inference, all on the edge."""
    mean_timesteps: float
    payload_bytes_per_image: float
    """Code bits after the codec, edge to cloud."""
    message_bytes_per_image: float
    """Serialised protobuf, both directions."""
    message_sent_bytes_per_image: float
    wire_bytes_per_image: float | None
    """IP and TCP headers and payload, both directions, opening the connection included; null
    where the system does not tell."""
    wire_sent_bytes_per_image: float | None
    payload_bytes_per_timestep: float
    """Per timestep sent."""
    float32_feature_bytes_per_image: float
    """The features at the split point as float32, over full T."""
    float32_feature_bytes_per_timestep: float
    raw_image_bytes: float
    file_bytes: dict[str, float]
    """Mean size of an image in common file formats, by format."""
    latency_p50_seconds: float
    latency_p95_seconds: float
    latency_p99_seconds: float
    modelled_edge_joules_per_image: float
    modelled_edge_only_joules_per_image: float
    """Of edge-only-exit."""
    modelled_edge_full_joules_per_image: float
    """Of edge-only-full."""
    cloud_samples_answered: int
    """By the cloud's count."""
    cloud_payload_bytes_per_image: float
    """What the cloud received, by its own count."""
    model: dict[str, str]
    """Digest, backbone, split point, timesteps and code shape."""
    modes: dict[str, Mode]
    """``co_inference``, ``edge_only_exit`` and ``edge_only_full``."""

    @property
    def complete(self) -> bool:
        """Whether every image got its answer, in every mode."""
        return all(mode.images == mode.answered == mode.received for mode in self.modes.values())


def summarise(co_inference: Run, exit_: Run, full: Run, file_bytes: dict[str, float]) -> Report:
    """Return the report of three runs over the same images.

    Args:
        co_inference: with its cloud's scrape.
        exit_: edge-only-exit.
        full: edge-only-full.
        file_bytes: mean size of an image, by file format.

    Raises:
        ValueError: no scrape of the cloud.
        LookupError: a daemon lacks a metric.
    """
    edge, cloud = co_inference.edge, co_inference.cloud
    if cloud is None:
        raise ValueError("expected the cloud's metrics with co-inference, got none")
    mode, exit_mode, full_mode = map(_mode, (co_inference, exit_, full))
    count = max(1, mode.answered)
    model = edge.info("model")

    def per_image(name: str, **labels: str) -> float:
        return edge.total(name, **labels) / count

    payload_bytes = per_image("edge_payload_bytes_total", direction="sent")
    sent_timesteps = sum(
        per_image("edge_timesteps_total", outcome=outcome) for outcome in ("used", "wasted")
    )
    feature_bytes = per_image("edge_baseline_bytes_total", baseline="float32_features")
    wire = edge.has("edge_wire_bytes_total")
    cloud_payload_bytes = cloud.total("cloud_payload_bytes_total", direction="received")
    return Report(
        images=mode.images,
        answered=mode.answered,
        accuracy_co_inference=mode.accuracy,
        accuracy_full=full_mode.accuracy,
        accuracy_edge_only=exit_mode.accuracy,
        mean_timesteps=mode.mean_timesteps,
        payload_bytes_per_image=payload_bytes,
        payload_bytes_per_timestep=payload_bytes / max(1.0, sent_timesteps),
        message_bytes_per_image=per_image("edge_message_bytes_total"),
        message_sent_bytes_per_image=per_image("edge_message_bytes_total", direction="sent"),
        wire_bytes_per_image=per_image("edge_wire_bytes_total") if wire else None,
        wire_sent_bytes_per_image=(
            per_image("edge_wire_bytes_total", direction="sent") if wire else None
        ),
        float32_feature_bytes_per_image=feature_bytes,
        float32_feature_bytes_per_timestep=feature_bytes / int(model["timesteps"]),
        raw_image_bytes=per_image("edge_baseline_bytes_total", baseline="raw_input"),
        file_bytes=file_bytes,
        latency_p50_seconds=mode.latency_p50_seconds,
        latency_p95_seconds=mode.latency_p95_seconds,
        latency_p99_seconds=mode.latency_p99_seconds,
        modelled_edge_joules_per_image=mode.modelled_edge_joules_per_image,
        modelled_edge_only_joules_per_image=exit_mode.modelled_edge_joules_per_image,
        modelled_edge_full_joules_per_image=full_mode.modelled_edge_joules_per_image,
        cloud_samples_answered=_answered(cloud, "cloud_samples_total", "reason"),
        cloud_payload_bytes_per_image=cloud_payload_bytes / count,
        model=model,
        modes={"co_inference": mode, "edge_only_exit": exit_mode, "edge_only_full": full_mode},
    )


def _mode(run: Run) -> Mode:
    edge = run.edge
    answered = _answered(edge, "edge_inferences_total", "exit_reason")
    count = max(1, answered)
    p50, p95, p99 = np.percentile(run.call_seconds or [0.0], (50, 95, 99))
    return Mode(
        images=len(run.answers),
        answered=answered,
        received=len(run.call_seconds),
        accuracy=run.correct / len(run.answers),
        mean_timesteps=edge.total("edge_timesteps_total", outcome="used") / count,
        exit_histogram={
            f"{bound:g}": images
            for bound, images in edge.histogram("edge_timesteps_used").items()
            if images
        },
        modelled_edge_joules_per_image=edge.total("modelled_energy_joules_total") / count,
        images_per_second=len(run.call_seconds) / run.total_seconds,
        latency_p50_seconds=float(p50),
        latency_p95_seconds=float(p95),
        latency_p99_seconds=float(p99),
        latency_mean_seconds=_mean(run.call_seconds),
        latency_stage_seconds=_stages(run),
    )


def _stages(run: Run) -> dict[str, float]:
    latencies = [answer.latency for answer in run.answers if answer is not None]
    stages = {
        name: _mean([getattr(latency, f"{name}_seconds") for latency in latencies])
        for name, _ in STAGES
    }
    return stages | {REST: _mean(run.call_seconds) - sum(stages.values())}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _answered(scrape: Scrape, name: str, label: str) -> int:
    """Return the samples of a counter that ended with an answer."""
    return round(sum(scrape.total(name, **{label: reason}) for reason in ANSWERED))


def show(report: Report, console: Console) -> None:
    """Print the report as two tables."""
    console.print(_modes_table(report))
    console.print(_bytes_table(report))


def _modes_table(report: Report) -> Table:
    model = report.model
    table = Table(
        title=f"{report.images:,} images, spiking network ({model['backbone']}) split after "
        f"{model['split']}, T = {model['timesteps']}",
        caption="edge-only-exit: same network and exit rule, all on the edge\n"
        "edge-only-full: the network before the bottleneck was inserted, full T\n"
        "modelled energy: counted operations at 45 nm arithmetic cost, not measured\n"
        "latency: from an application's call to its answer\n"
        "cloud: its decoder, tail and queue; transport: both ways, gRPC included",
        caption_justify="left",
    )
    table.add_column("")
    for name in report.modes:
        table.add_column(name.replace("_", "-"), justify="right")
    for label, cells in _mode_rows(list(report.modes.values())):
        table.add_row(label, *cells)
    return table


def _mode_rows(modes: Sequence[Mode]) -> Iterator[tuple[str, list[str]]]:
    yield "images answered", [f"{mode.answered:,}" for mode in modes]
    yield "accuracy", [f"{mode.accuracy:.1%}" for mode in modes]
    yield "mean timesteps", [f"{mode.mean_timesteps:.2f}" for mode in modes]
    for steps in sorted({key for mode in modes for key in mode.exit_histogram}, key=int):
        yield f"  exit after {steps}", [_share(mode, steps) for mode in modes]
    yield "modelled edge energy", _energies(modes)
    yield "latency p50", [_milliseconds(mode.latency_p50_seconds) for mode in modes]
    yield "latency p95", [_milliseconds(mode.latency_p95_seconds) for mode in modes]
    yield "latency p99", [_milliseconds(mode.latency_p99_seconds) for mode in modes]
    yield "latency mean", [_milliseconds(mode.latency_mean_seconds) for mode in modes]
    for name, label in (*STAGES, (REST, "local API, rest")):
        yield f"  {label}", [_milliseconds(mode.latency_stage_seconds[name]) for mode in modes]
    yield "images per second", [f"{mode.images_per_second:.1f}" for mode in modes]


def _bytes_table(report: Report) -> Table:
    reference = report.float32_feature_bytes_per_image
    table = Table(
        title="Bytes per image",
        caption="wire: IP and TCP headers and payload,\n  opening the connection included\n"
        f"per timestep sent: payload {report.payload_bytes_per_timestep:.1f} B, "
        f"float32 features {report.float32_feature_bytes_per_timestep:,.0f} B",
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("bytes", justify="right")
    table.add_column("float32 features are", justify="right")
    for label, size in _sizes(report):
        if size is None:
            table.add_row(label, "not measured", "")
        else:
            ratio = f"{reference / size:,.1f} x" if size else ""
            table.add_row(label, f"{size:,.1f}", ratio)
    return table


def _sizes(report: Report) -> list[tuple[str, float | None]]:
    files = report.file_bytes
    return [
        ("payload, edge to cloud", report.payload_bytes_per_image),
        ("  as the cloud counted it", report.cloud_payload_bytes_per_image),
        ("messages, both directions", report.message_bytes_per_image),
        ("wire, both directions", report.wire_bytes_per_image),
        ("float32 features, full T", report.float32_feature_bytes_per_image),
        ("raw image", report.raw_image_bytes),
        ("PNG", files["png"]),
        ("WebP, lossless", files["webp_lossless"]),
        ("JPEG, quality 75", files["jpeg"]),
        ("WebP, quality 75", files["webp"]),
    ]


def _share(mode: Mode, key: str) -> str:
    return f"{mode.exit_histogram.get(key, 0) / max(1, mode.answered):.1%}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def _energies(modes: Sequence[Mode]) -> list[str]:
    """Return each mode's energy, and how many times the first one's it is."""
    joules = [mode.modelled_edge_joules_per_image for mode in modes]
    return [
        f"{1e6 * each:.1f} µJ" + (f" ({each / joules[0]:.2f} x)" if index and joules[0] else "")
        for index, each in enumerate(joules)
    ]
