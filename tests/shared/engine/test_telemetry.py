"""Running a network tells nobody and leaves nothing on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from shared.model.bundle import Bundle

RUN = """
import sys
from pathlib import Path
from shared.engine.onnx_runtime import load_engine
from shared.model.bundle import Bundle
load_engine(Bundle(Path(sys.argv[1])), "head")
"""
ROOT = Path(__file__).resolve().parents[3]
SILENCED = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")
"""Variables by which ONNX Runtime would be silent without our help."""


def test_the_runtime_writes_no_identifier(tmp_path: Path, tiny_bundle: Bundle) -> None:
    plain = {key: value for key, value in os.environ.items() if key not in SILENCED}
    folders = {key: str(tmp_path) for key in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    command = (sys.executable, "-B", "-c", RUN, str(tiny_bundle.path))
    subprocess.run(command, cwd=ROOT, env=plain | folders, check=True)
    assert list(tmp_path.iterdir()) == []
