from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InputError
from shared.events import isolated
from shared.events.files import Raw, decode_aedat3, decode_atis, decode_dat, read_events
from shared.events.recording import Events

SENSOR = (48, 64)
DATA = os.environ.get("NEUCODEX_EVENTS", "")
"""A folder with N-CARS' ``sample_ncars.dat``."""
Row = tuple[int, int, int, int]
rows = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 63), st.integers(0, 47), st.integers(0, 1)),
    min_size=1,
    max_size=30,
).map(lambda found: sorted(found, key=lambda row: row[0]))


def dat(events: Sequence[Row], header: bytes = b"% Width 64\n% Height 48\n") -> bytes:
    words = [struct.pack("<II", t, x | y << 14 | p << 28) for t, x, y, p in events]
    return header + b"\x0c\x08" + b"".join(words)


def aedat3(events: Sequence[Row], source: bytes = b"DAVIS240C") -> bytes:
    header = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: " + source + b"\r\n#!END-HEADER\r\n"
    other = struct.pack("<HHIIIIII", 2, 1, 36, 0, 0, 1, 1, 1) + bytes(36)
    body = b"".join(struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for t, x, y, p in events)
    count = len(events)
    return header + other + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, count, count, count) + body


def told(events: Events) -> list[Row]:
    columns = (events.microseconds, events.x, events.y, events.polarity)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def from_first(events: Sequence[Row]) -> list[Row]:
    return [(t - events[0][0], *rest) for t, *rest in events]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ending", "encode", "sensor"), [(".dat", dat, SENSOR), (".aedat", aedat3, (180, 240))]
)
@settings(max_examples=20)
@given(events=rows)
def test_events_come_back_with_the_sensor_that_the_file_names(
    ending: str,
    encode: Callable[[Sequence[Row]], bytes],
    sensor: tuple[int, int],
    events: list[Row],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("events") / f"a{ending}"
    path.write_bytes(encode(events))
    found = read_events(path, (1, 1))
    assert told(found) == from_first(events)
    assert found.sensor == sensor


def test_a_clock_overflow_of_aedat3_moves_its_packet() -> None:
    content = aedat3([(5, 1, 2, 1)])
    overflown = bytearray(content)
    overflown[-8 - 28 + 12] = 1
    assert decode_aedat3(bytes(overflown)).microseconds.tolist() == [5 + (1 << 31)]


@pytest.mark.parametrize("decode", [decode_atis, decode_aedat3, decode_dat])
@given(data=st.data())
def test_damaged_records_are_refused_or_read_and_nothing_else(
    decode: Callable[[bytes], Raw], data: st.DataObject
) -> None:
    wholes: dict[object, bytes] = {decode_atis: bytes(25), decode_aedat3: aedat3([(1, 2, 3, 1)])}
    whole = wholes.get(decode, dat([]))
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(content))
    except ValueError as error:
        assert "expected" in str(error)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.dat", b"no header", "expected a Prophesee DAT header"),
        ("a.dat", dat([(0, 64, 0, 0)]), r"expected x in 0..63, got 64"),
        ("a.dat", dat([]), "expected events, got none"),
        ("a.aedat", b"#!AER-DAT2.0\r\n", "expected an AEDAT 3.1 header"),
        ("a.aedat", aedat3([(0, 1, 1, 1)])[:-1], "expected 1 events of 8 bytes, got 7"),
        ("a.bin", bytes(4), "expected events of 5 bytes, got 4"),
        ("a.txt", b"", "expected one of .bin"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_events(tmp_path / name, SENSOR)
    assert name in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_events(tmp_path / "a.dat", SENSOR)


@pytest.mark.parametrize("ending", ["aedat4", "raw"])
def test_compressed_recordings_come_back_and_damaged_ones_harm_nobody(
    tmp_path: Path, ending: str
) -> None:
    faery = pytest.importorskip("faery", reason="reads AEDAT 4 and .raw")
    rng = np.random.default_rng(0)
    events = np.zeros(200, faery.EVENTS_DTYPE)
    events["t"] = np.sort(rng.integers(0, 10**6, 200))
    events["x"], events["y"] = rng.integers(0, 64, 200), rng.integers(0, 48, 200)
    events["on"] = rng.integers(0, 2, 200)
    path = tmp_path / f"a.{ending}"
    faery.events_stream_from_array(events, (64, 48)).to_file(str(path))
    found = read_events(path, (1, 1))
    expected = [(int(t), int(x), int(y), int(on)) for t, x, y, on in events.tolist()]
    assert told(found) == from_first(expected)
    assert found.sensor == SENSOR
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=f"a.{ending}: expected"):
        read_events(path, SENSOR)


def test_a_reader_that_dies_is_an_unusable_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faery.py").write_text("import os\nos.abort()\n")
    (tmp_path / "a.raw").write_bytes(b"any")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="expected a whole event recording"):
        isolated.decode(tmp_path / "a.raw")


@pytest.mark.skipif(not DATA, reason="NEUCODEX_EVENTS names no folder")
def test_an_n_cars_recording_is_read_as_published() -> None:
    found = read_events(Path(DATA) / "sample_ncars.dat", (120, 120))
    assert len(found) == 2009
    assert told(found)[0] == (0, 25, 8, 0)
    assert told(found)[-1] == (99952, 75, 28, 1)
