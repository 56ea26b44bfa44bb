from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load as load_safetensors

from shared.engine import onnx_runtime, torch_engine
from shared.engine.base import zero_state
from shared.errors import BundleError
from shared.model.bundle import WEIGHTS, Bundle, PartName
from shared.model.spec import BottleneckSpec, NetworkSpec, NeuronSpec
from shared.model.split import SplitNetwork
from training.export import stored_weights, write_bundle
from training.graphs import Border, ExportError, part_graph
from training.untrained import make_untrained_bundle

PARTS: tuple[PartName, ...] = ("head", "tail", "whole")

EVENT_SPEC = NetworkSpec(
    backbone="vgg16",
    width=0.125,
    input_shape=(2, 32, 32),
    input_kind="events",
    classes=3,
    timesteps=3,
    neuron=NeuronSpec(beta=0.75, threshold=0.8, reset="zero"),
    bottleneck=BottleneckSpec(split="block2", channels=4, encoder=(8,), output="lif"),
)


def graph_of(bundle: Bundle, part: PartName) -> onnx.ModelProto:
    return onnx.load_model_from_string(bundle.read(f"{part}.onnx"))


@pytest.mark.parametrize("part", PARTS)
def test_graphs_are_valid_and_say_nothing_of_the_machine(
    tiny_bundle: Bundle, part: PartName
) -> None:
    content = tiny_bundle.read(f"{part}.onnx")
    model = graph_of(tiny_bundle, part)

    for word in (str(Path.cwd()), "site-packages", ".py"):
        assert word.encode() not in content
    assert not model.doc_string
    assert not model.metadata_props
    for node in model.graph.node:
        assert not node.metadata_props
        assert not node.doc_string


@pytest.mark.parametrize("part", PARTS)
def test_graphs_compute_one_timestep_without_reshaping(tiny_bundle: Bundle, part: PartName) -> None:
    used = {node.op_type for node in graph_of(tiny_bundle, part).graph.node}

    assert used <= {
        *("Conv", "ConvTranspose", "Gemm", "ReduceMean"),
        *("Greater", "Cast", "Mul", "Add", "Sub", "Identity"),
    }


def test_weights_are_stored_once(tiny_bundle: Bundle) -> None:
    tensors = load_safetensors(tiny_bundle.read(WEIGHTS))
    places: dict[str, dict[str, str]] = {}
    for part in PARTS:
        for initialiser in graph_of(tiny_bundle, part).graph.initializer:
            if initialiser.data_location != TensorProto.EXTERNAL:
                assert len(initialiser.SerializeToString()) < 64
                continue
            place = {entry.key: entry.value for entry in initialiser.external_data}
            assert place["location"] == WEIGHTS
            assert places.setdefault(initialiser.name, place) == place

    assert set(places) == set(tensors)
    content = tiny_bundle.read(WEIGHTS)
    for name, tensor in tensors.items():
        start, length = int(places[name]["offset"]), int(places[name]["length"])
        assert content[start : start + length] == tensor.numpy().tobytes()
        assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.float32)


def test_the_same_network_gives_the_same_graph(tiny_bundle: Bundle) -> None:
    network = torch_engine.load_network(tiny_bundle)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    code = torch.zeros(2, *tiny_bundle.spec.code_shape, dtype=torch.uint8)

    graphs = [
        part_graph(network.cloud_tail(), "tail", Border(code, torch.float32), names)
        for _ in range(2)
    ]

    one, other = (model.SerializeToString(deterministic=True) for model, _ in graphs)
    assert one == other
    assert graphs[0][1] == graphs[1][1] == tiny_bundle.part("tail")


@pytest.mark.slow
def test_the_same_network_gives_the_same_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    # Of the same number of threads, that is: sums of floats depend on how they are shared out.
    one, other = (
        make_untrained_bundle(tmp_path / name, tiny_bundle.spec, samples=32).digest
        for name in ("one", "other")
    )
    assert one == other


def test_events_vgg_zero_reset_and_float32_weights(tmp_path: Path) -> None:
    bundle = make_untrained_bundle(tmp_path / "events", EVENT_SPEC, samples=16, half=False)

    weights = load_safetensors(bundle.read(WEIGHTS))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    generator = np.random.default_rng(0)
    frames = (generator.random((3, 8, 2, 32, 32)) < 0.2).astype(np.float32)
    onnx_engine = onnx_runtime.load_engine(bundle, "head")
    reference = torch_engine.load_engine(bundle, "head")
    state = zero_state(reference, 8)
    for frame in frames:
        code, after = onnx_engine.step(frame, state)
        expected, state = reference.step(frame, state)
        assert (code == expected).mean() >= 0.99
        for one, other in zip(after, state, strict=True):
            assert ((one > 0.8) == (other > 0.8)).mean() >= 0.99
    assert 0 < expected.mean() < 1


def test_a_weight_too_large_for_float16_is_refused() -> None:
    network = SplitNetwork(EVENT_SPEC)
    with torch.no_grad():
        network.get_parameter("tail.classifier.linear.weight")[0, 0] = 1e6

    with pytest.raises(ExportError, match=r"tail\.classifier\.linear\.weight finite as"):
        stored_weights(network, half=True)


def test_a_directory_that_is_no_bundle_is_not_replaced(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()

    with pytest.raises(BundleError, match="expected nothing or an older bundle"):
        write_bundle(
            SplitNetwork(EVENT_SPEC),
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            lambda _, __: "",
            tmp_path / "precious",
        )
    assert (tmp_path / "precious").is_dir()
