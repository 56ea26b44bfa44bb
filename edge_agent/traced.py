"""How the stages of a sample on the edge become spans of its trace."""

from __future__ import annotations

from time import perf_counter

from edge_agent.answers import Latency
from shared.messages import Verdict
from shared.metrics import EdgeStage
from shared.tracing import Trace


def trace_head(trace: Trace, timestep: int, input_seconds: float, head_seconds: float) -> None:
    """Tell of a timestep that has just been computed, its input having been read before."""
    ended = perf_counter()
    began = ended - head_seconds
    if input_seconds:
        trace.stage(EdgeStage.DECODE_INPUT, began - input_seconds, began, timestep=timestep)
    if head_seconds:
        trace.stage(EdgeStage.HEAD, began, ended, timestep=timestep)


def trace_local(trace: Trace, verdict: Verdict, latency: Latency) -> None:
    """Tell of a verdict of the network on this device."""
    ended = perf_counter()
    stage = EdgeStage.TAIL_LOCAL if latency.head_seconds else EdgeStage.WHOLE_LOCAL
    trace.stage(stage, ended - verdict.service_seconds, ended, timestep=verdict.timestep)


def trace_round_trip(trace: Trace, verdict: Verdict, sent: float, heard: float) -> None:
    """Tell of a packet that has got its verdict: what is not service is transport."""
    trace.stage(
        "roundtrip",
        sent,
        heard,
        timestep=verdict.timestep,
        service_seconds=verdict.service_seconds,
        transport_seconds=max(0.0, heard - sent - verdict.service_seconds),
    )
