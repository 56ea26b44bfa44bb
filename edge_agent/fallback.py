"""Finish on this device a sample that the cloud cannot answer (in time)."""

from __future__ import annotations

import asyncio

import numpy as np

from edge_agent.feeds import HeadFeed
from edge_agent.local_network import LocalNetwork
from shared.exit_rule import exits
from shared.messages import Settings, Verdict
from shared.worker import Worker


class Fallback:
    """The bundle's tail, fed with the codes in hand and those still to be computed.

    Samples are finished one after the other, in the order they come.

    Args:
        tail: the tail.
        timesteps: T.
        settings: alpha and confidence.
        worker: the thread it runs on.
    """

    def __init__(self, tail: LocalNetwork, settings: Settings, worker: Worker) -> None:
        self._tail = tail
        self._settings = settings
        self._worker = worker
        self._turn = asyncio.Lock()

    async def rehearse(self) -> float:
        """Run T timesteps on codes without a spike and return the mean seconds of one.

        Raises:
            EngineError: the engine failed.
            BundleError: the tail cannot be loaded.
        """
        async with self._turn:
            run = await self._worker.run(self._tail.begin, self._settings.confidence)
            for _ in range(len(self._settings.alpha) + 1):
                await self._worker.run(run.step, np.zeros(run.input_shape, np.uint8))
            return run.seconds / run.timestep

    async def finish(self, feed: HeadFeed) -> Verdict:
        """Return the verdict on which the sample exits; its service time is the tail's.

        Raises:
            InputError: the input cannot be used.
            EngineError: an engine failed.
            BundleError: the tail cannot be loaded.
        """
        async with self._turn:
            run = await self._worker.run(self._tail.begin, self._settings.confidence)
            timestep = 0
            while True:
                code = await feed.code(timestep)
                label, confidence = await self._worker.run(run.step, code)
                if exits(confidence, timestep, self._settings.alpha):
                    return Verdict(0, timestep, label, confidence, run.seconds)
                timestep += 1
