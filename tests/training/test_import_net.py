"""Finding a network, its weights and its recipe, and checking what was made of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import snntorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from shared.errors import ConfigError
from shared.model import layers
from shared.model.bundle import Preprocessing
from training.data.labelled import LabelledData
from training.import_net import (
    Imported,
    backbone_toml,
    compare,
    import_network,
    load_network,
    load_weights,
)
from training.recipe import decode_recipe
from training.snntorch_network import convert

NETWORK = """
import snntorch
import torch
from torch import nn

network = nn.Sequential(
    nn.Conv2d(3, 4, 3, padding=1),
    nn.BatchNorm2d(4),
    snntorch.Leaky(beta=0.5, threshold=0.2, init_hidden=True),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(64, 3),
)


three = 3


class Holder:
    inner = network


def make():
    return network


def make_three():
    return 3


def needy(width):
    return network
"""
RECIPE = """
name = "own"
holdout = 8
batch_size = 8
shift = 0
preprocessing = { mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }

[network]
input_shape = [3, 8, 8]
classes = 3
timesteps = 3
bottleneck = { split = "3", channels = 2 }

[[phases]]
name = "bottleneck"
train = "bottleneck"
epochs = 1
timesteps = 2
learning_rate = 0.1
fresh_tail = true
"""
NEUTRAL = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with ``own_net.py``, its network's weights and a recipe for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(NETWORK)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    torch.manual_seed(2)
    save_file(load_network("own_net:network").state_dict(), tmp_path / "weights.safetensors")
    yield tmp_path
    del sys.modules["own_net"]


def take_over(folder: Path, recipe: str = RECIPE) -> Imported:
    (folder / "recipe.toml").write_text(recipe)
    weights, template = folder / "weights.safetensors", folder / "recipe.toml"
    return import_network("own_net:network", weights, template, "spikes")


def samples(count: int = 20) -> LabelledData:
    generator = np.random.default_rng(0)
    return LabelledData(
        name="own",
        inputs=generator.integers(0, 256, (count, 3, 8, 8), np.uint8),
        labels=generator.integers(0, 3, count, np.int64),
        classes=("a", "b", "c"),
        split="train",
    )


@pytest.mark.parametrize("place", ["own_net:network", "own_net:make", "own_net:Holder.inner"])
def test_a_network_is_found_from_the_working_folder(folder: Path, place: str) -> None:
    before = list(sys.path)

    network = load_network(place)

    assert isinstance(network, nn.Sequential)
    assert not network.training
    assert sys.path == before


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("own_net", "expected a network as package.module:object, got 'own_net'"),
        (":network", "expected a network as package.module:object, got ':network'"),
        ("no_net:network", "expected a network as no_net:network: No module named 'no_net'"),
        ("own_net:other", "own_net:other: module 'own_net' has no attribute 'other'"),
        ("own_net:Holder.outer", "'Holder' has no attribute 'outer'"),
        ("own_net:three", "expected an nn.Module as own_net:three, got int"),
        ("own_net:make_three", "expected an nn.Module as own_net:make_three, got int"),
        ("own_net:needy", "expected a network as own_net:needy: .* missing 1 required"),
    ],
)
def test_what_is_no_network_is_refused(folder: Path, place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_network(place)


@pytest.mark.parametrize("wrap", [False, True])
def test_weights_of_a_checkpoint(folder: Path, wrap: bool) -> None:
    network = load_network("own_net:make")
    expected = {name: torch.rand_like(t.float()) for name, t in network.state_dict().items()}
    torch.save({"state_dict": expected, "epoch": 3} if wrap else expected, "weights.pt")

    load_weights(network, Path("weights.pt"))

    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


class Evil:
    """What a checkpoint must not be able to do."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "expected weights in none.pt: .*No such file"),
        ("none.safetensors", None, "expected weights in none.safetensors: No such file"),
        ("empty.pt", b"", "expected weights in empty.pt"),
        ("bad.pt", b"no checkpoint", "expected weights in bad.pt"),
        ("bad.safetensors", b"no tensors", "expected weights in bad.safetensors"),
        ("evil.pt", Evil(), "expected weights in evil.pt: Weights only load failed"),
        ("list.pt", [torch.zeros(1)], "expected a state dict in list.pt, got list"),
        ("other.pt", {"epoch": 3}, "expected a state dict in other.pt, got dict"),
        ("less.pt", {"0.bias": torch.zeros(4)}, 'expected the network.* Missing key.*"0.weight"'),
        ("shape.pt", {"0.bias": torch.zeros(9)}, "size mismatch for 0.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, name: str, content: Any, message: str
) -> None:
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    elif content is not None:
        torch.save(content, name)

    with pytest.raises(ConfigError, match=message) as refused:
        load_weights(load_network("own_net:make"), Path(name))

    assert "\n" not in str(refused.value)
    assert not Path("touched").exists()


def test_the_recipe_describes_the_network(folder: Path) -> None:
    imported = take_over(folder)

    network = imported.recipe.network
    assert imported.recipe_text.startswith(RECIPE.encode().rstrip())
    assert decode_recipe(imported.recipe_text, Path("recipe.toml")) == imported.recipe
    assert (network.backbone_name, network.split_points) == ("imported", ("2", "3"))
    assert (network.feature_shape, network.code_shape) == ((4, 4, 4), (2, 4, 4))
    assert [type(layer) for layer in network.backbone.classifier] == [  # type: ignore[union-attr]
        layers.Flatten,
        layers.Linear,
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('split = "3"', 'split = "0"', "expected split to be one of 2, 3 for imported, got '0'"),
        (
            "[3, 8, 8]",
            "[2, 8, 8]",
            r"layer 0, Conv2d: expected an input that fits, got \[2, 8, 8\]",
        ),
        ("[3, 8, 8]", "[3, 9, 4]", r"layer 5, Linear: expected an input that fits, got \[32\]"),
        ("classes = 3", "classes = 4", r"expected \[4\] logits, got \[3\]"),
        ("[network]", "[network]\nbackbone = 'vgg16'", "expected no network.backbone, which is"),
        ("[network]", "[network]\nwidth = 0.5", "expected no width of an imported backbone"),
        ("mean = [0.5, 0.5, 0.5]", "mean = [0.5]", "expected 3 numbers for mean, got 1"),
        ("preprocessing", "# preprocessing", "missing required field `preprocessing`"),
        ("timesteps = 3", "timesteps = 0", "Expected `int` >= 1 - at `\\$.network.timesteps`"),
        (
            "fresh_tail = true",
            "",
            "expected fresh_tail of phase 'bottleneck', whose tail is random",
        ),
        ("holdout", "hold", "unknown field `hold`"),
        ("[network]", "[network", "recipe.toml: "),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    folder: Path, old: str, new: str, message: str
) -> None:
    assert old in RECIPE
    with pytest.raises(ConfigError, match=message):
        take_over(folder, RECIPE.replace(old, new))


def test_a_network_is_compared_with_itself(folder: Path) -> None:
    imported, data = take_over(folder), samples()

    comparison = compare(imported, data, NEUTRAL)

    assert comparison.samples == 20
    assert 0 < comparison.firing_rate < 1
    prepared = (torch.from_numpy(data.inputs) / 255 - 0.5) / 0.25
    logits, _ = imported.network.whole()(prepared.expand(3, *prepared.shape))
    predicted = logits.mean(0).argmax(-1).numpy()
    assert comparison.accuracy == pytest.approx(float((predicted == data.labels).mean()))


def test_a_network_that_computes_something_else_is_refused(folder: Path) -> None:
    imported = take_over(folder)
    convolution: nn.Module = imported.original[0]  # type: ignore[index]
    convolution.register_forward_hook(lambda _, __, output: output.roll(1, 1))

    with pytest.raises(ConfigError, match="expected the logits of the network itself, got others"):
        compare(imported, samples(), NEUTRAL)


def test_a_split_point_without_spikes_is_refused(folder: Path) -> None:
    dark = Preprocessing(mean=(0.5,) * 3, std=(1e6,) * 3)
    network = load_network("own_net:network")
    nn.init.zeros_(network[0].bias)  # type: ignore[index]
    save_file(network.state_dict(), folder / "weights.safetensors")

    with pytest.raises(ConfigError, match="expected spikes at 3, got none in 20 samples"):
        compare(take_over(folder), samples(), dark)


def test_the_guides_network_can_be_taken_over() -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "import-net.md"
    (code,) = re.findall("```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"nn": nn, "snn": snntorch}
    exec(code, names)

    converted = convert(names["Network"]().eval(), (3, 32, 32), 10, "spikes")

    assert [stage.name for stage in converted.description.stages] == ["features"]


SIZES = st.integers(1, 1 << 20)
PADDINGS = st.integers(0, 1 << 10)
SHAPES = st.lists(SIZES, max_size=4).map(tuple)
EPSILONS = st.none() | st.floats(1e-12, 10)
LAYERS = st.one_of(
    st.builds(
        layers.Convolution,
        inputs=SIZES,
        outputs=SIZES,
        kernel=st.tuples(SIZES, SIZES),
        stride=st.tuples(SIZES, SIZES),
        padding=st.tuples(PADDINGS, PADDINGS),
        dilation=st.tuples(SIZES, SIZES),
        groups=SIZES,
        bias=st.booleans(),
        norm_epsilon=EPSILONS,
    ),
    st.builds(
        layers.Linear, inputs=SIZES, outputs=SIZES, bias=st.booleans(), norm_epsilon=EPSILONS
    ),
    st.builds(
        layers.Pool,
        kind=st.sampled_from(["average", "max"]),
        kernel=st.tuples(SIZES, SIZES),
        stride=st.tuples(SIZES, SIZES),
        padding=st.tuples(PADDINGS, PADDINGS),
    ),
    st.builds(layers.Flatten),
    st.builds(layers.Unflatten),
    st.builds(
        layers.Leaky,
        beta=SHAPES,
        threshold=SHAPES,
        reset=st.sampled_from(["subtract", "zero", "none"]),
        output=st.sampled_from(["spikes", "membrane"]),
    ),
)
RUNS = st.lists(LAYERS, max_size=4).map(tuple)
STAGES = st.builds(
    layers.Stage,
    name=st.from_regex("[A-Za-z0-9_]{1,64}", fullmatch=True).filter(lambda n: n != "classifier"),
    features=st.tuples(SIZES, SIZES, SIZES),
    layers=RUNS,
)
BACKBONES = st.builds(
    layers.ImportedBackbone,
    stages=st.lists(STAGES, min_size=1, max_size=3, unique_by=lambda s: s.name).map(tuple),
    classifier=RUNS,
)


@given(BACKBONES)
def test_a_description_survives_toml(backbone: layers.ImportedBackbone) -> None:
    text = "[network]\n\n" + backbone_toml(backbone)

    table = msgspec.toml.decode(text)["network"]["backbone"]

    assert msgspec.convert(table, layers.ImportedBackbone) == backbone
