"""The codec benchmark and the floating-point models it sets beside the codecs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import codec, figures
from benchmarks.float_code_model import fit_float_model, ideal_bytes
from benchmarks.report import ROOT, Report
from shared.errors import ConfigError
from shared.model.bundle import Bundle

EVENT_BUNDLE = ROOT / "shared" / "zoo" / "resnet18-n-mnist"


def measured(out: Path, *arguments: str) -> dict[str, float]:
    """Run the benchmark quickly; return its figures by name."""
    assert codec.main([*arguments, "--quick", "--out", str(out)]) == 0
    report = msgspec.json.decode(out.read_bytes(), type=Report)
    return {result.name: result.value for result in report.results}


def test_every_codec_of_a_bundle_is_measured_beside_its_model(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    found = measured(tmp_path / "codec.json", "--bundle", str(tiny_bundle.path))

    values = {name.removeprefix("untrained."): value for name, value in found.items()}
    assert values["packed_bytes_per_timestep"] == 32
    for name in ("zstd-3", "ctx", "ctx-max", "raw", "zstd"):
        by_timestep = [values[f"{name}_bytes_at_t{timestep}"] for timestep in range(4)]
        assert values[f"{name}_bytes_per_sample"] == pytest.approx(sum(by_timestep))
        assert values[f"{name}_bytes_per_timestep"] == pytest.approx(sum(by_timestep) / 4)
    for name in ("ctx", "ctx-max"):
        assert values[f"{name}_bytes_per_timestep"] <= 32
        assert 0 < values[f"{name}_overhead_bytes"] < 0.4
        over = values[f"{name}_bytes_per_timestep"] / 32
        assert values[f"{name}_over_packed"] == pytest.approx(over)
    assert "float_model_bytes_per_timestep" not in values


@pytest.mark.timeout(600)
@pytest.mark.skipif("NEUCODEX_NMNIST" not in os.environ, reason="NEUCODEX_NMNIST is not set")
def test_event_bundles_are_measured_on_their_data_beside_float_models(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", os.environ["NEUCODEX_NMNIST"])
    found = measured(tmp_path / "codec.json", "--bundle", str(EVENT_BUNDLE), *data)

    values = {name.removeprefix("resnet18-n-mnist."): value for name, value in found.items()}
    assert values["ctx_over_packed"] < 0.55
    bounds = [values[f"float_{name}_ideal_bytes_per_timestep"] for name in codec.FLOAT_MODELS]
    assert values["float_model_bytes_per_timestep"] == min(bounds)
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    (panel,) = figures.codec().axes
    assert [line.get_label() for line in panel.lines][-2:] == ["ctx-max", "float model"]
    drawn = np.asarray(panel.lines[-1].get_ydata()).tolist()
    assert drawn == [values[f"float_model_bytes_at_t{timestep}"] for timestep in range(6)]


def test_data_is_named_for_every_bundle_or_for_none(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = ("--bundle", str(tiny_bundle.path))
    with pytest.raises(SystemExit):
        codec.main([*bundle, *bundle, "--data", "somewhere"])
    assert "expected --data for none or all of 2 bundles" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="not for the shipped pictures"):
        codec.main(["--bundle", str(EVENT_BUNDLE), "--quick"])


@pytest.mark.parametrize("hidden", codec.FLOAT_MODELS.values(), ids=codec.FLOAT_MODELS)
def test_a_float_model_comes_close_to_the_entropy_of_unseen_codes(hidden: int) -> None:
    def codes(count: int, seed: int) -> codec.Codes:
        """Noise at a rate of 0.2; then the same shifted by a neuron, one in twenty flipped."""
        generator = np.random.default_rng(seed)
        first = generator.random((count, 2, 8, 8)) < 0.2
        flipped = generator.random(first.shape) < 0.05
        return np.stack([first, np.roll(first, 1, axis=3) ^ flipped], axis=1).astype(np.uint8)

    model = fit_float_model(codes(300, seed=0), hidden)
    first, second = ideal_bytes(model, codes(100, seed=1))

    # 128 neurons of 0.722 bits; then 112 of 0.286, and 16 at the edge of which nothing is known.
    assert 11.4 < first < 12.4
    assert 5.5 < second < 6.5
