"""Prometheus metrics of both daemons; the only file that knows ``prometheus_client``.

Callers tell what happened (``metrics.stage("head", seconds)``); names, labels and buckets live
here, in the tables :data:`EDGE_FAMILIES` and :data:`CLOUD_FAMILIES`. A label takes its values from
a fixed list (anything else becomes ``other``) or is a configured name (a model, a peer), of which
at most :data:`MAX_NAMES` are told apart; never an id, an address or a text from the network. What
cannot be measured has no series, never a zero. Measured and modelled figures have different names.
"""

from __future__ import annotations

import copy
import itertools
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from importlib import metadata
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from shared.codec import native
from shared.energy.meter import Component, Meter, Source
from shared.energy.operations import EnergyModel, ModelSource, default_model
from shared.errors import SampleCode, SensorReason
from shared.messages import PROTOCOL_VERSION
from shared.model.bundle import Operations
from shared.model.spec import NetworkSpec
from shared.tallies import Distribution, Tally
from shared.tcp_info import Totals
from shared.web import Application

NAMESPACE = "neucodex"
OTHER = "other"
RADIO = "radio"
"""Component of modelled energy that is no part of the network."""
MAX_NAMES = 32
"""Model names told apart; further ones count as ``other``."""
MAX_SHOWN = 16
"""Counters of at most so many label combinations are shown before they first count."""


class Placement(StrEnum):
    """Where a sample was computed."""

    CO_INFERENCE = "co_inference"
    EDGE_ONLY = "edge_only"
    CLOUD_ONLY = "cloud_only"
    FALLBACK = "fallback"


class ExitReason(StrEnum):
    """Why a sample ended, as the edge saw it."""

    CONFIDENT = "confident"
    MAX_TIMESTEPS = "max_timesteps"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    ERROR = "error"


class EdgeStage(StrEnum):
    """A piece of the edge's work."""

    QUEUE = "queue"
    DECODE_INPUT = "decode_input"
    HEAD = "head"
    """Head and compression encoder, one timestep."""
    CODE = "code"
    """Codec: code bits to packet."""
    UNPACK_REPLY = "unpack_reply"
    EXIT_RULE = "exit_rule"
    TAIL_LOCAL = "tail_local"
    WHOLE_LOCAL = "whole_local"


class CloudStage(StrEnum):
    """A piece of the cloud's work."""

    QUEUE = "queue"
    """Waiting for the engine, a packet decoded."""
    DECODE_INPUT = "decode_input"
    """An encoded image to an array (cloud-only)."""
    DECODE = "decode"
    """Codec: packet to code bits."""
    TAIL = "tail"
    """One engine call of a batch."""
    WHOLE = "whole"
    EXIT_RULE = "exit_rule"
    REPLY = "reply"
    """Making and handing over one message."""


class SampleEnd(StrEnum):
    """Why a sample ended, as the cloud saw it."""

    CONFIDENT = "confident"
    MAX_TIMESTEPS = "max_timesteps"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    DISCONNECTED = "disconnected"
    NO_SLOT = "no_slot"
    BAD_PACKET = "bad_packet"
    CHECK_FAILED = "check_failed"
    WORKER_LOST = "worker_lost"
    ERROR = "error"


class Direction(StrEnum):
    """Which way bytes went, seen from the process that counts them."""

    SENT = "sent"
    RECEIVED = "received"


class Baseline(StrEnum):
    """What would have been sent without NeuCODEX."""

    FLOAT32_FEATURES = "float32_features"
    PACKED_FEATURES = "packed_features"
    RAW_INPUT = "raw_input"


class Site(StrEnum):
    """Where spikes are counted."""

    CODE = "code"


class Part(StrEnum):
    """Part of the network, as in the bundle; ``head`` includes the encoder."""

    HEAD = "head"
    TAIL = "tail"
    WHOLE = "whole"


class OperationKind(StrEnum):
    """Kind of counted operation, as in :class:`shared.model.bundle.Operations`."""

    MAC = "mac"
    AC = "ac"
    NEURON = "neuron"


class Reckoning(StrEnum):
    """Which part of the measured energy is reckoned to a sample."""

    GROSS = "gross"
    """All that was drawn."""
    NET_OF_IDLE = "net_of_idle"
    """What was drawn above the idle power."""


class Basis(StrEnum):
    """What a modelled figure rests on."""

    COUNTED = "counted"
    """Operations counted in this very sample."""
    CALIBRATED = "calibrated"
    """The bundle's means."""
    BYTES = "bytes"
    """Messages sent and received."""


class FallbackReason(StrEnum):
    """Why a sample left the co-inference path."""

    CONNECT = "connect"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"
    VERSION_MISMATCH = "version_mismatch"
    OVERLOAD = "overload"
    ERROR = "error"
    POLICY = "policy"
    """Nothing went wrong: the policy expects it to be the better way."""


class RetryReason(StrEnum):
    """Why the edge opened a stream again, or sent a sample again."""

    LINK_LOST = "link_lost"
    CONNECT = "connect"
    DRAINING = "draining"
    NO_SLOT = "no_slot"
    WORKER_LOST = "worker_lost"
    CHECK_FAILED = "check_failed"


class DropReason(StrEnum):
    """Why an input was not inferred."""

    QUEUE_FULL = "queue_full"
    INVALID = "invalid"
    SHUTDOWN = "shutdown"


class SourceOutcome(StrEnum):
    """What became of an input of a source."""

    ANSWERED = "answered"
    INVALID = "invalid"
    """It could not be read."""
    FAILED = "failed"
    """It has no answer."""
    DROPPED = "dropped"
    """It made room, or found none."""


class PacketFault(StrEnum):
    """Why a packet of a live event stream was not used."""

    LOST = "lost"
    """It never came."""
    LATE = "late"
    """It came after later ones, or twice."""
    INVALID = "invalid"


class ResultOutcome(StrEnum):
    """What became of a result of a source."""

    DELIVERED = "delivered"
    RETRIED = "retried"
    """Delivering it failed, and was tried again."""
    DROPPED = "dropped"
    """It could not be delivered, or too many waited."""


class ConnectionState(StrEnum):
    """State of the edge's link to the cloud."""

    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    TRANSIENT_FAILURE = "transient_failure"
    SHUTDOWN = "shutdown"


class BreakerState(StrEnum):
    """What the edge thinks of the cloud."""

    CLOSED = "closed"
    """It answers, or has not failed often enough."""
    OPEN = "open"
    """It is left alone."""
    PROBING = "probing"
    """One attempt is under way."""


class QueuePolicy(StrEnum):
    """What becomes of one sample more when the edge's queue is full."""

    REFUSE = "refuse"
    """Its caller is told so."""
    BLOCK = "block"
    """Its caller waits."""
    DROP_OLDEST = "drop_oldest"
    """The sample that has waited longest makes room."""


class Mode(StrEnum):
    """How samples are run: the reply mode, or no link at all."""

    STEP = "step"
    EXIT = "exit"
    LOCAL = "local"


class Estimate(StrEnum):
    """What the policy reckons with, per timestep; as in :mod:`edge_agent.observer`."""

    HEAD = "head"
    """Head, encoder and codec."""
    SERVICE = "service"
    TRANSPORT = "transport"
    """Round trip of a packet and its verdict, less service."""
    TAIL_LOCAL = "tail_local"


class RejectReason(StrEnum):
    """Why the cloud refused a request."""

    OVERLOAD = "overload"
    EDGE_STREAMS = "edge_streams"
    """One edge: more streams than it may have; so are the next two."""
    EDGE_SAMPLES = "edge_samples"
    EDGE_BYTES = "edge_bytes"
    AUTH = "auth"
    VERSION_MISMATCH = "version_mismatch"
    BAD_PAYLOAD = "bad_payload"
    SIZE_LIMIT = "size_limit"
    PROTOCOL = "protocol"
    IDLE = "idle"
    DRAINING = "draining"


class Rpc(StrEnum):
    """A streaming call of the cloud."""

    INFER = "infer"
    IMAGE_STREAM = "image_stream"
    FETCH = "fetch"


class GrpcType(StrEnum):
    """Kind of a gRPC method."""

    UNARY = "unary"
    CLIENT_STREAM = "client_stream"
    SERVER_STREAM = "server_stream"
    BIDI_STREAM = "bidi_stream"


EDGE_ERROR_STAGES = (*EdgeStage, "connect", "send", "receive", "local_api", "source")
CLOUD_ERROR_STAGES = (*CloudStage, "open", "stream", "settings", "image")
GRPC_CODES: Mapping[str, str] = {
    "OK": "OK",
    "CANCELLED": "Canceled",
    "UNKNOWN": "Unknown",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}
"""How the standard metrics of gRPC spell its status names."""
ERROR_CODES = (
    *(code.name for code in SampleCode),
    *(name for name in GRPC_CODES if name not in ("OK", "ALREADY_EXISTS")),
)
"""gRPC status names and the sample codes of the protocol."""


def _doubling(first: float, count: int) -> tuple[float, ...]:
    return tuple(first * 2**step for step in range(count))


STAGE_BUCKETS_SECONDS = _doubling(0.0001, 16)
"""0.1 ms to 3.3 s: one stage of one timestep."""
INFERENCE_BUCKETS_SECONDS = _doubling(0.0005, 16)
"""0.5 ms to 16 s: a whole sample."""
SIZE_BUCKETS_BYTES = _doubling(8, 14)
"""8 B to 64 KiB: one message."""
TIMESTEP_BUCKETS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32)
BATCH_BUCKETS = _doubling(1, 9)
RPC_BUCKETS_SECONDS = tuple(0.001 * 4**step for step in range(12))
"""1 ms to 70 min: a short call, or a stream that is kept open."""
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
MODELLED_BUCKETS_JOULES = _doubling(1e-6, 16)
"""1 uJ to 33 mJ: a sample's arithmetic."""
MEASURED_BUCKETS_JOULES = _doubling(0.001, 16)
"""1 mJ to 33 J: a sample on a whole board."""
FIRING_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)

Values = type[StrEnum] | tuple[str, ...]
_NAMES: Values = ()
"""Marks a label whose values are configured names instead of a fixed list."""
_MODEL: Mapping[str, Values] = {"model": _NAMES}


Labels = tuple[str, ...]
Tell = Callable[[float], object]
"""Takes in one amount or observation."""


class _Told(Collector):
    """A family whose series are told without a lock, see :mod:`shared.tallies`."""

    family: Callable[..., CounterMetricFamily | HistogramMetricFamily]

    def __init__(self, name: str, text: str, labels: Labels, registry: CollectorRegistry) -> None:
        self._new = partial(type(self).family, name, text, labels=labels)
        self._series: dict[Labels, Any] = {}
        registry.register(self)

    def labels(self, *labels: str) -> Any:
        """Return the series of these label values."""
        if labels not in self._series:
            self._series[labels] = self.start()
        return self._series[labels]

    def remove(self, *labels: str) -> None:
        """Show the series of these label values no more."""
        self._series.pop(labels, None)

    def describe(self) -> Iterable[Metric]:
        return [self._new()]

    def collect(self) -> Iterable[Metric]:
        family = self._new()
        for labels, series in tuple(self._series.items()):
            self.add(family, labels, series)
        return [family]

    def start(self) -> Tally | Distribution:
        """Return a new series."""
        raise NotImplementedError

    def add(self, family: Any, labels: Labels, series: Any) -> None:
        """Show a series."""
        raise NotImplementedError


class Counter(_Told):
    """A counter family."""

    family = CounterMetricFamily

    def start(self) -> Tally:
        """Return a new series."""
        return Tally()

    def add(self, family: CounterMetricFamily, labels: Labels, series: Tally) -> None:
        """Show a series."""
        family.add_metric(labels, series.total)


class Histogram(_Told):
    """A histogram family."""

    family = HistogramMetricFamily

    def __init__(
        self,
        name: str,
        text: str,
        labels: Labels,
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        super().__init__(name, text, labels, registry)
        self._buckets = buckets
        self._bounds = (*map(floatToGoString, buckets), "+Inf")

    def start(self) -> Distribution:
        """Return a new series."""
        return Distribution(self._buckets)

    def add(self, family: HistogramMetricFamily, labels: Labels, series: Distribution) -> None:
        """Show a series."""
        shown = list(zip(self._bounds, series.cumulative(), strict=True))
        family.add_metric(labels, shown, series.total)


@dataclass(frozen=True)
class Family:
    """One metric family: its kind, help text and labels.

    Attributes:
        kind: Counter, Gauge or Histogram.
        help: what is counted, in which unit.
        labels: label name to its allowed values, or to nothing for configured names.
        buckets: upper bounds, for a histogram.
    """

    kind: type[Counter] | type[Gauge] | type[Histogram]
    help: str
    labels: Mapping[str, Values] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    def build(self, name: str, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
        """Return the family registered under its full name."""
        described = name, self.help, tuple(self.labels)
        if self.kind is Histogram:
            return Histogram(*described, registry, self.buckets)
        if self.kind is Gauge:
            return Gauge(*described, registry=registry)
        return Counter(*described, registry)

    def empty(self, name: str) -> CounterMetricFamily | GaugeMetricFamily:
        """Return a counter or gauge without series, under its full name."""
        kind = GaugeMetricFamily if self.kind is Gauge else CounterMetricFamily
        return kind(name, self.help, labels=tuple(self.labels))


SHARED_FAMILIES: Mapping[str, Family] = {
    "synaptic_operations_total": Family(
        Counter,
        "Operations of the network parts computed here: accumulates (ac), multiply-accumulates "
        "(mac), membrane updates (neuron); counted in the sample, or calibrated: the bundle's "
        "mean.",
        {
            **_MODEL,
            "part": Part,
            "kind": OperationKind,
            "source": (Basis.COUNTED, Basis.CALIBRATED),
        },
    ),
    "modelled_energy_joules_total": Family(
        Counter,
        "Energy COMPUTED from operation counts (or, of the radio, bytes) and a table of prices, "
        "the source; idle power is left out. Never a measurement: a dense engine on a CPU does not "
        "spend it. The basis says where the counts come from.",
        {**_MODEL, "component": (*Part, RADIO), "source": ModelSource, "basis": Basis},
    ),
}

EDGE_FAMILIES: Mapping[str, Family] = {
    **SHARED_FAMILIES,
    "edge_inference_duration_seconds": Family(
        Histogram,
        "Wall time from sample accepted to final answer, on the edge's monotonic clock.",
        {**_MODEL, "placement": Placement, "exit_reason": ExitReason},
        INFERENCE_BUCKETS_SECONDS,
    ),
    "edge_stage_duration_seconds": Family(
        Histogram,
        "Wall time of one stage, of one timestep where the stage has timesteps; head includes "
        "the compression encoder.",
        {**_MODEL, "stage": EdgeStage},
        STAGE_BUCKETS_SECONDS,
    ),
    "edge_transport_seconds": Family(
        Histogram,
        "Send-to-verdict time of one packet minus the service time the verdict reports: both "
        "directions and both gRPC stacks. Not a one-way delay.",
        _MODEL,
        STAGE_BUCKETS_SECONDS,
    ),
    "edge_roundtrip_seconds": Family(
        Histogram,
        "Send-to-verdict time of one packet as seen by the edge.",
        _MODEL,
        STAGE_BUCKETS_SECONDS,
    ),
    "edge_payload_bytes_total": Family(
        Counter,
        "Code bits after the codec, in bytes, without packet header and check.",
        {**_MODEL, "direction": Direction},
    ),
    "edge_message_bytes_total": Family(
        Counter, "Serialised protobuf messages.", {**_MODEL, "direction": Direction}
    ),
    "edge_message_size_bytes": Family(
        Histogram,
        "Size of one serialised protobuf message.",
        {**_MODEL, "direction": Direction},
        SIZE_BUCKETS_BYTES,
    ),
    "edge_baseline_bytes_total": Family(
        Counter,
        "What the same work would have cost uncompressed; divide its rate by that of the "
        "payload for the compression ratio.",
        {**_MODEL, "baseline": Baseline},
    ),
    "edge_wasted_bytes_total": Family(
        Counter, "Payload of packets that began after the timestep of the answer.", _MODEL
    ),
    "edge_spikes_total": Family(Counter, "Spikes counted.", {**_MODEL, "site": Site}),
    "edge_neuron_updates_total": Family(
        Counter,
        "Neuron-timesteps evaluated, the denominator of the firing rate.",
        {**_MODEL, "site": Site},
    ),
    "edge_firing_ratio": Family(
        Histogram,
        "Spikes per neuron of one timestep (1 minus sparsity).",
        {**_MODEL, "site": Site},
        FIRING_BUCKETS,
    ),
    "edge_inferences_total": Family(
        Counter,
        "Samples finished, answered or not.",
        {**_MODEL, "placement": Placement, "exit_reason": ExitReason},
    ),
    "edge_timesteps_used": Family(
        Histogram,
        "Timesteps behind the answer of one sample.",
        {**_MODEL, "exit_reason": ExitReason},
        TIMESTEP_BUCKETS,
    ),
    "edge_timesteps_total": Family(
        Counter,
        "Timesteps used, skipped (saved by an early exit) and wasted (computed and sent, but "
        "answered after the exit).",
        {**_MODEL, "outcome": ("used", "skipped", "wasted")},
    ),
    "edge_exit_confidence_ratio": Family(
        Histogram, "Confidence of the answer.", _MODEL, CONFIDENCE_BUCKETS
    ),
    "edge_exit_threshold_ratio": Family(
        Gauge, "Alpha in force; the lowest, where every timestep has its own.", _MODEL
    ),
    "edge_fallbacks_total": Family(
        Counter,
        "Samples moved off the co-inference path.",
        {**_MODEL, "reason": FallbackReason},
    ),
    "edge_retries_total": Family(Counter, "Streams opened again.", {"reason": RetryReason}),
    "edge_replays_total": Family(
        Counter, "Samples sent again from their first timestep.", {"reason": RetryReason}
    ),
    "edge_check_failures_total": Family(
        Counter, "Samples whose check failed in the cloud: bits changed on the way."
    ),
    "edge_modelled_inference_energy_joules": Family(
        Histogram,
        "Energy COMPUTED for one answered sample from the operations of the network parts that "
        "this device ran for it, those computed in vain included; the radio is left out. Never a "
        "measurement. Nothing where no part ran here.",
        {**_MODEL, "placement": Placement, "source": ModelSource},
        MODELLED_BUCKETS_JOULES,
    ),
    "edge_measured_inference_energy_joules": Family(
        Histogram,
        "Energy read from a sensor per answered sample: the mean of a stretch of time, told once "
        "for each of its samples, because sensors are too slow for a single one. gross: all that "
        "was drawn, idle time between samples included; net_of_idle: less the idle power. Only of "
        "stretches long enough for the sensor, with samples of one placement and no other.",
        {**_MODEL, "placement": Placement, "kind": Reckoning, "source": Source},
        MEASURED_BUCKETS_JOULES,
    ),
    "edge_errors_total": Family(
        Counter,
        "Errors; code is a gRPC status name or a sample code of the protocol.",
        {"stage": EDGE_ERROR_STAGES, "code": ERROR_CODES},
    ),
    "edge_samples_dropped_total": Family(
        Counter, "Inputs that were not inferred.", {"reason": DropReason}
    ),
    "edge_queue_depth": Family(Gauge, "Samples waiting on the edge."),
    "edge_queue_full_total": Family(
        Counter,
        "Samples that found the queue full, by what was done about it.",
        {"policy": QueuePolicy},
    ),
    "edge_replay_deviations_total": Family(
        Counter,
        "Verdicts on samples sent again that differ from those before: in class, or by 1e-4 or "
        "more in confidence.",
    ),
    "edge_breaker_state": Family(
        Gauge, "1 for what is thought of the cloud now.", {"state": BreakerState}
    ),
    "edge_connection_state": Family(
        Gauge, "1 for the present state of the link to the cloud.", {"state": ConnectionState}
    ),
    "edge_peer_clock_offset_seconds": Family(
        Gauge,
        "The cloud's wall clock minus this device's, of the shortest of the latest round trips on "
        "which the cloud told the time.",
        {"peer": _NAMES},
    ),
    "edge_peer_clock_offset_error_seconds": Family(
        Gauge,
        "The most by which that offset can be wrong when it was measured: half that round trip "
        "without service. How it divides between the directions cannot be known.",
        {"peer": _NAMES},
    ),
    "edge_estimate_seconds": Family(
        Gauge,
        "Smoothed measurement that the policy reckons with, per timestep; transport is a round "
        "trip less service.",
        {**_MODEL, "quantity": Estimate},
    ),
    "edge_expected_latency_seconds": Family(
        Gauge, "Mean time of a sample that the policy expects of the setting in use.", _MODEL
    ),
    "edge_setting_mode": Family(
        Gauge, "1 for the way in which samples are run now.", {**_MODEL, "mode": Mode}
    ),
    "edge_setting_window_timesteps": Family(
        Gauge, "Window in use; it has no effect in mode exit.", _MODEL
    ),
    "edge_setting_packet_timesteps": Family(Gauge, "Most timesteps in one packet.", _MODEL),
    "edge_source_inputs_total": Family(
        Counter,
        "Inputs of a configured source, by what became of them.",
        {"source": _NAMES, "outcome": SourceOutcome},
    ),
    "edge_source_age_seconds": Family(
        Histogram,
        "From an input's arrival at its source (of events: from its first packet) to its result.",
        {"source": _NAMES},
        INFERENCE_BUCKETS_SECONDS,
    ),
    "edge_source_packet_faults_total": Family(
        Counter,
        "Packets of a live event stream that were not used.",
        {"source": _NAMES, "reason": PacketFault},
    ),
    "edge_results_total": Family(
        Counter,
        "Results of a configured source, by what became of them.",
        {"source": _NAMES, "outcome": ResultOutcome},
    ),
    "edge_setting_changes_total": Family(Counter, "Changes of the setting by the policy.", _MODEL),
}

CLOUD_FAMILIES: Mapping[str, Family] = {
    **SHARED_FAMILIES,
    "cloud_service_duration_seconds": Family(
        Histogram,
        "Time from a packet's arrival at the handler to its verdict being ready.",
        _MODEL,
        STAGE_BUCKETS_SECONDS,
    ),
    "cloud_stage_duration_seconds": Family(
        Histogram,
        "Wall time of one stage; tail is one engine call of a whole batch.",
        {**_MODEL, "stage": CloudStage},
        STAGE_BUCKETS_SECONDS,
    ),
    "cloud_payload_bytes_total": Family(
        Counter,
        "Code bits after the codec, in bytes, without packet header and check.",
        {**_MODEL, "direction": Direction},
    ),
    "cloud_message_bytes_total": Family(
        Counter, "Serialised protobuf messages.", {**_MODEL, "direction": Direction}
    ),
    "cloud_streams": Family(Gauge, "Open streams.", {"rpc": Rpc}),
    "cloud_stream_rotations_total": Family(
        Counter, "Streams ended between two samples because of their age."
    ),
    "cloud_samples_total": Family(Counter, "Samples ended.", {**_MODEL, "reason": SampleEnd}),
    "cloud_slots_in_use": Family(Gauge, "Samples that hold membrane state.", _MODEL),
    "cloud_slots_limit": Family(Gauge, "Samples that can hold membrane state.", _MODEL),
    "cloud_session_state_bytes": Family(Gauge, "Membrane state of the slots in use.", _MODEL),
    "cloud_queue_depth": Family(Gauge, "Timesteps waiting for the engine.", _MODEL),
    "cloud_batch_size": Family(
        Histogram, "Timesteps, each of another sample, in one engine call.", _MODEL, BATCH_BUCKETS
    ),
    "cloud_timesteps_total": Family(Counter, "Timesteps computed by the engine.", _MODEL),
    "cloud_wasted_timesteps_total": Family(
        Counter, "Timesteps received and not needed: their sample ended without them.", _MODEL
    ),
    "cloud_wasted_bytes_total": Family(
        Counter, "Payload of packets of which no timestep was needed.", _MODEL
    ),
    "cloud_engine_restarts_total": Family(
        Counter, "Engines loaded anew after a call that failed or did not end.", _MODEL
    ),
    "cloud_check_failures_total": Family(
        Counter, "Packets whose check differed from that of their decoded bits.", _MODEL
    ),
    "cloud_errors_total": Family(
        Counter,
        "Errors; code is a gRPC status name or a sample code of the protocol.",
        {"stage": CLOUD_ERROR_STAGES, "code": ERROR_CODES},
    ),
    "cloud_rejected_total": Family(Counter, "Requests refused.", {"reason": RejectReason}),
}

WIRE_FAMILIES: Mapping[str, Family] = {
    "wire_bytes_total": Family(
        Counter,
        "IP and TCP headers and payload, retransmissions and pure ACKs included, no Ethernet; "
        "header sizes are computed from the segment counts.",
        {"peer": _NAMES, "direction": Direction, "source": ("tcp_info",)},
    ),
    "retransmitted_bytes_total": Family(Counter, "TCP payload sent again.", {"peer": _NAMES}),
    "tcp_min_rtt_seconds": Family(
        Gauge,
        "The kernel's minimum round trip of the present connection (tcpi_min_rtt); only to the "
        "first hop where a proxy stands between.",
        {"peer": _NAMES},
    ),
    "link_rate_bytes_per_second": Family(
        Gauge,
        "Rate at which the link took what was sent (tcpi_delivery_rate); absent where less was "
        "sent than would have shown it.",
        {"peer": _NAMES},
    ),
}
"""Of the kernel's counts, behind the prefix of either side."""

MEASURED_FAMILIES: Mapping[str, Family] = {
    "measured_energy_joules_total": Family(
        Counter,
        "Energy read from a sensor; the component total contains the others of its source. Absent, "
        "never 0, where there is no sensor.",
        {"component": Component, "source": Source},
    ),
    "measured_power_watts": Family(
        Gauge,
        "Latest power; absent once the sensor has fallen silent.",
        {"component": Component, "source": Source},
    ),
    "energy_unsampled_seconds_total": Family(
        Counter, "Time in gaps between readings, without energy counted.", {"source": Source}
    ),
    "energy_sensor_errors_total": Family(
        Counter, "Readings that failed.", {"source": Source, "reason": SensorReason}
    ),
}
"""Of the power sensors, the same on both sides."""

IDLE_FAMILIES: Mapping[str, Family] = {
    "idle_power_watts": Family(
        Gauge,
        "Mean power in the latest stretch of time in which this daemon had nothing to do: what net "
        "energy is reckoned with. Absent until there has been one; of a source's whole (total, "
        "or gpu where it has none).",
        {"component": (Component.TOTAL, Component.GPU), "source": Source},
    ),
}
"""Told by whoever watches a daemon's idle time, the same on both sides."""

RPC_LABELS: Mapping[str, Values] = {
    "grpc_type": GrpcType,
    "grpc_service": _NAMES,
    "grpc_method": _NAMES,
}


def _rpc_families(side: str) -> Mapping[str, Family]:
    return {
        "started_total": Family(Counter, f"RPCs started on the {side}.", RPC_LABELS),
        "handled_total": Family(
            Counter,
            f"RPCs completed on the {side}, however they ended.",
            {**RPC_LABELS, "grpc_code": tuple(GRPC_CODES.values())},
        ),
        "msg_received_total": Family(Counter, f"Messages received by the {side}.", RPC_LABELS),
        "msg_sent_total": Family(Counter, f"Messages sent by the {side}.", RPC_LABELS),
        "handling_seconds": Family(
            Histogram,
            f"Time from start to completion of RPCs on the {side}. Of a bidi_stream that is the "
            "life of the whole stream, not the time of an answer.",
            RPC_LABELS,
            RPC_BUCKETS_SECONDS,
        ),
    }


GRPC_FAMILIES: Mapping[str, Mapping[str, Family]] = {
    f"grpc_{side}_": _rpc_families(side) for side in ("server", "client")
}
"""By prefix. Names, labels and codes are those of go-grpc-prometheus, which dashboards expect."""

INFO_FAMILIES: Mapping[str, tuple[str, str]] = {
    "build": ("component", "The running program: version, python, protocol."),
    "codec": ("component", "Which implementation of the context codecs runs: c or python."),
    "model": (
        "model",
        "A model in use: version, digest, backbone, split, timesteps, code_shape.",
    ),
}
"""Facts as labels of a series that is always 1: its one label, help text."""

Series = Tally | Gauge | Distribution
Child = TypeVar("Child", Tally, Gauge, Distribution)


class _Families:
    """The families of one table, with every label combination resolved once."""

    def __init__(
        self,
        registry: CollectorRegistry,
        table: Mapping[str, Family],
        prefix: str = f"{NAMESPACE}_",
    ) -> None:
        self._table = table
        self._parents = {
            name: family.build(f"{prefix}{name}", registry) for name, family in table.items()
        }
        self._children: dict[Labels, Series] = {}
        self._names: set[str] = set()

    def count(self, name: str, *labels: str, amount: float = 1) -> None:
        """Add to a counter."""
        self._child(Tally, name, labels).tell(amount)

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Add one observation to a histogram."""
        self._child(Distribution, name, labels).tell(value)

    def counter(self, name: str, *labels: str) -> Tell:
        """Return what adds to a counter, resolved once for one that is told all the time."""
        return self._child(Tally, name, labels).tell

    def observer(self, name: str, *labels: str) -> Tell:
        """Return what adds observations to a histogram, resolved once."""
        return self._child(Distribution, name, labels).tell

    def gauge(self, name: str, *labels: str) -> Gauge:
        """Return a gauge."""
        return self._child(Gauge, name, labels)

    def start(self, model: str) -> None:
        """Show the counters of a model that have few label values, with value 0."""
        for name, family in self._table.items():
            named = {label for label, allowed in family.labels.items() if not allowed}
            choices = [allowed or (model,) for allowed in family.labels.values()]
            few = named <= set(_MODEL) and math.prod(map(len, choices)) <= MAX_SHOWN
            if family.kind is Counter and few:
                for labels in itertools.product(*choices):
                    self.count(name, *labels, amount=0)

    def forget(self, model: str) -> None:
        """Remove the series of a model, and make room for another one's name."""
        self._names.discard(model)
        for name, *labels in tuple(self._children):
            names = zip(self._table[name].labels, labels, strict=True)
            if ("model", model) in names:
                del self._children[(name, *labels)]
                self._parents[name].remove(*labels)

    def _child(self, kind: type[Child], name: str, labels: Labels) -> Child:
        child = self._children.get((name, *labels))
        if child is None:
            child = self._resolve(name, labels)
        if not isinstance(child, kind):
            raise ValueError(f"expected {name} to be told otherwise, it is a {type(child)}")
        return child

    def _resolve(self, name: str, labels: Labels) -> Series:
        pairs = zip(self._table[name].labels.values(), labels, strict=True)
        clipped = tuple(self._clip(allowed, value) for allowed, value in pairs)
        parent = self._parents[name]
        child: Series
        if isinstance(parent, Gauge):
            child = parent.labels(*clipped) if clipped else parent
        else:
            child = parent.labels(*clipped)
        if clipped == labels:
            self._children[(name, *labels)] = child
        return child  # Not remembered when clipped: the number of unknown values has no bound.

    def _clip(self, allowed: Values, value: str) -> str:
        if allowed:
            return value if value in tuple(allowed) else OTHER
        if value not in self._names and len(self._names) >= MAX_NAMES:
            return OTHER
        self._names.add(value)
        return value


Key = TypeVar("Key")
Resolved = TypeVar("Resolved")


class _Once(dict[Key, Resolved]):
    """Series by a label's value, each resolved when it is first told."""

    def __init__(self, resolve: Callable[[Key], Resolved]) -> None:
        super().__init__()
        self._resolve = resolve

    def __missing__(self, key: Key) -> Resolved:
        resolved = self[key] = self._resolve(key)
        return resolved


class RpcTally:
    """What the calls of one gRPC method are told to.

    Attributes:
        started, received, sent: take in 1 for each call begun, message received and message sent.
    """

    def __init__(self, families: _Families, labels: Labels) -> None:
        self.started = families.counter("started_total", *labels)
        self.received = families.counter("msg_received_total", *labels)
        self.sent = families.counter("msg_sent_total", *labels)
        self._seconds = families.observer("handling_seconds", *labels)
        self._families = families
        self._labels = labels

    def handled(self, code: str, seconds: float) -> None:
        """A call ended with this status, by its name in gRPC, so long after it began."""
        self._families.count("handled_total", *self._labels, GRPC_CODES.get(code, OTHER))
        self._seconds(seconds)


class RpcMetrics:
    """The standard metrics of one side of gRPC calls.

    Args:
        registry: of this daemon.
        side: ``server`` or ``client``.
    """

    def __init__(self, registry: CollectorRegistry, side: str) -> None:
        prefix = f"grpc_{side}_"
        self._families = _Families(registry, GRPC_FAMILIES[prefix], prefix)
        self._tallies: dict[str, RpcTally] = {}

    def method(self, path: str, kind: GrpcType) -> RpcTally:
        """Return what is told of one method, ``/SERVICE/METHOD``; only of methods that exist."""
        if path not in self._tallies:
            service, _, name = path.removeprefix("/").partition("/")
            self._tallies[path] = RpcTally(self._families, (kind, service, name))
        return self._tallies[path]


class WireSource(Protocol):
    """What can tell the bytes of this process's connections to one peer."""

    def poll(self) -> Totals | None:
        """Return totals since the start, or nothing where the system does not tell."""


Shown = Iterable[tuple[str, Labels, float]]
"""Name of a family, values of its labels, value."""


class _ReadAtScrape(Collector):
    """Families that somebody else counts; read at every scrape, so that none is behind."""

    def __init__(self, table: Mapping[str, Family], prefix: str, read: Callable[[], Shown]) -> None:
        self._table = table
        self._prefix = prefix
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return map(self._empty, self._table)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Any] = {}
        for name, labels, value in self._read():
            if name not in families:
                families[name] = self._empty(name)
            families[name].add_metric(labels, value)
        return families.values()

    def _empty(self, name: str) -> Metric:
        return self._table[name].empty(f"{self._prefix}{name}")


def _wire(source: WireSource, peer: str) -> Shown:
    totals = source.poll()
    if totals is None:
        return
    yield "wire_bytes_total", (peer, Direction.SENT, "tcp_info"), totals.sent_bytes
    yield "wire_bytes_total", (peer, Direction.RECEIVED, "tcp_info"), totals.received_bytes
    yield "retransmitted_bytes_total", (peer,), totals.retransmitted_bytes
    if totals.min_rtt_seconds is not None:
        yield "tcp_min_rtt_seconds", (peer,), totals.min_rtt_seconds
    if totals.link_bytes_per_second is not None:
        yield "link_rate_bytes_per_second", (peer,), totals.link_bytes_per_second


def _measured(meter: Meter) -> Shown:
    for sampler in meter.samplers:
        source, totals = sampler.source, sampler.totals()
        for component, total in totals.items():
            yield "measured_energy_joules_total", (component, source), total.joules
            if total.watts is not None:
                yield "measured_power_watts", (component, source), total.watts
        gaps = [total.unsampled_seconds for total in totals.values()]
        yield "energy_unsampled_seconds_total", (source,), max(gaps, default=0.0)
        errors = sampler.errors()
        for reason in SensorReason:
            yield "energy_sensor_errors_total", (source, reason), errors.get(reason, 0)


class _SideMetrics:
    """What both sides tell."""

    def __init__(
        self,
        registry: CollectorRegistry,
        side: str,
        table: Mapping[str, Family],
        energy: EnergyModel | None,
    ) -> None:
        self._registry = registry
        self._side = side
        self._energy = energy or default_model()
        self._families = _Families(registry, table)
        self._idle = _Families(registry, IDLE_FAMILIES)
        self.rpc_server = RpcMetrics(registry, "server")
        self._infos = {
            name: Info(f"{NAMESPACE}_{name}", text, (label,), registry=registry)
            for name, (label, text) in INFO_FAMILIES.items()
        }
        build = {
            "version": _version(),
            "python": platform.python_version(),
            "protocol": str(PROTOCOL_VERSION),
        }
        self._infos["build"].labels(side).info(build)
        self._infos["codec"].labels(side).info({"implementation": native.IMPLEMENTATION})

    def watch_wire(self, source: WireSource, peer: str) -> None:
        """Export the bytes on the connections to ``peer``, a configured name, read at scrapes."""
        self._registry.register(
            _ReadAtScrape(WIRE_FAMILIES, f"{NAMESPACE}_{self._side}_", partial(_wire, source, peer))
        )

    def watch_energy(self, meter: Meter) -> None:
        """Export what a meter's sensors have measured, read at scrapes; no sensor, no series."""
        self._registry.register(
            _ReadAtScrape(MEASURED_FAMILIES, f"{NAMESPACE}_", partial(_measured, meter))
        )

    def idle(self, source: Source, component: Component, watts: float) -> None:
        """The machine drew so much while this daemon had nothing to do."""
        self._idle.gauge("idle_power_watts", component, source).set(watts)

    def _describe_model(self, model: str, version: str, digest: str, spec: NetworkSpec) -> None:
        self._infos["model"].labels(model).info(
            {
                "version": version,
                "digest": digest,
                "backbone": spec.backbone_name,
                "split": spec.bottleneck.split,
                "timesteps": str(spec.timesteps),
                "code_shape": "x".join(map(str, spec.code_shape)),
            }
        )

    def _start(self, model: str) -> None:
        """Show the counters of a model that have few label values, with value 0."""
        self._families.start(model)
        for part in Part:
            self._operations(model, part, Operations(mac=0, ac=0, neuron=0))(0)

    def _operations(
        self, model: str, part: str, operations: Operations, basis: Basis = Basis.CALIBRATED
    ) -> Callable[[float], float]:
        """Return what takes in timesteps of a part and returns their modelled energy in joules."""
        energy, families = self._energy, self._families
        counters = [
            (
                families.counter("synaptic_operations_total", model, part, kind, basis),
                getattr(operations, kind),
            )
            for kind in OperationKind
        ]
        labels = (model, part, energy.source, basis)
        counter = families.counter("modelled_energy_joules_total", *labels)
        counters.append((counter, joules := energy.joules(operations, 1)))

        def tell(timesteps: float) -> float:
            for count, per_timestep in counters:
                count(per_timestep * timesteps)
            return joules * timesteps

        return tell


class EdgeMetrics(_SideMetrics):
    """What the edge tells about one model.

    Args:
        registry: a fresh registry of this daemon.
        model: name of the bundle.
        energy: prices operations; None for the shipped prices.
    """

    def __init__(
        self, registry: CollectorRegistry, *, model: str, energy: EnergyModel | None = None
    ) -> None:
        super().__init__(registry, "edge", EDGE_FAMILIES, energy)
        self.rpc_client = RpcMetrics(registry, "client")
        self._tell_of(model)
        self.connection(ConnectionState.IDLE)

    def of_model(self, model: str) -> EdgeMetrics:
        """Return what tells about another model into the same registry."""
        if model == self._model:
            return self
        other = copy.copy(self)
        other._tell_of(model)
        return other

    def _tell_of(self, model: str) -> None:
        """Resolve the series of a model, and begin them."""
        self._model = model
        counter, observer = self._families.counter, self._families.observer
        self._stages = _Once[EdgeStage, Tell](
            lambda stage: observer("edge_stage_duration_seconds", model, stage)
        )
        self._times = _Once[str, Tell](lambda name: observer(name, model))
        self._payloads = _Once[Direction, Tell](
            lambda direction: counter("edge_payload_bytes_total", model, direction)
        )
        self._messages = _Once[Direction, tuple[Tell, Tell]](
            lambda direction: (
                counter("edge_message_bytes_total", model, direction),
                observer("edge_message_size_bytes", model, direction),
            )
        )
        self._sites = _Once[Site, tuple[Tell, Tell, Tell]](
            lambda site: (
                counter("edge_spikes_total", model, site),
                counter("edge_neuron_updates_total", model, site),
                observer("edge_firing_ratio", model, site),
            )
        )
        self._calibrated: dict[Part, tuple[Operations, Callable[[float], float]]] = {}
        """The bundle's means, told for nearly every timestep."""
        self._start(model)

    def describe_model(self, version: str, digest: str, spec: NetworkSpec) -> None:
        """Publish which network runs."""
        self._describe_model(self._model, version, digest, spec)

    def stage(self, stage: EdgeStage, seconds: float) -> None:
        """One stage took so long."""
        self._stages[stage](seconds)

    def roundtrip(self, seconds: float, service_seconds: float) -> None:
        """A verdict came ``seconds`` after its packet was sent; the cloud spent part of it."""
        self._times["edge_roundtrip_seconds"](seconds)
        self._times["edge_transport_seconds"](max(0.0, seconds - service_seconds))

    def payload(self, payload_bytes: int, direction: Direction = Direction.SENT) -> None:
        """Code bits of one packet were handed to the link."""
        self._payloads[direction](payload_bytes)

    def message(self, message_bytes: int, direction: Direction) -> None:
        """A serialised message was sent or received."""
        count, observe = self._messages[direction]
        count(message_bytes)
        observe(message_bytes)
        if self._energy.radio is not None:
            joules = self._energy.radio.joules(message_bytes, sent=direction is Direction.SENT)
            priced = (self._model, RADIO, ModelSource.RADIO, Basis.BYTES)
            self._families.count("modelled_energy_joules_total", *priced, amount=joules)

    def baseline(self, baseline: Baseline, baseline_bytes: int) -> None:
        """The same work would have cost so many bytes."""
        self._families.count(
            "edge_baseline_bytes_total", self._model, baseline, amount=baseline_bytes
        )

    def wasted(self, timesteps: int, payload_bytes: int) -> None:
        """Timesteps had been sent when their sample was already decided."""
        self._families.count("edge_timesteps_total", self._model, "wasted", amount=timesteps)
        self._families.count("edge_wasted_bytes_total", self._model, amount=payload_bytes)

    def spikes(self, code: NDArray[np.uint8], site: Site = Site.CODE) -> None:
        """The neurons of one timestep fired where this is 1."""
        spikes, neurons = int(np.count_nonzero(code)), code.size
        count_spikes, count_neurons, observe = self._sites[site]
        count_spikes(spikes)
        count_neurons(neurons)
        observe(spikes / neurons)

    def operations(
        self,
        part: Part,
        operations: Operations,
        timesteps: float,
        basis: Basis = Basis.CALIBRATED,
    ) -> float:
        """A part ran for so many timesteps of one sample; return their modelled joules."""
        if basis is not Basis.CALIBRATED:
            return self._operations(self._model, part, operations, basis)(timesteps)
        known = self._calibrated.get(part)
        if known is None or known[0] is not operations:
            tell = self._operations(self._model, part, operations)
            known = self._calibrated[part] = (operations, tell)
        return known[1](timesteps)

    def answered(
        self,
        placement: Placement,
        exit_reason: ExitReason,
        duration_seconds: float,
        confidence: float,
        timesteps_used: int,
        timesteps_skipped: int,
    ) -> None:
        """A sample got its answer."""
        self._ended(placement, exit_reason, duration_seconds)
        families, model = self._families, self._model
        families.observe("edge_exit_confidence_ratio", model, value=confidence)
        families.observe("edge_timesteps_used", model, exit_reason, value=timesteps_used)
        families.count("edge_timesteps_total", model, "used", amount=timesteps_used)
        families.count("edge_timesteps_total", model, "skipped", amount=timesteps_skipped)

    def failed(
        self, placement: Placement, exit_reason: ExitReason, duration_seconds: float
    ) -> None:
        """A sample ended without an answer."""
        self._ended(placement, exit_reason, duration_seconds)

    def modelled_energy(self, placement: Placement, joules: float) -> None:
        """The parts of the network that ran here for an answered sample cost so much."""
        labels = (self._model, placement, self._energy.source)
        self._families.observe("edge_modelled_inference_energy_joules", *labels, value=joules)

    def measured_energy(
        self,
        placement: Placement,
        reckoning: Reckoning,
        source: Source,
        joules: float,
        samples: int,
    ) -> None:
        """So many samples in a row drew so much each."""
        labels = (self._model, placement, reckoning, source)
        tell = self._families.observer("edge_measured_inference_energy_joules", *labels)
        for _ in range(samples):
            tell(joules)

    def threshold(self, alphas: Sequence[float]) -> None:
        """Alpha is now so; an empty list (T = 1) shows as NaN."""
        gauge = self._families.gauge("edge_exit_threshold_ratio", self._model)
        gauge.set(min(alphas, default=math.nan))

    def fallback(self, reason: FallbackReason) -> None:
        """A sample left the co-inference path."""
        self._families.count("edge_fallbacks_total", self._model, reason)

    def retry(self, reason: RetryReason) -> None:
        """The stream is opened again."""
        self._families.count("edge_retries_total", reason)

    def replay(self, reason: RetryReason) -> None:
        """A sample is sent again from its first timestep."""
        self._families.count("edge_replays_total", reason)

    def check_failed(self) -> None:
        """The cloud found a sample's check wrong."""
        self._families.count("edge_check_failures_total")

    def error(self, stage: str, code: str) -> None:
        """Something went wrong in ``stage`` (:data:`EDGE_ERROR_STAGES`)."""
        self._families.count("edge_errors_total", stage, code)

    def dropped(self, reason: DropReason) -> None:
        """An input is not inferred."""
        self._families.count("edge_samples_dropped_total", reason)

    def queue_depth(self, samples: int) -> None:
        """So many samples wait now."""
        self._families.gauge("edge_queue_depth").set(samples)

    def queue_full(self, policy: QueuePolicy) -> None:
        """A sample found the queue full."""
        self._families.count("edge_queue_full_total", policy)

    def replay_deviated(self) -> None:
        """A verdict on a sample sent again differs from the one before."""
        self._families.count("edge_replay_deviations_total")

    def breaker(self, state: BreakerState) -> None:
        """The cloud is now thought of like this."""
        for each in BreakerState:
            self._families.gauge("edge_breaker_state", each).set(each == state)

    def connection(self, state: ConnectionState) -> None:
        """The link to the cloud is now in ``state``."""
        for each in ConnectionState:
            self._families.gauge("edge_connection_state", each).set(each == state)

    def estimate(self, quantity: Estimate, seconds: float) -> None:
        """The policy reckons with this."""
        self._families.gauge("edge_estimate_seconds", self._model, quantity).set(seconds)

    def peer_clock(self, peer: str, offset_seconds: float, error_seconds: float) -> None:
        """The cloud's clock is so far ahead, give or take the error."""
        gauge = self._families.gauge
        gauge("edge_peer_clock_offset_seconds", peer).set(offset_seconds)
        gauge("edge_peer_clock_offset_error_seconds", peer).set(error_seconds)

    def expected_latency(self, seconds: float) -> None:
        """The policy expects this of the setting in use."""
        self._families.gauge("edge_expected_latency_seconds", self._model).set(seconds)

    def setting(self, mode: Mode, window: int, steps_per_packet: int) -> None:
        """Samples are run this way from now on."""
        families, model = self._families, self._model
        for each in Mode:
            families.gauge("edge_setting_mode", model, each).set(each == mode)
        families.gauge("edge_setting_window_timesteps", model).set(window)
        families.gauge("edge_setting_packet_timesteps", model).set(steps_per_packet)

    def start_source(self, source: str) -> None:
        """Show a source's counters, with value 0."""
        for input_outcome in SourceOutcome:
            self._families.count("edge_source_inputs_total", source, input_outcome, amount=0)
        for result_outcome in ResultOutcome:
            self._families.count("edge_results_total", source, result_outcome, amount=0)

    def source_input(self, source: str, outcome: SourceOutcome) -> None:
        """Something became of an input of a source."""
        self._families.count("edge_source_inputs_total", source, outcome)

    def source_age(self, source: str, seconds: float) -> None:
        """The result of an input was there so long after the input."""
        self._families.observe("edge_source_age_seconds", source, value=seconds)

    def source_packets(self, source: str, fault: PacketFault, packets: int) -> None:
        """So many packets of a live event stream were not used."""
        self._families.count("edge_source_packet_faults_total", source, fault, amount=packets)

    def source_result(self, source: str, outcome: ResultOutcome) -> None:
        """Something became of a result of a source."""
        self._families.count("edge_results_total", source, outcome)

    def setting_changed(self) -> None:
        """The policy has chosen another setting."""
        self._families.count("edge_setting_changes_total", self._model)

    def _ended(self, placement: str, exit_reason: str, duration_seconds: float) -> None:
        labels = (self._model, placement, exit_reason)
        self._families.count("edge_inferences_total", *labels)
        self._families.observe("edge_inference_duration_seconds", *labels, value=duration_seconds)


class CloudMetrics(_SideMetrics):
    """What the cloud tells about all its models.

    What happens with every timestep is told through functions that these methods return, with the
    labels resolved once: with many streams, telling is a good part of the server's work.

    Args:
        registry: a fresh registry of this daemon.
        energy: prices operations; None for the shipped prices.
    """

    def __init__(self, registry: CollectorRegistry, energy: EnergyModel | None = None) -> None:
        super().__init__(registry, "cloud", CLOUD_FAMILIES, energy)

    def model_loaded(
        self, model: str, version: str, digest: str, spec: NetworkSpec, slots_limit: int
    ) -> None:
        """A model is ready to serve, with room for so many samples at once."""
        self._describe_model(model, version, digest, spec)
        self._start(model)
        self._families.gauge("cloud_slots_limit", model).set(slots_limit)

    def model_unloaded(self, model: str) -> None:
        """A model is served no more: it has no series any more."""
        self._infos["model"].remove(model)
        self._families.forget(model)

    def watch(
        self,
        model: str,
        *,
        slots_in_use: Callable[[], int],
        slot_bytes: int,
        queue_depth: Callable[[], int],
    ) -> None:
        """Show, as they are at every scrape, slots of so many bytes, and timesteps that wait."""
        self._families.gauge("cloud_slots_in_use", model).set_function(slots_in_use)
        self._families.gauge("cloud_session_state_bytes", model).set_function(
            lambda: slots_in_use() * slot_bytes
        )
        self._families.gauge("cloud_queue_depth", model).set_function(queue_depth)

    def service(self, model: str) -> Tell:
        """Return what takes in the seconds from each packet's arrival to its verdict."""
        return self._families.observer("cloud_service_duration_seconds", model)

    def stage(self, model: str, stage: CloudStage) -> Tell:
        """Return what takes in the seconds of one stage."""
        return self._families.observer("cloud_stage_duration_seconds", model, stage)

    def payload(self, model: str, direction: Direction = Direction.RECEIVED) -> Tell:
        """Return what takes in the bytes of code bits in each packet."""
        return self._families.counter("cloud_payload_bytes_total", model, direction)

    def message(self, model: str, direction: Direction) -> Tell:
        """Return what takes in the bytes of each serialised message."""
        return self._families.counter("cloud_message_bytes_total", model, direction)

    def stream_opened(self, rpc: Rpc) -> None:
        """A stream began."""
        self._families.gauge("cloud_streams", rpc).inc()

    def stream_closed(self, rpc: Rpc) -> None:
        """A stream ended."""
        self._families.gauge("cloud_streams", rpc).dec()

    def stream_rotated(self) -> None:
        """A stream is ended because of its age."""
        self._families.count("cloud_stream_rotations_total")

    def sample_ended(self, model: str, reason: SampleEnd) -> None:
        """A sample ended, answered or not."""
        self._families.count("cloud_samples_total", model, reason)

    def batch(self, model: str) -> Tell:
        """Return what takes in the size of each batch: one timestep of so many samples."""
        observe = self._families.observer("cloud_batch_size", model)
        count = self._families.counter("cloud_timesteps_total", model)

        def tell(size: float) -> None:
            observe(size)
            count(size)

        return tell

    def operations(self, model: str, part: Part, operations: Operations) -> Tell:
        """Return what takes in the timesteps of a part; modelled energy follows from them."""
        return self._operations(model, part, operations)

    def wasted(self, model: str, timesteps: int, payload_bytes: int) -> None:
        """A packet came for a sample that had already ended."""
        self._families.count("cloud_wasted_timesteps_total", model, amount=timesteps)
        self._families.count("cloud_wasted_bytes_total", model, amount=payload_bytes)

    def engine_restarted(self, model: str) -> None:
        """A model's engine was loaded anew."""
        self._families.count("cloud_engine_restarts_total", model)

    def check_failed(self, model: str) -> None:
        """A packet's check differed from that of its bits."""
        self._families.count("cloud_check_failures_total", model)

    def error(self, stage: str, code: str) -> None:
        """Something went wrong in ``stage`` (:data:`CLOUD_ERROR_STAGES`)."""
        self._families.count("cloud_errors_total", stage, code)

    def rejected(self, reason: RejectReason) -> None:
        """A request was refused."""
        self._families.count("cloud_rejected_total", reason)


def application(registry: CollectorRegistry) -> Application:
    """Return what answers scrapes of a registry; figures of this process are added to it."""
    ProcessCollector(registry=registry)
    answer: Application = make_wsgi_app(registry)
    return answer


def _version() -> str:
    try:
        return metadata.version(NAMESPACE)
    except metadata.PackageNotFoundError:
        return "unknown"
