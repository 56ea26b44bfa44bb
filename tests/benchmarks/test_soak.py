"""The soak: what it reads of a process, and its short form."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import soak
from shared.model.bundle import Bundle


def test_slope_and_growth_tell_a_leak_from_noise() -> None:
    noise = [(float(at), 1e8 + 5e4 * (-1) ** at) for at in range(100)]
    leak = [(at, value + 2000 * at) for at, value in noise]
    assert abs(soak.slope(noise)) < 100
    assert soak.slope(leak) == pytest.approx(2000, rel=0.05)
    assert soak.growth([5, 9, 5, 7, 5, 8, 6, 5]) == 0
    assert soak.growth([5, 9, 5, 7, 6, 8, 6, 7]) == 1


def test_a_process_is_read(tmp_path: Path) -> None:
    watch = soak.Watch(os.getpid())
    watch.read()
    with (tmp_path / "file").open("w"):
        watch.read()
    before, after = watch.readings
    assert after.descriptors == before.descriptors + 1
    assert before.resident_bytes > 1_000_000
    assert after.seconds >= before.seconds


@pytest.mark.slow
def test_the_short_form_answers_all_and_keeps_its_descriptors(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "QUICK_SECONDS", 15.0)
    out = tmp_path / "soak.json"
    assert soak.main(["--quick", "--bundle", str(tiny_bundle.path), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    found = {result["name"]: result["value"] for result in report["results"]}
    assert found["answered"] > 50
    assert found["errors"] == 0
    assert found["edge_descriptors_gained"] <= 1
    assert found["cloud_descriptors_gained"] <= 0
