"""Configuration of a daemon: a TOML file, overridden by flags, checked against a msgspec struct."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from shared.errors import ConfigError

Config = TypeVar("Config", bound=msgspec.Struct)
NO_TABLES: Mapping[str, type[msgspec.Struct]] = MappingProxyType({})


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
    found = re.fullmatch(r"(?P<what>.*) - at `\$\.(?P<key>[\w.]+).*`", complaint, re.DOTALL)
    if found is None:
        return f"{origin}: {complaint}"
    came: Any = values
    names = found["key"].split(".")
    for name in names:
        came = came.get(name) if isinstance(came, Mapping) else came
    what, source = found["what"], "flag" if names[0] in given else origin
    return f"{source}: {found['key']}: {what[0].lower()}{what[1:]}, got {came!r}"
