from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events.framing import (
    ByCount,
    ByTime,
    Framer,
    Framing,
    frame_events,
    saturated,
    stream_frames,
)
from shared.events.recording import Events

SENSOR = (3, 5)
Event = tuple[int, int, int, int]


def make(rows: list[Event], sensor: tuple[int, int] = SENSOR) -> Events:
    t, x, y, polarity = np.array(rows, np.int64).reshape(-1, 4).T
    return Events(t, x, y, polarity, sensor)


recordings = st.lists(
    st.tuples(
        st.integers(0, 1000), st.integers(0, SENSOR[1] - 1), st.integers(0, 2), st.integers(0, 1)
    ),
    max_size=60,
).map(lambda rows: make(sorted(rows, key=lambda row: row[0])))
whole = st.integers(1, 7).flatmap(
    lambda timesteps: st.sampled_from([ByTime(timesteps=timesteps), ByCount(timesteps=timesteps)])
)
windowed = st.one_of(
    st.builds(ByTime, timesteps=st.integers(1, 7), window_microseconds=st.integers(1, 400)),
    st.builds(ByCount, timesteps=st.integers(1, 7), window_events=st.integers(1, 20)),
)


def test_each_event_lands_in_the_cell_of_its_time_polarity_and_pixel() -> None:
    rows = [(0, 4, 0, 1), (9, 4, 0, 1), (10, 0, 2, 0), (29, 1, 1, 1)]

    frames = frame_events(make(rows), ByTime(timesteps=3, window_microseconds=10))

    expected = np.zeros((3, 2, *SENSOR), np.uint32)
    expected[0, 1, 0, 4] = 2
    expected[1, 0, 2, 0] = 1
    expected[2, 1, 1, 1] = 1
    np.testing.assert_array_equal(frames, expected)
    assert frames.dtype == np.uint32


def test_a_window_holds_its_start_and_not_its_end() -> None:
    rows = [(t, 0, 0, 1) for t in (0, 99, 100, 199, 200, 299, 300, 5000)]

    frames = frame_events(make(rows), ByTime(timesteps=3, window_microseconds=100))

    assert frames.sum(axis=(1, 2, 3)).tolist() == [2, 2, 2]


def test_without_a_window_the_time_between_first_and_last_event_is_cut_equally() -> None:
    rows = [(t, 0, 0, 0) for t in (1000, 1009, 1010, 1019, 1020, 1029)]

    frames = frame_events(make(rows), ByTime(timesteps=3))

    assert frames.sum(axis=(1, 2, 3)).tolist() == [2, 2, 2]


def test_groups_without_a_size_differ_by_at_most_one() -> None:
    frames = frame_events(make([(0, 0, 0, 0)] * 11), ByCount(timesteps=4))

    assert frames.sum(axis=(1, 2, 3)).tolist() == [3, 3, 3, 2]


def test_groups_of_a_given_size_fill_one_after_the_other() -> None:
    events = make([(t, 0, 0, 0) for t in range(7)])

    assert _sums(events, ByCount(timesteps=4, window_events=3)) == [3, 3, 1, 0]
    assert _sums(events, ByCount(timesteps=2, window_events=3)) == [3, 3]


@pytest.mark.parametrize("framing", [ByTime(timesteps=2), ByCount(timesteps=2)])
def test_no_events_make_empty_frames(framing: Framing) -> None:
    assert _sums(make([]), framing) == [0, 0]


@given(recordings, whole)
def test_without_a_window_every_event_is_counted_once(events: Events, framing: Framing) -> None:
    frames = frame_events(events, framing)

    assert frames.shape == (framing.timesteps, 2, *SENSOR)
    expected = np.zeros((2, *SENSOR), np.uint32)
    np.add.at(expected, (events.polarity, events.y, events.x), 1)
    np.testing.assert_array_equal(frames.sum(axis=0), expected)


@given(recordings, windowed)
def test_with_a_window_every_event_up_to_the_last_frame_is_counted_once(
    events: Events, framing: ByTime | ByCount
) -> None:
    if isinstance(framing, ByTime):
        end = framing.timesteps * (framing.window_microseconds or 0)
        kept = events.part(0, int(np.searchsorted(events.microseconds, end)))
    else:
        kept = events.part(0, framing.timesteps * (framing.window_events or 0))
    expected = np.zeros((2, *SENSOR), np.uint32)
    np.add.at(expected, (kept.polarity, kept.y, kept.x), 1)

    np.testing.assert_array_equal(frame_events(events, framing).sum(axis=0), expected)


@given(recordings, windowed, st.data())
def test_a_stream_gives_the_frames_of_the_whole_recording(
    events: Events, framing: Framing, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=8).map(sorted))
    pieces = [events.part(start, stop) for start, stop in pairwise([0, *cuts, len(events)])]

    streamed = list(stream_frames(pieces, framing, SENSOR))

    np.testing.assert_array_equal(np.stack(streamed), frame_events(events, framing))


def test_a_frame_by_time_comes_with_the_first_event_after_it() -> None:
    pieces = iter(
        [make([(0, 0, 0, 0), (9, 0, 0, 0)]), make([(10, 0, 0, 0)]), make([(35, 0, 0, 0)])]
    )
    frames = stream_frames(pieces, ByTime(timesteps=9, window_microseconds=10), SENSOR)

    assert next(frames).sum() == 2
    assert len(next(pieces)) == 1  # the third piece was not needed yet
    assert [frame.sum() for frame in frames] == [1, 0, 0, 0, 0, 0, 0, 0]


def test_a_frame_by_count_comes_with_its_last_event() -> None:
    pieces = iter([make([(0, 0, 0, 0), (5, 0, 0, 0)]), make([(7, 0, 0, 0)])])
    frames = stream_frames(pieces, ByCount(timesteps=1, window_events=2), SENSOR)

    assert [frame.sum() for frame in frames] == [2]
    assert len(next(pieces)) == 1


def test_a_stream_without_events_gives_empty_frames() -> None:
    frames = list(stream_frames([], ByTime(timesteps=2, window_microseconds=1), SENSOR))

    assert [(frame.shape, frame.sum()) for frame in frames] == [((2, *SENSOR), 0)] * 2


@pytest.mark.parametrize("framing", [ByTime(timesteps=2), ByCount(timesteps=2)])
def test_a_stream_needs_a_window(framing: Framing) -> None:
    with pytest.raises(ValueError, match="expected a framing with a window"):
        next(stream_frames([], framing, SENSOR))


def test_a_piece_of_another_sensor_or_an_earlier_time_is_refused() -> None:
    framing = ByTime(timesteps=2, window_microseconds=10)

    with pytest.raises(ValueError, match=r"expected events of a sensor \(3, 5\), got \(4, 4\)"):
        next(stream_frames([make([(0, 0, 0, 0)], (4, 4))], framing, SENSOR))
    late_then_early = [make([(8, 0, 0, 0)]), make([(7, 0, 0, 0)])]
    with pytest.raises(ValueError, match="expected events from 8 microseconds on, got 7"):
        next(stream_frames(late_then_early, framing, SENSOR))


def test_saturated_counts_stop_at_255() -> None:
    frames = frame_events(make([(0, 0, 0, 0)] * 300), ByTime(timesteps=1))

    assert frames[0, 0, 0, 0] == 300
    assert saturated(frames)[0, 0, 0, 0] == 255
    assert saturated(frames).dtype == np.uint8


@given(recordings, st.integers(1, 9), st.integers(1, 9))
def test_resizing_keeps_every_event(events: Events, height: int, width: int) -> None:
    resized = events.resized((height, width))

    assert resized.sensor == (height, width)
    np.testing.assert_array_equal(resized.microseconds, events.microseconds)
    np.testing.assert_array_equal(resized.polarity, events.polarity)


def test_resizing_adds_up_neighbouring_pixels() -> None:
    events = make([(0, x, y, 0) for y in range(4) for x in range(6)], (4, 6)).resized((2, 3))

    frame = frame_events(events, ByTime(timesteps=1))[0]

    assert frame[0].tolist() == [[4, 4, 4], [4, 4, 4]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 5, 0, 0), (0, 9, 0, 0)], r"expected x in 0..4, got 5 \(2 of 2 events\)"),
        ([(0, -1, 0, 0)], "expected x in 0..4, got -1"),
        ([(0, 0, 3, 0)], "expected y in 0..2, got 3"),
        ([(0, 0, 0, 2)], "expected polarity in 0..1, got 2"),
        ([(-1, 0, 0, 0)], "expected times from 0 on, got -1"),
        ([(5, 0, 0, 0), (4, 0, 0, 0)], "expected events in the order of time"),
    ],
)
def test_impossible_events_are_refused(rows: list[Event], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(rows)


def test_columns_of_different_length_are_refused() -> None:
    one, two = np.zeros(1, np.int64), np.zeros(2, np.int64)

    with pytest.raises(ValueError, match=r"expected arrays of one length, got \[1, 2, 2, 2\]"):
        Events(one, two, two, two, SENSOR)


def test_a_recipe_names_a_framing_by_its_kind() -> None:
    decode = msgspec.json.Decoder(Framing).decode

    assert decode(b'{"by": "time", "timesteps": 4}') == ByTime(timesteps=4)
    assert decode(b'{"by": "count", "timesteps": 2, "window_events": 9}') == ByCount(
        timesteps=2, window_events=9
    )
    with pytest.raises(msgspec.ValidationError):
        decode(b'{"by": "time", "timesteps": 0}')


def _sums(events: Events, framing: Framing) -> list[int]:
    sums: list[int] = frame_events(events, framing).sum(axis=(1, 2, 3)).tolist()
    return sums


def test_time_that_passes_completes_frames_without_events() -> None:
    framer = Framer(ByTime(timesteps=3, window_microseconds=10), SENSOR)

    assert framer.push(make([(3, 0, 0, 1)])) == []
    (first,) = framer.advance(10)
    assert first.sum() == 1
    assert framer.advance(19) == []
    (second,) = framer.push(make([(25, 1, 1, 0)]))
    assert second.sum() == 0
    (last,) = framer.end()
    assert last.sum() == 1
    assert framer.complete
    assert framer.end() == []
