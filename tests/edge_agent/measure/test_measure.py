"""The instrument over a real cloud: every mode runs the same inputs, and costs what it should."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from PIL import Image

from cloud_server.config import CloudConfig
from cloud_server.server import create
from edge_agent.cli import main
from edge_agent.config import EdgeConfig
from edge_agent.inputs import Array
from edge_agent.measure.engines import SlowEngine
from edge_agent.measure.inputs import Inputs
from edge_agent.measure.instrument import choose_modes, measure
from edge_agent.measure.markdown import write_report
from edge_agent.measure.modes import WEBP_QUALITY, Mode, all_modes, png, webp
from edge_agent.measure.report import Report
from edge_agent.measure.run import Plan, Runner, Sample
from examples.pair import run_cloud
from shared.energy.operations import default_model
from shared.engine.base import Engine, zero_state
from shared.errors import ConfigError, LinkLostError, RefusedError
from shared.model.bundle import Bundle
from tests.conftest import TINY_SPEC
from tests.edge_agent.conftest import Clouds, picture

pytestmark = pytest.mark.timeout(300)

COUNT = 6
PLAN = Plan(rounds=2, warm_up=1)
ALPHA = 0.3
"""Of the untrained network's confidences at the first timestep some are above it, some are not."""
Configs = Callable[..., EdgeConfig]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.measure.run.LATE_ACK_SECONDS", 0.05)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs([picture(seed) for seed in range(COUNT)], list(range(COUNT)))


def mode(bundle: Bundle, name: str) -> Mode:
    (found,) = choose_modes(bundle, [name])
    return found


async def test_every_mode_runs_every_input_and_says_what_it_cost(
    tiny_bundle: Bundle, clouds: Clouds, edge_config: Configs, inputs: Inputs, tmp_path: Path
) -> None:
    told: list[tuple[int, str]] = []
    async with clouds() as cloud:
        config = edge_config(cloud=f"127.0.0.1:{cloud.port}", alpha=ALPHA)
        report = await measure(
            config,
            tiny_bundle,
            inputs,
            PLAN,
            all_modes(tiny_bundle.spec),
            emulated={"method": "nothing", "profile": {"rate": 1}},
            told=lambda name, round_: told.append((round_, name)),
        )
    names = [each.name for each in all_modes(tiny_bundle.spec)]
    assert list(report.modes) == names
    assert report.complete
    assert told == [(0, name) for name in names] + [(1, name) for name in names[1:] + names[:1]]
    check_modes(report)
    check_costs(report, tiny_bundle)
    check_files(report, tmp_path)


def check_modes(report: Report) -> None:
    """The same network and rule give the same answers wherever they run."""
    for result in report.modes.values():
        assert sorted(result.samples["input"]) == list(range(COUNT))
        times = result.samples["total_seconds"]
        assert sum(result.stage_seconds.values()) == pytest.approx(np.mean(times))
        assert result.latency.p50_seconds == pytest.approx(np.median(times))
        assert result.accuracy == np.mean(
            [a == b for a, b in zip(*columns(result.samples, "input", "label"), strict=True)]
        )
    same = ["edge_only_exit", "no_compression", "lock_step", "pipelined", "policy", "interleaved"]
    answers = [by_input(report, name) for name in same]
    assert all(each == answers[0] for each in answers)
    assert len({timesteps for _, timesteps in answers[0].values()}) > 1
    for name in ("edge_only_full", "no_exit"):
        assert report.modes[name].timesteps == {4: COUNT}


def columns(samples: dict[str, list[float]], *names: str) -> list[list[float]]:
    return [samples[name] for name in names]


def by_input(report: Report, name: str) -> dict[float, tuple[float, float]]:
    number, label, steps = columns(report.modes[name].samples, "input", "label", "timesteps")
    return {each: (a, b) for each, a, b in zip(number, label, steps, strict=True)}


def check_costs(report: Report, bundle: Bundle) -> None:
    modes, operations = report.modes, bundle.calibration().operations
    head, tail = (default_model().joules(operations[part], 1) for part in ("head", "tail"))
    for name in ("edge_only_full", "edge_only_exit"):
        assert modes[name].bytes.wire == modes[name].bytes.message == 0
        assert modes[name].bytes.opening == 0
    assert modes["no_exit"].modelled_edge_joules == pytest.approx(4 * head)
    used = modes["edge_only_exit"].mean_timesteps
    assert modes["edge_only_exit"].modelled_edge_joules == pytest.approx(used * (head + tail))
    assert modes["cloud_only_raw"].modelled_edge_joules == 0
    assert modes["cloud_only_raw"].bytes.payload == 3 * 32 * 32
    code_bytes = -(-bundle.spec.code_bits // 8)
    assert modes["no_compression"].bytes.payload == pytest.approx(used * code_bytes)
    assert modes["lock_step"].wasted_timesteps == 0
    assert modes["pipelined"].wasted_timesteps > 0
    for name, result in modes.items():
        sizes = result.bytes
        if not name.startswith("edge_only"):
            assert sizes.wire is not None
            assert sizes.opening is not None
            assert sizes.payload < sizes.message < sizes.wire
            # The bytes of other streams, or of this one's samples, would be many more.
            assert 500 < sizes.opening < 3000


def check_files(report: Report, folder: Path) -> None:
    write_report(report, folder / "new" / "report")
    written = folder / "new" / "report"
    again = msgspec.json.decode((written / "report.json").read_bytes(), type=Report)
    assert again == report
    text = (written / "report.md").read_text()
    assert "The network was emulated** by nothing: rate 1" in text
    assert "Slow device" not in text
    figures = {path.name for path in written.glob("*.svg")}
    assert {f"{name}.svg" in text for name in ("latency", "accuracy", "bytes")} == {True}
    for name in figures:
        assert f"({name})" in text
        ElementTree.fromstring((written / name).read_text())


async def test_a_cloud_without_the_whole_network_is_told_and_the_others_run(
    tiny_bundle: Bundle, edge_config: Configs, inputs: Inputs, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(tiny_bundle.path, part)
    (part / "whole.onnx").unlink()
    server = await create(CloudConfig(listen="127.0.0.1:0", metrics="", bundles=(str(part),)))
    try:
        config = edge_config(cloud=f"127.0.0.1:{server.port}")
        modes = choose_modes(tiny_bundle, ["cloud_only_raw", "lock_step"])
        report = await measure(config, tiny_bundle, inputs, PLAN, modes)
        assert list(report.modes) == ["lock_step"]
        assert "whole" in report.skipped["cloud_only_raw"]
        with pytest.raises(RefusedError, match="whole"):
            await measure(config, tiny_bundle, inputs, PLAN, modes[:1])
    finally:
        await server.stop()


async def test_what_this_device_cannot_run_is_told_and_not_tried(
    tiny_bundle: Bundle, clouds: Clouds, edge_config: Configs, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(tiny_bundle.path, part)
    for name in ("whole.onnx", "tail.onnx"):
        (part / name).unlink()
    normalised: list[Array] = [np.zeros((3, 32, 32), np.float32)] * 2
    async with clouds() as cloud:
        report = await measure(
            edge_config(cloud=f"127.0.0.1:{cloud.port}"),
            Bundle(part),
            Inputs(normalised, None),
            PLAN,
            all_modes(tiny_bundle.spec),
        )
    assert set(report.skipped) == {
        "edge_only_full",
        "edge_only_exit",
        "cloud_only_png",
        "cloud_only_webp",
    }
    assert report.modes["lock_step"].accuracy is None
    assert report.complete


async def test_what_the_daemon_is_set_to_do_besides_does_not_stand_in_the_way(
    tiny_bundle: Bundle, clouds: Clouds, edge_config: Configs, inputs: Inputs
) -> None:
    async with clouds() as cloud:
        config = edge_config(
            cloud=f"127.0.0.1:{cloud.port}",
            fallback="local",
            choose_local=True,
            window=4,
            steps_per_packet=2,
            reply_mode="exit",
            samples_in_flight=3,
        )
        modes = choose_modes(tiny_bundle, ["edge_only_full", "lock_step", "policy"])
        report = await measure(config, tiny_bundle, inputs, PLAN, modes)
    assert report.complete
    assert report.modes["lock_step"].wasted_timesteps == 0


async def test_no_cloud_ends_the_measurement(
    tiny_bundle: Bundle, edge_config: Configs, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.measure.run.OPEN_SECONDS", 0.1)
    config = edge_config(cloud="127.0.0.1:9")
    with pytest.raises(LinkLostError, match="127.0.0.1:9"):
        await measure(config, tiny_bundle, inputs, PLAN, choose_modes(tiny_bundle, ["lock_step"]))


def computing_seconds(sample: Sample) -> float:
    return sample.latency.head_seconds + sample.latency.tail_seconds


async def test_a_slow_device_is_slow_in_every_mode_that_computes_there(
    tiny_bundle: Bundle, clouds: Clouds, edge_config: Configs, inputs: Inputs
) -> None:
    factor = 8.0
    async with clouds() as cloud:
        config = edge_config(cloud=f"127.0.0.1:{cloud.port}")
        for name in ("edge_only_full", "edge_only_exit", "no_exit"):
            chosen, took = mode(tiny_bundle, name), []
            for slow in (1.0, factor):
                plan = Plan(rounds=1, warm_up=2, slow_edge=slow)
                runner = Runner(config, tiny_bundle, inputs.arrays, plan)
                samples = (await runner.block(chosen, range(COUNT))).samples
                took.append(min(map(computing_seconds, samples)))
            assert took[1] > factor / 2 * took[0]


def test_a_slow_engine_computes_the_same_later() -> None:
    class Steady:
        input_shape = output_shape = (1,)
        state_shapes = ((1,),)

        def step(self, x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
            time.sleep(0.01)
            return x + 1, state

    engine: Engine = SlowEngine(Steady(), 5.0)
    began = time.perf_counter()
    y, state = engine.step(np.ones((1, 1)), zero_state(engine, 1))
    assert time.perf_counter() - began >= 0.05
    assert y.item() == 2
    assert len(state) == 1


def test_pictures_are_encoded_with_and_without_losses() -> None:
    for array in (picture(0), picture(0)[:1]):
        with Image.open(io.BytesIO(png(array))) as image:
            assert image.format == "PNG"
            back = np.asarray(image).reshape(32, 32, -1).transpose(2, 0, 1)
        assert (back == array).all()
    smooth = np.full((3, 32, 32), 100, np.uint8)
    with Image.open(io.BytesIO(webp(smooth))) as image:
        assert image.format == "WEBP"
    assert len(webp(picture(0))) < len(png(picture(0)))
    assert (
        f"quality {WEBP_QUALITY}"
        in {m.name: m.what for m in all_modes(TINY_SPEC)}["cloud_only_webp"]
    )


def test_an_unknown_mode_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="expected some of edge_only_full, .* got 'fast'"):
        choose_modes(tiny_bundle, ["lock_step", "fast"])


def test_the_command_measures_over_a_real_connection(
    tiny_bundle: Bundle, image_files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with run_cloud(tmp_path, tiny_bundle.path) as cloud:
        flags = ["--bundle", str(tiny_bundle.path), "--cloud", cloud.address, "--out", str(out)]
        flags += ["--images", str(image_files[0].parent), "--rounds", "1", "--slow-edge", "3"]
        assert main(["measure", *flags, "--modes", "lock_step,edge_only_exit"]) == 0
    assert "lock_step" in capsys.readouterr().out
    report = msgspec.json.decode((out / "report.json").read_bytes(), type=Report)
    assert report.images == 3
    assert list(report.modes) == ["lock_step", "edge_only_exit"]
    text = (out / "report.md").read_text()
    assert "wait of 2 d" in text
    assert "The network was the real one." in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rounds", "0"], "rounds"),
        (["--slow-edge", "0.5"], "slow_edge"),
        (["--count", "0"], "count"),
        (["--modes", "fast"], "fast"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_wrong_flags_are_refused_with_one_line(
    tiny_bundle: Bundle,
    image_files: list[Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    images = ["--images", str(image_files[0].parent)]
    assert main(["measure", "--bundle", str(tiny_bundle.path), *images, *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
