"""Models fetched from a real cloud: cut, damaged, crowded; and daemons that change over to them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.config import CloudConfig
from cloud_server.files import file_chunks
from cloud_server.server import CloudServer, create
from edge_agent.config import EdgeConfig
from edge_agent.daemon import running
from edge_agent.pull import Cloud, Pulled, pull
from examples.demo import BUNDLE
from protos import co_inference_pb2 as pb
from protos import co_inference_pb2_grpc
from shared import rpc
from shared.credentials import ClientFiles
from shared.errors import BundleError, ConfigError, InputError, LinkLostError, ProtocolError
from shared.model.bundle import MANIFEST, WEIGHTS, Bundle, canonical
from shared.tokens import make_token, token_line
from tests.edge_agent.conftest import Relay, picture, until

DEMO = Bundle(BUNDLE)
NAME = DEMO.manifest.name
OLD, NEW = f"{NAME}@{DEMO.manifest.version}", f"{NAME}@next"
Clouds = Callable[..., contextlib.AbstractAsyncContextManager[CloudServer]]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """The shipped network, and a version with other weights in head and tail, and other labels."""
    folder = tmp_path_factory.mktemp("versions") / "next"
    shutil.copytree(DEMO.path, folder)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    header_bytes = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + header_bytes])
    for name in ("backbone.stem.conv.conv.bias", "tail.classifier.linear.bias"):
        begin, end = (8 + header_bytes + offset for offset in header[name]["data_offsets"])
        weights[begin:end] = np.frombuffer(weights[begin:end], np.float32)[::-1].tobytes()
    (folder / WEIGHTS).write_bytes(weights)
    manifest = msgspec.structs.replace(
        DEMO.manifest,
        version="next",
        labels=tuple(f"new {label}" for label in DEMO.manifest.labels),
        files=DEMO.manifest.files | {WEIGHTS: hashlib.sha256(weights).hexdigest()},
    )
    (folder / MANIFEST).write_bytes(canonical(manifest))
    return DEMO, Bundle(folder)


@pytest.fixture
def clouds() -> Clouds:
    """Make cloud servers in this process; keywords are configuration keys."""

    @contextlib.asynccontextmanager
    async def make(**values: Any) -> AsyncIterator[CloudServer]:
        server = await create(CloudConfig(listen="127.0.0.1:0", metrics="", **values))
        try:
            yield server
        finally:
            await server.stop()

    return make


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """Where a device has its model."""
    return tmp_path / "models" / "model"


def served(*bundles: Bundle) -> dict[str, Any]:
    return {"bundles": tuple(str(bundle.path) for bundle in bundles)}


def configured(link: Path, cloud: CloudServer, **more: Any) -> EdgeConfig:
    keys = {"bundle": str(link), "cloud": cloud.address, "listen": "127.0.0.1:0", "metrics": ""}
    return EdgeConfig(**(keys | {"window": 1} | more))


def at(address: str, **keys: str) -> Cloud:
    return Cloud(address=address, credentials=ClientFiles(**keys).watched())


def size_bytes(bundle: Bundle, *names: str) -> int:
    return sum((bundle.path / name).stat().st_size for name in names or wanted(bundle))


def wanted(bundle: Bundle) -> set[str]:
    """Return the files that a device gets by default."""
    graphs = {bundle.manifest.parts["tail"].graph, bundle.manifest.parts["whole"].graph}
    return {MANIFEST, *bundle.manifest.files} - graphs


SMALL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
from edge_agent.__main__ import main
sys.exit(main())
"""


async def start(
    server: CloudServer, link: Path, *flags: str, program: tuple[str, str] = ("-m", "edge_agent")
) -> Any:
    """Start ``neucodex-edge pull`` as a process of its own."""
    command = ("pull", "--cloud", server.address, "--bundle", str(link), *flags)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, *program, *command, stdout=pipe, stderr=pipe
    )


async def outcome(process: Any) -> tuple[int, str]:
    out, error = await process.communicate()
    return process.returncode, (out + error).decode()


def fetched_bytes(said: str) -> int:
    return int(said.split(" bytes fetched")[0].split()[-1])


def part_bytes(link: Path) -> int:
    """Return what has come of files that are not whole."""
    folder = link.with_name(f"{link.name}.versions")
    return sum(part.stat().st_size for part in folder.glob("*/*.part"))


async def test_a_device_gets_head_codec_and_calibration_under_the_same_digest(
    clouds: Clouds, versions: tuple[Bundle, Bundle], link: Path
) -> None:
    old, new = versions
    async with clouds(**served(old, new)) as cloud:
        first = await pull(at(cloud.address), OLD, link)
        assert first.fetched_bytes == size_bytes(old)
        assert {path.name for path in link.iterdir()} == wanted(old)
        assert Bundle(link).digest == old.digest
        assert not Bundle(link).has("tail")

        again = await pull(at(cloud.address), old.digest[:12], link)
        assert (again.fetched_bytes, again.changed) == (0, False)
        tail = await pull(at(cloud.address), OLD, link, with_tail=True)
        assert tail.fetched_bytes == size_bytes(old, old.manifest.parts["tail"].graph)
        assert Bundle(link).has("tail")

        second = await pull(at(cloud.address), NEW, link)
        assert second.changed
        assert Bundle(link.resolve()).digest == new.digest
        # The version before stays for whoever runs it still.
        assert Bundle(first.path).has("tail")


async def test_what_a_broken_connection_cut_off_goes_on(
    clouds: Clouds, versions: tuple[Bundle, Bundle], relay: Relay, link: Path
) -> None:
    bundle = versions[0]
    whole_bytes = size_bytes(bundle)
    async with clouds(**served(bundle), edge_fetch_bytes_per_second=whole_bytes / 2) as cloud:
        relay.target = cloud.address
        task = asyncio.create_task(pull(at(relay.address), None, link))
        await until(lambda: part_bytes(link) > 700_000)
        relay.cut()
        pulled: Pulled = await task
    assert pulled.fetched_bytes == whole_bytes
    assert Bundle(link).digest == bundle.digest


async def test_a_killed_pull_goes_on_where_it_stopped_and_two_at_once_share_the_work(
    clouds: Clouds, versions: tuple[Bundle, Bundle], link: Path
) -> None:
    bundle = versions[0]
    whole_bytes = size_bytes(bundle)
    async with clouds(**served(bundle), edge_fetch_bytes_per_second=whole_bytes / 2) as cloud:
        killed = await start(cloud, link)
        await until(lambda: part_bytes(link) > 700_000)
        killed.kill()
        await killed.wait()
        assert not link.exists()
        (folder,) = link.with_name("model.versions").glob("*/")
        there_bytes = sum(path.stat().st_size for path in folder.iterdir())

        both = [await start(cloud, link) for _ in range(2)]
        told = [await outcome(process) for process in both]
    assert [code for code, _ in told] == [0, 0], told
    assert there_bytes + sum(fetched_bytes(said) for _, said in told) == whole_bytes
    assert Bundle(link).digest == bundle.digest


async def test_a_full_disk_is_told_and_leaves_the_model_as_it_was(
    clouds: Clouds, versions: tuple[Bundle, Bundle], link: Path
) -> None:
    old, new = versions
    small_disk = SMALL_DISK.format(3_000_000)
    async with clouds(**served(old, new)) as cloud:
        await pull(at(cloud.address), OLD, link)
        code, said = await outcome(await start(cloud, link, NEW, program=("-c", small_disk)))
        assert code == 2
        assert "File too large" in said
        assert Bundle(link).digest == old.digest
        rest = await pull(at(cloud.address), NEW, link)
        assert rest.fetched_bytes < size_bytes(new, WEIGHTS)
    assert Bundle(link.resolve()).digest == new.digest


async def test_damage_is_found_and_brought_anew(
    clouds: Clouds, versions: tuple[Bundle, Bundle], link: Path, tmp_path: Path
) -> None:
    good = versions[0]
    source = tmp_path / "served"
    shutil.copytree(good.path, source)
    weights = source / WEIGHTS
    async with clouds(**served(Bundle(source))) as cloud:
        content = weights.read_bytes()
        weights.write_bytes(b"\0" + content[1:])
        with pytest.raises(BundleError, match=r"weights.safetensors: expected SHA-256 \w+, got"):
            await pull(at(cloud.address), None, link)
        assert not link.exists()

        weights.write_bytes(content)
        part = link.with_name("model.versions") / good.digest / f"{WEIGHTS}.part"
        for rubbish in (b"rubbish", content + b"more than there is"):
            part.write_bytes(rubbish)
            pulled = await pull(at(cloud.address), None, link)
            assert Bundle(link).read(WEIGHTS) == content
            assert not part.exists()
            (pulled.path / WEIGHTS).write_bytes(b"damaged on the disk")


async def test_what_cannot_be_pulled_is_said(
    clouds: Clouds, versions: tuple[Bundle, Bundle], link: Path, tmp_path: Path
) -> None:
    old, new = versions
    async with clouds(**served(old, new)) as cloud:
        there = at(cloud.address)
        with pytest.raises(ConfigError, match=f"serves .{OLD} .*got other$"):
            await pull(there, "other", link)
        with pytest.raises(ConfigError, match=f"got {NAME}, which is several"):
            await pull(there, NAME, link)
        folder = tmp_path / "folder"
        folder.mkdir()
        with pytest.raises(ConfigError, match="expected a link that pull may move"):
            await pull(there, OLD, folder)
        assert list(folder.iterdir()) == []
    with pytest.raises(LinkLostError):
        await pull(there, None, link)


class Liar(co_inference_pb2_grpc.CoInferenceServicer):
    """A cloud that says it has a model of some digest, and sends what it likes."""

    def __init__(self, digest: bytes, sent: bytes) -> None:
        self._digest = digest
        self._sent = sent

    async def Describe(self, request: Any, context: Any) -> pb.DescribeReply:  # noqa: N802
        return pb.DescribeReply(models=[pb.Model(name="any", version="1", digest=self._digest)])

    async def Fetch(self, request: Any, context: Any) -> AsyncIterator[pb.FetchChunk]:  # noqa: N802
        yield pb.FetchChunk(data=self._sent, file_bytes=len(self._sent))


@pytest.mark.parametrize(
    ("digest", "sent", "error", "says"),
    [
        (b"", b"", ProtocolError, "expected a digest of 32 bytes"),
        (b"../../../../etc/neucodex/some/path", b"", ProtocolError, "expected a digest of 32"),
        (bytes(32), b"{}", BundleError, "manifest.json: .*missing required field"),
        (bytes(32), (BUNDLE / MANIFEST).read_bytes(), BundleError, "expected digest 0+, got "),
        (bytes(32), bytes(5 << 20), BundleError, "expected at most 4194304 bytes, more come"),
    ],
    ids=["no digest", "another digest", "no manifest", "another manifest", "too much"],
)
async def test_a_cloud_that_lies_puts_nothing_in_place(
    digest: bytes, sent: bytes, error: type[Exception], says: str, link: Path
) -> None:
    server = rpc.server()
    co_inference_pb2_grpc.add_CoInferenceServicer_to_server(  # type: ignore[no-untyped-call]
        Liar(digest, sent), server
    )
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(error, match=says):
            await pull(at(f"127.0.0.1:{port}"), None, link)
    finally:
        await server.stop(None)
    assert not link.exists()
    assert not list(link.parent.glob("model.versions/*/*"))


async def test_only_edges_that_are_let_in_get_a_file(
    clouds: Clouds, versions: tuple[Bundle, Bundle], link: Path, tmp_path: Path
) -> None:
    token, tokens = make_token(), tmp_path / "tokens"
    tokens.write_text(token_line("device", token) + "\n")
    shown = tmp_path / "token"
    shown.write_text(token)
    bundle = versions[0]
    async with clouds(**served(bundle), tokens_file=str(tokens)) as cloud:
        with pytest.raises(LinkLostError, match="UNAUTHENTICATED"):
            await pull(at(cloud.address), None, link)
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
            await fetch(cloud, bundle, MANIFEST)
        await pull(at(cloud.address, token_file=str(shown)), None, link)


async def fetch(cloud: CloudServer, bundle: Bundle, name: str, offset: int = 0) -> bytes:
    digest = bytes.fromhex(bundle.digest)
    async with grpc.aio.insecure_channel(cloud.address) as channel:
        stub = co_inference_pb2_grpc.CoInferenceStub(channel)  # type: ignore[no-untyped-call]
        call: Any = stub.Fetch(pb.FetchRequest(model_digest=digest, file=name, offset=offset))
        return b"".join([chunk.data async for chunk in call])


async def test_the_server_sends_nothing_but_the_files_of_its_models(
    clouds: Clouds, versions: tuple[Bundle, Bundle]
) -> None:
    bundle, other = versions
    async with clouds(**served(bundle)) as cloud:
        for name in ("../1/manifest.json", "/etc/passwd", "./manifest.json", "", ".", "x" * 5000):
            with pytest.raises(grpc.aio.AioRpcError, match="expected a file that this server"):
                await fetch(cloud, bundle, name)
        with pytest.raises(grpc.aio.AioRpcError, match="expected an offset of at most"):
            await fetch(cloud, bundle, MANIFEST, 1 << 63)
        with pytest.raises(grpc.aio.AioRpcError, match="expected the digest of a served model"):
            await fetch(cloud, other, MANIFEST)
        assert (
            await fetch(cloud, bundle, MANIFEST, 10) == ((bundle.path / MANIFEST).read_bytes()[10:])
        )


@given(st.text())
def test_no_name_leads_out_of_the_manifest(name: str) -> None:
    if name != MANIFEST and name not in DEMO.manifest.files:
        with pytest.raises(InputError):
            anext(file_chunks(DEMO, name, 0)).__await__().send(None)


async def test_files_of_one_edge_are_counted_apart_from_its_streams(
    clouds: Clouds, versions: tuple[Bundle, Bundle], link: Path
) -> None:
    bundle = versions[0]
    rate = size_bytes(bundle) / 2
    limits = {"edge_max_streams": 1, "edge_fetch_bytes_per_second": rate}
    async with clouds(**served(bundle), **limits) as cloud:
        task = asyncio.create_task(pull(at(cloud.address), None, link))
        # Smaller files are gone in no time, and between two of them the place is free.
        await until(lambda: part_bytes(link) > 1 << 20)
        with pytest.raises(grpc.aio.AioRpcError, match="at most 1 fetches of one edge"):
            await fetch(cloud, bundle, MANIFEST)
        await task


async def test_a_running_daemon_changes_over_between_two_samples(
    clouds: Clouds,
    versions: tuple[Bundle, Bundle],
    link: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_agent.switch.LOOK_SECONDS", 0.02)
    pictures = [picture(seed) for seed in range(6)]
    async with clouds(**served(*versions)) as cloud:
        there = at(cloud.address)
        answers: dict[str, set[tuple[int, str, float]]] = {}

        for version in (NEW, OLD):
            await pull(there, version, link)
            async with running(configured(link, cloud)) as daemon:
                found = [await (await daemon.loops.put(each)) for each in pictures]
                answers[version] = {facts(n, answer) for n, answer in enumerate(found)}
        assert not answers[OLD] & answers[NEW]

        async with running(configured(link, cloud, samples_in_flight=3)) as daemon:
            mixed: list[tuple[int, str, float]] = []

            async def ask_all() -> None:
                futures = [await daemon.loops.put(each) for each in pictures]
                mixed.extend([facts(n, await each) for n, each in enumerate(futures)])

            async def ask_on() -> None:
                while daemon.loop.bundle.digest != versions[1].digest:
                    await ask_all()

            asking = asyncio.create_task(ask_on())
            await until(lambda: mixed)
            await pull(there, NEW, link)
            await asking
            during = len(mixed)
            await ask_all()
            assert set(mixed) <= answers[OLD] | answers[NEW]
            assert not mixed[0][1].startswith("new")
            assert set(mixed[during:]) == answers[NEW]
            await until(lambda: not daemon.loops._retiring)
            assert daemon.loops.answered == len(mixed)


def facts(number: int, answer: Any) -> tuple[int, str, float]:
    return number, answer.name, round(answer.confidence, 3)


async def test_a_version_that_cannot_be_run_changes_nothing(
    clouds: Clouds,
    versions: tuple[Bundle, Bundle],
    link: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("edge_agent.switch.LOOK_SECONDS", 0.02)
    old, new = versions
    link.parent.mkdir()
    link.symlink_to(old.path)
    async with clouds(**served(old)) as cloud, running(configured(link, cloud)) as daemon:
        empty = tmp_path / "empty"
        empty.mkdir()
        relink(link, empty)
        await until(lambda: "the model stays as it was" in caplog.text)
        relink(link, new.path)  # Not served by the cloud.
        await until(lambda: "expected the digest of a served model" in caplog.text)
        answer = await (await daemon.loops.put(picture(0)))
        assert not answer.name.startswith("new")
        assert daemon.loop.bundle.digest == old.digest


def relink(link: Path, target: Path) -> None:
    other = link.with_name("other-link")
    other.symlink_to(target)
    other.replace(link)
