"""The leaky integrate-and-fire (LIF) neuron as a pure step: state in, state out.

The recurrence is that of ``snntorch.Leaky`` with its default delayed reset::

    R[t]   = 1 if U[t-1] > threshold else 0
    U[t]   = beta * U[t-1] + I[t] - R[t] * threshold      (reset "subtract")
    U[t]   = beta * (1 - R[t]) * U[t-1] + I[t]             (reset "zero")
    S[t]   = 1 if U[t] > threshold else 0

The reset "none" leaves the term with ``R[t]`` out. So spikes, membrane potential and gradients
equal snnTorch's to the last bit. Nothing is held in the module between calls: a ``snntorch.Leaky``
keeps its membrane in an attribute and therefore mixes the samples of threads that share it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Reset = Literal["subtract", "zero", "none"]
SpikeFunction = Callable[[Tensor], Tensor]


def heaviside(shifted: Tensor) -> Tensor:
    """Return 1 where the shifted membrane potential is positive, else 0, in the input's dtype.

    Has no gradient; training passes a surrogate from ``snntorch.surrogate`` instead.
    """
    return (shifted > 0).to(shifted.dtype)


def lif_step(
    current: Tensor,
    membrane: Tensor,
    *,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    reset: Reset = "subtract",
    spike: SpikeFunction = heaviside,
) -> tuple[Tensor, Tensor]:
    """Advance a layer of LIF neurons by one timestep.

    Args:
        current: float, ``[N, ...]``, the input current of this timestep.
        membrane: float, same shape, the membrane potential after the previous timestep
            (zeros at a sample's first).
        beta: leak, the share of the membrane potential that survives one timestep, in [0, 1].
        threshold: firing threshold; a neuron fires strictly above it.
        reset: ``"subtract"`` takes the threshold off, ``"zero"`` clears the membrane, ``"none"``
            leaves it.
        spike: step function with a surrogate gradient, applied to ``membrane - threshold``.

    Returns:
        ``(spikes, membrane)``: float 0/1 and float, both of the shape of ``current``.

    Raises:
        ValueError: ``reset`` is none of these.
    """
    fired = spike(membrane - threshold).detach().to(current.dtype)
    if reset == "subtract":
        membrane = beta * membrane + current - fired * threshold
    elif reset == "zero":
        membrane = beta * ((1 - fired) * membrane) + current
    elif reset == "none":
        membrane = beta * membrane + current
    else:
        raise ValueError(f"reset must be 'subtract', 'zero' or 'none', got {reset!r}")
    return spike(membrane - threshold).to(current.dtype), membrane


class LIF(nn.Module):
    """A layer of LIF neurons with fixed leak and threshold, applied to a run of timesteps.

    Args:
        beta: leak, in [0, 1]; a tensor becomes a buffer of the module.
        threshold: firing threshold; a tensor becomes a buffer of the module.
        reset: see :func:`lif_step`.
        spike: see :func:`lif_step`.
    """

    def __init__(
        self,
        beta: float | Tensor = 0.5,
        threshold: float | Tensor = 1.0,
        reset: Reset = "subtract",
        spike: SpikeFunction = heaviside,
    ) -> None:
        super().__init__()
        self.beta, self.threshold = (
            nn.Buffer(value) if isinstance(value, Tensor) else value for value in (beta, threshold)
        )
        self.reset = reset
        self.spike = spike

    def forward(self, currents: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run ``currents`` (float, ``[T, N, ...]``) from ``membrane`` (float, ``[N, ...]``).

        Returns:
            ``(spikes, membrane)``: float 0/1 ``[T, N, ...]``, and the membrane potential after
            the last of the T timesteps. ``membrane=None`` starts a sample (zeros).
        """
        if membrane is None:
            membrane = torch.zeros_like(currents[0])
        spikes = []
        for current in currents.unbind(0):
            fired, membrane = lif_step(
                current,
                membrane,
                beta=self.beta,
                threshold=self.threshold,
                reset=self.reset,
                spike=self.spike,
            )
            spikes.append(fired)
        return torch.stack(spikes), membrane
