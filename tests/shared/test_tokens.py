from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.tokens import (
    PREFIX,
    bearer,
    is_token,
    make_token,
    read_entries,
    read_token,
    token_line,
    watch_tokens,
)


def test_tokens_differ_and_have_256_random_bits() -> None:
    tokens = {make_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(is_token(token) and len(token) == len(PREFIX) + 43 for token in tokens)


def test_a_line_holds_the_sha_256_alone() -> None:
    token = make_token()
    assert (
        token_line("edge-1", token) == f"edge-1 sha256:{hashlib.sha256(token.encode()).hexdigest()}"
    )


@pytest.mark.parametrize("name", ["", "two words", "#", "-x", "a" * 65, "näme", "a\nb"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a name of at most 64"):
        token_line(name, make_token())


def test_a_bearer_is_known_by_any_of_its_tokens(tmp_path: Path) -> None:
    old, new, other = make_token(), make_token(), make_token()
    path = tmp_path / "tokens"
    lines = ["# edges", "", token_line("one", old), token_line("one", new) + "  # from May on"]
    path.write_text("\n".join([*lines, token_line("two", other), ""]))
    entries = read_entries(path)
    names = [found.name if found else None for found in (bearer(t, entries) for t in (old, new))]
    assert names == ["one", "one"]
    found = bearer(other, entries)
    assert found is not None
    assert found.name == "two"
    assert bearer(make_token(), entries) is None
    assert bearer(other, entries, name="one") is None
    assert bearer("", entries) is None


def test_the_file_is_followed(tmp_path: Path) -> None:
    path, token = tmp_path / "tokens", make_token()
    path.write_text("")
    tokens = watch_tokens(path)
    assert bearer(token, tokens.current()) is None
    path.write_text(token_line("one", token))
    assert bearer(token, tokens.current()) is not None


def test_no_message_shows_what_is_in_the_files(tmp_path: Path) -> None:
    path, token = tmp_path / "tokens", make_token()
    path.write_text(f"# known\nedge-1 {token}\n")
    with pytest.raises(ConfigError, match="line 2: expected NAME sha256: and 64") as caught:
        read_entries(path)
    assert token not in str(caught.value)
    path.write_text(f"{token} {token}")
    with pytest.raises(ConfigError, match="expected one token") as caught:
        read_token(path)
    assert token not in str(caught.value)


def test_a_token_file_may_end_with_a_new_line(tmp_path: Path) -> None:
    path, token = tmp_path / "token", make_token()
    path.write_text(f"{token}\n")
    assert read_token(path) == token


@given(content=st.binary(max_size=300))
def test_any_bytes_are_entries_or_a_config_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-tokens"
    path.write_bytes(content)
    try:
        entries = read_entries(path)
    except ConfigError as error:
        assert "any-tokens: line" in str(error)
    else:
        assert all(len(entry.digest) == 32 for entry in entries)


@given(token=st.text())
def test_any_text_may_be_shown(token: str) -> None:
    assert bearer(token, ()) is None
