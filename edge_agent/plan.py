"""``neucodex-edge plan``: where should the network be split, on this device and over this link?

What :mod:`edge_agent.survey` measures of every bundle goes into the closed forms of
:mod:`edge_agent.policy`, with which the daemon reckons as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from edge_agent.alpha import choose_alpha, exit_shares
from edge_agent.config import EdgeConfig
from edge_agent.describe import describing
from edge_agent.policy import (
    ACK_BYTES,
    FIELD_BYTES,
    LOCAL,
    LOCK_STEP,
    VERDICT_MESSAGE_BYTES,
    WIRE_MESSAGE_BYTES,
    Conditions,
    Expected,
    Limits,
    choices,
    choose,
    expect,
    late_timestep,
)
from edge_agent.survey import Measured, Surveyor, Upload, inputs_for
from protos import co_inference_pb2 as pb
from shared.codec.packet import MAX_TIMESTEPS
from shared.config import Value
from shared.energy.operations import load_model
from shared.errors import ConfigError, LinkLostError
from shared.metrics import Placement
from shared.model.bundle import Bundle

SEGMENT_BYTES = 1400
"""TCP payload of one packet, about."""
LEFT_OUT = (
    "energy is modelled: the arithmetic of the network on this device; coding pictures, sending "
    "and waiting are not in it",
    "accuracy is not weighed: edge-only-full and cloud-only run the network without bottleneck",
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run one bundle; means per sample."""

    bundle: str
    """Its directory."""
    split: str | None
    """None where the network is not split."""
    placement: Placement
    network: str
    way: str
    latency_seconds: float
    late_seconds: float
    """Of all samples but one in twenty."""
    payload_bytes: float
    wire_bytes: float
    """Both directions, an estimate."""
    energy_joules: float
    """Modelled, of this device."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    cloud: str
    cloud_used: bool
    """Whether any bundle could be run with the cloud."""
    objective: str
    deadline_target_seconds: float | None
    measured: dict[str, Measured]
    """By the bundle's directory."""
    rows: list[Row]
    best: Row
    notes: list[str]
    """What could not be planned, and what the figures leave out."""


class _Way(NamedTuple):
    """One way to run one bundle, before it is a row."""

    placement: Placement
    network: str
    name: str
    expected: Expected


async def make_plan(configs: Sequence[EdgeConfig], images: Path | None) -> Plan:
    """Survey bundles and return what to expect of them.

    Args:
        configs: the daemon's configuration with every bundle.
        images: inputs like those to come; None for made-up ones.

    Raises:
        ConfigError: inputs that cannot be used, or nothing that could be run.
        BundleError: a bundle that is damaged.
        NeucodexError: a run failed.
    """
    # Whatever the daemon runs now: the way to run is what is to be found.
    configs = [replace(each, placement="co_inference", network="split") for each in configs]
    first, notes = configs[0], [] if images else ["inputs: made up (--images takes yours)"]
    served = await _served(first, notes)
    measured: dict[str, Measured] = {}
    found: list[tuple[EdgeConfig, Bundle, _Way]] = []
    for config in configs:
        bundle = Bundle(Path(config.bundle))
        model = served.get(bundle.digest)
        if served and model is None:
            notes.append(f"{config.bundle}: the cloud does not serve it")
        surveyor = Surveyor(config, bundle, inputs_for(bundle, images))
        figures = measured[config.bundle] = await _survey(surveyor, model)
        found += [(config, bundle, way) for way in _ways(config, bundle, figures)]
    if not found:
        raise ConfigError(f"expected something that can be run; {'; '.join(notes)}")
    chosen = choose([way.expected for _, _, way in found], first.goal)
    rows = [_row(*each) for each in found]
    (best,) = (row for row, (_, _, way) in zip(rows, found, strict=True) if way.expected is chosen)
    return Plan(
        cloud=first.cloud,
        cloud_used=any(each.transport_seconds is not None for each in measured.values()),
        objective=first.objective,
        deadline_target_seconds=first.deadline_target_seconds,
        measured=measured,
        rows=rows,
        best=best,
        notes=[*notes, *LEFT_OUT],
    )


async def _served(config: EdgeConfig, notes: list[str]) -> dict[str, pb.Model]:
    """Return what the cloud serves, by digest; nothing, and a note, where it does not answer."""
    async with describing(config.cloud, config.credentials.watched()) as describe:
        try:
            reply = await describe.reply()
        except LinkLostError as error:
            notes.append(f"the cloud cannot be reached: {error}")
            return {}
    return {model.digest.hex(): model for model in reply.models}


async def _survey(surveyor: Surveyor, model: pb.Model | None) -> Measured:
    measured = await surveyor.here()
    if model is not None:
        measured = await surveyor.over_link(measured)
        if model.whole:
            measured = await surveyor.in_cloud(measured)
    return measured


def _ways(config: EdgeConfig, bundle: Bundle, measured: Measured) -> Iterator[_Way]:
    """Yield what can be expected from what was measured."""
    calibration, timesteps = bundle.calibration(), bundle.spec.timesteps
    alpha = choose_alpha(config, calibration, timesteps).values
    energy = load_model(config.energy)
    joules = {part: energy.joules(each, 1) for part, each in calibration.operations.items()}
    conditions = Conditions(
        exits=exit_shares(calibration, alpha),
        head_seconds=measured.head_seconds or 0.0,
        service_seconds=measured.service_seconds or 0.0,
        transport_seconds=measured.transport_seconds or 0.0,
        payload_bytes=measured.payload_bytes or 0.0,
        check_bytes=config.check.size_bytes,
        link_bytes_per_second=measured.link_bytes_per_second,
        head_joules=joules["head"],
        tail_joules=joules["tail"],
        tail_seconds=measured.tail_seconds,
    )
    if measured.transport_seconds is not None:
        limits = Limits(max_window=MAX_TIMESTEPS, max_steps_per_packet=MAX_TIMESTEPS)
        options = [expect(each, conditions) for each in choices(timesteps, limits, config.fixed)]
        best = choose(options, config.goal)
        yield _Way(Placement.CO_INFERENCE, "split", str(best.choice), best)
        if best.choice != LOCK_STEP:
            yield _Way(
                Placement.CO_INFERENCE, "split", str(LOCK_STEP), expect(LOCK_STEP, conditions)
            )
    if measured.tail_seconds is not None:
        yield _Way(Placement.EDGE_ONLY, "split", "with early exit", expect(LOCAL, conditions))
    if measured.whole_seconds is not None:
        seconds = timesteps * measured.whole_seconds
        expected = _unsplit(seconds, seconds, 0.0, timesteps * joules["whole"])
        yield _Way(Placement.EDGE_ONLY, "whole", "all timesteps", expected)
    if measured.upload is not None:
        expected = _expect_upload(measured.upload, conditions.exits)
        yield _Way(Placement.CLOUD_ONLY, "split", f"upload as {measured.upload.kind}", expected)


def _expect_upload(upload: Upload, exits: Sequence[float]) -> Expected:
    """Return what a sample costs whose input is sent to the cloud."""
    first_seconds = upload.encode_seconds + upload.transport_seconds + upload.first_seconds
    further = sum(share * timestep for timestep, share in enumerate(exits))
    message_bytes = upload.message_bytes + FIELD_BYTES + VERDICT_MESSAGE_BYTES
    return _unsplit(
        first_seconds + further * upload.step_seconds,
        first_seconds + late_timestep(exits) * upload.step_seconds,
        message_bytes,
        0.0,
    )


def _unsplit(
    latency_seconds: float, late_seconds: float, message_bytes: float, energy_joules: float
) -> Expected:
    """Return what a sample costs that is not split: one message there, one back, or none."""
    segments = ceil(message_bytes / SEGMENT_BYTES)
    wire_bytes = message_bytes + 2 * WIRE_MESSAGE_BYTES + (segments - 1) * ACK_BYTES
    return Expected(
        choice=LOCAL,
        latency_seconds=latency_seconds,
        late_seconds=late_seconds,
        payload_bytes=0.0,
        message_bytes=message_bytes,
        wire_bytes=wire_bytes if message_bytes else 0.0,
        energy_joules=energy_joules,
        timesteps_computed=0.0,
        timesteps_sent=0.0,
    )


def _row(config: EdgeConfig, bundle: Bundle, way: _Way) -> Row:
    expected = way.expected
    has_split = way.network == "split" and way.placement is not Placement.CLOUD_ONLY
    return Row(
        bundle=config.bundle,
        split=bundle.spec.bottleneck.split if has_split else None,
        placement=way.placement,
        network=way.network,
        way=way.name,
        latency_seconds=expected.latency_seconds,
        late_seconds=expected.late_seconds,
        payload_bytes=expected.payload_bytes,
        wire_bytes=expected.wire_bytes,
        energy_joules=expected.energy_joules,
    )


def settings_of(plan: Plan) -> dict[str, Value]:
    """Return the keys of the daemon's configuration that make it run as the plan's best row."""
    values: dict[str, Value] = {
        "bundle": str(Path(plan.best.bundle).absolute()),
        "cloud": plan.cloud,
        "placement": plan.best.placement.value,
        "network": plan.best.network,
        "objective": plan.objective,
    }
    if plan.deadline_target_seconds is not None:
        values["deadline_target_seconds"] = plan.deadline_target_seconds
    return values


def table(plan: Plan) -> list[tuple[str, ...]]:
    """Return the plan as rows of text, the best marked with an asterisk."""
    head = ("", "bundle", "split", "placement", "way", "ms", "late ms", "payload B", "wire B", "µJ")
    return [head, *(("*" if row is plan.best else "", *_cells(row)) for row in plan.rows)]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        Path(row.bundle).name,
        row.split or "-",
        row.placement.value,
        row.way,
        f"{row.latency_seconds * 1e3:.1f}",
        f"{row.late_seconds * 1e3:.1f}",
        f"{row.payload_bytes:.0f}",
        f"{row.wire_bytes:.0f}",
        f"{row.energy_joules * 1e6:.1f}",
    )
