from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from shared.events.framing import ByTime
from training.data.cifar10 import Images
from training.data.labelled import DataError
from training.data.sets import DATA_SETS, Options, load
from training.data.sim import Saccades, simulate_frames


def test_every_simulated_set_and_no_other_is_called_sim() -> None:
    assert set(DATA_SETS) == {
        "cifar10", "caltech10", "caltech101", "n-mnist", "n-caltech10", "n-caltech101",
        "cifar10-dvs", "cifar10-sim", "caltech10-sim", "caltech101-sim",
    }  # fmt: skip
    simulated = {name for name, data_set in DATA_SETS.items() if "saccades" in data_set.options}
    assert simulated == {name for name in DATA_SETS if name.endswith("-sim")}


def test_cifar10_by_name(cifar10: Path, pictures: dict[str, Images]) -> None:
    data = load("cifar10", cifar10, train=False)

    np.testing.assert_array_equal(data.inputs, pictures["test_batch"].pixels)
    np.testing.assert_array_equal(data.labels, pictures["test_batch"].labels)
    assert (data.name, data.kind, data.classes[3]) == ("cifar10", "static", "cat")


def test_cifar10_sim_is_the_simulation_of_its_pictures(
    cifar10: Path, pictures: dict[str, Images]
) -> None:
    options = Options(framing=ByTime(timesteps=2), saccades=Saccades(seed=3))

    data = load("cifar10-sim", cifar10, train=False, options=options)

    assert (data.name, data.kind, data.input_shape) == ("cifar10-sim", "events", (2, 32, 32))
    expected = simulate_frames(pictures["test_batch"].pixels, Saccades(seed=3), ByTime(timesteps=2))
    np.testing.assert_array_equal(data.inputs, expected)
    np.testing.assert_array_equal(data.labels, pictures["test_batch"].labels)


def test_simulated_frames_are_made_once(
    cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load("cifar10-sim", cifar10, train=False, cache=tmp_path)
    monkeypatch.setattr("training.data.sets.simulate_frames", None)

    again = load("cifar10-sim", cifar10, train=False, cache=tmp_path)

    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_every_setting_and_part_has_its_own_cache(cifar10: Path, tmp_path: Path) -> None:
    two = Options(framing=ByTime(timesteps=2))
    for options in (two, Options(), Options(saccades=Saccades(seed=2))):
        load("cifar10-sim", cifar10, train=False, options=options, cache=tmp_path)
    load("cifar10-sim", cifar10, train=True, options=two, cache=tmp_path)

    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_cache_is_named(cifar10: Path, tmp_path: Path) -> None:
    load("cifar10-sim", cifar10, train=False, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-30])

    with pytest.raises(DataError, match=f"expected a cached array in {path}; delete it"):
        load("cifar10-sim", cifar10, train=False, cache=tmp_path)


def test_an_interrupted_simulation_leaves_no_cache(
    cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.savez_compressed", interrupted)

    with pytest.raises(KeyboardInterrupt):
        load("cifar10-sim", cifar10, train=False, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a data set of cifar10, .*, got 'cifar11'"):
        load("cifar11", tmp_path, train=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar10", Options(size=8), r"options of cifar10 \(none\), got size"),
        ("cifar10-sim", Options(train_share=0.5), r"\(framing, saccades\), got train_share"),
        ("n-mnist", Options(saccades=Saccades()), r"\(framing, size\), got saccades"),
    ],
)
def test_an_option_a_set_does_not_have_is_refused(
    tmp_path: Path, name: str, options: Options, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path, train=True, options=options)


def test_options_come_from_toml() -> None:
    text = """
    size = 32
    train_share = 0.8
    framing = { by = "time", timesteps = 5 }
    saccades = { threshold = 0.3, seed = 4 }
    """

    options = msgspec.toml.decode(text, type=Options)

    assert options == Options(
        size=32,
        train_share=0.8,
        framing=ByTime(timesteps=5),
        saccades=Saccades(threshold=0.3, seed=4),
    )
    with pytest.raises(msgspec.ValidationError, match="size"):
        msgspec.toml.decode("size = 0", type=Options)
