"""With the default engine neither daemon imports torch, not even somewhere down its imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent import Edge
from examples.pair import pair
from shared.model.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
TRAINING_ONLY = {"torch", "snntorch", "onnx", "onnxscript", "matplotlib", "safetensors"}
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if module.name != "examples.snntorch_net":  # Somebody's own network, for training.
            importlib.import_module(module.name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def imported_by(*packages: str) -> set[str]:
    """Return the top-level packages loaded when every module of ``packages`` is imported."""
    command = (sys.executable, "-c", IMPORT_ALL, *packages)
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return set(output.split())


def has_torch_mapped(pid: int) -> bool:
    """Say whether a process has any of torch's libraries in its memory."""
    return "/torch/" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("side", ["edge_agent", "cloud_server", "examples"])
def test_no_module_of_a_side_imports_the_training_stack(side: str) -> None:
    loaded = imported_by(side)
    assert side in loaded
    assert loaded & TRAINING_ONLY == set()


def test_torch_would_be_noticed_among_the_imports() -> None:
    assert "torch" in imported_by("shared.model")


@pytest.mark.timeout(600)
def test_running_daemons_have_no_torch_in_memory(tiny_bundle: Bundle) -> None:
    import torch  # noqa: F401  (the counter-example)

    with pair(tiny_bundle.path) as both, Edge(both.edge.address) as edge:
        answer = edge.classify(np.zeros((3, 32, 32), np.uint8))
        assert answer.placement == "co_inference"
        assert not has_torch_mapped(both.edge.pid)
        assert not has_torch_mapped(both.cloud.pid)
    assert has_torch_mapped(os.getpid())
