"""Networks written in snnTorch, taken over: what comes out is the same to the last bit."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from shared.engine import onnx_runtime, torch_engine
from shared.engine.base import Engine, zero_state
from shared.errors import ConfigError
from shared.model.backbones import Chain
from shared.model.bundle import Bundle
from shared.model.layers import Linear, Unflatten
from shared.model.spec import BottleneckSpec, NetworkSpec
from shared.model.split import SplitNetwork, flatten_state
from training.calibrate import LabelledFrames, batches
from training.export import Description, measure, write_bundle
from training.snntorch_network import Converted, convert, named_stages, original_logits
from training.untrained import neutral_preprocessing, synthetic_frames

INPUT = (2, 12, 12)
CLASSES = 5
TIMESTEPS = 6


def leaky(**options: Any) -> snntorch.Leaky:
    return snntorch.Leaky(**{"beta": 0.6, "threshold": 0.4, "init_hidden": True} | options)


def settled(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode, with BatchNorm statistics that are not the default."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.3, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.2, 0.2)
    return network.eval()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(4)


def convolutional(**last: Any) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 8, 3, padding="same", bias=False),
            norm1=nn.BatchNorm2d(8, eps=1e-3),
            lif1=leaky(),
            pool1=nn.MaxPool2d(2),
            drop=nn.Dropout2d(0.5),
            conv2=nn.Conv2d(8, 6, 3, padding=1, groups=2),
            lif2=leaky(beta=torch.rand(6, 1, 1), reset_mechanism="zero"),
            pool2=nn.AvgPool2d(2, stride=1, padding=1),
            conv3=nn.Conv2d(6, 4, 3, padding=2, dilation=2),
            lif3=leaky(beta=torch.rand(4, 7, 7), threshold=torch.rand(4, 7, 7)),
            average=nn.AdaptiveAvgPool2d((1, None)),
            flatten=nn.Flatten(),
            linear=nn.Linear(28, 9),
            norm2=nn.BatchNorm1d(9),
            lif4=leaky(learn_beta=True, reset_mechanism="none"),
            classifier=nn.Linear(9, CLASSES),
            **last,
        )
    )


class Explicit(nn.Module):
    """Membrane potentials in hand, as snnTorch's first tutorials have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2)
        self.fc1 = nn.Linear(100, 20)
        self.fc2 = nn.Linear(20, CLASSES)
        self.lif1 = snntorch.Leaky(beta=0.7, threshold=0.3, spike_grad=surrogate.fast_sigmoid())
        self.lif2 = snntorch.Leaky(beta=0.5, threshold=0.3, reset_mechanism="zero")
        self.lif3 = snntorch.Leaky(beta=torch.rand(CLASSES), threshold=0.2)
        self.flatten = nn.Flatten()

    @property
    def stages(self) -> dict[str, Any]:
        return {
            "features": [self.conv, self.lif1],
            "hidden": nn.Sequential(self.flatten, self.fc1, self.lif2),
            "output": [[self.fc2], self.lif3],
        }

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        spikes, membranes = [], []
        for frame in frames:
            spk1, mem1 = self.lif1(self.conv(frame), mem1)
            spk2, mem2 = self.lif2(self.fc1(self.flatten(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc2(spk2), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


def frames(samples: int = 3) -> Tensor:
    return torch.randn(TIMESTEPS, samples, *INPUT) + 0.2


@torch.no_grad()
def stepped(chain: Chain, x: Tensor) -> Tensor:
    """Run a chain one timestep at a time."""
    state, outputs = None, []
    for frame in x:
        output, state = chain(frame[None], state)
        outputs.append(output[0])
    return torch.stack(outputs)


@torch.no_grad()
def sequential_outputs(network: nn.Module, x: Tensor) -> list[Any]:
    """Run an ``nn.Sequential`` of ``init_hidden`` neurons as their users do."""
    utils.reset(network)
    return [network(frame) for frame in x]


def layers_of(converted: Converted) -> list[Any]:
    stages = (stage.layers for stage in converted.description.stages)
    return [each for layers in (*stages, converted.description.classifier) for each in layers]


def test_a_convolutional_network_is_the_same() -> None:
    network, x = settled(convolutional()), frames()

    converted = convert(network, INPUT, CLASSES, "spikes")

    expected = torch.stack(sequential_outputs(network, x))
    assert torch.equal(stepped(converted.backbone, x), expected)
    assert torch.equal(original_logits(network, x, "spikes"), expected)
    assert [stage.name for stage in converted.description.stages] == [
        *("lif1", "pool1", "lif2", "lif3", "lif4")
    ]
    assert [stage.features for stage in converted.description.stages] == [
        *((8, 12, 12), (8, 6, 6), (6, 6, 6), (4, 7, 7), (9, 1, 1))
    ]


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_spikes_and_membrane_of_the_last_neurons(reset: str, output: bool) -> None:
    last = leaky(beta=torch.rand(CLASSES), reset_mechanism=reset, output=output)
    network, x = settled(convolutional(last=last)), frames()

    spikes = convert(network, INPUT, CLASSES, "spikes")
    membrane = convert(network, INPUT, CLASSES, "membrane")

    outputs = sequential_outputs(network, x)
    if output:
        expected = torch.stack([potential for _, potential in outputs])
        assert torch.equal(stepped(membrane.backbone, x), expected)
        outputs = [fired for fired, _ in outputs]
    assert torch.equal(stepped(spikes.backbone, x), torch.stack(outputs))
    for converted, readout in ((spikes, "spikes"), (membrane, "membrane")):
        expected = original_logits(network, x, readout)  # type: ignore[arg-type]
        assert torch.equal(stepped(converted.backbone, x), expected)
    assert 0.02 < torch.stack(outputs).mean() < 0.98


@torch.no_grad()
def test_neurons_whose_state_the_caller_keeps() -> None:
    network, x = Explicit().eval(), frames()
    spikes, membranes = network(x)

    converted = convert(network, INPUT, CLASSES, "spikes")

    assert torch.equal(stepped(converted.backbone, x), spikes)
    converted = convert(network, INPUT, CLASSES, "membrane")
    assert torch.equal(stepped(converted.backbone, x), membranes)
    names = [stage.name for stage in converted.description.stages]
    assert names == ["features", "hidden"]
    assert 0.02 < spikes.mean() < 0.98


@torch.no_grad()
def test_all_timesteps_at_once_are_the_same_as_one_by_one() -> None:
    backbone = convert(settled(convolutional(last=leaky())), INPUT, CLASSES, "membrane").backbone
    x = frames()

    at_once, state = backbone(x)

    torch.testing.assert_close(at_once, stepped(backbone, x))
    assert len(flatten_state(state)) == 5


def test_a_fully_connected_network_can_be_cut() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(288, 30), leaky(), nn.Dropout(), nn.Linear(30, CLASSES), leaky()
    ).eval()
    converted, x = convert(network, INPUT, CLASSES, "spikes"), frames()

    (stage,) = converted.description.stages

    assert (stage.name, stage.features) == ("2", (30, 1, 1))
    assert isinstance(stage.layers[-1], Unflatten)
    head = Chain({stage.name: converted.backbone[stage.name]})
    assert stepped(head, x).shape == (TIMESTEPS, 3, 30, 1, 1)
    expected = torch.stack(sequential_outputs(network, x))
    assert torch.equal(stepped(converted.backbone, x), expected)


def test_the_network_keeps_its_tensors() -> None:
    network, x = settled(convolutional()), frames()
    expected = torch.stack(sequential_outputs(network, x))
    converted = convert(network, INPUT, CLASSES, "spikes")
    with torch.no_grad():
        for tensor in converted.backbone.state_dict().values():
            tensor.zero_()

    assert torch.equal(torch.stack(sequential_outputs(network, x)), expected)


def test_a_leak_outside_its_range_is_clamped_as_snntorch_does() -> None:
    network, x = convolutional(last=leaky(beta=torch.tensor([-0.5, 0.2, 0.9, 1.0, 1.7]))), frames()

    converted = convert(settled(network), INPUT, CLASSES, "membrane")

    assert torch.equal(stepped(converted.backbone, x), original_logits(network, x, "membrane"))


def test_a_bundle_computes_what_the_network_does(tmp_path: Path) -> None:
    """Every kind of layer goes through folding, weights file and graph; the code is a vector."""
    network = settled(convolutional(last=leaky(beta=torch.rand(CLASSES))))
    converted = convert(network, INPUT, CLASSES, "membrane")
    spec = NetworkSpec(
        backbone=converted.description,
        input_shape=INPUT,
        classes=CLASSES,
        timesteps=TIMESTEPS,
        input_kind="events",
        bottleneck=BottleneckSpec(split="lif4", channels=3),
    )
    split = SplitNetwork(spec).eval()
    split.backbone.load_state_dict(converted.backbone.state_dict())
    split.tail.load_state_dict(split.backbone_tail().state_dict())
    neutral = neutral_preprocessing(spec)
    data = LabelledFrames(synthetic_frames(spec, 20, 0), np.arange(20) % CLASSES)

    bundle = write_bundle(
        split,
        Description("all-layers", "1", neutral, tuple("abcde")),
        lambda bundle: measure(bundle, data, data.frames),
        lambda _, __: "",
        tmp_path / "bundle",
        half=False,
    )

    assert spec.code_shape == (3, 1, 1)
    (frames,) = batches(data.frames, spec, neutral)
    with torch.no_grad():
        expected = original_logits(network, torch.from_numpy(np.stack(frames)), "membrane").numpy()
    for load in (onnx_runtime.load_engine, torch_engine.load_engine):
        engine: Engine = load(bundle, "whole")
        state = zero_state(engine, len(data.frames))
        for frame, logits in zip(frames, expected, strict=True):
            output, state = engine.step(frame, state)
            assert np.isclose(output, logits, atol=1e-4).mean() > 0.99
    assert expected.std() > 0.1
    stored = Bundle(bundle.path).spec
    assert stored == spec


def test_a_layer_may_run_twice() -> None:
    pool = nn.MaxPool2d(2)
    network = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), leaky(), pool, nn.Conv2d(3, 3, 3, padding=1), leaky()),
        *(pool, nn.Flatten(), nn.Linear(27, CLASSES)),
    ).eval()
    x = frames()

    converted = convert(network, INPUT, CLASSES, "spikes")

    expected = torch.stack(sequential_outputs(network, x))
    assert torch.equal(stepped(converted.backbone, x), expected)
    assert [stage.name for stage in converted.description.stages] == ["1", "2", "4", "5"]


def test_stages_of_stages_are_cut_at_their_ends() -> None:
    features = nn.Sequential(nn.Conv2d(2, 3, 3), leaky(), nn.MaxPool2d(2), nn.Dropout())
    rest = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(75, CLASSES), leaky()))
    network = nn.Sequential(OrderedDict(features=features, rest=rest)).eval()

    (stage,) = convert(network, INPUT, CLASSES, "spikes").description.stages

    assert (stage.name, stage.features) == ("features", (3, 5, 5))
    assert [leaf.name for leaf in named_stages(network)["rest"]] == [
        "rest.0",
        "rest.1.0",
        "rest.1.1",
    ]


def test_linear_layers_keep_their_norm() -> None:
    converted = convert(settled(convolutional()), INPUT, CLASSES, "spikes")

    linear, last = (layer for layer in layers_of(converted) if isinstance(layer, Linear))

    assert (linear.norm_epsilon, last.norm_epsilon) == (1e-5, None)


def around(*layers: nn.Module) -> nn.Sequential:
    """Return a network with these layers on ``[3, 10, 10]`` currents."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), *layers, leaky(), nn.Flatten(), nn.LazyLinear(CLASSES)
    ).eval()


REFUSED = {
    "RLeaky": (snntorch.RLeaky(beta=0.5, all_to_all=False), "expected one of AdaptiveAvgPool2d,"),
    "Synaptic": (snntorch.Synaptic(alpha=0.5, beta=0.5), "Leaky, BatchNorm1d, BatchNorm2d,"),
    "ReLU": (nn.ReLU(), "layer 1, ReLU: expected one of"),
    "Embedding": (nn.Embedding(2, 2), "layer 1, Embedding: expected one of"),
    "norm of 1d": (nn.BatchNorm1d(3), "layer 1, BatchNorm1d: expected it right after a linear"),
    "inhibition": (leaky(state_quant=lambda x: x), "expected the default state_quant, got another"),
    "reset delay": (leaky(reset_delay=False), "layer 1, Leaky: expected the default reset_delay"),
    "graded": (leaky(graded_spikes_factor=2.0), "expected the default graded_spikes_factor"),
    "spikes": (leaky(spike_grad=torch.sigmoid), "expected the default spike_grad, got another"),
    "beta": (leaky(beta=torch.rand(4)), r"expected a beta for neurons \[3, 10, 10\], got \[4\]"),
    "threshold": (leaky(threshold=torch.rand(2, 3, 1, 1)), "expected a threshold for neurons"),
    "circular": (
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
        "layer 1, Conv2d: expected the default padding_mode, got another",
    ),
    "same": (nn.Conv2d(3, 3, 2, padding="same"), "expected an odd kernel for the same padding"),
    "ceil": (nn.MaxPool2d(2, ceil_mode=True), "MaxPool2d: expected the default ceil_mode"),
    "dilated": (nn.MaxPool2d(2, dilation=2), "MaxPool2d: expected the default dilation"),
    "padding": (
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        "AvgPool2d: expected the default count_include_pad",
    ),
    "adaptive": (
        nn.AdaptiveAvgPool2d(4),
        r"expected an output size that divides \[10, 10\], got 4",
    ),
    "flatten": (nn.Flatten(2), "layer 1, Flatten: expected the default start_dim"),
    "channels": (nn.Conv2d(4, 3, 3), r"layer 1, Conv2d: expected an input that fits, got \[3, 10"),
    "linear": (nn.Linear(7, 3), r"layer 1, Linear: expected an input that fits, got \[3, 10, 10\]"),
    "features": (nn.BatchNorm2d(4), "layer 1, BatchNorm2d: expected an input that fits"),
    "statistics": (
        nn.BatchNorm2d(3, track_running_stats=False),
        "layer 1, BatchNorm2d: expected running statistics and weights, found none",
    ),
    "plain": (nn.BatchNorm2d(3, affine=False), "expected running statistics and weights"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_over_is_named(name: str) -> None:
    layer, message = REFUSED[name]

    with pytest.raises(ConfigError, match=message):
        convert(around(layer), INPUT, CLASSES, "spikes")


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_inhibition_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected the default inhibition"):
        convert(around(leaky(inhibition=True)), INPUT, CLASSES, "spikes")


def test_neurons_that_keep_their_state_run_once() -> None:
    neurons = leaky()
    own = snntorch.Leaky(beta=0.6, threshold=0.4)

    with pytest.raises(ConfigError, match="layer 3, Leaky: expected neurons with a state of their"):
        convert(around(neurons, nn.Conv2d(3, 3, 3), neurons), INPUT, CLASSES, "spikes")
    network = nn.Sequential(nn.Conv2d(2, 3, 3), own, nn.Flatten(), nn.Linear(300, CLASSES), own)
    x = frames()
    backbone = convert(network.eval(), INPUT, CLASSES, "spikes").backbone
    assert torch.equal(stepped(backbone, x), original_logits(network, x, "spikes"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("keys", "expected other names of stages than keys"),
        ("classifier", "expected stages with names of their own, none of them classifier, got "),
    ],
)
def test_names_that_are_taken_are_refused(name: str, message: str) -> None:
    stages = {name: nn.Sequential(nn.Conv2d(2, 3, 3), leaky()), "last": nn.Flatten()}
    network = nn.Sequential(OrderedDict(stages | {"linear": nn.Linear(300, CLASSES)}))
    with pytest.raises(ConfigError, match=message):
        convert(network.eval(), INPUT, CLASSES, "spikes")


class OwnConvolution(nn.Conv2d):
    """Might compute anything."""


def test_a_subclass_is_another_layer() -> None:
    with pytest.raises(ConfigError, match="layer 1, OwnConvolution: expected one of"):
        convert(around(OwnConvolution(3, 3, 3)), INPUT, CLASSES, "spikes")


@pytest.mark.parametrize(
    "layers",
    [
        (nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)),
        (nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.BatchNorm2d(3)),
        (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)),
    ],
)
def test_a_norm_stands_right_after_what_it_normalises(layers: tuple[nn.Module, ...]) -> None:
    with pytest.raises(ConfigError, match="BatchNorm2d: expected it right after a convolution"):
        convert(nn.Sequential(*layers).eval(), INPUT, CLASSES, "spikes")


def test_a_network_must_fit_input_and_classes() -> None:
    network = settled(convolutional())

    with pytest.raises(ConfigError, match=r"expected \[6\] logits, got \[5\]"):
        convert(network, INPUT, 6, "spikes")
    with pytest.raises(ConfigError, match=r"layer conv1, Conv2d: .* got \[3, 12, 12\]"):
        convert(network, (3, 12, 12), CLASSES, "spikes")
    with pytest.raises(ConfigError, match="expected a Leaky at the end"):
        convert(network, INPUT, CLASSES, "membrane")


def test_a_network_must_have_a_split_point() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(288, CLASSES), leaky()).eval()

    with pytest.raises(ConfigError, match="expected a stage before the last that ends in spikes"):
        convert(network, INPUT, CLASSES, "spikes")


class Staged(nn.Module):
    """Keeps its stages as a module."""

    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.stages = stages


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleDict])
def test_stages_may_be_a_module_and_end_in_nothing(kind: Any) -> None:
    named = {"conv": nn.Conv2d(2, 3, 3), "lif": leaky(), "flat": nn.Flatten()}
    named |= {"linear": nn.Linear(300, CLASSES), "last": leaky(), "nothing": nn.Identity()}
    network = Staged(kind(OrderedDict(named))).eval()

    converted = convert(network, INPUT, CLASSES, "membrane")

    assert [stage.name for stage in converted.description.stages] == ["lif"]
    x = frames()
    assert torch.equal(stepped(converted.backbone, x), original_logits(network, x, "membrane"))


class OwnForward(nn.Sequential):
    """Runs its layers in another order."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class BadStages(nn.Module):
    """Names something that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = {"first": [nn.Flatten(), torch.relu]}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(2, 2), "expected an nn.Sequential, or a module whose attribute stages maps"),
        (OwnForward(nn.Linear(2, 2)), "attribute stages maps names to layers, got OwnForward"),
        (nn.Sequential(nn.Dropout()), "attribute stages maps names to layers, got Sequential"),
        (nn.Sequential(), "attribute stages maps names to layers, got Sequential"),
        (nn.Sequential(OwnForward(nn.Flatten())), "layer 0, OwnForward: expected one of"),
        (BadStages(), "layer first.1: expected an nn.Module, got "),
    ],
)
def test_a_network_without_a_list_of_layers(network: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(network.eval(), INPUT, CLASSES, "spikes")
