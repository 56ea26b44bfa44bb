"""An edge that is told of several servers, or of a name."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.config import EdgeConfig
from tests.conftest import Certificates
from tests.edge_agent.conftest import Clouds, Edges, png


@pytest.mark.parametrize("address", ["127.0.0.1:1,127.0.0.1:{port}", "dns:///localhost:{port}"])
async def test_the_server_that_can_be_reached_answers(
    clouds: Clouds, edges: Edges, address: str
) -> None:
    async with clouds() as cloud, edges(cloud=address.format(port=cloud.port)) as edge:
        for seed in range(3):
            assert (await edge.loop.submit(png(seed))).placement == "co_inference"
        assert edge.count("edge_wire_bytes_total", direction="sent") > 0
        assert edge.counts("edge_replays_total", 0)


async def test_a_list_of_servers_has_one_name_in_their_certificates(
    clouds: Clouds, edges: Edges, certificates: Certificates
) -> None:
    keys: dict[str, Any] = certificates.edge("one") | {"tls_server_name": "localhost"}
    async with (
        clouds(**certificates.server(mutual=True)) as cloud,
        edges(cloud=f"127.0.0.1:1,127.0.0.1:{cloud.port}", **keys) as edge,
    ):
        assert (await edge.loop.submit(png(0))).placement == "co_inference"


def test_that_name_must_be_told() -> None:
    with pytest.raises(ValueError, match="tls_server_name: expected the name in the certificates"):
        EdgeConfig(bundle="b", cloud="10.0.0.1:1,10.0.0.2:1", tls_ca="ca.pem")
