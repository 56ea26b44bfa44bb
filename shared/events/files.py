"""Read a whole event recording from a file, in the published formats.

Formats of records of one length are read here, with NumPy; AEDAT 4 and Prophesee's ``.raw``, which
compress, by *faery* (extra ``events``, :mod:`shared.events.isolated`).

| ending | format |
|---|---|
| ``.bin`` | ATIS, of N-MNIST and N-Caltech101 (Orchard et al. 2015) |
| ``.aedat`` | AEDAT 3.1 |
| ``.aedat4`` | AEDAT 4 |
| ``.dat`` | Prophesee DAT, of N-CARS too |
| ``.raw`` | Prophesee EVT 2, 2.1 and 3 |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.events.isolated import decode
from shared.events.recording import Events

MAX_FILE_BYTES = 1 << 28
"""A larger file is refused unread."""
ATIS_EVENT_BYTES = 5
AEDAT3_HEADER_BYTES = 28
AEDAT3_SENSORS = {
    "DVS128": (128, 128),
    "DAVIS128": (128, 128),
    "DAVIS208": (192, 208),
    "DAVIS240": (180, 240),
    "DAVIS346": (260, 346),
    "DAVIS640": (480, 640),
}
"""``[H, W]`` by the beginning of the camera's name in the header."""
POLARITY_EVENT = 1
Sensor = tuple[int, int]
Size = Sensor | None


class Raw(NamedTuple):
    """A file's events as they are stored, in any order."""

    microseconds: NDArray[Any]
    x: NDArray[Any]
    y: NDArray[Any]
    polarity: NDArray[Any]
    sensor: Size
    """``[H, W]``, where the file tells."""


def read_events(path: Path, sensor: Sensor) -> Events:
    """Read a recording.

    Args:
        path: a file with one of :data:`READERS`' endings.
        sensor: ``[H, W]`` of the camera, where the file does not tell.

    Returns:
        The events in the order of time, which counts from the first of them, in ``.bin`` files from
        the start of the recording.

    Raises:
        InputError: the file cannot be read, is too large, not of its format, damaged, without
            events, or has an event outside the sensor.
        ConfigError: its format needs the extra ``events``, which is not installed.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path}: expected one of {', '.join(READERS)}, got {path.suffix!r}")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, got {size}")
        raw = read(path)
        return in_order(raw, raw.sensor or sensor, from_first=path.suffix.lower() != ".bin")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def in_order(raw: Raw, sensor: Sensor, *, from_first: bool) -> Events:
    """Sort events by time; ValueError if there are none, or one is outside the sensor."""
    if not len(raw.microseconds):
        raise ValueError("expected events, got none")
    order = np.argsort(raw.microseconds, kind="stable")
    times, x, y, polarity = (values[order].astype(np.int64) for values in raw[:4])
    return Events(times - times[0] if from_first else times, x, y, polarity, sensor)


def decode_atis(content: bytes) -> Raw:
    """Decode 40-bit events.

    An event is 8 bits x, 8 bits y, 1 bit polarity (1 is ON) and 23 bits microseconds, high byte
    first; y = 240 marks an overflow of the camera's 13-bit clock.

    Raises:
        ValueError: the last event is broken, or there is none.
    """
    if not content or len(content) % ATIS_EVENT_BYTES:
        raise ValueError(f"expected events of {ATIS_EVENT_BYTES} bytes, got {len(content)} bytes")
    columns = np.frombuffer(content, np.uint8).reshape(-1, ATIS_EVENT_BYTES).astype(np.int64).T
    x, y, high, middle, low = columns
    overflow = y == 240
    times = ((high & 127) << 16 | middle << 8 | low) + (np.cumsum(overflow) << 13)
    kept = ~overflow
    return Raw(times[kept], x[kept], y[kept], high[kept] >> 7, None)


def decode_aedat3(content: bytes) -> Raw:
    """Decode the polarity events of AEDAT 3.1; other kinds are passed over.

    Raises:
        ValueError: another version, or a packet that is cut off or impossible.
    """
    header, end, body = content.partition(b"#!END-HEADER\r\n")
    if not header.startswith(b"#!AER-DAT3.1") or not end:
        raise ValueError("expected an AEDAT 3.1 header (#!AER-DAT3.1 to #!END-HEADER)")
    pieces, at = [np.empty((0, 3), np.int64)], 0
    while at < len(body):
        kind, size, overflow, number = _aedat3_packet(body, at)
        at += AEDAT3_HEADER_BYTES
        if kind == POLARITY_EVENT:
            words = np.frombuffer(body, "<u4", 2 * number, at).astype(np.int64)
            data, times = words.reshape(-1, 2).T
            valid = (data & 1).astype(bool)
            clock = times + (overflow << 31)
            pieces.append(np.stack([clock, data, data >> 1 & 1], 1)[valid])
        at += number * size
    times, data, polarity = np.concatenate(pieces).T
    return Raw(times, data >> 17, data >> 2 & 0x7FFF, polarity, _aedat3_sensor(header))


def _aedat3_packet(body: bytes, at: int) -> tuple[int, int, int, int]:
    """Return kind, event size, clock overflows and number of events of the packet at an offset."""
    if len(body) - at < AEDAT3_HEADER_BYTES:
        raise ValueError(f"expected a packet header of {AEDAT3_HEADER_BYTES} bytes at {at}")
    kind = int.from_bytes(body[at : at + 2], "little")
    size, _, overflow, _, number, _ = (
        int(value) for value in np.frombuffer(body, "<u4", 6, at + 4)
    )
    if kind == POLARITY_EVENT and size != 8:
        raise ValueError(f"expected polarity events of 8 bytes, got {size}")
    present = len(body) - at - AEDAT3_HEADER_BYTES
    if number * size > present:
        raise ValueError(f"expected {number} events of {size} bytes, got {present} bytes")
    return kind, size, overflow, number


def _aedat3_sensor(header: bytes) -> Size:
    source = re.search(rb"#Source \d+: (\w+)", header)
    name = source[1].decode("ascii", "replace") if source else ""
    return next((size for key, size in AEDAT3_SENSORS.items() if name.startswith(key)), None)


def decode_dat(content: bytes) -> Raw:
    """Decode Prophesee DAT: text lines that begin with %, two bytes, then events of 8 bytes.

    Raises:
        ValueError: no such header, events of another size, or a broken last event.
    """
    at, sizes = 0, {}
    while content[at : at + 1] == b"%":
        line, end, _ = content[at:].partition(b"\n")
        if found := re.match(rb"% (Height|Width) (\d{1,5})\s*$", line):
            sizes[found[1]] = int(found[2])
        at += len(line) + len(end)
    if not at or len(content) < at + 2:
        raise ValueError("expected a Prophesee DAT header")
    size = content[at + 1]
    body = content[at + 2 :]
    if size != 8 or len(body) % 8:
        raise ValueError(f"expected events of 8 bytes, got {len(body)} bytes of size {size}")
    times, data = np.frombuffer(body, "<u4").astype(np.int64).reshape(-1, 2).T
    known = sizes.keys() == {b"Height", b"Width"}
    sensor = (sizes[b"Height"], sizes[b"Width"]) if known else None
    return Raw(times, data & 0x3FFF, data >> 14 & 0x3FFF, data >> 28 & 1, sensor)


def _isolated(path: Path) -> Raw:
    events, sensor = decode(path)
    return Raw(events["t"], events["x"], events["y"], events["on"], sensor)


def _decoding(decode: Callable[[bytes], Raw]) -> Callable[[Path], Raw]:
    return lambda path: decode(path.read_bytes())


READERS: dict[str, Callable[[Path], Raw]] = {
    ".bin": _decoding(decode_atis),
    ".aedat": _decoding(decode_aedat3),
    ".aedat4": _isolated,
    ".dat": _decoding(decode_dat),
    ".raw": _isolated,
}
"""How each ending is read."""
