from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shared.events.recording import Events
from training.data.labelled import DataError, MissingDataError
from training.data.recordings import read_aedat2, read_aedat4, read_atis

Event = tuple[int, int, int, int]
Encode = Callable[[Sequence[Event]], bytes]
Draw = Callable[..., list[Event]]
SENSOR = (34, 34)


def rows(events: Events) -> list[Event]:
    columns = (events.microseconds, events.x, events.y, events.polarity)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_a_golden_atis_recording() -> None:
    on_then_off = bytes.fromhex("0a 14 80 00 0521 00 01 02 03")

    assert rows(read_atis(on_then_off, SENSOR, "golden")) == [(5, 10, 20, 1), (0x010203, 33, 0, 0)]


def test_atis_events_come_back(atis: Encode, draw: Draw) -> None:
    events = draw(1, 500, SENSOR)

    assert rows(read_atis(atis(events), SENSOR, "a.bin")) == events


def test_an_atis_clock_overflow_moves_later_events(atis: Encode) -> None:
    overflow = (0, 0, 240, 0)

    events = read_atis(atis([(100, 1, 2, 1), overflow, (50, 3, 4, 0)]), (180, 240), "a.bin")

    assert rows(events) == [(100, 1, 2, 1), (8192 + 50, 3, 4, 0)]


def test_atis_events_out_of_order_are_sorted(atis: Encode) -> None:
    content = atis([(9, 1, 1, 1), (3, 2, 2, 0), (3, 0, 0, 1)])

    events = read_atis(content, SENSOR, "a.bin")

    assert rows(events) == [(3, 2, 2, 0), (3, 0, 0, 1), (9, 1, 1, 1)]


@pytest.mark.parametrize("size_bytes", [0, 1, 4, 9])
def test_a_truncated_atis_recording_is_refused(size_bytes: int) -> None:
    with pytest.raises(
        DataError, match=f"a.bin: expected events of 5 bytes, got {size_bytes} bytes"
    ):
        read_atis(bytes(size_bytes), SENSOR, "a.bin")


def test_an_atis_recording_of_overflows_only_is_refused(atis: Encode) -> None:
    with pytest.raises(DataError, match=r"a.bin: expected events, got none"):
        read_atis(atis([(0, 0, 240, 0)]), SENSOR, "a.bin")


def test_an_event_outside_the_sensor_is_refused(atis: Encode) -> None:
    with pytest.raises(DataError, match=r"a.bin: expected x in 0..33, got 34"):
        read_atis(atis([(0, 34, 0, 0)]), SENSOR, "a.bin")


def test_a_golden_aedat2_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    # address 0x0703: bits 8-14 are 7, bits 1-7 are 1, bit 0 says OFF
    path.write_bytes(
        b"#!AER-DAT2.0\r\n# comment\r\n" + bytes.fromhex("00000703 000003e800000000 000003f2")
    )

    assert rows(read_aedat2(path)) == [(0, 120, 126, 0), (10, 127, 127, 1)]


def test_aedat2_events_come_back_with_time_from_the_first(
    tmp_path: Path, aedat2: Encode, draw: Draw
) -> None:
    events = draw(2, 300, (128, 128))
    path = tmp_path / "a.aedat"
    path.write_bytes(aedat2(events))

    assert rows(read_aedat2(path)) == [(t - events[0][0], x, y, p) for t, x, y, p in events]


@pytest.mark.parametrize("cut_bytes", [1, 7, 8])
def test_a_truncated_aedat2_recording_is_refused(
    tmp_path: Path, aedat2: Encode, cut_bytes: int
) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(aedat2([(5, 1, 1, 1)])[:-cut_bytes])

    with pytest.raises(DataError, match="expected events of 8 bytes after the header of .*a.aedat"):
        read_aedat2(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"#!AER-DAT3.1\r\n" + bytes(8)],
    ids=["empty", "no header", "version 3"],
)
def test_a_file_that_is_not_aedat2_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"expected a first line #!AER-DAT2.0 in .*a.aedat, got"):
        read_aedat2(path)


def test_aedat4_events_come_back_with_time_from_the_first(
    tmp_path: Path, aedat4: Encode, draw: Draw
) -> None:
    events = draw(3, 300, (128, 128))
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4(events))

    assert rows(read_aedat4(path)) == [(t - events[0][0], x, y, p) for t, x, y, p in events]


def test_a_file_that_is_not_a_whole_aedat4_is_refused(tmp_path: Path, aedat4: Encode) -> None:
    path = tmp_path / "a.aedat4"
    for content in (b"", b"#!AER-DAT4.0\r\n", aedat4([]), b"no" + aedat4([(0, 1, 1, 1)])):
        path.write_bytes(content)
        with pytest.raises(DataError, match="expected an AEDAT 4 recording at .*a.aedat4"):
            read_aedat4(path)


def test_an_aedat4_event_outside_the_sensor_is_refused(tmp_path: Path, aedat4: Encode) -> None:
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4([(0, 128, 1, 1)]))

    with pytest.raises(DataError, match=r"a.aedat4: expected x in 0..127, got 128"):
        read_aedat4(path)


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    for read in (read_aedat2, read_aedat4):
        with pytest.raises(MissingDataError, match="expected a recording at .*nothing.aedat"):
            read(tmp_path / "nothing.aedat")


def test_events_are_int64(atis: Encode) -> None:
    events = read_atis(atis([(1, 2, 3, 1)]), SENSOR, "a.bin")

    assert {events.x.dtype, events.microseconds.dtype, events.polarity.dtype} == {np.dtype("int64")}
