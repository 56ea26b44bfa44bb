"""Models that come and go under open streams, asked for over the admin socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import shutil
import stat
import threading
import urllib.request
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import safetensors.numpy
from prometheus_client import CollectorRegistry

from cloud_server import cli
from cloud_server.config import CloudConfig
from cloud_server.model_store import CloudWork, ModelStore
from cloud_server.scheduler import Judged
from cloud_server.server import CloudServer
from protos import co_inference_pb2 as pb
from protos import model_admin_pb2 as admin_pb
from protos.model_admin_pb2_grpc import ModelAdminStub
from shared import rpc, wire
from shared.engine import onnx_runtime
from shared.errors import SampleCode
from shared.exit_rule import Confidence
from shared.messages import Settings
from shared.metrics import CloudMetrics
from shared.model.bundle import WEIGHTS, Bundle, file_digest
from tests.cloud_server.conftest import (
    NEVER,
    Client,
    Edge,
    Start,
    expected_decisions,
    random_codes,
)

Connect = Callable[[CloudServer], Client]


@pytest.fixture(scope="module")
def next_version(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle's successor: same name, its classes in another order."""
    path = tmp_path_factory.mktemp("bundles") / "next"
    shutil.copytree(tiny_bundle.path, path)
    tensors = safetensors.numpy.load((path / WEIGHTS).read_bytes())
    rolled = {name: np.roll(a, 1, 0) if len(a) == 10 else a for name, a in tensors.items()}
    weights = safetensors.numpy.save(rolled)
    (path / WEIGHTS).write_bytes(weights)
    files = tiny_bundle.manifest.files | {WEIGHTS: file_digest(weights)}
    return changed(Bundle(path), version="1", files=files)


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    """Change values in a bundle's manifest."""
    path = bundle.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    return Bundle(bundle.path)


@pytest.fixture
async def server(start: Start, tmp_path: Path) -> CloudServer:
    """A server of the tiny bundle with an admin socket."""
    return await start(
        admin=f"unix:{tmp_path}/admin.sock", metrics="127.0.0.1:0", drain_seconds=2.0
    )


@pytest.fixture
async def admin(server: CloudServer, tmp_path: Path) -> AsyncIterator[Any]:
    async with rpc.channel(f"unix:{tmp_path}/admin.sock") as channel:
        yield ModelAdminStub(channel)  # type: ignore[no-untyped-call]


async def load(admin: Any, bundle: Bundle, **fields: Any) -> Any:
    return await admin.Load(admin_pb.LoadRequest(path=str(bundle.path), **fields))


def unload(admin: Any, model: str, wait_seconds: float = 60.0) -> Any:
    return admin.Unload(admin_pb.UnloadRequest(model=model, wait_seconds=wait_seconds))


async def refused(call: Any) -> tuple[str, str]:
    """Return status and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def labels(server: CloudServer) -> set[str]:
    """Return the values of the label ``model`` of the server's metrics."""

    def read() -> str:
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as reply:
            text: str = reply.read().decode()
        return text

    text = await asyncio.to_thread(read)
    return {part.split('"')[0] for part in text.split('model="')[1:]}


async def assert_answers(edge: Edge, bundle: Bundle, number: int) -> None:
    """Run a sample and compare with the bundle's own tail."""
    codes = random_codes(bundle, number)
    engine = onnx_runtime.load_engine(bundle, "tail")
    expected = expected_decisions(engine, bundle, list(codes))
    verdicts = await edge.run(number, codes)
    assert [verdict.label for verdict in verdicts] == [each.label for each in expected]
    found = [verdict.confidence for verdict in verdicts]
    np.testing.assert_allclose(found, [each.confidence for each in expected], atol=1e-5)


async def test_streams_end_on_the_old_version_while_new_ones_run_the_new(
    server: CloudServer, connect: Connect, admin: Any, tiny_bundle: Bundle, next_version: Bundle
) -> None:
    old = connect(server)
    new = Client(old.channel, next_version)
    async with old.opened() as before:
        await assert_answers(before, tiny_bundle, 0)
        loaded = await load(admin, next_version, make_default=True)
        assert (loaded.label, loaded.model.is_default) == ("untrained-1", True)
        going = asyncio.ensure_future(unload(admin, "untrained"))
        while not (await admin.List(admin_pb.ListRequest())).models[-1].unloading:
            await asyncio.sleep(0.005)
        async with new.opened() as after, old.stream() as late:
            await asyncio.gather(
                assert_answers(before, tiny_bundle, 1), assert_answers(after, next_version, 0)
            )
            code, details = await late.status()
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert f"(untrained 1 {next_version.digest}), got {tiny_bundle.digest}" in details
            models = (await admin.List(admin_pb.ListRequest())).models
            assert [(m.label, m.streams, m.unloading) for m in models] == [
                ("untrained-1", 1, False),
                ("untrained", 1, True),
            ]
        assert not going.done()
        await before.call.done_writing()
        assert (await before.status())[0] is grpc.StatusCode.OK
    async with asyncio.timeout(10):
        assert (await going).ended_streams == 0
    assert await labels(server) == {"untrained-1"}


async def test_an_unload_that_waits_no_longer_ends_streams_between_two_samples(
    server: CloudServer, connect: Connect, admin: Any, tiny_bundle: Bundle, next_version: Bundle
) -> None:
    client = connect(server)
    codes = random_codes(tiny_bundle, 0)
    await load(admin, next_version, make_default=True)
    async with client.opened() as edge, client.opened() as stuck:
        packets = edge.packets(0, codes)
        for each in (edge, stuck):
            await each.send(packets[0])
            await each.answer()
        going = asyncio.ensure_future(unload(admin, tiny_bundle.digest[:8], 0))
        while (await edge.receive()).draining is None:
            pass
        for packet in packets[1:]:
            await edge.send(packet)
            verdict = await edge.answer()
        assert verdict.timestep == 3
        assert (await edge.status())[0] is grpc.StatusCode.OK
        code, details = await stuck.status()  # It never goes on with its sample.
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "untrained 0 is being unloaded" in details
    assert (await going).ended_streams == 2


async def test_an_unloaded_model_gives_back_memory_threads_and_series(
    start: Start,
    connect: Connect,
    next_version: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines: list[weakref.ref[Any]] = []
    load_engine = onnx_runtime.load_engine

    def load_watched(*arguments: Any, **keywords: Any) -> Any:
        engine = load_engine(*arguments, **keywords)
        engines.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(onnx_runtime, "load_engine", load_watched)
    address = f"unix:{tmp_path}/admin.sock"
    server = await start(admin=address, metrics="127.0.0.1:0")
    client = connect(server)
    async with rpc.channel(address) as channel:
        admin = ModelAdminStub(channel)  # type: ignore[no-untyped-call]
        known = await labels(server)
        for _ in range(3):
            await load(admin, next_version)
            new = Client(client.channel, next_version)
            async with new.opened() as edge:
                await edge.run(0, random_codes(next_version, 0))
            async with image_stream(new, bytes.fromhex(next_version.digest)) as call:
                await classify(call)
            assert await labels(server) == known | {"untrained-1", "untrained-1/whole"}
            assert any("untrained-1" in thread.name for thread in threading.enumerate())
            await unload(admin, "untrained-1")
            gc.collect()
            assert [each() is None for each in engines] == [False] + [True] * (len(engines) - 1)
            async with asyncio.timeout(10):
                while any("untrained-1" in thread.name for thread in threading.enumerate()):
                    await asyncio.sleep(0.005)
            assert await labels(server) == known
    assert len(engines) == 7


@contextlib.asynccontextmanager
async def image_stream(client: Client, digest: bytes) -> AsyncIterator[Any]:
    """Open an ``ImageStream``; read Opened."""
    call = client.stub.ImageStream()
    opening = pb.OpenImages(
        protocol_version=1,
        model_digest=digest,
        settings=wire.settings_to_proto(Settings(alpha=NEVER)),
        samples_in_flight=1,
    )
    await call.write(pb.ImageMessage(open=opening))
    call.opened = (await call.read()).opened
    yield call
    call.cancel()


async def classify(call: Any) -> Any:
    """Send an input and return the verdict on its last timestep."""
    array = pb.Array(shape=(3, 32, 32), dtype=pb.Array.UINT8, data=bytes(3 * 32 * 32))
    await call.write(pb.ImageMessage(input=pb.SampleInput(array=array)))
    while True:
        for verdict in (await call.read()).verdicts:
            if verdict.timestep == 3:
                return verdict


async def test_streams_that_name_no_model_get_the_default_of_their_time(
    server: CloudServer, connect: Connect, admin: Any, next_version: Bundle
) -> None:
    client = connect(server)
    async with image_stream(client, b"") as before:
        assert before.opened.model == "untrained 0"
        await load(admin, next_version)
        model = await admin.SetDefault(admin_pb.SetDefaultRequest(model="untrained-1"))
        assert model.model.is_default
        described = (await client.describe()).models
        assert [(each.version, each.is_default) for each in described] == [
            ("0", False),
            ("1", True),
        ]
        async with image_stream(client, b"") as after:
            assert after.opened.model == "untrained 1"
            labels = [(await classify(call)).label for call in (before, after)]
            assert (labels[0] + 1) % 10 == labels[1]  # Their classes are in another order.


async def test_versions_come_and_go_under_load(
    server: CloudServer, connect: Connect, admin: Any, tiny_bundle: Bundle, next_version: Bundle
) -> None:
    client = connect(server)
    stop = asyncio.Event()

    async def keep_asking(bundle: Bundle) -> int:
        number = 0
        async with Client(client.channel, bundle).opened() as edge:
            while not stop.is_set():
                assert len(await edge.run(number, random_codes(bundle, number))) == 4
                number += 1
        return number

    asking = [asyncio.create_task(keep_asking(tiny_bundle)) for _ in range(4)]
    for _ in range(4):
        await load(admin, next_version)
        async with Client(client.channel, next_version).opened() as edge:
            await assert_answers(edge, next_version, 0)
        await unload(admin, "untrained-1")
    stop.set()
    assert min(await asyncio.gather(*asking)) > 0


class Nobody:
    """Does not listen."""

    def judged(self, judged: Judged) -> None:
        pass

    def failed(self, code: SampleCode, message: str) -> None:
        pass


async def test_work_on_models_that_leave_or_are_gone_counts(
    tiny_bundle: Bundle, next_version: Bundle
) -> None:
    config = CloudConfig(bundles=(str(tiny_bundle.path),))
    store = ModelStore(config, CloudMetrics(CollectorRegistry()))
    model = await store.load(next_version.path)
    sample = model.tail.scheduler.begin(Nobody(), Confidence.MAX_SOFTMAX)
    store.retire(model)
    assert store.work == CloudWork(begun=1, under_way=1)
    model.tail.scheduler.release(sample)
    await store.forget(model)
    assert store.work == CloudWork(begun=1, under_way=0)
    await store.close()


async def test_what_cannot_be_is_refused_and_says_why(
    server: CloudServer, admin: Any, tiny_bundle: Bundle, next_version: Bundle, tmp_path: Path
) -> None:
    relative = admin.Load(admin_pb.LoadRequest(path="bundles/next"))
    assert await refused(relative) == (
        "INVALID_ARGUMENT",
        "expected an absolute path, got 'bundles/next'",
    )
    nothing = admin.Load(admin_pb.LoadRequest(path=str(tmp_path / "none")))
    code, details = await refused(nothing)
    assert code == "FAILED_PRECONDITION" and "none/manifest.json" in details
    code, details = await refused(load(admin, tiny_bundle))
    assert code == "FAILED_PRECONDITION" and "untrained 0 is served already" in details
    twin = changed(Bundle(shutil.copytree(next_version.path, tmp_path / "twin")), version="0")
    code, details = await refused(load(admin, twin))
    assert code == "FAILED_PRECONDITION" and "another name or version than untrained 0" in details
    damaged = Bundle(shutil.copytree(next_version.path, tmp_path / "damaged"))
    (damaged.path / "tail.onnx").write_bytes(b"damaged")
    code, details = await refused(load(admin, damaged))
    assert code == "FAILED_PRECONDITION" and "expected SHA-256" in details
    code, details = await refused(unload(admin, "untrained"))
    assert code == "FAILED_PRECONDITION" and "expected another default before" in details
    for name in ("tiny", "", tiny_bundle.digest[:5]):
        code, details = await refused(unload(admin, name))
        assert code == "NOT_FOUND" and f"got {name!r}, which 0 are called" in details
    code, details = await refused(unload(admin, "untrained", -1.0))
    assert code == "INVALID_ARGUMENT" and "got -1.0" in details
    assert [m.label for m in (await admin.List(admin_pb.ListRequest())).models] == ["untrained"]


async def test_only_the_servers_user_may_open_the_socket(
    server: CloudServer, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await server.stop()
    assert not path.exists()


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run ``neucodex-cloud models`` on a thread of its own."""
    code = await asyncio.to_thread(cli.main, ["models", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


async def test_the_command_line_loads_lists_and_unloads(
    server: CloudServer, next_version: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f'admin = "unix:{tmp_path}/admin.sock"\n')
    there = ("--config", str(config))
    code, out, _ = await run(capsys, "load", str(next_version.path), "--default", *there)
    assert code == 0 and "default   yes" in out and "label     untrained-1" in out
    code, out, err = await run(capsys, "unload", "untrained-1", *there)
    assert (code, out) == (2, "") and "expected another default" in err
    assert (await run(capsys, "default", "untrained", *there))[0] == 0
    code, out, _ = await run(capsys, "unload", "untrained-1", "--wait-seconds", "5", *there)
    assert (code, out) == (0, "unloaded; 0 streams had not ended by themselves\n")
    code, out, _ = await run(capsys, "list", *there)
    assert code == 0 and "untrained-1" not in out and "streams   0" in out
    code, _, err = await run(capsys, "list", "--admin", f"unix:{tmp_path}/none.sock")
    assert code == 2 and "expected the admin socket of a NeuCODEX cloud server" in err
    code, _, err = await run(capsys, "list")
    assert code == 2 and "admin: expected the server's admin socket" in err
