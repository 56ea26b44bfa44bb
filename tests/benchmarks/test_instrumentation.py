"""What the metrics cost: figures from made-up costs, and the pair that has none."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from benchmarks.instrumentation import CONTROL, METERED, SILENT, Cost, figures, measure
from benchmarks.silent import SilentCloudMetrics, SilentEdgeMetrics
from shared.metrics import EdgeStage, Part
from shared.model.bundle import Bundle, Operations


def test_overhead_is_told_round_by_round_beside_that_of_equal_pairs() -> None:
    costs = {
        METERED: [Cost(1.02, 0.5, 0.52), Cost(2.04, 1.0, 1.04), Cost(3.06, 1.5, 1.56)],
        SILENT: [Cost(1.0, 0.5, 0.5), Cost(2.0, 1.0, 1.0), Cost(3.0, 1.5, 1.5)],
        CONTROL: [Cost(1.01, 0.5, 0.5), Cost(2.0, 1.0, 1.0), Cost(3.0, 1.5, 1.5)],
    }
    found = {result.name: result for result in figures(costs)}
    assert found["overhead_of_timestep"].value == pytest.approx(0.02)
    assert found["overhead_of_cpu"].value == pytest.approx(0.02)
    assert found["difference_of_equals_timestep"].value == 0
    assert found["timestep_cloud_cpu_added"].value == pytest.approx(0.04)
    assert found["overhead_of_timestep"].goal == "at most 0.03"


def test_silent_metrics_tell_nothing() -> None:
    edge = SilentEdgeMetrics("tiny")
    edge.stage(EdgeStage.HEAD, 1.0)
    edge.spikes(np.ones((1, 2, 2), np.uint8))
    assert edge.operations(Part.HEAD, Operations(mac=1, ac=1, neuron=1), 1) == 0
    registry = CollectorRegistry()
    cloud = SilentCloudMetrics(registry)
    cloud.message("tiny", None)(5)  # type: ignore[arg-type]
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert names == {"neucodex_build_info", "neucodex_codec_info"}


@pytest.mark.slow
def test_both_pairs_are_measured(tiny_bundle: Bundle) -> None:
    settings, results = measure(tiny_bundle, quick=True)
    assert settings["timesteps"] == 4
    values = {result.name: result.value for result in results}
    for name in (METERED, SILENT, CONTROL):
        assert values[f"timestep_{name}"] > 0
        assert values[f"timestep_cloud_cpu_{name}"] > 0
    # Far from the goal, which is for a quiet machine: only that the pairs are comparable.
    assert -0.5 < values["overhead_of_cpu"] < 0.5
