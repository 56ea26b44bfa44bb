"""What was measured, as values: the content of ``report.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_agent.answers import Latency
from edge_agent.config import EdgeConfig
from edge_agent.measure.energy import EnergyReport
from edge_agent.measure.inputs import Inputs
from edge_agent.measure.modes import Mode
from edge_agent.measure.run import Plan, Sample, Tally
from shared.machine import machine, versions
from shared.model.bundle import Bundle
from shared.model.spec import NetworkSpec

DEVICE_STAGES = ("queue", "input", "head", "codec", "tail")
"""Parts of a sample's time in which this device works, one after the other."""
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Of the samples of one mode, from an input to its answer."""

    mean_seconds: float
    p50_seconds: float
    p90_seconds: float
    p95_seconds: float
    p99_seconds: float


class Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Mean per image; None where the system does not tell."""

    payload: float
    """Code after the codec, upwards; of a cloud-only mode, the input as it was sent."""
    message_sent: float
    """Serialised protobuf."""
    message_received: float
    wire_sent: float | None
    """IP and TCP headers and payload, pure acknowledgements included, no Ethernet."""
    wire_received: float | None
    retransmitted: float | None
    """TCP payload sent again; contained in ``wire_sent``."""
    opening: float | None
    """Wire bytes, both directions, of opening a stream, once; in none of the others."""

    @property
    def message(self) -> float:
        """Both directions."""
        return self.message_sent + self.message_received

    @property
    def wire(self) -> float | None:
        """Both directions."""
        if self.wire_sent is None or self.wire_received is None:
            return None
        return self.wire_sent + self.wire_received


class ModeReport(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the network."""

    what: str
    images: int
    answered: int
    errors: dict[str, int]
    """Images without an answer, by what was said."""
    accuracy: float | None
    """Share of all images whose answer is right; None without labels."""
    mean_timesteps: float
    timesteps: dict[int, int]
    """Images by timesteps used."""
    wasted_timesteps: float
    """Mean per image: sent, but judged after the sample's end."""
    latency: Latencies
    stage_seconds: dict[str, float]
    """Mean per image: the device's own work, and ``waiting``, in which it had none to do for the
    sample; they add up to the latency."""
    service_seconds: float
    """Mean per image, by the cloud's clock; where several timesteps are under way at once, the
    device works during a part of it, and of the transport."""
    transport_seconds: float
    """Mean per image: round trips less service."""
    bytes: Bytes
    modelled_edge_joules: float
    """Mean per image: counted operations at the prices of the configuration, without the radio; not
    a measurement."""
    modelled_radio_joules: float | None
    """Same, of the messages, by the configuration's radio profile; None without one."""
    samples: dict[str, list[float]]
    """By column: ``input`` (number), ``label`` (the answer), ``timesteps``, ``total_seconds``."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything."""

    measured_at: str
    """UTC."""
    model: dict[str, Any]
    network: dict[str, Any]
    """Between this device and the cloud."""
    machine: dict[str, Any]
    """This device."""
    versions: dict[str, str]
    settings: dict[str, Any]
    """The configuration that the modes start from."""
    plan: Plan
    images: int
    labels: bool
    modes: dict[str, ModeReport]
    skipped: dict[str, str]
    """Modes that could not be run, and why."""
    computed_bytes: dict[str, float]
    """What else would have been sent for an image; computed, never sent."""
    energy: EnergyReport | None = None
    """Measured; None where it was not."""

    @property
    def complete(self) -> bool:
        """Whether every image has its answer in every mode that was run."""
        return all(mode.answered == mode.images for mode in self.modes.values())


def make_report(
    config: EdgeConfig,
    bundle: Bundle,
    inputs: Inputs,
    plan: Plan,
    modes: Sequence[Mode],
    tallies: Mapping[str, Tally],
    skipped: Mapping[str, str],
    emulated: Mapping[str, Any] | None,
) -> Report:
    """Put a report together.

    Args:
        config: what the modes started from.
        bundle: the model.
        inputs: what they ran on.
        plan: how much.
        modes: those asked for.
        tallies: what those that ran have cost.
        skipped: why the others did not.
        emulated: facts of the emulated network; None for a real one.
    """
    results = {
        mode.name: _mode_report(mode, tallies[mode.name], inputs)
        for mode in modes
        if mode.name in tallies
    }
    spec, manifest = bundle.spec, bundle.manifest
    return Report(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model={
            "name": manifest.name,
            "version": manifest.version,
            "digest": bundle.digest,
            "backbone": spec.backbone_name,
            "width": spec.width,
            "split": spec.bottleneck.split,
            "timesteps": spec.timesteps,
            "code_shape": list(spec.code_shape),
        },
        network=_network(config, tallies, emulated),
        machine=machine(),
        versions=versions(),
        settings=msgspec.json.decode(msgspec.json.encode(config)),
        plan=plan,
        images=len(inputs.arrays),
        labels=inputs.labels is not None,
        modes=results,
        skipped=dict(skipped),
        computed_bytes=computed_bytes(spec),
    )


def computed_bytes(spec: NetworkSpec) -> dict[str, float]:
    """Return what an image would have taken in forms that are not sent."""
    features, frames = prod(spec.feature_shape), spec.timesteps
    return {
        "float32_features_full_t": 4.0 * features * frames,
        "packed_features_full_t": float((features + 7) // 8 * frames),
        "packed_code_full_t": float((spec.code_bits + 7) // 8 * frames),
        "raw_input": float(prod(spec.input_shape)) * (1 if spec.input_kind == "static" else frames),
    }


def _network(
    config: EdgeConfig, tallies: Mapping[str, Tally], emulated: Mapping[str, Any] | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {"cloud": config.cloud}
    rtts = [rtt for tally in tallies.values() for rtt in tally.min_rtt_seconds]
    if rtts:
        facts["tcp_min_rtt_seconds"] = min(rtts)
    if CONGESTION_CONTROL.is_file():
        facts["tcp_congestion_control"] = CONGESTION_CONTROL.read_text().strip()
    return facts | ({} if emulated is None else {"emulated": dict(emulated)})


def _mode_report(mode: Mode, tally: Tally, inputs: Inputs) -> ModeReport:
    samples, count = tally.samples, max(1, len(tally.samples))
    stages = {
        field.name: _mean([getattr(sample.latency, field.name) for sample in samples])
        for field in fields(Latency)
    }
    total_seconds = [sample.total_seconds for sample in samples]
    device = {name: stages[f"{name}_seconds"] for name in DEVICE_STAGES}
    failed = sum(tally.errors.values())
    radio_joules = tally.counts.get("modelled_radio_joules")
    modelled_joules = tally.counts.get("modelled_joules", 0.0) - (radio_joules or 0.0)
    return ModeReport(
        what=mode.what,
        images=len(samples) + failed,
        answered=len(samples),
        errors=dict(tally.errors),
        accuracy=_accuracy(samples, failed, inputs.labels),
        mean_timesteps=_mean([sample.timesteps_used for sample in samples]),
        timesteps=dict(sorted(Counter(sample.timesteps_used for sample in samples).items())),
        wasted_timesteps=tally.counts.get("wasted_timesteps", 0.0) / count,
        latency=_latencies(total_seconds),
        stage_seconds=device | {"waiting": _mean(total_seconds) - sum(device.values())},
        service_seconds=stages["service_seconds"],
        transport_seconds=stages["transport_seconds"],
        bytes=_bytes(mode, tally, count),
        modelled_edge_joules=modelled_joules / count,
        modelled_radio_joules=None if radio_joules is None else radio_joules / count,
        samples={
            "input": [sample.index for sample in samples],
            "label": [sample.label for sample in samples],
            "timesteps": [sample.timesteps_used for sample in samples],
            "total_seconds": total_seconds,
        },
    )


def _accuracy(samples: Sequence[Sample], failed: int, labels: list[int] | None) -> float | None:
    if labels is None:
        return None
    right = sum(sample.label == labels[sample.index] for sample in samples)
    return right / max(1, len(samples) + failed)


def _latencies(total_seconds: Sequence[float]) -> Latencies:
    p50, p90, p95, p99 = np.percentile(total_seconds or [0.0], (50, 90, 95, 99)).tolist()
    return Latencies(
        mean_seconds=_mean(total_seconds),
        p50_seconds=p50,
        p90_seconds=p90,
        p95_seconds=p95,
        p99_seconds=p99,
    )


def _bytes(mode: Mode, tally: Tally, count: int) -> Bytes:
    placement = mode.changes.get("placement", "co_inference")
    nothing = 0.0 if placement == "edge_only" else None

    def per_image(name: str) -> float | None:
        return tally.counts[name] / count if name in tally.counts else nothing

    openings = [
        opening["wire_sent_bytes"] + opening["wire_received_bytes"]
        for opening in tally.opening
        if "wire_sent_bytes" in opening
    ]
    payload = per_image("payload_bytes") or 0.0
    if placement == "cloud_only":
        payload = _mean([sample.upload_bytes for sample in tally.samples])
    return Bytes(
        payload=payload,
        message_sent=per_image("message_sent_bytes") or 0.0,
        message_received=per_image("message_received_bytes") or 0.0,
        wire_sent=per_image("wire_sent_bytes"),
        wire_received=per_image("wire_received_bytes"),
        retransmitted=per_image("retransmitted_bytes"),
        opening=_mean(openings) if openings else nothing,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
