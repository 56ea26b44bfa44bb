"""The chaos run: its short form, and that it notices what it is there to notice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import chaos
from benchmarks.report import ROOT
from edge_agent import Answer, Edge
from edge_agent.answers import Latency
from shared.model.bundle import Bundle

ALPHA = 0.8
ANSWER = Answer(
    label=3,
    name="three",
    confidence=0.9,
    timesteps_used=2,
    placement="co_inference",
    latency=Latency(),
    payload_bytes=7,
)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_minute_of_chaos_loses_and_mixes_up_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    command = ("benchmarks.chaos", "--quick", "--bundle", str(tiny_bundle.path), "--out", str(out))
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    found = {result["name"]: result["value"] for result in report["results"]}
    assert found["answered"] > 100
    assert found["without_one_outcome"] == found["wrong_answers"] == found["callers_stuck"] == 0
    assert sum(report["settings"]["faults"].values()) >= 10
    assert {"certificates replaced", "authority replaced"} & set(report["settings"]["faults"])


def test_both_authorities_are_trusted_while_they_change(tmp_path: Path) -> None:
    certificates = chaos.Certificates(tmp_path)
    first, trusted = (tmp_path / "ca.pem").read_bytes(), tmp_path / "trusted.pem"
    seen = []
    certificates.renew_authority(lambda: seen.append(trusted.read_bytes()))

    second = (tmp_path / "ca.pem").read_bytes()
    assert first != second
    assert [*seen, trusted.read_bytes()] == [first + second, first + second, second]


@pytest.mark.parametrize(
    ("answer", "wrong", "deviations"),
    [
        (ANSWER, 0, 0),
        (replace(ANSWER, confidence=0.90005), 0, 0),
        (replace(ANSWER, confidence=0.9002), 1, 0),
        (replace(ANSWER, label=4), 1, 0),
        (replace(ANSWER, timesteps_used=3, confidence=0.95), 1, 0),
        (replace(ANSWER, timesteps_used=1, confidence=0.80005), 0, 1),
    ],
)
def test_an_answer_is_held_against_its_own_reference(
    tmp_path: Path, answer: Answer, wrong: int, deviations: int
) -> None:
    reference = chaos.Reference(np.zeros((3, 4, 4), np.uint8), ANSWER)
    callers = chaos.Callers(chaos.World(chaos.Certificates(tmp_path)), [reference], ALPHA)
    callers._compare(answer, ANSWER)
    assert (len(callers.tally.wrong), callers.tally.deviations) == (wrong, deviations)


def test_a_call_has_one_outcome_even_where_no_daemon_is(tmp_path: Path) -> None:
    reference = chaos.Reference(np.zeros((3, 4, 4), np.uint8), ANSWER)
    callers = chaos.Callers(chaos.World(chaos.Certificates(tmp_path)), [reference], ALPHA)
    with Edge(f"unix:{tmp_path}/nobody.sock", timeout_seconds=5) as edge:
        assert not callers.ask(edge, reference)
    assert callers.tally.accepted == callers.tally.errors["LinkLostError"] == 1
