"""A device on aarch64, emulated, answers as one on this machine does; no word on time.

Asked for by ``NEUCODEX_AARCH64_ROOT``, which ``docker/aarch64.sh`` makes and sets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.demo import BUNDLE
from examples.pair import run_cloud
from examples.pictures import load_pictures

ROOT = os.environ.get("NEUCODEX_AARCH64_ROOT")
PICTURES = 8
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not ROOT, reason="NEUCODEX_AARCH64_ROOT is not set: docker/aarch64.sh makes it"
    ),
]


def inside(*command: str) -> str:
    """Run a program in the emulated system; its network is this machine's."""
    environment = {"PATH": "/venv/bin:/usr/sbin:/usr/bin:/bin"}
    done = subprocess.run(
        ("chroot", str(ROOT), *command),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_emulated_device_answers_as_one_here_does(tmp_path: Path) -> None:
    folder = Path(str(ROOT)) / "pictures"
    folder.mkdir(exist_ok=True)
    names = [f"{number}.png" for number in range(PICTURES)]
    for name, pixels in zip(names, load_pictures(PICTURES).pixels, strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / name)

    zoo = inside("python3", "-Ic", "import shared; print(shared.__path__[0])").strip() + "/zoo"
    assert inside("python3", "-Ic", "import platform; print(platform.machine())") == "aarch64\n"
    bundle = f"{zoo}/{BUNDLE.name}"
    doctor = inside("neucodex-edge", "doctor", "--placement", "edge_only", "--bundle", bundle)
    assert "codec         in C" in doctor

    with run_cloud(tmp_path, BUNDLE) as cloud:
        common = ("classify", "--json", "--window", "1", "--cloud", cloud.address, "--bundle")
        there = inside("neucodex-edge", *common, bundle, *(f"/pictures/{name}" for name in names))
        here = subprocess.run(
            (
                sys.executable,
                "-m",
                "edge_agent",
                *common,
                str(BUNDLE),
                *(str(folder / n) for n in names),
            ),
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    for one, other in zip(there.splitlines(), here.splitlines(), strict=True):
        emulated, native = json.loads(one), json.loads(other)
        assert (emulated["name"], emulated["placement"]) == (native["name"], "co_inference")
        # Sums in another order round otherwise, and a spike near threshold may flip.
        assert emulated["confidence"] == pytest.approx(native["confidence"], abs=0.05)
