"""Configuration of a daemon: a TOML file, overridden by flags, checked against a msgspec struct.

Also how a program changes such a file, which is its user's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from shared.errors import ConfigError

Config = TypeVar("Config", bound=msgspec.Struct)
Value = str | bool | int | float
NO_TABLES: Mapping[str, type[msgspec.Struct]] = MappingProxyType({})
_TABLE = re.compile(r"""[ \t]*\[{1,2}[ \t]*[\w"'.-][^\[\],=]*\]{1,2}[ \t]*(#.*)?""")
"""A line that begins a table; a line within an array can look like it."""
_SCALAR = r"""("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s#"'\[{]+)"""


def load(
    kind: type[Config],
    path: Path | None,
    flags: Mapping[str, Any],
    tables: Mapping[str, type[msgspec.Struct]] = NO_TABLES,
) -> Config:
    """Read a configuration.

    Args:
        kind: what to make of it.
        path: a TOML file, or None for the defaults alone.
        flags: values by key that override the file's; None values are left out.
        tables: the keys whose values are tables of their own.

    Raises:
        ConfigError: no readable TOML file, an unknown key or a wrong value; names the key, what
            was expected and what came.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    values = (_read(path) if path is not None else {}) | given
    origin = str(path or "flags")
    _refuse_unknown(values, kind, origin)
    for key, table in tables.items():
        if isinstance(values.get(key), dict):
            _refuse_unknown(values[key], table, f"{origin}: {key}")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), values, origin, given)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML: {error}") from error


def _refuse_unknown(values: Mapping[str, Any], kind: type[msgspec.Struct], origin: str) -> None:
    unknown = sorted(values.keys() - set(kind.__struct_fields__))
    if unknown:
        known = ", ".join(kind.__struct_fields__)
        raise ConfigError(f"{origin}: expected keys of {known}; got {', '.join(unknown)}")


def _explain(
    complaint: str, values: Mapping[str, Any], origin: str, given: Mapping[str, Any]
) -> str:
    """Turn msgspec's "Expected ... - at `$.a.b`" into "origin: a.b: expected ..., got ..."."""
    found = re.fullmatch(r"(?P<what>.*) - at `\$\.(?P<key>[\w.\[\]]+).*`", complaint, re.DOTALL)
    if found is None:
        return f"{origin}: {complaint}"
    came: Any = values
    names = re.findall(r"\w+", found["key"])
    for name in names:
        if isinstance(came, Mapping):
            came = came.get(name)
        elif isinstance(came, list):
            came = came[int(name)]
    what, source = found["what"], "flag" if names[0] in given else origin
    return f"{source}: {found['key']}: {what[0].lower()}{what[1:]}, got {came!r}"


def rewrite(path: Path, values: Mapping[str, Value]) -> None:
    """Set top-level keys of a TOML file, which is made if there is none; all else stays as it is.

    The file is replaced at once, never left half written.

    Raises:
        ConfigError: the file cannot be read or written, is no TOML, or does not have such a key on
            a line of its own.
    """
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a readable text: {error}") from error
    try:
        unfinished.write_text(rewritten(text, values), encoding="utf-8", newline="")
        if path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: expected a place to write: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def rewritten(text: str, values: Mapping[str, Value]) -> str:
    """Return a TOML text with these top-level keys set; everything else as it is.

    Raises:
        ConfigError: no TOML, or a key that is not on a line of its own with a plain value.
    """
    try:
        wanted = tomllib.loads(text) | dict(values)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"expected TOML: {error}") from error
    lines = text.splitlines(keepends=True)
    tables = (n for n, line in enumerate(lines) if _TABLE.fullmatch(line.strip()))
    begin = next(tables, len(lines))
    top, rest = "".join(lines[:begin]), "".join(lines[begin:])
    for key, value in values.items():
        top = _set(top, key, _as_toml(value), "\r\n" if "\r\n" in text else "\n")
    try:
        found = tomllib.loads(top + rest)
    except tomllib.TOMLDecodeError:
        found = {}
    if found != wanted:
        keys = ", ".join(values)
        raise ConfigError(f"expected {keys} each on a line of its own, with a plain value")
    return top + rest


def _set(top: str, key: str, value: str, end: str) -> str:
    """Set a key within the lines before the first table."""
    name = f"(?:{key}|\"{key}\"|'{key}')"
    found = re.search(rf"(?m)^([ \t]*{name}[ \t]*=[ \t]*){_SCALAR}", top)
    if found is not None:
        return top[: found.start(2)] + value + top[found.end(2) :]
    # Below where it is commented out, else below the last line that says something.
    places = [rf"(?m)^#[ \t]*{key}[ \t]*=.*\n?", r"(?m)^[ \t]*[^\s#].*\n?"]
    ends = [[found.end() for found in re.finditer(place, top)] for place in places]
    at = next((found[-1] for found in ends if found), len(top))
    before = top[:at] if not at or top[at - 1] == "\n" else top[:at] + end
    return f"{before}{key} = {value}{end}{top[at:]}"


def _as_toml(value: Value) -> str:
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
