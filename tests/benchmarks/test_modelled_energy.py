"""The saving of modelled energy: from made-up figures, and through real daemons."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.modelled_energy import Spent, figures, run_bundle, savings, spent_by
from examples.scrape import Scrape
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import picture

SPENT = {
    "co_inference": Spent(1e-6, 4e-6, 1.0, 2.0),
    "edge_only_exit": Spent(5e-6, 8e-6, 1.0, 2.0),
    "edge_only_full": Spent(20e-6, 40e-6, 0.0, 4.0),
}


def test_savings_are_shares_of_each_mode_with_and_without_memory() -> None:
    found = {result.name: result for result in figures("tiny", "layer1", SPENT)}
    assert found["tiny_saved_of_edge_only_full"].value == pytest.approx(0.95)
    assert found["tiny_saved_of_edge_only_exit"].value == pytest.approx(0.8)
    assert found["tiny_saved_of_edge_only_full_with_memory"].value == pytest.approx(0.9)
    assert found["tiny_saved_of_edge_only_exit_with_memory"].value == pytest.approx(0.5)


def test_the_goal_of_layer1_is_no_other_splits() -> None:
    for split, goal in (("layer1", "at least 0.9"), ("layer3", None)):
        goals = {result.goal for result in figures("tiny", split, SPENT)}
        assert goals == {None, goal}


def test_energy_that_is_not_that_of_the_operations_is_refused() -> None:
    counted = 'neucodex_synaptic_operations_total{model="m",part="head",kind="%s"} 1000\n'
    text = "# TYPE neucodex_synaptic_operations_total counter\n"
    text += "".join(counted % kind for kind in ("mac", "ac", "neuron"))
    text += "# TYPE neucodex_modelled_energy_joules_total counter\n"
    text += 'neucodex_modelled_energy_joules_total{model="m"} 1\n'
    with pytest.raises(ValueError, match="by the shipped prices"):
        spent_by(Scrape(text), 1)


@pytest.mark.slow
def test_daemons_tell_what_they_spend(tiny_bundle: Bundle) -> None:
    inputs = np.stack([picture(seed) for seed in range(3)])
    spent = run_bundle(tiny_bundle, inputs, np.zeros(3, np.int64))
    assert spent["co_inference"].counted_share == 1
    assert spent["edge_only_full"].timesteps == tiny_bundle.spec.timesteps
    assert all(0 < each.joules < each.memory_joules for each in spent.values())
    # The same head on the same images; the tail comes on top.
    assert spent["co_inference"].joules < spent["edge_only_exit"].joules
    assert savings(spent, False, "edge_only_exit") > 0
