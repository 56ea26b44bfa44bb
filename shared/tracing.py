"""Traces of samples with OpenTelemetry; nothing of it is imported unless they are asked for.

A sample is one trace: the edge opens its root span, sends its context along (W3C ``traceparent``)
where sampling has picked it, and the cloud hangs its own span below. Stages are told after the
fact, with the times that the metrics get, so that a trace and the metrics say the same. Exported
over OTLP/HTTP; the standard ``OTEL_*`` variables say where to and what else belongs to a service.
"""

from __future__ import annotations

from time import perf_counter_ns, time_ns
from typing import Any

from shared.errors import ConfigError

Attribute = str | bool | int | float
TRACEPARENT = "traceparent"
UNNAMED = "unknown_service"
"""What the SDK calls a service to which the environment gives no name, or begins so."""


class Trace:
    """One sample's span on this side, and the stages below it.

    Args:
        tracer: OpenTelemetry's.
        name: of the sample's span.
        began_seconds: ``time.perf_counter()``, as all moments here.
        parent: OpenTelemetry's context of the other side's span; None for a new trace.

    Attributes:
        is_sampled: whether anything is kept of it.
    """

    def __init__(self, tracer: Any, name: str, began_seconds: float, parent: Any = None) -> None:
        self._tracer = tracer
        # Anew for each sample, because the wall clock is set now and then.
        self._offset_ns = time_ns() - perf_counter_ns()
        self._span = tracer.start_span(name, parent, start_time=self._ns(began_seconds))
        self.is_sampled: bool = self._span.get_span_context().trace_flags.sampled

    @property
    def traceparent(self) -> str:
        """The context for the other side, in W3C's form."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        return carrier[TRACEPARENT]

    def stage(
        self, name: str, began_seconds: float, ended_seconds: float, **attributes: Attribute
    ) -> None:
        """Tell of a stage that is over."""
        span = self._tracer.start_span(
            name, self._context, attributes=attributes, start_time=self._ns(began_seconds)
        )
        span.end(self._ns(ended_seconds))

    def end(self, ended_seconds: float, **attributes: Attribute) -> None:
        """Tell of the sample's end; with an attribute ``error`` if there is no answer."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(attributes)
        if "error" in attributes:
            self._span.set_status(Status(StatusCode.ERROR, str(attributes["error"])))
        self._span.end(self._ns(ended_seconds))

    @property
    def _context(self) -> Any:
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self._span)

    def _ns(self, seconds: float) -> int:
        return self._offset_ns + round(seconds * 1e9)


class Tracing:
    """Makes the traces of one daemon.

    Args:
        provider: OpenTelemetry's tracer provider; shut down with this.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("neucodex")

    def begin(self, name: str, began_seconds: float) -> Trace | None:
        """Begin a trace, if sampling picks it."""
        trace = Trace(self._tracer, name, began_seconds)
        return trace if trace.is_sampled else None

    def join(self, name: str, began_seconds: float, traceparent: str) -> Trace | None:
        """Go on with a trace of the other side; None where that is no context of a sampled one."""
        from opentelemetry.trace import get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent})
        if not get_current_span(parent).get_span_context().trace_flags.sampled:
            return None
        return Trace(self._tracer, name, began_seconds, parent)

    def close(self) -> None:
        """Export what is left; takes as long as the exporter's time limit at most."""
        self._provider.shutdown()


def open_tracing(service: str, ratio: float) -> Tracing:
    """Return what makes traces.

    Args:
        service: its name, unless the environment gives one.
        ratio: share of its own samples that are traced; those that the other side traces are
            always.

    Raises:
        ConfigError: the extra ``otel`` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise ConfigError(
            f"tracing: expected OpenTelemetry (pip install neucodex[otel]), got: {error}"
        ) from error
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith(UNNAMED):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    # The daemon shuts it down itself, after its last sample.
    provider = TracerProvider(
        ParentBased(TraceIdRatioBased(ratio)), resource, shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
