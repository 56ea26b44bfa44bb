from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from shared.codec.codecs import CODECS, get_codec
from shared.errors import ConfigError
from shared.model.bundle import Bundle
from training.calibrate import LabelledFrames, head_codes
from training.evaluate import Evaluation, evaluate, load_evaluation, payload_sizes, to_json
from training.report import (
    draw_trade_off,
    exit_points,
    fixed_points,
    trade_off_markdown,
    trade_off_rows,
    trade_off_table,
)
from training.untrained import synthetic_frames


@pytest.fixture(scope="module")
def data(tiny_bundle: Bundle) -> LabelledFrames:
    labels = np.random.default_rng(0).integers(0, 10, 40)
    return LabelledFrames(synthetic_frames(tiny_bundle.spec, 40, seed=9), labels)


@pytest.fixture(scope="module")
def evaluation(tiny_bundle: Bundle, data: LabelledFrames) -> Evaluation:
    return evaluate(tiny_bundle, data, "made-up")


def test_the_bundles_own_codec_gives_the_payload(
    tiny_bundle: Bundle, data: LabelledFrames, evaluation: Evaluation
) -> None:
    codec = get_codec(tiny_bundle.manifest.codec, tiny_bundle.codecs)
    codes = head_codes(tiny_bundle, data.frames)
    sizes = np.empty(codes.shape[:2])
    for sample, frames in enumerate(codes.reshape(40, 4, -1)):
        for timestep in range(4):
            past = list(frames[:timestep])
            word = codec.encode(frames[timestep : timestep + 1], past)
            sizes[sample, timestep] = min(32, len(word))

    assert evaluation.codec == "ctx"
    by_timestep = [bits / 8 for bits in evaluation.payload_bits_by_timestep["ctx"]]
    assert by_timestep == pytest.approx(sizes.mean(0).tolist())
    full = evaluation.co_inference["full"]
    assert full.payload_bytes_per_image == pytest.approx(sizes.sum(1).mean())


def test_every_codec_of_the_bundle_is_measured(tiny_bundle: Bundle, evaluation: Evaluation) -> None:
    assert set(evaluation.payload_bits_by_timestep) == set(tiny_bundle.codecs)
    assert evaluation.code_bits_per_timestep == 4 * 8 * 8
    assert evaluation.payload_bits_by_timestep["raw"] == (256, 256, 256, 256)
    for name, bits in evaluation.payload_bits_by_timestep.items():
        assert max(bits) <= 256
        full = evaluation.co_inference["full"].payload_bytes_per_image_by_codec[name]
        assert full == pytest.approx(sum(bits) / 8)


def test_codes_go_raw_where_coding_does_not_win() -> None:
    codes = np.random.default_rng(0).integers(0, 2, (2, 5, 1, 8, 8), np.uint8)
    silence = np.zeros((1, 1, 16, 32, 32), np.uint8)

    assert payload_sizes(codes, CODECS["zstd"]).tolist() == [[8] * 5] * 2
    assert payload_sizes(silence, CODECS["zstd"]).item() < 100


def test_every_alpha_has_its_figures(tiny_bundle: Bundle, evaluation: Evaluation) -> None:
    names = set(tiny_bundle.calibration().alpha)
    assert set(evaluation.alpha) == set(evaluation.co_inference) == names
    assert set(evaluation.edge_only_exit) == set(evaluation.whole_exit) == names
    assert evaluation.default_alpha in names
    for exits in evaluation.co_inference.values():
        assert exits.mean_timesteps == pytest.approx(
            sum((t + 1) * share for t, share in enumerate(exits.exit_distribution))
        )
        assert exits.payload_bytes_per_image == exits.payload_bytes_per_image_by_codec["ctx"]
        assert exits.payload_bytes_per_timestep <= 32
        assert exits.payload_bytes_per_timestep * exits.mean_timesteps == pytest.approx(
            exits.payload_bytes_per_image
        )
    full = evaluation.co_inference["full"]
    assert full.accuracy == evaluation.accuracy_compressed[-1]
    assert full.exit_distribution == (0, 0, 0, 1)


def test_the_same_network_on_the_edge_alone_computes_all_of_it(evaluation: Evaluation) -> None:
    for name, alone in evaluation.edge_only_exit.items():
        together = evaluation.co_inference[name]
        assert (alone.accuracy, alone.exit_distribution) == (
            together.accuracy,
            together.exit_distribution,
        )
        for kind in ("mac", "ac", "neuron"):
            both = together.edge_operations, together.cloud_operations, alone.edge_operations
            head, tail, total = (getattr(operations, kind) for operations in both)
            assert 0 < head < total
            assert total == pytest.approx(head + tail)


def test_operations_are_those_of_the_timesteps_used(
    tiny_bundle: Bundle, evaluation: Evaluation
) -> None:
    by_part = evaluation.operations_by_timestep
    assert set(by_part) == {"head", "tail", "whole"}
    full = evaluation.co_inference["full"]
    for by_timestep, operations in (
        (by_part["head"], full.edge_operations),
        (by_part["tail"], full.cloud_operations),
        (by_part["whole"], evaluation.edge_only_full.edge_operations),
    ):
        assert operations.ac == pytest.approx(sum(each.ac for each in by_timestep))
    early = evaluation.co_inference[evaluation.default_alpha]
    assert 1 < early.mean_timesteps < 4
    assert early.edge_operations.ac < full.edge_operations.ac
    # The first convolution reads the same picture at every timestep.
    assert early.edge_operations.mac == pytest.approx(by_part["head"][0].mac * early.mean_timesteps)


def test_every_layer_has_a_firing_rate(tiny_bundle: Bundle, evaluation: Evaluation) -> None:
    compressed, whole = evaluation.firing_rates_compressed, evaluation.firing_rates_whole
    states = {
        part: {state.name for state in tiny_bundle.part(part).states}
        for part in ("head", "tail", "whole")
    }
    assert set(compressed) == states["head"] | states["tail"] | {"code"}
    assert set(whole) == states["whole"]
    assert all(0 < rate < 1 for rate in (*compressed.values(), *whole.values()))
    assert compressed["head.stem.conv.lif"] == whole["head.stem.conv.lif"]


def test_edge_only_full_takes_every_timestep(evaluation: Evaluation) -> None:
    full = evaluation.edge_only_full
    assert full.accuracy == evaluation.accuracy_whole[-1] == evaluation.whole_exit["full"].accuracy
    assert (full.mean_timesteps, full.exit_distribution) == (4, (0, 0, 0, 1))


def test_an_evaluation_is_read_as_it_was_written(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_bytes(to_json(evaluation))
    assert load_evaluation(tmp_path / "evaluation.json") == evaluation


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"[1"])
def test_another_file_is_no_evaluation(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"expected an evaluation at .*other\.json"):
        load_evaluation(tmp_path / "other.json")


def test_an_evaluation_knows_its_bundle(tiny_bundle: Bundle, evaluation: Evaluation) -> None:
    manifest, calibration = tiny_bundle.manifest, tiny_bundle.calibration()
    other = msgspec.structs.replace(calibration, alpha=calibration.alpha | {"mine": (0.5,) * 3})
    assert evaluation.is_of(manifest, calibration)
    assert not evaluation.is_of(manifest, other)


def test_the_trade_off_has_every_timestep_and_alpha(evaluation: Evaluation) -> None:
    fixed, exits = fixed_points(evaluation), exit_points(evaluation)

    assert [point.timesteps for point in fixed] == [1, 2, 3, 4]
    sent = sum(evaluation.payload_bits_by_timestep["ctx"]) / 8
    assert fixed[-1].payload_bytes == pytest.approx(sent)
    assert {point.name for point in exits} == set(evaluation.alpha)
    assert exits == sorted(exits, key=lambda point: point.timesteps)


def test_runs_are_marked_that_send_no_more_than_the_fixed_geometry(evaluation: Evaluation) -> None:
    # Features [16, 16, 16] over four timesteps: 65,536 bytes as float32.
    assert evaluation.float32_feature_bytes_per_image == 65536
    rows = {row[0].removesuffix(" *"): row for row in trade_off_rows(evaluation)}
    assert rows["2048x"][4:] == ("32.0", "2,048")
    for point in fixed_points(evaluation) + exit_points(evaluation):
        less = rows[point.name][-1]
        assert less.endswith(" +") is (point.payload_bytes <= 32)
        times = float(less.removesuffix(" +").replace(",", ""))
        assert times == pytest.approx(65536 / point.payload_bytes, abs=0.51)
    assert rows["t = 1"][-1].endswith(" +")
    assert not rows["t = 4"][-1].endswith(" +")


def test_several_bundles_are_compared(evaluation: Evaluation, tmp_path: Path) -> None:
    both = [evaluation, msgspec.structs.replace(evaluation, name="other")]

    table, text = trade_off_table(both), trade_off_markdown(both)
    draw_trade_off(both, tmp_path / "trade-off.png")

    rows = 2 * (1 + 2 + 4 + len(evaluation.alpha) + 1)
    assert table.row_count == rows
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + rows
    assert {line.count("|") for line in lines} == {7}
    assert sum("**other, made-up, 40 samples**" in line for line in lines) == 1
    assert (tmp_path / "trade-off.png").read_bytes().startswith(b"\x89PNG")
