"""Metrics that tell nothing: the daemons without their instrumentation, for comparison alone.

Every method that the daemons call is one function that does nothing; no interceptor stands before
the cloud's methods. What is left are those calls, and readings of the clock, most of which the
policy and ``Answer.latency`` need too.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from shared.energy.operations import EnergyModel
from shared.metrics import CloudMetrics, EdgeMetrics


def nothing(*_: object, **__: object) -> Any:
    """Do nothing; also where what is asked for is a function to be told things."""
    return nothing


def no_joules(*_: object, **__: object) -> float:
    """Do nothing and return no energy."""
    return 0.0


def _silence(metrics: object, kind: type) -> None:
    for base in kind.__mro__[:-1]:
        for name, method in vars(base).items():
            if callable(method) and not name.startswith("_"):
                setattr(metrics, name, nothing)


class SilentEdgeMetrics(EdgeMetrics):
    """Of one edge."""

    def __init__(self, model: str) -> None:
        super().__init__(CollectorRegistry(), model=model)
        _silence(self, EdgeMetrics)
        self.operations = no_joules  # type: ignore[method-assign]
        tally = SimpleNamespace(started=nothing, sent=nothing, received=nothing, handled=nothing)
        self.rpc_client = SimpleNamespace(method=lambda path, kind: tally)  # type: ignore[assignment]


class SilentCloudMetrics(CloudMetrics):
    """Of one cloud."""

    def __init__(self, registry: CollectorRegistry, energy: EnergyModel | None = None) -> None:
        super().__init__(registry, energy)
        _silence(self, CloudMetrics)
        self.rpc_server = None  # type: ignore[assignment]
