from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shared.events.framing import ByCount, ByTime
from training.data.cifar10 import CLASSES as CIFAR10_CLASSES
from training.data.event_sets import N_CALTECH10_CLASSES, N_CALTECH101_CLASSES
from training.data.labelled import DataError, LabelledData, MissingDataError
from training.data.sets import Options, load

Event = tuple[int, int, int, int]
Encode = Callable[[Sequence[Event]], bytes]
Draw = Callable[..., list[Event]]
Write = Callable[[Path, bytes], None]

FRAMING = ByTime(timesteps=3, window_microseconds=100_000)
RECORDINGS = 5
EVENTS = 40


def counted(events: Sequence[Event], sensor: tuple[int, int]) -> np.ndarray:
    """Count events the slow way, as FRAMING says."""
    frames = np.zeros((3, 2, *sensor), np.uint8)
    for t, x, y, polarity in events:
        frames[t // 100_000, polarity, y, x] += 1
    return frames


@pytest.fixture
def n_mnist(tmp_path: Path, atis: Encode, draw: Draw, write: Write) -> Path:
    """Three recordings of each digit in Train, one in Test."""
    for part, count in (("Train", 3), ("Test", 1)):
        for digit in range(10):
            for number in range(count):
                events = draw(digit * 10 + number, EVENTS, (34, 34))
                write(tmp_path / part / str(digit) / f"{number:05}.bin", atis(events))
    return tmp_path


@pytest.fixture(scope="session")
def n_caltech101(
    tmp_path_factory: pytest.TempPathFactory, atis: Encode, draw: Draw, write: Write
) -> Path:
    """Five recordings of each class."""
    root = tmp_path_factory.mktemp("n-caltech101")
    for label, name in enumerate(N_CALTECH101_CLASSES):
        for number in range(RECORDINGS):
            events = draw(label * 10 + number, EVENTS, (180, 240))
            path = root / "Caltech101" / name / f"image_{number + 1:04}.bin"
            write(path, atis([event for event in events if event[2] != 240]))
    return root


def check_n_mnist(folder: Path, draw: Draw) -> None:
    options = Options(framing=FRAMING)
    test = load("n-mnist", folder, train=False, options=options)
    train = load("n-mnist", folder, train=True, options=options)

    assert (len(train), len(test)) == (30, 10)
    assert train.inputs.shape == (30, 3, 2, 34, 34)
    assert train.labels.tolist() == [digit for digit in range(10) for _ in range(3)]
    assert train.classes == tuple("0123456789")
    assert (train.split, test.split) == ("train (the data set's own)", "test (the data set's own)")
    for index in range(30):
        events = draw(index // 3 * 10 + index % 3, EVENTS, (34, 34))
        np.testing.assert_array_equal(train.inputs[index], counted(events, (34, 34)))


def test_n_mnist_from_its_folders(n_mnist: Path, draw: Draw) -> None:
    check_n_mnist(n_mnist, draw)


def test_n_mnist_from_a_tar(n_mnist: Path, tmp_path: Path, draw: Draw) -> None:
    archive = tmp_path / "n-mnist.tar.xz"
    with tarfile.open(archive, "w:xz") as file:
        for part in ("Train", "Test"):
            file.add(n_mnist / part, part)

    check_n_mnist(archive, draw)


def test_n_mnist_from_the_published_zips(n_mnist: Path, tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for part in ("Train", "Test"):
        with zipfile.ZipFile(folder / f"{part.lower()}.zip", "w") as file:
            for path in sorted((n_mnist / part).rglob("*.bin")):
                file.write(path, path.relative_to(n_mnist))

    check_n_mnist(folder, draw)


def test_n_mnist_by_count_and_at_another_size(n_mnist: Path) -> None:
    options = Options(framing=ByCount(timesteps=4), size=17)

    frames = load("n-mnist", n_mnist, train=False, options=options).inputs

    assert frames.shape == (10, 4, 2, 17, 17)
    assert (frames.sum(axis=(2, 3, 4)) == EVENTS // 4).all()


def test_n_mnist_without_a_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"expected Test/<digit>/<id>.bin of N-MNIST in"):
        load("n-mnist", tmp_path, train=False)


def test_an_n_mnist_folder_that_is_no_digit_is_refused(n_mnist: Path, write: Write) -> None:
    write(n_mnist / "Train" / "ten" / "1.bin", bytes(5))

    with pytest.raises(DataError, match=r"expected a folder named 0, 1.*got Train/ten/1.bin"):
        load("n-mnist", n_mnist, train=True)


def test_a_damaged_n_mnist_recording_is_named(n_mnist: Path) -> None:
    (n_mnist / "Test" / "4" / "00000.bin").write_bytes(bytes(11))

    with pytest.raises(DataError, match=r"Test/4/00000.bin: expected events of 5 bytes, got 11"):
        load("n-mnist", n_mnist, train=False)


def test_n_caltech101_in_both_parts(n_caltech101: Path, draw: Draw) -> None:
    options = Options(framing=FRAMING)
    train = load("n-caltech101", n_caltech101, train=True, options=options)
    test = load("n-caltech101", n_caltech101, train=False, options=options)

    assert train.inputs.shape == (404, 3, 2, 180, 240)
    assert (train.labels.tolist(), test.labels.tolist()) == (
        [label for label in range(101) for _ in range(4)],
        list(range(101)),
    )
    assert test.split == "test (last 20% of each class by file name)"
    for label in (0, 1, 57):
        events = draw(label * 10 + 4, EVENTS, (180, 240))
        np.testing.assert_array_equal(test.inputs[label], counted(events, (180, 240)))


def test_n_caltech10_has_the_background_in_the_place_of_faces(n_caltech101: Path) -> None:
    options = Options(framing=FRAMING, size=32, train_share=0.6)
    test = load("n-caltech10", n_caltech101, train=False, options=options)

    assert test.name == "n-caltech10"
    assert test.classes == N_CALTECH10_CLASSES
    assert test.classes[:4] == ("airplanes", "Motorbikes", "BACKGROUND_Google", "Faces_easy")
    assert test.inputs.shape == (20, 3, 2, 32, 32)
    assert (test.inputs.sum(axis=(1, 2, 3, 4)) == EVENTS).all()
    assert np.bincount(test.labels).tolist() == [2] * 10


def test_n_caltech101_without_some_class_is_refused(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "Caltech101" / "ant" / "image_0001.bin", bytes(5))

    with pytest.raises(MissingDataError, match=r"expected files of 101 classes .*\.\.\."):
        load("n-caltech101", tmp_path, train=True)


def write_cifar10_dvs(folder: Path, encode: Encode, draw: Draw, write: Write, ending: str) -> None:
    for label, name in enumerate(CIFAR10_CLASSES):
        for number in range(RECORDINGS):
            events = draw(label * 10 + number, EVENTS, (128, 128))
            write(folder / name / f"cifar10_{name}_{number}.{ending}", encode(events))


def check_cifar10_dvs(test: LabelledData, draw: Draw) -> None:
    assert test.inputs.shape == (10, 3, 2, 128, 128)
    assert test.labels.tolist() == list(range(10))
    for label in range(10):
        events = draw(label * 10 + 4, EVENTS, (128, 128))
        first = events[0][0]
        expected = counted([(t - first, x, y, p) for t, x, y, p in events], (128, 128))
        np.testing.assert_array_equal(test.inputs[label], expected)


def test_cifar10_dvs_as_first_published(
    tmp_path: Path, aedat2: Encode, draw: Draw, write: Write
) -> None:
    write_cifar10_dvs(tmp_path, aedat2, draw, write, "aedat")
    options = Options(framing=FRAMING, train_share=0.8)

    check_cifar10_dvs(load("cifar10-dvs", tmp_path, train=False, options=options), draw)
    train = load("cifar10-dvs", tmp_path, train=True, options=options)
    assert (len(train), train.split) == (40, "train (first 80% of each class by file name)")


def test_cifar10_dvs_as_aedat4(tmp_path: Path, aedat4: Encode, draw: Draw, write: Write) -> None:
    write_cifar10_dvs(tmp_path, aedat4, draw, write, "aedat4")
    options = Options(framing=FRAMING, train_share=0.8)

    check_cifar10_dvs(load("cifar10-dvs", tmp_path, train=False, options=options), draw)


def test_cifar10_dvs_in_two_formats_is_refused(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "cat" / "a.aedat", b"")
    write(tmp_path / "cat" / "a.aedat4", b"")

    with pytest.raises(DataError, match=r"expected one format in .*, got .aedat and .aedat4"):
        load("cifar10-dvs", tmp_path, train=True)


def test_cifar10_dvs_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cat.zip", "w") as archive:
        archive.writestr("cat/a.aedat", b"")

    with pytest.raises(MissingDataError, match=r"of CIFAR10-DVS unpacked in .*, got an archive"):
        load("cifar10-dvs", tmp_path, train=True)


NMNIST = os.environ.get("NEUCODEX_NMNIST", "")


@pytest.mark.skipif(not NMNIST, reason="NEUCODEX_NMNIST names no folder or archive of N-MNIST")
def test_real_n_mnist_recordings() -> None:
    by_time, by_count = (
        load("n-mnist", Path(NMNIST), train=False, options=Options(framing=framing))
        for framing in (ByTime(timesteps=4), ByCount(timesteps=4))
    )

    events = by_time.inputs.sum(axis=(1, 2, 3, 4))
    groups = by_count.inputs.sum(axis=(2, 3, 4)).astype(np.int64)
    assert set(by_time.labels.tolist()) == set(range(10))
    # Three saccades over a digit: about 4,000 events, some in every part of the time.
    assert 2000 < np.median(events) < 8000
    assert (by_time.inputs.sum(axis=(2, 3, 4)) > 0).all()
    np.testing.assert_array_equal(groups.sum(axis=1), events)
    assert (groups.max(axis=1) - groups.min(axis=1) <= 1).all()
