"""The configuration: defaults, the example file, and what is refused."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_server.config import CloudConfig, load
from shared.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "cloud.toml"


def test_the_example_shows_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text()
    shown, defaults = tomllib.loads(text), msgspec.to_builtins(CloudConfig())
    present = {key: value for key, value in defaults.items() if value is not None}
    assert shown == {key: list(v) if isinstance(v, tuple) else v for key, v in present.items()}
    everything = tomllib.loads(re.sub(r"(?m)^# (?=[a-z_]+ = )", "", text))
    assert everything.keys() == defaults.keys()


def test_the_example_comments_every_key() -> None:
    lines = EXAMPLE.read_text().splitlines()
    for index, line in enumerate(lines):
        if re.match(r"(# )?\w+ =", line):
            assert lines[index - 1].startswith("#"), line


def test_flags_override_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text('slots = 5\nthreads = 2\nbundles = ["a", "b"]\n')
    config = load(path, {"slots": 7, "threads": None})
    assert config == CloudConfig(slots=7, threads=2, bundles=("a", "b"))


def test_whole_numbers_are_seconds_too() -> None:
    assert load(None, {"packet_idle_seconds": 3}).packet_idle_seconds == 3.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("slots = 0", r"slots: expected `int` >= 1, got 0"),
        ('slots = "many"', r"slots: expected `int`, got `str`, got 'many'"),
        ("max_samples_in_flight = 4", r"max_samples_in_flight: expected `int` <= 3, got 4"),
        ("packet_idle_seconds = 0", r"packet_idle_seconds: expected `float` > 0\.0, got 0"),
        ("max_wait_seconds = nan", r"max_wait_seconds: expected .*nan"),
        ("sample_deadline_seconds = inf", r"sample_deadline_seconds: expected .*inf"),
        ('engine = "tpu"', r"engine: .*'tpu'"),
        ('bundles = ["a", 3]', r"bundles\[1\]: expected `str`, got `int`, got 3"),
        ("codecs = []", r"codecs: expected .*, got \[\]"),
        ('codecs = ["gzip"]', r"codecs: expected names of ctx, ctx-max, raw, zstd, got \['gzip'\]"),
        ('device = "cuda"', r"device: expected 'cpu' with the onnxruntime engine, got 'cuda'"),
        ("slotz = 3", r"expected keys of .*listen, .*; got slotz"),
        ("slots = = 3", r"expected TOML: "),
    ],
)
def test_a_wrong_file_is_refused_with_key_expected_and_came(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(path, {})
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"slots": 0}, r"flag: slots: expected `int` >= 1, got 0"),
        ({"log_level": "loud"}, r"flag: log_level: .*'loud'"),
    ],
)
def test_a_wrong_flag_is_refused(flags: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(None, flags)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing.toml: expected a readable file"):
        load(tmp_path / "nothing.toml", {})
