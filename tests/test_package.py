"""The package as pip builds it, with a compiler and without, used outside the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from shared.codec.context_model import save_tables
from tests.shared.codec.test_context_codec import (
    CAN_BUILD,
    GOLDEN,
    golden_frames,
    golden_tables,
)

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("protos", "shared", "edge_agent", "cloud_server", "training", "benchmarks")
BUILDERS = (("setuptools", 77), ("pip", 22))
"""What builds the package without the network, at which major version."""

PROGRAM = """
import json, sys
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from shared.codec import native
from shared.codec.context_codec import ContextCodec, MixingCodec
from shared.codec.context_model import load_tables
from shared.metrics import EdgeMetrics

tables = load_tables(Path(sys.argv[1]).read_bytes())
frames = np.array(json.loads(sys.argv[2]), np.uint8)
registry = CollectorRegistry()
EdgeMetrics(registry, model="any")
words = {}
for kind in (ContextCodec, MixingCodec):
    codec = kind(tables)
    found = [codec.encode(frames[:1], []), codec.encode(frames[1:], [frames[0]])]
    assert (codec.decode(found[1], 2, frames.shape[1], [frames[0]]) == frames[1:]).all()
    words[kind.name] = " ".join(word.hex() for word in found)
metric = [
    line for line in generate_latest(registry).decode().splitlines()
    if line.startswith("neucodex_codec_info{")
]
print(json.dumps({"from": native.__file__, "words": words, "metric": metric}))
"""


def can_build() -> bool:
    """Say whether the build tools are in this environment."""
    try:
        found = {name: metadata.version(name) for name, _ in BUILDERS}
    except metadata.PackageNotFoundError:
        return False
    return all(int(found[name].split(".")[0]) >= least for name, least in BUILDERS)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_build(), reason=f"needs at least {BUILDERS}"),
]


def build(folder: Path, **environment: str) -> Path:
    """Build a wheel of a copy of the sources and install it alone; return where."""
    source, wheels, installed = folder / "source", folder / "wheels", folder / "installed"
    source.mkdir(parents=True)
    for room in ROOMS:
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / room, source / room, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    alone = ("--no-deps", "--no-index")
    subprocess.run(
        (*pip, "wheel", *alone, "--no-build-isolation", "--wheel-dir", wheels, source),
        check=True,
        env=os.environ | environment,
    )
    (wheel,) = wheels.glob("*.whl")
    subprocess.run((*pip, "install", *alone, "--target", installed, wheel), check=True)
    return installed


def run(installed: Path, *arguments: str | Path) -> str:
    """Run Python with the installed package in front of everything else; return what it says."""
    done = subprocess.run(
        (sys.executable, *arguments),
        cwd=installed.parent,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("compiler", "implementation", "says"),
    [
        pytest.param(
            {},
            "c",
            "in C",
            marks=pytest.mark.skipif(not CAN_BUILD, reason="no gcc or no Python.h"),
        ),
        ({"CC": "/bin/false"}, "python", "in Python, slower: the package was installed without"),
    ],
    ids=["with a compiler", "without a compiler"],
)
def test_a_wheel_codes_the_same_bytes_and_says_which_implementation_does(
    compiler: dict[str, str], implementation: str, says: str, tmp_path: Path
) -> None:
    installed = build(tmp_path, **compiler)
    assert bool(list(installed.glob("shared/codec/_native*.so"))) == (implementation == "c")

    tables = tmp_path / "codec.npz"
    tables.write_bytes(save_tables(golden_tables()))
    frames = json.dumps(golden_frames().tolist())
    told = json.loads(run(installed, "-c", PROGRAM, tables, frames))
    assert told["from"] == str(installed / "shared" / "codec" / "native.py")
    assert told["words"] == GOLDEN
    assert told["metric"] == [
        f'neucodex_codec_info{{component="edge",implementation="{implementation}"}} 1.0'
    ]

    bundle = installed / "shared" / "zoo" / "resnet18-cifar10-demo"
    doctor = ("-m", "edge_agent.cli", "doctor", "--placement", "edge_only", "--bundle", bundle)
    (codec,) = [line for line in run(installed, *doctor).splitlines() if "codec" in line]
    assert says in codec
