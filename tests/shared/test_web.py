"""The server of ``/metrics`` over real sockets: TLS, passwords, changed files, silent clients."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import web
from shared.errors import ConfigError
from shared.tokens import make_token, token_line, watch_tokens
from shared.web import Access, WebServer
from tests.conftest import Certificates

NO_ANSWER = (OSError, http.client.HTTPException)
"""How a connection that was not accepted shows."""


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"figures"]


@contextmanager
def serving(**access: str) -> Iterator[WebServer]:
    server = web.serve(application, "127.0.0.1:0", Access(**access))
    try:
        yield server
    finally:
        server.close()


def fetch(
    server: WebServer, context: ssl.SSLContext | None = None, authorization: str | None = None
) -> tuple[int, str]:
    """Return status and text of the answer."""
    scheme = "http" if context is None else "https"
    headers = {} if authorization is None else {"Authorization": authorization}
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{server.port}/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def basic(name: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()


def tls(certificates: Certificates, *, mutual: bool = False) -> dict[str, str]:
    keys = certificates.server(mutual=mutual)
    return {key.removeprefix("tls_"): path for key, path in keys.items()}


def trusting(certificates: Certificates, edge: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
    if edge is not None:
        folder = certificates.folder
        context.load_cert_chain(folder / f"edge-{edge}.pem", folder / f"edge-{edge}.key")
    return context


def test_without_anything_everybody_is_answered() -> None:
    with serving() as server:
        assert fetch(server) == (200, "figures")


def test_only_users_with_their_token_are_answered(tmp_path: Path) -> None:
    users, tokens = tmp_path / "users", {name: make_token() for name in ("a", "b")}
    users.write_text("\n".join(token_line(name, token) for name, token in tokens.items()))
    refusal = 401, "expected the name and the token of a user, got others or none\n"
    with serving(users=str(users)) as server:
        assert fetch(server, authorization=basic("a", tokens["a"])) == (200, "figures")
        for wrong in (
            None,
            basic("a", tokens["b"]),
            basic("c", tokens["a"]),
            basic("a", ""),
            basic("", ""),
            f"Bearer {tokens['a']}",
            "Basic",
            "Basic ???",
            "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        ):
            assert fetch(server, authorization=wrong) == refusal
        users.write_text(token_line("a", tokens["b"]))
        assert fetch(server, authorization=basic("a", tokens["a"])) == refusal
        assert fetch(server, authorization=basic("a", tokens["b"])) == (200, "figures")


def test_over_tls(certificates: Certificates) -> None:
    with serving(**tls(certificates)) as server:
        assert fetch(server, trusting(certificates)) == (200, "figures")
        with pytest.raises(NO_ANSWER):
            fetch(server)


def test_mutual_tls_answers_who_has_a_certificate(certificates: Certificates) -> None:
    with serving(**tls(certificates, mutual=True)) as server:
        assert fetch(server, trusting(certificates, "one")) == (200, "figures")
        with pytest.raises(NO_ANSWER):
            fetch(server, trusting(certificates))


def test_changed_certificates_hold_for_new_connections(certificates: Certificates) -> None:
    with serving(**tls(certificates)) as server:
        before = trusting(certificates)
        assert fetch(server, before) == (200, "figures")
        certificates.renew()
        assert fetch(server, trusting(certificates)) == (200, "figures")
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(server, before)


def test_a_client_that_says_nothing_holds_up_no_other(certificates: Certificates) -> None:
    with (
        serving(**tls(certificates)) as server,
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        assert fetch(server, trusting(certificates)) == (200, "figures")


def test_files_that_cannot_be_used_are_refused(certificates: Certificates, tmp_path: Path) -> None:
    wrong = tls(certificates) | {"key": certificates.path("edge-one.key")}
    with pytest.raises(ConfigError, match="expected a certificate and its private key"):
        web.serve(application, "127.0.0.1:0", Access(**wrong))
    with pytest.raises(ConfigError, match="expected a file with hashed tokens"):
        web.serve(application, "127.0.0.1:0", Access(users=str(tmp_path / "none")))


@given(
    header=st.one_of(st.text(), st.binary().map(lambda b: "Basic " + base64.b64encode(b).decode()))
)
def test_any_header_is_refused_where_nobody_is_known(
    header: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    users = tmp_path_factory.getbasetemp() / "no-users"
    users.write_text("")
    guarded = web._guarded(application, watch_tokens(users))
    said: list[str] = []
    guarded({"HTTP_AUTHORIZATION": header}, lambda status, _: said.append(status))
    assert said == ["401 Unauthorized"]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_addresses() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"expected a loopback interface with IPv6: {error}")
    server = web.serve(application, "[::1]:0")
    with socket.create_connection(("::1", server.port)):
        server.close()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"certificate": "a"}, "metrics_key: expected a file to go with a, got none"),
        ({"client_ca": "a"}, "metrics_certificate: expected one with metrics_client_ca"),
        ({"users": "a"}, "metrics_certificate: expected one with metrics_users at an address"),
        ({"users": make_token()}, "metrics_users: .* got the token itself"),
    ],
)
def test_what_is_not_safe_is_refused(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Access(**given).check("0.0.0.0:9464", insecure=False)


def test_what_is_safe_or_said_to_be_is_accepted() -> None:
    Access(users="a").check("127.0.0.1:9464", insecure=False)
    Access(users="a").check("0.0.0.0:9464", insecure=True)
    Access(users="a", certificate="b", key="c").check("0.0.0.0:9464", insecure=False)
    Access().check("0.0.0.0:9464", insecure=False)
