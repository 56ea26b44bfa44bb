"""The program ``neucodex-edge``, as a process where it is one."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent import Edge, doctor
from edge_agent.cli import main
from edge_agent.config import EdgeConfig
from examples.pair import Ready, run_cloud, run_edge
from shared.energy.config import EnergyConfig
from shared.errors import LinkLostError
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import PATIENCE_SECONDS, picture

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cloud(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    with run_cloud(tmp_path_factory.mktemp("cloud"), tiny_bundle.path) as ready:
        yield ready


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "expected it to happen, it did not"
        time.sleep(0.01)


def test_classify_asks_the_running_daemon(
    tiny_bundle: Bundle,
    cloud: Ready,
    tmp_path: Path,
    image_files: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [str(file) for file in image_files]
    with run_edge(tmp_path, tiny_bundle.path, "--cloud", cloud.address) as edge:
        assert main(["classify", "--edge", edge.address, *names]) == 0
        table = capsys.readouterr().out.splitlines()
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no image")
        arguments = ["classify", "--edge", edge.address, "--json", str(bad), "gone.png", names[0]]
        assert main(arguments) == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert table[0].split()[:4] == ["image", "class", "confidence", "timesteps"]
    assert [row.split()[0] for row in table[1:]] == names
    assert all("co_inference" in row for row in table[1:])
    assert "expected an image file" in lines[0]["error"]
    assert "No such file" in lines[1]["error"]
    assert lines[2]["name"] == table[1].split()[1]


@pytest.mark.parametrize(
    ("flags", "placement"),
    [
        ([], "edge_only"),
        (["--placement", "edge_only", "--network", "whole"], "edge_only"),
        (["--cloud", "CLOUD"], "co_inference"),
        (["--cloud", "CLOUD", "--placement", "cloud_only"], "cloud_only"),
        (["--cloud", "127.0.0.1:1", "--fallback", "local"], "fallback"),
    ],
)
def test_classify_computes_here_when_given_a_bundle(
    tiny_bundle: Bundle,
    cloud: Ready,
    image_files: list[Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    placement: str,
) -> None:
    flags = [cloud.address if flag == "CLOUD" else flag for flag in flags]
    bundle = ["--bundle", str(tiny_bundle.path)]
    assert main(["classify", *bundle, *flags, "--json", str(image_files[0])]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["placement"] == placement


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--bundle", "no-such-folder"], "no-such-folder"),
        (["run"], "bundle"),
        (["run", "--bundle", "BUNDLE", "--window", "0"], "window: expected"),
        (["run", "--bundle", "BUNDLE", "--alpha", "0.5,0.6"], "alpha: expected 3 alpha values"),
        (["run", "--bundle", "BUNDLE", "--listen", "unix:/no/such/edge.sock"], "existing folder"),
        (["run", "--bundle", "BUNDLE", "--cloud", "nowhere"], "host:port"),
        (["classify", "--edge", "unix:/no/such/edge.sock", "IMAGE"], "/no/such/edge.sock"),
        (["classify", "--edge", "unix:/x", "--bundle", "BUNDLE", "IMAGE"], "got both"),
    ],
)
def test_what_cannot_run_ends_with_one_line_and_code_2(
    tiny_bundle: Bundle, image_files: list[Path], arguments: list[str], message: str
) -> None:
    words = {"BUNDLE": str(tiny_bundle.path), "IMAGE": str(image_files[0])}
    metrics = ["--metrics", ""] if arguments[0] == "run" else []
    command = [sys.executable, "-m", "edge_agent.cli", *(words.get(a, a) for a in arguments)]
    result = subprocess.run(
        [*command, *metrics, *(["--log-level", "error"] if metrics else [])],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("neucodex-edge: ")
    assert message in line


@pytest.mark.parametrize("command", [[], ["run"], ["classify"], ["doctor"], ["plan"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*command, "--help"])
    assert raised.value.code == 0
    assert "--" in capsys.readouterr().out


def test_doctor_finds_all_well(
    tiny_bundle: Bundle, cloud: Ready, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--bundle", str(tiny_bundle.path), "--cloud", cloud.address]) == 0
    report = capsys.readouterr().out
    assert tiny_bundle.digest in report
    assert "the cloud serves this bundle" in report
    assert "ms, median of" in report
    assert "ok    alpha         median: 0." in report
    assert "FAIL" not in report


def test_doctor_says_which_alpha_holds_and_what_it_promises(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["doctor", "--bundle", str(tiny_bundle.path), "--placement", "edge_only"]

    assert main([*local, "--loss-budget", "1"]) == 0
    found = "ok    alpha         loss_budget_1.0_points: 1, 1, 1; at most 1 points lost with 95 % "
    assert found in capsys.readouterr().out
    assert main([*local, "--alpha", "0.5"]) == 0
    assert "ok    alpha         configured: 0.5, 0.5, 0.5\n" in capsys.readouterr().out
    assert main([*local, "--loss-budget", "0.7"]) == 1
    report = capsys.readouterr().out
    assert "FAIL  alpha         loss_budget: expected" in report
    assert "got 0.7 points; its alpha lists are full, loss_budget_0.5_points, " in report


def test_doctor_finds_a_lost_cloud_and_a_damaged_bundle(
    tiny_bundle: Bundle, cloud: Ready, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--bundle", str(tiny_bundle.path), "--cloud", "127.0.0.1:1"]) == 1
    assert "FAIL  cloud " in capsys.readouterr().out
    for file in tiny_bundle.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "head.onnx").write_bytes(b"damaged")
    assert main(["doctor", "--bundle", str(tmp_path), "--placement", "edge_only"]) == 1
    assert "FAIL  bundle" in capsys.readouterr().out
    manifest = (tmp_path / "manifest.json").read_text()
    (tmp_path / "head.onnx").write_bytes((tiny_bundle.path / "head.onnx").read_bytes())
    (tmp_path / "manifest.json").write_text(manifest.replace('"class0"', '"other0"'))
    assert main(["doctor", "--bundle", str(tmp_path), "--cloud", cloud.address]) == 1
    assert f"the cloud serves {tiny_bundle.digest}" in capsys.readouterr().out


def test_doctor_needs_only_the_parts_that_the_configuration_uses(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in tiny_bundle.path.iterdir():
        if file.name not in ("tail.onnx", "whole.onnx"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    local = ["doctor", "--bundle", str(tmp_path), "--placement", "edge_only"]
    assert main(local) == 1
    assert "tail.onnx" in capsys.readouterr().out
    assert main([*local, "--network", "whole"]) == 1
    main(["doctor", "--bundle", str(tmp_path), "--cloud", "127.0.0.1:1"])
    assert "ok    bundle" in capsys.readouterr().out


async def test_doctor_tells_every_sensor_and_why_one_cannot_be_used(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    local = EdgeConfig(bundle=str(tiny_bundle.path), placement="edge_only")
    *_, none = await doctor.examine(local, tmp_path)
    assert none == doctor.Check(
        "sensors", True, "none can be read: energy is modelled, not measured"
    )

    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for file, content in (("name", "package-0"), ("max_energy_range_uj", 9**9)):
        (zone / file).write_text(f"{content}\n")
    *_, unreadable, none = await doctor.examine(local, tmp_path)
    assert unreadable.ok
    assert unreadable.found.startswith("rapl: not usable: there, but")
    assert "No such file" in unreadable.found
    assert none.name == "sensors"

    (zone / "energy_uj").write_text("17\n")
    *_, rapl = await doctor.examine(local, tmp_path)
    assert rapl.found == "rapl: package-0; packages and memory, not the board"


async def test_doctor_fails_where_the_meter_of_the_configuration_cannot_be_read(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    meter = tmp_path / "meter.jsonl"
    energy = EnergyConfig(external_meter=str(meter))
    config = EdgeConfig(bundle=str(tiny_bundle.path), placement="edge_only", energy=energy)
    checks = await doctor.examine(config, tmp_path)
    assert [check.found for check in checks if not check.ok] == [
        f"external_meter: not usable: cannot be read: {meter}: No such file or directory"
    ]
    meter.touch()
    assert all(check.ok for check in await doctor.examine(config, tmp_path))


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        return str(reply.read(), "utf-8")


def until_none(frames: queue.Queue[NDArray[np.uint8] | None]) -> Iterator[NDArray[np.uint8]]:
    while (frame := frames.get()) is not None:
        yield frame


def test_on_sigterm_the_sample_in_hand_is_answered_and_nothing_is_left(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    frames: queue.Queue[NDArray[np.uint8] | None] = queue.Queue()
    flags = ("--placement", "edge_only", "--alpha", "1.0", "--deadline-seconds", "60")
    with (
        ThreadPoolExecutor(2) as callers,
        run_edge(tmp_path, tiny_bundle.path, *flags) as ready,
        Edge(ready.address) as edge,
    ):
        try:
            recorded = callers.submit(edge.classify_recording, until_none(frames))
            frames.put(picture(0))
            wait_until(lambda: 'stage="head"' in scrape(ready.metrics))
            waiting = callers.submit(edge.classify, picture(1))
            wait_until(lambda: edge.status()["queue_depth"] == 1)
            os.kill(ready.pid, signal.SIGTERM)
            with pytest.raises(LinkLostError, match="shutting down"):
                waiting.result(PATIENCE_SECONDS)
        finally:
            frames.put(None)
        assert recorded.result(PATIENCE_SECONDS).timesteps_used == 4
    assert not (tmp_path / "edge.sock").exists()
    assert not (tmp_path / "edge.ready").exists()


def test_a_configured_source_is_classified_by_the_daemon(
    tiny_bundle: Bundle, tmp_path: Path, image_files: list[Path]
) -> None:
    results = tmp_path / "results.jsonl"
    config = tmp_path / "edge.toml"
    config.write_text(
        'placement = "edge_only"\n[[sources]]\nkind = "folder"\n'
        f'path = "{image_files[0].parent}"\nresults = "{results}"\n'
    )
    with run_edge(tmp_path, tiny_bundle.path, "--config", str(config)):
        wait_until(lambda: results.exists() and len(results.read_text().splitlines()) == 3)
    names = [json.loads(line)["input"] for line in results.read_text().splitlines()]
    assert names == [file.name for file in image_files]


def test_the_client_imports_no_engine() -> None:
    code = "import edge_agent, sys; print('onnxruntime' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "False"


def test_every_key_but_a_few_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    patience = {"timestep_deadline_seconds", "reconnect_min_seconds", "reconnect_max_seconds"}
    breaker = {"breaker_failures", "breaker_probe_seconds"}
    tables = {"sources", "energy"}
    without = {"queue_limit", "queue_policy", *patience, *breaker, *tables}
    for key in set(EdgeConfig.__struct_fields__) - without:
        assert re.search(rf"--(no-)?{key.replace('_', '-')}\b", text), key
