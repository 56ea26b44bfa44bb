"""The list of gRPC's interoperability tests, on our service, by a client in another language.

The client (``client.mjs``, Node.js with ``@grpc/grpc-js``) is made from the ``.proto`` alone. It
shares no code with the product: it packs, checks and numbers packets by itself.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_server.server import CloudServer
from shared.engine.base import Engine
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import (
    NEVER,
    Client,
    Start,
    expected_decisions,
    random_codes,
)

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PROTO = HERE.parents[2] / "protos" / "co_inference.proto"
SAMPLES = range(5)
Connect = Callable[[CloudServer], Client]
Run = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture(scope="session")
def node() -> str:
    """Node.js, with the client's packages installed beside it the first time."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        pytest.skip("expected node and npm (on Debian: apt-get install nodejs npm), not found")
    if not (HERE / "node_modules").is_dir():
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"expected npm to install the client's packages: {done.stderr[-500:]}")
    return program


@pytest.fixture
def run(node: str, tiny_bundle: Bundle) -> Run:
    """Run a case of the client against a server and return what it tells."""

    async def run_case(server: CloudServer, case: str, checksum: str = "CRC16") -> dict[str, Any]:
        samples = [
            [
                np.packbits(frame.reshape(-1)).tobytes().hex()
                for frame in random_codes(tiny_bundle, seed)
            ]
            for seed in SAMPLES
        ]
        facts = {
            "digest": tiny_bundle.digest,
            "alpha": NEVER,
            "checksum": checksum,
            "samples": samples,
        }
        process = await asyncio.create_subprocess_exec(
            *(node, "client.mjs", str(PROTO), server.address, case),
            cwd=HERE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(json.dumps(facts).encode())
        assert process.returncode == 0, err.decode()
        told: dict[str, Any] = json.loads(out)
        return told

    return run_case


def assert_right(told: dict[str, Any], tail: Engine, bundle: Bundle) -> None:
    """Every timestep of every sample was judged as the engine alone judges it."""
    assert told["code"] == "OK"
    verdicts = told["verdicts"]
    assert [(each["sample"], each["timestep"]) for each in verdicts] == [
        (sample, timestep) for sample in SAMPLES for timestep in range(bundle.spec.timesteps)
    ]
    expected = [
        decision
        for seed in SAMPLES
        for decision in expected_decisions(tail, bundle, list(random_codes(bundle, seed)))
    ]
    for verdict, decision in zip(verdicts, expected, strict=True):
        assert verdict["label"] == decision.label
        assert verdict["confidence"] == pytest.approx(decision.confidence, abs=1e-5)


@pytest.mark.parametrize("checksum", ["NONE", "CRC16"])
async def test_ping_pong_of_whole_samples(
    start: Start, run: Run, tail: Engine, tiny_bundle: Bundle, checksum: str
) -> None:
    told = await run(await start(), "ping_pong", checksum)
    assert told["opened"]["samples_in_flight"] == 1
    assert_right(told, tail, tiny_bundle)


async def test_custom_metadata_does_no_harm(
    start: Start, run: Run, tail: Engine, tiny_bundle: Bundle
) -> None:
    assert_right(await run(await start(), "custom_metadata"), tail, tiny_bundle)


@pytest.mark.parametrize(
    ("case", "code", "details"),
    [
        ("empty_stream", "INVALID_ARGUMENT", "expected open in the first message, got none"),
        ("cancel_after_begin", "CANCELLED", ""),
        ("cancel_after_first_response", "CANCELLED", ""),
        ("timeout_on_sleeping_server", "DEADLINE_EXCEEDED", ""),
        ("status_code_and_message", "FAILED_PRECONDITION", "got " + "07" * 32),
        ("unimplemented_method", "UNIMPLEMENTED", ""),
        ("unimplemented_service", "UNIMPLEMENTED", ""),
        ("huge_metadata", "RESOURCE_EXHAUSTED", ""),
    ],
)
async def test_a_stream_ends_as_it_should_and_leaves_nothing(
    start: Start, connect: Connect, run: Run, case: str, code: str, details: str
) -> None:
    server = await start()
    told = await run(server, case)
    assert told["code"] == code
    assert details in told["details"]
    client = connect(server)
    await client.until_all_slots_are_back()
    async with client.opened() as edge:
        assert len(await edge.run(0, random_codes(client.bundle, 0))) == 4


async def test_a_refused_client_can_read_when_to_come_again(
    start: Start, connect: Connect, run: Run
) -> None:
    server = await start(max_streams=1, overload_retry_seconds=2.5)
    async with connect(server).opened():
        told = await run(server, "overload")
    assert (told["code"], told["pushback"]) == ("RESOURCE_EXHAUSTED", ["2500"])


async def test_describe_tells_the_model(start: Start, run: Run, tiny_bundle: Bundle) -> None:
    told = await run(await start(), "describe")
    (model,) = told["models"]
    assert model["digest"] == tiny_bundle.digest
    assert model["code_shape"] == list(tiny_bundle.spec.code_shape)
