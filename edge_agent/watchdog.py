"""Notices a cloud that owes a word on a timestep and says nothing.

A stopped server, or a link that swallows everything, does not end a stream: TCP waits for minutes,
pings for half a minute. The edge knows sooner, because it knows what it is owed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter

from shared.errors import LinkLostError


async def watch(
    owed_since: Callable[[], float | None],
    limit_seconds: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    now: Callable[[], float] = perf_counter,
) -> None:
    """Look on until the cloud has been silent for too long.

    Args:
        owed_since: tells since when the cloud owes a word and has said none; None if it owes none.
        limit_seconds: longest such silence.
        sleep: waits.
        now: the clock of ``owed_since``.

    Raises:
        LinkLostError: the silence was too long.
    """
    while True:
        since, at = owed_since(), now()
        left_seconds = limit_seconds if since is None else since + limit_seconds - at
        if left_seconds <= 0:
            raise LinkLostError(
                f"expected the cloud's word on a timestep within {limit_seconds:g} s, none came"
            )
        await sleep(left_seconds)
