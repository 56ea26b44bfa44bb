"""Read a daemon's ``/metrics`` endpoint."""

from __future__ import annotations

import urllib.request
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

NAMESPACE = "neucodex"
TIMEOUT_SECONDS = 10.0
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count", "_info")


class Scrape:
    """What a daemon told at one moment.

    Args:
        text: the answer of its endpoint, in Prometheus' text format.
    """

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self._names = {family.name + suffix for family in families for suffix in SUFFIXES}
        self._samples = [sample for family in families for sample in family.samples]

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

    def info(self, name: str) -> dict[str, str]:
        """Return the labels of an info metric; LookupError if the daemon has none."""
        return next((labels for labels, _ in self._series(f"{name}_info", {})), {})

    def _series(self, name: str, labels: dict[str, str]) -> list[tuple[dict[str, str], float]]:
        full = _full(name)
        if full not in self._names:
            raise LookupError(f"expected a metric {full}, the daemon has none")
        return [
            (sample.labels, sample.value)
            for sample in self._samples
            if sample.name == full and labels.items() <= sample.labels.items()
        ]


def _full(name: str) -> str:
    return name if name.startswith("grpc_") else f"{NAMESPACE}_{name}"


def scrape(address: str) -> Scrape:
    """Read the endpoint at ``host:port``; OSError if it does not answer."""
    url = f"http://{address}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply:
        return Scrape(reply.read().decode())
