"""From a recipe to an evaluated bundle, through the command a user types."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from shared.errors import BundleError, ConfigError
from shared.model.bundle import Bundle
from training.card import card, read_history
from training.cli import find_bundle, main, recipe_of
from training.evaluate import load_evaluation
from training.fit import FitOptions
from training.fit import fit as run_recipe
from training.recipe import Recipe, load_recipe
from training.recipe_data import load_training

# Exporting takes a while where both cores are busy.
pytestmark = pytest.mark.timeout(600)

PNG = b"\x89PNG\r\n"


def command(*words: str | Path) -> int:
    return main([str(word) for word in words])


def fit(recipe: Path, data: Path, out: Path, *flags: str) -> int:
    return command("fit", recipe, "--data", data, "--out", out, "--no-compile", *flags)


@pytest.fixture(scope="module")
def run(recipe_file: Path, cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run on CIFAR-10."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert fit(recipe_file, cifar10, folder) == 0
    assert command("evaluate", folder, "--data", cifar10) == 0
    return folder


def test_a_run_folder_holds_everything(run: Path, recipe_file: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        *("recipe.toml", "log.jsonl", "curves.png", "bundle", "evaluation.json"),
        *("checkpoint.pt", "phase0.pt", "phase1.pt", "phase2.pt"),
    }
    assert (run / "recipe.toml").read_bytes() == recipe_file.read_bytes()
    assert (run / "curves.png").read_bytes().startswith(PNG)


def test_the_bundle_is_that_of_the_recipe(run: Path) -> None:
    bundle, evaluation = Bundle(run / "bundle"), load_evaluation(run / "evaluation.json")

    assert (bundle.manifest.name, bundle.manifest.version) == ("tiny", "1")
    assert bundle.spec == load_recipe(run / "recipe.toml").network
    assert bundle.manifest.labels[3] == "cat"
    assert bundle.calibration().images == 7
    assert (evaluation.data, evaluation.images) == ("cifar10", 8)
    assert evaluation.digest == bundle.digest


def test_the_card_tells_history_and_evaluation(run: Path, cifar10: Path, tmp_path: Path) -> None:
    report, out = run / "evaluation.json", tmp_path / "bundle"
    flags = ("--data", cifar10, "--out", out, "--version", "7", "--evaluation", report)
    assert command("export", run, *flags) == 0

    bundle, plain = Bundle(out), Bundle(run / "bundle")
    assert bundle.manifest.version == "7"
    text = bundle.read("CARD.md").decode()
    assert "| second | joint | 2 | 2 | full " in text
    assert "## Test set" in text
    assert "8 samples of `cifar10`" in text
    assert "## Test set" not in plain.read("CARD.md").decode()
    history = read_history(run, load_recipe(run / "recipe.toml"))
    evaluation = load_evaluation(report)
    of_others = msgspec.structs.replace(evaluation, weights_sha256="0" * 64)
    with pytest.raises(BundleError, match="expected an evaluation of weights"):
        card(bundle.manifest, bundle.calibration(), history, of_others)


def test_a_bundle_recalibrated_on_the_same_samples_is_the_same(
    run: Path, cifar10: Path, tmp_path: Path
) -> None:
    report, tested = run / "evaluation.json", tmp_path / "tested"
    data, recipe = ("--data", cifar10), ("--recipe", run / "recipe.toml")
    assert command("export", run, *data, "--out", tested, "--evaluation", report) == 0
    assert "## Test set" in Bundle(tested).read("CARD.md").decode()

    for version in ("1", "2"):
        flags = ("--out", tmp_path / version, "--version", version)
        assert command("recalibrate", tested, *data, *recipe, *flags) == 0

    # The test was of the old alphas; nothing else is lost.
    assert Bundle(tmp_path / "1").digest == Bundle(run / "bundle").digest
    assert Bundle(tmp_path / "2").manifest.version == "2"
    assert Bundle(tmp_path / "2").read("CARD.md").decode().startswith("# tiny 2\n")
    assert command("recalibrate", run, *data, "--out", cifar10, "--version", "3") == 2
    assert cifar10.exists()


def test_a_run_is_not_begun_again_by_accident(
    run: Path, recipe_file: Path, cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(recipe_file, cifar10, run) == 2
    assert "--resume goes on with it" in capsys.readouterr().err


def test_alphas_for_any_budget(
    run: Path, cifar10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("calibrate", run, "--data", cifar10, "--loss-budget", "0.5", "99.9") == 0

    printed = capsys.readouterr().out
    assert "On 7 held-out samples" in printed
    # Seven samples prove nothing of half a point, and nearly anything of 99.9.
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    found = [[cell.strip() for cell in row[:2]] for row in rows]
    assert found == [["0.5", "1"]] * 2 + [["99.9", "0"]] * 2


def test_runs_evaluations_and_bundles_are_compared(
    run: Path, cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, alone = tmp_path / "report", tmp_path / "alone"
    shutil.copytree(run / "bundle", alone)
    recipe = ("--recipe", run / "recipe.toml")

    paths = (run, run / "evaluation.json", alone)
    assert command("report", *paths, "--data", cifar10, *recipe, "--out", out) == 0

    assert (out / "trade-off.png").read_bytes().startswith(PNG)
    assert (out / "trade-off.md").read_text().count("| edge-only-full |") == 3
    assert capsys.readouterr().out.count("edge-only-full  ") == 3
    # What was evaluated is kept, so that the next report needs no data.
    (kept,) = out.glob("*.json")
    assert load_evaluation(kept) == load_evaluation(run / "evaluation.json")
    assert command("report", alone, "--out", out) == 0
    assert command("report", alone, "--out", tmp_path / "elsewhere") == 2
    assert "expected an evaluation of" in capsys.readouterr().err


def test_an_evaluation_of_older_weights_is_not_believed(
    run: Path, cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "bundle", tmp_path / "bundle")
    shutil.copyfile(run / "recipe.toml", tmp_path / "recipe.toml")
    content = (run / "evaluation.json").read_text()
    weights = load_evaluation(run / "evaluation.json").weights_sha256
    (tmp_path / "evaluation.json").write_text(content.replace(weights, "0" * 64))

    assert command("report", tmp_path, "--out", tmp_path / "report") == 2
    assert "expected an evaluation of" in capsys.readouterr().err


def test_a_run_on_events_is_resumed_evaluated_and_reported(
    events_recipe: Recipe,
    events_recipe_file: Path,
    cifar10: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, out = tmp_path / "run", tmp_path / "report"
    run.mkdir()
    data = load_training(events_recipe, cifar10, run / "cache")
    run_recipe(events_recipe, data, run, FitOptions(compile_loss=False))
    log = (run / "log.jsonl").read_text()

    assert fit(events_recipe_file, cifar10, run, "--resume", "--threads", "1") == 0
    assert command("evaluate", run / "bundle", "--data", cifar10) == 0
    evaluated = capsys.readouterr().out
    assert command("report", run, "--data", cifar10, "--out", out) == 0

    assert (run / "log.jsonl").read_text() == log
    assert '"data": "cifar10-sim"' in evaluated
    assert "**tiny-events, cifar10-sim, 8 samples**" in (out / "trade-off.md").read_text()
    # Training and test frames are simulated once each and kept.
    assert len(list((run / "cache").iterdir())) == 2
    bundle = Bundle(run / "bundle")
    assert bundle.manifest.preprocessing == data.preprocessing
    assert "part of `cifar10-sim` but" in bundle.read("CARD.md").decode()


def test_the_recipe_of_a_bundle(
    run: Path, recipe_file: Path, events_recipe_file: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run / "bundle", alone)
    found = find_bundle(alone)

    assert recipe_of(find_bundle(run), None) == load_recipe(recipe_file)
    assert recipe_of(found, recipe_file) == load_recipe(recipe_file)
    with pytest.raises(ConfigError, match="expected --recipe, because"):
        recipe_of(found, None)
    with pytest.raises(ConfigError, match="got that of another network"):
        recipe_of(found, events_recipe_file)
    with pytest.raises(BundleError, match="expected a bundle or the folder of a finished run"):
        find_bundle(tmp_path)


def test_the_shipped_bundle_has_a_shipped_recipe() -> None:
    zoo = Path(__file__).resolve().parents[2] / "shared" / "zoo"
    for folder in zoo.iterdir():
        assert recipe_of(find_bundle(folder), None).name == folder.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "none.toml", "--data", ".", "--out", "run"), "expected a recipe at none.toml"),
        (("evaluate", "none", "--data", "."), "expected a bundle or the folder of a finished run"),
        (("export", "none", "--data", "."), "expected a recipe at none/recipe.toml"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"neucodex-train: {message}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [("calibrate", "b", "--data", ".", "--loss-budget", "0"), ("fit", "r", "--threads", "0"), ()],
)
def test_bad_flags_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
