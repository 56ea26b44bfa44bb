"""The scheduler with an engine whose calls a test can hold, count and break."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from cloud_server.part_metrics import PartMetrics
from cloud_server.scheduler import Judged, Sample, Scheduler
from shared.engine.base import Array, Engine, Shape, State
from shared.errors import EngineError, SampleCode
from shared.exit_rule import Confidence
from shared.metrics import CloudMetrics, Part
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import expected_decisions, random_codes


class GatedEngine:
    """Adds up its inputs in its one state; the first input value is the sample's name."""

    input_shape: Shape = (2,)
    output_shape: Shape = (3,)
    state_shapes: tuple[Shape, ...] = ((2,),)

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.error: Exception | None = None
        self.running = 0

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        self.running += 1
        assert self.running == 1, "one engine call at a time"
        self.batches.append([int(name) for name in x[:, 0]])
        self.entered.set()
        assert self.open.wait(30)
        self.running -= 1
        if self.error is not None:
            raise self.error
        total = state[0] + x
        logits = np.zeros((len(x), 3), np.float32)
        logits[:, 1] = total[:, 1]
        return logits, (total,)


@dataclass
class Ear:
    """A listener that releases its sample after ``until`` timesteps, or when it fails."""

    scheduler: Scheduler
    until: int = 1 << 30
    heard: list[Judged] = field(default_factory=list)
    failures: list[tuple[SampleCode, str]] = field(default_factory=list)
    sample: Sample | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def judged(self, judged: Judged) -> None:
        self.heard.append(judged)
        if len(self.heard) == self.until:
            self.release()
        self.changed.set()

    def failed(self, code: SampleCode, message: str) -> None:
        self.failures.append((code, message))
        self.release()
        self.changed.set()

    def begin(self) -> Ear:
        self.sample = self.scheduler.begin(self, Confidence.MAX_SOFTMAX)
        return self

    def feed(self, *frames: Array) -> None:
        assert self.sample is not None
        self.scheduler.feed(self.sample, [frame[None] for frame in frames], 0.0)

    def release(self) -> None:
        assert self.sample is not None
        self.scheduler.release(self.sample)

    async def until_it(self, condition: Callable[[Ear], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()


def frame(name: int, value: float = 1.0) -> Array:
    return np.array([name, value], np.float32)


def part_metrics(registry: CollectorRegistry | None = None) -> PartMetrics:
    return PartMetrics(CloudMetrics(registry or CollectorRegistry()), "model", Part.TAIL)


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


Make = Callable[..., Scheduler]
INLINE = pytest.mark.parametrize("inline_seconds", [0.0, 60.0], ids=["thread", "inline"])
"""Every engine call on the worker thread, or all but the first on the event loop."""


@pytest.fixture
async def make(engine: GatedEngine) -> AsyncIterator[Make]:
    made: list[Scheduler] = []

    def make_one(
        slots: int = 8,
        max_batch: int = 8,
        max_wait_seconds: float = 0.0,
        of: Engine = engine,
        inline_seconds: float = 0.0,
        timeout_seconds: float = math.inf,
        reload: Callable[[], Engine] | None = None,
    ) -> Scheduler:
        made.append(
            Scheduler(
                of,
                slots=slots,
                temperature=1.0,
                metrics=part_metrics(),
                max_batch=max_batch,
                max_wait_seconds=max_wait_seconds,
                inline_seconds=inline_seconds,
                timeout_seconds=timeout_seconds,
                reload=reload,
            )
        )
        return made[-1]

    yield make_one
    engine.open.set()
    for scheduler in made:
        await scheduler.close()


async def hold_engine(engine: GatedEngine, scheduler: Scheduler) -> Ear:
    """Keep the engine busy with a sample named 99 until ``engine.open`` is set."""
    engine.open.clear()
    engine.entered.clear()
    ear = Ear(scheduler, until=1).begin()
    ear.feed(frame(99))
    assert await asyncio.to_thread(engine.entered.wait, 30)
    return ear


@INLINE
async def test_timesteps_are_judged_in_order_on_summed_logits(
    make: Make, inline_seconds: float
) -> None:
    ear = Ear(make(inline_seconds=inline_seconds)).begin()
    ear.feed(frame(1, 1.0), frame(1, 2.0), frame(1, 3.0))
    await ear.until_it(lambda ear: len(ear.heard) == 3)
    assert [judged.timestep for judged in ear.heard] == [0, 1, 2]
    # State is 1, 3, 6: the sums of the logits are 1, 4, 10.
    assert [float(judged.logit_sum[1]) for judged in ear.heard] == [1.0, 4.0, 10.0]
    assert all(judged.decision.label == 1 for judged in ear.heard)
    ear.release()


async def test_what_comes_in_one_turn_of_the_loop_goes_in_one_batch(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make()
    ears = [Ear(scheduler, until=1).begin() for _ in range(3)]
    for name, ear in enumerate(ears):
        ear.feed(frame(name))
    await ears[-1].until_it(lambda ear: bool(ear.heard))
    assert engine.batches == [[0, 1, 2]]


async def test_a_batch_takes_at_most_one_timestep_of_a_sample(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make()
    await hold_engine(engine, scheduler)
    first, second = Ear(scheduler, until=3).begin(), Ear(scheduler, until=1).begin()
    first.feed(frame(1), frame(1), frame(1))
    second.feed(frame(2))
    engine.open.set()
    await first.until_it(lambda ear: len(ear.heard) == 3)
    assert engine.batches[1:] == [[1, 2], [1], [1]]


async def test_the_oldest_timesteps_go_first_up_to_max_batch(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make(max_batch=2)
    await hold_engine(engine, scheduler)
    ears = [Ear(scheduler, until=2).begin() for _ in range(3)]
    for name in (0, 1, 2, 0, 1, 2):
        ears[name].feed(frame(name))
    engine.open.set()
    await ears[2].until_it(lambda ear: len(ear.heard) == 2)
    # By age: 0 1 2 0 1 2.
    assert engine.batches[1:] == [[0, 1], [2, 0], [1, 2]]


async def test_a_quick_engine_runs_on_the_loop_and_a_slow_one_on_the_thread(make: Make) -> None:
    class Engine(GatedEngine):
        def __init__(self) -> None:
            super().__init__()
            self.threads: list[str] = []
            self.seconds = 0.0

        def step(self, x: Array, state: State) -> tuple[Array, State]:
            self.threads.append(threading.current_thread().name)
            time.sleep(self.seconds)  # a slow engine: nothing is waited for
            return super().step(x, state)

    engine = Engine()
    scheduler = make(of=engine, inline_seconds=0.05)
    for seconds in (0.0, 0.0, 0.1, 0.0, 0.0):
        engine.seconds = seconds
        ear = Ear(scheduler, until=1).begin()
        ear.feed(frame(1))
        await ear.until_it(lambda ear: bool(ear.heard))
    main, worker = threading.current_thread().name, "engine-model"
    # Where a call runs follows from what the one before it took; the first one's is not known.
    assert engine.threads == [worker, main, main, worker, main]


async def test_an_engine_told_to_wait_starts_early_when_the_batch_is_full(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make(max_batch=2, max_wait_seconds=1.0)
    first, second = Ear(scheduler, until=1).begin(), Ear(scheduler, until=1).begin()
    first.feed(frame(1))
    await asyncio.sleep(0)
    assert engine.batches == []
    second.feed(frame(2))
    await second.until_it(lambda ear: bool(ear.heard))
    assert engine.batches == [[1, 2]]


async def test_an_engine_told_to_wait_starts_a_batch_that_stays_short(
    make: Make, engine: GatedEngine
) -> None:
    ear = Ear(make(max_wait_seconds=0.01), until=1).begin()
    ear.feed(frame(1))
    await ear.until_it(lambda ear: bool(ear.heard))
    assert engine.batches == [[1]]


async def test_a_released_sample_loses_its_queue_and_its_slot_at_once(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make(slots=2)
    await hold_engine(engine, scheduler)
    ear = Ear(scheduler).begin()
    ear.feed(frame(1), frame(1))
    assert not scheduler.has_slot()
    ear.release()
    assert scheduler.has_slot()
    engine.open.set()
    await scheduler.close()
    assert engine.batches == [[99]]
    assert ear.heard == []


async def test_a_slot_held_by_an_engine_call_comes_back_after_it(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make(slots=1)
    held = await hold_engine(engine, scheduler)
    held.release()
    assert not scheduler.has_slot()
    engine.open.set()
    await scheduler.close()
    await asyncio.sleep(0)
    assert scheduler.has_slot()
    assert held.heard == []


async def test_a_slot_taken_again_starts_from_zero(make: Make) -> None:
    scheduler = make(slots=1)
    for _ in range(2):
        ear = Ear(scheduler, until=1).begin()
        ear.feed(frame(1, 5.0))
        await ear.until_it(lambda ear: bool(ear.heard))
        assert float(ear.heard[0].logit_sum[1]) == 5.0


async def test_a_sample_is_released_once(make: Make) -> None:
    ear = Ear(make()).begin()
    ear.release()
    with pytest.raises(ValueError, match="a released one"):
        ear.release()
    with pytest.raises(ValueError, match="a released one"):
        ear.feed(frame(1))


@pytest.mark.parametrize("error", [EngineError("no memory"), RuntimeError("a bug")])
@INLINE
async def test_a_failed_call_fails_its_samples_and_the_next_call_works(
    make: Make, engine: GatedEngine, error: Exception, inline_seconds: float
) -> None:
    scheduler = make(inline_seconds=inline_seconds)
    before = Ear(scheduler, until=1).begin()
    before.feed(frame(1))
    await before.until_it(lambda ear: bool(ear.heard))
    ears = [Ear(scheduler).begin() for _ in range(2)]
    engine.error = error
    for ear in ears:
        ear.feed(frame(1), frame(1))
    for ear in ears:
        await ear.until_it(lambda ear: bool(ear.failures))
        assert ear.failures == [(SampleCode.WORKER_LOST, f"the engine failed: {error}")]
    assert scheduler.slots_in_use == 0
    engine.error = None
    after = Ear(scheduler, until=1).begin()
    after.feed(frame(1))
    await after.until_it(lambda ear: bool(ear.heard))


async def test_after_a_failed_call_the_engine_is_loaded_anew_and_others_keep_their_state(
    make: Make, engine: GatedEngine
) -> None:
    spare = GatedEngine()
    scheduler = make(reload=lambda: spare)
    bystander, victim = Ear(scheduler, until=2).begin(), Ear(scheduler).begin()
    bystander.feed(frame(1, 1.0))
    await bystander.until_it(lambda ear: bool(ear.heard))
    engine.error = RuntimeError("device lost")
    victim.feed(frame(2))
    await victim.until_it(lambda ear: bool(ear.failures))
    bystander.feed(frame(1, 2.0))
    await bystander.until_it(lambda ear: len(ear.heard) == 2)
    assert bystander.heard[1].logit_sum[1] == 1.0 + 3.0
    assert spare.batches == [[1]]


async def test_an_engine_that_cannot_be_loaded_fails_samples_until_it_can(
    make: Make, engine: GatedEngine
) -> None:
    attempts = 0

    def reload() -> Engine:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise EngineError("no such device")
        return GatedEngine()

    scheduler = make(reload=reload)
    engine.error = RuntimeError("device lost")
    told = []
    for _ in range(3):
        ear = Ear(scheduler, until=1).begin()
        ear.feed(frame(1))
        await ear.until_it(lambda ear: bool(ear.failures or ear.heard))
        told += [message for _, message in ear.failures]
    assert told == ["the engine failed: device lost", "the engine failed: no such device"]
    assert (attempts, scheduler.slots_in_use) == (2, 0)


async def test_a_call_that_hangs_is_given_up_and_its_slots_come_back_when_it_ends(
    make: Make, engine: GatedEngine
) -> None:
    spare = GatedEngine()
    scheduler = make(slots=2, timeout_seconds=0.2, reload=lambda: spare)
    victim = await hold_engine(engine, scheduler)
    await victim.until_it(lambda ear: bool(ear.failures))
    assert victim.failures == [
        (SampleCode.WORKER_LOST, "expected an engine call to end within 0.2 s")
    ]
    # The slot is not lent out while the lost call may still write into it.
    assert scheduler.slots_in_use == 1
    after = Ear(scheduler, until=1).begin()
    after.feed(frame(1, 5.0))
    await after.until_it(lambda ear: bool(ear.heard))
    assert after.heard[0].logit_sum[1] == 5.0
    engine.open.set()
    async with asyncio.timeout(30):
        while scheduler.slots_in_use:
            await asyncio.sleep(0.005)
    both = [Ear(scheduler, until=1).begin() for _ in range(2)]
    for ear in both:
        ear.feed(frame(1, 7.0))
        await ear.until_it(lambda ear: bool(ear.heard))
        assert ear.heard[0].logit_sum[1] == 7.0


async def test_a_sample_released_while_its_call_hangs_gives_its_slot_back_once(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make(timeout_seconds=0.2, reload=GatedEngine)
    victim = await hold_engine(engine, scheduler)
    victim.release()
    other = Ear(scheduler, until=1).begin()
    other.feed(frame(1))
    await other.until_it(lambda ear: bool(ear.heard))
    assert (victim.failures, scheduler.slots_in_use) == ([], 1)
    engine.open.set()
    async with asyncio.timeout(30):
        while scheduler.slots_in_use:
            await asyncio.sleep(0.005)


async def test_closing_waits_for_a_call_that_hangs_no_longer_than_it_may_take(
    make: Make, engine: GatedEngine
) -> None:
    scheduler = make(timeout_seconds=0.2, reload=GatedEngine)
    await hold_engine(engine, scheduler)
    async with asyncio.timeout(10):
        await scheduler.close()
    assert not engine.open.is_set()


async def test_logits_that_are_not_finite_fail_their_sample_alone(make: Make) -> None:
    scheduler = make()
    bad, good = Ear(scheduler, until=1).begin(), Ear(scheduler, until=1).begin()
    bad.feed(frame(1, float("nan")))
    good.feed(frame(2, 1.0))
    await bad.until_it(lambda ear: bool(ear.failures))
    await good.until_it(lambda ear: bool(ear.heard))
    assert bad.failures[0][0] is SampleCode.WORKER_LOST
    assert "finite" in bad.failures[0][1]
    assert scheduler.slots_in_use == 0


@INLINE
async def test_every_slot_comes_back_once_in_any_order_of_events(
    make: Make, engine: GatedEngine, inline_seconds: float
) -> None:
    choose = random.Random(0)
    scheduler = make(slots=5, max_batch=3, inline_seconds=inline_seconds)
    live: list[Ear] = []
    for turn in range(600):
        live = [ear for ear in live if ear.sample is not None and not ear.sample.released]
        assert scheduler.slots_in_use >= len(live)
        event = choose.random()
        if event < 0.3 and scheduler.has_slot():
            live.append(Ear(scheduler, until=choose.randint(1, 4)).begin())
        elif event < 0.6 and live:
            choose.choice(live).feed(*[frame(turn % 90)] * choose.randint(1, 3))
        elif event < 0.75 and live:
            choose.choice(live).release()
        elif event < 0.8:
            engine.error = None if engine.error else EngineError("broken")
        else:
            await asyncio.sleep(0)
    for ear in live:
        if ear.sample is not None and not ear.sample.released:
            ear.release()
    await scheduler.close()
    await asyncio.sleep(0)
    assert scheduler.slots_in_use == 0


@pytest.mark.parametrize("max_batch", [1, 3, 8])
async def test_a_result_does_not_depend_on_the_batch(
    make: Make, tail: Engine, tiny_bundle: Bundle, max_batch: int
) -> None:
    scheduler = make(max_batch=max_batch, of=tail)
    samples = [random_codes(tiny_bundle, seed) for seed in range(8)]
    ears = [Ear(scheduler, until=4).begin() for _ in samples]
    for ear, codes in zip(ears, samples, strict=True):
        ear.feed(*codes)
    for ear, codes in zip(ears, samples, strict=True):
        await ear.until_it(lambda ear: len(ear.heard) == 4)
        alone = expected_decisions(tail, tiny_bundle, list(codes), temperature=1.0)
        for judged, decision in zip(ear.heard, alone, strict=True):
            assert judged.decision.label == decision.label
            assert judged.decision.confidence == pytest.approx(decision.confidence, abs=1e-5)
