from __future__ import annotations

from typing import Any

import pytest
import torch

from shared.model.backbones import State, cumulative_mean
from shared.model.spec import SPLIT_POINTS, BottleneckSpec, NetworkSpec
from shared.model.split import flatten_state, nest_state

ALL_SPLITS = [(name, split) for name, splits in SPLIT_POINTS.items() for split in splits]


def pictures(timesteps: int = 3, samples: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(timesteps, samples, 3, 32, 32, generator=generator)


def assert_same_state(one: State, other: State) -> None:
    flat, other_flat = flatten_state(one), flatten_state(other)
    assert list(flat) == list(other_flat)
    for name, membrane in flat.items():
        assert torch.equal(membrane, other_flat[name]), name


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "split"), ALL_SPLITS)
def test_shapes_are_those_of_the_spec(
    make_spec: Any, make_network: Any, backbone: str, split: str
) -> None:
    spec = make_spec(backbone, split, decoder=(12,))
    network = make_network(spec)
    x = pictures()[0]

    features, _ = network.backbone_head()(x[None])
    code, _ = network.head().step(x)
    logits, _ = network.cloud_tail().step(code)

    assert features.shape[2:] == spec.feature_shape
    assert code.shape[1:] == spec.code_shape
    assert spec.code_bits == code[0].numel()
    assert logits.shape == (2, spec.classes)
    for binary in (features, code):
        assert set(binary.unique().tolist()) <= {0.0, 1.0}


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "split"), ALL_SPLITS)
def test_head_and_tail_composed_equal_the_unsplit_backbone(
    make_spec: Any, make_network: Any, backbone: str, split: str
) -> None:
    network = make_network(make_spec(backbone, split))
    x = pictures()

    expected, _ = network.backbone(x)
    features, _ = network.backbone_head()(x)
    composed, _ = network.backbone_tail()(features)
    whole, _ = network.whole()(x)

    assert torch.equal(composed, expected)
    assert torch.equal(whole, expected)


@torch.no_grad()
@pytest.mark.parametrize("part", ["head", "cloud_tail", "whole"])
@pytest.mark.parametrize("backbone_and_split", [("resnet18", "layer2"), ("vgg16", "block3")])
def test_running_all_timesteps_at_once_equals_step_by_step(
    make_spec: Any, make_network: Any, backbone_and_split: tuple[str, str], part: str
) -> None:
    network = make_network(make_spec(*backbone_and_split, output="lif", encoder=(8,)))
    module = getattr(network, part)()
    x = pictures()
    if part == "cloud_tail":
        x, _ = network.head()(x)

    at_once, final = module(x)
    y, state = module.step(x[0])
    stepped = [y]
    for frame in x[1:]:
        y, state = module.step(frame, state)
        stepped.append(y)

    # One call over T * N pictures may round differently from T calls over N.
    torch.testing.assert_close(torch.stack(stepped), at_once, rtol=1e-4, atol=1e-4)
    assert list(flatten_state(state)) == list(flatten_state(final))


@torch.no_grad()
def test_a_step_does_not_change_the_state_it_is_given(make_spec: Any, make_network: Any) -> None:
    part = make_network(make_spec()).head()
    frame = pictures()[0]
    _, state = part.step(frame)
    before = {name: membrane.clone() for name, membrane in flatten_state(state).items()}

    first, after_first = part.step(frame, state)
    second, after_second = part.step(frame, state)

    assert torch.equal(first, second)
    assert_same_state(after_first, after_second)
    for name, membrane in flatten_state(state).items():
        assert torch.equal(membrane, before[name])


@torch.no_grad()
def test_flattened_state_nests_back(make_spec: Any, make_network: Any) -> None:
    _, state = make_network(make_spec()).cloud_tail().step(torch.ones(2, 4, 16, 16))

    flat = flatten_state(state)

    assert "tail.layer3.block2.lif1" in flat
    assert_same_state(nest_state(flat, state), state)


def test_training_gradients_reach_every_parameter(make_spec: Any) -> None:
    from snntorch import surrogate

    from shared.model.split import SplitNetwork

    torch.manual_seed(0)
    network = SplitNetwork(make_spec(decoder=(12,)), surrogate.atan(alpha=2.0))
    features, _ = network.backbone_head()(pictures())
    whole, _ = network.backbone_tail()(features)
    compressed, _ = network.cloud_tail()(network.encoder(features)[0])

    (whole.square().sum() + compressed.square().sum()).backward()

    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_cumulative_mean() -> None:
    logits = torch.tensor([[[1.0, 0.0]], [[3.0, 1.0]], [[2.0, 5.0]]])

    assert cumulative_mean(logits).tolist() == [[[1.0, 0.0]], [[2.0, 0.5]], [[2.0, 2.0]]]


def test_a_split_point_of_the_other_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of stem, .* for resnet18, got 'block1'"):
        NetworkSpec(
            backbone="resnet18",
            input_shape=(3, 32, 32),
            classes=10,
            bottleneck=BottleneckSpec(split="block1", channels=4),
        )


def test_a_stride_that_does_not_divide_the_features_is_refused() -> None:
    with pytest.raises(ValueError, match="divides the 15x15 features of layer2, got 2"):
        NetworkSpec(
            backbone="resnet18",
            input_shape=(3, 29, 29),
            classes=10,
            bottleneck=BottleneckSpec(split="layer2", channels=4, stride=2),
        )


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "split"), [("resnet18", "layer4"), ("vgg16", "block2")])
def test_odd_input_sizes_round_as_the_spec_says(
    make_network: Any, backbone: Any, split: str
) -> None:
    spec = NetworkSpec(
        backbone=backbone,
        width=0.125,
        input_shape=(2, 45, 51),
        input_kind="events",
        classes=3,
        bottleneck=BottleneckSpec(split=split, channels=2),
    )
    network = make_network(spec)

    features, _ = network.backbone_head()(torch.ones(1, 1, 2, 45, 51))

    assert features.shape[2:] == spec.feature_shape
