"""One part of a folded network as an ONNX graph of a single timestep.

``torch.onnx.export`` traces :meth:`Part.step`; the passes here then make of its result the smallest
graph that computes the same: the time axis of length one that :meth:`Part.step` adds is erased,
thresholds become one comparison, and weights become references into the bundle's one weights file.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from shared.errors import NeucodexError
from shared.model.backbones import State
from shared.model.bundle import PartSpec, TensorSpec
from shared.model.split import Part, flatten_state, nest_state

OPSET = 20
IR_VERSION = 10
BATCH_AXIS = "N"
ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.uint8: TensorProto.UINT8,
}


class ExportError(NeucodexError):
    """The exporter produced something the passes here do not know how to handle."""


class Slice(NamedTuple):
    """Where one tensor lies in the weights file."""

    dtype: torch.dtype
    offset: int
    length_bytes: int


class Border(NamedTuple):
    """What crosses a part's border: an example input, and the dtype of the output."""

    example: Tensor
    output_dtype: torch.dtype


def part_graph(
    part: Part, name: str, border: Border, weights: Mapping[int, str]
) -> tuple[onnx.ModelProto, PartSpec]:
    """Trace one timestep of a part.

    Args:
        part: in folded form.
        name: ``head``, ``tail`` or ``whole``.
        border: the example input has a batch axis.
        weights: name in the weights file of each tensor of the part, by ``id``.

    Returns:
        The graph, whose large initialisers are still inside and carry those names, and its
        description.

    Raises:
        ExportError: the trace holds an operation that a pass cannot handle.
    """
    flat = _FlatPart(part, border)
    with torch.inference_mode():
        output, *states = flat(border.example, *flat.zeros)
    spec = PartSpec(
        graph=f"{name}.onnx",
        input=TensorSpec(name="input", shape=tuple(border.example.shape[1:])),
        output=TensorSpec(name="output", shape=tuple(output.shape[1:])),
        states=_state_specs(flat.paths, states, ""),
        next_states=_state_specs(flat.paths, states, ".next"),
    )
    traced = _trace(flat, border.example)
    for initialiser in traced.initializer:
        initialiser.name = weights.get(flat.tensor_id(initialiser.name), initialiser.name)
    for node in traced.node:
        node.input[:] = [weights.get(flat.tensor_id(n), n) for n in node.input]
    nodes = _live(_compare_directly(_erase_time_axis(traced), traced), traced)
    used = {value for node in nodes for value in node.input}
    graph = helper.make_graph(
        nodes,
        name,
        [
            _value_info(spec.input, ELEMENT_TYPES[border.example.dtype]),
            *(_value_info(state, TensorProto.FLOAT) for state in spec.states),
        ],
        [
            _value_info(spec.output, ELEMENT_TYPES[border.output_dtype]),
            *(_value_info(state, TensorProto.FLOAT) for state in spec.next_states),
        ],
        sorted((i for i in traced.initializer if i.name in used), key=lambda i: i.name),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    model.producer_name = "neucodex"
    return model, spec


def refer_to_weights(model: onnx.ModelProto, slices: Mapping[str, Slice], location: str) -> None:
    """Replace the initialisers named in ``slices`` by references into the weights file.

    float16 ones are cast to float32 where they are used; a runtime folds that away at load time.
    """
    casts = []
    for initialiser in model.graph.initializer:
        place = slices.get(initialiser.name)
        if place is None:
            continue
        initialiser.ClearField("raw_data")
        initialiser.ClearField("float_data")
        initialiser.data_type = ELEMENT_TYPES[place.dtype]
        initialiser.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", location),
            ("offset", str(place.offset)),
            ("length", str(place.length_bytes)),
        ):
            initialiser.external_data.add(key=key, value=value)
        if place.dtype == torch.float16:
            name = f"{initialiser.name}.float32"
            casts.append(helper.make_node("Cast", [initialiser.name], [name], to=TensorProto.FLOAT))
            for node in model.graph.node:
                node.input[:] = [name if n == initialiser.name else n for n in node.input]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _FlatPart(nn.Module):
    """A part whose state is a run of tensors instead of a nested dict."""

    def __init__(self, part: Part, border: Border) -> None:
        super().__init__()
        self.part = part
        self._output_dtype = border.output_dtype
        with torch.inference_mode():
            _, self._form = part.step(border.example.float())
        after = flatten_state(self._form)
        self.paths = tuple(after)
        self.zeros = tuple(torch.zeros(value.shape) for value in after.values())
        self._ids = {name: id(tensor) for name, tensor in self.state_dict(keep_vars=True).items()}

    def tensor_id(self, name: str) -> int:
        """Return the ``id`` of the tensor the trace calls ``name``, 0 if it is none."""
        return self._ids.get(name, 0)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Run one timestep: ``(output, *next_states)``."""
        before: State = nest_state(dict(zip(self.paths, states, strict=True)), self._form)
        y, after = self.part.step(x.float(), before)
        return y.to(self._output_dtype), *flatten_state(after).values()


def _trace(flat: _FlatPart, example: Tensor) -> onnx.GraphProto:
    batch = {0: torch.export.Dim(BATCH_AXIS)}
    names = [f"{path}.next" for path in flat.paths]
    with _quiet():
        program = torch.onnx.export(
            flat.eval(),
            (example, *flat.zeros),
            input_names=["input", *flat.paths],
            output_names=["output", *names],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"x": batch, "states": (batch,) * len(flat.paths)},
            verbose=False,
        )
    if program is None:
        raise ExportError("expected torch.onnx.export to return a program")
    model = program.model_proto
    del program
    return model.graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own dependencies from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _state_specs(
    paths: tuple[str, ...], states: list[Tensor], suffix: str
) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=path + suffix, shape=tuple(state.shape[1:]))
        for path, state in zip(paths, states, strict=True)
    )


def _value_info(tensor: TensorSpec, element_type: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, element_type, [BATCH_AXIS, *tensor.shape])


def _plain(node: onnx.NodeProto) -> onnx.NodeProto:
    """Copy a node without its name, documentation and metadata (they hold machine paths)."""
    copy = onnx.NodeProto(op_type=node.op_type, input=node.input, output=node.output)
    copy.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    for attribute in copy.attribute:
        attribute.ClearField("doc_string")
    return copy


def _constants(graph: onnx.GraphProto) -> dict[str, Any]:
    return {i.name: numpy_helper.to_array(i) for i in graph.initializer}


def _erase_time_axis(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Drop the operations that add and remove the leading time axis of length one.

    Every value either has that axis (``timed``) or not; on timed values only operations are
    accepted that do the same without it.
    """
    constants = _constants(graph)
    alias: dict[str, str] = {}
    timed: set[str] = set()
    kept = []
    for original in graph.node:
        node = _plain(original)
        source, output = original.input[0], original.output[0]
        node.input[:] = [alias.get(name, name) for name in original.input]
        arguments = [np.ravel(constants[n]).tolist() for n in original.input[1:] if n in constants]
        is_timed = source in timed
        match node.op_type, arguments:
            case "Unsqueeze", [[0]] if not is_timed:
                alias[output] = node.input[0]
                timed.add(output)
            case ("Squeeze", [[0]]) | ("Gather", [[0]]) if is_timed:
                alias[output] = node.input[0]
            case "Slice", [[0], [1], [0]] if is_timed:
                alias[output] = node.input[0]
                timed.add(output)
            case "Add", _ if all(name in timed for name in original.input):
                timed.add(output)
                kept.append(node)
            case "ReduceMean", [axes] if is_timed and all(axis < 0 for axis in axes):
                timed.add(output)
                kept.append(node)
            case _ if any(name in timed for name in original.input):
                raise ExportError(f"expected no {node.op_type} on values with a time axis")
            case _:
                kept.append(node)
    return [*kept, *_named_outputs(graph, alias, timed)]


def _named_outputs(
    graph: onnx.GraphProto, alias: Mapping[str, str], timed: set[str]
) -> Iterator[onnx.NodeProto]:
    for output in graph.output:
        if output.name in timed:
            raise ExportError(f"expected output {output.name} without a time axis")
        if output.name in alias:
            yield helper.make_node("Identity", [alias[output.name]], [output.name])


def _compare_directly(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Turn ``a - threshold > 0`` into ``a > threshold``, which is the same in IEEE arithmetic."""
    constants = _constants(graph)
    differences = {node.output[0]: node for node in nodes if node.op_type == "Sub"}
    for node in nodes:
        if node.op_type != "Greater" or node.input[0] not in differences:
            continue
        zero = constants.get(node.input[1])
        if zero is not None and not np.any(zero):
            node.input[:] = differences[node.input[0]].input
    return nodes


def _live(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Drop the nodes that no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
