"""Writers of the event formats, independent of the readers under test."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import pytest

Event = tuple[int, int, int, int]
"""microseconds, x, y, polarity"""
Encode = Callable[[Sequence[Event]], bytes]
Draw = Callable[..., list[Event]]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Return a function that draws random events in the order of time."""

    def events(
        seed: int, count: int, sensor: tuple[int, int], end_microseconds: int = 300_000
    ) -> list[Event]:
        generator = np.random.default_rng(seed)
        times = np.sort(generator.integers(0, end_microseconds, count)).tolist()
        x = generator.integers(0, sensor[1], count).tolist()
        y = generator.integers(0, sensor[0], count).tolist()
        return list(zip(times, x, y, generator.integers(0, 2, count).tolist(), strict=True))

    return events


@pytest.fixture(scope="session")
def atis() -> Encode:
    """Return an encoder of 40-bit events: x, y, polarity bit and 23 bits of microseconds."""
    return lambda events: b"".join(
        bytes([x, y]) + (polarity << 23 | t).to_bytes(3, "big") for t, x, y, polarity in events
    )


@pytest.fixture(scope="session")
def aedat2() -> Encode:
    """Return an encoder of a DVS128's AEDAT 2.0 file: both axes backwards, bit 0 set for OFF."""
    header = (
        b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
        b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event"
        b"\r\n# Timestamps tick is 1 us\r\n# created Mon Mar 07 10:55:01 CST 2016\r\n"
    )
    return lambda events: (
        header
        + b"".join(
            struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | (1 - polarity), t)
            for t, x, y, polarity in events
        )
    )


@pytest.fixture(scope="session")
def aedat4() -> Encode:
    """Return an encoder of an uncompressed AEDAT 4 file with one stream of events."""
    description = """<dv version="2.0"><node name="outInfo" path="/"><node name="0" path="/0/">
        <attr key="compression" type="string">NONE</attr>
        <attr key="typeIdentifier" type="string">EVTS</attr>
        <node name="info" path="/0/info/"><attr key="sizeX" type="int">128</attr>
        <attr key="sizeY" type="int">128</attr></node></node></node></dv>"""

    def header() -> bytes:
        builder = flatbuffers.Builder(1024)
        text = builder.CreateString(description)
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(2, text, 0)
        builder.PrependInt64Slot(1, -1, 0)
        builder.FinishSizePrefixed(builder.EndObject(), b"IOHE")
        return bytes(builder.Output())

    def packet(events: Sequence[Event]) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.StartVector(16, len(events), 8)
        for t, x, y, polarity in reversed(events):
            builder.Prep(8, 16)
            builder.Pad(3)
            builder.PrependBool(bool(polarity))
            builder.PrependInt16(y)
            builder.PrependInt16(x)
            builder.PrependInt64(t)
        vector = builder.EndVector()
        builder.StartObject(1)
        builder.PrependUOffsetTRelativeSlot(0, vector, 0)
        builder.FinishSizePrefixed(builder.EndObject(), b"EVTS")
        content = bytes(builder.Output())
        return struct.pack("<ii", 0, len(content)) + content

    def encode(events: Sequence[Event]) -> bytes:
        half = len(events) // 2
        packets = [packet(part) for part in (events[:half], events[half:]) if part]
        return b"#!AER-DAT4.0\r\n" + header() + b"".join(packets)

    return encode


@pytest.fixture(scope="session")
def write() -> Callable[[Path, bytes], None]:
    """Return a function that writes a file and the folders above it."""

    def to_disk(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return to_disk
