from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks import data_reduction
from benchmarks.data_reduction import LOSSLESS, SETTINGS, WAYS, Rival, lowest_quality, write
from benchmarks.images import DATA, load_test_images
from benchmarks.report import Report
from shared.model.bundle import Bundle

IMAGES = 12


@given(threshold=st.integers(1, 100))
def test_the_lowest_quality_that_is_enough_is_found(threshold: int) -> None:
    assert lowest_quality(lambda quality: float(quality >= threshold), 1.0) == threshold


def test_no_quality_may_be_enough() -> None:
    tried: list[int] = []

    def accuracy(quality: int) -> float:
        tried.append(quality)
        return 0.5

    assert lowest_quality(accuracy, 0.6) is None
    assert tried == [100]


@pytest.mark.parametrize("setting", [each for some in SETTINGS.values() for each in some])
def test_files_are_of_their_format_and_shrink_with_quality(
    setting: data_reduction.FileSetting,
) -> None:
    pixels = load_test_images(IMAGES).pixels
    low, high = (write(pixels, setting, quality) for quality in (20, 90))
    assert sum(map(len, low)) < 0.8 * sum(map(len, high))
    for file in (*low, *high):
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (setting.side, setting.side)
            assert image.format == setting.options["format"].upper()


def test_files_without_loss_hold_the_image() -> None:
    pixels = load_test_images(IMAGES).pixels
    for picture, file in zip(pixels, write(pixels, LOSSLESS, None), strict=True):
        with Image.open(io.BytesIO(file)) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), picture.transpose(1, 2, 0))


def test_the_smallest_of_the_settings_is_taken(tiny_bundle: Bundle) -> None:
    rival = Rival(tiny_bundle, load_test_images(IMAGES))

    # Every file is accurate enough, so the worst quality of the thriftiest setting is.
    found = rival.smallest(SETTINGS["webp"], 0.0)
    assert found is not None
    assert (found.setting.name, found.quality) == ("webp_28px", 1)
    assert rival.tried["webp_28px"]["1"][0] == found.mean_bytes
    assert rival.smallest(SETTINGS["jpeg"], 1.1) is None


def test_a_bundle_for_other_images_is_refused(tmp_path: Path, tiny_bundle: Bundle) -> None:
    spec = msgspec.structs.replace(tiny_bundle.spec, input_shape=(3, 64, 64))
    other = Bundle(tiny_bundle.path)
    other.manifest = msgspec.structs.replace(tiny_bundle.manifest, spec=spec, parts={})
    with pytest.raises(SystemExit, match="expected a bundle for CIFAR-10"):
        data_reduction.measure(other, quick=True)


def test_the_whole_test_set_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA, raising=False)
    with pytest.raises(SystemExit, match="expected the folder of CIFAR-10 in NEUCODEX_CIFAR10"):
        load_test_images(None)


@pytest.mark.timeout(600)
def test_bytes_of_co_inference_and_uploads_are_those_of_real_pairs(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_reduction, "QUICK_IMAGES", IMAGES)
    out = tmp_path / "data_reduction.json"

    flags = ["--quick", "--bundle", str(tiny_bundle.path), "--out", str(out)]
    assert data_reduction.main(flags) == 0

    report = msgspec.json.decode(out.read_bytes(), type=Report)
    values = {result.name: result.value for result in report.results}
    for run in ("co_inference", "webp_upload", "jpeg_upload"):
        payload, message, wire = (values[f"{run}_{way}_bytes_per_image"] for way in WAYS)
        assert 0 < payload < message < wire
        assert 0 < values[f"{run}_wire_sent_bytes_per_image"] < wire
    # Features [16, 16, 16] over four timesteps.
    assert values["float32_features_bytes_per_image"] == 4 * 4 * 16**3
    assert values["packed_features_bytes_per_image"] == 4 * 16**3 / 8
    assert values["raw_input_bytes_per_image"] == 3 * 32 * 32
    payload = values["co_inference_payload_bytes_per_image"]
    assert values["float32_features_over_payload"] == pytest.approx(65536 / payload)
    ours, theirs = (
        values[f"{run}_wire_bytes_per_image"] for run in ("co_inference", "webp_upload")
    )
    (goal,) = (result for result in report.results if result.goal is not None)
    assert goal.name == "wire_over_webp_wire"
    assert goal.value == pytest.approx(ours / theirs)

    # The uploads are as accurate as the search found them to be.
    assert values["webp_upload_timesteps"] == values["jpeg_upload_timesteps"] == 4
    for name in SETTINGS:
        chosen, tried = report.settings[name], report.settings["tried"]
        if chosen["quality"] is not None:
            size, accuracy = tried[chosen["setting"]][str(chosen["quality"])]
            assert values[f"{name}_upload_payload_bytes_per_image"] == pytest.approx(size)
            assert values[f"{name}_upload_accuracy"] == pytest.approx(accuracy)
            assert accuracy >= values["co_inference_accuracy"]
