"""The demo, end to end: two real daemons, real pictures, a random network."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

import examples.demo
from examples.demo import main
from examples.pictures import FORMATS, Pictures, load_pictures, mean_file_bytes
from examples.report import Report, show
from examples.scrape import Scrape, scrape
from shared.model.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 24
PROMISED = {
    "images",
    "answered",
    "accuracy_co_inference",
    "accuracy_full",
    "accuracy_edge_only",
    "mean_timesteps",
    "payload_bytes_per_image",
    "message_bytes_per_image",
    "wire_bytes_per_image",
    "float32_feature_bytes_per_image",
    "latency_p50_seconds",
    "latency_p99_seconds",
    "modelled_edge_joules_per_image",
    "modelled_edge_only_joules_per_image",
}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; a short path, as that of a socket has to be."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)
        monkeypatch.undo()


def command_lines_with(text: str) -> list[str]:
    """Return the command lines of this machine's processes that contain a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # The process has ended meanwhile.
            continue
        if text in line:
            found.append(line)
    return found


class Outcome:
    """A finished demo."""

    def __init__(self, status: int, report: dict[str, Any], scrapes: list[Scrape]) -> None:
        self.status = status
        self.report = report
        self.co_edge, self.cloud, self.exit_edge, self.full_edge = scrapes


@pytest.fixture(scope="module")
def outcome(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    scrapes = []

    def remember(address: str) -> Scrape:
        scrapes.append(scrape(address))
        return scrapes[-1]

    out = tmp_path_factory.mktemp("demo") / "report.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples.demo, "scrape", remember)
        flags = ("--images", str(IMAGES), "--bundle", str(tiny_bundle.path), "--out", str(out))
        status = main(flags)
    yield Outcome(status, json.loads(out.read_bytes()), scrapes)


def test_every_image_is_answered_and_the_demo_says_so(outcome: Outcome) -> None:
    assert outcome.status == 0
    assert outcome.report["images"] == outcome.report["answered"] == IMAGES


def test_the_report_has_all_keys_promised(outcome: Outcome) -> None:
    assert outcome.report.keys() >= PROMISED


def test_bytes_in_the_report_are_those_of_the_metrics(outcome: Outcome) -> None:
    report, edge, cloud = outcome.report, outcome.co_edge, outcome.cloud
    payload_bytes = edge.total("edge_payload_bytes_total")
    assert payload_bytes > 0
    assert report["payload_bytes_per_image"] * IMAGES == pytest.approx(payload_bytes)
    assert cloud.total("cloud_payload_bytes_total") == payload_bytes
    for key, name in (
        ("message_bytes_per_image", "edge_message_bytes_total"),
        ("wire_bytes_per_image", "edge_wire_bytes_total"),
    ):
        assert report[key] * IMAGES == pytest.approx(edge.total(name))
    assert (
        report["payload_bytes_per_image"]
        < report["message_bytes_per_image"]
        < report["wire_bytes_per_image"]
    )


def test_reference_bytes_are_those_of_the_network(outcome: Outcome) -> None:
    features_bytes = 4 * 16 * 16 * 16
    assert outcome.report["float32_feature_bytes_per_timestep"] == features_bytes
    assert outcome.report["float32_feature_bytes_per_image"] == 4 * features_bytes
    assert outcome.report["raw_image_bytes"] == 3 * 32 * 32
    assert outcome.report["file_bytes"].keys() == FORMATS.keys()


def test_counts_in_the_report_are_those_of_the_metrics(outcome: Outcome) -> None:
    edge, report = outcome.co_edge, outcome.report
    used = edge.total("edge_timesteps_total", outcome="used")
    assert report["mean_timesteps"] * IMAGES == pytest.approx(used)
    histogram = report["modes"]["co_inference"]["exit_histogram"]
    assert sum(histogram.values()) == IMAGES
    assert sum(int(steps) * images for steps, images in histogram.items()) == used
    assert report["cloud_samples_answered"] == IMAGES
    assert outcome.cloud.total("cloud_slots_in_use") == 0


def test_the_same_network_on_the_edge_alone_gives_the_same_answers(outcome: Outcome) -> None:
    report = outcome.report
    together, alone = (report["modes"][name] for name in ("co_inference", "edge_only_exit"))
    assert report["accuracy_edge_only"] == report["accuracy_co_inference"]
    assert alone["exit_histogram"] == together["exit_histogram"]
    assert not outcome.exit_edge.total("edge_payload_bytes_total")


def test_the_full_baseline_uses_every_timestep(outcome: Outcome) -> None:
    assert outcome.report["modes"]["edge_only_full"]["exit_histogram"] == {"4": IMAGES}


def test_modelled_energy_is_that_of_the_metrics_and_least_in_co_inference(
    outcome: Outcome,
) -> None:
    report, name = outcome.report, "modelled_energy_joules_total"
    for key, edge in (
        ("modelled_edge_joules_per_image", outcome.co_edge),
        ("modelled_edge_only_joules_per_image", outcome.exit_edge),
        ("modelled_edge_full_joules_per_image", outcome.full_edge),
    ):
        assert report[key] * IMAGES == pytest.approx(edge.total(name))
    assert report["modelled_edge_joules_per_image"] < report["modelled_edge_only_joules_per_image"]


def test_bytes_that_cannot_be_measured_are_shown_as_such(outcome: Outcome) -> None:
    report = msgspec.convert(outcome.report, Report)
    console = Console(record=True, file=io.StringIO())
    unmeasured = re.compile("wire, both directions +│ not measured")
    show(report, console)
    assert not unmeasured.search(console.export_text())
    show(msgspec.structs.replace(report, wire_bytes_per_image=None), console)
    assert unmeasured.search(console.export_text())


def test_an_answer_that_did_not_arrive_makes_the_report_incomplete(outcome: Outcome) -> None:
    report = msgspec.convert(outcome.report, Report)
    mode = report.modes["co_inference"]
    lost = msgspec.structs.replace(mode, received=mode.received - 1)
    modes = report.modes | {"co_inference": lost}
    assert report.complete
    assert not msgspec.structs.replace(report, modes=modes).complete


def test_stages_add_up_to_the_callers_time(outcome: Outcome) -> None:
    for mode in outcome.report["modes"].values():
        stages = mode["latency_stage_seconds"]
        assert sum(stages.values()) == pytest.approx(mode["latency_mean_seconds"])
        assert all(seconds >= 0 for seconds in stages.values())
        assert (
            mode["latency_p50_seconds"]
            <= mode["latency_p95_seconds"]
            <= mode["latency_p99_seconds"]
        )


def test_an_image_without_an_answer_fails_the_demo(
    tiny_bundle: Bundle, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_bad_one(count: int | None) -> Any:
        pixels, labels = load_pictures(count)
        return Pictures([*pixels[:-1], pixels[-1][:, :16]], labels)  # type: ignore[arg-type]

    monkeypatch.setattr(examples.demo, "load_pictures", with_a_bad_one)
    monkeypatch.setattr(examples.demo, "mean_file_bytes", lambda _: dict.fromkeys(FORMATS, 1.0))
    out = tmp_path / "report.json"
    status = main(("--images", "3", "--bundle", str(tiny_bundle.path), "--out", str(out)))
    report = json.loads(out.read_bytes())
    assert status == 1
    assert (report["images"], report["answered"]) == (3, 2)
    assert list(temporary.iterdir()) == []


def test_a_bundle_that_is_none_is_told_and_nothing_is_left(
    temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    logs = tmp_path / "logs"
    flags = ("--bundle", str(temporary / "none"), "--out", str(out), "--keep-logs", str(logs))
    assert main(flags) == 1
    assert "manifest.json" in capsys.readouterr().out
    assert not out.exists()
    assert list(temporary.iterdir()) == []
    assert "manifest.json" in (logs / "co-inference" / "cloud.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_behind(
    number: signal.Signals, tiny_bundle: Bundle, temporary: Path, tmp_path: Path
) -> None:
    command = (sys.executable, "-m", "examples.demo", "--bundle", str(tiny_bundle.path))
    demo = subprocess.Popen(
        (*command, "--out", str(tmp_path / "report.json")),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_until_both_run(demo, temporary)
        assert len(command_lines_with(f"{temporary}/")) == 2
        demo.send_signal(number)
        assert demo.wait(120) == 128 + number
    finally:
        demo.kill()
        demo.wait()
    assert command_lines_with(f"{temporary}/") == []
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "report.json").exists()


def _wait_until_both_run(demo: subprocess.Popen[bytes], folder: Path) -> None:
    pause = threading.Event()
    while not list(folder.glob("*/co-inference/edge.ready")):
        assert demo.poll() is None, "the demo ended before it was interrupted"
        pause.wait(0.05)


def test_the_pictures_shipped_are_the_first_thousand() -> None:
    pictures = load_pictures()
    assert pictures.pixels.shape == (1000, 3, 32, 32)
    assert np.bincount(pictures.labels).tolist() == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]


@pytest.mark.parametrize("count", [0, 1001])
def test_more_pictures_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 1000 pictures, got {count}"):
        load_pictures(count)


def test_file_sizes_are_ordered_as_they_should_be() -> None:
    sizes = mean_file_bytes(load_pictures(5).pixels)
    assert sizes["webp"] < sizes["jpeg"] < sizes["webp_lossless"] < sizes["png"] < 3072
