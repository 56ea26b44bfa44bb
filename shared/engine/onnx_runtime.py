"""ONNX Runtime as an engine: the default on both sides, on CPU, without torch.

A session is built from verified bytes alone: graph and weights come through
:meth:`shared.model.bundle.Bundle.read`, and the runtime is given both in memory, so that a graph
cannot make it open another file.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shared.engine.base import DTYPES, Array, Shape, State, check_step
from shared.errors import BundleError, EngineError
from shared.model.bundle import WEIGHTS, Bundle, PartName, PartSpec, TensorSpec

ELEMENT_TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}
CPU, XNNPACK = "CPUExecutionProvider", "XnnpackExecutionProvider"
OPERATIONS = "operations"
"""Output of a graph that counts: float64 ``[N, 2]``, multiply-accumulates and accumulates."""


def load_engine(
    bundle: Bundle,
    part: PartName,
    *,
    threads: int = 1,
    providers: Sequence[str] = (),
    graph: str | None = None,
) -> OnnxEngine:
    """Load one part of a bundle.

    Args:
        bundle: where graph and weights are read from, verified.
        part: ``head``, ``tail`` or ``whole``.
        threads: CPU threads of one call.
        providers: ONNX Runtime's names of what is to run it, the first one first; what none of
            them can run, and everything where there are none, runs on the CPU.
        graph: another graph of that part in the bundle; None for the manifest's.

    Raises:
        BundleError: the part is absent or damaged, or its graph is not what the manifest says.
        EngineError: a provider is not to be had here.
        ValueError: ``threads`` below 1.
    """
    spec = bundle.part(part)
    name = graph or spec.graph
    session = _session(bundle, name, bundle.read(name), threads, providers)
    _check_border(bundle, part, session)
    return OnnxEngine(session, part, spec)


def available_providers() -> list[str]:
    """Return the names of the providers in the installed ONNX Runtime, the fastest first."""
    return list(ort.get_available_providers())


def load_counting_engine(
    bundle: Bundle, part: PartName, graph: bytes, *, threads: int = 1
) -> OnnxCountingEngine:
    """Load a graph of a part that counts its operations, too.

    Args:
        bundle: where the weights are read from, verified.
        part: ``head``, ``tail`` or ``whole``.
        graph: of that part, with the output :data:`OPERATIONS`.
        threads: CPU threads of one call.

    Raises:
        BundleError: the graph is none of this part that counts.
        ValueError: ``threads`` below 1.
    """
    session = _session(bundle, f"{part} with {OPERATIONS}", graph, threads)
    _check_border(bundle, part, session, {OPERATIONS: ("tensor(double)", (2,))})
    return OnnxCountingEngine(session, part, bundle.part(part))


def _session(
    bundle: Bundle, name: str, graph: bytes, threads: int, providers: Sequence[str] = ()
) -> ort.InferenceSession:
    """Build a session from a graph's bytes and the bundle's weights."""
    if threads < 1:
        raise ValueError(f"expected at least 1 thread, got {threads}")
    wanted = _checked(providers)
    weights, options = bundle.read(WEIGHTS), _options(threads)
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    try:
        session = ort.InferenceSession(graph, options, providers=_with_options(wanted, threads))
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        raise BundleError(f"{bundle.path / name}: {error}") from error
    del weights, options
    return_freed_memory()
    # A provider whose libraries cannot be loaded is left out, with no more than a line on stderr.
    lost = [each for each in wanted if each not in session.get_providers()]
    if lost:
        raise EngineError(
            f"expected the provider {lost[0]} to start, it did not (are its libraries and its "
            f"device there?); running: {', '.join(session.get_providers())}"
        )
    return session


def _checked(providers: Sequence[str]) -> list[str]:
    """Return the providers with the CPU last; EngineError if this ONNX Runtime lacks one."""
    available = available_providers()
    for each in providers:
        if each not in available:
            raise EngineError(
                f"providers: expected some of {', '.join(available)}, which this ONNX Runtime has, "
                f"got {each!r}"
            )
    return [*(each for each in providers if each != CPU), CPU]


def _with_options(providers: Sequence[str], threads: int) -> list[tuple[str, dict[str, str]]]:
    """Return the providers with their options; XNNPACK has threads of its own."""
    options = {XNNPACK: {"intra_op_num_threads": str(threads)}}
    return [(each, options.get(each, {})) for each in providers]


class OnnxEngine:
    """One part as an ONNX Runtime session; see :class:`shared.engine.base.Engine`.

    Args:
        session: of a graph that matches ``spec``.
        part: which part.
        spec: the part's description.
    """

    def __init__(self, session: ort.InferenceSession, part: PartName, spec: PartSpec) -> None:
        self._session = session
        self._input_name = spec.input.name
        self._input_dtype, _ = DTYPES[part]
        self._state_names = tuple(state.name for state in spec.states)
        self._outputs = [spec.output.name, *(state.name for state in spec.next_states)]
        self._input_shape = spec.input.shape
        self._output_shape = spec.output.shape
        self._state_shapes = tuple(state.shape for state in spec.states)

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample's input, without N."""
        return self._input_shape

    @property
    def output_shape(self) -> Shape:
        """Shape of one sample's output, without N."""
        return self._output_shape

    @property
    def state_shapes(self) -> tuple[Shape, ...]:
        """Shape of each membrane array, without N."""
        return self._state_shapes

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Run one timestep; see :meth:`shared.engine.base.Engine.step`."""
        output, *after = self._run(self._outputs, x, state)
        return output, tuple(after)

    def _run(self, outputs: list[str], x: Array, state: State) -> list[Array]:
        check_step(self, self._input_dtype, x, state)
        feed = dict(zip(self._state_names, state, strict=True))
        feed[self._input_name] = x
        try:
            found: list[Array] = self._session.run(outputs, feed)
        except Exception as error:
            # The runtime's exceptions share no base but Exception.
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return found


class OnnxCountingEngine(OnnxEngine):
    """One part that counts its operations; see :class:`shared.engine.base.CountingEngine`."""

    def count(self, x: Array, state: State) -> tuple[Array, State, NDArray[np.float64]]:
        """Run one timestep; see :meth:`shared.engine.base.CountingEngine.count`."""
        output, *after, operations = self._run([*self._outputs, OPERATIONS], x, state)
        return output, tuple(after), operations


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads take the cores of the sender and of other processes for nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps what the largest batch once needed; the system allocator gives it back.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return options


def return_freed_memory() -> None:
    """Give memory that is free back to the system, where the C library can (glibc).

    Building a session takes several times the size of its weights; glibc would keep it, and what a
    session that is gone had.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


Border = dict[str, tuple[str, Shape]]


def _check_border(
    bundle: Bundle,
    part: PartName,
    session: ort.InferenceSession,
    more_outputs: Border | None = None,
) -> None:
    """Refuse a graph whose inputs and outputs are not those of the manifest, and some more."""
    spec = bundle.part(part)
    input_type, output_type = (ELEMENT_TYPES[dtype.name] for dtype in DTYPES[part])
    for kind, nodes, main, main_type, states, more in (
        ("inputs", session.get_inputs(), spec.input, input_type, spec.states, {}),
        (
            "outputs",
            session.get_outputs(),
            spec.output,
            output_type,
            spec.next_states,
            more_outputs or {},
        ),
    ):
        expected = {main.name: (main_type, main.shape)} | _float_tensors(states) | more
        found = {node.name: (node.type, tuple(node.shape[1:])) for node in nodes}
        if found != expected or not all(_has_batch_axis(node) for node in nodes):
            raise BundleError(
                f"{bundle.path / spec.graph}: expected {kind} {expected} after a dynamic batch "
                f"axis, got {found}"
            )


def _float_tensors(tensors: tuple[TensorSpec, ...]) -> Border:
    return {tensor.name: (ELEMENT_TYPES["float32"], tensor.shape) for tensor in tensors}


def _has_batch_axis(node: Any) -> bool:
    return bool(node.shape) and not isinstance(node.shape[0], int)
