"""One trace per sample across the real pair, seen by an OTLP collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import run
from sys import executable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import Answer, Edge
from examples.pair import run_cloud, run_edge
from examples.scrape import Scrape, scrape
from shared import wire
from shared.messages import EdgeMessage, TraceContext
from shared.model.bundle import Bundle
from shared.tracing import Tracing
from tests.edge_agent.conftest import png

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel")

SAMPLES, TIMESTEPS = 3, 4
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CLOCK_SECONDS = 1e-5
"""Both readings of the clocks at a sample's begin, and rounding to nanoseconds."""


class Span:
    """A span as it was exported."""

    def __init__(self, service: str, span: Any) -> None:
        self.service = service
        self.name = span.name
        self.trace, self.id, self.parent = span.trace_id, span.span_id, span.parent_span_id
        self.began: int = span.start_time_unix_nano
        self.ended: int = span.end_time_unix_nano
        self.failed = span.status.code == 2
        self.attributes = {
            each.key: getattr(each.value, each.value.WhichOneof("value"))
            for each in span.attributes
        }

    @property
    def seconds(self) -> float:
        return (self.ended - self.began) / 1e9


class Spans(list[Span]):
    """What a collector has received."""

    def named(self, service: str, name: str) -> Spans:
        return Spans(each for each in self if (each.service, each.name) == (service, name))

    def below(self, parent: Span) -> Spans:
        return Spans(each for each in self if each.parent == parent.id)

    def seconds(self, name: str) -> float:
        return sum(each.seconds for each in self if each.name == name)


@contextmanager
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """Collect what processes started meanwhile export."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = Spans()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                facts = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    spans.extend(Span(facts["service.name"], each) for each in scope.spans)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    try:
        yield spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Traced:
    """A pair that has been run and stopped."""

    def __init__(self, spans: Spans, answers: list[Answer], edge: Scrape, cloud: Scrape) -> None:
        self.spans = spans
        self.answers = answers
        self.edge = edge
        self.cloud = cloud

    @property
    def roots(self) -> Spans:
        """The samples' spans on the edge, in the order of time."""
        found = self.spans.named("neucodex-edge", "sample")
        return Spans(sorted(found, key=lambda span: span.began))


def run_traced(
    folder: Path,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    *flags: str,
    ratio: float = 1.0,
    cloud_traces: bool = True,
) -> Traced:
    (folder / "edge.toml").write_text(f"trace_ratio = {ratio}\n")
    (folder / "cloud.toml").write_text(f"tracing = {str(cloud_traces).lower()}\n")
    with collector(monkeypatch) as spans:
        config = ("--config", str(folder / "cloud.toml"))
        with run_cloud(folder, bundle.path, *config) as cloud:
            to = ("--cloud", cloud.address, "--config", str(folder / "edge.toml"), "--alpha", "1")
            with run_edge(folder, bundle.path, *to, *flags) as edge, Edge(edge.address) as client:
                answers = [client.classify(png(seed)) for seed in range(SAMPLES)]
                seen = scrape(edge.metrics), scrape(cloud.metrics)
    return Traced(spans, answers, *seen)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Traced:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("traced")
        return run_traced(folder, tiny_bundle, monkeypatch, "--window", "1")


def test_a_sample_is_one_trace_across_both_processes(traced: Traced) -> None:
    assert len(traced.roots) == len({root.trace for root in traced.roots}) == SAMPLES
    assert all(not root.parent for root in traced.roots)
    for root in traced.roots:
        mine = Spans(span for span in traced.spans if span.trace == root.trace)
        (serve,) = mine.named("neucodex-cloud", "serve")
        assert serve.parent == root.id
        assert root.began <= serve.began <= serve.ended <= root.ended
        here = [span.name for span in mine.below(root) if span.service == "neucodex-edge"]
        there = [span.name for span in mine.below(serve)]
        each = ["head", "code", "roundtrip"]
        assert sorted(here) == sorted(["queue", "decode_input", *each * TIMESTEPS])
        each = ["decode", "queue", "tail", "exit_rule", "verdict"]
        assert sorted(there) == sorted(each * TIMESTEPS)
        assert len(mine) == 2 + len(here) + len(there)
        assert root.attributes["timesteps_used"] == TIMESTEPS
        assert serve.attributes["ending"] == "max_timesteps"


def test_stages_take_as_long_as_the_latency_says(traced: Traced) -> None:
    for root, answer in zip(traced.roots, traced.answers, strict=True):
        stages, latency = traced.spans.below(root), answer.latency
        assert root.seconds == pytest.approx(latency.total_seconds, abs=CLOCK_SECONDS)
        for name, seconds in (
            ("queue", latency.queue_seconds),
            ("decode_input", latency.input_seconds),
            ("head", latency.head_seconds),
            ("code", latency.codec_seconds),
            ("roundtrip", latency.transport_seconds + latency.service_seconds),
        ):
            assert stages.seconds(name) == pytest.approx(seconds, abs=CLOCK_SECONDS)
        (serve,) = stages.named("neucodex-cloud", "serve")
        service = traced.spans.below(serve)
        parts = sum(span.seconds for span in service)
        # Between its stages a timestep only waits for the event loop.
        assert 0.5 * latency.service_seconds < parts <= latency.service_seconds + CLOCK_SECONDS


def test_stages_take_as_long_as_the_metrics_say(traced: Traced) -> None:
    for stage in ("head", "code", "decode_input"):
        spans = traced.spans.named("neucodex-edge", stage)
        told = traced.edge.total("edge_stage_duration_seconds_sum", stage=stage)
        assert spans.seconds(stage) == pytest.approx(told, abs=SAMPLES * CLOCK_SECONDS)
    for stage in ("decode", "tail", "exit_rule"):
        spans = traced.spans.named("neucodex-cloud", stage)
        told = traced.cloud.total("cloud_stage_duration_seconds_sum", stage=stage)
        assert spans.seconds(stage) == pytest.approx(told, abs=SAMPLES * CLOCK_SECONDS)


def test_a_whole_input_is_traced_too(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = run_traced(tmp_path, tiny_bundle, monkeypatch, "--placement", "cloud_only")
    for root in traced.roots:
        (serve,) = traced.spans.below(root).named("neucodex-cloud", "serve")
        names = {span.name for span in traced.spans.below(serve)}
        assert names == {"decode_input", "queue", "whole", "exit_rule", "verdict"}
    assert len(traced.roots) == SAMPLES


def test_a_cloud_that_does_not_trace_answers_all_the_same(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = run_traced(tmp_path, tiny_bundle, monkeypatch, "--window", "1", cloud_traces=False)
    assert len(traced.roots) == SAMPLES
    assert {span.service for span in traced.spans} == {"neucodex-edge"}


def test_without_a_ratio_nothing_is_traced_nor_imported(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = run_traced(tmp_path, tiny_bundle, monkeypatch, "--window", "1", ratio=0.0)
    assert traced.spans == []
    code = "import sys, edge_agent.daemon, cloud_server.server\n"
    code += "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert run((executable, "-c", code), check=False).returncode == 0


# --- contexts and bytes ------------------------------------------------------------------------


def kept(ratio: float = 0.0) -> tuple[Tracing, Any]:
    """Return tracing that exports into memory, and that memory."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)
    memory = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Tracing(provider), memory


def test_ratio_sampling_picks_about_as_many() -> None:
    tracing, _ = kept(0.25)
    picked = sum(tracing.begin("sample", 0.0) is not None for _ in range(2000))
    assert 400 < picked < 600


def test_a_context_is_gone_on_with() -> None:
    tracing, memory = kept()
    trace = tracing.join("serve", 1.0, TRACEPARENT)
    assert trace is not None
    trace.stage("tail", 1.5, 2.0, timestep=1)
    trace.end(3.0, error="as the test wants")
    tail, serve = memory.get_finished_spans()
    assert f"{serve.context.trace_id:032x}" == TRACEPARENT.split("-")[1]
    assert f"{serve.parent.span_id:016x}" == TRACEPARENT.split("-")[2]
    assert tail.parent.span_id == serve.context.span_id
    assert tail.end_time - tail.start_time == 500_000_000
    assert not serve.status.is_ok


@given(st.text(max_size=80) | st.from_regex("00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]", fullmatch=True))
def test_what_is_no_context_of_a_sampled_trace_is_ignored(traceparent: str) -> None:
    tracing, memory = kept(1.0)
    assert tracing.join("serve", 1.0, traceparent) is None
    assert memory.get_finished_spans() == ()


def test_messages_without_traces_are_what_they_were() -> None:
    message = EdgeMessage(packets=(b"\x08ab",), cancels=(3,))
    assert wire.edge_message_to_proto(message).SerializeToString().hex() == "0a030861621a0103"


def test_traces_cross_the_wire() -> None:
    message = EdgeMessage(packets=(b"\x08ab",), traces=(TraceContext(7, TRACEPARENT),))
    assert wire.edge_message_from_proto(wire.edge_message_to_proto(message)) == message
