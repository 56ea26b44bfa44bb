"""Count the synaptic operations of a network exactly, from its spikes, while it runs.

An input element that is not zero costs one operation for every output it reaches through a weight
that is not zero; biases cost nothing. How many outputs it reaches (its fan-out, smaller at the
border of a picture) depends on the weights alone: a map that a runtime computes once, when it loads
the graph. What is left for each timestep is a product and a sum per layer. Where the inputs of a
layer are spikes its operations are accumulates, else multiply-accumulates. These are the
definitions of NeuroBench (Yik et al. 2025), "synaptic operations", but that a layer's inputs are
spikes by the form of the graph, not because those of some samples happened to be 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

from shared.engine.base import CountingEngine
from shared.engine.onnx_runtime import OPERATIONS
from shared.model.bundle import Operations

EXACT_IN_FLOAT32 = 1 << 24
"""Whole numbers up to here are exact in float32, which is much faster than float64."""
PASS_ON = ("Identity", "MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
"""What hands spikes on as spikes."""


class Counts(NamedTuple):
    """The operations of a part of the network, of every sample at every timestep."""

    mac: NDArray[np.float64]
    """Multiply-accumulates, ``[T, N]``."""
    ac: NDArray[np.float64]
    """Accumulates, ``[T, N]``."""
    neuron: int
    """Membrane updates, the same for every sample and timestep."""

    @staticmethod
    def of(engine: CountingEngine, operations: NDArray[np.float64]) -> Counts:
        """Return what an engine counted, ``[T, N, 2]``."""
        neuron = sum(math.prod(shape) for shape in engine.state_shapes)
        return Counts(operations[..., 0], operations[..., 1], neuron)

    def plus(self, other: Counts) -> Counts:
        """Return the operations of two parts that both ran on the same samples."""
        return Counts(self.mac + other.mac, self.ac + other.ac, self.neuron + other.neuron)

    def by_timestep(self) -> tuple[Operations, ...]:
        """Return the mean over samples at t = 0..T-1."""
        means = zip(self.mac.mean(1).tolist(), self.ac.mean(1).tolist(), strict=True)
        return tuple(Operations(mac=mac, ac=ac, neuron=float(self.neuron)) for mac, ac in means)

    def per_timestep(self) -> Operations:
        """Return the mean of one timestep of one sample."""
        return Operations(
            mac=float(self.mac.mean()), ac=float(self.ac.mean()), neuron=float(self.neuron)
        )

    def per_sample(self, used: NDArray[np.bool_]) -> Operations:
        """Return the mean of one sample over the timesteps used, ``[T, N]``."""
        samples = used.shape[1]
        return Operations(
            mac=float(self.mac[used].sum()) / samples,
            ac=float(self.ac[used].sum()) / samples,
            neuron=self.neuron * float(used.sum()) / samples,
        )


class _Writer:
    """Appends nodes and constants to a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        if not output:
            self._count += 1
            output = f"{OPERATIONS}.{self._count}"
        self._graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """Append a constant and return its name."""
        self._count += 1
        name = f"{OPERATIONS}.{self._count}"
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name


class _Synapse(NamedTuple):
    """A layer of weights: its node, and the shapes of one sample's input and output."""

    node: NodeProto
    weight: tuple[int, ...]
    input: tuple[int, ...]
    output: tuple[int, ...]
    is_binary: bool


def counting_graph(graph: bytes) -> bytes:
    """Return the graph of a part with one more output, ``operations``, float64 ``[N, 2]``.

    It holds, for every sample, the multiply-accumulates and the accumulates of the timestep.
    Weights stay references into the bundle's weights file.

    Args:
        graph: as :func:`training.graphs.part_graph` and ``refer_to_weights`` make it.
    """
    model = onnx.load_model_from_string(graph)
    synapses = list(_synapses(model))
    writer = _Writer(model.graph)
    counts = [_count(writer, synapse) for synapse in synapses]
    kinds = [[0.0, 1.0] if synapse.is_binary else [1.0, 0.0] for synapse in synapses]
    by_layer = writer.node("Concat", *counts, axis=1)
    by_kind = writer.constant(np.array(kinds, np.float64))
    writer.node("MatMul", by_layer, by_kind, output=OPERATIONS)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    model.graph.output.append(
        helper.make_tensor_value_info(OPERATIONS, TensorProto.DOUBLE, [batch, 2])
    )
    return model.SerializeToString(deterministic=True)


def _synapses(model: onnx.ModelProto) -> Iterator[_Synapse]:
    """Yield the layers of weights in the order in which they run."""
    shapes = _shapes(model)
    spikes = {
        each.name
        for each in model.graph.input
        if each.type.tensor_type.elem_type in (TensorProto.UINT8, TensorProto.BOOL)
    }
    for node in model.graph.node:
        if node.op_type == "Greater" or (
            node.op_type in (*PASS_ON, "Cast") and node.input[0] in spikes
        ):
            spikes.add(node.output[0])
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            source, weight = node.input[:2]
            yield _Synapse(
                node=node,
                weight=shapes[weight],
                input=shapes[source][1:],
                output=shapes[node.output[0]][1:],
                is_binary=source in spikes,
            )


def _shapes(model: onnx.ModelProto) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every value; an axis of unknown length is 0."""
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }
    return shapes | {each.name: tuple(each.dims) for each in graph.initializer}


def _count(writer: _Writer, synapse: _Synapse) -> str:
    """Append what counts a layer's operations, float64 ``[N, 1]``, and return its name."""
    axes = list(range(2, len(synapse.input) + 1))
    # Of one channel: all its elements reach as many outputs as there are.
    most = math.prod(synapse.input[1:]) * math.prod(synapse.weight)
    dtype = TensorProto.FLOAT if most < EXACT_IN_FLOAT32 else TensorProto.DOUBLE
    reach = writer.node("Cast", _fan_out(writer, synapse), to=dtype)
    source = synapse.node.input[0]
    is_active = writer.node("Cast", source, to=TensorProto.BOOL)
    active = writer.node("Cast", is_active, to=dtype)
    reached = writer.node("Mul", active, reach)
    if axes:
        places = writer.constant(np.array(axes, np.int64))
        reached = writer.node("ReduceSum", reached, places, keepdims=0)
    reached = writer.node("Cast", reached, to=TensorProto.DOUBLE)
    channels = writer.constant(np.array([1], np.int64))
    return writer.node("ReduceSum", reached, channels, keepdims=1)


def _fan_out(writer: _Writer, synapse: _Synapse) -> str:
    """Append what computes to how many outputs each input element counts, ``[1, ...]``.

    It is the layer run backwards: every output, a one, through every weight that is not zero, a
    one. A runtime does that when it loads the graph, because nothing in it depends on an input.
    """
    node = synapse.node
    is_there = writer.node("Cast", node.input[1], to=TensorProto.BOOL)
    ones = writer.node("Cast", is_there, to=TensorProto.FLOAT)
    if node.op_type in ("Gemm", "MatMul"):
        transposed = node.op_type == "Gemm" and _attributes(node).get("transB", 0)
        outputs = writer.constant(np.array([0 if transposed else 1], np.int64))
        reach = writer.node("ReduceSum", ones, outputs, keepdims=0)
        return writer.node("Unsqueeze", reach, writer.constant(np.array([0], np.int64)))
    shape = writer.constant(np.array([1, *synapse.output], np.int64))
    one = numpy_helper.from_array(np.ones(1, np.float32))
    outputs = writer.node("ConstantOfShape", shape, value=one)
    attributes = _attributes(node)
    attributes.pop("auto_pad", None)
    padding = attributes.pop("output_padding", None)
    if node.op_type == "ConvTranspose":
        return writer.node("Conv", outputs, ones, **attributes)
    del padding
    attributes["output_padding"] = _left_over(synapse, attributes)
    return writer.node("ConvTranspose", outputs, ones, **attributes)


def _left_over(synapse: _Synapse, attributes: Mapping[str, Any]) -> list[int]:
    """Return by how many elements the input is longer than a convolution's steps reach."""
    pads, strides = attributes["pads"], attributes["strides"]
    kernel, dilations = attributes["kernel_shape"], attributes["dilations"]
    return [
        length
        - (
            (steps - 1) * strides[axis]
            - pads[axis]
            - pads[axis + len(strides)]
            + dilations[axis] * (kernel[axis] - 1)
            + 1
        )
        for axis, (length, steps) in enumerate(
            zip(synapse.input[1:], synapse.output[1:], strict=True)
        )
    ]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
