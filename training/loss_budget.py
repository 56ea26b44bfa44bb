"""Find how early samples may leave at a bounded loss of accuracy, with a finite-sample guarantee.

The *risk* of an alpha is P(right after all T timesteps and wrong at the exit). It is an upper bound
of the accuracy lost: samples that leave early and right, but would have ended wrong, are not set
against it. A *ladder* is a sequence of alphas, T - 1 numbers each, none of which ever rises, from
no early exit at all (rung 0) down to an exit after the first timestep. A loss budget gets the last
rung before the first whose exact upper confidence bound of the risk (Clopper and Pearson 1934) is
above the budget: fixed-sequence testing, as in Angelopoulos et al. 2021, "Learn then Test". If no
early exit passes, that is rung 0: all T timesteps.

Why the budget is kept with probability 1 - delta over the draw of the testing samples: the ladder
does not depend on them. It is a constant (:func:`ladder` without offsets: one alpha for all
timesteps) or fitted to other samples (:func:`log_reducible_shares`: an alpha for each timestep).
So, before the first test, it is settled which rung is the first whose true risk is above the
budget, and a rung above the budget is returned only if that one passes. It does so with probability
delta at most, because the bound is exact for independent samples. How many rungs there are, and
whether the risk rises from each to the next, does not matter.

Each of a budget's two ladders is tested at delta / 2, so that the guarantee holds for both at once
and thus for whichever is picked by what it gave. It is a guarantee for each budget by itself, and
for inputs drawn like the testing samples: of other inputs it says nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.model.bundle import BudgetTest, alpha_names

log = logging.getLogger(__name__)

DELTA = 0.05
"""Probability, over the draw of the testing samples, that a budget is not kept."""
ALPHA_DECIMALS = 6
"""Of the alphas on a ladder, so that a printed alpha is the tested one."""
LARGEST_LOG_ODDS = 15.0
"""Ladders go from this log-odds of alpha to its negative: so rounded, from 1 to 0."""
LOG_ODDS_STEP = 0.02
"""From rung to rung."""


class Outcomes(NamedTuple):
    """What samples give after every timestep."""

    confidences: NDArray[np.float32]
    """float32, ``[T, N]``."""
    right: NDArray[np.bool_]
    """bool, ``[T, N]``."""

    @property
    def losses(self) -> NDArray[np.bool_]:
        """Wrong now and right after all T timesteps, bool ``[T, N]``."""
        found: NDArray[np.bool_] = ~self.right & self.right[-1]
        return found


def ladder(offsets: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return alphas from no early exit to an exit after the first timestep, float32 ``[R, T - 1]``.

    Rung 0 is 1 throughout, which no confidence exceeds. The log-odds of alpha fall by
    :data:`LOG_ODDS_STEP` from rung to rung.

    Args:
        offsets: float64, ``[T - 1]``: what the log-odds of each timestep's alpha are above (or
            below) those of the rung. Zeros give one alpha for all timesteps.
    """
    reach = LARGEST_LOG_ODDS + np.abs(offsets).max(initial=0.0)
    log_odds = np.arange(reach, -reach, -LOG_ODDS_STEP)[:, None] + offsets
    return np.round(1 / (1 + np.exp(-log_odds)), ALPHA_DECIMALS).astype(np.float32)


def log_reducible_shares(fitting: Outcomes) -> NDArray[np.float64]:
    """Return the offsets under which leaving is about as risky at every timestep, ``[T - 1]``.

    A calibrated confidence c is wrong with odds (1 - c) / c, but an early exit loses only by those
    errors that the later timesteps would have put right: fewer and fewer of them as t grows. Their
    share is estimated for each timestep, over all samples, because losses near alpha are too rare
    to be counted; one is added to both counts so that few samples give moderate offsets. A bad
    estimate costs timesteps, never the guarantee.

    Args:
        fitting: samples that no alpha is tested on.
    """
    losses = fitting.losses[:-1].sum(1)
    errors = (1 - fitting.confidences[:-1].astype(np.float64)).sum(1)
    shares: NDArray[np.float64] = np.log((losses + 1) / (errors + 1))
    return shares


class Walk(NamedTuple):
    """How many samples do what on each of a ladder's R rungs."""

    exits: NDArray[np.int64]
    """int64, ``[T, R]``: leave at timestep t."""
    losses: NDArray[np.int64]
    """int64, ``[R]``: leave wrong and would have been right after all T timesteps."""
    right: NDArray[np.int64]
    """int64, ``[R]``: leave right."""


def walk(rungs: NDArray[np.float32], outcomes: Outcomes) -> Walk:
    """Apply the exit rule on every rung at once.

    As no alpha rises from rung to rung, a sample that may leave at t may do so on all later rungs:
    it leaves at t from the first of them on, until it may leave earlier still.

    Args:
        rungs: float32, ``[R, T - 1]``, a ladder.
        outcomes: of N samples.
    """
    timesteps, samples = outcomes.confidences.shape
    found = Walk(
        np.zeros((timesteps, len(rungs)), np.int64),
        np.zeros(len(rungs), np.int64),
        np.zeros(len(rungs), np.int64),
    )
    end, losses = np.full(samples, len(rungs)), outcomes.losses
    for t in range(timesteps):
        start = np.zeros_like(end)
        if t < timesteps - 1:
            may_leave = np.searchsorted(-rungs[:, t], -outcomes.confidences[t], side="right")
            start = np.minimum(may_leave, end)
        right, lost = outcomes.right[t], losses[t]
        found.exits[t] = _count(start, end, len(rungs))
        found.losses[:] += _count(start[lost], end[lost], len(rungs))
        found.right[:] += _count(start[right], end[right], len(rungs))
        end = start
    return found


def _count(start: NDArray[np.int64], end: NDArray[np.int64], rungs: int) -> NDArray[np.int64]:
    """Return for each rung how many of the ranges from ``start`` to before ``end`` it lies in."""
    begun, ended = (np.bincount(edge, minlength=rungs + 1)[:rungs] for edge in (start, end))
    counts: NDArray[np.int64] = np.cumsum(begun - ended)
    return counts


def allowed_losses(samples: int, risk: float, delta: float) -> int:
    """Return the most losses whose Clopper-Pearson bound is within a risk, -1 if even 0 are not.

    The upper bound for k losses is the risk at which k or fewer have probability ``delta``; it is
    within ``risk`` if they are not more probable than that there.

    Args:
        samples: how many are tested.
        risk: in (0, 1).
        delta: 1 minus the confidence of the bound, in (0, 1).
    """
    log_yes, log_no = math.log(risk), math.log1p(-risk)
    probability = 0.0
    for losses in range(samples + 1):
        ways = (
            math.lgamma(samples + 1) - math.lgamma(losses + 1) - math.lgamma(samples - losses + 1)
        )
        probability += math.exp(ways + losses * log_yes + (samples - losses) * log_no)
        if probability > delta:
            return losses - 1
    return samples


def samples_needed(risk: float, delta: float) -> int:
    """Return the fewest samples that can show a risk, having lost none."""
    return math.ceil(math.log(delta) / math.log1p(-risk))


class BudgetAlpha(NamedTuple):
    """An alpha list for a loss budget."""

    name: str
    alpha: tuple[float, ...]
    """T - 1 float32 values."""
    test: BudgetTest


def keep_budgets(
    fitting: Outcomes, testing: Outcomes, budgets_points: Sequence[float], delta: float = DELTA
) -> list[BudgetAlpha]:
    """Return two alpha lists per budget: the same alpha for all timesteps, and one for each.

    Args:
        fitting: samples to fit the second kind's ladder to.
        testing: other samples, independent draws of the inputs that the guarantee speaks of.
        budgets_points: percentage points of accuracy that may be lost against all T timesteps.
        delta: probability that a budget's lists do not both keep it.

    Raises:
        ValueError: a budget is not between 0 and 100.
    """
    if wrong := [points for points in budgets_points if not 0 < points < 100]:
        raise ValueError(f"expected loss budgets between 0 and 100 points, got {wrong[0]}")
    offsets = log_reducible_shares(fitting)
    ladders = ladder(np.zeros_like(offsets)), ladder(offsets)
    walks = [walk(rungs, testing) for rungs in ladders]
    found = []
    for points in budgets_points:
        samples = testing.right.shape[1]
        allowed = allowed_losses(samples, points / 100, delta / len(ladders))
        if allowed < 0:
            needed = samples_needed(points / 100, delta / len(ladders))
            log.warning(
                "a loss budget of %g points takes at least %d held-out samples to test, there are "
                "%d: no early exit under it",
                *(points, needed, samples),
            )
        for name, rungs, walked in zip(alpha_names(points), ladders, walks, strict=True):
            rung = last_safe_rung(walked.losses, allowed)
            alpha = tuple(rungs[rung].tolist())
            found.append(BudgetAlpha(name, alpha, _test(walked, rung, points, delta)))
    return found


def last_safe_rung(losses: NDArray[np.int64], allowed: int) -> int:
    """Return the last rung before the first that loses more than is allowed.

    Args:
        losses: int64, ``[R]``; rung 0 needs no test, nothing leaves early there.
        allowed: see :func:`allowed_losses`.
    """
    failed = np.flatnonzero(losses[1:] > allowed)
    return int(failed[0]) if len(failed) else len(losses) - 1


def _test(walked: Walk, rung: int, points: float, delta: float) -> BudgetTest:
    exits = walked.exits[:, rung]
    samples = int(exits.sum())
    return BudgetTest(
        points=points,
        delta=delta,
        images=samples,
        observed_risk=int(walked.losses[rung]) / samples,
        accuracy=int(walked.right[rung]) / samples,
        exit_distribution=tuple((exits / samples).tolist()),
    )
