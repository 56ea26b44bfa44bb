"""``neucodex-edge pull``: a model from the cloud, file by file, put in place in one step.

::

    model               a link to the version in use, replaced by renaming: no half of a model is
                        ever seen through it
    model.versions/     DIGEST/ for the present version and the one before, and LOCK

A file that is on its way is ``NAME.part``, which the next attempt goes on with, in this process or
another. It gets its name once its SHA-256 is that of the manifest; the manifest's own canonical
form must have the digest that was asked for. The link moves last.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import grpc
import grpc.aio

from edge_agent.describe import describing
from protos import co_inference_pb2 as pb
from protos import co_inference_pb2_grpc
from shared import rpc
from shared.credentials import ClientCredentials
from shared.errors import (
    BundleError,
    ConfigError,
    LinkLostError,
    NeucodexError,
    ProtocolError,
    RefusedError,
)
from shared.model.bundle import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    Bundle,
    Manifest,
    manifest_digest,
    parse_manifest,
)
from shared.watched import Watched

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""So often in a row without a byte more, and the pull is given up."""
PAUSE_SECONDS = 0.5
"""Before the second attempt; doubles from then on."""
SILENT_SECONDS = 60.0
"""A cloud that sends nothing for so long has lost the connection."""
DIGEST_BYTES = 32
LOCK = "LOCK"
PART = ".part"


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull did."""

    title: str
    """Name and version."""
    digest: str
    path: Path
    """Where the link leads now."""
    fetched_bytes: int
    """That came over the network in this pull."""
    changed: bool
    """Whether the link led elsewhere before."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Where the model is from."""

    address: str
    credentials: Watched[ClientCredentials]


async def pull(cloud: Cloud, model: str | None, link: Path, *, with_tail: bool = False) -> Pulled:
    """Bring a model that the cloud serves, and let ``link`` lead to it.

    Args:
        cloud: where from.
        model: name, ``NAME@VERSION``, or the first digits of the digest; None for the only one.
        link: what the edge's configuration calls its bundle; made if it is not there.
        with_tail: bring the tail, too.

    Raises:
        ConfigError: no such model, or ``link`` is something else than a link, or the disk is full.
        BundleError: what came is not the model of that digest, twice.
        ProtocolError: what the cloud says of its models makes no sense.
        RefusedError: the cloud does not let this device in, or has no such file.
        LinkLostError: the cloud cannot be reached.
    """
    chosen = await _choose(cloud, model)
    _check_link(link)
    versions = link.with_name(f"{link.name}.versions")
    try:
        versions.mkdir(parents=True, exist_ok=True)
        async with _locked(versions / LOCK):
            folder = versions / chosen.digest.hex()
            folder.mkdir(exist_ok=True)
            fetch = _Fetch(cloud, chosen.digest, folder)
            await fetch.all_files(with_tail=with_tail)
            changed = _lead(link, folder)
    except OSError as error:
        raise ConfigError(f"{error.filename or versions}: {error.strerror}") from error
    return Pulled(
        title=f"{chosen.name} {chosen.version}",
        digest=chosen.digest.hex(),
        path=folder,
        fetched_bytes=fetch.fetched_bytes,
        changed=changed,
    )


async def _choose(cloud: Cloud, wanted: str | None) -> pb.Model:
    async with describing(cloud.address, cloud.credentials) as describe:
        models = list((await describe.reply()).models)
    found = [model for model in models if wanted is None or _is_meant(wanted, model)]
    if len(found) == 1:
        if len(found[0].digest) != DIGEST_BYTES:
            raise ProtocolError(
                f"expected a digest of {DIGEST_BYTES} bytes from {cloud.address}, "
                f"got {len(found[0].digest)}"
            )
        return found[0]
    served = ", ".join(f"{m.name}@{m.version} ({m.digest.hex()[:12]})" for m in models)
    raise ConfigError(
        f"model: expected one that {cloud.address} serves ({served or 'none'}), got "
        f"{wanted or 'no name'}" + (", which is several" if found else "")
    )


def _is_meant(wanted: str, model: pb.Model) -> bool:
    names = (model.name, f"{model.name}@{model.version}")
    return wanted in names or (len(wanted) >= 8 and model.digest.hex().startswith(wanted))


class _Fetch:
    """Brings the files of one model into a folder.

    Args:
        cloud: where from.
        digest: of the model.
        folder: there already, with what came before.
    """

    def __init__(self, cloud: Cloud, digest: bytes, folder: Path) -> None:
        self._cloud = cloud
        self._digest = digest
        self._folder = folder
        self.fetched_bytes = 0

    async def all_files(self, *, with_tail: bool) -> None:
        """Bring what is not there yet."""
        await self._file(MANIFEST, MAX_MANIFEST_BYTES, self._check_manifest)
        manifest = Bundle(self._folder).manifest
        for name in _wanted(manifest, with_tail=with_tail):
            await self._file(name, MAX_FILE_BYTES, _checker(name, manifest.files[name]))
        # A manifest might list itself.
        self._check_manifest(self._folder / MANIFEST)

    def _check_manifest(self, path: Path) -> None:
        try:
            found = manifest_digest(parse_manifest(path.read_bytes()))
        except (FileNotFoundError, ValueError) as error:
            raise BundleError(f"{MANIFEST}: {error}") from error
        if found != self._digest.hex():
            raise BundleError(f"{MANIFEST}: expected digest {self._digest.hex()}, got {found}")

    async def _file(self, name: str, most_bytes: int, check: Callable[[Path], None]) -> None:
        """Bring one file, unless it is there; one that is damaged is brought anew, once."""
        path, part = self._folder / name, self._folder / f"{name}{PART}"
        with contextlib.suppress(BundleError):
            check(path)
            return
        for is_last in (False, True):
            try:
                await self._patiently(name, part, most_bytes)
                check(part)
            except BundleError as error:
                part.unlink()
                if is_last:
                    raise
                log.warning("brought anew: %s", error)
            else:
                part.replace(path)
                return

    async def _patiently(self, name: str, part: Path, most_bytes: int) -> None:
        """Go on with a file until it is whole, as long as something comes."""
        failures = 0
        while True:
            before = self.fetched_bytes
            try:
                await self._go_on(name, part, most_bytes)
                return
            except LinkLostError as error:
                failures = 1 if self.fetched_bytes > before else failures + 1
                if failures == ATTEMPTS:
                    raise
                log.warning("%s: %s; going on", name, error)
            await asyncio.sleep(PAUSE_SECONDS * 2 ** (failures - 1))

    async def _go_on(self, name: str, part: Path, most_bytes: int) -> None:
        """Append what is missing of a file; BundleError if it is larger than may be."""
        with part.open("ab") as file:
            have_bytes = file.tell()
            if have_bytes > most_bytes:
                file.truncate(0)
                have_bytes = 0
            async for chunk in self._chunks(name, have_bytes):
                have_bytes += len(chunk.data)
                if max(have_bytes, chunk.file_bytes) > most_bytes:
                    raise BundleError(f"{name}: expected at most {most_bytes} bytes, more come")
                file.write(chunk.data)
                self.fetched_bytes += len(chunk.data)
            _to_disk(file)

    async def _chunks(self, name: str, offset_bytes: int) -> AsyncIterator[pb.FetchChunk]:
        """Yield what comes; LinkLostError if the file did not come to its end."""
        shown = self._cloud.credentials.current()
        async with rpc.channel(self._cloud.address, shown) as channel:
            stub = co_inference_pb2_grpc.CoInferenceStub(channel)  # type: ignore[no-untyped-call]
            request = pb.FetchRequest(model_digest=self._digest, file=name, offset=offset_bytes)
            call: Any = stub.Fetch(request, metadata=rpc.metadata(shown))
            try:
                async with asyncio.timeout(SILENT_SECONDS) as patience:
                    async for chunk in call:
                        patience.reschedule(asyncio.get_running_loop().time() + SILENT_SECONDS)
                        yield chunk
            except TimeoutError:
                message = f"expected something within {SILENT_SECONDS:g} s, nothing came"
                raise LinkLostError(f"{self._cloud.address}: {message}") from None
            except grpc.aio.AioRpcError as error:
                raise _error(self._cloud.address, error, offset_bytes) from None


def _error(address: str, error: grpc.aio.AioRpcError, offset_bytes: int) -> NeucodexError:
    message = f"{address}: {error.code().name}: {error.details()}"
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT and offset_bytes:
        return BundleError(message)  # There is no such offset: what is here is no part of it.
    return RefusedError(message) if error.code() in rpc.REFUSED_CODES else LinkLostError(message)


def _wanted(manifest: Manifest, *, with_tail: bool) -> list[str]:
    """Return the files that a device needs: all but the graphs of parts that it does not run."""
    kept = {"head", "tail"} if with_tail else {"head"}
    others = {part.graph for name, part in manifest.parts.items() if name not in kept}
    return [name for name in manifest.files if name not in others]


def _checker(name: str, expected: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise BundleError(f"{name}: not there") from None
        if found != expected:
            raise BundleError(f"{name}: expected SHA-256 {expected}, got {found}")

    return check


def _check_link(link: Path) -> None:
    if link.exists() and not link.is_symlink():
        raise ConfigError(
            f"bundle: expected a link that pull may move, or nothing, at {link}, got a folder or "
            "file: choose another path, or move it away"
        )


def _lead(link: Path, folder: Path) -> bool:
    """Let the link lead to a version, keep that and the one before; say whether it changed."""
    before = link.resolve() if link.is_symlink() else None
    new = folder.resolve()
    if before == new:
        return False
    unfinished = link.with_name(f".{link.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(Path(folder.parent.name, folder.name))
    unfinished.replace(link)
    for other in folder.parent.iterdir():
        if other.is_dir() and other.resolve() not in (before, new):
            shutil.rmtree(other)
    return True


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Wait until no other pull is under way here, and hold others back."""
    with path.open("w") as file:
        while not _try_lock(file):
            log.info("waiting for another pull into %s", path.parent)
            await asyncio.sleep(PAUSE_SECONDS)
        yield


def _try_lock(file: TextIO) -> bool:
    """Take the lock, if nobody has it, until the file is closed; the system sees to crashes."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
