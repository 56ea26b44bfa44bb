"""Tells somebody who installed a part of the package which extra brings the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

ROOMS = ("protos", "shared", "edge_agent", "cloud_server", "training", "benchmarks")
EXTRAS = {"torch": "torch", "safetensors": "torch"}
"""Extra that brings a module, where it is not that of the whole program."""


@contextmanager
def naming_extra(program: str, extra: str) -> Iterator[None]:
    """End the program with one line, exit code 2, where a module of others is not installed.

    Args:
        program: its name.
        extra: brings what it needs.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module in ROOMS:
            raise
        wanted = extra if extra == "train" else EXTRAS.get(module, extra)
        print(
            f"{program}: expected the Python module {module} "
            f"(pip install 'neucodex[{wanted}]'), it is not there",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
