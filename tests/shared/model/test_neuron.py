from __future__ import annotations

import pytest
import snntorch
import torch
from snntorch import surrogate
from torch import Tensor

from shared.model.neuron import LIF, Reset, lif_step


def run_leaky(
    currents: Tensor, beta: float, threshold: float, reset: str
) -> tuple[Tensor, Tensor, Tensor]:
    leaf = currents.clone().requires_grad_()
    layer = snntorch.Leaky(
        beta=beta,
        threshold=threshold,
        reset_mechanism=reset,
        spike_grad=surrogate.atan(alpha=2.0),
    )
    membrane = layer.init_leaky()
    spikes, membranes = [], []
    for current in leaf:
        fired, membrane = layer(current, membrane)
        spikes.append(fired)
        membranes.append(membrane)
    return finish(leaf, torch.stack(spikes), torch.stack(membranes))


def run_ours(
    currents: Tensor, beta: float, threshold: float, reset: Reset
) -> tuple[Tensor, Tensor, Tensor]:
    leaf = currents.clone().requires_grad_()
    spike = surrogate.atan(alpha=2.0)
    membrane = torch.zeros_like(currents[0])
    spikes, membranes = [], []
    for current in leaf:
        fired, membrane = lif_step(
            current, membrane, beta=beta, threshold=threshold, reset=reset, spike=spike
        )
        spikes.append(fired)
        membranes.append(membrane)
    return finish(leaf, torch.stack(spikes), torch.stack(membranes))


def finish(leaf: Tensor, spikes: Tensor, membranes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.linspace(0.5, 1.5, spikes.numel()).view_as(spikes)
    loss = (spikes * weights).sum() + (membranes * weights).square().sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return spikes.detach(), membranes.detach(), gradient


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize(("beta", "threshold"), [(0.5, 1.0), (0.9, 1.0), (0.95, 0.7), (0.0, 1.3)])
def test_fifty_steps_equal_snntorch_to_the_last_bit(
    beta: float, threshold: float, reset: Reset
) -> None:
    currents = torch.randn(50, 4, 3, 5, 5, generator=torch.Generator().manual_seed(7)) + 0.3

    ours = run_ours(currents, beta, threshold, reset)
    theirs = run_leaky(currents, beta, threshold, reset)

    assert 0.05 < ours[0].mean() < 0.95
    for name, mine, other in zip(("spikes", "membrane", "gradient"), ours, theirs, strict=True):
        assert torch.equal(mine, other), name


def test_fires_strictly_above_the_threshold() -> None:
    current = torch.tensor([1.0, 1.0000001, 0.0])

    spikes, membrane = lif_step(current, torch.zeros(3), beta=0.5, threshold=1.0)

    assert spikes.tolist() == [0, 1, 0]
    assert torch.equal(membrane, current)


def test_the_step_leaves_its_arguments_alone() -> None:
    current, membrane = torch.full((2, 3), 1.5), torch.full((2, 3), 1.2)

    lif_step(current, membrane, beta=0.5)

    assert torch.equal(current, torch.full((2, 3), 1.5))
    assert torch.equal(membrane, torch.full((2, 3), 1.2))


def test_unknown_reset_is_refused() -> None:
    with pytest.raises(ValueError, match="'subtract', 'zero' or 'none', got 'half'"):
        lif_step(torch.zeros(1), torch.zeros(1), beta=0.5, reset="half")  # type: ignore[arg-type]


def test_a_run_equals_its_steps() -> None:
    layer = LIF(beta=0.8)
    currents = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(1)) + 0.5

    spikes, membrane = layer(currents, None)
    state = torch.zeros(2, 4)
    for t in range(6):
        stepped, state = layer(currents[t : t + 1], state)
        assert torch.equal(stepped[0], spikes[t])

    assert torch.equal(state, membrane)
