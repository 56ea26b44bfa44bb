from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from shared.model.folding import fold, folded_network
from shared.model.split import flatten_state


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "split"), [("resnet18", "layer1"), ("vgg16", "block2")])
def test_folding_changes_nothing_beyond_rounding(
    make_spec: Any, make_network: Any, backbone: str, split: str
) -> None:
    network = make_network(
        make_spec(backbone, split, stride=2, decoder=(12,), output="lif")
    ).double()
    folded = fold(network)
    x = torch.randn(
        3, 2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    code, state = network.head()(x)
    folded_code, folded_state = folded.head()(x)
    logits, _ = network.cloud_tail()(code)
    folded_logits, _ = folded.cloud_tail()(code)
    whole, _ = network.whole()(x)
    folded_whole, _ = folded.whole()(x)

    # In float64 no membrane lies within rounding of its threshold, so the spikes are the same.
    assert torch.equal(code, folded_code)
    torch.testing.assert_close(logits, folded_logits)
    torch.testing.assert_close(whole, folded_whole)
    for one, other in zip(
        flatten_state(state).values(), flatten_state(folded_state).values(), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_no_batch_norm_is_left_and_every_convolution_has_a_bias(
    make_spec: Any, make_network: Any
) -> None:
    network = make_network(make_spec())
    folded = fold(network)

    modules = list(folded.modules())
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Sequential) for module in modules)
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.bias is not None
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert "backbone.stem.conv.conv.weight" in folded.state_dict()


@torch.no_grad()
def test_a_folded_network_is_rebuilt_from_its_weights(make_spec: Any, make_network: Any) -> None:
    spec = make_spec("vgg16", "block3", decoder=(8,))
    folded = fold(make_network(spec))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    rebuilt = folded_network(spec, folded.state_dict())

    assert torch.equal(rebuilt.head().step(x)[0], folded.head().step(x)[0])
    assert torch.equal(rebuilt.whole().step(x)[0], folded.whole().step(x)[0])


def test_weights_of_another_network_are_refused(make_spec: Any, make_network: Any) -> None:
    weights = fold(make_network(make_spec())).state_dict()

    with pytest.raises(RuntimeError, match="size mismatch"):
        folded_network(make_spec(stride=2), weights)
    with pytest.raises(RuntimeError, match="Missing key"):
        folded_network(make_spec(), dict(list(weights.items())[1:]))
