"""Callers before a full queue: in their order, no more than fit, none forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from edge_agent.waiting_room import WaitingRoom


class Queue:
    """A queue of limited length with a waiting room before it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside: list[int] = []
        self.room = WaitingRoom(lambda: self.limit - len(self.inside))

    async def come(self, name: int) -> None:
        await self.room.enter()
        assert not self.room.full
        self.inside.append(name)

    def leave(self) -> None:
        self.inside.pop(0)
        self.room.call()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_callers_come_in_one_by_one_in_their_order() -> None:
    queue = Queue(2)
    tasks = [asyncio.create_task(queue.come(name)) for name in range(5)]
    await turns()
    assert queue.inside == [0, 1]
    for expected in ([1, 2], [2, 3], [3, 4], [4], []):
        queue.leave()
        # Whoever comes now does not pass those who wait.
        assert queue.room.full == (len(expected) == 2)
        await turns()
        assert queue.inside == expected
    await asyncio.gather(*tasks)


async def test_room_kept_for_a_caller_that_goes_away_is_the_next_ones() -> None:
    queue = Queue(1)
    await queue.come(0)
    second, third = (asyncio.create_task(queue.come(name)) for name in (1, 2))
    await turns()
    queue.leave()
    second.cancel()  # It was called, and has not come yet.
    await third
    assert queue.inside == [2]
    with contextlib.suppress(asyncio.CancelledError):
        await second


@pytest.mark.parametrize("seed", range(20))
async def test_no_order_of_events_lets_in_too_many_or_forgets_anybody(seed: int) -> None:
    choose, queue = random.Random(seed), Queue(3)
    waiting: list[asyncio.Task[None]] = []
    for name in range(200):
        match choose.randrange(4):
            case 0 | 1:
                waiting.append(asyncio.create_task(queue.come(name)))
            case 2 if queue.inside:
                queue.leave()
            case 3 if waiting:
                choose.choice(waiting).cancel()
        await turns(choose.randrange(3))
        assert len(queue.inside) <= queue.limit
    while not all(task.done() for task in waiting):
        if queue.inside:
            queue.leave()
        await turns()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in errors} <= {type(None), asyncio.CancelledError}
    assert queue.room._called == 0
