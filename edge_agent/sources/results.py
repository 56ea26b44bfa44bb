"""Where the results of a source go: a text file, an MQTT broker, or a URL that takes POSTs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import random
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, Protocol, TextIO
from urllib.parse import urlsplit

from edge_agent.source_config import HTTP, MQTT, Source
from edge_agent.sources.http import read_secret, trusting
from shared.errors import ConfigError
from shared.metrics import ResultOutcome

log = logging.getLogger(__name__)

Told = Callable[[ResultOutcome], None]
"""Takes in what became of a result."""
WAITING = 1000
"""Most results that wait for a broker or a server; then the oldest is dropped."""
CLOSE_SECONDS = 3.0
"""Time for the last results to leave."""
POST_SECONDS = 5.0
ATTEMPTS = 5
"""A result is posted so often, at 0.5 s, 1 s, 2 s ... after the last failure, then dropped."""
FIRST_PAUSE_SECONDS = 0.5
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that may pass."""


class Sink(Protocol):
    """Takes results; never waits."""

    def put(self, line: bytes) -> None:
        """Take a result, a JSON object."""
        ...

    async def close(self) -> None:
        """Deliver what there is, for :data:`CLOSE_SECONDS` at most."""
        ...


def open_sink(config: Source, told: Told) -> Sink:
    """Open the place for a source's results.

    Args:
        config: of the source.
        told: told of each result, on any thread.

    Raises:
        ConfigError: a file cannot be written or read, or an extra is missing.
    """
    scheme = urlsplit(config.results).scheme
    if scheme in MQTT:
        return MqttSink(config, told)
    if scheme in HTTP:
        return WebhookSink(config, told)
    return LineSink(config.results, told)


class LineSink:
    """A file, which is added to, or ``-`` for standard output: a line per result.

    Args:
        path: where to.
        told: see :func:`open_sink`.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str, told: Told) -> None:
        self._told = told
        self._own = path != "-"
        try:
            self._file: TextIO = open(path, "a", encoding="utf-8") if self._own else sys.stdout  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"sources.results: {path}: {error.strerror}") from error

    def put(self, line: bytes) -> None:
        """Write a line; one that cannot be written is dropped."""
        try:
            self._file.write(line.decode() + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            log.warning("a result cannot be written: %s", error)
            self._told(ResultOutcome.DROPPED)
            return
        self._told(ResultOutcome.DELIVERED)

    async def close(self) -> None:
        """Close the file."""
        if self._own:
            with contextlib.suppress(OSError):
                self._file.close()


class MqttSink:
    """A topic of an MQTT broker, at least once (QoS 1); paho connects again by itself.

    Args:
        config: of the source.
        told: see :func:`open_sink`.

    Raises:
        ConfigError: the extra ``mqtt`` is not installed, or a file cannot be read.
    """

    def __init__(self, config: Source, told: Told) -> None:
        try:
            from paho.mqtt import client as mqtt
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise ConfigError(
                "sources.results: expected the extra 'mqtt' for a broker: "
                "pip install 'neucodex[mqtt]'"
            ) from error
        self._url = urlsplit(config.results)
        self._told = told
        self._full = mqtt.MQTT_ERR_QUEUE_SIZE
        self._client: Any = mqtt.Client(CallbackAPIVersion.VERSION2)
        if config.results_credentials is not None:
            user, _, password = read_secret(config.results_credentials).partition(":")
            self._client.username_pw_set(user, password)
        if self._url.scheme == "mqtts":
            self._client.tls_set_context(trusting(config.results_ca))
        self._client.max_queued_messages_set(WAITING)
        self._client.reconnect_delay_set(1, 30)
        self._client.on_publish = self._on_published
        self._client.on_connect = self._on_connected
        self._under_way = 0
        self._lock = threading.Lock()
        port = self._url.port or (8883 if self._url.scheme == "mqtts" else 1883)
        self._client.connect_async(self._url.hostname or "", port)
        self._client.loop_start()

    def put(self, line: bytes) -> None:
        """Publish a result, once there is a connection; with too many waiting it is dropped."""
        with self._lock:
            self._under_way += 1
        if self._client.publish(self._url.path[1:], line, qos=1).rc == self._full:
            self._done(ResultOutcome.DROPPED)

    async def close(self) -> None:
        """Publish what there is, and leave."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._under_way:
                    await asyncio.sleep(0.02)
        for _ in range(self._under_way):
            self._done(ResultOutcome.DROPPED)
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def _done(self, outcome: ResultOutcome) -> None:
        with self._lock:
            self._under_way -= 1
        self._told(outcome)

    def _on_published(self, *_: object) -> None:
        self._done(ResultOutcome.DELIVERED)

    def _on_connected(
        self, client: object, userdata: object, flags: object, reason: Any, *_: object
    ) -> None:
        if reason.is_failure:
            log.warning("%s: the broker refuses us: %s", self._url.hostname, reason)


class WebhookSink:
    """A URL that every result is posted to, one after the other, on a thread.

    Args:
        config: of the source.
        told: see :func:`open_sink`.
        pause_seconds: before the second attempt; doubled for each further one.

    Raises:
        ConfigError: a file cannot be read.
    """

    def __init__(
        self, config: Source, told: Told, pause_seconds: float = FIRST_PAUSE_SECONDS
    ) -> None:
        self._url = config.results
        self._told = told
        self._pause_seconds = pause_seconds
        self._headers = {"Content-Type": "application/json"}
        if config.results_credentials is not None:
            token = read_secret(config.results_credentials)
            self._headers["Authorization"] = f"Bearer {token}"
        self._context = trusting(config.results_ca)
        self._waiting: queue.Queue[bytes | None] = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Take a result; with too many waiting the oldest is dropped."""
        if self._waiting.qsize() >= WAITING:
            with contextlib.suppress(queue.Empty):
                self._waiting.get_nowait()
                self._told(ResultOutcome.DROPPED)
        self._waiting.put(line)

    async def close(self) -> None:
        """Post what there is, each once more at most."""
        self._waiting.put(None)
        self._closing.set()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def _run(self) -> None:
        """Be the thread."""
        while (line := self._waiting.get()) is not None:
            self._told(self._deliver(line))

    def _deliver(self, line: bytes) -> ResultOutcome:
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._closing.is_set():
                    break
                self._told(ResultOutcome.RETRIED)
                self._closing.wait(
                    self._pause_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1)
                )
            reason, passing = self._post(line)
            if not reason:
                return ResultOutcome.DELIVERED
            log.warning("%s: a result was not taken: %s", self._url, reason)
            if not passing:
                break
        return ResultOutcome.DROPPED

    def _post(self, line: bytes) -> tuple[str, bool]:
        """Post a result; return what went wrong, if anything, and whether that may pass."""
        request = urllib.request.Request(self._url, data=line, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=POST_SECONDS, context=self._context):
                return "", False
        except urllib.error.HTTPError as error:
            with error:
                return str(error), error.code in RETRIED
        except (OSError, HTTPException, socket.gaierror) as error:
            return str(error) or type(error).__name__, True
