"""Results reach a real broker and a real HTTP server, or are counted as lost."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_agent.source_config import ArraySource
from edge_agent.sources import results as module
from edge_agent.sources.results import LineSink, MqttSink, WebhookSink, open_sink
from shared.errors import ConfigError
from shared.metrics import ResultOutcome
from tests.edge_agent.conftest import until


class Told:
    """Counts outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[ResultOutcome] = []

    def __call__(self, outcome: ResultOutcome) -> None:
        self.outcomes.append(outcome)

    def count(self, outcome: ResultOutcome) -> int:
        return self.outcomes.count(outcome)


def source(results: str, **keys: Any) -> ArraySource:
    return ArraySource(path="any", results=results, **keys)


class Hook:
    """A server that takes results, with the statuses it is told to give."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[Any] = []
        self.tokens: list[str | None] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = hook.statuses.pop(0) if hook.statuses else 204
                if status < 300:
                    hook.got.append(json.loads(body))
                    hook.tokens.append(self.headers.get("Authorization"))
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/results"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.close()


async def test_a_file_is_added_to(tmp_path: Path) -> None:
    path, told = tmp_path / "results", Told()
    path.write_text("before\n")
    sink = open_sink(source(str(path)), told)
    sink.put(b'{"a":1}')
    await sink.close()
    assert path.read_text() == 'before\n{"a":1}\n'
    assert told.outcomes == [ResultOutcome.DELIVERED]


async def test_a_file_that_cannot_be_written_is_refused_or_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="results"):
        open_sink(source(str(tmp_path)), Told())
    told = Told()
    sink = LineSink("/dev/full", told)
    sink.put(b"{}")
    await sink.close()
    assert told.outcomes == [ResultOutcome.DROPPED]


async def test_results_are_posted_in_order_and_again_where_that_may_help(
    hook: Hook, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("word\n")
    hook.statuses = [503, 429]
    told = Told()
    config = source(hook.url, results_credentials=str(tmp_path / "token"))
    sink = WebhookSink(config, told, pause_seconds=0.01)
    for number in range(3):
        sink.put(b'{"n":%d}' % number)
    await until(lambda: told.count(ResultOutcome.DELIVERED) == 3)
    await sink.close()
    assert hook.got == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert hook.tokens == ["Bearer word"] * 3
    assert told.count(ResultOutcome.RETRIED) == 2


async def test_what_a_server_will_never_take_is_dropped_at_once(hook: Hook) -> None:
    hook.statuses, told = [400], Told()
    sink = WebhookSink(source(hook.url), told, pause_seconds=0.01)
    sink.put(b"{}")
    sink.put(b'{"next":1}')
    await until(lambda: len(told.outcomes) == 2)
    await sink.close()
    assert told.outcomes == [ResultOutcome.DROPPED, ResultOutcome.DELIVERED]
    assert hook.got == [{"next": 1}]


async def test_a_server_that_is_not_there_costs_the_oldest_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WAITING", 2)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    told = Told()
    sink = WebhookSink(source("http://127.0.0.1:9/"), told, pause_seconds=0.01)
    for number in range(8):
        sink.put(b'{"n":%d}' % number)
    await sink.close()
    await until(lambda: told.count(ResultOutcome.DROPPED) == 8)


@pytest.fixture
async def broker() -> AsyncIterator[str]:
    """Address of an MQTT broker of its own."""
    amqtt = pytest.importorskip("amqtt.broker", reason="is the broker")
    pytest.importorskip("paho.mqtt", reason="speaks MQTT")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    logging.getLogger("amqtt").setLevel(logging.ERROR)
    running = amqtt.Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": address}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {}},
        }
    )
    await running.start()
    yield address
    await running.shutdown()


async def test_results_reach_a_broker(broker: str) -> None:
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    got: list[tuple[str, Any]] = []
    subscribed = threading.Event()
    listener = mqtt.Client(CallbackAPIVersion.VERSION2)
    listener.on_message = lambda *args: got.append((args[2].topic, json.loads(args[2].payload)))
    listener.on_subscribe = lambda *args: subscribed.set()
    host, port = broker.split(":")
    await asyncio.to_thread(listener.connect, host, int(port))
    listener.loop_start()
    listener.subscribe("neucodex/#", qos=1)
    assert await asyncio.to_thread(subscribed.wait, 20)
    told = Told()
    sink = open_sink(source(f"mqtt://{broker}/neucodex/door"), told)
    for number in range(3):
        sink.put(b'{"n":%d}' % number)
    await until(lambda: len(got) == 3)
    await sink.close()
    listener.disconnect()
    await asyncio.to_thread(listener.loop_stop)
    assert got == [("neucodex/door", {"n": number}) for number in range(3)]
    assert told.outcomes == [ResultOutcome.DELIVERED] * 3


async def test_without_a_broker_results_are_dropped_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("paho.mqtt", reason="speaks MQTT")
    monkeypatch.setattr(module, "WAITING", 2)
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    told = Told()
    sink = MqttSink(source("mqtt://127.0.0.1:9/topic"), told)
    for _ in range(4):
        sink.put(b"{}")
    await sink.close()
    assert told.outcomes == [ResultOutcome.DROPPED] * 4
