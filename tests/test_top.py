"""``top`` of both sides, from what a daemon tells to what is printed."""

from __future__ import annotations

import copy
import os
import re
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_server import cli as cloud_cli
from cloud_server import live as cloud
from edge_agent import cli as edge_cli
from edge_agent import live as edge
from shared.codec.bitpack import pack
from shared.live.board import Board, Source
from shared.live.site import serve
from shared.tokens import make_token, token_line
from shared.web import ANYBODY, Access
from tests.conftest import Certificates

CODE = np.zeros((2, 4, 4), np.uint8)
CODE[0, 0], CODE[1, 3] = 1, 1

EDGE = edge.Figures(
    time_seconds=1.0,
    about=edge.AboutEdge(
        version="1",
        model="[red]net[/red]",
        digest="00",
        split="layer2",
        timesteps=3,
        code_shape=CODE.shape,
        placement="co_inference",
        cloud="host:1",
    ),
    samples=edge.Samples(
        answered=1234,
        early=1000,
        fallback=5,
        failed=6,
        waiting=7,
        timesteps_used=2000,
        timesteps_skipped=300,
        timesteps_wasted=40,
    ),
    bytes=edge.Bytes(
        payload=999,
        messages=1500,
        wire=None,
        features=3_000_000,
        raw_input=10,
        payload_ratio=3003.003,
        messages_ratio=2000.0,
        wire_ratio=None,
    ),
    time=edge.Time(sample=0.0125, head=0.001, tail=None, saved_by_exits=75.0, saved_by_cloud=None),
    link=edge.Link(
        state="ready",
        breaker="closed",
        trouble="gone\x1b[2J",
        round_trips=3,
        round_trip_sum_seconds=0.3,
        round_trip_seconds=0.1,
        min_rtt_seconds=0.000009,
        bytes_per_second=None,
        retries=2,
        replays=1,
    ),
    policy=edge.Policy(
        mode="step", window=2, steps_per_packet=1, expected_seconds=0.02, changes=3, why="because"
    ),
    modelled_joules=0.0045,
    watts={"rapl": 5.5},
)
SAMPLE = edge.Sample(
    sample=17,
    timesteps=3,
    alpha=(0.9, 0.5),
    picture="",
    code_shape=CODE.shape,
    codes=(b64encode(pack(CODE.reshape(-1))).decode(),) * 2,
    packets=(edge.Packet(0, 4), edge.Packet(1, 3)),
    verdicts=(edge.Step(0, 0.2, "cat"), edge.Step(1, 0.75, "dog\x1b[2J")),
    end=edge.End(
        timesteps_used=2,
        confidence=0.75,
        name="dog\x1b[2J",
        placement="co_inference",
        total_seconds=0.05,
        payload_bytes=7,
    ),
)
CLOUD = cloud.Figures(
    time_seconds=1.0,
    version="1",
    address="host:1",
    streams=3,
    image_streams=1,
    rotations=0,
    rejected={"auth": 2},
    wire_bytes=2048,
    modelled_joules=0.0,
    watts={},
    models=(
        cloud.Model(
            name="net",
            digest="00",
            split="layer2",
            timesteps=3,
            slots_in_use=4,
            slots_limit=128,
            state_bytes=1000,
            queue=9,
            samples={"confident": 5},
            computed=100,
            wasted=2,
            batches=(cloud.Bar(1, 40), cloud.Bar(2, 30), cloud.Bar(4, 0)),
            batch_size=1.43,
            service_seconds=0.002,
            engine_seconds=None,
            payload_bytes=10,
            message_bytes=20,
        ),
    ),
)
Run = Callable[..., tuple[int, str]]


@contextmanager
def telling(*events: tuple[str, Any], access: Access = ANYBODY) -> Iterator[str]:
    """Serve a page whose board tells these; yield its address."""
    board = Board()
    for name, value in events:
        board.add(Source(name, 0.05, partial(copy.copy, value)))
    server = serve(lambda *_: [], "127.0.0.1:0", access, side="edge", board=board)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        server.close()


@pytest.fixture
def top(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``top --once`` of a side; return exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "140")

    def run(address: str, *flags: str, side: Any = edge_cli) -> tuple[int, str]:
        code = side.main(["top", "--once", "--metrics", address, *flags])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def shows(text: str, **rows: str) -> bool:
    """Say whether a table has these rows."""
    return all(re.search(rf"{name}\s+{re.escape(value)}", text) for name, value in rows.items())


def test_a_frame_of_the_edge_shows_the_sample_and_the_figures(top: Run) -> None:
    with telling(("sample", SAMPLE), ("edge", EDGE)) as address:
        code, text = top(address)
    assert code == 0
    assert "sample 17: dog" in text
    assert "confidence 0.750 after 2 of 3 timesteps, 50.0 ms, 7 B, co_inference" in text
    assert "t = 0: 4 B" in text
    assert "t = 1: 3 B exit" in text
    # The first row of channel 0 and the last of channel 1.
    assert "▀▀▀▀│    " in text
    assert "    │▄▄▄▄" in text
    bars = [line for line in text.splitlines() if re.match(r"t = \d [█·|]", line)]
    # Of 30 cells; the mark of alpha takes one of the second bar.
    assert [bar.count("█") for bar in bars] == [6, 21, 0]
    assert [bar.find("|") for bar in bars] == [len("t = 0 ") + 27, len("t = 0 ") + 15, -1]
    assert shows(text, payload="999 B, 3,003x less", **{"wire, both directions": "-"})
    assert shows(text, **{"saved by exits, against full T": "75.00 s"})
    assert "1,234; 1,000" in text
    assert "2,000; 300; 40" in text
    assert "100.0 ms; 9 µs" in text
    assert "rapl 5.50 W" in text
    assert "4.50 mJ" in text
    assert "how samples are run: because" in text


def test_what_strangers_wrote_is_neither_markup_nor_obeyed(top: Run) -> None:
    with telling(("sample", SAMPLE), ("edge", EDGE)) as address:
        _, text = top(address)
    assert "[red]net[/red]" in text
    assert "\x1b[2J" not in text
    assert "gone\N{REPLACEMENT CHARACTER}[2J" in text


def test_without_a_sample_a_frame_says_so(top: Run) -> None:
    with telling(("edge", EDGE)) as address:
        code, text = top(address)
    assert code == 0
    assert "no sample has been run" in text
    assert "1,234; 1,000" in text


def test_a_frame_of_the_cloud_shows_its_models(top: Run) -> None:
    with telling(("cloud", CLOUD)) as address:
        code, text = top(address, side=cloud_cli)
    assert code == 0
    assert shows(text, **{"streams of code; of images": "3; 1", "requests refused": "auth 2"})
    assert shows(text, **{"slots in use; there are": "4; 128", "samples ended": "confident 5"})
    assert shows(text, **{"timesteps waiting for the engine": "9", "one engine call, mean": "-"})
    assert "40 up to 1, 30 up to 2" in text


def test_who_cannot_be_asked_is_an_error_on_one_line(top: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    code, text = top(address)
    assert (code, text.count("\n")) == (2, 1)
    assert f"expected a daemon at {address} (does it run?)" in text
    with telling(("cloud", CLOUD)) as address:
        code, text = top(address)
        assert code == 2
        assert "got 'cloud': a daemon of the other side" in text
    with telling(("edge", {"of": "another version"})) as address:
        code, text = top(address)
        assert code == 2
        assert "expected an event edge of this version" in text


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--metrics", "elsewhere.example:1"), "tls_ca: expected one with a server that is not on"),
        (("--metrics", "no address"), "expected an address of the form host:port"),
        (("--user", "me"), "expected --user and --token-file together"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    top: Run, flags: tuple[str, ...], complaint: str
) -> None:
    code, text = top("127.0.0.1:1", *flags)
    assert code == 2
    assert complaint in text


def test_credentials_are_shown_over_tls(
    top: Run, certificates: Certificates, tmp_path: Path
) -> None:
    users, token_file, token = tmp_path / "users", tmp_path / "token", make_token()
    users.write_text(token_line("me", token))
    token_file.write_text(token)
    token_file.chmod(0o600)
    server = certificates.server()
    access = Access(certificate=server["tls_certificate"], key=server["tls_key"], users=str(users))
    ca = ("--tls-ca", certificates.path("ca.pem"))
    shown = ("--user", "me", "--token-file", str(token_file))
    with telling(("edge", EDGE), access=access) as address:
        assert top(address, *ca, *shown)[0] == 0
        code, text = top(address, *ca)
        assert (code, "401 Unauthorized: expected the name and the token" in text) == (2, True)
        assert token not in text
        code, text = top(address, *shown)
        assert (code, "expected events from" in text) == (2, True)
        other = tmp_path / "other.pem"
        other.write_bytes(Path(server["tls_certificate"]).read_bytes())
        code, text = top(address, "--tls-ca", str(other), "--tls-server-name", "elsewhere", *shown)
        assert (code, "does it serve TLS?" in text) == (2, True)


@contextmanager
def watching(address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``top`` as in a terminal and wait for some frames."""
    command = (sys.executable, "-m", "edge_agent.cli", "top", "--metrics", address)
    environment = os.environ | {"COLUMNS": "140", "LINES": "60", "FORCE_COLOR": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    seen = b""
    while seen.count(b"because") < 3:
        assert (piece := os.read(process.stdout.fileno(), 1 << 16))
        seen += piece
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_shows_frame_after_frame_until_interrupted() -> None:
    with telling(("sample", SAMPLE), ("edge", EDGE)) as address, watching(address) as process:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert (process.returncode, error) == (130, b"")


def test_a_daemon_that_ends_is_an_error() -> None:
    with ExitStack() as stack:
        address = stack.enter_context(telling(("edge", EDGE)))
        with watching(address) as process:
            stack.close()
            _, error = process.communicate(timeout=30)
            assert process.returncode == 2
            assert f"{address} ended the events".encode() in error
