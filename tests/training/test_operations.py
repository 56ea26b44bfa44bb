from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from neurobench.metrics.workload import SynapticOperations
from neurobench.models import TorchModel
from torch import nn
from torch.nn import functional

from shared.engine.torch_engine import load_network
from shared.model.bundle import Bundle, Operations
from shared.model.split import Part
from training.operations import (
    Counts,
    OperationCounter,
    count_operations,
    fan_out,
    reached_outputs,
)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 7)),
        (nn.Conv2d(4, 2, 3, stride=2, padding=1), (4, 7, 7)),
        (nn.Conv2d(4, 4, 1, stride=2), (4, 6, 6)),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
        (nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), (3, 4, 4)),
        (nn.Linear(9, 4), (9,)),
    ],
)
@torch.no_grad()
def test_operations_of_a_layer_are_those_counted_one_by_one(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    weight[torch.rand(weight.shape, generator=generator) < 0.3] = 0
    active = torch.rand(shape, generator=generator) < 0.25

    # One input element at a time: how many outputs change when a weight of one is put in its place?
    counted = 0
    layer.bias.zero_()  # type: ignore[operator]
    ones = (weight != 0).float()
    weight.copy_(ones)
    for index in active.nonzero().tolist():
        x = torch.zeros(1, *shape)
        x[(0, *index)] = 1
        counted += int(layer(x).sum().round())
    found = reached_outputs(active[None].float(), fan_out(layer, shape))

    assert found.tolist() == [counted]


def test_fan_out_leaves_out_the_border_and_zero_weights() -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.weight[1] = 0

    assert fan_out(layer, (1, 3, 3)).tolist() == [[[4, 6, 4], [6, 9, 6], [4, 6, 4]]]


def test_operations_of_a_network(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    pictures = np.random.default_rng(0).normal(size=(3, *spec.input_shape)).astype(np.float32)

    counts = count_operations(tiny_bundle, [[pictures] * spec.timesteps])

    # Every picture element is non-zero, so the stem's 3x3 convolution is counted in full.
    network = load_network(tiny_bundle)
    stem = network.state_dict()["backbone.stem.conv.conv.weight"]
    taps = functional.conv2d(torch.ones(1, 3, 32, 32), (stem != 0).float(), padding=1).sum()
    assert (counts["head"].mac == float(taps)).all()
    # The decoder hands on currents: what reads them multiplies. The averaged spikes, too.
    assert (counts["tail"].mac > 0).all()
    for part, described in tiny_bundle.manifest.parts.items():
        found = counts[part]
        assert found.mac.shape == found.ac.shape == (spec.timesteps, 3)
        assert found.neuron == sum(math.prod(state.shape) for state in described.states)
        assert (found.ac > 0).all()


def test_every_sample_and_timestep_is_counted_by_itself(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    pictures = np.random.default_rng(0).normal(size=(60, *spec.input_shape)).astype(np.float32)
    pictures[7] = 0

    together = count_operations(tiny_bundle, [[pictures[:55]] * 4, [pictures[55:]] * 4])
    alone = count_operations(tiny_bundle, [[pictures[57:58]] * 4])

    for part, counts in together.items():
        assert counts.mac.shape == (4, 60)
        assert counts.mac[:, 57].tolist() == alone[part].mac[:, 0].tolist()
        assert counts.ac[:, 57].tolist() == alone[part].ac[:, 0].tolist()
    assert (together["head"].mac[:, 7] == 0).all()


def test_counts_are_averaged_over_the_timesteps_used() -> None:
    counts = Counts(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[10.0, 0.0], [0.0, 0.0]]), 5)
    used = np.array([[True, True], [False, True]])

    assert counts.per_timestep() == Operations(mac=2.5, ac=2.5, neuron=5)
    assert counts.per_sample(used) == Operations(mac=3.5, ac=5, neuron=7.5)
    assert counts.plus(counts).per_sample(used) == Operations(mac=7, ac=10, neuron=15)


def test_a_counter_listens_only_while_its_chain_runs(tiny_bundle: Bundle) -> None:
    network = load_network(tiny_bundle)
    chain = network.backbone_head()
    counter = OperationCounter(chain)
    x = torch.full((1, 1, *tiny_bundle.spec.input_shape), 0.5)
    with torch.no_grad():
        network.head()(x)
        counter.run(x)
        network.head()(x)

    assert counter.counts().mac.shape == (1, 1)
    assert counter.counts().mac.item() > 0


@pytest.mark.parametrize("part", ["head", "tail", "whole"])
@torch.no_grad()
def test_neurobench_counts_the_same(part: str, tiny_bundle: Bundle) -> None:
    """NeuroBench knows no transposed convolutions, so the tail is fed what the decoder gives."""
    spec, network = tiny_bundle.spec, load_network(tiny_bundle)
    x = torch.randn(spec.timesteps, 3, *spec.input_shape)
    x[:, 0] = 0  # nothing but biases drives the first sample
    if part == "tail":
        chain = Part({"tail": network.tail})
        edge = {"head": network.backbone_head(), "encoder": network.encoder}
        x, _ = Part({**edge, "decoder": network.decoder})(x)
    else:
        chain = network.head() if part == "head" else network.whole()
    zeroed = next(module for module in chain.modules() if isinstance(module, nn.Conv2d))
    zeroed.weight[0, :, 0] = 0

    counter = OperationCounter(chain)
    counter.run(x)
    ours = counter.counts().per_sample(np.ones((spec.timesteps, 3), np.bool_))
    theirs = neurobench_operations(chain, x)

    assert theirs["Effective_MACs"] == pytest.approx(ours.mac, rel=1e-12)
    assert theirs["Effective_ACs"] == pytest.approx(ours.ac, rel=1e-12)
    assert 0 < ours.ac < theirs["Dense"]


def neurobench_operations(chain: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Return NeuroBench's mean operations of a sample of ``x [T, n, ...]`` over all timesteps."""
    model = TorchModel(chain)
    model.register_hooks()
    model(x)
    found: dict[str, float] = SynapticOperations()(model, None, (x[0],))
    model.cleanup_hooks()
    return found
