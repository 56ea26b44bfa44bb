"""Who may import whom: imports point down only, and each library stays in its room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("protos", "shared", "edge_agent", "cloud_server", "training", "benchmarks", "examples")
UPSTAIRS = ("training", "benchmarks", "examples", "tests")


class Rule(NamedTuple):
    """Files that match ``where``, but not ``but``, import nothing of ``never``."""

    where: str
    never: tuple[str, ...]
    but: tuple[str, ...] = ()


RULES = {
    "edge": Rule("edge_agent/*", ("cloud_server", *UPSTAIRS)),
    "cloud": Rule("cloud_server/*", ("edge_agent", *UPSTAIRS)),
    "shared": Rule("shared/*", ("edge_agent", "cloud_server", *UPSTAIRS)),
    "protos": Rule("protos/*", ("shared", "edge_agent", "cloud_server", *UPSTAIRS)),
    "examples": Rule("examples/*", ("training", "benchmarks", "tests")),
    "protobuf": Rule("shared/*", ("protos", "google"), but=("shared/wire.py",)),
    "grpc": Rule("shared/*", ("grpc", "grpc_health", "grpc_reflection"), but=("shared/rpc.py",)),
    "prometheus": Rule("shared/*", ("prometheus_client",), but=("shared/metrics.py",)),
    "opentelemetry": Rule("*", ("opentelemetry",), but=("shared/tracing.py",)),
    "codec": Rule("shared/codec/*", ("shared.model", "shared.engine", "grpc", "protos")),
    "onnxruntime": Rule(
        "*",
        ("onnxruntime",),
        but=("shared/engine/onnx_runtime.py", "training/*", "benchmarks/*"),
    ),
    "torch": Rule(
        "*",
        ("torch", "snntorch"),
        but=(
            "shared/model/neuron.py",
            "shared/model/backbones.py",
            "shared/model/bottleneck.py",
            "shared/model/folding.py",
            "shared/model/imported.py",
            "shared/model/split.py",
            "shared/engine/buckets.py",
            "shared/engine/torch_engine.py",
            "training/*",
            "benchmarks/*",
            "examples/snntorch_net.py",
        ),
    ),
}


def imported(source: str) -> Iterator[str]:
    """Yield the full names that a module imports, at its top or anywhere inside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: expected absolute imports only")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(root: Path) -> list[str]:
    """Return every import below ``root`` that breaks a rule, as ``rule: file imports name``."""
    return [
        f"{name}: {file} imports {module}"
        for file, module in _imports(root)
        for name, rule in RULES.items()
        if fnmatch(file, rule.where)
        and not any(fnmatch(file, pattern) for pattern in rule.but)
        and any(f"{module}.".startswith(f"{room}.") for room in rule.never)
    ]


def _imports(root: Path) -> Iterator[tuple[str, str]]:
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            for module in imported(path.read_text(encoding="utf-8")):
                yield file, module


def test_no_import_breaks_a_rule() -> None:
    assert breaches(ROOT) == []


def test_all_rooms_are_looked_at() -> None:
    assert {file.partition("/")[0] for file, _ in _imports(ROOT)} == set(ROOMS)


@pytest.mark.parametrize(
    ("rule", "file", "line"),
    [
        ("edge", "edge_agent/loop.py", "import cloud_server.session"),
        ("edge", "edge_agent/sources/folder.py", "from training.data import cifar10"),
        ("cloud", "cloud_server/slots.py", "from edge_agent import session"),
        ("cloud", "cloud_server/slots.py", "from benchmarks.load import Load"),
        ("shared", "shared/exit_rule.py", "import edge_agent"),
        ("shared", "shared/model/spec.py", "def late():\n    import cloud_server.slots as s"),
        ("protos", "protos/generate.py", "from shared import errors"),
        ("examples", "examples/demo.py", "from training.data.cifar10 import load_cifar10"),
        ("protobuf", "shared/messages.py", "from protos import co_inference_pb2"),
        ("protobuf", "shared/rpc.py", "from google.protobuf import message"),
        ("grpc", "shared/wire.py", "import grpc.aio"),
        ("prometheus", "shared/tcp_info.py", "from prometheus_client import Counter"),
        ("opentelemetry", "edge_agent/loop.py", "from opentelemetry import trace"),
        ("codec", "shared/codec/packet.py", "from shared.model.spec import NetworkSpec"),
        ("codec", "shared/codec/codecs.py", "from shared import model"),
        ("onnxruntime", "edge_agent/feeds.py", "import onnxruntime as ort"),
        ("torch", "shared/model/bundle.py", "from torch import nn"),
        ("torch", "shared/model/spec.py", "import torch"),
        ("torch", "cloud_server/scheduler.py", "if True:\n    import torch.cuda"),
        ("torch", "edge_agent/fallback.py", "from snntorch import surrogate"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, rule: str, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    found = breaches(tmp_path)
    assert [breach.partition(":")[0] for breach in found if breach.startswith(rule)] == [rule]
    assert file in found[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("shared/wire.py", "from protos import co_inference_pb2"),
        ("shared/rpc.py", "import grpc"),
        ("shared/metrics.py", "import prometheus_client"),
        ("shared/engine/torch_engine.py", "import torch"),
        ("edge_agent/loop.py", "import torchlight, sharedness, grpc"),
    ],
)
def test_what_is_allowed_is_no_breach(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert breaches(tmp_path) == []
