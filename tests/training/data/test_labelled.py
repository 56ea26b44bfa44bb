from __future__ import annotations

import numpy as np
import pytest

from shared.errors import NeucodexError
from training.data.labelled import DataError, LabelledData, MissingDataError


def data(shape: tuple[int, ...], labels: list[int], dtype: type = np.uint8) -> LabelledData:
    return LabelledData(
        name="some",
        inputs=np.arange(np.prod(shape)).reshape(shape).astype(dtype),
        labels=np.array(labels, np.int64),
        classes=("a", "b"),
        split="train",
    )


def test_images_are_static() -> None:
    images = data((2, 3, 4, 5), [0, 1])

    assert (images.kind, images.input_shape, len(images)) == ("static", (3, 4, 5), 2)


def test_event_frames_are_events() -> None:
    frames = data((2, 7, 2, 4, 5), [0, 1])

    assert (frames.kind, frames.input_shape, len(frames)) == ("events", (2, 4, 5), 2)


def test_a_part_keeps_inputs_and_labels_together() -> None:
    images = data((3, 1, 2, 2), [0, 1, 0])

    part = images.part(np.array([2, 1]))

    assert part.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(part.inputs, images.inputs[[2, 1]])
    assert len(images.part(slice(0, 2))) == 2
    assert (part.name, part.classes) == (images.name, images.classes)


def test_shuffling_keeps_inputs_and_labels_together_and_depends_on_the_seed() -> None:
    images = data((50, 1, 1, 1), [index % 2 for index in range(50)])

    once, again, other = images.shuffled(1), images.shuffled(1), images.shuffled(2)

    assert sorted(once.inputs.ravel().tolist()) == list(range(50))
    np.testing.assert_array_equal(once.inputs.ravel() % 2, once.labels)
    np.testing.assert_array_equal(once.inputs, again.inputs)
    assert (once.inputs != other.inputs).any()


@pytest.mark.parametrize(
    ("shape", "labels", "dtype", "message"),
    [
        ((2, 3, 4), [0, 1], np.uint8, r"expected inputs as uint8 .* got uint8 \[2, 3, 4\]"),
        ((2, 4, 3, 4, 4), [0, 1], np.uint8, r"got uint8 \[2, 4, 3, 4, 4\]"),
        ((2, 3, 4, 4), [0, 1], np.float32, "got float32"),
        ((2, 3, 4, 4), [0], np.uint8, r"expected labels as int64 \[2\], got int64 \[1\]"),
        ((2, 3, 4, 4), [0, 2], np.uint8, "expected labels 0..1, got 2"),
        ((2, 3, 4, 4), [-1, 0], np.uint8, "expected labels 0..1, got -1"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    shape: tuple[int, ...], labels: list[int], dtype: type, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data(shape, labels, dtype)


def test_missing_data_is_also_a_missing_file() -> None:
    assert issubclass(DataError, NeucodexError)
    assert issubclass(MissingDataError, DataError)
    assert issubclass(MissingDataError, FileNotFoundError)
