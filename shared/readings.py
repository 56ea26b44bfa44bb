"""Figures of a daemon at one moment, looked up by name and labels, wherever they were read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

NAMESPACE = "neucodex"
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count", "_info")


class Sample(Protocol):
    """One series; as in ``prometheus_client.samples``."""

    @property
    def name(self) -> str:
        """With its suffix."""
        ...

    @property
    def labels(self) -> dict[str, str]:
        """By name."""
        ...

    @property
    def value(self) -> float:
        """At that moment."""
        ...


class Metric(Protocol):
    """One family; as in ``prometheus_client.metrics_core``."""

    @property
    def name(self) -> str:
        """Without a suffix."""
        ...

    @property
    def samples(self) -> Sequence[Sample]:
        """Its series."""
        ...


class Readings:
    """What a daemon told.

    Args:
        families: that it has.
    """

    def __init__(self, families: Iterable[Metric]) -> None:
        found = list(families)
        self._names = {family.name + suffix for family in found for suffix in SUFFIXES}
        self._samples = [sample for family in found for sample in family.samples]

    def has(self, name: str) -> bool:
        """Say whether the daemon has a metric; one that cannot be measured is absent."""
        return _full(name) in self._names

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the series of a metric that carry ``labels``.

        Args:
            name: without ``neucodex_``; those of gRPC in full.
            labels: values the series must have; labels not named may have any value.

        Raises:
            LookupError: the daemon has no such metric.
        """
        return sum(value for _, value in self._series(name, labels))

    def known(self, name: str, **labels: str) -> float | None:
        """Return the same; None where there is no such metric, or none of its series."""
        found = self._series(name, labels) if self.has(name) else []
        return sum(value for _, value in found) if found else None

    def labels(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Return the sums by the values of one label; LookupError if there is no such metric."""
        sums: dict[str, float] = {}
        for found, value in self._series(name, labels):
            sums[found[label]] = sums.get(found[label], 0.0) + value
        return sums

    def histogram(self, name: str, **labels: str) -> dict[float, int]:
        """Return a histogram's counts by upper bound; LookupError if there is no such metric."""
        cumulative = self.labels(f"{name}_bucket", "le", **labels)
        bounds = sorted((float(bound), count) for bound, count in cumulative.items())
        return {
            bound: round(count - before)
            for (_, before), (bound, count) in pairwise([(0.0, 0.0), *bounds])
        }

    def mean(self, name: str, **labels: str) -> float | None:
        """Return the mean of what a histogram observed; None before it did."""
        count = self.known(f"{name}_count", **labels)
        return self.total(f"{name}_sum", **labels) / count if count else None

    def state(self, name: str, **labels: str) -> str:
        """Return the value, of a metric with one series per state, whose series is 1; else ""."""
        found = self._series(name, labels)
        return next((list(each.values())[-1] for each, value in found if value == 1), "")

    def info(self, name: str, **labels: str) -> dict[str, str]:
        """Return the labels of an info metric; LookupError if the daemon has none."""
        return next((found for found, _ in self._series(f"{name}_info", labels)), {})

    def _series(self, name: str, labels: dict[str, str]) -> list[tuple[dict[str, str], float]]:
        full = _full(name)
        if full not in self._names:
            raise LookupError(f"expected a metric {full}, the daemon has none")
        # What is counted may be NumPy's numbers, which are no use outside.
        return [
            (sample.labels, float(sample.value))
            for sample in self._samples
            if sample.name == full and labels.items() <= sample.labels.items()
        ]


def _full(name: str) -> str:
    return name if name.startswith("grpc_") else f"{NAMESPACE}_{name}"
