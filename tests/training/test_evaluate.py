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
from training.report import draw_trade_off, exit_points, fixed_points, trade_off_table
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
    assert evaluation.packed_bytes_per_timestep == 32
    assert evaluation.payload_bytes_by_timestep == pytest.approx(sizes.mean(0).tolist())
    full = evaluation.co_inference["full"]
    assert full.payload_bytes_per_image == pytest.approx(sizes.sum(1).mean())
    assert full.packed_bytes_per_image == 4 * 32


def test_codes_go_raw_where_coding_does_not_win() -> None:
    codes = np.random.default_rng(0).integers(0, 2, (2, 5, 1, 8, 8), np.uint8)
    silence = np.zeros((1, 1, 16, 32, 32), np.uint8)

    assert payload_sizes(codes, CODECS["zstd"]).tolist() == [[8] * 5] * 2
    assert payload_sizes(silence, CODECS["zstd"]).item() < 100


def test_every_alpha_has_its_figures(tiny_bundle: Bundle, evaluation: Evaluation) -> None:
    names = set(tiny_bundle.calibration().alpha)
    assert set(evaluation.alpha) == set(evaluation.co_inference) == names
    assert set(evaluation.edge_only_exit) == names
    assert evaluation.default_alpha in names
    for exits in evaluation.co_inference.values():
        assert exits.mean_timesteps == pytest.approx(
            sum((t + 1) * share for t, share in enumerate(exits.exit_distribution))
        )
        assert exits.payload_bytes_per_timestep <= evaluation.packed_bytes_per_timestep
        assert exits.payload_bytes_per_timestep * exits.mean_timesteps == pytest.approx(
            exits.payload_bytes_per_image
        )
    full = evaluation.co_inference["full"]
    assert full.accuracy == evaluation.accuracy_compressed[-1]
    assert full.exit_distribution == (0, 0, 0, 1)


def test_an_evaluation_is_read_as_it_was_written(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_bytes(to_json(evaluation))
    assert load_evaluation(tmp_path / "evaluation.json") == evaluation


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"[1"])
def test_another_file_is_no_evaluation(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"expected an evaluation at .*other\.json"):
        load_evaluation(tmp_path / "other.json")


def test_the_trade_off_has_every_timestep_and_alpha(evaluation: Evaluation) -> None:
    fixed, exits = fixed_points(evaluation), exit_points(evaluation)

    assert [point.timesteps for point in fixed] == [1, 2, 3, 4]
    assert [point.packed_bytes for point in fixed] == [32, 64, 96, 128]
    assert fixed[-1].payload_bytes == pytest.approx(sum(evaluation.payload_bytes_by_timestep))
    assert {point.name for point in exits} == set(evaluation.alpha)
    assert exits == sorted(exits, key=lambda point: point.timesteps)


def test_several_bundles_are_compared(evaluation: Evaluation, tmp_path: Path) -> None:
    other = msgspec.structs.replace(evaluation, name="other")

    tables = [trade_off_table(each) for each in (evaluation, other)]
    draw_trade_off([evaluation, other], tmp_path / "trade-off.png")

    assert [table.row_count for table in tables] == [2 + 4 + len(evaluation.alpha)] * 2
    assert (tmp_path / "trade-off.png").read_bytes().startswith(b"\x89PNG")
