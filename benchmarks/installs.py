"""What an install of each part of the package takes: disk, and time with its downloads.

The sources are packed (sdist), a wheel is built from that, and the wheel is installed with each
extra into a fresh virtual environment. Disk is what the environment grew by, byte-compiled modules
included. Nothing is taken from pip's cache, so that most of the time depends on the package index
and the network; an index that does not answer ends the benchmark.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import ROOT, Result, figure, run
from shared.extras import ROOMS
from shared.model.bundle import Bundle

EXTRAS = ("", "edge", "cloud", "torch", "train")
"""Measured ones; the empty one is the client library alone."""
QUICK = ("", "edge")
FILES = ("pyproject.toml", "README.md", "LICENSE")
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


class Install(NamedTuple):
    """The package in a virtual environment of its own."""

    python: Path
    seconds: float
    size_bytes: int
    """Of the package and all that it brought."""
    packages: tuple[str, ...]
    """Names of what is installed, but for pip and setuptools."""


def build_wheel(folder: Path, **environment: str) -> Path:
    """Pack a copy of the sources and build a wheel from the packed ones alone.

    Args:
        folder: for both, empty.
        environment: variables to build with.

    Returns:
        The wheel; the sdist lies beside it.
    """
    sources, built = folder / "source", folder / "dist"
    sources.mkdir(parents=True)
    for room in ROOMS:
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / room, sources / room, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, sources)
    pack = f"from setuptools import build_meta; build_meta.build_sdist({str(built)!r})"
    quietly: dict[str, Any] = {"env": os.environ | environment, "check": True}
    subprocess.run((sys.executable, "-c", pack), cwd=sources, stdout=subprocess.DEVNULL, **quietly)
    (sdist,) = built.glob("*.tar.gz")
    alone = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", built)
    subprocess.run((sys.executable, *PIP, "wheel", *alone, sdist), **quietly)
    (wheel,) = built.glob("*.whl")
    return wheel


def install(folder: Path, wheel: Path, extra: str) -> Install:
    """Install the wheel with an extra, of the pinned versions.

    Args:
        folder: of the virtual environment, not there yet.
        wheel: built before.
        extra: one, several with commas, or none.

    Raises:
        subprocess.CalledProcessError: something is not to be had.
    """
    subprocess.run((sys.executable, "-m", "venv", folder), check=True)
    python, before = folder / "bin" / "python", size_bytes(folder)
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    pinned = ("--no-cache-dir", "--constraint", ROOT / "constraints.txt")
    began = time.perf_counter()
    subprocess.run((python, *PIP, "install", *pinned, wanted), check=True)
    seconds = time.perf_counter() - began
    told = subprocess.run(
        (python, "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = {line.partition("==")[0] for line in told.split()} - {"pip", "setuptools"}
    return Install(python, seconds, size_bytes(folder) - before, tuple(sorted(names)))


def size_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; links count as nothing."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Install with every extra, one after the other."""
    results, packages = [], {}
    with tempfile.TemporaryDirectory(prefix="neucodex-") as name:
        folder = Path(name)
        wheel = build_wheel(folder / "build")
        results.append(figure("wheel", [wheel.stat().st_size / 1e6], "MB"))
        for extra in QUICK if quick else EXTRAS:
            made, label = install(folder / f"with-{extra}", wheel, extra), extra or "base"
            results.append(figure(f"{label}_disk", [made.size_bytes / 1e6], "MB"))
            results.append(figure(f"{label}_time", [made.seconds], "seconds, downloads included"))
            packages[label] = made.packages
            shutil.rmtree(made.python.parents[1])
    return {"packages": packages}, results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("installs", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
