"""Continuous batching: ready timesteps of all streams through one engine, state kept in slots.

A timestep is to us what a token is to a language-model server, the membrane state its cache. Each
engine call takes at most one ready timestep of every sample, the oldest first. All methods belong
to the event loop's thread; only the engine call itself, with gathering, scattering and judging,
runs on the scheduler's one worker thread, unless it is over sooner than the thread would start.

An engine whose call raises, or does not end in time, is taken for broken: the samples of that call
are lost, the others keep their state, and the engine is loaded anew before the next call. A call
that hangs is given up with its thread; its slots come back when, and if, it ends.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from cloud_server.part_metrics import PartMetrics
from cloud_server.slots import Slots
from shared.engine.base import Array, Engine
from shared.errors import EngineError, SampleCode
from shared.exit_rule import Confidence, Decision, added, decide
from shared.worker import Worker

logger = logging.getLogger(__name__)

INLINE_SECONDS = 50e-6
"""An engine whose last call took less than this is called on the event loop itself: handing the
call to a thread and back takes the process some 70 us (x86-64, Python 3.11)."""
CLOSE_POLL_SECONDS = 0.1
"""How often closing looks whether the call it waits for has been given up."""


class Judged(NamedTuple):
    """The network's word on one timestep of one sample."""

    timestep: int
    decision: Decision
    logit_sum: list[float]
    """K numbers, of the timesteps so far."""
    arrived_seconds: float
    """When its packet arrived, as told to :meth:`Scheduler.feed`."""


class Listener(Protocol):
    """Whom a sample's results are told, on the event loop; must not raise."""

    def judged(self, judged: Judged) -> None:
        """The next timestep has been computed."""
        ...

    def failed(self, code: SampleCode, message: str) -> None:
        """The sample cannot go on and must be released."""
        ...


class _Timestep(NamedTuple):
    """A timestep that waits for the engine; ordered by age."""

    sequence: int
    arrived_seconds: float
    queued_seconds: float
    frame: Array


@dataclass(slots=True, eq=False)
class Sample:
    """A sample that holds a slot."""

    listener: Listener
    confidence: Confidence
    slot: int
    logit_sum: list[float]
    timestep: int = 0
    """The next timestep to be computed."""
    queue: deque[_Timestep] = field(default_factory=deque)
    held: bool = False
    """An engine call is working on its slot."""
    released: bool = False
    observe: Callable[[float, Computed], None] | None = None
    """Told of every engine call with one of its timesteps, and when that was queued."""


Batch = Sequence[tuple[Sample, _Timestep]]


class Computed(NamedTuple):
    """What an engine call gave; per sample its decision, or why there is none."""

    outcomes: list[Decision | EngineError]
    began_seconds: float
    """When the engine began, ``time.perf_counter()``."""
    engine_seconds: float
    exit_rule_seconds: float


class Scheduler:
    """Runs one engine for many streams.

    Args:
        engine: ``tail`` or ``whole``.
        slots: most samples at once.
        temperature: calibrated divisor of the mean logits.
        metrics: of this part.
        max_batch: most samples in one engine call.
        max_wait_seconds: longest that an idle engine waits for a fuller batch.
        inline_seconds: an engine whose last call was shorter runs on the event loop.
        timeout_seconds: longest that an engine call may take.
        reload: makes the engine anew; None to go on with the one there is.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        slots: int,
        temperature: float,
        metrics: PartMetrics,
        max_batch: int,
        max_wait_seconds: float = 0.0,
        inline_seconds: float = INLINE_SECONDS,
        timeout_seconds: float = math.inf,
        reload: Callable[[], Engine] | None = None,
    ) -> None:
        self._engine = engine
        self._slots = Slots(engine.state_shapes, slots)
        self._temperature = temperature
        self._metrics = metrics
        self._max_batch = max_batch
        self._max_wait_seconds = max_wait_seconds
        self._inline_seconds = inline_seconds
        self._timeout_seconds = timeout_seconds
        self._reload = reload
        self._broken = False
        """The engine is to be loaded anew before its next call."""
        self._call_seconds = math.inf
        """What the last engine call took."""
        self._sequence = itertools.count()
        self._ready: list[tuple[int, Sample]] = []
        """Heap of the samples that wait for the engine, by the age of their next timestep."""
        self._queued = 0
        self._call: asyncio.Future[Computed] | None = None
        self._start_handle: asyncio.Handle | None = None
        self._closed = False
        self.begun = 0
        """Samples that have been given a slot since the start."""
        # Kept, since asking for it is a system call each time (Python 3.11).
        self._loop = asyncio.get_running_loop()
        self._worker = self._new_worker()
        metrics.watch(
            slots_in_use=lambda: self.slots_in_use,
            slot_bytes=self._slots.slot_bytes,
            queue_depth=lambda: self._queued,
        )

    @property
    def slots_limit(self) -> int:
        """Most samples at once."""
        return self._slots.limit

    @property
    def slots_in_use(self) -> int:
        """Slots held now."""
        return self._slots.in_use

    def has_slot(self) -> bool:
        """Say whether another sample can begin now."""
        return self._slots.free > 0

    def begin(self, listener: Listener, confidence: Confidence) -> Sample:
        """Give a new sample a slot; ValueError where :meth:`has_slot` is false."""
        (classes,) = self._engine.output_shape
        self.begun += 1
        return Sample(listener, confidence, self._slots.take(), [0.0] * classes)

    def feed(self, sample: Sample, frames: Iterable[Array], arrived_seconds: float) -> None:
        """Queue the sample's next timesteps.

        Args:
            sample: begun and not released.
            frames: one engine input, ``[1, ...]``, per timestep.
            arrived_seconds: when they arrived, ``time.perf_counter()``.

        Raises:
            ValueError: the sample has been released.
        """
        if sample.released:
            raise ValueError("expected a sample under way, got a released one")
        queued_seconds = time.perf_counter()
        queue, was_waiting = sample.queue, bool(sample.queue)
        for frame in frames:
            queue.append(_Timestep(next(self._sequence), arrived_seconds, queued_seconds, frame))
            self._queued += 1
        if queue and not was_waiting and not sample.held:
            self._make_ready(sample)
        if len(self._ready) >= self._slots.in_use:
            self._start()  # No sample is left that could join the batch.
        else:
            self._wake()

    def release(self, sample: Sample) -> None:
        """End a sample: drop what it has queued and free its slot, after the call that holds it.

        Raises:
            ValueError: it has been released before.
        """
        if sample.released:
            raise ValueError("expected a sample under way, got a released one")
        sample.released = True
        if sample.queue:
            self._metrics.wasted(len(sample.queue))
            self._queued -= len(sample.queue)
            sample.queue.clear()
        if not sample.held:
            self._slots.give_back(sample.slot)

    async def close(self) -> None:
        """Wait for the engine call under way, unless it hangs; start no other."""
        self._closed = True
        while (call := self._call) is not None:
            await asyncio.wait([call], timeout=CLOSE_POLL_SECONDS)
            await asyncio.sleep(0)
        self._worker.stop()

    def _new_worker(self) -> Worker:
        return Worker(f"engine-{self._metrics.model}")

    def _make_ready(self, sample: Sample) -> None:
        heapq.heappush(self._ready, (sample.queue[0].sequence, sample))

    def _wake(self) -> None:
        """Start the engine at the end of this turn of the loop, with all that came in it."""
        if self._call is not None:
            return
        if isinstance(self._start_handle, asyncio.TimerHandle) and self._batch_is_full():
            self._start_handle.cancel()
            self._start_handle = None
        if self._start_handle is None:
            self._start_handle = self._loop.call_soon(self._start)

    def _batch_is_full(self) -> bool:
        return len(self._ready) >= self._max_batch

    def _start(self) -> None:
        """Begin an engine call if the engine is idle and something is ready."""
        if self._start_handle is not None:
            self._start_handle.cancel()
            self._start_handle = None
        if self._closed or self._call is not None:
            return
        wait_seconds = self._wait_seconds()
        if wait_seconds > 0:
            self._start_handle = self._loop.call_later(wait_seconds, self._start)
            return
        batch = self._take_batch()
        if batch and self._call_seconds < self._inline_seconds:
            self._call_inline(batch)
        elif batch:
            self._call = call = self._worker.run(self._compute, batch, self._worker)
            limit = self._loop.call_later(self._timeout_seconds, self._give_up, call, batch)
            call.add_done_callback(lambda call: self._called(batch, call, limit))

    def _call_inline(self, batch: Batch) -> None:
        """Call the engine here and now; messages may come in between before the next call."""
        try:
            computed = self._compute(batch, self._worker)
        except Exception as error:
            self._fail(batch, error)
        else:
            self._settle(batch, computed)
        if self._ready:
            self._wake()

    def _called(
        self, batch: Batch, call: asyncio.Future[Computed], limit: asyncio.TimerHandle
    ) -> None:
        """The worker thread is done with a batch: settle it, start the next call."""
        limit.cancel()
        if call is not self._call:
            self._came_back(batch, call)
            return
        self._call = None
        error = call.exception()
        if error is None:
            self._settle(batch, call.result())
        else:
            self._fail(batch, error)
        self._start()

    def _give_up(self, call: asyncio.Future[Computed], batch: Batch) -> None:
        """An engine call hangs: go on without it, with another thread and another engine."""
        if call is not self._call:
            return
        self._call = None
        self._worker.stop()
        self._worker = self._new_worker()
        message = f"expected an engine call to end within {self._timeout_seconds:g} s"
        logger.error("%s; its %d samples are lost", message, len(batch))
        self._mark_broken()
        for sample, _ in batch:
            if not sample.released:
                # It stays held: the call may still write into its slot.
                sample.listener.failed(SampleCode.WORKER_LOST, message)
        self._start()

    def _came_back(self, batch: Batch, call: asyncio.Future[Computed]) -> None:
        """A call that was given up has ended after all: its slots are free."""
        call.exception()
        logger.warning("an engine call of %d samples, given up before, has ended", len(batch))
        for sample, _ in batch:
            self._slots.give_back(sample.slot)

    def _mark_broken(self) -> None:
        self._broken = True
        self._call_seconds = math.inf  # The next call, which reloads, is not for the event loop.

    def _wait_seconds(self) -> float:
        """Return how much longer a batch that is not full should wait."""
        if self._max_wait_seconds == 0 or self._batch_is_full():
            return 0.0
        waiting = [sample.queue[0].queued_seconds for _, sample in self._ready if sample.queue]
        if not waiting:
            return 0.0
        return min(waiting) + self._max_wait_seconds - time.perf_counter()

    def _take_batch(self) -> Batch:
        batch: list[tuple[Sample, _Timestep]] = []
        now = time.perf_counter()
        while self._ready and len(batch) < self._max_batch:
            _, sample = heapq.heappop(self._ready)
            if sample.released:
                continue
            step = sample.queue.popleft()
            sample.held = True
            batch.append((sample, step))
            self._metrics.queued(now - step.queued_seconds)
        self._queued -= len(batch)
        return batch

    def _compute(self, batch: Batch, worker: Worker) -> Computed:
        """Run one engine call, mostly on the worker thread; it alone touches the held slots."""
        engine = self._restarted(worker) if self._broken else self._engine
        slots = [sample.slot for sample, _ in batch]
        frames = [step.frame for _, step in batch]
        x = np.concatenate(frames) if len(frames) > 1 else frames[0]
        began = time.perf_counter()
        logits, state = engine.step(x, self._slots.gather(slots))
        ended = time.perf_counter()
        self._slots.scatter(slots, state)
        outcomes = [
            self._judge(sample, row)
            for (sample, _), row in zip(batch, logits.tolist(), strict=True)
        ]
        return Computed(outcomes, began, ended - began, time.perf_counter() - ended)

    def _restarted(self, worker: Worker) -> Engine:
        """Load the engine anew; it is everybody's unless the thread was given up meanwhile."""
        engine = self._engine if self._reload is None else self._reload()
        if worker is self._worker:
            self._engine, self._broken = engine, False
        logger.warning("the engine of %s was loaded anew", self._metrics.model)
        self._loop.call_soon_threadsafe(self._metrics.engine_restarted)
        return engine

    def _judge(self, sample: Sample, logits: Sequence[float]) -> Decision | EngineError:
        sample.logit_sum = added(sample.logit_sum, logits)
        try:
            return decide(sample.logit_sum, sample.timestep, self._temperature, sample.confidence)
        except EngineError as error:
            return error

    def _settle(self, batch: Batch, computed: Computed) -> None:
        """Tell the samples of a finished call what came of it."""
        self._call_seconds = computed.engine_seconds
        self._metrics.engine_call(len(batch), computed.engine_seconds, computed.exit_rule_seconds)
        for (sample, step), outcome in zip(batch, computed.outcomes, strict=True):
            if sample.observe is not None:
                sample.observe(step.queued_seconds, computed)
            self._tell(sample, step, outcome)

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """Tell the samples of a call that it failed."""
        self._mark_broken()
        logger.error("engine call of %d samples failed", len(batch), exc_info=error)
        for sample, step in batch:
            self._tell(sample, step, error)

    def _tell(self, sample: Sample, step: _Timestep, outcome: Decision | BaseException) -> None:
        sample.held = False
        if sample.released:
            self._metrics.wasted(1)
            self._slots.give_back(sample.slot)
        elif isinstance(outcome, BaseException):
            sample.listener.failed(SampleCode.WORKER_LOST, f"the engine failed: {outcome}")
        else:
            judged = Judged(sample.timestep, outcome, sample.logit_sum, step.arrived_seconds)
            sample.timestep += 1
            sample.listener.judged(judged)
        if sample.queue:
            self._make_ready(sample)
