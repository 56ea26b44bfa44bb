"""Several servers and several models under streams, with the parts that the benchmark runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from benchmarks import scale
from benchmarks.fleet import Codes
from benchmarks.load import head_codes, open_message, smooth_pictures
from benchmarks.replicas import Replica, addresses, envoy, envoy_binary, replicas
from protos.co_inference_pb2_grpc import CoInferenceStub
from shared import rpc
from shared.credentials import ClientFiles
from shared.model.bundle import Bundle

EDGES = 12
needs_envoy = pytest.mark.skipif(envoy_binary() is None, reason="needs the extra envoy")
WAYS = ["list", pytest.param("envoy", marks=needs_envoy)]


@pytest.fixture(scope="module")
def samples(tiny_bundle: Bundle) -> list[Codes]:
    return list(head_codes(tiny_bundle, smooth_pictures(tiny_bundle.spec.input_shape, 4)))


@pytest.fixture(scope="module")
def three(tiny_bundle: Bundle) -> Iterator[list[Replica]]:
    """Three servers whose streams live for at most two seconds."""
    with replicas(3, tiny_bundle.path, stream_life_seconds=2.0) as servers:
        yield servers


@contextlib.contextmanager
def entered(way: str, servers: list[Replica]) -> Iterator[str]:
    """Return where edges connect."""
    if way == "list":
        yield addresses(servers)
    else:
        with envoy([server.address for server in servers]) as address:
            yield address


@pytest.mark.parametrize("way", WAYS)
async def test_a_killed_server_costs_each_of_its_streams_one_replay(
    way: str, three: list[Replica], tiny_bundle: Bundle, samples: list[Codes]
) -> None:
    with entered(way, three) as cloud:
        lost = await scale.kill_one(three, cloud, tiny_bundle, samples, EDGES, 0.5)
    assert lost.streams > 0
    assert lost.unanswered == 0
    assert lost.most_replays == 1
    assert max(lost.first_answer_seconds) < 10
    assert lost.even_seconds < 30


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_drains_loses_no_stream(
    way: str, three: list[Replica], tiny_bundle: Bundle, samples: list[Codes]
) -> None:
    with entered(way, three) as cloud:
        async with scale.edges(EDGES, cloud, tiny_bundle, samples) as there:
            there.start()
            leaving = max(three, key=Replica.streams)
            leaving.signal(signal.SIGTERM)
            await asyncio.to_thread(leaving.end)
            others = [server for server in three if server is not leaving]
            before = there.answered
            while sum([server.streams() for server in others]) < EDGES:
                await asyncio.sleep(0.05)
            while there.answered < before + 4 * EDGES:
                await asyncio.sleep(0.05)
            await there.stop()
    leaving.start()
    leaving.wait()
    assert there.begun == there.answered
    assert there.replays() == there.lost_streams() == [0] * EDGES


async def test_many_streams_are_served_evenly(tiny_bundle: Bundle, samples: list[Codes]) -> None:
    with replicas(1, tiny_bundle.path) as (server,):
        fair = await scale.many(server.address, tiny_bundle, samples, 32, 1.0)
    assert fair.unanswered == 0
    assert fair.slowest_over_mean >= 0.5


async def test_models_come_and_go_under_streams(
    tiny_bundle: Bundle, samples: list[Codes], tmp_path: Path
) -> None:
    versions = (
        tiny_bundle,
        scale.version(tiny_bundle, tmp_path, "second"),
        scale.version(tiny_bundle, tmp_path, "third"),
    )
    admin = f"unix:{tmp_path}/admin.sock"
    with replicas(1, tiny_bundle.path, admin=admin) as (server,):
        changing = await scale.change_models(
            server.address, admin, versions, samples, 4, changes=2, quiet_seconds=0.3
        )
    assert changing.unanswered == 0
    assert len(changing.load_seconds) == len(changing.unload_seconds) == 2


@needs_envoy
async def test_envoy_as_shipped_knows_edges_by_certificate_and_keeps_them_together(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    certs = pytest.importorskip("cloud_server.certs", reason="makes certificates")
    names = [f"edge-{number}" for number in range(8)]
    certs.make_certificates(tmp_path, ["cloud", "127.0.0.1"], [*names, "envoy"], 30)
    pem = {name: str(tmp_path / name) for name in ("ca.pem", "server.pem", "server.key")}
    values: dict[str, Any] = {
        "tls_client_ca": pem["ca.pem"],
        "tls_certificate": pem["server.pem"],
        "tls_key": pem["server.key"],
        "proxies": ["CN=envoy"],
        "edge_max_streams": 3,
    }
    with (
        replicas(2, tiny_bundle.path, **values) as servers,
        envoy([server.address for server in servers], tmp_path) as address,
    ):
        held = []
        async with contextlib.AsyncExitStack() as stack:
            for name in names:
                edge = ClientFiles(
                    tls_ca=pem["ca.pem"],
                    tls_certificate=str(tmp_path / f"edge-{name}.pem"),
                    tls_key=str(tmp_path / f"edge-{name}.key"),
                )
                opened = [await opens(stack, address, edge, tiny_bundle) for _ in range(4)]
                assert opened == [True] * 3 + [False]  # Not more than one edge may have.
                held.append([server.streams() for server in servers])
            unknown = ClientFiles(tls_ca=pem["ca.pem"])
            assert not await opens(stack, address, unknown, tiny_bundle)
    steps = np.diff([[0, 0], *held], axis=0).tolist()
    assert {tuple(step) for step in steps} <= {(3, 0), (0, 3)}


async def opens(
    stack: contextlib.AsyncExitStack, address: str, edge: ClientFiles, bundle: Bundle
) -> bool:
    """Open one more stream of an edge; say whether it was let in."""
    channel = await stack.enter_async_context(rpc.channel(address, edge.read()))
    call = CoInferenceStub(channel).Infer()  # type: ignore[no-untyped-call]
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call.write(open_message(bundle))
        reply = await call.read()
        return reply is not grpc.aio.EOF and reply.HasField("opened")
    return False
