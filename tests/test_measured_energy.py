"""Both daemons export what a meter measures."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from examples.pair import run_cloud, run_edge
from examples.scrape import Scrape, scrape
from shared.model.bundle import Bundle

PATIENCE_SECONDS = 30.0
WATTS = 5.0


def scrape_until(address: str, joules: float) -> Scrape:
    """Scrape until as much energy has been measured."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = scrape(address)
        name = "measured_energy_joules_total"
        if found.has(name) and found.total(name) >= joules:
            return found
        assert time.monotonic() < deadline, f"expected {joules} J, they did not come"
        time.sleep(0.01)


def test_both_daemons_export_what_a_meter_measures(tmp_path: Path, tiny_bundle: Bundle) -> None:
    meter, config = tmp_path / "meter.jsonl", tmp_path / "energy.toml"
    meter.touch()
    config.write_text(f"[energy]\nsensors = false\nexternal_meter = '{meter}'\n")
    with_config = ("--config", str(config))
    with (
        run_cloud(tmp_path, tiny_bundle.path, *with_config) as cloud,
        run_edge(tmp_path, tiny_bundle.path, "--placement", "edge_only", *with_config) as edge,
    ):
        assert not scrape(edge.metrics).has("measured_energy_joules_total")
        with meter.open("a") as file:
            for second in range(4):
                file.write(f'{{"watts": {WATTS}, "time_seconds": {second}}}\n')
        for daemon in (cloud, edge):
            found = scrape_until(daemon.metrics, 3 * WATTS)
            labels = {"component": "total", "source": "external_meter"}
            assert found.total("measured_energy_joules_total", **labels) == pytest.approx(3 * WATTS)
            assert found.total("measured_power_watts", **labels) == WATTS
            assert found.total("energy_unsampled_seconds_total") == 0
            assert found.total("energy_sensor_errors_total") == 0
