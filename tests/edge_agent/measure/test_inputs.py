"""Images and labels for measuring: read whole, or refused with what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.measure.inputs import read_inputs, read_labels
from shared.errors import ConfigError
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import picture, png

NAMES = ("cat", "dog", "7")


def test_a_folder_is_decoded_by_name_with_its_labels(
    tiny_bundle: Bundle, image_files: list[Path], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("3\n\n1\n4\n")
    inputs = read_inputs(image_files[0].parent, labels, tiny_bundle.manifest, 100)
    assert [array.tolist() for array in inputs.arrays] == [picture(i).tolist() for i in range(3)]
    assert inputs.labels == [3, 1, 4]


def test_an_array_is_cut_to_the_count_and_its_labels_too(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", np.stack([picture(seed) for seed in range(5)]))
    np.savez(tmp_path / "labels.npz", y=np.array([5, 4, 3, 2, 1], np.uint8))
    inputs = read_inputs(tmp_path / "images.npy", tmp_path / "labels.npz", tiny_bundle.manifest, 2)
    assert len(inputs.arrays) == 2
    assert inputs.labels == [5, 4]


def test_without_labels_there_are_none(tiny_bundle: Bundle, image_files: list[Path]) -> None:
    inputs = read_inputs(image_files[0].parent, None, tiny_bundle.manifest, 2)
    assert len(inputs.arrays) == 2
    assert inputs.labels is None


def test_as_many_labels_as_images_are_wanted(
    tiny_bundle: Bundle, image_files: list[Path], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("1\n2\n")
    with pytest.raises(ConfigError, match="expected 3 labels .* got 2"):
        read_inputs(image_files[0].parent, labels, tiny_bundle.manifest, 1)


def test_an_empty_folder_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected images"):
        read_inputs(tmp_path, None, tiny_bundle.manifest, 10)


def test_a_damaged_image_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png(0))
    (tmp_path / "worse.png").write_bytes(png(0)[:40])
    with pytest.raises(ConfigError, match="worse.png"):
        read_inputs(tmp_path, None, tiny_bundle.manifest, 10)


def test_an_array_of_another_shape_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((2, 3, 16, 16), np.uint8))
    with pytest.raises(ConfigError, match=r"expected an array .* got \[3, 16, 16\]"):
        read_inputs(tmp_path / "images.npy", None, tiny_bundle.manifest, 10)


def test_labels_are_names_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("dog\n0\ncat \n7\n")  # the last is a name, though it looks like a number
    assert read_labels(path, NAMES) == [1, 0, 0, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [("bird\n", "got 'bird'"), ("3\n", "expected 0 to 2, got 3"), ("-1\n", "got -1")],
)
def test_a_class_the_network_has_not_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_labels(path, NAMES)


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros((3, 1), int), np.array(["a"]), np.array([{}])]
)
def test_an_array_that_is_no_labels_is_refused(tmp_path: Path, array: Any) -> None:
    path = tmp_path / "labels.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ConfigError, match="labels"):
        read_labels(path, NAMES)


def test_absent_or_ambiguous_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(1, int), b=np.zeros(1, int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:50])
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    for name in ("absent.txt", "absent.npy", "two.npz", "cut.npz", "latin.txt"):
        with pytest.raises(ConfigError, match="labels"):
            read_labels(tmp_path / name, NAMES)
