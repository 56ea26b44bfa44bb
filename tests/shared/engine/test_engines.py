"""What holds for every engine, and how far two engines agree."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shared.engine import onnx_runtime, torch_engine
from shared.engine.base import DTYPES, Array, Engine, State, zero_state
from shared.errors import BundleError, EngineError
from shared.model.bundle import Bundle, PartName

LOADERS: dict[str, Callable[[Bundle, PartName], Engine]] = {
    "onnx_runtime": onnx_runtime.load_engine,
    "torch": torch_engine.load_engine,
}
THRESHOLD = 1.0


@pytest.fixture(params=sorted(LOADERS))
def load(request: pytest.FixtureRequest) -> Callable[[Bundle, PartName], Engine]:
    return LOADERS[request.param]


def spikes(state: State) -> Array:
    return np.concatenate([(membrane > THRESHOLD).ravel() for membrane in state])


def take(state: State, index: slice) -> State:
    return tuple(membrane[index] for membrane in state)


def test_shapes_and_dtypes_are_those_of_the_manifest(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], part: PartName, load: Any
) -> None:
    engine, described = load(tiny_bundle, part), tiny_bundle.part(part)

    assert engine.input_shape == described.input.shape
    assert engine.output_shape == described.output.shape
    assert engine.state_shapes == tuple(state.shape for state in described.states)
    for samples in (1, 3, 7):  # the batch axis is dynamic
        y, state = engine.step(inputs[part][:samples], zero_state(engine, samples))
        assert y.shape == (samples, *engine.output_shape)
        assert y.dtype == DTYPES[part][1]
        assert [m.shape for m in state] == [(samples, *shape) for shape in engine.state_shapes]
        assert {m.dtype for m in state} == {np.dtype(np.float32)}
    if part == "head":
        assert set(np.unique(y)) == {0, 1}


def test_engines_agree_on_a_step_from_the_same_state(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], part: PartName
) -> None:
    onnx, torch = (load(tiny_bundle, part) for load in LOADERS.values())
    x = inputs[part]
    state = zero_state(torch, len(x))
    for _ in range(tiny_bundle.spec.timesteps):
        y, after = onnx.step(x, state)
        expected, state = torch.step(x, state)
        # Different summation order flips the rare neuron that sits on its threshold.
        assert (spikes(after) == spikes(state)).mean() >= 0.99
        if part == "head":
            assert (y == expected).mean() >= 0.99
        else:
            assert (y.argmax(1) == expected.argmax(1)).mean() >= 0.9


def test_a_step_changes_neither_its_arguments_nor_the_engine(
    tiny_bundle: Bundle,
    inputs: dict[PartName, Array],
    part: PartName,
    load: Any,
    random_state: Any,
) -> None:
    engine = load(tiny_bundle, part)
    x, state = inputs[part][:2], random_state(engine, 2)
    kept = tuple(membrane.copy() for membrane in state)

    first, first_state = engine.step(x, state)
    second, second_state = engine.step(x, state)

    np.testing.assert_array_equal(first, second)
    for one, other in zip(first_state, second_state, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(state, kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sample_gives_the_same_alone_and_in_any_batch(
    tiny_bundle: Bundle,
    inputs: dict[PartName, Array],
    part: PartName,
    load: Any,
    random_state: Any,
) -> None:
    engine = load(tiny_bundle, part)
    x, state = inputs[part], random_state(engine, len(inputs[part]))

    _, together = engine.step(x, state)
    for index in (0, 13, 31):
        one = slice(index, index + 1)
        _, alone = engine.step(x[one], take(state, one))
        assert (spikes(alone) == spikes(take(together, one))).mean() >= 0.99


def test_threads_may_share_an_engine(
    tiny_bundle: Bundle,
    inputs: dict[PartName, Array],
    part: PartName,
    load: Any,
    random_state: Any,
) -> None:
    engine = load(tiny_bundle, part)
    state = random_state(engine, 4)
    batches = [inputs[part][start : start + 4] for start in range(0, 16, 4)]
    expected = [engine.step(batch, state)[0] for batch in batches]
    found: dict[int, Array] = {}

    def work(index: int) -> None:
        for _ in range(5):
            found[index], _ = engine.step(batches[index], state)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    for index, output in enumerate(expected):
        np.testing.assert_array_equal(found[index], output)


def test_arguments_that_do_not_fit_are_refused(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], part: PartName, load: Any
) -> None:
    engine = load(tiny_bundle, part)
    x, state = inputs[part][:2], zero_state(engine, 2)
    for bad, message in (
        (x.astype(np.float64), "got float64"),
        (x[:, :1], "expected input"),
        (x[0], "expected input"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.step(bad, state)
    with pytest.raises(EngineError, match=r"expected \d+ membrane arrays, got"):
        engine.step(x, state[:-1])
    with pytest.raises(EngineError, match=r"membrane array 0 float32 \[2, .*got float32 \[3, "):
        engine.step(x, zero_state(engine, 3))
    with pytest.raises(EngineError, match="got float64"):
        engine.step(x, (state[0].astype(np.float64), *state[1:]))


def test_a_bundle_that_lacks_the_part_is_refused(
    tiny_bundle: Bundle, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(tiny_bundle.manifest.parts, "whole")

    with pytest.raises(BundleError, match="no part 'whole', only head, tail"):
        load(tiny_bundle, "whole")


def test_the_default_engine_imports_no_torch() -> None:
    code = "import sys, shared.engine.onnx_runtime; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_device_that_is_not_there_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="usable torch device, got 'cuda:99'"):
        torch_engine.load_engine(tiny_bundle, "head", device="cuda:99")


@pytest.mark.gpu
def test_cuda_agrees_with_cpu(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], part: PartName, random_state: Any
) -> None:
    cpu = torch_engine.load_engine(tiny_bundle, part)
    cuda = torch_engine.load_engine(tiny_bundle, part, device="cuda")
    x, state = inputs[part], random_state(cpu, len(inputs[part]))

    _, expected = cpu.step(x, state)
    _, found = cuda.step(x, state)

    assert (spikes(found) == spikes(expected)).mean() >= 0.99
