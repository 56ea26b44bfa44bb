"""The committed modules are those that the .proto files give today."""

from __future__ import annotations

import shutil
from pathlib import Path

from protos.generate import ROOT, stale


def test_generated_modules_are_current() -> None:
    assert stale() == []


def test_changed_and_missing_modules_are_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    changed = Path("protos/co_inference_pb2.py")
    missing = Path("protos/edge_service_pb2_grpc.py")
    (tmp_path / changed).write_text("# another\n")
    (tmp_path / missing).unlink()
    assert stale(tmp_path) == [changed, missing]
