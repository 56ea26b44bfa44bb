"""The edge's side of TLS and tokens: a real cloud, files that change, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent import doctor
from edge_agent.config import EdgeConfig, load
from shared.codec.packet import Checksum
from shared.errors import ConfigError, RefusedError
from shared.tokens import make_token, token_line
from tests.conftest import Certificates
from tests.edge_agent.conftest import Clouds, Edges, Metered, Relay, picture, until

Make = Callable[[], Certificates]


async def until_trouble(edge: Metered, words: str) -> None:
    await until(lambda: words in str(edge.loop.trouble))


async def test_samples_over_mutual_tls(
    clouds: Clouds, edges: Edges, certificates: Certificates
) -> None:
    async with (
        clouds(**certificates.server(mutual=True)) as cloud,
        edges(cloud=cloud.address, **certificates.edge("one")) as edge,
        edges(cloud=cloud.address, placement="cloud_only", **certificates.edge("two")) as other,
    ):
        here, there = await edge.loop.submit(picture(0)), await other.loop.submit(picture(0))
        assert (here.placement, there.placement) == ("co_inference", "cloud_only")


async def test_changed_files_are_shown_without_a_sample_lost(
    clouds: Clouds, edges: Edges, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.grpc_link.LOOK_SECONDS", 0.0)
    async with (
        clouds(**certificates.server(mutual=True)) as cloud,
        edges(cloud=cloud.address, **certificates.edge("one")) as edge,
    ):
        await edge.loop.submit(picture(0))
        certificates.renew()
        for seed in range(4):
            await edge.loop.submit(picture(seed))
        # The stream was given up between two samples, and another opened with the new files.
        assert edge.counts("edge_retries_total", 1)
        assert edge.count("edge_retries_total", reason="draining") == 1
        assert edge.counts("edge_replays_total", 0)
        assert edge.count("edge_inferences_total", exit_reason="error") == 0


async def test_a_new_connection_takes_files_as_they_are_then(
    clouds: Clouds, edges: Edges, relay: Relay, certificates: Certificates
) -> None:
    async with clouds(**certificates.server(mutual=True)) as cloud:
        relay.target = cloud.address
        async with edges(cloud=relay.address, **certificates.edge("one")) as edge:
            await edge.loop.submit(picture(0))
            certificates.renew()
            relay.cut()
            await edge.loop.submit(picture(1))


async def test_a_server_not_to_be_trusted_is_not_sent_to(
    clouds: Clouds, edges: Edges, make_certificates: Make
) -> None:
    async with (
        clouds(**make_certificates().server()) as cloud,
        edges(cloud=cloud.address, **make_certificates().edge()) as edge,
    ):
        await until_trouble(edge, "CERTIFICATE_VERIFY_FAILED")
        assert "expected a server certificate that is valid" in str(edge.loop.trouble)
        assert edge.counts("edge_payload_bytes_total", 0)


async def test_a_certificate_that_was_not_shown_is_named(
    clouds: Clouds, edges: Edges, certificates: Certificates
) -> None:
    async with (
        clouds(**certificates.server(mutual=True)) as cloud,
        edges(cloud=cloud.address, **certificates.edge()) as edge,
    ):
        await until_trouble(edge, "the server may expect a certificate too, none was shown")


async def test_tls_that_was_not_used_is_named(
    clouds: Clouds, edges: Edges, certificates: Certificates
) -> None:
    async with (
        clouds(**certificates.server()) as cloud,
        edges(cloud=cloud.address) as edge,
    ):
        await until_trouble(edge, "no TLS was used; the server may expect it")


async def test_a_token_is_shown_and_another_once_the_file_has_it(
    clouds: Clouds, edges: Edges, tmp_path: Path
) -> None:
    known, shown, token = tmp_path / "tokens", tmp_path / "token", make_token()
    known.write_text(token_line("one", token))
    shown.write_text(make_token())
    async with (
        clouds(tokens_file=str(known)) as cloud,
        edges(cloud=cloud.address, token_file=str(shown)) as edge,
        edges(cloud=cloud.address) as without,
    ):
        await until_trouble(edge, "UNAUTHENTICATED: expected a token that this server knows")
        with pytest.raises(RefusedError, match="another came") as caught:
            await edge.loop.submit(picture(0))
        assert shown.read_text() not in str(caught.value)
        await until_trouble(without, "none came")
        shown.write_text(token)
        await until(lambda: edge.loop.connected)
        assert (await edge.loop.submit(picture(0))).placement == "co_inference"


@pytest.mark.parametrize("placement", ["co_inference", "cloud_only"])
async def test_a_sample_over_its_rate_is_answered_later(
    clouds: Clouds, edges: Edges, placement: str
) -> None:
    async with (
        clouds(edge_samples_per_second=5.0) as cloud,
        edges(cloud=cloud.address, placement=placement) as edge,
    ):
        answers = await asyncio.gather(*(edge.loop.submit(picture(seed)) for seed in range(8)))
        assert {answer.placement for answer in answers} == {placement}
        assert edge.count("edge_replays_total", reason="no_slot") >= 1


async def test_old_streams_give_way_to_new_ones_without_a_sample_lost(
    clouds: Clouds, edges: Edges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_server.warden.ROUND_SECONDS", 0.01)
    async with (
        clouds(stream_life_seconds=0.2) as cloud,
        edges(cloud=cloud.address) as edge,
    ):
        answered = 0
        while edge.count("edge_retries_total", reason="draining") < 3:
            await edge.loop.submit(picture(answered))
            answered += 1
        assert edge.count("edge_inferences_total", placement="co_inference") == answered
        assert edge.count("edge_inferences_total", exit_reason="error") == 0


@pytest.mark.parametrize("placement", ["co_inference", "cloud_only"])
def test_a_cloud_elsewhere_is_refused_without_tls(placement: str) -> None:
    flags: dict[str, Any] = {"bundle": "b", "cloud": "192.0.2.1:50051", "placement": placement}
    with pytest.raises(ConfigError, match="tls_ca: expected one with a server that is not on"):
        load(None, flags)
    assert load(None, flags | {"insecure": True}).insecure
    assert load(None, flags | {"tls_ca": "default"}).tls_ca == "default"


def test_without_a_cloud_nothing_is_asked_for() -> None:
    flags = {"bundle": "b", "cloud": "192.0.2.1:50051", "placement": "edge_only"}
    assert load(None, flags).placement == "edge_only"


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({}, Checksum.CRC16),
        ({"tls_ca": "ca.pem"}, Checksum.NONE),
        ({"tls_ca": "ca.pem", "checksum": "crc16"}, Checksum.CRC16),
        ({"checksum": "none"}, Checksum.NONE),
    ],
)
def test_tls_guards_the_bits_itself(given: dict[str, Any], check: Checksum) -> None:
    assert EdgeConfig(bundle="b", **given).check is check


async def test_the_doctor_says_how_the_connection_is_secured(
    clouds: Clouds, edge_config: Callable[..., EdgeConfig], certificates: Certificates
) -> None:
    async with clouds(**certificates.server(mutual=True)) as cloud:
        shown = certificates.edge("one")
        checks = await doctor.examine(edge_config(cloud=cloud.address, **shown))
        found = {check.name: check for check in checks}
        assert found["cloud"].ok
        assert found["security"].found == f"TLS, trusting {shown['tls_ca']}, with a certificate"
        shown["tls_key"] = certificates.path("edge-two.key")
        checks = await doctor.examine(edge_config(cloud=cloud.address, **shown))
        (failed,) = [check for check in checks if not check.ok]
        assert failed.name == "credentials"
        assert "expected a certificate and its private key" in failed.found
