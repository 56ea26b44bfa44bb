"""Measures for a plan what one bundle takes on this device, in the cloud and on the way.

Everything is run for a moment by the daemon's own loop; the figures are medians.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from edge_agent.answers import Answer, Latency
from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from edge_agent.inputs import Array, Data
from edge_agent.measure.inputs import read_inputs
from edge_agent.measure.modes import as_it_is, is_picture, webp
from shared import wire
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle
from shared.model.spec import NetworkSpec

INPUTS = 8
"""Most inputs that are used, again and again."""
WARM_UP, FEWEST, MOST = 2, 3, 15
"""Samples of a run that do not count; those that count, at least and at most."""
RUN_SECONDS = 2.0
"""A run ends then if it has samples enough."""
DEADLINE_SECONDS = 60.0
"""For a sample; a slow link is to be measured, not to be given up."""
FULL, FIRST = 1.0, 0.0
"""Alpha that no confidence exceeds: T timesteps; and one that all do: a single timestep."""
TOLD_APART = 3.0
"""A rate shows where a large message takes longer than a small one by so many times the spread."""
TOLD_SECONDS = 0.001
"""And by at least so much: below, what it shows is the work on both sides."""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A whole input sent to the cloud."""

    kind: str
    """``webp`` or ``array``."""
    message_bytes: float
    encode_seconds: float
    transport_seconds: float
    first_seconds: float
    """The cloud's work on a sample that exits on its first timestep, decoding included."""
    step_seconds: float
    """Its work on every further timestep."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one bundle: medians; None for what could not be run."""

    head_seconds: float | None = None
    """Head, encoder and codec, one timestep; so are the others."""
    tail_seconds: float | None = None
    whole_seconds: float | None = None
    service_seconds: float | None = None
    transport_seconds: float | None = None
    payload_bytes: float | None = None
    link_bytes_per_second: float | None = None
    """None where the link is too fast to tell with an input's size."""
    upload: Upload | None = None


def inputs_for(bundle: Bundle, images: Path | None) -> list[Array]:
    """Return the first few of a user's inputs, or made-up ones.

    Args:
        bundle: the network they are for.
        images: see :func:`edge_agent.measure.inputs.read_inputs`; None for smooth noise.

    Raises:
        ConfigError: nothing there, or something that cannot be used.
    """
    if images is None:
        return [_made_up(bundle.spec, seed) for seed in range(INPUTS)]
    return read_inputs(images, None, bundle.manifest, INPUTS).arrays


def _made_up(spec: NetworkSpec, seed: int) -> Array:
    generator, (channels, height, width) = np.random.default_rng(seed), spec.input_shape
    if spec.input_kind == "events":
        shape = (spec.timesteps, channels, height, width)
        return (generator.random(shape) < 0.1).astype(np.uint8)
    coarse = generator.integers(0, 256, (channels, 4, 4), dtype=np.uint8)
    fine = coarse.repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)
    return np.ascontiguousarray(fine[:, :height, :width])


def _message_bytes(data: Data) -> int:
    return len(wire.input_to_proto(data).SerializeToString())


class Surveyor:
    """Measures one bundle.

    Args:
        config: of the daemon, in co-inference; the settings are replaced.
        bundle: what to run.
        arrays: inputs of the network's size.
    """

    def __init__(self, config: EdgeConfig, bundle: Bundle, arrays: Sequence[Array]) -> None:
        self._config = replace(
            config.uncounted,
            bundle=str(bundle.path),
            loss_budget=None,
            window=1,
            steps_per_packet=1,
            reply_mode="step",
            samples_in_flight=1,
            deadline_seconds=DEADLINE_SECONDS,
            choose_local=False,
            fallback="none",
            sources=(),
        )
        self._bundle = bundle
        self._arrays = arrays
        self._timesteps = bundle.spec.timesteps

    async def here(self) -> Measured:
        """Run what can be run on this device alone."""
        measured = Measured()
        local = {"placement": "edge_only", "alpha": FULL}
        if self._bundle.has("tail"):
            answers = await self._run(self._arrays, **local)
            measured = replace(
                measured,
                head_seconds=self._per_step(answers, _head_seconds),
                tail_seconds=self._per_step(answers, lambda latency: latency.tail_seconds),
            )
        if self._bundle.has("whole"):
            answers = await self._run(self._arrays, network="whole", **local)
            seconds = self._per_step(answers, lambda latency: latency.tail_seconds)
            measured = replace(measured, whole_seconds=seconds)
        return measured

    async def over_link(self, measured: Measured) -> Measured:
        """Run what takes the cloud, head and tail."""
        full = await self._run(self._arrays, alpha=FULL, reply_mode="exit")
        first = await self._run(self._arrays, alpha=FIRST)
        return replace(
            measured,
            head_seconds=measured.head_seconds or self._per_step(full, _head_seconds),
            payload_bytes=median(each.payload_bytes for each in full) / self._timesteps,
            service_seconds=median(each.latency.service_seconds for each in first),
            transport_seconds=median(each.latency.transport_seconds for each in first),
        )

    async def in_cloud(self, measured: Measured) -> Measured:
        """Run the whole network in the cloud, on uploads; tell the link's rate by the largest."""
        began = perf_counter()
        as_file = webp if all(map(is_picture, self._arrays)) else as_it_is
        files = [as_file(array) for array in self._arrays]
        encode_seconds = (perf_counter() - began) / len(files)
        first = await self._run(files, placement="cloud_only", alpha=FIRST)
        full = await self._run(files, placement="cloud_only", alpha=FULL)
        first_seconds, full_seconds = (
            median(each.latency.service_seconds for each in answers) for answers in (first, full)
        )
        upload = Upload(
            kind="webp" if as_file is webp else "array",
            message_bytes=float(np.mean([_message_bytes(file) for file in files])),
            encode_seconds=encode_seconds,
            transport_seconds=median(each.latency.transport_seconds for each in first),
            first_seconds=first_seconds,
            step_seconds=max(0.0, full_seconds - first_seconds) / max(1, self._timesteps - 1),
        )
        arrays = await self._run(self._arrays, placement="cloud_only", alpha=FIRST)
        rate = told_rate(
            [each.latency.transport_seconds for each in arrays],
            [measured.transport_seconds or 0.0],
            _message_bytes(self._arrays[0]),
        )
        return replace(measured, upload=upload, link_bytes_per_second=rate)

    async def _run(self, inputs: Sequence[Data], **changes: Any) -> list[Answer]:
        """Classify with a changed configuration; the first few answers do not count."""
        config = replace(self._config, **changes)
        metrics = EdgeMetrics(CollectorRegistry(), model=self._bundle.manifest.name)
        loop = build_loop(config, self._bundle, metrics)
        loop.start()
        answers: list[Answer] = []
        try:
            for data in itertools.islice(itertools.cycle(inputs), WARM_UP):
                await loop.submit(data)
            until = perf_counter() + RUN_SECONDS
            for data in itertools.islice(itertools.cycle(inputs), MOST):
                answers.append(await loop.submit(data))
                if len(answers) >= FEWEST and perf_counter() > until:
                    break
        finally:
            await loop.close()
        return answers

    def _per_step(self, answers: Iterable[Answer], part: Callable[[Latency], float]) -> float:
        return median(part(answer.latency) for answer in answers) / self._timesteps


def _head_seconds(latency: Latency) -> float:
    return latency.head_seconds + latency.codec_seconds


def told_rate(
    large_seconds: Sequence[float], small_seconds: Sequence[float], large_bytes: float
) -> float | None:
    """Return a link's rate in bytes per second, if a large message shows it.

    Args:
        large_seconds: transport of messages of ``large_bytes``.
        small_seconds: transport of messages so small that their size does not count.
        large_bytes: of the large ones.
    """
    usual = median(large_seconds)
    spread = median(abs(seconds - usual) for seconds in large_seconds)
    extra = usual - median(small_seconds)
    return large_bytes / extra if extra > max(TOLD_SECONDS, TOLD_APART * spread) else None
