"""Slots: each is lent to at most one sample, zeroed, and comes back exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloud_server.slots import Slots

SHAPES = ((2, 3), (4,))
LIMIT = 4


class SlotMachine(RuleBasedStateMachine):
    """Takes, uses and gives back slots in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(SHAPES, LIMIT)
        self.held: dict[int, float] = {}
        """By slot: the value that its state was filled with."""

    @precondition(lambda self: len(self.held) < LIMIT)
    @rule()
    def take(self) -> None:
        slot = self.slots.take()
        assert slot not in self.held
        assert all((array == 0).all() for array in self.slots.gather([slot]))
        self.held[slot] = 0.0

    @precondition(lambda self: len(self.held) == LIMIT)
    @rule()
    def take_too_many(self) -> None:
        with pytest.raises(ValueError, match="all 4 are taken"):
            self.slots.take()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), value=st.floats(-1, 1, width=32))
    def scatter(self, data: st.DataObject, value: float) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        state = tuple(np.full((len(some), *shape), value, np.float32) for shape in SHAPES)
        self.slots.scatter(some, state)
        self.held |= dict.fromkeys(some, value)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[slot]
        self.slots.give_back(slot)
        with pytest.raises(ValueError, match="expected a slot that is held"):
            self.slots.give_back(slot)

    @invariant()
    def state_is_that_of_the_holder(self) -> None:
        assert (self.slots.in_use, self.slots.free) == (len(self.held), LIMIT - len(self.held))
        for slot, value in self.held.items():
            assert all((array == value).all() for array in self.slots.gather([slot]))


TestSlotMachine = SlotMachine.TestCase


def test_gathering_copies() -> None:
    slots = Slots(SHAPES, 2)
    slot = slots.take()
    for array in slots.gather([slot]):
        array[:] = 7
    assert all((array == 0).all() for array in slots.gather([slot]))


def test_the_bytes_of_a_slot_are_told() -> None:
    assert Slots(SHAPES, 2).slot_bytes == (6 + 4) * 4


def test_no_slots_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 slot, got 0"):
        Slots(SHAPES, 0)
