from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shared.energy.config import EnergyConfig
from shared.energy.operations import (
    TABLE_45_NM,
    Radio,
    RadioProfile,
    default_model,
    load_model,
    load_table,
)
from shared.errors import ConfigError
from shared.metrics import Direction, EdgeMetrics
from shared.model.bundle import Operations

MAC, AC, NEURON = (
    Operations(mac=1, ac=0, neuron=0),
    Operations(mac=0, ac=1, neuron=0),
    Operations(mac=0, ac=0, neuron=1),
)
OWN = """
citation = "measured on my chip"
[operations]
multiply_accumulate_joules = 2e-12
accumulate_joules = 1e-12
membrane_update_joules = 0
[radio.modem]
uplink_joules_per_bit = 1e-6
downlink_joules_per_bit = 5e-7
overhead_bytes_per_message = 80
active_watts = 0.5
tail_seconds = 10
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


def test_the_prices_are_those_of_the_45_nm_table() -> None:
    model = default_model()
    prices = [model.joules(each, 1) for each in (MAC, AC, NEURON)]
    assert prices == pytest.approx([4.6e-12, 0.9e-12, 4.6e-12])
    assert model.source == "ops_45nm"
    assert model.radio is None
    assert "Horowitz" in load_table(TABLE_45_NM).citation


def test_energy_is_operations_times_their_cost_times_timesteps() -> None:
    model, operations = default_model(), Operations(mac=1000, ac=2000, neuron=100)
    assert model.joules(operations, 1) == pytest.approx(4600e-12 + 1800e-12 + 460e-12)
    assert model.joules(operations, 2.5) == pytest.approx(2.5 * model.joules(operations, 1))
    assert model.joules(operations, 0) == 0
    with pytest.raises(ValueError, match="at least 0, got -1"):
        model.joules(operations, -1)


def test_memory_is_priced_when_asked_for() -> None:
    model = load_model(EnergyConfig(memory=True))
    prices = [model.joules(each, 1) for each in (MAC, AC, NEURON)]
    # 64 bits cost 10 pJ: 96 bits of a synapse 15, 64 of a membrane 10.
    assert prices == pytest.approx([19.6e-12, 15.9e-12, 14.6e-12])
    assert model.source == "ops_45nm_memory"


def test_a_table_of_the_users(own: Path) -> None:
    model = load_model(EnergyConfig(table=str(own)))
    assert model.joules(Operations(mac=1, ac=1, neuron=9), 1) == pytest.approx(3e-12)
    assert model.source == "ops_custom"
    assert model.radio is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": True}, r"expected a table \[memory\]"),
        ({"radio": "wifi"}, r"profile of energy.table \(modem\), got 'wifi'"),
        ({"table": "nowhere.toml"}, "nowhere.toml: No such file"),
        ({"table": str(Path(__file__))}, "test_operations.py: "),
    ],
)
def test_what_the_table_does_not_hold_is_refused(
    own: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_model(EnergyConfig(**({"table": str(own)} | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("line", ["accumulate_joules = -1", "more_joules = 1", "accumulate_joules"])
def test_a_wrong_table_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(OWN.replace("accumulate_joules = 1e-12", line, 1))
    with pytest.raises(ConfigError, match="bad.toml: "):
        load_table(path)


def profile(**changes: float) -> RadioProfile:
    prices = {
        "uplink_joules_per_bit": 1e-6,
        "downlink_joules_per_bit": 5e-7,
        "overhead_bytes_per_message": 80.0,
        "active_watts": 0.5,
        "tail_seconds": 10.0,
    }
    return RadioProfile(**(prices | changes))


def test_a_radio_is_priced_by_bits_and_by_the_time_it_is_awake() -> None:
    now = 100.0
    radio = Radio(profile(), lambda: now)
    assert radio.joules(20, sent=True) == pytest.approx(800e-6)
    now += 2
    assert radio.joules(45, sent=False) == pytest.approx(1000 * 5e-7 + 2 * 0.5)
    now += 60  # asleep after ten seconds
    assert radio.joules(20, sent=True) == pytest.approx(800e-6 + 10 * 0.5)


@given(st.lists(st.floats(0, 30), max_size=20))
def test_a_radio_is_never_awake_longer_than_the_time_that_passed(gaps: list[float]) -> None:
    now = 0.0
    radio = Radio(profile(uplink_joules_per_bit=0.0, active_watts=1.0), lambda: now)
    awake_seconds = radio.joules(10, sent=True)
    for gap in gaps:
        now += gap
        awake_seconds += radio.joules(10, sent=True)
    assert 0 <= awake_seconds <= min(now, 10 * len(gaps)) + 1e-6


def test_messages_of_a_radio_show_as_its_own_component(own: Path) -> None:
    registry = CollectorRegistry()
    energy = load_model(EnergyConfig(table=str(own), radio="modem"))
    edge = EdgeMetrics(registry, model="tiny", energy=energy)
    labels = {"model": "tiny", "component": "radio", "source": "radio", "basis": "bytes"}
    name = "neucodex_modelled_energy_joules_total"
    assert registry.get_sample_value(name, labels) is None
    edge.message(20, Direction.SENT)
    assert registry.get_sample_value(name, labels) == pytest.approx(800e-6)
