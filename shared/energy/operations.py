"""Modelled energy: what the counted operations would cost on 45 nm arithmetic.

A projection, never a measurement: it prices arithmetic, on request memory and radio, and leaves out
idle power and the fact that a dense convolution on a CPU or GPU performs every multiply whether or
not its input spiked. It compares networks on event-driven hardware, which is how the literature on
spiking networks uses it. Every figure made from it says *modelled*.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Annotated

import msgspec

from shared.energy.config import EnergyConfig
from shared.errors import ConfigError
from shared.model.bundle import Operations

TABLE_45_NM = Path(__file__).with_name("ops_45nm.toml")

Amount = Annotated[float, msgspec.Meta(ge=0)]


class ModelSource(StrEnum):
    """Which prices a modelled figure is made with."""

    OPS_45NM = "ops_45nm"
    OPS_45NM_MEMORY = "ops_45nm_memory"
    OPS_CUSTOM = "ops_custom"
    """A table of the user's, with memory or without."""
    RADIO = "radio"
    """A radio profile of the user's."""


class OperationCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Joules per operation."""

    multiply_accumulate_joules: Amount
    accumulate_joules: Amount
    membrane_update_joules: Amount


class MemoryCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What moving the operands costs."""

    joules_per_bit: Amount
    bits_per_synaptic_operation: Amount
    bits_per_membrane_update: Amount


class RadioProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What sending and receiving cost; the form of Huang et al., MobiSys 2012."""

    uplink_joules_per_bit: Amount
    downlink_joules_per_bit: Amount
    overhead_bytes_per_message: Amount
    active_watts: Amount
    tail_seconds: Amount


class EnergyTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices; ``ops_45nm.toml`` explains each."""

    citation: str
    operations: OperationCosts
    memory: MemoryCosts | None = None
    radio: dict[str, RadioProfile] = {}


class Radio:
    """Turns messages into the modelled energy of a radio.

    Between messages the radio is active for at most the profile's tail; that after the last message
    so far is not counted yet.

    Args:
        profile: its prices.
        clock: monotonic, in seconds.
    """

    def __init__(self, profile: RadioProfile, clock: Callable[[], float] = monotonic) -> None:
        self._profile = profile
        self._clock = clock
        self._last_seconds: float | None = None

    def joules(self, message_bytes: int, *, sent: bool) -> float:
        """Return what one message adds."""
        profile, now = self._profile, self._clock()
        gap_seconds = 0.0 if self._last_seconds is None else now - self._last_seconds
        self._last_seconds = now
        bits = 8 * (message_bytes + profile.overhead_bytes_per_message)
        per_bit = profile.uplink_joules_per_bit if sent else profile.downlink_joules_per_bit
        return bits * per_bit + profile.active_watts * min(gap_seconds, profile.tail_seconds)


class EnergyModel:
    """Prices counted operations, and messages where a radio is configured.

    Args:
        table: the prices.
        source: value of the label that names them.
        memory: whether moving operands is priced.
        radio: of this device.
    """

    def __init__(
        self,
        table: EnergyTable,
        source: ModelSource,
        *,
        memory: bool = False,
        radio: Radio | None = None,
    ) -> None:
        costs = table.operations
        self.source = source
        self.radio = radio
        self._mac = costs.multiply_accumulate_joules
        self._ac = costs.accumulate_joules
        self._neuron = costs.membrane_update_joules
        if memory and table.memory is not None:
            synapse = table.memory.joules_per_bit * table.memory.bits_per_synaptic_operation
            self._mac += synapse
            self._ac += synapse
            self._neuron += table.memory.joules_per_bit * table.memory.bits_per_membrane_update

    def joules(self, operations: Operations, timesteps: float) -> float:
        """Return the modelled energy, in joules, of a part of the network.

        Args:
            operations: mean operations per timestep of one sample.
            timesteps: timesteps computed; a mean over samples may be fractional.

        Raises:
            ValueError: ``timesteps`` is negative.
        """
        if timesteps < 0:
            raise ValueError(f"expected timesteps of at least 0, got {timesteps}")
        per_timestep_joules = (
            operations.mac * self._mac + operations.ac * self._ac + operations.neuron * self._neuron
        )
        return per_timestep_joules * timesteps


def load_table(path: Path) -> EnergyTable:
    """Read a table.

    Raises:
        ConfigError: no readable TOML, or not of the form of ``ops_45nm.toml``.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=EnergyTable)
    except OSError as error:
        raise ConfigError(f"energy.table: {path}: {error.strerror}") from error
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"energy.table: {path}: {error}") from error


@cache
def default_model() -> EnergyModel:
    """Return the model of the shipped table, arithmetic alone."""
    return EnergyModel(load_table(TABLE_45_NM), ModelSource.OPS_45NM)


def load_model(config: EnergyConfig) -> EnergyModel:
    """Return the configured model.

    Raises:
        ConfigError: the table cannot be read, or has not what is asked of it.
    """
    table = load_table(Path(config.table) if config.table else TABLE_45_NM)
    if config.memory and table.memory is None:
        raise ConfigError("energy.memory: expected a table [memory] in energy.table, there is none")
    if config.table:
        source = ModelSource.OPS_CUSTOM
    else:
        source = ModelSource.OPS_45NM_MEMORY if config.memory else ModelSource.OPS_45NM
    radio = None
    if config.radio:
        if config.radio not in table.radio:
            known = ", ".join(table.radio) or "none"
            raise ConfigError(
                f"energy.radio: expected a profile of energy.table ({known}), got {config.radio!r}"
            )
        radio = Radio(table.radio[config.radio])
    return EnergyModel(table, source, memory=config.memory, radio=radio)
