import pytest

from shared.energy.operations import AC_JOULES, MAC_JOULES, NEURON_JOULES, joules
from shared.model.bundle import Operations


def test_the_constants_are_those_of_the_45_nm_table() -> None:
    assert pytest.approx(4.6e-12) == MAC_JOULES
    assert pytest.approx(0.9e-12) == AC_JOULES
    assert pytest.approx(4.6e-12) == NEURON_JOULES


def test_energy_is_operations_times_their_cost_times_timesteps() -> None:
    operations = Operations(mac=1000, ac=2000, neuron=100)
    assert joules(operations, 1) == pytest.approx(4600e-12 + 1800e-12 + 460e-12)
    assert joules(operations, 2.5) == pytest.approx(2.5 * joules(operations, 1))


def test_no_timestep_costs_nothing() -> None:
    assert joules(Operations(mac=1, ac=1, neuron=1), 0) == 0


def test_negative_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        joules(Operations(mac=1, ac=1, neuron=1), -1)
