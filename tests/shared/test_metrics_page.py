from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from shared import metrics_page
from shared.energy.meter import Component, Meter, Reading, Source
from shared.metrics import NAMESPACE, CloudMetrics, EdgeMetrics
from shared.metrics_page import PAGE, main, page, tables
from shared.tcp_info import Totals


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page()
    assert main(["--check"]) == 0


def test_a_stale_page_is_found_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_page, "PAGE", tmp_path / "metrics.md")
    assert main(["--check"]) == 1
    assert "is stale" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0


class Wire:
    """Tells all there is to tell."""

    def poll(self) -> Totals:
        return Totals(1, 1, 1, 0.1, 1.0)


class Steady:
    """A sensor that always tells the same."""

    source = Source.RAPL
    interval_seconds = max_gap_seconds = 1.0

    def read(self) -> list[Reading]:
        return [Reading(Component.TOTAL, 0.0, 1.0)]

    def close(self) -> None: ...


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_everything_that_a_daemon_shows_is_on_the_page(side: str) -> None:
    registry, meter = CollectorRegistry(), Meter([Steady()])
    metrics: EdgeMetrics | CloudMetrics
    metrics = EdgeMetrics(registry, model="m") if side == "edge" else CloudMetrics(registry)
    metrics.watch_wire(Wire(), "peer")
    metrics.watch_energy(meter)
    meter.samplers[0].poll()
    shown = {family.name for family in registry.collect()}
    described = {name.removesuffix("_total") for each in tables().values() for name in each}
    infos = {f"{NAMESPACE}_{name}" for name in ("build", "codec", "model")}
    other = "cloud" if side == "edge" else "edge"
    mine = {name for name in described if not name.startswith(f"{NAMESPACE}_{other}_")}
    if side == "cloud":  # It calls nobody.
        mine = {name for name in mine if not name.startswith("grpc_client_")}
    assert shown == mine | infos
