"""``neucodex-edge plan``: what it measures, expects, prints and writes."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli import main
from edge_agent.config import EdgeConfig
from edge_agent.measure.modes import is_picture
from edge_agent.plan import Plan, make_plan, settings_of, table
from edge_agent.survey import inputs_for, told_rate
from examples.pair import Ready, run_cloud
from shared.errors import ConfigError
from shared.metrics import Placement
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import Clouds, Relay

pytestmark = pytest.mark.timeout(300)
NOWHERE = "127.0.0.1:1"
Configs = Callable[..., EdgeConfig]


@pytest.fixture(scope="module")
def cloud(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    with run_cloud(tmp_path_factory.mktemp("cloud"), tiny_bundle.path) as ready:
        yield ready


def copy_of(bundle: Bundle, path: Path, *, without: tuple[str, ...]) -> Bundle:
    shutil.copytree(bundle.path, path, ignore=shutil.ignore_patterns(*without))
    return Bundle(path)


def rows_of(plan: Plan) -> list[tuple[str, str, str]]:
    return [(row.placement.value, row.network, row.way) for row in plan.rows]


async def test_every_placement_is_planned_from_what_was_measured(
    clouds: Clouds, tiny_bundle: Bundle, relay: Relay
) -> None:
    async with clouds() as server:
        relay.target, relay.delay_seconds = server.address, 0.02
        # Whatever the daemon is told to do now.
        now: dict[str, Any] = {
            "placement": "edge_only",
            "network": "whole",
            "deadline_seconds": 0.001,
        }
        config = EdgeConfig(bundle=str(tiny_bundle.path), cloud=relay.address, **now)
        plan = await make_plan([config], None)
    measured = plan.measured[config.bundle]
    assert measured.transport_seconds is not None and measured.upload is not None
    assert measured.transport_seconds > 0.04
    assert measured.upload.transport_seconds > 0.04
    assert measured.upload.kind == "webp"
    assert measured.head_seconds and measured.tail_seconds and measured.whole_seconds
    # At most the code's 32 bytes, at least one.
    assert 1 <= (measured.payload_bytes or 0) <= 32
    chosen, lock_step, edge_only, whole, upload = plan.rows
    placements = [row.placement for row in plan.rows]
    assert placements == [
        Placement.CO_INFERENCE,
        Placement.CO_INFERENCE,
        Placement.EDGE_ONLY,
        Placement.EDGE_ONLY,
        Placement.CLOUD_ONLY,
    ]
    assert (lock_step.way, whole.network, upload.way) == ("lock-step", "whole", "upload as webp")
    assert [row.split for row in plan.rows] == ["layer2", "layer2", "layer2", None, None]
    exits = tiny_bundle.calibration().exit_distribution
    used = sum(share * (t + 1) for t, share in enumerate(exits))
    assert lock_step.latency_seconds > used * 0.04
    assert 0.04 < chosen.latency_seconds < lock_step.latency_seconds
    assert upload.latency_seconds > 0.04
    assert edge_only.wire_bytes == whole.wire_bytes == upload.energy_joules == 0
    assert whole.latency_seconds == whole.late_seconds == 4 * measured.whole_seconds
    assert whole.energy_joules > 0
    # This device alone is quickest by far.
    assert plan.best.placement is Placement.EDGE_ONLY
    assert plan.cloud_used
    assert [row[0] for row in table(plan)].count("*") == 1


@pytest.mark.parametrize(
    ("objective", "placement"), [("bytes", "edge_only"), ("energy", "cloud_only")]
)
def test_the_best_is_the_objectives_and_apply_writes_it_into_the_users_file(
    tiny_bundle: Bundle,
    cloud: Ready,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    objective: str,
    placement: str,
) -> None:
    path = tmp_path / "edge.toml"
    text = f'# Mine.\nbundle = "{tiny_bundle.path}"\nthreads = 1 # enough\n\n[[sources]]\n'
    path.write_text(text + 'kind = "folder"\npath = "p"\n')
    before = tomllib.loads(path.read_text())
    arguments = ["--config", str(path), "--cloud", cloud.address, "--objective", objective]
    assert main(["plan", *arguments, "--apply", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["best"] in plan["rows"]
    assert plan["best"]["placement"] == placement
    assert tomllib.loads(path.read_text()) == before | {
        "bundle": str(tiny_bundle.path.absolute()),
        "cloud": cloud.address,
        "placement": placement,
        "network": plan["best"]["network"],
        "objective": objective,
    }
    assert path.read_text().startswith("# Mine.\n")
    assert "threads = 1 # enough" in path.read_text()
    # The daemon takes what was written.
    assert main(["doctor", "--config", str(path)]) == 0


def test_the_table_names_the_best_and_what_the_figures_leave_out(
    tiny_bundle: Bundle, cloud: Ready, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = ["--bundle", str(tiny_bundle.path)]
    assert main(["plan", *bundle, *bundle, "--cloud", cloud.address]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["bundle", "split", "placement", "way", "ms"]
    assert sum(line.startswith("* ") for line in lines) == 2
    assert sum(tiny_bundle.path.name in line for line in lines) == 10
    assert "* best for latency" in lines
    assert any("made up" in line for line in lines)


def test_without_a_cloud_there_is_only_this_device(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = ["--bundle", str(tiny_bundle.path)]
    assert main(["plan", *bundle, "--cloud", NOWHERE, "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert [row["placement"] for row in plan["rows"]] == ["edge_only", "edge_only"]
    assert "cannot be reached" in " ".join(plan["notes"])


def test_a_bundle_that_the_cloud_does_not_serve_is_named(
    tiny_bundle: Bundle, cloud: Ready, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle.path, other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"class0"', '"other0"'))
    assert main(["plan", "--bundle", str(other), "--cloud", cloud.address, "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert f"{other}: the cloud does not serve it" in plan["notes"]


async def test_a_device_without_tail_plans_what_it_can(
    clouds: Clouds, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = copy_of(tiny_bundle, tmp_path / "head", without=("tail.onnx", "whole.onnx"))
    with pytest.raises(ConfigError, match="expected something that can be run; .*reached"):
        await make_plan([EdgeConfig(bundle=str(bundle.path), cloud=NOWHERE)], None)
    async with clouds() as server:
        config = EdgeConfig(bundle=str(bundle.path), cloud=server.address, window=1)
        plan = await make_plan([config], None)
    # The window is the user's: nothing but lock-step is left to choose.
    assert rows_of(plan) == [
        ("co_inference", "split", "lock-step"),
        ("cloud_only", "split", "upload as webp"),
    ]
    assert plan.measured[config.bundle].head_seconds
    assert settings_of(plan)["cloud"] == server.address


def test_apply_needs_a_file(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--bundle", str(tiny_bundle.path), "--apply"]) == 2
    assert "expected --config with --apply" in capsys.readouterr().err


def test_inputs_are_the_users_or_made_up(tiny_bundle: Bundle, image_files: list[Path]) -> None:
    theirs = inputs_for(tiny_bundle, image_files[0].parent)
    made_up = inputs_for(tiny_bundle, None)
    assert [array.shape for array in theirs] == [(3, 32, 32)] * 3
    assert {array.shape for array in made_up} == {(3, 32, 32)}
    assert is_picture(made_up[0])


def test_a_rate_is_told_only_where_it_shows() -> None:
    large = [0.110, 0.111, 0.109, 0.110]
    assert told_rate(large, [0.010], 100_000) == pytest.approx(1e6)
    assert told_rate(large, [0.1095], 100_000) is None
    assert told_rate([0.05, 0.11, 0.20], [0.010], 100_000) is None
