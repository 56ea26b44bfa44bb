"""From a recipe to an evaluated bundle, through the command lines a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from shared.errors import BundleError
from shared.model.bundle import Bundle
from training import evaluate, export, fit
from training.card import card, read_history
from training.recipe import load_recipe

EPOCHS = [("first", 0), ("first", 1), ("second", 0), ("second", 1), ("third", 0)]


class InterruptedRunError(Exception):
    """Stands for a machine that goes away."""


def train(recipe: Path, data: Path, out: Path, *flags: str) -> dict[str, Any]:
    arguments = [str(recipe), "--data", str(data), "--out", str(out), "--no-compile", *flags]
    assert fit.main(arguments) == 0
    checkpoint: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return checkpoint


@pytest.fixture(scope="module")
def run(recipe_file: Path, cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe_file, cifar10, folder)
    return folder


@pytest.mark.parametrize("epochs_done", [1, 2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(
    run: Path,
    recipe_file: Path,
    cifar10: Path,
    tmp_path: Path,
    epochs_done: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure, calls = fit.measured, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > epochs_done:
            raise InterruptedRunError
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "measured", interrupted)
        with pytest.raises(InterruptedRunError):
            train(recipe_file, cifar10, tmp_path)
    resumed = train(recipe_file, cifar10, tmp_path, "--resume")

    whole = torch.load(run / "checkpoint.pt", weights_only=True)
    for name, tensor in whole["network"].items():
        torch.testing.assert_close(resumed["network"][name], tensor, rtol=0, atol=0, msg=name)
    epochs = [
        [(line["phase"], line["epoch"]) for line in map(json.loads, log.splitlines())]
        for log in ((run / "log.jsonl").read_text(), (tmp_path / "log.jsonl").read_text())
    ]
    assert epochs[0] == epochs[1] == EPOCHS


def test_a_run_is_exported_evaluated_and_described(
    run: Path, cifar10: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "bundle", tmp_path / "evaluation.json"
    arguments = [str(run), "--data", str(cifar10), "--out", str(out), "--version", "7"]

    assert export.main(arguments) == 0
    assert evaluate.main([str(out), "--data", str(cifar10), "--out", str(report)]) == 0

    assert sorted(tmp_path.iterdir()) == [out, report]
    bundle = Bundle(out)
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.version == "7"
    assert bundle.spec == load_recipe(run / "recipe.toml").network
    assert bundle.manifest.labels[3] == "cat"
    assert bundle.calibration().images == 7
    evaluation = msgspec.json.decode(report.read_bytes(), type=evaluate.Evaluation)
    assert evaluation.images == 8
    assert evaluation.digest == bundle.digest

    history = read_history(run, load_recipe(run / "recipe.toml"))
    plain = card(bundle.manifest, bundle.calibration(), history)
    assert bundle.read("CARD.md").decode() == plain
    assert "| second | joint | 2 | 2 | full " in plain
    assert "## Test set" in card(bundle.manifest, bundle.calibration(), history, evaluation)
    of_others = msgspec.structs.replace(evaluation, weights_sha256="0" * 64)
    with pytest.raises(BundleError, match="expected an evaluation of weights"):
        card(bundle.manifest, bundle.calibration(), history, of_others)


def test_a_wrong_recipe_key_is_named(recipe_file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("surprise = 1\n" + recipe_file.read_text())

    with pytest.raises(msgspec.ValidationError, match="surprise"):
        load_recipe(wrong)
