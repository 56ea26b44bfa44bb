"""The two small programs run, with a film and synthetic events in the place of hardware."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent import EventSender
from examples.pair import run_edge
from shared.model.bundle import Bundle
from tests.edge_agent.test_event_stream import WINDOW, window

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PATIENCE_SECONDS = 60


@pytest.mark.parametrize("name", ["camera", "event_camera"])
def test_a_program_is_short_and_uses_the_public_api_alone(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 60
    ours = {"edge_agent", "cloud_server", "shared", "training", "protos", "examples"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ours:
            assert node.module == "edge_agent"


def test_the_camera_loop_classifies_a_film(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="reads films")
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for shade in range(3):
        writer.write(np.full((48, 64, 3), 80 * shade, np.uint8))
    writer.release()
    with run_edge(tmp_path, tiny_bundle.path, "--placement", "edge_only") as ready:
        command = [sys.executable, "-m", "examples.camera", str(film), "--edge", ready.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert all("timesteps" in line for line in done.stdout.splitlines())


def test_the_event_loop_answers_while_the_recording_goes_on(
    event_bundle: Bundle, tmp_path: Path
) -> None:
    flags = ("--placement", "edge_only", "--alpha", "0")
    with run_edge(tmp_path, event_bundle.path, *flags) as ready:
        command = [sys.executable, "-m", "examples.event_camera", "udp:127.0.0.1:0"]
        command += ["--sensor", "32", "32", "--edge", ready.address, "--recordings", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            address = program.stdout.readline().removeprefix("listening at ").strip()
            with EventSender(address) as sender:
                sender.tell_time(0)
                sender.send(window(0))
                # The first event after the timestep tells that it is over.
                sender.send(window(1))
                assert " 1 timesteps" in program.stdout.readline()
                sender.end(4 * WINDOW)
            assert program.wait(PATIENCE_SECONDS) == 0
