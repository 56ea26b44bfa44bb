"""What the live page of the cloud shows, all of it read from the metrics while somebody looks."""

from __future__ import annotations

import math
from time import monotonic

import msgspec
from prometheus_client import CollectorRegistry

from shared.live.board import Board, Source
from shared.live.figures import watts
from shared.metrics import CloudStage, Rpc
from shared.readings import Readings

FIGURES_SECONDS = 0.5
"""Shortest time between two events."""


class Bar(msgspec.Struct, frozen=True):
    """Engine calls of a size."""

    up_to: float
    """Timesteps in the batch; more than in the bar before."""
    calls: int


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One served part of a model; counts are since the start."""

    name: str
    digest: str
    split: str
    timesteps: int
    slots_in_use: int
    slots_limit: int
    state_bytes: int
    queue: int
    """Timesteps that wait for the engine."""
    samples: dict[str, int]
    """Ended, by how."""
    computed: int
    """Timesteps."""
    wasted: int
    """Timesteps that came in vain."""
    batches: tuple[Bar, ...]
    batch_size: float | None
    """Mean; None before the first."""
    service_seconds: float | None
    """Mean, from a packet's arrival to its verdict."""
    engine_seconds: float | None
    """Mean of one engine call."""
    payload_bytes: int
    message_bytes: int
    """Both directions."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One event ``cloud``."""

    time_seconds: float
    """Of this machine's monotonic clock."""
    version: str
    address: str
    streams: int
    image_streams: int
    rotations: int
    rejected: dict[str, int]
    """Requests, by reason."""
    wire_bytes: int | None
    """Both directions, all edges; None where the system does not tell."""
    modelled_joules: float
    watts: dict[str, float]
    """Measured now, by source."""
    models: tuple[Model, ...]


class Reader:
    """Reads the figures.

    Args:
        registry: of the server's metrics.
        address: where edges connect.
    """

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        self._registry = registry
        self._address = address

    def read(self) -> Figures:
        """Return the figures of this moment."""
        readings = Readings(self._registry.collect())
        wire_bytes = readings.known("cloud_wire_bytes_total")
        return Figures(
            time_seconds=monotonic(),
            version=readings.info("build")["version"],
            address=self._address,
            streams=int(readings.total("cloud_streams", rpc=Rpc.INFER)),
            image_streams=int(readings.total("cloud_streams", rpc=Rpc.IMAGE_STREAM)),
            rotations=int(readings.total("cloud_stream_rotations_total")),
            rejected=_counts(readings.labels("cloud_rejected_total", "reason")),
            wire_bytes=None if wire_bytes is None else int(wire_bytes),
            modelled_joules=readings.total("modelled_energy_joules_total"),
            watts=watts(readings),
            models=tuple(
                _model(readings, name)
                for name in sorted(readings.labels("cloud_slots_limit", "model"))
            ),
        )


def _model(readings: Readings, name: str) -> Model:
    def count(metric: str) -> int:
        return int(readings.total(metric, model=name))

    about = readings.info("model", model=name)
    engine = [
        readings.mean("cloud_stage_duration_seconds", model=name, stage=stage)
        for stage in (CloudStage.TAIL, CloudStage.WHOLE)
    ]
    batches = readings.histogram("cloud_batch_size", model=name)
    return Model(
        name=name,
        digest=about["digest"],
        split=about["split"],
        timesteps=int(about["timesteps"]),
        slots_in_use=count("cloud_slots_in_use"),
        slots_limit=count("cloud_slots_limit"),
        state_bytes=count("cloud_session_state_bytes"),
        queue=count("cloud_queue_depth"),
        samples=_counts(readings.labels("cloud_samples_total", "reason", model=name)),
        computed=count("cloud_timesteps_total"),
        wasted=count("cloud_wasted_timesteps_total"),
        batches=tuple(
            Bar(up_to, calls) for up_to, calls in batches.items() if math.isfinite(up_to)
        ),
        batch_size=readings.mean("cloud_batch_size", model=name),
        service_seconds=readings.mean("cloud_service_duration_seconds", model=name),
        engine_seconds=next((seconds for seconds in engine if seconds is not None), None),
        payload_bytes=count("cloud_payload_bytes_total"),
        message_bytes=count("cloud_message_bytes_total"),
    )


def _counts(found: dict[str, float]) -> dict[str, int]:
    """Return what has been counted at all, the most first."""
    counted = sorted(found.items(), key=lambda pair: -pair[1])
    return {name: int(count) for name, count in counted if count}


def make_board(registry: CollectorRegistry, address: str) -> Board:
    """Return what tells the events of the page.

    Args:
        registry: of the server's metrics.
        address: where edges connect.
    """
    board = Board()
    board.add(Source("cloud", FIGURES_SECONDS, Reader(registry, address).read))
    return board
