"""A meter of the user's: wall power of a board that cannot measure itself, and anything else.

It speaks JSON, one object per line: ``{"watts": 4.31}`` or ``{"joules": 8121.5}`` (a count that
only rises) or both, if possible with ``"time_seconds"`` by the meter's own clock, and
``"component"`` where it is not the whole. Without a time, that of the arrival counts, and of
several lines that arrive together only the last of each component: when the others were measured is
not known.

The lines come from a file that grows, from a FIFO, or from a server that answers each GET over HTTP
with one or several.
"""

from __future__ import annotations

import os
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import Annotated, Protocol

import msgspec

from shared.energy.meter import Component, Finding, Reading, Source
from shared.errors import SensorError, SensorReason

HTTP = ("http://", "https://")
TIMEOUT_SECONDS = 2.0
MAX_LINE_BYTES = 4096
MAX_READ_BYTES = 1 << 16
"""Taken at once; the rest waits for the next reading."""

Amount = Annotated[float, msgspec.Meta(ge=0)]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What the meter says; further keys are ignored."""

    watts: Amount | None = None
    joules: Amount | None = None
    time_seconds: float | None = None
    component: Component = Component.TOTAL

    def __post_init__(self) -> None:
        if self.watts is None and self.joules is None:
            raise ValueError("expected watts or joules")

    def reading(self, time_seconds: float) -> Reading:
        """Return it as a reading of some time."""
        return Reading(self.component, time_seconds, self.watts, self.joules)


_DECODER = msgspec.json.Decoder(Line)


class Origin(Protocol):
    """Where lines come from."""

    def read(self) -> bytes:
        """Return what is new; SensorError where it cannot be read."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class FileOrigin:
    """A file that grows, or a FIFO; what a file holds already when it is opened is old.

    Args:
        path: of the file.

    Raises:
        SensorError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._open(whole=False)

    def _open(self, *, whole: bool) -> None:
        try:
            # Without O_NONBLOCK a FIFO would be opened only when somebody writes.
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(self._descriptor)
            self._is_file = stat.S_ISREG(status.st_mode)
            self._inode = status.st_ino
            if self._is_file and not whole:
                os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise SensorError.of(error, self._path) from error

    def read(self) -> bytes:
        """Return what is new; a file that was replaced or cut short is read from its beginning."""
        try:
            if self._is_file and self._is_replaced():
                self.close()
                self._open(whole=True)
            return os.read(self._descriptor, MAX_READ_BYTES)
        except BlockingIOError:
            return b""  # A FIFO whose writer has nothing to say.
        except OSError as error:
            raise SensorError.of(error, self._path) from error

    def _is_replaced(self) -> bool:
        status = self._path.stat()
        position = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        return status.st_ino != self._inode or status.st_size < position

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class HttpOrigin:
    """A server; each reading is a request.

    Args:
        url: where the lines are.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self) -> bytes:
        """Return an answer."""
        try:
            with urllib.request.urlopen(self._url, timeout=TIMEOUT_SECONDS) as answer:
                content: bytes = answer.read(MAX_READ_BYTES)
        except urllib.error.HTTPError as error:
            error.close()
            raise SensorError(SensorReason.FAILED, f"{self._url}: {error}") from error
        except HTTPException as error:
            raise SensorError(SensorReason.FAILED, f"{self._url}: {error}") from error
        except urllib.error.URLError as error:
            cause = (
                error.reason if isinstance(error.reason, OSError) else OSError(str(error.reason))
            )
            raise SensorError.of(cause, self._url) from error
        except OSError as error:
            raise SensorError.of(error, self._url) from error
        return content if content.endswith(b"\n") else content + b"\n"

    def close(self) -> None:
        """There is nothing to let go of."""


class ExternalMeter:
    """The meter.

    Args:
        origin: of the lines.
        interval_seconds: how often it is asked.
    """

    source = Source.EXTERNAL_METER
    max_gap_seconds = 15.0
    """Plugs and multimeters tell every second to every ten."""

    def __init__(
        self,
        origin: Origin,
        interval_seconds: float = 0.1,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._origin = origin
        self.interval_seconds = interval_seconds
        self._clock = clock
        self._rest = b""

    def read(self) -> list[Reading]:
        """Return the readings of all whole lines that came."""
        self._rest += self._origin.read()
        arrived_seconds = self._clock()
        dated: list[Reading] = []
        undated: dict[Component, Reading] = {}
        while b"\n" in self._rest:
            text, _, rest = self._rest.partition(b"\n")
            try:
                line = parse(text) if text.strip() else None
            except SensorError:
                if dated or undated:
                    break  # First what came before it, next time its error.
                self._rest = rest
                raise
            self._rest = rest
            if line is None:
                continue
            if line.time_seconds is not None:
                dated.append(line.reading(line.time_seconds))
            else:
                undated[line.component] = line.reading(arrived_seconds)
        self._check_rest()
        return [*dated, *undated.values()]

    def _check_rest(self) -> None:
        if len(self._rest) > MAX_LINE_BYTES and b"\n" not in self._rest:
            self._rest = b""
            message = f"expected lines of at most {MAX_LINE_BYTES} bytes"
            raise SensorError(SensorReason.MALFORMED, message)

    def close(self) -> None:
        """Let go of the file."""
        self._origin.close()


def parse(text: bytes) -> Line:
    """Return what a line says; SensorError if it is none of the meter's."""
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = text[:80].decode("utf-8", errors="replace")
        raise SensorError(
            SensorReason.MALFORMED,
            f'expected a line like {{"watts": 4.3, "time_seconds": 17.5}}: {error}; got {shown!r}',
        ) from error


def find(place: str) -> Finding:
    """Look for the meter.

    Args:
        place: path of a file or FIFO, or a URL.
    """
    try:
        if place.startswith(HTTP):
            sensor = ExternalMeter(HttpOrigin(place), interval_seconds=0.5)
            sensor.read()
        else:
            sensor = ExternalMeter(FileOrigin(Path(place)))
    except SensorError as error:
        return Finding(Source.EXTERNAL_METER, f"cannot be read: {error}")
    return Finding(Source.EXTERNAL_METER, place, sensor)
