"""The containers, run for real: a model pulled, 100 pictures answered, both scraped, all stopped.

Asked for by ``NEUCODEX_CONTAINERS=1`` where there is a Docker engine with both images;
``docker/rehearse.sh`` sees to all of that on a machine that has none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCKER = Path(__file__).resolve().parents[2] / "docker"
IMAGES = {"cloud": "neucodex-cloud:0.1.0", "edge": "neucodex-edge:0.1.0"}
PICTURES = 100
PATIENCE_SECONDS = 180.0
EDGE_LIMIT_BYTES = 350_000_000
IMAGE_USER = 10001
GATEWAY = "172.17.0.1"
"""The machine as containers see it: the address of Docker's own bridge."""
SCRAPE = (
    "import urllib.request as r; print(r.urlopen('http://127.0.0.1:{}/metrics').read().decode())"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not os.environ.get("NEUCODEX_CONTAINERS"),
        reason="NEUCODEX_CONTAINERS is not set: docker/rehearse.sh makes an engine and the images",
    ),
]


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def compose(*arguments: str, file: Path = DOCKER / "compose.yaml", check: bool = True) -> str:
    """Run Docker Compose, whichever there is."""
    command = ("docker-compose",) if shutil.which("docker-compose") else ("docker", "compose")
    name = f"neucodex-{file.stem.replace('.', '-')}"
    return run(*command, "--file", str(file), "--project-name", name, *arguments, check=check)


@pytest.fixture(scope="module")
def house() -> Iterator[None]:
    """Cloud and edge of compose.yaml, with the model pulled and the source's pictures there."""
    os.environ["PICTURES"] = str(PICTURES)
    try:
        compose("up", "--detach", "--no-build", "edge")
        yield
    finally:
        compose("down", "--volumes", "--timeout", "30", check=False)


def state(service: str) -> dict[str, object]:
    """Return what the engine says of a service's container."""
    (found,) = json.loads(run("docker", "inspect", compose("ps", "--quiet", service).strip()))
    return dict(found["State"])


def answered() -> list[dict[str, object]]:
    read = ("exec", "-T", "edge", "cat", "/var/lib/neucodex/results.jsonl")
    return [json.loads(line) for line in compose(*read, check=False).splitlines()]


def wait_for_answers() -> list[dict[str, object]]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(found := answered()) < PICTURES:
        assert time.monotonic() < deadline, compose("logs", "--tail", "50")
        time.sleep(0.5)
    return found


def test_the_edge_image_is_small_and_neither_runs_as_root() -> None:
    size_bytes = int(run("docker", "image", "inspect", "--format", "{{.Size}}", IMAGES["edge"]))
    assert size_bytes < EDGE_LIMIT_BYTES
    for image in IMAGES.values():
        user = run("docker", "image", "inspect", "--format", "{{.Config.User}}", image).strip()
        assert int(user) > 0
    code = "import importlib.util as u; print(u.find_spec('torch'))"
    alone = ("docker", "run", "--rm", "--network", "none", "--entrypoint", "python3")
    assert run(*alone, IMAGES["edge"], "-c", code).strip() == "None"


def test_the_house_answers_is_scraped_and_stops_in_good_order(house: None) -> None:
    answers = wait_for_answers()
    assert len(answers) == PICTURES
    assert {answer["placement"] for answer in answers} == {"co_inference"}

    told = {
        side: compose("exec", "-T", side, "python3", "-c", SCRAPE.format(port))
        for side, port in (("edge", 9465), ("cloud", 9464))
    }
    ended = re.findall(r"^neucodex_edge_inferences_total\{.*\} (\S+)$", told["edge"], re.M)
    assert sum(map(float, ended)) == PICTURES
    assert re.search(r'^neucodex_cloud_streams\{rpc="infer"\} 1.0$', told["cloud"], re.M)

    deadline = time.monotonic() + PATIENCE_SECONDS
    while {state(side)["Health"]["Status"] for side in IMAGES} != {"healthy"}:  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    compose("stop", "--timeout", "30")
    assert {state(side)["ExitCode"] for side in IMAGES} == {0}


def test_two_machines_know_each_other_by_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The files are those of the clone, but for the certificates, which lie beside them.
    folder = Path(shutil.copytree(DOCKER, tmp_path / "docker"))
    cloud, edge = folder / "compose.cloud.yaml", folder / "compose.edge.yaml"
    certificates = folder / "certs"
    certificates.mkdir()
    os.chown(certificates, IMAGE_USER, IMAGE_USER)
    there = ("--rm", "--network", "none", "--volume", f"{certificates}:/certs", IMAGES["cloud"])
    names = ("--server-name", GATEWAY, "--edge", "device-1")
    run("docker", "run", *there, "certs", "--out", "/certs", *names)
    for kind in ("pem", "key"):
        (certificates / f"edge-device-1.{kind}").rename(certificates / f"edge.{kind}")

    monkeypatch.setenv("NEUCODEX_CLOUD", f"{GATEWAY}:50051")
    try:
        compose("up", "--detach", "--no-build", file=cloud)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "serving" not in compose("logs", file=cloud):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        compose("up", "--detach", "--no-build", file=edge)
        doctor = ("neucodex-edge", "doctor", "--config", "/etc/neucodex/edge.toml")
        told = compose("exec", "-T", "edge", *doctor, "--cloud", f"{GATEWAY}:50051", file=edge)
        assert "TLS, trusting /etc/neucodex/certs/ca.pem, with a certificate" in told
        assert "the cloud serves this bundle" in told
    finally:
        for file in (edge, cloud):
            compose("down", "--volumes", "--timeout", "30", file=file, check=False)
