"""Training runs: interrupted and resumed, on pictures and on events."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from shared.errors import ConfigError
from training.curves import draw_curves, read_log
from training.export import ExportOptions, export_run
from training.fit import CHECKPOINT, FitOptions, Training, checked_device, fit, load_checkpoint
from training.recipe import RECIPE, Recipe
from training.recipe_data import TrainingData, load_training

EPOCHS = [("first", 0), ("first", 1), ("second", 0), ("second", 1), ("third", 0)]
FRESH = FitOptions(compile_loss=False)
PNG = b"\x89PNG\r\n"


class InterruptedRunError(Exception):
    """Stands for a machine that goes away."""


class Interrupted:
    """A progress that ends the run when so many epochs have begun."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def begin(self, what: str, steps: int) -> None:
        if self.left == 0:
            raise InterruptedRunError
        self.left -= 1

    def advance(self, note: str = "") -> None:
        assert note.startswith("loss ")


@pytest.fixture(scope="module")
def data(recipe: Recipe, cifar10: Path) -> TrainingData:
    return load_training(recipe, cifar10)


@pytest.fixture(scope="module")
def run(recipe: Recipe, data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit(recipe, data, folder, FRESH)
    return folder


def epochs(folder: Path) -> list[tuple[str, int]]:
    return [(line["phase"], line["epoch"]) for line in read_log(folder)]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("network", "rate"):
        for name, tensor in one[part].items():
            torch.testing.assert_close(other[part][name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("epochs_done", [1, 2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(
    run: Path, recipe: Recipe, data: TrainingData, tmp_path: Path, epochs_done: int
) -> None:
    with pytest.raises(InterruptedRunError):
        fit(recipe, data, tmp_path, FRESH, Interrupted(epochs_done))
    assert epochs(tmp_path) == EPOCHS[:epochs_done]
    fit(recipe, data, tmp_path, FRESH._replace(resume=True))

    assert_same(load_checkpoint(run / CHECKPOINT), load_checkpoint(tmp_path / CHECKPOINT))
    assert epochs(run) == epochs(tmp_path) == EPOCHS


def test_every_epoch_is_logged_and_drawn(run: Path, tmp_path: Path) -> None:
    for line in read_log(run):
        timesteps = 2 if line["phase"] == "second" else 1
        assert {len(each) for each in line["holdout_accuracy"].values()} == {timesteps}
        assert line["holdout_code_bits"] > 0
    assert (run / "curves.png").read_bytes().startswith(PNG)


def test_a_log_of_an_older_run_is_drawn(run: Path, tmp_path: Path) -> None:
    lines = [dict(line) for line in read_log(run)]
    del lines[0]["holdout_code_bits"], lines[1]["loss"]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_a_network_learns_from_events(events_recipe: Recipe, cifar10: Path, tmp_path: Path) -> None:
    data = load_training(events_recipe, cifar10, tmp_path / "cache")
    assert data.training.inputs.shape == (32, 2, 2, 32, 32)

    fit(events_recipe, data, tmp_path, FRESH)

    assert epochs(tmp_path) == EPOCHS
    accuracy = read_log(tmp_path)[2]["holdout_accuracy"]
    assert {name: len(values) for name, values in accuracy.items()} == {"full": 2, "compressed": 2}


def one_phase(recipe: Recipe, train: str, *, fresh_tail: bool = False) -> Recipe:
    phase = replace(recipe.phases[1], train=train, epochs=1, fresh_tail=fresh_tail)
    return replace(recipe, phases=(phase,))


@pytest.mark.parametrize(
    ("train", "learns"),
    [
        ("backbone", {"backbone"}),
        ("cloud", {"encoder", "decoder", "tail"}),
        ("joint", {"backbone", "encoder", "decoder", "tail"}),
    ],
)
def test_a_phase_changes_what_it_trains_and_nothing_else(
    recipe: Recipe, data: TrainingData, run: Path, tmp_path: Path, train: str, learns: set[str]
) -> None:
    fit(one_phase(recipe, train), data, tmp_path, FRESH._replace(backbone=run))
    before = load_checkpoint(run / CHECKPOINT)["network"]
    after = load_checkpoint(tmp_path / CHECKPOINT)["network"]
    changed = {
        name.split(".")[0]
        for name, tensor in after.items()
        if name.startswith("backbone.") and not torch.equal(tensor, before[name])
    }
    # The other parts began anew: only those that learn have seen a batch.
    changed |= {
        name.split(".")[0]
        for name, tensor in after.items()
        if name.endswith("num_batches_tracked") and not name.startswith("backbone.") and tensor > 0
    }
    assert changed == learns


def test_a_tail_that_is_left_alone_is_the_uncompressed_one(
    recipe: Recipe, data: TrainingData, run: Path, tmp_path: Path
) -> None:
    only = one_phase(recipe, "bottleneck", fresh_tail=True)
    fit(only, data, tmp_path, FRESH._replace(backbone=run))
    before = load_checkpoint(run / CHECKPOINT)["network"]
    network = load_checkpoint(tmp_path / CHECKPOINT)["network"]
    tail = {name: value for name, value in network.items() if name.startswith("tail.")}
    assert tail
    counts = {name: tensor for name, tensor in network.items() if name.endswith("batches_tracked")}
    assert all(counts[name] > 0 for name in counts if name.startswith(("encoder.", "decoder.")))
    for name, value in network.items():
        if name.startswith("backbone."):
            assert torch.equal(value, before[name])
    for name, value in tail.items():
        assert torch.equal(value, network[name.replace("tail.", "backbone.", 1)])


def test_a_frozen_network_is_left_alone_by_mean_weights(
    recipe: Recipe, data: TrainingData, run: Path, tmp_path: Path
) -> None:
    first = replace(recipe.phases[1], train="cloud", epochs=1, fresh_tail=True)
    second = replace(first, name="mean", fresh_tail=False, begin_with_mean_of=(1,))
    twice = replace(recipe, phases=(first, second))
    fit(twice, data, tmp_path, FRESH._replace(backbone=run))
    before = load_checkpoint(run / CHECKPOINT)["network"]
    after = load_checkpoint(tmp_path / CHECKPOINT)["network"]
    for name, value in after.items():
        if name.startswith("backbone."):
            assert torch.equal(value, before[name]), name


def test_a_run_begins_with_the_backbone_of_a_bundle(
    recipe: Recipe, recipe_file: Path, data: TrainingData, run: Path, tmp_path: Path
) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    shutil.copyfile(recipe_file, whole / RECIPE)
    bundle = export_run(whole, data, tmp_path / "bundle", ExportOptions(half=False))
    exported, again = (Training(recipe, data, None, torch.device("cpu")) for _ in range(2))
    exported.restore(load_checkpoint(run / CHECKPOINT))
    again.take_backbone(bundle.path)
    frames = next(again.some_frames())

    with torch.no_grad():
        expected, _ = exported.network.backbone.eval()(frames)
        folded, _ = again.network.backbone.eval()(frames)
        torch.testing.assert_close(folded, expected, rtol=1e-3, atol=1e-3)
        # In training mode it goes on where it was: the statistics are those of such batches.
        trained, _ = again.network.backbone.train()(frames)
    assert (trained - expected).abs().mean() < 0.4 * expected.abs().mean()


@pytest.mark.parametrize("change", [{"width": 0.25}, {"classes": 11}])
def test_a_backbone_of_another_form_is_refused(
    recipe: Recipe, data: TrainingData, run: Path, tmp_path: Path, change: dict[str, float]
) -> None:
    other = replace(recipe, network=replace(recipe.network, **change))
    with pytest.raises(ConfigError, match="expected a run or a bundle with such a backbone at"):
        fit(other, data, tmp_path, FRESH._replace(backbone=run))


def test_a_backbone_that_is_not_there_is_refused(
    recipe: Recipe, data: TrainingData, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected a run or a bundle with such a backbone at"):
        fit(recipe, data, tmp_path, FRESH._replace(backbone=tmp_path / "nothing"))


def test_teachers_are_for_cifar10(events_recipe: Recipe, cifar10: Path, tmp_path: Path) -> None:
    data = load_training(events_recipe, cifar10)
    options = FRESH._replace(teacher=tmp_path / "teacher.th")
    with pytest.raises(ConfigError, match="expected no teacher.*got one for cifar10-sim"):
        fit(events_recipe, data, tmp_path, options)


@pytest.mark.parametrize("train", ["bottleneck", "cloud"])
def test_a_backbone_that_stays_as_it_is_must_come_from_somewhere(
    recipe: Recipe, data: TrainingData, tmp_path: Path, train: str
) -> None:
    with pytest.raises(ConfigError, match="expected a backbone to begin with"):
        fit(one_phase(recipe, train, fresh_tail=True), data, tmp_path, FRESH)


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a device that is here, got '{name}'"):
        checked_device(name)


@pytest.mark.gpu
def test_a_gpu_trains(recipe: Recipe, data: TrainingData, tmp_path: Path) -> None:
    fit(recipe, data, tmp_path, FRESH._replace(device="cuda"))
    fit(recipe, data, tmp_path, FRESH._replace(device="cuda", resume=True))
    assert epochs(tmp_path) == EPOCHS
