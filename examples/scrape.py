"""Read a daemon's ``/metrics`` endpoint."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from shared.readings import Readings

TIMEOUT_SECONDS = 10.0


class Scrape(Readings):
    """What a daemon told at one moment.

    Args:
        text: the answer of its endpoint, in Prometheus' text format.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text_string_to_metric_families(text))


def scrape(address: str) -> Scrape:
    """Read the endpoint at ``host:port``; OSError if it does not answer."""
    url = f"http://{address}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply:
        return Scrape(reply.read().decode())
