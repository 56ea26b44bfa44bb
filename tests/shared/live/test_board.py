"""Events at a bounded rate to a bounded number, and nothing at all while nobody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from shared.live.board import MAX_BEHIND, MAX_LISTENERS, Board, FullError, Source

PATIENCE_SECONDS = 30.0


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Counting:
    """A source that tells how often it was read."""

    def __init__(self, pace_seconds: float = 0.005) -> None:
        self.reads = 0
        self.source = Source("count", pace_seconds, self.read)

    def read(self) -> int:
        self.reads += 1
        return self.reads


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def board(counting: Counting) -> Iterator[Board]:
    board = Board()
    board.add(counting.source)
    yield board
    board.close()


def live_threads() -> int:
    return sum(thread.name == "live" for thread in threading.enumerate())


def test_nothing_is_read_while_nobody_looks(board: Board, counting: Counting) -> None:
    assert (board.looking, counting.reads, live_threads()) == (False, 0, 0)
    with board.listener() as listener:
        assert board.looking
        assert next(iter(listener)).startswith(b"event: count\ndata: ")
    assert not board.looking
    until(lambda: live_threads() == 0)
    reads = counting.reads
    time.sleep(0.05)  # Ten times its pace.
    assert counting.reads == reads


def test_all_who_look_are_told_the_same(board: Board) -> None:
    with board.listener() as one, board.listener() as two:
        mine, others = iter(one), iter(two)
        first = next(others)
        while (told := next(mine)) != first:
            pass
        assert [next(mine) for _ in range(5)] == [next(others) for _ in range(5)]
        assert told == first


def test_one_who_leaves_can_come_again(board: Board) -> None:
    for _ in range(50):
        with board.listener() as listener:
            next(iter(listener))
    until(lambda: live_threads() == 0)


def test_no_source_is_read_faster_than_its_pace() -> None:
    counting, board = Counting(pace_seconds=0.05), Board()
    board.add(counting.source)
    began = time.monotonic()
    with ExitStack() as stack:
        listeners = [stack.enter_context(board.listener()) for _ in range(4)]
        for listener in listeners:
            events = iter(listener)
            for _ in range(6):
                next(events)
        seconds = time.monotonic() - began
    board.close()
    assert 6 <= counting.reads <= 1 + seconds / 0.05


def test_what_has_nothing_new_is_not_told() -> None:
    board, news = Board(), iter([None, None, "new"])
    board.add(Source("rare", 0.001, lambda: next(news, None)))
    with board.listener() as listener:
        assert next(iter(listener)) == b'event: rare\ndata: "new"\n\n'
    board.close()


def test_more_than_may_look_are_refused(board: Board) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_LISTENERS):
            stack.enter_context(board.listener())
        with pytest.raises(FullError, match=f"at most {MAX_LISTENERS} to look"), board.listener():
            pass
    with board.listener() as listener:
        next(iter(listener))


def test_one_who_does_not_read_is_dismissed_and_the_others_are_not(board: Board) -> None:
    with board.listener() as slow, board.listener() as quick:
        events = iter(quick)
        for _ in range(2 * MAX_BEHIND):
            next(events)
        assert list(slow) == []
        next(events)
        assert board.looking


def test_closing_dismisses_everybody(board: Board) -> None:
    with board.listener() as listener:
        events = iter(listener)
        next(events)
        board.close()
        assert len(list(events)) <= MAX_BEHIND
        with pytest.raises(FullError, match="shutting down"), board.listener():
            pass


def test_a_source_that_fails_is_told_of_and_keeps_nobody_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board = Board()
    nothing: dict[str, str] = {}
    board.add(Source("broken", 0.001, lambda: nothing["none"]))
    with board.listener() as listener:
        assert list(listener) == []
    assert "the live page can show no more" in caplog.text
    assert "KeyError: 'none'" in caplog.text
    board.close()
