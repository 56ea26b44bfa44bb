"""Descriptions of imported backbones: what they say of a network, and those of a stranger."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.engine import onnx_runtime, torch_engine
from shared.errors import BundleError
from shared.model.bundle import MANIFEST, Bundle
from shared.model.layers import Convolution, Flatten, ImportedBackbone, Leaky, Linear, Pool, Stage
from shared.model.spec import BottleneckSpec, NetworkSpec

BACKBONE = ImportedBackbone(
    stages=(
        Stage(
            name="first",
            features=(8, 16, 16),
            layers=(Convolution(inputs=3, outputs=8, kernel=(3, 3), padding=(1, 1)), Leaky()),
        ),
        Stage(
            name="second",
            features=(8, 4, 4),
            layers=(Pool(kind="max", kernel=(4, 4), stride=(4, 4)),),
        ),
    ),
    classifier=(Flatten(), Linear(inputs=128, outputs=5)),
)


def spec(split: str, stride: int = 1, backbone: ImportedBackbone = BACKBONE) -> NetworkSpec:
    return NetworkSpec(
        backbone=backbone,
        input_shape=(3, 16, 16),
        classes=5,
        bottleneck=BottleneckSpec(split=split, channels=2, stride=stride),
    )


def test_a_network_can_be_cut_after_each_stage() -> None:
    first, second = spec("first", stride=4), spec("second")

    assert first.split_points == ("first", "second")
    assert (first.feature_shape, first.code_shape) == ((8, 16, 16), (2, 4, 4))
    assert (second.feature_shape, second.code_shape) == ((8, 4, 4), (2, 4, 4))
    assert first.backbone_name == "imported"


def test_only_there_and_with_a_stride_that_fits() -> None:
    with pytest.raises(ValueError, match="one of first, second for imported, got 'classifier'"):
        spec("classifier")
    with pytest.raises(ValueError, match="divides the 4x4 features of second, got 3"):
        spec("second", stride=3)


@pytest.mark.parametrize("names", [(), ("a", "a"), ("classifier",)])
def test_stages_have_names_of_their_own(names: tuple[str, ...]) -> None:
    stages = tuple(Stage(name=name, features=(1, 1, 1), layers=()) for name in names)
    with pytest.raises(ValueError, match="expected stages with names of their own"):
        ImportedBackbone(stages=stages, classifier=())


def conv(**changes: Any) -> dict[str, Any]:
    return {"type": "conv", "inputs": 3, "outputs": 16, "kernel": [3, 3]} | changes


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (conv(groups=2), "in_channels must be divisible by groups"),
        (conv(inputs=1 << 20, outputs=1 << 20), "Missing key"),
        ({"type": "leaky", "beta": [1 << 20, 1 << 20]}, "Missing key"),
    ],
)
def test_layers_that_cannot_be_are_refused_by_the_torch_engine(
    tiny_bundle: Bundle, tmp_path: Path, layer: dict[str, Any], message: str
) -> None:
    bundle = described(tiny_bundle, tmp_path / "bundle", layer)

    # The graphs are all that ONNX Runtime needs.
    onnx_runtime.load_engine(bundle, "head")
    with pytest.raises(BundleError, match=message):
        torch_engine.load_engine(bundle, "head")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (conv(inputs=0), ">= 1 - at `\\$.spec.backbone.stages\\[0\\].layers\\[0\\].inputs`"),
        (conv(kernel=[3]), "Expected `array` of length 2"),
        (conv(dilations=[1, 1]), "unknown field `dilations`"),
        ({"type": "call", "name": "os.system"}, "Invalid value 'call'"),
        ({"type": "pool", "kind": "max", "kernel": [2, 2]}, "missing required field `stride`"),
    ],
)
def test_a_description_that_says_no_layer_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, layer: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        described(tiny_bundle, tmp_path / "bundle", layer)


def described(tiny_bundle: Bundle, path: Path, layer: dict[str, Any]) -> Bundle:
    """Return a copy of the bundle whose manifest tells of an imported backbone of one layer."""
    shutil.copytree(tiny_bundle.path, path)
    manifest = msgspec.json.decode((path / MANIFEST).read_bytes())
    stage = {"name": "layer2", "features": tiny_bundle.spec.feature_shape, "layers": [layer]}
    manifest["spec"] |= {"backbone": {"stages": [stage], "classifier": []}, "width": 1.0}
    (path / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return Bundle(path)
