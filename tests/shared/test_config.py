"""Changing a user's TOML file; reading one is tested with the daemons' configurations."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import rewrite, rewritten
from shared.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "edge.toml"
FILE = """\
# The user's own words.
bundle = "old"   # where it lies
alpha = [
    0.5, # a remark
    0.6,
]

# cloud = "127.0.0.1:1"
# A word on the source.
[source]
kind = "folder"
bundle = "not this one"
"""


def test_a_value_changes_and_everything_around_it_stays() -> None:
    assert rewritten(FILE, {"bundle": 'new "one"'}) == FILE.replace('"old"', r'"new \"one\""')


def test_a_new_key_goes_where_it_is_commented_out_or_below_the_last_one() -> None:
    new = rewritten(FILE, {"cloud": "a:2", "window": 3, "quick": True})
    expected = FILE.replace("]\n\n#", "]\nwindow = 3\nquick = true\n\n#", 1)
    expected = expected.replace('127.0.0.1:1"\n', '127.0.0.1:1"\ncloud = "a:2"\n')
    assert tomllib.loads(new) == tomllib.loads(expected)
    assert [line for line in new.splitlines() if line in FILE.splitlines()] == FILE.splitlines()
    assert new.index('# cloud = "127.0.0.1:1"\ncloud = "a:2"\n') < new.index("[source]")


def test_an_empty_text_gets_the_keys() -> None:
    assert rewritten("", {"a": 1, "b": 0.5}) == "a = 1\nb = 0.5\n"
    assert rewritten("a = 2", {"b": "x"}) == 'a = 2\nb = "x"\n'


def test_line_ends_stay() -> None:
    assert rewritten("a = 1\r\nb = 2\r\n", {"a": 3, "c": 4}) == "a = 3\r\nb = 2\r\nc = 4\r\n"


@pytest.mark.parametrize(
    "text",
    [
        'bundle = """\nold\n"""\n',
        "bundle = [1]\n",
        "x = '''\nbundle = 1\n'''\n",
        "bundle.part = 1\n",
        "[[source]]\nbundle = 1\n[bundle]\n",
    ],
)
def test_what_cannot_be_changed_safely_is_refused(text: str) -> None:
    tomllib.loads(text)
    try:
        changed = rewritten(text, {"bundle": "new"})
    except ConfigError as error:
        assert "line of its own" in str(error)
    else:
        assert tomllib.loads(changed) == tomllib.loads(text) | {"bundle": "new"}


def test_a_text_that_is_no_toml_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected TOML"):
        rewritten("a = ", {"a": 1})


SCALARS = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
)
KEYS = st.sampled_from(["bundle", "cloud", "window", "quick"])


@given(st.dictionaries(KEYS, SCALARS), st.dictionaries(KEYS, SCALARS, min_size=1))
def test_all_plain_values_survive(before: dict[str, Any], values: dict[str, Any]) -> None:
    text = rewritten("# first\n[table]\nkey = 1\n", before) if before else "[table]\nkey = 1\n"
    assert tomllib.loads(rewritten(text, values)) == {"table": {"key": 1}} | before | values


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "edge.toml", tmp_path / "link.toml"
    path.write_bytes(EXAMPLE.read_bytes())
    path.chmod(0o640)
    link.symlink_to(path)
    rewrite(link, {"cloud": "there:1", "objective": "bytes", "deadline_target_seconds": 0.2})
    changed = tomllib.loads(path.read_text())
    assert changed == tomllib.loads(EXAMPLE.read_text()) | {
        "cloud": "there:1",
        "objective": "bytes",
        "deadline_target_seconds": 0.2,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["edge.toml", "link.toml"]
    rewrite(tmp_path / "new.toml", {"bundle": "b"})
    assert (tmp_path / "new.toml").read_text() == 'bundle = "b"\n'


def test_a_file_that_cannot_be_changed_is_told_and_left(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text("bundle = [")
    with pytest.raises(ConfigError, match=r"edge.toml: expected TOML"):
        rewrite(path, {"bundle": "b"})
    assert path.read_text() == "bundle = ["
    with pytest.raises(ConfigError, match="expected a readable text"):
        rewrite(tmp_path, {"bundle": "b"})
    with pytest.raises(ConfigError, match="expected a place to write"):
        rewrite(tmp_path / "no" / "edge.toml", {"bundle": "b"})
    assert [file.name for file in tmp_path.iterdir()] == ["edge.toml"]
