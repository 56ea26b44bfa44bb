"""Edge head and encoder, one timestep: ONNX Runtime against snnTorch eager on the same weights.

The baseline is the head built from ``snntorch.Leaky`` layers and PyTorch convolutions with the
bundle's own (BatchNorm-folded) weights, which is already faster than the unfolded network a
training script would run. Both run one sample per call on one thread of one core, in turn; the
figure is process CPU time, and the ratio is taken round by round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import snntorch
import torch
from torch import Tensor, nn

from benchmarks.report import LOAD_CORE, Result, figure, pin, run
from shared.engine.base import zero_state
from shared.engine.onnx_runtime import load_engine
from shared.engine.torch_engine import load_network
from shared.model.bundle import Bundle
from shared.model.neuron import LIF
from shared.model.split import Part


class SnntorchLIF(nn.Module):
    """A ``snntorch.Leaky`` in the place of our LIF: state in, state out."""

    def __init__(self, lif: LIF) -> None:
        super().__init__()
        self.leaky = snntorch.Leaky(
            beta=lif.beta, threshold=lif.threshold, reset_mechanism=lif.reset
        )

    def forward(self, currents: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run one timestep ``[1, N, ...]``."""
        if membrane is None:
            membrane = torch.zeros_like(currents[0])
        spikes, after = self.leaky(currents[0], membrane)
        return spikes[None], after


def snntorch_head(bundle: Bundle) -> Part:
    """Return the bundle's head with ``snntorch.Leaky`` neurons."""
    head = load_network(bundle).head()
    for module in head.modules():
        for name, child in module.named_children():
            if isinstance(child, LIF):
                setattr(module, name, SnntorchLIF(child))
    return head


def snntorch_step(bundle: Bundle, frame: np.ndarray[Any, Any]) -> Callable[[], object]:
    """Return a sample's T timesteps in eager PyTorch."""
    head, x = snntorch_head(bundle), torch.from_numpy(frame)

    def sample() -> object:
        state = None
        with torch.inference_mode():
            for _ in range(bundle.spec.timesteps):
                code, state = head.step(x, state)
        return code

    return sample


def onnx_step(bundle: Bundle, frame: np.ndarray[Any, Any]) -> Callable[[], object]:
    """Return a sample's T timesteps in ONNX Runtime."""
    engine = load_engine(bundle, "head", threads=1)

    def sample() -> object:
        state = zero_state(engine, 1)
        for _ in range(bundle.spec.timesteps):
            code, state = engine.step(frame, state)
        return code

    return sample


def cpu_seconds(call: Callable[[], object], calls: int) -> float:
    """Return the process CPU seconds of one call, over ``calls`` calls."""
    began = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - began) / calls


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Run both in turn, round by round."""
    pin(LOAD_CORE)
    torch.set_num_threads(1)
    rounds, calls = (10, 3) if quick else (40, 10)
    generator = np.random.default_rng(0)
    frame = generator.standard_normal((1, *bundle.spec.input_shape), np.float32)
    candidates = [onnx_step(bundle, frame), snntorch_step(bundle, frame)]
    for candidate in candidates:
        cpu_seconds(candidate, calls)
    timesteps = bundle.spec.timesteps
    times = [[cpu_seconds(c, calls) / timesteps for c in candidates] for _ in range(rounds)]
    onnx, eager = zip(*times, strict=True)
    results = [
        figure("onnx_over_snntorch", [b / a for a, b in times], "ratio", "at least 2"),
        figure("onnx_head_step", onnx, "CPU seconds per timestep"),
        figure("snntorch_head_step", eager, "CPU seconds per timestep"),
    ]
    return {"rounds": rounds, "samples_per_round": calls, "threads": 1, "batch": 1}, results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("head_step", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
