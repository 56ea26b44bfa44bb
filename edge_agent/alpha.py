"""Which exit thresholds hold: those of the configuration, or a list of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_agent.config import EdgeConfig
from shared.errors import ConfigError
from shared.exit_rule import expand_alpha
from shared.model.bundle import Calibration, pick_alpha


class ChosenAlpha(NamedTuple):
    """Alpha, and where it is from."""

    name: str
    """Of the bundle's list, else ``configured``, or ``full`` for all T timesteps."""
    values: tuple[float, ...]
    """T - 1 float32 values."""


def choose_alpha(config: EdgeConfig, calibration: Calibration, timesteps: int) -> ChosenAlpha:
    """Return alpha for T timesteps: the configured one, else the bundle's.

    The network before the bottleneck was inserted was not calibrated: by default it runs over all
    T timesteps, as the baseline *edge-only-full* does.

    Raises:
        ConfigError: a list of another length than T - 1, no such list in the bundle, or one that is
            calibrated for another confidence.
    """
    if config.alpha is not None:
        return ChosenAlpha("configured", _expand(config.alpha, timesteps))
    if config.loss_budget is None and config.network == "whole":
        return ChosenAlpha("full", _expand(1.0, timesteps))
    if config.confidence not in (None, calibration.confidence):
        raise ConfigError(
            f"confidence: expected {calibration.confidence!r}, which the bundle's alpha lists are "
            f"calibrated for, unless alpha is set; got {config.confidence!r}"
        )
    name = _listed(config.loss_budget, calibration)
    return ChosenAlpha(name, _expand(calibration.alpha[name], timesteps))


def _expand(alpha: float | tuple[float, ...], timesteps: int) -> tuple[float, ...]:
    try:
        return expand_alpha(alpha, timesteps)
    except ValueError as error:
        raise ConfigError(f"alpha: {error}") from error


def _listed(budget: float | str | None, calibration: Calibration) -> str:
    """Return the name of the bundle's list for points, a name or, if None, the default."""
    lists = calibration.alpha
    if isinstance(budget, int | float):
        try:
            return pick_alpha(budget, lists, calibration.tests)
        except ValueError as error:
            raise ConfigError(f"loss_budget: {error}") from error
    name = calibration.default_alpha if budget is None else budget
    if name not in lists:
        raise ConfigError(f"loss_budget: expected one of {', '.join(lists)}, got {name!r}")
    return name


def exit_shares(calibration: Calibration, alpha: Sequence[float]) -> tuple[float, ...]:
    """Return what share of the samples is likely to exit at t = 0..T-1.

    It was measured under the bundle's default list and stands in for others, but where ``alpha``
    lets no sample exit early.
    """
    if all(value >= 1 for value in alpha):
        return (0.0,) * len(alpha) + (1.0,)
    return calibration.exit_distribution
