"""``neucodex-bench`` as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.links import PROFILES
from shared.model.bundle import Bundle
from tests.benchmarks.test_links import DELAY_SECONDS, ROOT, connect, echo_server, exchange

pytestmark = pytest.mark.timeout(300)


def test_links_lists_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["links"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PROFILES)


def test_a_link_runs_in_the_foreground_until_it_is_stopped() -> None:
    flags = ["--method", "relay", "--profile", "wifi", "--delay-seconds", str(DELAY_SECONDS)]
    with echo_server() as target:
        command = [sys.executable, "-m", "benchmarks.cli", "links", "--target", target, *flags]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address, rest = process.stdout.readline().split(maxsplit=1)
            assert rest.startswith("wifi, changed")
            assert "relay" in process.stdout.readline()
            with connect(address) as connection:
                assert exchange(connection, b"hello") >= 2 * (DELAY_SECONDS - 0.001)
            process.send_signal(signal.SIGTERM)
            traffic = json.loads(process.stdout.read())
            assert process.wait() == 0
    assert traffic["up"]["bytes"] == traffic["down"]["bytes"] == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["links", "--target", "x:1", "--jitter-seconds", "9"], "jitter_seconds"),
        (["links", "--target", "nowhere"], "host:port"),
        (["load", "--rate", "5", "--edges", "1,2"], "one number"),
        (["load", "--edges", "0"], "edges"),
        (["load", "--seconds", "0"], "seconds"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_without_the_clone_it_is_said_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("examples", "examples.scrape", "benchmarks.fleet"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [_NoExamples, *sys.meta_path])
    assert main(["load"]) == 2
    assert "clone" in capsys.readouterr().err


class _NoExamples:
    """Finds everything but the examples, as in an installation without the clone."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "examples":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_load_starts_a_cloud_and_tells_every_level(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    flags = ["--bundle", str(tiny_bundle.path), "--edges", "1,4", "--samples", "4"]
    flags += ["--seconds", "0.3", "--windows", "1", "--warm-up-seconds", "0.1", "--alpha", "1"]
    done = run("load", *flags, "--out", str(out))
    assert done.count("answers/s") == 2
    assert "mean batch" in done
    report = json.loads(out.read_text())
    assert [each["level"]["edges"] for each in report["levels"]] == [1, 4]
    assert all(each["answered"] == each["begun"] > 0 for each in report["levels"])
    assert report["config"]["alpha"] == 1


@pytest.mark.network
def test_measure_runs_over_a_link_that_it_emulates(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--bundle", str(tiny_bundle.path), "--count", "3", "--rounds", "1", "--profile", "5g"]
    run("measure", *flags, "--modes", "lock_step,edge_only_exit", "--out", str(out))
    report = json.loads((out / "report.json").read_text())
    rtt_seconds = 2 * PROFILES["5g"].delay_seconds
    assert "TUN" in report["network"]["emulated"]["method"]
    assert report["network"]["tcp_min_rtt_seconds"] >= 0.8 * rtt_seconds
    lock_step = report["modes"]["lock_step"]
    assert lock_step["latency"]["p50_seconds"] >= 0.8 * rtt_seconds
    assert lock_step["transport_seconds"] >= 0.8 * rtt_seconds * lock_step["mean_timesteps"]
    assert report["modes"]["edge_only_exit"]["transport_seconds"] == 0


def run(*arguments: str) -> str:
    """Run the program to its end, on a process of its own: it changes its cores and network."""
    command = (sys.executable, "-m", "benchmarks.cli", *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
