"""Inputs that the daemon reads by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_agent.config import SourceConfig
from edge_agent.sources.array import read_array
from edge_agent.sources.base import Item
from edge_agent.sources.folder import read_folder


def open_source(config: SourceConfig) -> Iterator[Item]:
    """Return the inputs of a configured source; ConfigError if it cannot be read."""
    read = read_folder if config.kind == "folder" else read_array
    return read(Path(config.path))
