from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.watched import Watched, read_file


def number_in(path: Path) -> int:
    text = read_file(path, "a number").decode()
    if not text.isdigit():
        raise ConfigError(f"{path}: expected a number")
    return int(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("1")
    return path


@pytest.fixture
def watched(path: Path) -> Watched[int]:
    return Watched([path], lambda: number_in(path))


def replace(path: Path, text: str) -> None:
    other = path.with_name("other")
    other.write_text(text)
    other.replace(path)


def test_a_file_written_or_replaced_is_read_again(path: Path, watched: Watched[int]) -> None:
    assert watched.current() == 1
    path.write_text("22")
    assert watched.current() == 22
    replace(path, "33")
    assert watched.current() == 33


def test_what_did_not_change_is_not_read_again(path: Path) -> None:
    reads = []
    watched = Watched([path], lambda: reads.append(1))
    watched.current()
    watched.current()
    assert len(reads) == 1


def test_a_link_led_elsewhere_is_read_again(path: Path, tmp_path: Path) -> None:
    """As Kubernetes replaces secrets."""
    link, other = tmp_path / "link", tmp_path / "other"
    other.write_text("2")
    link.symlink_to(path)
    watched = Watched([link], lambda: number_in(link))
    new = tmp_path / "new"
    new.symlink_to(other)
    os.replace(new, link)
    assert watched.current() == 2


def test_what_was_good_stays_while_the_file_is_not(
    path: Path, watched: Watched[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path.write_text("no number")
    assert [watched.current() for _ in range(3)] == [1, 1, 1]
    path.unlink()
    assert watched.current() == 1
    path.write_text("7")
    assert watched.current() == 7
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2  # one for each change
    assert "expected a number" in caplog.text


def test_a_file_that_cannot_be_used_at_the_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(ConfigError, match="none: expected a number: No such file"):
        Watched([path], lambda: number_in(path))
