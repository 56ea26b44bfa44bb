"""Networks small enough to build in a moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shared.model.spec import BottleneckSpec, NetworkSpec
from shared.model.split import SplitNetwork

MakeSpec = Callable[..., NetworkSpec]
MakeNetwork = Callable[[NetworkSpec], SplitNetwork]


@pytest.fixture
def make_spec() -> MakeSpec:
    """A spec of width 0.125 on 32x32 inputs; keywords are those of the bottleneck."""

    def make(
        backbone: str = "resnet18", split: str = "layer2", **bottleneck: object
    ) -> NetworkSpec:
        return NetworkSpec(
            backbone=backbone,  # type: ignore[arg-type]
            width=0.125,
            input_shape=(3, 32, 32),
            classes=5,
            timesteps=3,
            bottleneck=BottleneckSpec(split=split, channels=4, **bottleneck),  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def make_network() -> MakeNetwork:
    """A random network in evaluation mode whose BatchNorm statistics are far from neutral."""

    def make(spec: NetworkSpec) -> SplitNetwork:
        torch.manual_seed(0)
        network = SplitNetwork(spec)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 1.0, 3.0)
                nn.init.uniform_(module.bias, 0.0, 0.6)
                nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.3, 1.5)  # type: ignore[arg-type]
        return network.eval()

    return make
