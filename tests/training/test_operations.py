from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from neurobench.metrics.workload import SynapticOperations
from neurobench.models import TorchModel
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from shared.engine.base import Array, zero_state
from shared.engine.onnx_runtime import load_counting_engine, load_engine
from shared.engine.torch_engine import load_network
from shared.errors import BundleError
from shared.model.backbones import Chain
from shared.model.bundle import HEAD_OPERATIONS, Bundle, Operations, PartName
from shared.model.split import Part
from training.operations import Counts, counting_graph

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
LAYERS: list[tuple[Layer, tuple[int, ...]]] = [
    (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 7)),
    (nn.Conv2d(4, 2, 3, stride=2, padding=1), (4, 7, 7)),
    (nn.Conv2d(4, 2, 3, stride=2, padding=1), (4, 8, 6)),
    (nn.Conv2d(4, 4, 1, stride=2), (4, 6, 6)),
    (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
    (nn.Conv2d(4, 6, 3, groups=2, padding=2, dilation=2), (4, 7, 6)),
    (nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), (3, 4, 4)),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1), (4, 3, 5)),
    (nn.Linear(9, 4), (9,)),
]


def graph_of(layer: Layer, shape: tuple[int, ...], *, spikes: bool = False) -> bytes:
    """Return a graph of one layer; its input may be what a comparison gives."""
    assert layer.bias is not None
    weights = {"w": layer.weight, "b": layer.bias}
    attributes: dict[str, Any] = {}
    if isinstance(layer, nn.Linear):
        kind, attributes = "Gemm", {"transB": 1}
    else:
        kind = "Conv" if isinstance(layer, nn.Conv2d) else "ConvTranspose"
        pads = [int(each) for each in layer.padding]
        attributes = {
            "kernel_shape": layer.kernel_size,
            "strides": layer.stride,
            "pads": [*pads, *pads],
            "dilations": layer.dilation,
            "group": layer.groups,
        }
        if kind == "ConvTranspose":
            attributes["output_padding"] = layer.output_padding
    nodes = [helper.make_node(kind, ["x", "w", "b"], ["y"], **attributes)]
    if spikes:
        weights["zero"] = torch.zeros(1)
        nodes = [
            helper.make_node("Greater", ["input", "zero"], ["fired"]),
            helper.make_node("Cast", ["fired"], ["x"], to=TensorProto.FLOAT),
            *nodes,
        ]
    with torch.no_grad():
        output = layer(torch.zeros(1, *shape)).shape[1:]
    name = "input" if spikes else "x"
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *output])],
        [numpy_helper.from_array(each.detach().numpy(), name) for name, each in weights.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def operations(graph: bytes, x: Array) -> NDArray[np.float64]:
    session = ort.InferenceSession(counting_graph(graph), providers=["CPUExecutionProvider"])
    (found,) = session.run(["operations"], {session.get_inputs()[0].name: x})
    return np.asarray(found)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@torch.no_grad()
def test_operations_of_a_layer_are_those_counted_one_by_one(
    layer: Layer, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer.weight[torch.rand(layer.weight.shape, generator=generator) < 0.3] = 0
    active = torch.rand((2, *shape), generator=generator) < 0.25
    found = operations(graph_of(layer, shape), (active * -0.5).numpy())

    # One input element at a time: how many outputs change when a weight of one is put in its place?
    counted = [0, 0]
    assert layer.bias is not None
    layer.bias.zero_()
    layer.weight.copy_((layer.weight != 0).float())
    for sample, *index in active.nonzero().tolist():
        x = torch.zeros(1, *shape)
        x[(0, *index)] = 1
        counted[sample] += int(layer(x).sum().round())

    assert found.dtype == np.float64
    assert found.tolist() == [[counted[0], 0], [counted[1], 0]]


def test_a_layer_that_reads_spikes_accumulates() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 5)).astype(np.float32)
    ((mac, ac),) = operations(graph_of(layer, (2, 5, 5), spikes=True), x)
    ((mac_of_signs, none),) = operations(graph_of(layer, (2, 5, 5)), (x > 0).astype(np.float32))
    assert (mac, none) == (0, 0)
    assert ac == mac_of_signs > 0


def test_counts_beyond_float32_are_exact() -> None:
    layer = nn.Conv2d(1, 64, 11, padding=5)
    x = np.ones((1, 1, 64, 64), np.float32)
    with torch.no_grad():
        reached = functional.conv2d(
            torch.ones(1, 1, 64, 64).double(), torch.ones(64, 1, 11, 11).double(), padding=5
        ).sum()
    ((mac, _),) = operations(graph_of(layer, (1, 64, 64)), x)
    assert mac == float(reached) > 1 << 24


def run(bundle: Bundle, part: PartName, x: Array) -> Counts:
    """Count ``x [T, N, ...]`` with the engine, which must compute what the one that serves does."""
    graph = counting_graph(bundle.read(bundle.part(part).graph))
    counting = load_counting_engine(bundle, part, graph)
    serving = load_engine(bundle, part)
    state = zero_state(counting, x.shape[1])
    found = []
    for frame in x:
        expected = serving.step(frame, state)
        y, state, counted = counting.count(frame, state)
        assert (y == expected[0]).all()
        assert all((a == b).all() for a, b in zip(state, expected[1], strict=True))
        found.append(counted)
    return Counts.of(counting, np.stack(found))


def test_operations_of_a_network(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    x = np.random.default_rng(0).normal(size=(4, 3, *spec.input_shape)).astype(np.float32)
    counts = run(tiny_bundle, "head", x)

    # Every picture element is non-zero, so the stem's 3x3 convolution is counted in full.
    stem = load_network(tiny_bundle).state_dict()["backbone.stem.conv.conv.weight"]
    taps = functional.conv2d(torch.ones(1, 3, 32, 32), (stem != 0).float(), padding=1).sum()
    assert (counts.mac == float(taps)).all()
    assert counts.mac.shape == counts.ac.shape == (4, 3)
    assert (counts.ac > 0).all()
    states = tiny_bundle.part("head").states
    assert counts.neuron == sum(math.prod(state.shape) for state in states)


def test_every_sample_is_counted_by_itself(tiny_bundle: Bundle) -> None:
    shape = tiny_bundle.spec.input_shape
    x = np.random.default_rng(0).normal(size=(4, 6, *shape)).astype(np.float32)
    x[:, 3] = 0
    together, alone = run(tiny_bundle, "whole", x), run(tiny_bundle, "whole", x[:, 2:3])
    assert together.mac[:, 2].tolist() == alone.mac[:, 0].tolist()
    assert together.ac[:, 2].tolist() == alone.ac[:, 0].tolist()
    assert (together.mac[:, 3] < together.mac[:, 2]).all()


def test_counts_are_averaged_over_the_timesteps_used() -> None:
    counts = Counts(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[10.0, 0.0], [0.0, 0.0]]), 5)
    used = np.array([[True, True], [False, True]])

    assert counts.per_timestep() == Operations(mac=2.5, ac=2.5, neuron=5)
    assert counts.per_sample(used) == Operations(mac=3.5, ac=5, neuron=7.5)
    assert counts.plus(counts).per_sample(used) == Operations(mac=7, ac=10, neuron=15)


@pytest.mark.parametrize("part", ["head", "tail", "whole"])
@torch.no_grad()
def test_neurobench_counts_the_same(part: PartName, tiny_bundle: Bundle) -> None:
    """NeuroBench knows no transposed convolutions, so those of the decoder are added by hand."""
    spec, network = tiny_bundle.spec, load_network(tiny_bundle)
    samples = 3
    if part == "tail":
        code = torch.rand(spec.timesteps, samples, *spec.code_shape) < 0.3
        x, serving = code.float(), code.numpy().astype(np.uint8)
        decoded, _ = Part({"decoder": network.decoder})(x)
        chain, seen = Part({"tail": network.tail}), decoded
    else:
        x = torch.randn(spec.timesteps, samples, *spec.input_shape)
        x[:, 0] = 0  # nothing but biases drives the first sample
        serving, seen = x.numpy(), x
        chain = network.head() if part == "head" else network.whole()

    ours = run(tiny_bundle, part, serving).per_sample(np.ones((spec.timesteps, samples), np.bool_))
    theirs = neurobench_operations(chain, seen)
    decoder = decoder_operations(network.decoder, x) / samples if part == "tail" else 0.0

    assert theirs["Effective_MACs"] == pytest.approx(ours.mac, rel=1e-12)
    assert theirs["Effective_ACs"] + decoder == pytest.approx(ours.ac, rel=1e-12)
    assert 0 < ours.ac <= theirs["Dense"] + decoder


def decoder_operations(decoder: Chain, x: torch.Tensor) -> float:
    """Return the operations of a decoder's transposed convolutions on ``x [T, N, ...]``."""
    reached = []

    def count(layer: nn.ConvTranspose2d, inputs: tuple[torch.Tensor]) -> None:
        ones, active = (layer.weight != 0).double(), (inputs[0] != 0).double()
        layer = copy.deepcopy(layer).double()
        layer.weight.copy_(ones)
        layer.bias = None
        reached.append(float(layer.forward(active).sum()))

    layers = [each for each in decoder.modules() if isinstance(each, nn.ConvTranspose2d)]
    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    Part({"decoder": decoder})(x)
    for handle in handles:
        handle.remove()
    return sum(reached)


def test_the_bundle_holds_the_head_that_counts(tiny_bundle: Bundle) -> None:
    content = tiny_bundle.read(HEAD_OPERATIONS)
    assert content == counting_graph(tiny_bundle.read("head.onnx"))
    model = onnx.load_model_from_string(content)
    external = [each for each in model.graph.initializer if each.external_data]
    assert {each.external_data[0].value for each in external} == {"weights.safetensors"}
    assert len(content) < 100_000
    with pytest.raises(BundleError, match="operations"):
        load_counting_engine(tiny_bundle, "head", tiny_bundle.read("head.onnx"))


def neurobench_operations(chain: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Return NeuroBench's mean operations of a sample of ``x [T, n, ...]`` over all timesteps."""
    model = TorchModel(chain)
    model.register_hooks()
    model(x)
    found: dict[str, float] = SynapticOperations()(model, None, (x[0],))
    model.cleanup_hooks()
    return found
