"""Secret tokens: making them, the file that knows them by their hashes, checking one.

A token is 256 random bits, so that a plain SHA-256 hides it as well as a slow hash would. The file
has a line for each, ``NAME sha256:HEX``; ``#`` begins a comment. A name may have several: the old
one and the new one while they are exchanged. No message shows a line of the file, which could hold
a token that was put there by mistake.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import NamedTuple

from shared.errors import ConfigError
from shared.watched import Watched, read_file

PREFIX = "neucodex_"
"""Begins every token, so that people and scanners know one when they see it."""
_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+sha256:(?P<digest>[0-9a-f]{64})")
LINE_FORM = "NAME sha256: and 64 hexadecimal digits"


class Entry(NamedTuple):
    """One known token."""

    name: str
    """Of its bearer."""
    digest: bytes
    """SHA-256 of the token."""


def make_token() -> str:
    """Return a new token."""
    return PREFIX + secrets.token_urlsafe(32)


def token_line(name: str, token: str) -> str:
    """Return the line that makes a token known; ConfigError where the name is not of the form."""
    line = f"{name} sha256:{_digest(token).hex()}"
    if not _LINE.fullmatch(line):
        raise ConfigError(
            "expected a name of at most 64 letters, digits, '.', '_' and '-', not beginning with a "
            f"sign, got {name!r}"
        )
    return line


def is_token(text: str) -> bool:
    """Say whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def read_token(path: Path) -> str:
    """Return the token in a file of its bearer's.

    Raises:
        ConfigError: no readable file, or something else is in it.
    """
    text = read_file(path, "a file with a token").decode("ascii", errors="replace").strip()
    if not is_token(text):
        raise ConfigError(
            f"{path}: expected one token, as neucodex-cloud token makes it, got {len(text)} "
            "other characters"
        )
    return text


def watch_tokens(path: Path) -> Watched[tuple[Entry, ...]]:
    """Return the tokens that a file makes known, now and whenever it changes.

    Raises:
        ConfigError: no readable file, or a line of another form.
    """
    return Watched([path], lambda: read_entries(path))


def read_entries(path: Path) -> tuple[Entry, ...]:
    """Return the tokens that a file makes known; ConfigError as :func:`watch_tokens`."""
    text = read_file(path, "a file with hashed tokens").decode("utf-8", errors="replace")
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        found = _LINE.fullmatch(content)
        if found is not None:
            entries.append(Entry(found["name"], bytes.fromhex(found["digest"])))
        elif content:
            raise ConfigError(
                f"{path}: line {number}: expected {LINE_FORM}, got {len(content)} other characters"
            )
    return tuple(entries)


def write_token(path: Path, token: str) -> None:
    """Write a token into a new file that its user alone can read; ConfigError if it cannot be."""
    _add(path, token, os.O_EXCL)


def add_line(path: Path, line: str) -> None:
    """Add a line to a file of tokens, which is made if there is none.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = read_file(path, "a file of tokens") if path.exists() else b""
    is_whole = not text or text.endswith(b"\n")
    _add(path, line if is_whole else f"\n{line}", os.O_APPEND)


def _add(path: Path, line: str, how: int) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600), "w") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise ConfigError(f"{path}: expected a file to write: {error.strerror}") from error


def bearer(token: str, entries: tuple[Entry, ...], name: str | None = None) -> Entry | None:
    """Return the entry of a token, or None; takes as long whichever it is.

    Args:
        token: what somebody showed.
        entries: the known ones.
        name: whose token it must be; None for anybody's.
    """
    digest, found = _digest(token), None
    for entry in entries:
        is_it = hmac.compare_digest(entry.digest, digest)
        if is_it and name in (None, entry.name):
            found = entry
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", errors="surrogatepass")).digest()
