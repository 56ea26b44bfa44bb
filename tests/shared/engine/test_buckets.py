"""Batches in buckets: on the CPU all but the capture, on a GPU that too."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.engine import torch_engine
from shared.engine.base import Array
from shared.engine.buckets import Bucket, Buckets, bucket_sizes
from shared.model.bundle import Bundle, PartName


@given(st.integers(1, 5000))
def test_the_smallest_bucket_that_holds_a_batch_is_taken(rows: int) -> None:
    sizes = bucket_sizes(100)
    assert sizes == (1, 2, 4, 8, 16, 32, 64, 100)
    found = Buckets(lambda x: (x,), [torch.zeros(1, 1)], sizes).bucket_of(rows).size
    assert found == min((size for size in sizes if size >= rows), default=100)


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3))])
def test_bucket_sizes(most: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(most) == sizes


def test_a_batch_of_nothing_has_no_bucket() -> None:
    with pytest.raises(ValueError, match="expected a batch of at least 1, got 0"):
        bucket_sizes(0)


def test_only_as_many_rows_are_computed_as_the_bucket_has() -> None:
    computed: list[int] = []

    def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        computed.append(len(x))
        return (2 * x,)

    buckets = Buckets(double, [torch.zeros(1, 3)], (1, 2, 4))
    for rows in (1, 2, 3, 4, 5, 9):
        x = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
        (y,) = buckets.run([x])
        np.testing.assert_array_equal(y, 2 * x)
    assert computed == [1, 2, 4, 4, 4, 1, 4, 4, 1]


def test_results_are_nobodys_buffers() -> None:
    bucket = Bucket(lambda x: (x,), [torch.zeros(1, 1)], 2)
    (first,) = bucket.run([np.ones((2, 1), np.float32)])
    bucket.run([np.zeros((2, 1), np.float32)])
    np.testing.assert_array_equal(first, np.ones((2, 1)))


def test_rows_left_over_never_reach_another_sample(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], part: PartName, random_state: Any
) -> None:
    plain = torch_engine.load_engine(tiny_bundle, part)
    filled = torch_engine.load_engine(tiny_bundle, part)
    filled.use_buckets((4, 8))
    broken = tuple(np.full((8, *shape), np.nan, np.float32) for shape in plain.state_shapes)
    for rows in (1, 3, 4, 5, 8, 11):
        x, state = inputs[part][:rows], random_state(plain, rows)
        filled.step(inputs[part][:8], broken)  # What is left over is as bad as can be.
        expected, after = plain.step(x, state)
        found, found_after = filled.step(x, state)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for one, other in zip(found_after, after, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_calls_of_several_threads_do_not_mix(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], random_state: Any
) -> None:
    engine = torch_engine.load_engine(tiny_bundle, "tail")
    engine.use_buckets((1, 2, 4))
    state = random_state(engine, 1)
    batches = [inputs["tail"][index : index + 1] for index in range(16)]
    alone = [engine.step(x, state)[0] for x in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda x: engine.step(x, state)[0], batches))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_auto_takes_the_cpu_with_a_warning_where_there_is_no_gpu(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = torch_engine.load_engine(tiny_bundle, "tail", device="auto", max_batch=4)
    assert caplog.messages == [
        "device auto: expected a CUDA device, there is none: the CPU is used"
    ]
    state = tuple(np.zeros((1, *shape), np.float32) for shape in engine.state_shapes)
    assert engine.step(inputs["tail"][:1], state)[0].shape == (1, 10)


@pytest.mark.gpu
def test_graphs_give_what_the_cpu_gives(
    tiny_bundle: Bundle, inputs: dict[PartName, Array], random_state: Any
) -> None:
    cpu = torch_engine.load_engine(tiny_bundle, "tail")
    cuda = torch_engine.load_engine(tiny_bundle, "tail", device="auto", max_batch=8)
    broken = tuple(np.full((8, *shape), np.nan, np.float32) for shape in cpu.state_shapes)
    for rows in (1, 2, 3, 5, 8, 13, 32):
        x, state = inputs["tail"][:rows], random_state(cpu, rows)
        cuda.step(inputs["tail"][:8], broken)
        found, _ = cuda.step(x, state)
        np.testing.assert_allclose(found, cpu.step(x, state)[0], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_a_captured_bucket_runs_without_python() -> None:
    calls: list[int] = []

    def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(x))
        return (2 * x,)

    with torch.inference_mode():
        buckets = Buckets(double, [torch.zeros(1, 3, device="cuda")], (1, 4))
        captured = len(calls)
        for value in range(5):
            (y,) = buckets.run([np.full((3, 3), value, np.float32)])
            np.testing.assert_array_equal(y, np.full((3, 3), 2 * value))
    assert len(calls) == captured
