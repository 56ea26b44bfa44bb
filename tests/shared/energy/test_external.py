from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.energy import external
from shared.energy.external import ExternalMeter, FileOrigin, HttpOrigin
from shared.energy.meter import Component, Reading
from shared.errors import SensorError, SensorReason


def line(**values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


class Pieces:
    """Gives bytes as they would come, piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)

    def read(self) -> bytes:
        return next(self._pieces, b"")

    def close(self) -> None: ...


def meter(*pieces: bytes) -> ExternalMeter:
    return ExternalMeter(Pieces(*pieces), clock=lambda: 7.0)


def test_lines_with_a_time_are_all_readings() -> None:
    lines = line(watts=4, time_seconds=1.5) + line(joules=9, time_seconds=2, note="ignored")
    assert meter(lines).read() == [
        Reading(Component.TOTAL, 1.5, watts=4),
        Reading(Component.TOTAL, 2, joules=9),
    ]


def test_of_lines_without_a_time_the_last_of_each_component_counts_when_it_came() -> None:
    lines = line(watts=4) + line(watts=1, component="gpu") + line(watts=5)
    assert meter(lines).read() == [
        Reading(Component.TOTAL, 7.0, watts=5),
        Reading(Component.GPU, 7.0, watts=1),
    ]


def test_a_line_that_comes_in_pieces_is_read_when_it_is_whole() -> None:
    whole = line(watts=4, time_seconds=1)
    each = meter(whole[:5], whole[5:-1], whole[-1:])
    assert [each.read() for _ in range(3)] == [[], [], [Reading(Component.TOTAL, 1, watts=4)]]


@pytest.mark.parametrize(
    "bad",
    [
        b"{}",
        b'{"watts": -1}',
        b'{"watts": "4"}',
        b'{"watts": 1, "component": "fan"}',
        b"\xff",
        b"4",
    ],
)
def test_a_bad_line_is_an_error_and_those_around_it_are_read(bad: bytes) -> None:
    good = line(watts=4, time_seconds=1)
    each = meter(good + bad + b"\n" + good)
    assert len(each.read()) == 1
    with pytest.raises(SensorError, match="expected a line like") as raised:
        each.read()
    assert raised.value.reason is SensorReason.MALFORMED
    assert len(each.read()) == 1


def test_a_line_without_an_end_is_refused() -> None:
    with pytest.raises(SensorError, match="at most 4096 bytes"):
        meter(b"x" * 5000).read()


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_whatever_comes_is_readings_or_a_clear_error(pieces: list[bytes]) -> None:
    each = meter(*pieces)
    for _ in range(len(pieces) + 20):
        try:
            readings = each.read()
        except SensorError as error:
            assert error.reason is SensorReason.MALFORMED
        else:
            assert all(isinstance(reading, Reading) for reading in readings)


def test_a_file_is_followed_from_its_present_end(tmp_path: Path) -> None:
    path = tmp_path / "meter.jsonl"
    path.write_bytes(line(watts=99, time_seconds=0))
    finding = external.find(str(path))
    assert finding.sensor is not None
    assert finding.sensor.read() == []
    with path.open("ab") as file:
        file.write(line(watts=3, time_seconds=1))
    assert [reading.watts for reading in finding.sensor.read()] == [3]
    replaced = tmp_path / "new"
    replaced.write_bytes(line(watts=5, time_seconds=2))
    replaced.replace(path)
    assert [reading.watts for reading in finding.sensor.read()] == [5]
    path.write_bytes(b"")
    assert finding.sensor.read() == []
    path.unlink()
    with pytest.raises(SensorError, match="No such file") as raised:
        finding.sensor.read()
    assert raised.value.reason is SensorReason.ABSENT
    finding.sensor.close()


def test_a_fifo_waits_for_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    origin = FileOrigin(path)
    assert origin.read() == b""
    writer = os.open(path, os.O_WRONLY)
    assert origin.read() == b""
    os.write(writer, line(watts=2))
    assert origin.read() == line(watts=2)
    os.close(writer)
    assert origin.read() == b""
    origin.close()


class Answer(BaseHTTPRequestHandler):
    """Answers with what the test put into the server."""

    def do_GET(self) -> None:  # noqa: N802
        status, content = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_is_asked_again_each_time(server: HTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}/power"
    server.answer = 200, b'{"watts": 6.5}'  # type: ignore[attr-defined]
    finding = external.find(url)
    assert finding.sensor is not None
    assert [reading.watts for reading in finding.sensor.read()] == [6.5]
    server.answer = 503, b"busy"  # type: ignore[attr-defined]
    with pytest.raises(SensorError, match="503") as raised:
        finding.sensor.read()
    assert raised.value.reason is SensorReason.FAILED


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SensorError, match="refused"):
        HttpOrigin("http://127.0.0.1:1/").read()


@pytest.mark.parametrize("place", ["/nowhere/meter.jsonl", "http://127.0.0.1:1/"])
def test_a_meter_that_is_not_there_is_not_usable(place: str) -> None:
    finding = external.find(place)
    assert finding.sensor is None
    assert "cannot be read" in finding.found
