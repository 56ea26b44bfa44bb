from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import EventReceiver, Events, EventSender
from edge_agent.cutter import Begin, Cutter, End, Frame, Step
from edge_agent.event_packets import EVENT, HEADER, Packet, PacketReader, Piece, decode_packet
from shared.errors import ConfigError, InputError
from shared.events.framing import ByCount, ByTime, frame_events, saturated

SENSOR = (4, 6)
GOLDEN = bytes.fromhex("4e435845 01 01 0100 05000000 02000000 e803000000000000 0300 0280 0a000000")
"""The last packet of recording 2: at 1,010 us, x 3, y 2, ON."""


def packed(rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, EVENT)


def packet(sequence: int, base: int, times: list[int], **more: int) -> bytes:
    rows = packed([(1, 1, time) for time in times])
    return Packet(sequence, more.get("recording", 0), bool(more.get("ends")), base, rows).to_bytes()


def events(times: list[int], sensor: tuple[int, int] = SENSOR) -> Events:
    zeros = np.zeros(len(times), np.int64)
    return Events(np.array(times, np.int64), zeros, zeros, zeros, sensor)


def piece(times: list[int], now: int = 0, **more: bool) -> Piece:
    latest = max([now, *times])
    return Piece(more.get("begins", False), more.get("ends", False), events(times), latest)


def test_a_golden_packet() -> None:
    found = decode_packet(GOLDEN)
    assert (found.sequence, found.recording, found.ends, found.base_microseconds) == (5, 2, 1, 1000)
    assert found.events.tolist() == [(3, 0x8002, 10)]
    assert found.to_bytes() == GOLDEN


@given(st.binary(max_size=64), st.data())
def test_damaged_packets_are_refused_or_read_and_nothing_else(
    noise: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(GOLDEN)
    for byte in noise[:3]:
        damaged[data.draw(st.integers(0, len(GOLDEN) - 1))] = byte
    reader = PacketReader(SENSOR)
    for content in (noise, bytes(damaged), GOLDEN[: len(noise) % len(GOLDEN)]):
        try:
            reader.take(content)
        except InputError as error:
            assert "expected" in str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "got 0 bytes of no such kind"),
        (GOLDEN[:4] + b"\x02" + GOLDEN[5:], "version 1, got 2"),
        (GOLDEN + b"\0", "expected 32 bytes of 1 events, got 33"),
        (packet(0, 0, [5, 4]), "falling times"),
        (Packet(0, 0, False, 0, packed([(6, 0, 0)])).to_bytes(), "expected x in 0..5, got 6"),
        (HEADER.pack(b"NCXE", 1, 0, 0, 0, 0, 1 << 63), "below 2"),
    ],
)
def test_what_is_no_packet_is_said_to_be_none(content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        PacketReader(SENSOR).take(content)


def test_times_count_from_the_recording_s_first_packet() -> None:
    reader = PacketReader(SENSOR)
    first = reader.take(packet(9, 5000, [0, 7]))
    second = reader.take(packet(10, 5020, [3]))
    other = reader.take(packet(11, 9000, [1], recording=1))
    assert first and second and other
    assert first.begins and first.events.microseconds.tolist() == [0, 7]
    assert not second.begins and second.events.microseconds.tolist() == [23]
    assert other.begins and other.events.microseconds.tolist() == [1]


def test_lost_packets_are_counted_and_late_ones_left_out() -> None:
    reader = PacketReader(SENSOR)
    reader.take(packet((1 << 32) - 1, 0, [1]))
    reader.take(packet(2, 0, [5]))
    assert reader.take(packet(1, 0, [3])) is None
    assert reader.take(packet(2, 0, [5])) is None
    assert (reader.lost, reader.late) == (2, 2)


def test_a_sender_that_starts_anew_begins_another_recording() -> None:
    reader = PacketReader(SENSOR)
    reader.take(packet(1000, 9000, [1]))
    again = reader.take(packet(0, 50, [1]))
    assert again is not None and again.begins
    reader.forget()
    after_silence = reader.take(packet(1, 40, [0]))
    assert after_silence is not None and after_silence.begins
    assert reader.lost == reader.late == 0


def test_a_clock_that_runs_backwards_is_refused() -> None:
    reader = PacketReader(SENSOR)
    reader.take(packet(0, 100, [50]))
    with pytest.raises(InputError, match="from 50 microseconds on"):
        reader.take(packet(1, 100, [49]))


def kinds(steps: list[Step]) -> list[type[Step]]:
    return [type(step) for step in steps]


def test_a_timestep_leaves_while_the_next_is_recorded() -> None:
    cutter = Cutter(ByTime(timesteps=3, window_microseconds=10), SENSOR, continuous=False)
    assert kinds(list(cutter.push(piece([1, 9], begins=True)))) == [Begin]
    (frame,) = cutter.push(piece([10]))
    assert isinstance(frame, Frame) and frame.frame.sum() == 2
    assert kinds(list(cutter.push(piece([], now=20)))) == [Frame]
    assert kinds(list(cutter.push(piece([31])))) == [Frame, End]
    assert kinds(list(cutter.push(piece([32], ends=True)))) == []


def test_after_an_exit_the_next_sample_begins_with_the_next_timestep() -> None:
    cutter = Cutter(ByTime(timesteps=3, window_microseconds=10), SENSOR, continuous=True)
    assert kinds(list(cutter.push(piece([41, 50], begins=True)))) == [Begin, Frame]
    cutter.answered()
    assert kinds(list(cutter.push(piece([55, 59])))) == []
    steps = list(cutter.push(piece([60, 70])))
    assert kinds(steps) == [Begin, Frame]
    assert isinstance(steps[1], Frame) and steps[1].frame.sum() == 1


def test_one_sample_per_recording_ignores_what_follows_its_exit() -> None:
    cutter = Cutter(ByTime(timesteps=3, window_microseconds=10), SENSOR, continuous=False)
    list(cutter.push(piece([1, 11], begins=True)))
    cutter.answered()
    assert list(cutter.push(piece([12, 60]))) == []
    assert kinds(list(cutter.push(piece([0], begins=True)))) == [Begin]


def test_silence_and_another_recording_end_a_sample() -> None:
    cutter = Cutter(ByTime(timesteps=3, window_microseconds=10), SENSOR, continuous=True)
    list(cutter.push(piece([1], begins=True)))
    assert kinds(list(cutter.push(piece([2], begins=True)))) == [Frame, End, Begin]
    assert kinds(cutter.end()) == [Frame, End]
    assert cutter.end() == []


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=40).map(sorted),
    st.integers(1, 39),
    st.one_of(
        st.builds(ByTime, timesteps=st.integers(1, 4), window_microseconds=st.integers(1, 60)),
        st.builds(ByCount, timesteps=st.integers(1, 4), window_events=st.integers(1, 9)),
    ),
)
def test_a_recording_in_pieces_gives_the_frames_of_the_whole(
    times: list[int], cut: int, framing: ByTime | ByCount
) -> None:
    cutter = Cutter(framing, SENSOR, continuous=False)
    steps = [
        *cutter.push(piece(times[:cut], begins=True)),
        *cutter.push(piece(times[cut:], now=times[-1], ends=True)),
    ]
    frames = [step.frame for step in steps if isinstance(step, Frame)]
    whole = saturated(frame_events(events(times), framing))
    assert all(np.array_equal(frame, own) for frame, own in zip(frames, whole, strict=False))
    # What is not told of the rest is silent.
    assert not whole[len(frames) :].any()


def test_a_continuous_stream_loses_no_event_by_count() -> None:
    cutter = Cutter(ByCount(timesteps=2, window_events=3), SENSOR, continuous=True)
    steps = list(cutter.push(piece(list(range(20)), begins=True)))
    assert sum(step.frame.sum() for step in steps if isinstance(step, Frame)) == 18
    assert kinds(steps).count(Begin) == 4


@pytest.mark.parametrize("kind", ["udp", "unix"])
def test_a_receiver_gets_what_a_sender_sends(kind: str, tmp_path: Path) -> None:
    address = "udp:127.0.0.1:0" if kind == "udp" else f"unix:{tmp_path / 'events.sock'}"
    rng = np.random.default_rng(0)
    columns = (np.sort(rng.integers(10, 9999, 500)), rng.integers(0, 6, 500))
    sent = Events(*columns, rng.integers(0, 4, 500), rng.integers(0, 2, 500), SENSOR)
    with EventReceiver(address, SENSOR) as receiver, EventSender(receiver.address) as sender:
        recordings = receiver.recordings()
        for _ in range(2):
            sender.tell_time(0)
            sender.send(sent)
            sender.end(10_000)
            found = [part for part in next(recordings) if len(part)]
            for name in ("microseconds", "x", "y", "polarity"):
                joined = np.concatenate([getattr(part, name) for part in found])
                np.testing.assert_array_equal(joined, getattr(sent, name))


def test_a_recording_left_unread_does_not_hold_up_the_next() -> None:
    with EventReceiver("udp:127.0.0.1:0", SENSOR) as receiver:
        with EventSender(receiver.address) as sender:
            for _ in range(2):
                sender.send(events([1, 2]))
                sender.end(3)
        recordings = receiver.recordings()
        next(recordings)
        assert sum(map(len, next(recordings))) == 2
        closing = threading.Thread(target=receiver.close)
        closing.start()
        assert list(recordings) == []
        closing.join()


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:1", "udp:nowhere", "unix:/no/such/folder/s"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        EventReceiver(address, SENSOR)
    with pytest.raises(ConfigError):
        EventSender(address)
