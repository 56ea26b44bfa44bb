"""What is served beside ``/metrics``, to whom, over real sockets."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.live.board import MAX_LISTENERS, Board, Source
from shared.live.site import ASSETS, serve
from shared.tokens import make_token, token_line
from shared.web import ANYBODY, REQUEST_SECONDS, Access, WebServer

PATIENCE_SECONDS = 30.0


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


def metrics(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"figures"]


@contextmanager
def serving(
    access: Access = ANYBODY, *, address: str = "127.0.0.1:0", event: str = "x"
) -> Iterator[tuple[WebServer, Board]]:
    board = Board()
    board.add(Source("edge", 0.01, lambda: event))
    server = serve(metrics, address, access, side="edge", board=board)
    try:
        yield server, board
    finally:
        server.close()


@contextmanager
def asking(server: WebServer, path: str, method: str = "GET", **headers: str) -> Iterator[Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    try:
        yield reply
    finally:
        reply.close()
        connection.close()


def fetch(server: WebServer, path: str, method: str = "GET", **headers: str) -> Reply:
    with asking(server, path, method, **headers) as reply:
        return Reply(reply.status, dict(reply.getheaders()), reply.read().decode())


def first_event(server: WebServer, **headers: str) -> bytes:
    with asking(server, "/events", **headers) as reply:
        assert reply.status == 200, reply.read()
        assert reply.getheader("Content-Type") == "text/event-stream"
        return b"".join(reply.readline() for _ in range(3))


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with serving() as (server, _):
        yield server


def test_the_page_and_all_that_it_names_are_there(server: WebServer) -> None:
    page = fetch(server, "/")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    files = [name for name in named if not name.startswith("data:")]
    kinds = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
    assert len(files) == 5
    for name in files:
        reply = fetch(server, f"/{name}")
        assert (reply.status, reply.headers["Content-Type"]) == (
            200,
            kinds[name.rpartition(".")[2]],
        )
        assert reply.text == (ASSETS / name).read_text(encoding="utf-8")


def test_metrics_and_events_are_where_they_should_be(server: WebServer) -> None:
    assert fetch(server, "/metrics").text == "figures"
    assert first_event(server) == b'event: edge\ndata: "x"\n\n'


@pytest.mark.parametrize(
    "path", ["/nothing", "/metrics/", "/events/", "/edge.html", "/../board.py", "/%2e%2e/board.py"]
)
def test_other_paths_are_not_found(server: WebServer, path: str) -> None:
    reply = fetch(server, path)
    assert (reply.status, reply.text) == (
        404,
        "expected /, /events or /metrics, got another path\n",
    )


def test_other_methods_are_refused(server: WebServer) -> None:
    for path in ("/", "/events"):
        assert fetch(server, path, "POST").status == 405


def test_nothing_is_loaded_from_elsewhere_and_nothing_inline_is_run(server: WebServer) -> None:
    for path in ("/", "/live.js", "/nothing"):
        headers = fetch(server, path).headers
        policy = headers["Content-Security-Policy"].split("; ")
        assert "default-src 'none'" in policy
        assert {"script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(policy)
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    for file in ASSETS.glob("[!u]*.*"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://|innerHTML|insertAdjacent|document\.write", text), file
    for file in ASSETS.glob("*.html"):
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", file.read_text()), file


def test_the_licence_of_what_is_not_ours_lies_beside_it() -> None:
    (library,) = ASSETS.glob("uPlot-*.min.js")
    licence = (ASSETS / "uPlot-LICENSE.txt").read_text()
    assert "MIT License" in licence
    assert "Leon Sorokin" in licence
    version = library.name.removeprefix("uPlot-").removesuffix(".min.js")
    assert f"(v{version})" in library.read_text()[:200]


def test_whoever_may_not_scrape_may_not_look(tmp_path: Path) -> None:
    users, token = tmp_path / "users", make_token()
    users.write_text(token_line("me", token))
    shown = "Basic " + base64.b64encode(f"me:{token}".encode()).decode()
    with serving(Access(users=str(users))) as (server, board):
        for path in ("/", "/events", "/live.js", "/metrics", "/nothing"):
            assert fetch(server, path).status == 401
        assert not board.looking
        assert fetch(server, "/", Authorization=shown).status == 200
        assert first_event(server, Authorization=shown)
        # A name that is not ours does no harm to those who show who they are.
        assert fetch(server, "/", Authorization=shown, Host="edge.example").status == 200


def test_other_machines_see_no_page_unless_they_show_who_they_are(tmp_path: Path) -> None:
    with serving(address="0.0.0.0:0") as (server, board):
        assert fetch(server, "/metrics").status == 200
        for path in ("/", "/events"):
            reply = fetch(server, path)
            assert reply.status == 403
            assert "expected metrics_users or metrics_client_ca" in reply.text
        assert not board.looking


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil", "[", "a b"])
def test_a_browser_that_came_by_another_name_sees_no_page(server: WebServer, host: str) -> None:
    for path in ("/", "/events"):
        reply = fetch(server, path, Host=host)
        assert (reply.status, reply.text) == (
            403,
            "expected an address or localhost as the name of this host, got another\n",
        )


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:9", "[::1]:9", ""])
def test_addresses_and_localhost_are_no_other_name(server: WebServer, host: str) -> None:
    assert fetch(server, "/", Host=host).status == 200


def test_without_a_board_there_is_no_page() -> None:
    server = serve(metrics, "127.0.0.1:0", side="edge")
    try:
        assert fetch(server, "/metrics").text == "figures"
        for path in ("/", "/events", "/live.js"):
            reply = fetch(server, path)
            assert (reply.status, reply.text) == (404, "expected /metrics, got another path\n")
    finally:
        server.close()


def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_more_listeners_than_may_be_are_told_so_and_make_room() -> None:
    with serving() as (server, board):
        with ExitStack() as stack:
            replies = [stack.enter_context(asking(server, "/events")) for _ in range(MAX_LISTENERS)]
            assert {reply.status for reply in replies} == {200}
            full = fetch(server, "/events")
            assert (full.status, full.text) == (
                503,
                f"expected at most {MAX_LISTENERS} to look at once, so many do\n",
            )
            assert fetch(server, "/metrics").status == 200
        until(lambda: not board.looking)
        assert first_event(server)


def test_one_who_does_not_read_is_dropped_and_holds_up_nobody() -> None:
    with serving(event="x" * 50_000) as (server, board):
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as silent:
            silent.sendall(b"GET /events HTTP/1.0\r\n\r\n")
            until(lambda: board.looking)
            with asking(server, "/events") as reply:
                lines = [reply.readline() for _ in range(300)]
            assert lines.count(b"event: edge\n") == 100
            # Long before its socket's time is over.
            until(lambda: not board.looking, REQUEST_SECONDS / 3)


def test_closing_ends_the_streams() -> None:
    with serving() as (server, _), asking(server, "/events") as reply:
        assert reply.readline() == b"event: edge\n"
        server.close()
        reply.read()  # Ends.
