"""The guarantee itself, over many draws from a distribution whose true risks are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import comb
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training import loss_budget
from training.calibrate import Decisions, exit_accuracy, exit_timesteps, judge, outcomes
from training.loss_budget import (
    Outcomes,
    allowed_losses,
    keep_budgets,
    ladder,
    last_safe_rung,
    log_reducible_shares,
    samples_needed,
    walk,
)

TIMESTEPS, CLASSES, INPUTS = 4, 5, 8_000
DRAWS, FITTING, TESTING = 1000, 100, 1000
POINTS, DELTA = 2.0, 0.2
"""Delta is large so that the draws tell it, and half of it, from twice as much."""


class World(NamedTuple):
    """A finite distribution: inputs are drawn from it with replacement, so its risks are exact."""

    decisions: Decisions
    labels: NDArray[np.int64]

    @property
    def outcomes(self) -> Outcomes:
        return outcomes(self.decisions, self.labels)

    def draw(self, generator: np.random.Generator, samples: int) -> Outcomes:
        chosen = generator.integers(0, INPUTS, samples)
        confidences, right = self.outcomes
        return Outcomes(confidences[:, chosen], right[:, chosen])

    def risk(self, alpha: tuple[float, ...]) -> float:
        """Return P(right after all timesteps, wrong at the exit), by the exit rule itself."""
        right = self.decisions.labels == self.labels
        exit_at = exit_timesteps(self.decisions, alpha)
        return float((right[-1] & ~right[exit_at, np.arange(INPUTS)]).mean())


@pytest.fixture(scope="module")
def world() -> World:
    """Logits that grow surer with t of a class that, for some inputs, is wrong at first."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, CLASSES, INPUTS)
    truth = np.eye(CLASSES)[labels]
    strength = generator.gamma(2.0, 1.5, (INPUTS, 1))
    noise = generator.normal(0, 2.0, (TIMESTEPS, INPUTS, CLASSES))
    logits = (strength * truth + noise).astype(np.float32)
    return World(judge(logits, temperature=1.3), labels)


def picked_risks(world: World) -> Iterator[tuple[float, float, float, float]]:
    """Yield what each draw's alphas truly risk: single, by timestep, picked; and its timesteps."""
    generator = np.random.default_rng(11)
    for _ in range(DRAWS):
        fitting, testing = world.draw(generator, FITTING), world.draw(generator, TESTING)
        found = keep_budgets(fitting, testing, [POINTS], DELTA)
        picked = min(found, key=lambda each: each.test.mean_timesteps)
        single, by_timestep = (world.risk(each.alpha) for each in found)
        yield single, by_timestep, world.risk(picked.alpha), picked.test.mean_timesteps


def most_violations(rate: float) -> int:
    """Return what the violations in all draws exceed with probability 1e-4 at this rate."""
    below = Fraction(0)
    share = Fraction(rate).limit_denominator(10**6)
    for count in range(DRAWS + 1):
        below += comb(DRAWS, count) * share**count * (1 - share) ** (DRAWS - count)
        if below > 1 - Fraction(1, 10**4):
            return count
    return DRAWS


def violations(risks: NDArray[np.float64]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = (risks[:, :3] > POINTS / 100).sum(0)
    return counts


def test_the_true_risk_exceeds_the_budget_no_more_often_than_promised(world: World) -> None:
    risks = np.array(list(picked_risks(world)))

    single, by_timestep, picked = violations(risks)
    assert single <= most_violations(DELTA / 2)
    assert by_timestep <= most_violations(DELTA / 2)
    assert picked <= most_violations(DELTA)
    # It is kept by testing, not by never leaving early: most of the budget is used.
    assert np.median(risks[:, 0]) > POINTS / 200
    assert np.median(risks[:, 1]) > POINTS / 200
    assert risks[:, 3].mean() < TIMESTEPS - 1


@pytest.mark.parametrize(
    "rule",
    [lambda n, risk, delta: int(n * risk), lambda n, risk, delta: allowed_losses(n, risk, 0.5)],
    ids=["the observed risk itself", "a bound that is less sure"],
)
def test_a_rule_without_the_exact_bound_breaks_the_promise_on_the_same_draws(
    world: World, rule: Callable[[int, float, float], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_budget, "allowed_losses", rule)

    single, by_timestep, picked = violations(np.array(list(picked_risks(world))))

    assert single > most_violations(DELTA / 2)
    assert by_timestep > most_violations(DELTA / 2)
    assert picked > most_violations(DELTA)


def random_outcomes(seed: int, timesteps: int, samples: int) -> Outcomes:
    generator = np.random.default_rng(seed)
    confidences = generator.random((timesteps, samples)).astype(np.float32)
    confidences[generator.random((timesteps, samples)) < 0.2] = 1
    return Outcomes(confidences, generator.random((timesteps, samples)) < 0.7)


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_every_rung_is_what_the_exit_rule_makes_of_its_alpha(seed: int, timesteps: int) -> None:
    found = random_outcomes(seed, timesteps, 30)
    offsets = np.random.default_rng(seed).normal(0, 2, timesteps - 1)
    rungs = ladder(offsets)[:: 1 + seed % 50]

    walked = walk(rungs, found)

    for rung, alpha in enumerate(rungs.tolist()):
        decisions = Decisions(found.right.astype(np.int64), found.confidences)
        exit_at = exit_timesteps(decisions, tuple(alpha))
        at_exit = found.right[exit_at, np.arange(30)]
        assert walked.exits[:, rung].tolist() == np.bincount(exit_at, minlength=timesteps).tolist()
        assert walked.losses[rung] == (found.right[-1] & ~at_exit).sum()
        assert walked.right[rung] == at_exit.sum()


@given(st.lists(st.floats(-3, 3), max_size=5))
def test_a_ladder_falls_from_no_early_exit_to_the_first_timestep(offsets: list[float]) -> None:
    rungs = ladder(np.array(offsets))

    assert rungs.shape[1] == len(offsets)
    assert (rungs[0] == 1).all()
    assert (np.diff(rungs, axis=0) <= 0).all()
    assert (rungs[-1] == 0).all()
    middle = rungs[((rungs > 0.01) & (rungs < 0.99)).all(axis=1)].astype(np.float64)
    log_odds = np.log(middle / (1 - middle)) - np.array(offsets)
    assert len(middle) > 50
    assert (np.abs(log_odds - log_odds[:, :1]) < 0.001).all()


@given(st.integers(1, 60), st.floats(0.001, 0.9), st.floats(0.001, 0.5))
def test_the_most_losses_allowed_are_those_of_the_exact_binomial(
    samples: int, risk: float, delta: float
) -> None:
    def probability(losses: int) -> Fraction:
        p = Fraction(risk)
        return sum(
            (comb(samples, k) * p**k * (1 - p) ** (samples - k) for k in range(losses + 1)),
            Fraction(0),
        )

    allowed = allowed_losses(samples, risk, delta)

    assert probability(allowed) <= delta * (1 + 1e-9)
    assert probability(allowed + 1) >= delta * (1 - 1e-9)


def test_the_most_losses_allowed_of_5000() -> None:
    # Clopper-Pearson bounds at 97.5 % (scipy.stats.beta): 0.4943 % of 15 in 5,000, 0.5191 % of 16.
    assert allowed_losses(5000, 0.005, 0.025) == 15


@given(st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_too_few_samples_show_nothing(risk: float, delta: float) -> None:
    needed = samples_needed(risk, delta)

    assert allowed_losses(needed + 1, risk, delta) >= 0
    assert allowed_losses(needed - 1, risk, delta) == -1


def test_the_first_rung_that_fails_ends_the_search() -> None:
    assert last_safe_rung(np.array([0, 1, 2, 3, 0]), 2) == 2
    assert last_safe_rung(np.array([0, 3, 0, 0, 0]), 2) == 0
    assert last_safe_rung(np.array([0, 1, 2, 2, 2]), 2) == 4
    assert last_safe_rung(np.array([0, 0, 0]), -1) == 0


def test_the_alphas_of_timesteps_with_fewer_errors_to_put_right_are_lower() -> None:
    right = np.ones((3, 1000), np.bool_)
    right[0, :100] = right[1, :10] = False
    confidences = np.full((3, 1000), 0.8, np.float32)

    offsets = log_reducible_shares(Outcomes(confidences, right))

    assert offsets == pytest.approx([np.log(101 / 201), np.log(11 / 201)])
    rungs = ladder(offsets)
    assert (rungs[1:-1, 1] <= rungs[1:-1, 0]).all()


def test_alpha_and_figures_of_a_budget(world: World) -> None:
    generator = np.random.default_rng(3)
    fitting, testing = world.draw(generator, 500), world.draw(generator, 5000)

    found = keep_budgets(fitting, testing, [0.5, 2])

    assert [each.name for each in found] == [
        *("loss_budget_0.5_points", "loss_budget_0.5_points_by_timestep"),
        *("loss_budget_2.0_points", "loss_budget_2.0_points_by_timestep"),
    ]
    assert [each.test.points for each in found] == [0.5, 0.5, 2, 2]
    for name, alpha, test in found:
        assert (len(set(alpha)) > 1) == name.endswith("by_timestep")
        # What is printed with six digits is what was tested.
        assert alpha == tuple(float(np.float32(f"{value:.6g}")) for value in alpha)
        decisions = Decisions(testing.right.astype(np.int64), testing.confidences)
        exit_at = exit_timesteps(decisions, alpha)
        right = np.ones(5000, np.int64)
        assert test.accuracy == exit_accuracy(decisions, right, exit_at)
        assert test.mean_timesteps == pytest.approx(exit_at.mean() + 1)
        lost = testing.right[-1] & ~testing.right[exit_at, np.arange(5000)]
        assert 0 < test.observed_risk == lost.mean() < test.points / 100
        assert (test.images, test.delta) == (5000, 0.05)


def test_where_nothing_can_be_shown_all_timesteps_run(caplog: pytest.LogCaptureFixture) -> None:
    found = keep_budgets(random_outcomes(0, 4, 10), random_outcomes(1, 4, 300), [0.5])

    assert [each.alpha for each in found] == [(1, 1, 1), (1, 1, 1)]
    for each in found:
        assert each.test.exit_distribution == (0, 0, 0, 1)
        assert (each.test.observed_risk, each.test.mean_timesteps) == (0, 4)
    assert "takes at least 736 held-out samples to test, there are 300" in caplog.text


def test_early_exit_that_gains_accuracy_is_no_loss() -> None:
    right = np.stack([np.ones(1000, np.bool_), np.zeros(1000, np.bool_)])
    everywhere = Outcomes(np.full((2, 1000), 0.5, np.float32), right)

    for each in keep_budgets(everywhere, everywhere, [0.5]):
        assert each.test.exit_distribution == (1, 0)
        assert (each.test.observed_risk, each.test.accuracy) == (0, 1)


def test_one_timestep_has_no_alpha() -> None:
    outcome = random_outcomes(0, 1, 50)

    for each in keep_budgets(outcome, outcome, [1]):
        assert (each.alpha, each.test.exit_distribution) == ((), (1,))


@pytest.mark.parametrize("points", [0, 100, -1, float("nan")])
def test_a_budget_that_is_none_is_refused(points: float) -> None:
    with pytest.raises(ValueError, match="expected loss budgets between 0 and 100 points, got"):
        keep_budgets(random_outcomes(0, 2, 5), random_outcomes(1, 2, 5), [1, points])
