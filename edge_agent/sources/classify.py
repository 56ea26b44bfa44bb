"""Classify what a source yields and tell the results as JSON lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TextIO

import msgspec

from edge_agent.answers import Answer, ClosingError
from edge_agent.loop import EdgeLoop
from edge_agent.sources.base import Item
from edge_agent.switch import Switch
from shared.errors import ConfigError, InputError, NeucodexError
from shared.metrics import DropReason, EdgeMetrics

log = logging.getLogger(__name__)

AHEAD = 4
"""Inputs under way at once: enough for the next ones to be ready when the link is."""

Outcome = asyncio.Future[Answer] | NeucodexError


async def classify_items(
    loops: Switch | EdgeLoop[Any], items: Iterator[Item], results: TextIO, metrics: EdgeMetrics
) -> None:
    """Classify every item, in order; one that fails is told as such and the next follows.

    Returns at the end of the source, or when the daemon closes.
    """
    pending: deque[tuple[str, Outcome]] = deque()
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        if len(pending) == AHEAD:
            await _tell(results, *pending.popleft())
        outcome = await _begin(loops, item, metrics)
        pending.append((item.name, outcome))
        if isinstance(outcome, ClosingError):
            break
    while pending:
        await _tell(results, *pending.popleft())
    log.info("the source has ended")


async def _begin(loops: Switch | EdgeLoop[Any], item: Item, metrics: EdgeMetrics) -> Outcome:
    if isinstance(item.data, InputError):
        metrics.dropped(DropReason.INVALID)
        return item.data
    try:
        return await loops.put(item.data)
    except NeucodexError as error:
        return error


async def _tell(results: TextIO, name: str, outcome: Outcome) -> None:
    try:
        if isinstance(outcome, NeucodexError):
            raise outcome
        facts = asdict(await outcome)
    except NeucodexError as error:
        log.warning("%s: %s", name, error)
        facts = {"error": str(error)}
    results.write(msgspec.json.encode({"input": name} | facts).decode() + "\n")
    results.flush()


@contextlib.contextmanager
def open_results(path: str) -> Iterator[TextIO]:
    """Open the place for results: a file, which is added to, or ``-`` for standard output.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path == "-":
        yield sys.stdout
        return
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"source.results: {path}: {error.strerror}") from error
    with file:
        yield file
