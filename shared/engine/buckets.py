"""Batches of fixed sizes for a torch step: each captured once as a CUDA graph, and replayed.

A timestep of a small network is hundreds of kernels, each over sooner than Python can start the
next; a graph starts all of them at once. It works on tensors that stay where they are, so that a
batch is copied into those of the smallest *bucket* that holds it. Rows that are left over keep what
an earlier batch wrote there: samples do not see each other, and nobody reads those rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shared.engine.base import Array

Compute = Callable[..., tuple[Tensor, ...]]
"""A step: tensors ``[N, ...]`` in, tensors ``[N, ...]`` out; nothing held between calls."""
WARM_UP_CALLS = 3
"""Before a capture: libraries choose and load their kernels in the first ones."""


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """Return powers of two below ``max_batch``, and that; ValueError if it is below 1."""
    if max_batch < 1:
        raise ValueError(f"expected a batch of at least 1, got {max_batch}")
    powers = (1 << exponent for exponent in range(max_batch.bit_length()))
    return (*(size for size in powers if size < max_batch), max_batch)


class Bucket:
    """Tensors for batches of up to ``size`` rows, and the step on them.

    Args:
        compute: the step.
        examples: one tensor per input, ``[1, ...]``, on the device.
        size: rows.
    """

    def __init__(self, compute: Compute, examples: Sequence[Tensor], size: int) -> None:
        self.size = size
        self._compute = compute
        self._inputs = [
            torch.zeros(size, *each.shape[1:], dtype=each.dtype, device=each.device)
            for each in examples
        ]
        self._outputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        if self._inputs[0].is_cuda:
            self._graph = self._captured()

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run a batch of at most ``size`` rows and return copies of its rows of the outputs."""
        rows = len(arrays[0])
        for held, array in zip(self._inputs, arrays, strict=True):
            # A copy where NumPy's array is read-only, which torch would warn of.
            held[:rows].copy_(torch.tensor(array))
        if self._graph is None:
            self._outputs = self._compute(*self._inputs)
        else:
            self._graph.replay()
        return [each[:rows].to("cpu", copy=True).numpy() for each in self._outputs]

    def _captured(self) -> torch.cuda.CUDAGraph:
        device = self._inputs[0].device
        with torch.cuda.device(device):
            aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_CALLS):
                    self._compute(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other models run on other threads meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = self._compute(*self._inputs)
        return graph


class Buckets:
    """Runs batches of any size in buckets; calls from several threads wait for each other.

    Args:
        compute: the step; its captures happen here.
        examples: one tensor per input, ``[1, ...]``, on the device.
        sizes: of the buckets, ascending.
    """

    def __init__(self, compute: Compute, examples: Sequence[Tensor], sizes: Sequence[int]) -> None:
        self._buckets = [Bucket(compute, examples, size) for size in sizes]
        self._lock = threading.Lock()

    def bucket_of(self, rows: int) -> Bucket:
        """Return the smallest bucket that holds so many rows, the largest where none does."""
        return next((each for each in self._buckets if each.size >= rows), self._buckets[-1])

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run one batch, in pieces where it is larger than the largest bucket."""
        rows, largest = len(arrays[0]), self._buckets[-1].size
        with self._lock:
            pieces = [
                self.bucket_of(min(rows - start, largest)).run(
                    [array[start : start + largest] for array in arrays]
                )
                for start in range(0, rows, largest)
            ]
        if len(pieces) == 1:
            return pieces[0]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
