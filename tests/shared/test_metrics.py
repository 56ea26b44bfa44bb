import math
import re
import urllib.request
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from shared.codec import native
from shared.energy.meter import Component, Source
from shared.energy.operations import ModelSource, default_model
from shared.errors import ConfigError
from shared.metrics import (
    CLOUD_FAMILIES,
    EDGE_FAMILIES,
    IDLE_FAMILIES,
    MAX_NAMES,
    Baseline,
    CloudMetrics,
    CloudStage,
    ConnectionState,
    Counter,
    Direction,
    DropReason,
    EdgeMetrics,
    EdgeStage,
    Estimate,
    ExitReason,
    FallbackReason,
    Family,
    GrpcType,
    Histogram,
    Mode,
    Part,
    Placement,
    Reckoning,
    RejectReason,
    RetryReason,
    Rpc,
    SampleEnd,
    application,
)
from shared.model.bundle import Operations
from shared.model.spec import BottleneckSpec, NetworkSpec
from shared.tcp_info import Totals
from shared.web import serve

OPERATIONS = Operations(mac=1000, ac=2000, neuron=300)
SPEC = NetworkSpec(
    backbone="resnet18",
    input_shape=(3, 32, 32),
    classes=10,
    bottleneck=BottleneckSpec(split="layer2", channels=4, stride=2),
)
ALL_FAMILIES = {**EDGE_FAMILIES, **CLOUD_FAMILIES, **IDLE_FAMILIES}

Read = Callable[..., float | None]


class FakeWire:
    """Wire totals that a test sets."""

    def __init__(self, totals: Totals | None) -> None:
        self.totals = totals

    def poll(self) -> Totals | None:
        return self.totals


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def edge(registry: CollectorRegistry) -> EdgeMetrics:
    return EdgeMetrics(registry, model="tiny")


@pytest.fixture
def cloud(registry: CollectorRegistry) -> CloudMetrics:
    metrics = CloudMetrics(registry)
    metrics.model_loaded("tiny", "1", "ab" * 32, SPEC, slots_limit=8)
    return metrics


@pytest.fixture
def value(registry: CollectorRegistry) -> Read:
    """Read one sample of the registry; nothing where the series does not exist."""

    def read(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"neucodex_{name}", labels)

    return read


# --- what is told is what is shown -------------------------------------------------------------


def test_an_answered_sample(edge: EdgeMetrics, value: Read) -> None:
    edge.answered(
        Placement.CO_INFERENCE,
        ExitReason.CONFIDENT,
        duration_seconds=0.01,
        confidence=0.97,
        timesteps_used=1,
        timesteps_skipped=3,
    )
    ended = {"model": "tiny", "placement": "co_inference", "exit_reason": "confident"}
    assert value("edge_inferences_total", **ended) == 1
    assert value("edge_inference_duration_seconds_sum", **ended) == 0.01
    assert value("edge_timesteps_total", model="tiny", outcome="used") == 1
    assert value("edge_timesteps_total", model="tiny", outcome="skipped") == 3
    assert value("edge_timesteps_used_sum", model="tiny", exit_reason="confident") == 1
    assert value("edge_exit_confidence_ratio_sum", model="tiny") == 0.97


def test_a_failed_sample_has_no_confidence(edge: EdgeMetrics, value: Read) -> None:
    edge.failed(Placement.FALLBACK, ExitReason.DEADLINE, duration_seconds=1)
    ended = {"model": "tiny", "placement": "fallback", "exit_reason": "deadline"}
    assert value("edge_inferences_total", **ended) == 1
    assert value("edge_exit_confidence_ratio_count", model="tiny") is None


def test_edge_times(edge: EdgeMetrics, value: Read) -> None:
    edge.stage(EdgeStage.HEAD, 0.002)
    edge.stage(EdgeStage.HEAD, 0.003)
    edge.roundtrip(0.010, service_seconds=0.004)
    assert value("edge_stage_duration_seconds_sum", model="tiny", stage="head") == pytest.approx(
        0.005
    )
    assert value("edge_stage_duration_seconds_count", model="tiny", stage="head") == 2
    assert value("edge_roundtrip_seconds_sum", model="tiny") == 0.010
    assert value("edge_transport_seconds_sum", model="tiny") == pytest.approx(0.006)


def test_another_model_has_series_of_its_own(edge: EdgeMetrics, value: Read) -> None:
    assert edge.of_model("tiny") is edge
    edge.payload(1)
    edge.stage(EdgeStage.HEAD, 1.0)
    other = edge.of_model("other")
    other.payload(32)
    other.stage(EdgeStage.HEAD, 2.0)
    other.operations(Part.HEAD, OPERATIONS, 1)
    edge.payload(1)
    for model, payload_bytes, seconds in (("tiny", 2, 1.0), ("other", 32, 2.0)):
        assert value("edge_payload_bytes_total", model=model, direction="sent") == payload_bytes
        assert value("edge_stage_duration_seconds_sum", model=model, stage="head") == seconds


def test_edge_bytes(edge: EdgeMetrics, value: Read) -> None:
    edge.payload(32)
    edge.message(40, Direction.SENT)
    edge.message(12, Direction.RECEIVED)
    edge.baseline(Baseline.FLOAT32_FEATURES, 65536)
    edge.wasted(timesteps=2, payload_bytes=64)
    assert value("edge_payload_bytes_total", model="tiny", direction="sent") == 32
    assert value("edge_message_bytes_total", model="tiny", direction="sent") == 40
    assert value("edge_message_bytes_total", model="tiny", direction="received") == 12
    assert value("edge_message_size_bytes_count", model="tiny", direction="sent") == 1
    assert value("edge_baseline_bytes_total", model="tiny", baseline="float32_features") == 65536
    assert value("edge_timesteps_total", model="tiny", outcome="wasted") == 2
    assert value("edge_wasted_bytes_total", model="tiny") == 64


def test_what_the_policy_reckons_with_and_chose(edge: EdgeMetrics, value: Read) -> None:
    assert value("edge_estimate_seconds", model="tiny", quantity="service") is None
    assert value("edge_expected_latency_seconds", model="tiny") is None
    edge.estimate(Estimate.SERVICE, 0.002)
    edge.setting(Mode.STEP, 4, 2)
    edge.setting(Mode.EXIT, 1, 1)
    edge.setting_changed()
    edge.expected_latency(0.05)
    assert value("edge_estimate_seconds", model="tiny", quantity="service") == 0.002
    modes = [value("edge_setting_mode", model="tiny", mode=mode) for mode in Mode]
    assert modes == [0, 1, 0]
    assert value("edge_setting_window_timesteps", model="tiny") == 1
    assert value("edge_setting_packet_timesteps", model="tiny") == 1
    assert value("edge_setting_changes_total", model="tiny") == 1
    assert value("edge_expected_latency_seconds", model="tiny") == 0.05


def test_spikes_and_modelled_energy(edge: EdgeMetrics, value: Read) -> None:
    edge.spikes(np.arange(256, dtype=np.uint8).reshape(4, 8, 8) % 4 == 0)
    edge.operations(Part.HEAD, OPERATIONS, timesteps=2)
    assert value("edge_spikes_total", model="tiny", site="code") == 64
    assert value("edge_neuron_updates_total", model="tiny", site="code") == 256
    assert value("edge_firing_ratio_sum", model="tiny", site="code") == 0.25
    assert (
        value(
            "synaptic_operations_total", model="tiny", part="head", kind="ac", source="calibrated"
        )
        == 4000
    )
    modelled = value(
        "modelled_energy_joules_total",
        model="tiny",
        component="head",
        source="ops_45nm",
        basis="calibrated",
    )
    assert modelled == default_model().joules(OPERATIONS, 2)


def test_energy_of_samples(edge: EdgeMetrics, value: Read) -> None:
    joules = edge.operations(Part.HEAD, OPERATIONS, timesteps=2)
    assert joules == default_model().joules(OPERATIONS, 2)
    edge.modelled_energy(Placement.CO_INFERENCE, joules)
    edge.measured_energy(Placement.EDGE_ONLY, Reckoning.GROSS, Source.RAPL, 0.5, samples=3)
    modelled = {"model": "tiny", "placement": "co_inference", "source": "ops_45nm"}
    assert value("edge_modelled_inference_energy_joules_sum", **modelled) == joules
    measured = {"model": "tiny", "placement": "edge_only", "kind": "gross", "source": "rapl"}
    assert value("edge_measured_inference_energy_joules_sum", **measured) == 1.5
    assert value("edge_measured_inference_energy_joules_count", **measured) == 3


def test_each_model_tells_under_its_own_name(edge: EdgeMetrics, value: Read) -> None:
    other = edge.of_model("other")
    means = {edge: OPERATIONS, other: Operations(mac=1, ac=0, neuron=0)}
    for metrics, operations in means.items():
        # Twice, so that what was resolved the first time is used.
        for _ in range(2):
            metrics.stage(EdgeStage.HEAD, 0.5)
            metrics.roundtrip(0.5, service_seconds=0.25)
            metrics.payload(8)
            metrics.message(8, Direction.SENT)
            metrics.spikes(np.ones((1, 2, 2), np.uint8))
            metrics.operations(Part.HEAD, operations, timesteps=1)
    for model, operations in (("tiny", OPERATIONS), ("other", means[other])):
        sent = {"model": model, "direction": "sent"}
        assert value("edge_stage_duration_seconds_sum", model=model, stage="head") == 1
        assert value("edge_roundtrip_seconds_sum", model=model) == 1
        assert value("edge_payload_bytes_total", **sent) == 16
        assert value("edge_message_bytes_total", **sent) == 16
        assert value("edge_spikes_total", model=model, site="code") == 8
        counted = {"model": model, "part": "head", "kind": "mac", "source": "calibrated"}
        assert value("synaptic_operations_total", **counted) == 2 * operations.mac


def test_idle_power_is_absent_until_it_is_known(edge: EdgeMetrics, value: Read) -> None:
    idle = {"component": "total", "source": "ina3221"}
    assert value("idle_power_watts", **idle) is None
    edge.idle(Source.INA3221, Component.TOTAL, 4.5)
    assert value("idle_power_watts", **idle) == 4.5


@pytest.mark.parametrize("side", ["server", "client"])
def test_grpc_calls_bear_the_standard_names(
    edge: EdgeMetrics, registry: CollectorRegistry, side: str
) -> None:
    metrics = edge.rpc_server if side == "server" else edge.rpc_client
    tally = metrics.method("/neucodex.v1.CoInference/Infer", GrpcType.BIDI_STREAM)
    tally.started(1)
    tally.sent(1)
    tally.received(1)
    tally.received(1)
    tally.handled("CANCELLED", 2.5)
    tally.handled("no such status", 0.1)
    labels = {
        "grpc_type": "bidi_stream",
        "grpc_service": "neucodex.v1.CoInference",
        "grpc_method": "Infer",
    }

    def read(name: str, **more: str) -> float | None:
        return registry.get_sample_value(f"grpc_{side}_{name}", labels | more)

    assert read("started_total") == 1
    assert read("msg_sent_total") == 1
    assert read("msg_received_total") == 2
    assert read("handled_total", grpc_code="Canceled") == 1
    assert read("handled_total", grpc_code="other") == 1
    assert read("handling_seconds_sum") == 2.6


def test_edge_troubles(edge: EdgeMetrics, value: Read) -> None:
    edge.fallback(FallbackReason.UNAVAILABLE)
    edge.retry(RetryReason.LINK_LOST)
    edge.replay(RetryReason.CHECK_FAILED)
    edge.check_failed()
    edge.error("receive", "UNAVAILABLE")
    edge.dropped(DropReason.INVALID)
    assert value("edge_fallbacks_total", model="tiny", reason="unavailable") == 1
    assert value("edge_retries_total", reason="link_lost") == 1
    assert value("edge_replays_total", reason="check_failed") == 1
    assert value("edge_check_failures_total") == 1
    assert value("edge_errors_total", stage="receive", code="UNAVAILABLE") == 1
    assert value("edge_samples_dropped_total", reason="invalid") == 1


def test_edge_gauges(edge: EdgeMetrics, value: Read) -> None:
    edge.threshold((0.9, 0.8, 0.85))
    edge.queue_depth(3)
    edge.connection(ConnectionState.READY)
    assert value("edge_exit_threshold_ratio", model="tiny") == 0.8
    assert value("edge_queue_depth") == 3
    assert value("edge_connection_state", state="ready") == 1
    assert value("edge_connection_state", state="idle") == 0


def test_one_timestep_has_no_threshold(edge: EdgeMetrics, value: Read) -> None:
    edge.threshold(())
    shown = value("edge_exit_threshold_ratio", model="tiny")
    assert shown is not None and math.isnan(shown)


def test_cloud_work(cloud: CloudMetrics, value: Read) -> None:
    cloud.service("tiny")(0.004)
    cloud.stage("tiny", CloudStage.TAIL)(0.003)
    cloud.payload("tiny")(32)
    cloud.message("tiny", Direction.RECEIVED)(40)
    cloud.batch("tiny")(8)
    cloud.operations("tiny", Part.TAIL, OPERATIONS)(8)
    cloud.sample_ended("tiny", SampleEnd.CONFIDENT)
    cloud.wasted("tiny", timesteps=1, payload_bytes=32)
    assert value("cloud_service_duration_seconds_sum", model="tiny") == 0.004
    assert value("cloud_stage_duration_seconds_count", model="tiny", stage="tail") == 1
    assert value("cloud_payload_bytes_total", model="tiny", direction="received") == 32
    assert value("cloud_message_bytes_total", model="tiny", direction="received") == 40
    assert value("cloud_batch_size_sum", model="tiny") == 8
    assert value("cloud_timesteps_total", model="tiny") == 8
    assert (
        value(
            "synaptic_operations_total", model="tiny", part="tail", kind="mac", source="calibrated"
        )
        == 8000
    )
    assert value("cloud_samples_total", model="tiny", reason="confident") == 1
    assert value("cloud_wasted_timesteps_total", model="tiny") == 1
    assert value("cloud_wasted_bytes_total", model="tiny") == 32


def test_cloud_room(cloud: CloudMetrics, value: Read) -> None:
    in_use = [0]
    cloud.watch("tiny", slots_in_use=lambda: in_use[0], slot_bytes=1024, queue_depth=lambda: 5)
    in_use[0] = 3
    cloud.stream_opened(Rpc.INFER)
    cloud.stream_opened(Rpc.INFER)
    cloud.stream_closed(Rpc.INFER)
    assert value("cloud_slots_in_use", model="tiny") == 3
    assert value("cloud_slots_limit", model="tiny") == 8
    assert value("cloud_session_state_bytes", model="tiny") == 3072
    assert value("cloud_queue_depth", model="tiny") == 5
    assert value("cloud_streams", rpc="infer") == 1


def test_cloud_troubles(cloud: CloudMetrics, value: Read) -> None:
    cloud.check_failed("tiny")
    cloud.error("decode", "BAD_PACKET")
    cloud.rejected(RejectReason.OVERLOAD)
    assert value("cloud_check_failures_total", model="tiny") == 1
    assert value("cloud_errors_total", stage="decode", code="BAD_PACKET") == 1
    assert value("cloud_rejected_total", reason="overload") == 1


def test_what_runs_is_told(edge: EdgeMetrics, registry: CollectorRegistry) -> None:
    edge.describe_model("1", "ab" * 32, SPEC)
    (model,) = [family for family in registry.collect() if family.name == "neucodex_model"]
    assert model.samples[0].labels == {
        "model": "tiny",
        "version": "1",
        "digest": "ab" * 32,
        "backbone": "resnet18",
        "split": "layer2",
        "timesteps": "4",
        "code_shape": "4x8x8",
    }
    (build,) = [family for family in registry.collect() if family.name == "neucodex_build"]
    (codec,) = [family for family in registry.collect() if family.name == "neucodex_codec"]
    assert codec.samples[0].labels == {
        "component": "edge",
        "implementation": native.IMPLEMENTATION,
    }
    assert build.samples[0].labels["component"] == "edge"
    assert build.samples[0].labels["version"]


# --- the wire ----------------------------------------------------------------------------------


def test_wire_bytes_are_read_at_every_scrape(edge: EdgeMetrics, value: Read) -> None:
    source = FakeWire(Totals(1000, 500, 10, 0.02, 125_000.0))
    edge.watch_wire(source, "cloud")
    sent = {"peer": "cloud", "direction": "sent", "source": "tcp_info"}
    assert value("edge_wire_bytes_total", **sent) == 1000
    assert value("edge_wire_bytes_total", **{**sent, "direction": "received"}) == 500
    assert value("edge_retransmitted_bytes_total", peer="cloud") == 10
    assert value("edge_tcp_min_rtt_seconds", peer="cloud") == 0.02
    assert value("edge_link_rate_bytes_per_second", peer="cloud") == 125_000
    source.totals = Totals(2000, 900, 10, None)
    assert value("edge_wire_bytes_total", **sent) == 2000
    assert value("edge_tcp_min_rtt_seconds", peer="cloud") is None
    assert value("edge_link_rate_bytes_per_second", peer="cloud") is None


def test_where_the_system_does_not_tell_there_is_no_series(
    cloud: CloudMetrics, value: Read
) -> None:
    cloud.watch_wire(FakeWire(None), "edges")
    labels = {"peer": "edges", "direction": "sent", "source": "tcp_info"}
    assert value("cloud_wire_bytes_total", **labels) is None


# --- names, labels and buckets -----------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_names_follow_the_prometheus_rules(name: str) -> None:
    family = ALL_FAMILIES[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name)
    assert family.help.endswith(".")
    assert name.endswith("_total") == (family.kind is Counter)
    assert not re.search(r"_(milliseconds|ms|kilobytes|watt_hours|percent)(_|$)", name)
    for unit in ("seconds", "bytes", "joules", "ratio"):
        if f"_{unit}" in name:
            assert name.removesuffix("_total").endswith(unit)
    if family.kind is Histogram:
        assert not name.endswith(("_count", "_sum", "_bucket"))
        assert list(family.buckets) == sorted(set(family.buckets))
        assert len(family.buckets) <= 16
    else:
        assert family.buckets == ()


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_labels_have_few_values_and_are_no_ids(name: str) -> None:
    labels = ALL_FAMILIES[name].labels
    assert not {"id", "session", "sample", "edge", "timestep", "address", "le"} & set(labels)
    assert all(len(values) <= 24 for values in labels.values())
    names = {label for label, values in labels.items() if not values}
    assert names <= {"model", "peer", "source"}


def test_stage_buckets_double_from_a_tenth_of_a_millisecond() -> None:
    buckets = EDGE_FAMILIES["edge_stage_duration_seconds"].buckets
    assert buckets[0] == 0.0001
    assert all(b == pytest.approx(2 * a) for a, b in zip(buckets, buckets[1:], strict=False))


def test_modelled_and_measured_energy_cannot_be_mixed() -> None:
    energy = [name for name in ALL_FAMILIES if "joules" in name]
    assert energy
    assert all(("modelled" in name) != ("measured" in name) for name in energy)
    for name in energy:
        sources = tuple(ALL_FAMILIES[name].labels["source"])
        assert sources == tuple(ModelSource if "modelled" in name else Source)


def test_both_sides_share_families_of_the_same_name() -> None:
    for name in EDGE_FAMILIES.keys() & CLOUD_FAMILIES.keys():
        assert EDGE_FAMILIES[name] == CLOUD_FAMILIES[name]


def test_unknown_label_values_become_other(
    edge: EdgeMetrics, registry: CollectorRegistry, value: Read
) -> None:
    for number in range(1000):
        edge.error(f"stage {number}", f"text from the network {number}")
    assert value("edge_errors_total", stage="other", code="other") == 1000
    (errors,) = [family for family in registry.collect() if family.name == "neucodex_edge_errors"]
    assert len(errors.samples) == 1


def test_a_limited_number_of_models_is_told_apart(cloud: CloudMetrics, value: Read) -> None:
    for number in range(2 * MAX_NAMES):
        cloud.check_failed(f"model-{number}")
    assert value("cloud_check_failures_total", model="model-0") == 1
    assert value("cloud_check_failures_total", model="other") == MAX_NAMES + 1


def test_counters_show_zero_before_they_first_count(edge: EdgeMetrics, value: Read) -> None:
    assert value("edge_payload_bytes_total", model="tiny", direction="sent") == 0
    assert value("edge_replays_total", reason="link_lost") == 0
    assert value("edge_check_failures_total") == 0


def test_two_daemons_of_one_process_do_not_disturb_each_other() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    EdgeMetrics(first, model="tiny").payload(10)
    EdgeMetrics(second, model="tiny")
    labels = {"model": "tiny", "direction": "sent"}
    assert first.get_sample_value("neucodex_edge_payload_bytes_total", labels) == 10
    assert second.get_sample_value("neucodex_edge_payload_bytes_total", labels) == 0


# --- over HTTP ---------------------------------------------------------------------------------


def scrape(port: int) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(
    ("make", "table"),
    [
        (lambda registry: EdgeMetrics(registry, model="tiny"), EDGE_FAMILIES),
        (CloudMetrics, CLOUD_FAMILIES),
    ],
    ids=["edge", "cloud"],
)
def test_a_scrape_shows_every_family(
    registry: CollectorRegistry,
    make: Callable[[CollectorRegistry], object],
    table: Mapping[str, Family],
) -> None:
    make(registry)
    server = serve(application(registry), "127.0.0.1:0")
    try:
        families = scrape(server.port)
    finally:
        server.close()
    for name, family in table.items():
        shown = families[f"neucodex_{name.removesuffix('_total')}"]
        kinds = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
        assert (shown.type, shown.documentation) == (kinds[family.kind], family.help)
    assert families["process_resident_memory_bytes"].samples[0].value > 0
    assert not [name for name in families if name.endswith("_created")]


def test_a_closed_endpoint_frees_its_port(registry: CollectorRegistry) -> None:
    server = serve(application(registry), "127.0.0.1:0")
    server.close()
    server.close()
    again = serve(application(CollectorRegistry()), f"127.0.0.1:{server.port}")
    again.close()


def test_a_port_in_use_is_a_config_error(registry: CollectorRegistry) -> None:
    server = serve(application(registry), "127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}: cannot listen"):
            serve(application(CollectorRegistry()), f"127.0.0.1:{server.port}")
    finally:
        server.close()
