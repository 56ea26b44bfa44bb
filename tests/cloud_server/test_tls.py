"""TLS and mutual TLS over real connections: who gets in, who does not, files that change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from cloud_server.cli import main
from cloud_server.config import load
from cloud_server.server import CloudServer
from shared import rpc
from shared.credentials import ClientFiles
from shared.errors import ConfigError
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import Client, Start, random_codes
from tests.conftest import Certificates

SILENT_SECONDS = 10.0


@contextlib.asynccontextmanager
async def client(server: CloudServer, bundle: Bundle, **shown: str) -> AsyncIterator[Client]:
    async with rpc.channel(server.address, ClientFiles(**shown).read()) as channel:
        yield Client(channel, bundle)


async def answered(server: CloudServer, bundle: Bundle, **shown: str) -> int:
    """Run a sample; return its verdicts."""
    async with client(server, bundle, **shown) as each, each.opened() as edge:
        return len(await edge.run(0, random_codes(bundle, 0)))


async def refused(server: CloudServer, bundle: Bundle, **shown: str) -> str:
    """Fail to connect; return why."""
    async with client(server, bundle, **shown) as each, asyncio.timeout(SILENT_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await each.describe()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return caught.value.details() or ""


async def test_a_sample_over_tls(
    start: Start, tiny_bundle: Bundle, certificates: Certificates
) -> None:
    server = await start(**certificates.server())
    assert await answered(server, tiny_bundle, **certificates.edge()) == 4


async def test_without_tls_nothing_is_answered(
    start: Start, tiny_bundle: Bundle, certificates: Certificates
) -> None:
    await refused(await start(**certificates.server()), tiny_bundle)


async def test_a_server_of_another_authority_is_not_trusted(
    start: Start, tiny_bundle: Bundle, make_certificates: Callable[[], Certificates]
) -> None:
    server, others = await start(**make_certificates().server()), make_certificates()
    assert "CERTIFICATE_VERIFY_FAILED" in await refused(server, tiny_bundle, **others.edge())


async def test_a_server_of_another_name_is_not_trusted(
    start: Start, tiny_bundle: Bundle, certificates: Certificates
) -> None:
    server = await start(**certificates.server())
    shown = certificates.edge() | {"tls_server_name": "cloud.example"}
    assert "Hostname Verification Check failed" in await refused(server, tiny_bundle, **shown)
    shown["tls_server_name"] = "localhost"
    assert await answered(server, tiny_bundle, **shown) == 4


async def test_mutual_tls_lets_in_who_has_a_certificate_alone(
    start: Start, tiny_bundle: Bundle, make_certificates: Callable[[], Certificates]
) -> None:
    certificates, others = make_certificates(), make_certificates()
    server = await start(**certificates.server(mutual=True))
    assert await answered(server, tiny_bundle, **certificates.edge("one")) == 4
    await refused(server, tiny_bundle, **certificates.edge())
    stranger = others.edge("one") | {"tls_ca": certificates.path("ca.pem")}
    await refused(server, tiny_bundle, **stranger)


async def test_changed_files_hold_for_new_connections_and_cut_no_old_one(
    start: Start, tiny_bundle: Bundle, certificates: Certificates
) -> None:
    server = await start(**certificates.server(mutual=True))
    before = ClientFiles(**certificates.edge("one")).read()
    async with rpc.channel(server.address, before) as channel:
        old = Client(channel, tiny_bundle)
        async with old.opened() as edge:
            await edge.run(0, random_codes(tiny_bundle, 0))
            certificates.renew()
            assert await answered(server, tiny_bundle, **certificates.edge("one")) == 4
            assert len(await edge.run(1, random_codes(tiny_bundle, 1))) == 4
    async with rpc.channel(server.address, before) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="CERTIFICATE_VERIFY_FAILED"):
            await Client(channel, tiny_bundle).describe()


async def test_half_changed_files_leave_the_old_in_use(
    start: Start,
    tiny_bundle: Bundle,
    make_certificates: Callable[[], Certificates],
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificates, others = make_certificates(), make_certificates()
    server = await start(**certificates.server())
    key = certificates.folder / "server.key"
    key.write_bytes((others.folder / "server.key").read_bytes())
    assert await answered(server, tiny_bundle, **certificates.edge()) == 4
    assert "what was read before stays in use" in caplog.text
    certificate = certificates.folder / "server.pem"
    certificate.write_bytes((others.folder / "server.pem").read_bytes())
    assert await answered(server, tiny_bundle, **others.edge()) == 4
    assert "PRIVATE" not in caplog.text


async def test_files_that_cannot_be_used_stop_the_start(
    start: Start, certificates: Certificates
) -> None:
    keys = certificates.server() | {"tls_key": certificates.path("edge-one.key")}
    with pytest.raises(ConfigError, match="expected a certificate and its private key"):
        await start(**keys)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, r"tls_certificate: expected one where others than this machine can connect"),
        ({"tls_certificate": "a", "tls_key": "b"}, r"tls_client_ca: expected this or tokens_file"),
        ({"tls_certificate": "a"}, r"tls_key: expected a file to go with a, got none"),
        ({"tls_client_ca": "a"}, r"tls_certificate: expected one with tls_client_ca, got none"),
    ],
)
def test_an_address_of_others_is_refused_unless_it_is_safe(
    given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(None, {"listen": "0.0.0.0:50051"} | given)


@pytest.mark.parametrize(
    "given",
    [
        {"listen": "0.0.0.0:50051", "insecure": True},
        {"listen": "[::]:0", "tls_certificate": "a", "tls_key": "b", "tls_client_ca": "c"},
        {"listen": "[::]:0", "tls_certificate": "a", "tls_key": "b", "tokens_file": "c"},
        {"listen": "127.0.0.1:0"},
        {"listen": "unix:/run/cloud.sock"},
    ],
)
def test_what_is_safe_or_said_to_be_is_accepted(given: dict[str, Any]) -> None:
    assert load(None, given).listen == given["listen"]


def test_the_refusal_is_one_line_and_nothing_is_served(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Bundle
) -> None:
    flags = ["--bundle", str(tiny_bundle.path), "--listen", "0.0.0.0:0"]
    assert main(["serve", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("neucodex-cloud: flags: tls_certificate: expected one")


async def test_models_are_listed_over_tls(
    start: Start, certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await start(**certificates.server(mutual=True))
    shown = certificates.edge("one")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in shown.items()]
    assert await asyncio.to_thread(main, ["models", "--server", server.address, *flags]) == 0
    assert "digest" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["models", "--server", server.address]) == 2
    assert await asyncio.to_thread(main, ["models", "--server", "192.0.2.1:1"]) == 2
    assert "tls_ca: expected one" in capsys.readouterr().err
