from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shared.engine.torch_engine import load_network
from shared.model.bundle import Bundle
from training.operations import OperationCounter, count_operations, fan_out


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
    found = (active * fan_out(layer, shape)).sum()

    assert found == counted


def test_fan_out_leaves_out_the_border_and_zero_weights() -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.weight[1] = 0

    assert fan_out(layer, (1, 3, 3)).tolist() == [[[4, 6, 4], [6, 9, 6], [4, 6, 4]]]


def test_operations_of_a_network(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    pictures = np.random.default_rng(0).normal(size=(3, *spec.input_shape)).astype(np.float32)

    operations = count_operations(tiny_bundle, [[pictures] * spec.timesteps])

    # Every picture element is non-zero, so the stem's 3x3 convolution is counted in full.
    network = load_network(tiny_bundle)
    stem = network.state_dict()["backbone.stem.conv.conv.weight"]
    taps = functional.conv2d(torch.ones(1, 3, 32, 32), (stem != 0).float(), padding=1).sum()
    assert operations["head"].mac == float(taps)
    # The decoder hands on currents: what reads them multiplies. The averaged spikes, too.
    assert operations["tail"].mac > 0
    for part, described in tiny_bundle.manifest.parts.items():
        counted, states = operations[part], described.states
        assert counted.neuron == sum(math.prod(state.shape) for state in states)
        assert counted.ac > 0


def test_a_counter_listens_only_inside_its_block(tiny_bundle: Bundle) -> None:
    head = load_network(tiny_bundle).head()
    counter = OperationCounter(head)
    x = torch.full((1, 1, *tiny_bundle.spec.input_shape), 0.5)
    with torch.no_grad():
        head(x)
        with counter:
            head(x)
        once = counter.totals(1)
        head(x)

    assert counter.totals(1) == once
    assert once.mac > 0
