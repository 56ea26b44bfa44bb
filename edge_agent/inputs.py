"""What callers hand over, whole or frame by frame, and how it becomes network input."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.answers import Latency
from shared.errors import InputError
from shared.metrics import EdgeMetrics, EdgeStage
from shared.model.bundle import Preprocessing
from shared.model.preprocessing import read_input
from shared.model.spec import NetworkSpec
from shared.worker import Worker

Array = NDArray[Any]
Data = bytes | Array
"""A whole input: an image file's content, ``[C, H, W]`` or ``[T, C, H, W]``, uint8 or float32."""


class Recording:
    """An input that is still being recorded: its frames arrive one by one.

    An input of fewer than T frames goes on as its kind suggests: a picture stays, an event camera
    falls silent.

    Args:
        spec: the network that will see it.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        self.timesteps = spec.timesteps
        """T."""
        self._stays = spec.input_kind == "static"
        self._frames: list[Array] = []
        self._ended = False
        self._error: InputError | None = None
        self._news = asyncio.Event()

    @property
    def complete(self) -> bool:
        """Whether no further frame is expected."""
        return self._ended or len(self._frames) >= self.timesteps

    @property
    def latest(self) -> Array | None:
        """The last frame that came, as it came."""
        return self._frames[-1] if self._frames else None

    def push(self, frame: Array) -> None:
        """Take in the next timestep's frame, ``[C, H, W]``; one too many is ignored."""
        if not self.complete:
            self._frames.append(frame)
            self._news.set()

    def end(self) -> None:
        """No more frames follow."""
        self._ended = True
        self._news.set()

    def fail(self, error: InputError) -> None:
        """What came as the next frame cannot be used."""
        self._error = self._error or error
        self.end()

    async def frame(self, timestep: int) -> Array:
        """Wait for the frame of a timestep, ``[C, H, W]`` as it came.

        Raises:
            InputError: it cannot be used, or the recording ended without any frame.
        """
        while len(self._frames) <= timestep and not self.complete:
            self._news.clear()
            await self._news.wait()
        if self._error is not None and timestep >= len(self._frames):
            raise self._error
        if not self._frames:
            raise InputError("expected at least one timestep, got none")
        if timestep < len(self._frames):
            return self._frames[timestep]
        return self._frames[-1] if self._stays else np.zeros_like(self._frames[-1])


Source = Data | Recording


class Reader:
    """Turns what callers hand over into the input of one network.

    Args:
        spec: the network.
        preprocessing: its normalisation.
        worker: where images are decoded.
        metrics: told how long it took.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        preprocessing: Preprocessing,
        worker: Worker,
        metrics: EdgeMetrics,
    ) -> None:
        self.spec = spec
        self._frame_spec = msgspec.structs.replace(spec, input_kind="static")
        """Describes one frame of whatever kind: prepare() takes single frames of static inputs."""
        self._preprocessing = preprocessing
        self._worker = worker
        self._metrics = metrics

    async def read(self, array: Data, latency: Latency, *, one_frame: bool = False) -> Array:
        """Return a whole input, or one frame of it, as float32 in the shape it came.

        Raises:
            InputError: not an image, another shape or dtype, or not finite.
        """
        began = perf_counter()
        try:
            return await self._worker.run(self._read, array, one_frame)
        finally:
            seconds = perf_counter() - began
            latency.input_seconds += seconds
            self._metrics.stage(EdgeStage.DECODE_INPUT, seconds)

    def _read(self, data: Data, one_frame: bool) -> Array:
        spec = self._frame_spec if one_frame else self.spec
        if one_frame and not isinstance(data, bytes) and data.ndim != len(spec.input_shape):
            raise InputError(
                f"expected a timestep {list(spec.input_shape)}, got {list(data.shape)}"
            )
        return read_input(data, spec, self._preprocessing)


class Frames:
    """One sample's frames as network input, read when first asked for.

    Args:
        source: what the caller handed over.
        reader: of the network.
        latency: the sample's.
    """

    def __init__(self, source: Source, reader: Reader, latency: Latency) -> None:
        self.source = source
        self._reader = reader
        self._latency = latency
        self._whole: Array | None = None

    @property
    def complete(self) -> bool:
        """Whether the whole input is here."""
        return not isinstance(self.source, Recording) or self.source.complete

    @property
    def latest(self) -> Array | None:
        """What was read, ``[C, H, W]`` or ``[T, C, H, W]``; of a recording the latest frame."""
        return self.source.latest if isinstance(self.source, Recording) else self._whole

    async def at(self, timestep: int) -> Array:
        """Wait for and return a timestep's frame, float32 ``[C, H, W]``; InputError if unusable."""
        if isinstance(self.source, Recording):
            frame = await self.source.frame(timestep)
            return await self._reader.read(frame, self._latency, one_frame=True)
        if self._whole is None:
            self._whole = await self._reader.read(self.source, self._latency)
        return self._whole if self._whole.ndim == 3 else self._whole[timestep]
