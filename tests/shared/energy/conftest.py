from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Plant = Callable[[Mapping[str, object]], Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Write files below a root, as the system would show them, and return the root."""

    def write(files: Mapping[str, object]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return write
