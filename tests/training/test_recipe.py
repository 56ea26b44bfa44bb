from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.events.framing import ByTime
from training.data.sets import Options
from training.recipe import DataChoice, Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "training" / "recipes"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_read_and_named_after_their_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_a_recipe_that_names_no_data_is_for_cifar10(recipe: Recipe) -> None:
    assert recipe.data == DataChoice(name="cifar10")
    assert (recipe.shift, recipe.mirrors) == (4, True)


def test_a_recipe_names_a_data_set_and_its_options(events_recipe: Recipe) -> None:
    assert events_recipe.data.name == "cifar10-sim"
    assert events_recipe.data.options == Options(framing=ByTime(timesteps=2))
    assert not events_recipe.mirrors


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("holdout = 8", "surprise = 1", "unknown field `surprise`"),
        ('name = "cifar10-sim"', 'name = "mnist"', "expected a data set of cifar10, .*'mnist'"),
        (
            "[data.options]",
            "[data.options]\nsize = 8",
            "expected options of cifar10-sim .*got size",
        ),
        ("batch_size = 8", "shift = 32", "expected a shift below 32 pixels, got 32"),
        (
            "timesteps = 2\nlearn",
            "timesteps = 3\nlearn",
            "at most the network's 2 .*'second', got 3",
        ),
        (
            'train = "backbone"',
            'train = "bottleneck"',
            "expected fresh_tail of phase 'first', whose tail is random",
        ),
        ("holdout = 8", "holdout = ", "Invalid value"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(
    events_recipe_file: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = events_recipe_file.read_text()
    assert old in text
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace(old, new))

    with pytest.raises(ConfigError, match=f"(?s)wrong.toml: .*{message}"):
        load_recipe(wrong)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a recipe at .*none.toml: No such file"):
        load_recipe(tmp_path / "none.toml")


def test_the_guides_example_is_a_recipe(tmp_path: Path) -> None:
    (example,) = re.findall("```toml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    phase = """[[phases]]
    name = "one"
    train = "joint"
    epochs = 1
    timesteps = 4
    learning_rate = 0.1
    """
    (tmp_path / "example.toml").write_text(f'name = "example"\n{example}{phase}')
    recipe = load_recipe(tmp_path / "example.toml")
    assert recipe.data.name == "n-mnist"
    assert recipe.network.code_shape == (8, 4, 4)
