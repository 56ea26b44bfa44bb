"""The loop against a cloud that says what the test wants it to say."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.breaker import Pace
from edge_agent.feeds import FrameFeed, frame_feeds
from edge_agent.inputs import Reader
from edge_agent.link import CloudFullError
from edge_agent.loop import EdgeLoop, Options
from edge_agent.source_config import ArraySource
from edge_agent.sources.base import Item
from edge_agent.sources.run import SourceTask, on_a_thread, pass_over
from shared.codec.packet import parse_header
from shared.errors import LinkLostError, NeucodexError, RefusedError, SampleCode, SampleError
from shared.messages import (
    CloudMessage,
    Draining,
    EdgeMessage,
    Failure,
    Open,
    Opened,
    ReplyMode,
    Settings,
    Verdict,
)
from shared.metrics import EdgeMetrics, Placement
from shared.model.bundle import Bundle
from shared.worker import Worker
from tests.edge_agent.conftest import PATIENCE_SECONDS, Metered, Results, picture, until

EXIT = 0.9
"""A confidence above the tests' alpha."""


class ScriptedLink:
    """A stream on which the test speaks for the cloud."""

    def __init__(self, refusal: NeucodexError | None = None, samples_in_flight: int = 1) -> None:
        self.packets: list[bytes] = []
        self.cancels: list[int] = []
        self.closed = False
        self._refusal = refusal
        self._samples_in_flight = samples_in_flight
        self._said: asyncio.Queue[CloudMessage | NeucodexError] = asyncio.Queue()

    async def open(self, request: Open) -> Opened:
        if self._refusal is not None:
            raise self._refusal
        return Opened(
            max_window=9,
            max_steps_per_packet=9,
            samples_in_flight=self._samples_in_flight,
            codecs=("raw",),
            packet_idle_seconds=1.0,
            model="scripted",
        )

    def send(self, message: EdgeMessage) -> None:
        self.packets += message.packets
        self.cancels += message.cancels

    async def messages(self) -> AsyncIterator[CloudMessage]:
        while True:
            said = await self._said.get()
            if isinstance(said, NeucodexError):
                raise said
            yield said

    async def close(self) -> None:
        self.closed = True

    def verdict(self, sample: int, timestep: int, confidence: float = EXIT, label: int = 1) -> None:
        self.say(CloudMessage(verdicts=(Verdict(sample, timestep, label, confidence),)))

    def fail(self, sample: int, code: SampleCode, retry_after_seconds: float = 0.0) -> None:
        failure = Failure(sample, code, "scripted", retry_after_seconds)
        self.say(CloudMessage(failures=(failure,)))

    def say(self, what: CloudMessage | NeucodexError) -> None:
        self._said.put_nowait(what)


class Script(Metered):
    """A loop whose streams are scripted, and the waits between them."""

    def __init__(self, bundle: Bundle, links: list[ScriptedLink], **options: Any) -> None:
        registry = CollectorRegistry()
        metrics = EdgeMetrics(registry, model="tiny")
        reader = Reader(bundle.spec, bundle.manifest.preprocessing, Worker("head"), metrics)
        defaults: dict[str, Any] = {
            "settings": Settings(alpha=(0.5, 0.5, 0.5)),
            "deadline_seconds": PATIENCE_SECONDS,
        }
        chosen = Options(
            placement=Placement.CO_INFERENCE,
            pace=Pace(min_seconds=1.0, max_seconds=4.0, failures=6, probe_seconds=60.0),
            **(defaults | options),
        )
        self.waits: list[float] = []
        self.over = math.inf
        """So many of the waits are over at once, the next one lasts."""
        self._rest = iter(links)
        feeds = partial(frame_feeds, reader)
        loop: EdgeLoop[FrameFeed] = EdgeLoop(
            bundle, chosen, feeds, self._next_link, metrics, sleep=self._sleep
        )
        super().__init__(loop, registry)

    def _next_link(self) -> ScriptedLink:
        return next(self._rest)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await until(lambda: len(self.waits) <= self.over)


Scripts = Callable[..., contextlib.AbstractAsyncContextManager[Script]]


@pytest.fixture
def scripts(tiny_bundle: Bundle) -> Scripts:
    @contextlib.asynccontextmanager
    async def make(*links: ScriptedLink, **options: Any) -> AsyncIterator[Script]:
        # A last link that never answers, for whatever comes after the script.
        script = Script(tiny_bundle, [*links, ScriptedLink()], **options)
        script.loop.start()
        try:
            yield script
        finally:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await script.loop.close()

    return make


async def sent(link: ScriptedLink, count: int) -> None:
    await until(lambda: len(link.packets) >= count)


async def test_verdicts_below_alpha_bring_the_next_timestep_and_the_exit_the_answer(
    scripts: Scripts,
) -> None:
    link = ScriptedLink()
    async with scripts(link) as script:
        future = script.loop.submit(picture(0))
        await sent(link, 1)
        link.verdict(0, 0, confidence=0.5)
        await sent(link, 2)
        link.verdict(0, 1, label=7)
        answer = await future
        assert (answer.label, answer.name, answer.timesteps_used) == (7, "class7", 2)
        assert len(link.packets) == 2


@pytest.mark.parametrize("code", [SampleCode.CHECK_FAILED, SampleCode.WORKER_LOST])
async def test_a_failed_sample_is_sent_again_once_under_a_new_number(
    scripts: Scripts, code: SampleCode
) -> None:
    link = ScriptedLink()
    async with scripts(link) as script:
        future = script.loop.submit(picture(0))
        await sent(link, 1)
        link.fail(0, code)
        await sent(link, 2)
        header = parse_header(link.packets[1])
        assert (header.first, header.sample_mod4, header.timestep_mod8) == (True, 1, 0)
        link.fail(1, code)
        with pytest.raises(SampleError, match=code.name):
            await future
        assert script.count("edge_replays_total", reason=code.name.lower()) == 1
        assert script.count("edge_check_failures_total") == 2 * (code is SampleCode.CHECK_FAILED)


async def test_without_a_slot_a_sample_waits_as_long_as_told(scripts: Scripts) -> None:
    link = ScriptedLink()
    async with scripts(link) as script:
        future = script.loop.submit(picture(0))
        await sent(link, 1)
        link.fail(0, SampleCode.NO_SLOT, retry_after_seconds=0.01)
        await sent(link, 2)
        link.verdict(1, 0)
        assert (await future).timesteps_used == 1


async def test_word_of_the_number_a_sample_had_before_is_ignored(scripts: Scripts) -> None:
    link = ScriptedLink()
    async with scripts(link) as script:
        future = script.loop.submit(picture(0))
        await sent(link, 1)
        link.fail(0, SampleCode.WORKER_LOST)
        await sent(link, 2)
        link.verdict(0, 0, label=3)
        link.verdict(1, 0, label=4)
        link.verdict(1, 0, label=5)
        assert (await future).label == 4
        assert script.loop.answered == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        CloudMessage(verdicts=(Verdict(5, 0, 1, EXIT),)),
        CloudMessage(verdicts=(Verdict(0, 3, 1, EXIT),)),
        CloudMessage(verdicts=(Verdict(0, 0, 10, EXIT),)),
        LinkLostError("scripted"),
        RefusedError("scripted: INVALID_ARGUMENT"),
    ],
    ids=["unknown sample", "timestep not sent", "no such class", "lost", "ended by the cloud"],
)
async def test_a_stream_that_breaks_is_left_and_the_sample_sent_on_the_next(
    scripts: Scripts, nonsense: CloudMessage | NeucodexError
) -> None:
    first, second = ScriptedLink(), ScriptedLink()
    async with scripts(first, second) as script:
        future = script.loop.submit(picture(0))
        await sent(first, 1)
        first.say(nonsense)
        if isinstance(nonsense, RefusedError):
            with pytest.raises(RefusedError, match="scripted"):
                await future
            return
        await sent(second, 1)
        assert first.closed
        assert parse_header(second.packets[0]).sample_mod4 == 0
        second.verdict(0, 0)
        assert (await future).timesteps_used == 1
        assert script.count("edge_replays_total", reason="link_lost") == 1


async def test_waits_between_streams_double_up_to_the_limit_with_jitter(scripts: Scripts) -> None:
    lost = [ScriptedLink(LinkLostError("no route")) for _ in range(5)]
    last = ScriptedLink()
    async with scripts(*lost, last) as script:
        await until(lambda: script.loop.connected)
        longest = [1.0, 2.0, 4.0, 4.0, 4.0]
        pairs = list(zip(script.waits, longest, strict=True))
        assert all(limit / 2 <= wait <= limit for wait, limit in pairs)
        assert script.count("edge_retries_total", reason="connect") == 5
        last.say(CloudMessage())
        last.say(LinkLostError("cut"))
        await until(lambda: len(script.waits) == 6)
        assert script.waits[5] <= 1.0


async def test_a_dead_cloud_is_left_alone_and_samples_end_at_once(scripts: Scripts) -> None:
    lost = [ScriptedLink(LinkLostError("no route")) for _ in range(7)]
    async with scripts(*lost, deadline_seconds=20.0) as script:
        script.over = 5
        waiting = script.loop.submit(picture(0))
        await until(lambda: script.counts("edge_breaker_state", 1.0, state="open"))
        with pytest.raises(LinkLostError, match="it is left alone for now: no route"):
            await script.loop.submit(picture(0))
        assert not waiting.done()
        script.over = 7
        await until(lambda: script.loop.connected)
        assert all(30 <= wait <= 60 for wait in script.waits[5:])
        assert script.count("edge_breaker_state", state="closed") == 1
        waiting.cancel()


async def test_a_full_cloud_is_asked_when_it_said_and_not_taken_for_dead(scripts: Scripts) -> None:
    full = [ScriptedLink(CloudFullError("full", 100.0)) for _ in range(8)]
    async with scripts(*full) as script:
        await until(lambda: script.loop.connected)
        assert all(100 <= wait <= 104 for wait in script.waits)
        assert script.count("edge_breaker_state", state="closed") == 1


@pytest.mark.parametrize("reply_mode", list(ReplyMode))
async def test_a_cloud_that_owes_a_word_and_is_silent_is_left(
    scripts: Scripts, reply_mode: ReplyMode
) -> None:
    first, second = ScriptedLink(), ScriptedLink()
    settings = Settings(alpha=(0.5, 0.5, 0.5), reply_mode=reply_mode)
    patience = {"timestep_deadline_seconds": 0.2, "settings": settings}
    async with scripts(first, second, **patience) as script:
        await asyncio.sleep(0.5)  # It owes nothing yet, and may be silent.
        assert not first.closed
        future = script.loop.submit(picture(0))
        await sent(second, 1)
        assert first.closed
        assert script.count("edge_replays_total", reason="link_lost") == 1
        assert script.count("edge_errors_total", code="DEADLINE_EXCEEDED") == 1
        second.verdict(0, 0)
        assert (await future).timesteps_used == 1


async def test_a_cloud_that_speaks_within_the_limit_is_not_left(scripts: Scripts) -> None:
    link = ScriptedLink()
    async with scripts(link, timestep_deadline_seconds=1.0) as script:
        future = script.loop.submit(picture(0))
        for timestep in range(3):
            await sent(link, timestep + 1)
            await asyncio.sleep(0.4)  # Together more than the limit, each less.
            link.verdict(0, timestep, confidence=0.1)
        await sent(link, 4)
        link.verdict(0, 3)
        assert (await future).timesteps_used == 4
        assert script.count("edge_retries_total") == 0


@pytest.mark.parametrize(
    ("label", "confidence", "deviations"),
    [(1, 0.3, 0), (1, 0.30009, 0), (1, 0.3002, 1), (2, 0.3, 1)],
)
async def test_verdicts_on_a_sample_sent_again_that_differ_are_counted(
    scripts: Scripts, label: int, confidence: float, deviations: int
) -> None:
    first, second = ScriptedLink(), ScriptedLink()
    async with scripts(first, second) as script:
        future = script.loop.submit(picture(0))
        await sent(first, 1)
        first.verdict(0, 0, confidence=0.3)
        await sent(first, 2)
        first.say(LinkLostError("cut"))
        await sent(second, 1)
        second.verdict(0, 0, confidence=confidence, label=label)
        await sent(second, 2)
        second.verdict(0, 1)
        assert (await future).timesteps_used == 2
        assert script.count("edge_replay_deviations_total") == deviations


async def test_more_samples_in_flight_than_asked_for_are_refused(scripts: Scripts) -> None:
    async with scripts(ScriptedLink(samples_in_flight=2), ScriptedLink()) as script:
        await until(lambda: script.loop.connected)
        assert script.count("edge_retries_total", reason="connect") == 1


async def test_a_caller_that_goes_away_is_told_to_the_cloud(scripts: Scripts) -> None:
    link = ScriptedLink()
    async with scripts(link) as script:
        future = script.loop.submit(picture(0))
        await sent(link, 1)
        future.cancel()
        await until(lambda: link.cancels == [0])
        following = script.loop.submit(picture(1))
        await sent(link, 2)
        link.verdict(1, 0)
        assert (await following).timesteps_used == 1


async def test_draining_moves_what_was_not_begun_to_the_next_stream(scripts: Scripts) -> None:
    first, second = ScriptedLink(samples_in_flight=2), ScriptedLink(samples_in_flight=2)
    async with scripts(first, second, samples_in_flight=2) as script:
        futures = [script.loop.submit(picture(seed)) for seed in range(2)]
        await sent(first, 2)
        first.say(CloudMessage(draining=Draining(0)))
        await until(lambda: script.count("edge_replays_total", reason="draining") == 1)
        first.verdict(0, 0, label=1)
        await sent(second, 1)
        second.verdict(0, 0, label=2)
        assert [(await future).label for future in futures] == [1, 2]


async def test_verdicts_of_two_samples_reach_their_own_callers(scripts: Scripts) -> None:
    link = ScriptedLink(samples_in_flight=2)
    async with scripts(link, samples_in_flight=2) as script:
        futures = [script.loop.submit(picture(seed)) for seed in range(2)]
        await sent(link, 2)
        link.verdict(1, 0, label=2)
        link.verdict(0, 0, label=1)
        assert [(await future).label for future in futures] == [1, 2]
        assert script.count("edge_queue_depth") == 0


async def test_a_sources_results_keep_their_order_when_a_later_sample_is_answered_first(
    scripts: Scripts,
) -> None:
    link, results = ScriptedLink(samples_in_flight=2), Results()
    config = ArraySource(path="any")
    metrics = EdgeMetrics(CollectorRegistry(), model="tiny")
    items = iter([Item("first", picture(0)), Item("second", picture(1))])
    async with scripts(link, samples_in_flight=2) as script:
        task = SourceTask(config, script.loop, results, metrics, pass_over)
        reading = asyncio.create_task(task.run(on_a_thread(items, "array")))
        await sent(link, 2)
        link.verdict(1, 0, label=2)
        await until(lambda: script.loop.answered == 1)
        assert results.told == []
        link.verdict(0, 0, label=1)
        await reading
    assert [(line["input"], line["label"]) for line in results.told] == [
        ("first", 1),
        ("second", 2),
    ]
