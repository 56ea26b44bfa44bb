"""Tokens and certificates as the server sees them, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.cli import main
from cloud_server.identity import FORWARDED, forwarded_subject, peer_host
from cloud_server.server import CloudServer
from protos import co_inference_pb2 as pb
from shared import rpc
from shared.credentials import ClientCredentials, ClientFiles
from shared.errors import ConfigError
from shared.model.bundle import Bundle
from shared.tokens import make_token, token_line
from tests.cloud_server.conftest import Client, Start, scrape
from tests.conftest import Certificates

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EXPECTED = "expected a token that this server knows, as metadata 'authorization: Bearer TOKEN'"


class Known:
    """A file of tokens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def add(self, name: str) -> str:
        token = make_token()
        self.path.write_text(self.path.read_text() + token_line(name, token) + "\n")
        return token

    def clear(self) -> None:
        self.path.write_text("")


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(tmp_path / "tokens")


class Caller:
    """Opens streams with whatever metadata it is given."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def opens(self, metadata: Any, call: str = "Infer") -> tuple[grpc.StatusCode, str]:
        """Return how opening a stream ended; OK where it was opened."""
        stream = getattr(self._client.stub, call)(metadata=metadata)
        message = rpc_open(self._client) if call == "Infer" else image_open(self._client)
        try:
            async with asyncio.timeout(10):
                await stream.write(message)
                reply = await stream.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            reply = grpc.aio.EOF
        if reply is not grpc.aio.EOF:
            stream.cancel()
            return grpc.StatusCode.OK, ""
        return await stream.code(), await stream.details() or ""

    async def describes(self, metadata: Any) -> tuple[grpc.StatusCode, str]:
        try:
            await self._client.stub.Describe(pb.DescribeRequest(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


def rpc_open(client: Client) -> Any:
    from shared import wire
    from shared.messages import EdgeMessage

    return wire.edge_message_to_proto(EdgeMessage(open=client.request()))


def image_open(client: Client) -> Any:
    from shared import wire

    request = client.request()
    opening = pb.OpenImages(
        protocol_version=request.protocol_version,
        model_digest=request.model_digest,
        settings=wire.settings_to_proto(request.settings),
        samples_in_flight=1,
    )
    return pb.ImageMessage(open=opening)


Connect = Callable[[CloudServer], Client]


@pytest.mark.parametrize("call", ["Infer", "ImageStream"])
@pytest.mark.parametrize(
    ("metadata", "came"),
    [
        ((), "none came"),
        ((("authorization", "Basic Zm9vOmJhcg=="),), "none came"),
        ((("authorization", ""),), "none came"),
        ((("authorization", f"Bearer {make_token()}"),), "another came"),
        ((("authorization", "Bearer "),), "another came"),
        ((("authorization", "Bearer " + "x" * 5000),), "another came"),
    ],
)
async def test_without_a_known_token_nothing_is_opened(
    start: Start, connect: Connect, known: Known, metadata: Any, came: str, call: str
) -> None:
    known.add("one")
    server = await start(tokens_file=str(known.path), metrics="127.0.0.1:0")
    caller = Caller(connect(server))
    assert await caller.opens(metadata, call) == (UNAUTHENTICATED, f"{EXPECTED}, {came}")
    assert await caller.describes(metadata) == (UNAUTHENTICATED, f"{EXPECTED}, {came}")
    figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_rejected_total[auth]"] == 2
    assert "neucodex_cloud_streams" not in figures  # None has been open.


async def test_a_known_token_opens_and_any_case_of_metadata_counts(
    start: Start, connect: Connect, known: Known
) -> None:
    token = known.add("one")
    caller = Caller(connect(await start(tokens_file=str(known.path))))
    shown = rpc.metadata(ClientCredentials(token=token))
    for call in ("Infer", "ImageStream"):
        assert await caller.opens(shown, call) == (grpc.StatusCode.OK, "")
    assert await caller.describes(shown) == (grpc.StatusCode.OK, "")


async def test_tokens_are_added_and_taken_away_while_the_server_runs(
    start: Start, connect: Connect, known: Known
) -> None:
    client = connect(await start(tokens_file=str(known.path)))
    caller, token = Caller(client), known.add("one")
    shown = rpc.metadata(ClientCredentials(token=token))
    assert (await caller.opens(shown))[0] is grpc.StatusCode.OK
    stream = client.stub.Infer(metadata=shown)
    await stream.write(rpc_open(client))
    await stream.read()
    known.clear()
    assert (await caller.opens(shown))[0] is UNAUTHENTICATED
    # What is open with it ends too.
    async with asyncio.timeout(10):
        assert await stream.code() is UNAUTHENTICATED
    assert await stream.details() == (
        "expected a token that this server knows, it no longer knows this one"
    )


async def test_other_tokens_taken_away_leave_a_stream_alone(
    start: Start, tiny_bundle: Bundle, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_server.warden.ROUND_SECONDS", 0.01)
    token = known.add("one")
    line = known.path.read_text()
    known.add("two")
    server = await start(tokens_file=str(known.path))
    async with rpc.channel(server.address) as channel:
        client = Client(channel, tiny_bundle)
        stream = client.stub.Infer(metadata=rpc.metadata(ClientCredentials(token=token)))
        await stream.write(rpc_open(client))
        await stream.read()
        known.path.write_text(line)
        await asyncio.sleep(0.2)  # Some rounds of the warden.
        assert not stream.done()
        stream.cancel()


async def test_a_token_and_a_certificate_may_both_be_needed(
    start: Start, tiny_bundle: Bundle, known: Known, certificates: Certificates, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(known.add("one"))
    server = await start(tokens_file=str(known.path), **certificates.server(mutual=True))
    shown = ClientFiles(**certificates.edge("one"), token_file=str(file)).read()
    async with rpc.channel(server.address, shown) as channel:
        caller = Caller(Client(channel, tiny_bundle))
        assert (await caller.opens(rpc.metadata(shown)))[0] is grpc.StatusCode.OK
        assert (await caller.opens(()))[0] is UNAUTHENTICATED


async def test_a_file_of_tokens_that_cannot_be_used_stops_the_start(
    start: Start, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected a file with hashed tokens: No such file"):
        await start(tokens_file=str(tmp_path / "none"))
    token = make_token()
    (tmp_path / "tokens").write_text(token)
    with pytest.raises(ConfigError, match="line 1: expected NAME sha256") as caught:
        await start(tokens_file=str(tmp_path / "tokens"))
    assert token not in str(caught.value)


async def test_health_needs_no_token(start: Start, connect: Connect, known: Known) -> None:
    from tests.cloud_server.test_server import SERVICE, SERVING, health

    client = connect(await start(tokens_file=str(known.path)))
    assert await health(client, SERVICE) == SERVING


async def test_models_are_listed_with_a_token(
    start: Start, known: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await start(tokens_file=str(known.path))
    ask = ["models", "--server", server.address]
    assert await asyncio.to_thread(main, ask) == 2
    assert "UNAUTHENTICATED: expected a token" in capsys.readouterr().err
    (tmp_path / "token").write_text(known.add("one"))
    assert await asyncio.to_thread(main, [*ask, "--token-file", str(tmp_path / "token")]) == 0


def test_the_token_command_makes_a_token_and_the_line_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "one"]) == 0
    token, line = capsys.readouterr().out.splitlines()
    assert line == token_line("one", token)


def test_the_token_command_writes_files_for_their_users_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, out = tmp_path / "tokens", tmp_path / "one.token"
    assert main(["token", "one", "--tokens-file", str(tokens), "--out", str(out)]) == 0
    tokens.write_text(tokens.read_text().rstrip("\n"))  # As an editor may leave it.
    second = ["token", "two", "--tokens-file", str(tokens), "--out", str(tmp_path / "two.token")]
    assert main(second) == 0
    assert capsys.readouterr().out == ""
    token = out.read_text().strip()
    assert token_line("one", token) in tokens.read_text().splitlines()
    assert len(tokens.read_text().splitlines()) == 2
    assert (out.stat().st_mode & 0o777, tokens.stat().st_mode & 0o777) == (0o600, 0o600)
    assert main(["token", "one", "--out", str(out)]) == 2
    assert "expected a file to write: File exists" in capsys.readouterr().err
    assert out.read_text().strip() == token


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::/64"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:1", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("unix:", "unix:"),
        ("ipv4:strange:1", "ipv4:strange:1"),
    ],
)
def test_a_peer_is_told_apart_by_its_machine(peer: str, host: str) -> None:
    assert peer_host(peer) == host


@given(st.one_of(st.text(), st.from_regex(r"ipv[46]:.*", fullmatch=True)))
def test_any_peer_has_a_name(peer: str) -> None:
    assert isinstance(peer_host(peer), str)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (f'Hash={"ab" * 32};Subject="CN=camera-1,O=x"', "CN=camera-1,O=x"),
        (f'Hash={"ab" * 32};Subject=""', "ab" * 32),
        (f"Hash={'ab' * 32}", "ab" * 32),
        ('Subject="CN=\\"\\\\;Hash=1;Subject=\\"CN=b\\""', 'CN="\\;Hash=1;Subject="CN=b"'),
        ("", None),
        ('By=spiffe;URI="x"', None),
    ],
)
def test_a_proxy_tells_the_subject_of_a_certificate(told: str, expected: str | None) -> None:
    assert forwarded_subject([("other", "x"), (FORWARDED, told)]) == expected


@given(st.text() | st.binary())
def test_whatever_is_forwarded_is_taken_or_left(told: str | bytes) -> None:
    found = forwarded_subject([(FORWARDED, told)])
    assert found is None or isinstance(found, str)


def test_nothing_forwarded_is_nobody() -> None:
    assert forwarded_subject([]) is None
