"""The package as pip builds it, with a compiler and without, used outside the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.installs import PIP, Install, build_wheel, install
from benchmarks.report import ROOT
from shared.codec.context_model import save_tables
from tests.shared.codec.test_context_codec import (
    CAN_BUILD,
    GOLDEN,
    golden_frames,
    golden_tables,
)

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
    """Build a wheel and install it alone; return where."""
    wheel, installed = build_wheel(folder / "build", **environment), folder / "installed"
    alone = ("--no-deps", "--no-index", "--target", installed)
    subprocess.run((sys.executable, *PIP, "install", *alone, wheel), check=True)
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

    assets = Path("shared", "live", "assets")
    for path in (ROOT / assets).iterdir():
        assert (installed / assets / path.name).read_bytes() == path.read_bytes()

    bundle = installed / "shared" / "zoo" / "resnet18-cifar10-demo"
    doctor = ("-m", "edge_agent.cli", "doctor", "--placement", "edge_only", "--bundle", bundle)
    (codec,) = [line for line in run(installed, *doctor).splitlines() if "codec" in line]
    assert says in codec


@pytest.fixture(scope="module")
def installed_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Install]:
    """Install the built wheel with an extra, as a user would, in an environment of its own."""
    folder = tmp_path_factory.mktemp("installs")
    index = (*PIP, "download", "--no-deps", "--no-cache-dir", "--dest", folder, "msgspec")
    if subprocess.run((sys.executable, *index), capture_output=True, check=False).returncode:
        pytest.skip("there is no package index to install from")
    wheel = build_wheel(folder / "build")
    return lambda extra: install(folder / f"with-{extra}", wheel, extra)


HEAVY = {"torch", "snntorch", "onnx", "matplotlib", "scipy"}
BUNDLE = "shared/zoo/resnet18-cifar10-demo"
PICTURE = ROOT / "examples" / "data" / "test_batch.webp"  # Large, but a picture.


@pytest.mark.parametrize(
    ("extra", "brings", "works", "lacks"),
    [
        ("", set(), (), ("edge", "cloud", "train")),
        ("edge", {"onnxruntime"}, ("edge",), ("cloud", "train")),
        ("cloud", {"onnxruntime", "grpcio-health-checking"}, ("cloud",), ("train",)),
    ],
    ids=["client library", "edge", "cloud"],
)
def test_each_extra_brings_its_part_and_names_those_that_are_missing(
    installed_with: Callable[[str], Install],
    extra: str,
    brings: set[str],
    works: tuple[str, ...],
    lacks: tuple[str, ...],
    tmp_path: Path,
) -> None:
    made = installed_with(extra)
    assert brings <= set(made.packages)
    assert not HEAVY & set(made.packages)
    program = "from edge_agent import Edge; import shared; print(shared.__path__[0])"
    shared = Path(call(made, tmp_path, "python", "-c", program).stdout.strip())

    bundle = ("--bundle", str(shared.parent / BUNDLE))
    commands = {
        "edge": ("classify", *bundle, str(PICTURE)),
        "cloud": ("models", *bundle),
        "train": ("--help",),
    }
    for part in works:
        done = call(made, tmp_path, f"neucodex-{part}", *commands[part])
        assert done.returncode == 0, done.stderr
    for part in lacks:
        done = call(made, tmp_path, f"neucodex-{part}", *commands[part])
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"(pip install 'neucodex[{part}]'), it is not there" in done.stderr


def call(
    made: Install, folder: Path, name: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment, away from the sources."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        (made.python.parent / name, *arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
