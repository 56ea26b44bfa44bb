"""A camera on the network as a source: pictures one by one, or a stream of JPEGs (MJPEG)."""

from __future__ import annotations

import base64
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from edge_agent.source_config import HttpSource
from edge_agent.sources.base import Item, Surroundings
from shared.errors import ConfigError, InputError
from shared.wire import MAX_INPUT_BYTES

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 16
MAX_HEADER_BYTES = 8 << 10
"""Most bytes between two pictures of a stream."""
MOST_PATIENT_SECONDS = 30.0
"""Longest wait between two attempts to reach a server that fails."""


def read_http(config: HttpSource, around: Surroundings) -> Iterator[Item]:
    """Return the pictures of a server until the daemon ends.

    A failure is an item with that error; the server is then asked again, ever more seldom.

    Raises:
        ConfigError: a file with credentials or certificates cannot be read.
    """
    request = urllib.request.Request(config.url, headers=basic(config.credentials))
    return _read(config, request, trusting(config.ca), around)


def basic(credentials: str | None) -> dict[str, str]:
    """Return the header of basic authentication; ConfigError if the file cannot be read."""
    if credentials is None:
        return {}
    encoded = base64.b64encode(read_secret(credentials).encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def read_secret(path: str) -> str:
    """Return the first line of a file; ConfigError if there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"source: expected a readable file at {path}: {error}") from error
    if not lines or not lines[0].strip():
        raise ConfigError(f"source: expected a first line in {path}, got none")
    return lines[0].strip()


def trusting(ca: str | None) -> ssl.SSLContext:
    """Return what trusts these authorities, or the system's; ConfigError for no PEM file."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigError(f"source: expected PEM certificates in {ca}: {error}") from error


def _read(
    config: HttpSource,
    request: urllib.request.Request,
    context: ssl.SSLContext,
    around: Surroundings,
) -> Iterator[Item]:
    number, failures = 0, 0
    while not around.stop.is_set():
        began = time.monotonic()
        try:
            with urllib.request.urlopen(
                request, timeout=config.timeout_seconds, context=context
            ) as response:
                for picture in pictures(response, config.timeout_seconds):
                    yield Item(f"{config.label}[{number}]", picture)
                    number, failures = number + 1, 0
                    if around.stop.is_set():
                        return
        except (OSError, HTTPException, ValueError, InputError) as error:
            failures += 1
            yield Item(config.label, InputError(f"{config.url}: {_reason(error)}"))
        pause = config.interval_seconds * 2 ** min(failures, 16)
        pause = min(pause, max(config.interval_seconds, MOST_PATIENT_SECONDS))
        around.stop.wait(max(0.0, pause - (time.monotonic() - began)))


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    elif isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def pictures(response: HTTPResponse, timeout_seconds: float) -> Iterator[bytes]:
    """Yield the picture that a response is, or those of its stream.

    Raises:
        InputError: too large, too slow, or a stream that breaks its form.
    """
    patience = _Patience(timeout_seconds)
    chunks = _chunks(response, patience)
    if response.headers.get_content_type() != "multipart/x-mixed-replace":
        yield _whole(chunks)
        return
    boundary = response.headers.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise InputError("expected a boundary in the Content-Type of a stream, got none")
    for part in parts(chunks, boundary.encode("latin-1")):
        yield part
        patience.renew()


class _Patience:
    """How long one picture may take, however steadily its bytes trickle in."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._until = time.monotonic() + self._seconds

    def check(self) -> None:
        if time.monotonic() > self._until:
            raise InputError(f"expected a picture within {self._seconds:g} s")


def _chunks(response: HTTPResponse, patience: _Patience) -> Iterator[bytes]:
    while chunk := response.read1(CHUNK_BYTES):
        patience.check()
        yield chunk


def _whole(chunks: Iterable[bytes]) -> bytes:
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MAX_INPUT_BYTES:
            raise InputError(f"expected at most {MAX_INPUT_BYTES} bytes, got more")
    return bytes(content)


def parts(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """Yield the contents of a multipart stream's parts.

    Args:
        chunks: the stream, in pieces of any length.
        boundary: as its header names it; some cameras put the dashes into the name.

    Raises:
        InputError: a part or what is before it is too large, or its length is no number.
    """
    mark = b"--" + boundary.removeprefix(b"--")
    stream = _Stream(chunks)
    if stream.until(mark, MAX_HEADER_BYTES) is None:
        return
    while (header := stream.until(b"\r\n\r\n", MAX_HEADER_BYTES)) is not None:
        length = _length(header)
        if length is None:
            part = stream.until(mark, MAX_INPUT_BYTES)
            content = part and part.removesuffix(b"\r\n")
        else:
            content = stream.take(length)
        if content is None:
            return
        if content:
            yield content
        if length is not None and stream.until(mark, MAX_HEADER_BYTES) is None:
            return


def _length(header: bytes) -> int | None:
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            text = value.strip()
            if not text.isdigit() or len(text) > 12 or int(text) > MAX_INPUT_BYTES:
                raise InputError(f"expected a length of at most {MAX_INPUT_BYTES}, got {text!r}")
            return int(text)
    return None


class _Stream:
    """Bytes that arrive in chunks, taken in pieces of their own."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = bytearray()

    def until(self, mark: bytes, most: int) -> bytes | None:
        """Return what is before a mark, both taken off; nothing at the end of the stream."""
        looked = 0
        while (at := self._held.find(mark, looked)) < 0:
            if len(self._held) > most:
                raise InputError(f"expected {mark!r} within {most} bytes, got none")
            looked = max(0, len(self._held) - len(mark) + 1)
            if not self._more():
                return None
        taken = bytes(self._held[:at])
        del self._held[: at + len(mark)]
        return taken

    def take(self, length: int) -> bytes | None:
        """Return so many bytes; nothing if the stream ends before."""
        while len(self._held) < length:
            if not self._more():
                return None
        taken = bytes(self._held[:length])
        del self._held[:length]
        return taken

    def _more(self) -> bool:
        chunk = next(self._chunks, b"")
        self._held += chunk
        return bool(chunk)
