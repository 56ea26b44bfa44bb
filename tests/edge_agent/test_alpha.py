from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_agent.alpha import ChosenAlpha, choose_alpha, exit_shares
from edge_agent.config import EdgeConfig
from shared.errors import ConfigError
from shared.model.bundle import BudgetTest, Bundle, Calibration

SINGLE, BY_TIMESTEP = "loss_budget_0.5_points", "loss_budget_0.5_points_by_timestep"
LISTS = {"full": (1.0, 1.0, 1.0), SINGLE: (0.75, 0.75, 0.75), BY_TIMESTEP: (0.75, 0.5, 0.25)}


@pytest.fixture
def calibration(tiny_bundle: Bundle) -> Calibration:
    """Half a point may be lost under two lists, of which the second takes fewer timesteps."""
    tests = {
        name: BudgetTest(
            points=0.5,
            delta=0.05,
            images=5000,
            observed_risk=0.003,
            accuracy=0.9,
            exit_distribution=distribution,
        )
        for name, distribution in ((SINGLE, (0.5, 0, 0, 0.5)), (BY_TIMESTEP, (0.5, 0.1, 0, 0.4)))
    }
    return msgspec.structs.replace(
        tiny_bundle.calibration(), alpha=LISTS, tests=tests, default_alpha=SINGLE
    )


def chosen(calibration: Calibration, **keys: Any) -> ChosenAlpha:
    return choose_alpha(EdgeConfig(bundle="b", **keys), calibration, 4)


def test_points_take_the_list_with_fewer_timesteps_and_names_the_one_named(
    calibration: Calibration,
) -> None:
    assert chosen(calibration, loss_budget=0.5) == (BY_TIMESTEP, LISTS[BY_TIMESTEP])
    assert chosen(calibration, loss_budget=SINGLE) == (SINGLE, LISTS[SINGLE])
    assert chosen(calibration) == (SINGLE, LISTS[SINGLE])
    assert chosen(calibration, loss_budget="full") == ("full", (1, 1, 1))


def test_a_configured_alpha_holds(calibration: Calibration) -> None:
    assert chosen(calibration, alpha=0.5) == ("configured", (0.5, 0.5, 0.5))
    assert chosen(calibration, alpha=(0.5, 0.25, 0.125)) == ("configured", (0.5, 0.25, 0.125))


def test_the_whole_network_runs_for_all_timesteps_unless_told_otherwise(
    calibration: Calibration,
) -> None:
    whole = {"placement": "edge_only", "network": "whole"}

    assert chosen(calibration, **whole) == ("full", (1, 1, 1))
    assert chosen(calibration, **whole, loss_budget=SINGLE) == (SINGLE, LISTS[SINGLE])


def test_a_list_calibrated_for_another_confidence_is_refused(calibration: Calibration) -> None:
    for keys in ({}, {"loss_budget": 0.5}):
        with pytest.raises(ConfigError, match="confidence: expected 'max_softmax', .*'entropy'"):
            chosen(calibration, confidence="entropy", **keys)
    assert chosen(calibration, confidence="entropy", alpha=0.5).name == "configured"
    assert chosen(calibration, confidence="max_softmax", loss_budget=SINGLE).name == SINGLE


@pytest.mark.parametrize("budget", [1, 0.25, "loss_budget_1.0_points", ""])
def test_what_the_bundle_is_not_calibrated_for_is_refused(
    calibration: Calibration, budget: float | str
) -> None:
    with pytest.raises(ConfigError, match=f"loss_budget: expected .*full, .*{BY_TIMESTEP}"):
        chosen(calibration, loss_budget=budget)


def test_exit_shares_are_the_calibrations_unless_no_sample_may_exit_early(
    calibration: Calibration,
) -> None:
    assert exit_shares(calibration, (0.5, 1.0, 1.0)) == calibration.exit_distribution
    assert exit_shares(calibration, (1.0, 1.0, 1.0)) == (0, 0, 0, 1)
    assert exit_shares(calibration, ()) == (1.0,)
