"""Inputs that the daemon reads by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from edge_agent.source_config import (
    AnySource,
    ArraySource,
    CameraSource,
    EventsSource,
    EventStreamSource,
    FolderSource,
    HttpSource,
    VideoSource,
)
from edge_agent.sources.array import read_array
from edge_agent.sources.base import Item, Surroundings
from edge_agent.sources.event_files import read_event_files
from edge_agent.sources.event_stream import EventStream
from edge_agent.sources.folder import read_folder, watch_folder
from edge_agent.sources.http import read_http
from edge_agent.sources.results import Sink, open_sink
from edge_agent.sources.run import Classifier, SourceTask, on_a_thread, pass_over
from edge_agent.sources.video import read_camera, read_video
from shared.metrics import EdgeMetrics
from shared.model.bundle import Manifest


class Sources:
    """All sources of a daemon.

    Args:
        configs: of the sources.
        current: tells the network that sees the inputs now.
        metrics: told of everything.

    Raises:
        ConfigError: a source cannot be read, or its results cannot be written.
    """

    def __init__(
        self, configs: tuple[AnySource, ...], current: Callable[[], Manifest], metrics: EdgeMetrics
    ) -> None:
        self._around = Surroundings(current=current, stop=Event())
        self._metrics = metrics
        self._sinks: list[Sink] = []
        self._streams: list[EventStream] = []
        self._prepared = [self._prepare(config) for config in configs]
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, loop: Classifier) -> None:
        """Begin to read."""
        self._tasks = {asyncio.create_task(run(loop)) for run in self._prepared}

    async def close(self) -> None:
        """Stop to read; what is under way is told first. The loop must have been closed."""
        self._around.stop.set()
        for stream in self._streams:
            stream.end()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for sink in self._sinks:
            await sink.close()

    def _prepare(self, config: AnySource) -> Callable[[Classifier], Any]:
        """Open a source and the place for its results; return what runs it."""
        stream = None
        if isinstance(config, EventStreamSource):
            stream = EventStream(config, self._around, self._metrics)
            self._streams.append(stream)
            items = stream.items()
        else:
            items = on_a_thread(open_source(config, self._around), config.label)
        sink = open_sink(config, partial(self._metrics.source_result, config.label))
        self._sinks.append(sink)
        ended = pass_over if stream is None else stream.answered

        async def run(loop: Classifier) -> None:
            async with contextlib.aclosing(items):
                await SourceTask(config, loop, sink, self._metrics, ended).run(items)

        return run


def open_source(config: AnySource, around: Surroundings) -> Iterator[Item]:
    """Return the inputs of a source that blocks; ConfigError if it cannot be read."""
    match config:
        case FolderSource(watch=True):
            return watch_folder(Path(config.path), config.settle_seconds, around.stop)
        case FolderSource():
            return read_folder(Path(config.path))
        case ArraySource():
            return read_array(Path(config.path))
        case VideoSource():
            return read_video(config, around)
        case CameraSource():
            return read_camera(config, around)
        case HttpSource():
            return read_http(config, around)
        case EventsSource():
            return read_event_files(config, around)
        case _:
            raise ValueError(f"expected a source that blocks, got {config.label}")
