"""Modelled energy: what the counted operations would cost on 45 nm arithmetic.

A projection, never a measurement: it prices arithmetic alone and leaves out memory traffic, idle
power and the fact that a dense convolution on a CPU or GPU performs every multiply whether or not
its input spiked. It compares networks on event-driven hardware, which is how the literature on
spiking networks uses it. Every figure made from it says *modelled*.
"""

from __future__ import annotations

from shared.model.bundle import Operations

SOURCE = "ops_45nm"
"""Name of this model wherever its figures appear."""

MULTIPLY_JOULES = 3.7e-12
"""One float32 multiplication; Horowitz, ISSCC 2014, "Computing's energy problem", 45 nm, 0.9 V."""
ADD_JOULES = 0.9e-12
"""One float32 addition; same table."""

MAC_JOULES = MULTIPLY_JOULES + ADD_JOULES
"""One multiply-accumulate (4.6 pJ): a synapse whose input is not binary."""
AC_JOULES = ADD_JOULES
"""One accumulate (0.9 pJ): a synapse that received a spike."""
NEURON_JOULES = MAC_JOULES
"""One membrane update, ``beta * mem + current``: one multiplication and one addition.

Many papers leave it out. We count it, as a full multiply-accumulate, because a network of few
spikes and many neurons would otherwise look free.
"""


def joules(operations: Operations, timesteps: float) -> float:
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
        operations.mac * MAC_JOULES + operations.ac * AC_JOULES + operations.neuron * NEURON_JOULES
    )
    return per_timestep_joules * timesteps
