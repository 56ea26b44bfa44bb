"""An ``ImageStream``: whole inputs in, timesteps for the whole network out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloud_server.config import CloudConfig
from cloud_server.limits import Visit
from cloud_server.model_store import ServedPart
from cloud_server.session import Action, Begin, Release
from cloud_server.stream import Stream
from shared.errors import InputError, SampleCode
from shared.messages import Opened, Settings
from shared.model.bundle import Bundle
from shared.model.preprocessing import read_input
from shared.tracing import Tracing

Input = bytes | NDArray[np.generic]
"""An encoded image, or an array ``[C, H, W]`` or ``[T, C, H, W]``."""


class ImageStream(Stream):
    """The samples of one cloud-only session.

    Args:
        part: a whole network.
        opened: what the edge was told.
        settings: the edge's, resolved.
        config: the server's.
        visit: whose stream it is, and what they may take.
        tracing: goes on with the edge's traces; None for not.
    """

    def __init__(
        self,
        part: ServedPart,
        opened: Opened,
        settings: Settings,
        config: CloudConfig,
        visit: Visit,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(part, opened, settings, config, visit, tracing=tracing)
        self._loading: dict[int, asyncio.Task[None]] = {}

    def receive(
        self,
        value: Input | InputError | None,
        cancels: Sequence[int],
        arrived_seconds: float,
    ) -> None:
        """Take in one message.

        Args:
            value: the next sample's input, if one came; or why it cannot be used, with which the
                sample then ends.
            cancels: samples the edge gives up.
            arrived_seconds: ``time.perf_counter()`` when it was read.

        Raises:
            ProtocolError: the edge broke the protocol.
        """
        if value is not None:
            self._begin(value, arrived_seconds)
        for number in cancels:
            self.perform(self.session.cancel(number))

    def carry_out(self, action: Action) -> None:
        """Carry out one action."""
        super().carry_out(action)
        if isinstance(action, Release) and action.sample in self._loading:
            self._loading.pop(action.sample).cancel()

    def _begin(self, value: Input | InputError, arrived_seconds: float) -> None:
        slot_free = self.part.scheduler.has_slot()
        actions = self.session.whole_input(slot_free=slot_free, hold=self.visit.hold())
        self.perform(actions)
        for action in actions:
            if isinstance(action, Begin):
                loading = self._load(action.sample, value, arrived_seconds)
                self._loading[action.sample] = asyncio.create_task(loading)

    async def _load(self, number: int, value: Input | InputError, arrived_seconds: float) -> None:
        """Decode an input on another thread and queue its timesteps."""
        began = time.perf_counter()
        try:
            frames = await asyncio.to_thread(load_frames, value, self.part.bundle)
        except InputError as error:
            message = str(error)
            del self._loading[number]
            self.drive(lambda: self.session.failed(number, SampleCode.BAD_PACKET, message))
        except Exception as error:
            self.break_off(error)
        else:
            del self._loading[number]
            ended, live = time.perf_counter(), self._live[number]
            self.part.metrics.input_decoded(ended - began)
            if live.trace is not None:
                live.trace.stage("decode_input", began, ended)
            live.feed(frames, arrived_seconds)


def load_frames(value: Input | InputError, bundle: Bundle) -> list[NDArray[np.float32]]:
    """Turn a sample's input into the network's, float32 ``[1, C, H, W]`` per timestep.

    Raises:
        InputError: it cannot be used.
    """
    if isinstance(value, InputError):
        raise value
    spec = bundle.spec
    frames = read_input(value, spec, bundle.manifest.preprocessing)
    return [frames[None]] * spec.timesteps if frames.ndim == 3 else list(frames[:, None])
