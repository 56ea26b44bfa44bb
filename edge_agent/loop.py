"""The daemon's loop: samples in, answers out, over one link that is kept open.

A thin driver of :class:`edge_agent.session.EdgeSession`: the session decides, the loop carries out
its actions, keeps time and tells the metrics. It is the same for all placements; what happens
before the link is the :class:`~edge_agent.feeds.Feed`'s business, what is behind it the
:class:`~edge_agent.link.CloudLink`'s.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from asyncio import FIRST_COMPLETED
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from time import perf_counter
from typing import Generic, TypeVar

from edge_agent.answers import Answer, ClosingError, Latency, QueueFullError
from edge_agent.breaker import Breaker, Pace
from edge_agent.energy_watch import EdgeWork
from edge_agent.feeds import Feed, Packet
from edge_agent.inputs import Source
from edge_agent.link import CloudFullError, CloudLink
from edge_agent.onlooker import NOBODY, Onlooker, View
from edge_agent.peer_clock import PeerClock
from edge_agent.policy import Choice
from edge_agent.session import (
    Action,
    Compute,
    EdgeSession,
    Fail,
    Reconnect,
    Replay,
    SendCancel,
    SendPacket,
    SendSettings,
    Wait,
)
from edge_agent.session import Answer as Answered
from edge_agent.traced import trace_head, trace_local, trace_round_trip
from edge_agent.tuner import Tuner
from edge_agent.waiting_room import WaitingRoom
from edge_agent.watchdog import watch
from shared.codec.packet import Checksum
from shared.errors import (
    InputError,
    LinkLostError,
    NeucodexError,
    ProtocolError,
    RefusedError,
    SampleCode,
    SampleError,
)
from shared.messages import EdgeMessage, Failure, Open, Opened, Settings, TraceContext, Verdict
from shared.metrics import (
    Baseline,
    BreakerState,
    ConnectionState,
    DropReason,
    EdgeMetrics,
    EdgeStage,
    ExitReason,
    FallbackReason,
    Placement,
    QueuePolicy,
    RetryReason,
)
from shared.model.bundle import Bundle
from shared.tracing import Trace, Tracing

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Feed)
REMOTE = (Placement.CO_INFERENCE, Placement.CLOUD_ONLY)
EXIT_REASONS = {SampleCode.DEADLINE: ExitReason.DEADLINE}
REPLAY_TOLERANCE = 1e-4
"""Confidences of one timestep, judged twice, that differ by less count as equal: rounding depends
on what else was in the batch."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a loop runs its samples."""

    placement: Placement
    settings: Settings
    """Resolved for the model's T."""
    tuner: Tuner | None = None
    """Chooses other settings; None to keep these."""
    clock: PeerClock | None = None
    """Compares the cloud's wall clock with ours, where the cloud tells it."""
    samples_in_flight: int = 1
    """S."""
    checksum: Checksum = Checksum.NONE
    deadline_seconds: float = 10.0
    """A sample's time from its acceptance; then it is finished here, or failed."""
    queue_limit: int = 64
    """Most samples that wait to be begun."""
    queue_policy: QueuePolicy = QueuePolicy.REFUSE
    """What becomes of one more."""
    timestep_deadline_seconds: float = math.inf
    """Longest silence of a cloud that owes a word; then its stream is left."""
    local_step_joules: float = 0.0
    """Modelled, of one timestep of what runs here after the feed: with edge-only behind the link,
    else as the fallback."""
    pace: Pace = Pace()
    """Of attempts to reach the cloud."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Sample(Generic[F]):
    """A sample that was accepted and has neither answer nor error."""

    ticket: int
    feed: F
    future: asyncio.Future[Answer]
    latency: Latency
    accepted: float
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    started: bool = False
    local: bool = False
    """Being finished here after the cloud failed it."""
    number: int | None = None
    """On the present stream."""
    sent: list[tuple[Packet, float]] = field(default_factory=list)
    """Packets under the present number, with the time they were handed to the link."""
    heard: float = 0.0
    """When the last word of the cloud came."""
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """The first on each timestep, under whatever number."""
    payload_bytes: int = 0
    trace: Trace | None = None
    """If it is traced."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    """What is being computed for it here, and what has been."""


class EdgeLoop(Generic[F]):
    """Runs samples through a link, any number of callers at once.

    Args:
        bundle: the model.
        options: how.
        feeds: makes the feed of a sample.
        connect: makes a fresh link for every stream.
        metrics: told of everything.
        fallback: finishes a sample here when the cloud cannot; None for never.
        sleep: waits between two streams.
        tracing: makes traces of samples; None for none.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: Options,
        feeds: Callable[[Source, Latency], F],
        connect: Callable[[], CloudLink],
        metrics: EdgeMetrics,
        fallback: Callable[[F], Awaitable[Verdict]] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        tracing: Tracing | None = None,
    ) -> None:
        self.bundle = bundle
        self.spec = bundle.spec
        """The network."""
        self._labels = bundle.manifest.labels
        self._digest = bytes.fromhex(bundle.digest)
        self._options = options
        self._feeds = feeds
        self._connect = connect
        self._metrics = metrics
        self._fallback = fallback
        self._tuner = options.tuner
        self._sleep = sleep
        self._tracing = tracing
        self._session = EdgeSession(self.spec.timesteps, options.settings)
        self._tickets = itertools.count()
        self._samples: dict[int, _Sample[F]] = {}
        self._numbers: dict[int, _Sample[F]] = {}
        self._link: CloudLink | None = None
        self._reading: asyncio.Task[None] | None = None
        self._heard = 0.0
        """When the cloud last said something on the present stream."""
        self._keeper: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._room = WaitingRoom(self._free_places)
        self._breaker = Breaker(options.pace)
        self._next_attempt = 0.0
        """When the cloud is asked for a stream again, while there is none."""
        self._trouble: NeucodexError | None = None
        """Why the cloud cannot be reached; None until an attempt failed and after one succeeded."""
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.onlooker: Onlooker = NOBODY
        """Shown what becomes of samples, while it looks."""
        self._accepted = 0
        self._answered: Counter[Placement] = Counter()
        self.tell()

    @property
    def connected(self) -> bool:
        """Whether a stream is open."""
        return self._session.connected

    @property
    def trouble(self) -> NeucodexError | None:
        """Why the last attempt to open a stream failed, if it did."""
        return self._trouble

    @property
    def answered(self) -> int:
        """Samples answered since the start."""
        return self._answered.total()

    @property
    def work(self) -> EdgeWork:
        """What has been done since the start."""
        return EdgeWork(self._accepted, len(self._samples), dict(self._answered))

    @property
    def placement(self) -> Placement:
        """The configured placement."""
        return self._options.placement

    @property
    def choice(self) -> Choice | None:
        """How samples are run now; None where no tuner chooses it."""
        return None if self._tuner is None else self._tuner.choice

    @property
    def tuner(self) -> Tuner | None:
        """What chooses it."""
        return self._tuner

    @property
    def queue_depth(self) -> int:
        """Samples that wait to be begun."""
        return sum(not sample.started for sample in self._samples.values())

    @property
    def in_hand(self) -> int:
        """Samples that have been begun and not ended."""
        return len(self._samples) - self.queue_depth

    def tell(self) -> None:
        """Let the metrics show this loop; for when they have shown another."""
        state = ConnectionState.READY if self.connected else ConnectionState.IDLE
        self._metrics.describe_model(self.bundle.manifest.version, self.bundle.digest, self.spec)
        self._metrics.threshold(self._options.settings.alpha)
        self._metrics.breaker(self._breaker.state)
        self._metrics.connection(state)
        self._metrics.queue_depth(self.queue_depth)

    def start(self) -> asyncio.Task[None]:
        """Begin to connect; the task returned ends only with :meth:`close`, or on a bug."""
        if self._tuner is not None:
            self._watching = asyncio.create_task(self._tuner.watch(self._retune))
        self._keeper = asyncio.create_task(self._keep_connected())
        return self._keeper

    async def close(self) -> None:
        """Take no more samples, drop those not begun, answer those begun, and leave."""
        self._closing = True
        for sample in list(self._samples.values()):
            if not sample.started:
                self._metrics.dropped(DropReason.SHUTDOWN)
                self._fail(sample, ClosingError("the edge daemon is shutting down"))
        await self.finish()

    async def finish(self) -> None:
        """Take no more samples, answer those in hand, and leave."""
        self._closing = True
        self._room.call()
        await self._empty.wait()
        for task in (self._watching, self._keeper):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    async def put(
        self, source: Source, *, deadline_seconds: float | None = None
    ) -> asyncio.Future[Answer]:
        """Accept a sample as :meth:`submit` does, with policy ``block`` once there is room.

        Raises:
            SampleError: there was no room before the caller's deadline.
            QueueFullError, ClosingError: see :meth:`submit`.
        """
        if self._options.queue_policy is QueuePolicy.BLOCK and self._room.full:
            self._metrics.queue_full(QueuePolicy.BLOCK)
            began = perf_counter()
            try:
                async with asyncio.timeout(deadline_seconds):
                    await self._room.enter()
            except TimeoutError:
                raise SampleError(
                    SampleCode.DEADLINE, f"expected room in the queue within {deadline_seconds} s"
                ) from None
            if deadline_seconds is not None:
                deadline_seconds -= perf_counter() - began
        return self.submit(source, deadline_seconds=deadline_seconds)

    def submit(
        self, source: Source, *, deadline_seconds: float | None = None
    ) -> asyncio.Future[Answer]:
        """Accept a sample; cancelling the future ends it.

        Args:
            source: its input, which may still be arriving.
            deadline_seconds: the caller's own; past it there is an error, whatever the fallback.

        Returns:
            Its answer, or one of InputError, EngineError, BundleError, RefusedError,
            LinkLostError, SampleError, ClosingError; QueueFullError where it made room for a
            newer one.

        Raises:
            QueueFullError: too many samples wait, and the policy is not ``drop_oldest``.
            ClosingError: :meth:`close` has been called.
        """
        if self._closing:
            self._metrics.dropped(DropReason.SHUTDOWN)
            raise ClosingError("the edge daemon is shutting down")
        if self._room.full:
            self._make_room()
        sample = self._accept(source, deadline_seconds)
        if self._trouble is not None and self._fallback is not None:
            self._fall_back(sample, _fallback_reason(self._trouble))
        elif self._tuner is not None and self._tuner.choice.local:
            self._fall_back(sample, FallbackReason.POLICY)
        elif self._is_hopeless(min(self._options.deadline_seconds, deadline_seconds or math.inf)):
            message = f"expected a cloud that answers, it is left alone for now: {self._trouble}"
            self._fail(sample, LinkLostError(message))
        else:
            self._carry_out(self._session.submit(sample.ticket))
        return sample.future

    def _free_places(self) -> float:
        """Return how many more samples may wait; a daemon that closes lets callers in to go."""
        return math.inf if self._closing else self._options.queue_limit - self.queue_depth

    def _make_room(self) -> None:
        """Do with a full queue as the policy says; QueueFullError if that makes no room."""
        policy, limit = self._options.queue_policy, self._options.queue_limit
        if policy is not QueuePolicy.BLOCK:
            self._metrics.queue_full(policy)
        self._metrics.dropped(DropReason.QUEUE_FULL)
        if policy is not QueuePolicy.DROP_OLDEST:
            raise QueueFullError(f"expected at most {limit} samples to wait, {limit} do")
        oldest = next(sample for sample in self._samples.values() if not sample.started)
        message = f"expected at most {limit} samples to wait, this one made room for a newer one"
        self._fail(oldest, QueueFullError(message))

    def _is_hopeless(self, deadline_seconds: float) -> bool:
        """Say whether the cloud is left alone for longer than a sample may take."""
        is_open = self._breaker.state is BreakerState.OPEN
        return is_open and self._next_attempt > perf_counter() + deadline_seconds

    def _accept(self, source: Source, deadline_seconds: float | None) -> _Sample[F]:
        events = asyncio.get_running_loop()
        latency = Latency()
        sample = _Sample(
            ticket=next(self._tickets),
            feed=self._feeds(source, latency),
            future=events.create_future(),
            latency=latency,
            accepted=perf_counter(),
        )
        if self._tracing is not None:
            sample.trace = self._tracing.begin("sample", sample.accepted)
        patience = events.call_later(self._options.deadline_seconds, self._on_deadline, sample)
        sample.timers.append(patience)
        if deadline_seconds is not None:
            expire = events.call_later(deadline_seconds, self._expire, sample)
            sample.timers.append(expire)
        sample.future.add_done_callback(lambda future: self._on_done(sample, future))
        self._samples[sample.ticket] = sample
        self._accepted += 1
        self._empty.clear()
        self._queue_changed()
        return sample

    def _queue_changed(self) -> None:
        self._metrics.queue_depth(self.queue_depth)
        self._room.call()

    # The stream.

    async def _keep_connected(self) -> None:
        """Open one stream after the other for as long as the daemon runs."""
        while True:
            link = self._connect()
            self._breaker.attempt()
            self._metrics.breaker(self._breaker.state)
            try:
                await self._run_stream(link)
            except NeucodexError as error:
                self._on_stream_ended(error)
            finally:
                self._link = None
                await link.close()
            await self._rest(self._breaker.wait_seconds())

    async def _rest(self, seconds: float) -> None:
        """Leave the cloud alone."""
        self._metrics.breaker(self._breaker.state)
        self._next_attempt = perf_counter() + seconds
        await self._sleep(seconds)

    async def _run_stream(self, link: CloudLink) -> None:
        """Open a stream and read it until it ends or the session wants another."""
        if self._tuner is not None:
            self._session.configure(self._tuner.opening())
        opened = await link.open(self._open_request())
        self._check(opened)
        if self._tuner is not None:
            self._session.configure(self._tuner.opened(opened))
        log.info("stream open to %s", opened.model)
        self._link, self._trouble, self._heard = link, None, perf_counter()
        self._breaker.opened()
        self._metrics.breaker(self._breaker.state)
        reading = self._reading = asyncio.create_task(self._read(link))
        watching = asyncio.create_task(
            watch(self._owed_since, self._options.timestep_deadline_seconds)
        )
        try:
            self._carry_out(self._session.opened(opened))
            ended, _ = await asyncio.wait({reading, watching}, return_when=FIRST_COMPLETED)
        finally:
            reading.cancel()
            watching.cancel()
            # A task that was cancelled keeps where it was, and with it the connection.
            self._reading = None
        if watching in ended:
            self._metrics.error("receive", "DEADLINE_EXCEEDED")
        for error in [task.exception() for task in ended if not task.cancelled()]:
            if error is not None:
                raise error

    def _owed_since(self) -> float | None:
        """Return since when the cloud owes a word and has said nothing; None if it owes none."""
        owed = [self._sent_at(ticket, timestep) for ticket, timestep in self._session.awaited]
        return max(min(owed), self._heard) if owed else None

    def _sent_at(self, ticket: int, timestep: int) -> float:
        """Return when a sample's packet with this timestep was handed to the link."""
        sent = self._samples[ticket].sent
        return next(at for packet, at in reversed(sent) if packet.timestep <= timestep)

    def _open_request(self) -> Open:
        return Open(
            model_digest=self._digest,
            settings=self._session.open(),
            checksum=self._options.checksum,
            samples_in_flight=self._options.samples_in_flight,
        )

    def _check(self, opened: Opened) -> None:
        asked = self._options.samples_in_flight
        if not 1 <= opened.samples_in_flight <= asked:
            raise ProtocolError(
                f"expected 1 to {asked} samples in flight, got {opened.samples_in_flight}"
            )

    async def _read(self, link: CloudLink) -> None:
        async for message in link.messages():
            self._breaker.answered()
            self._heard = perf_counter()
            if message.wall_seconds is not None and message.verdicts:
                self._compare_clocks(message.wall_seconds, message.verdicts[-1])
            for verdict in message.verdicts:
                self._on_verdict(link, verdict)
            for failure in message.failures:
                self._on_failure(link, failure)
            if message.draining is not None and self._link is link:
                log.info("the cloud is draining")
                self._metrics.retry(RetryReason.DRAINING)
                self._carry_out(self._session.draining(message.draining))
        if self._link is link:
            raise LinkLostError("the cloud ended the stream")

    def _compare_clocks(self, cloud_seconds: float, verdict: Verdict) -> None:
        """Take in what the cloud's clock shows, if the verdict's packet is known."""
        sample, clock = self._numbers.get(verdict.sample), self._options.clock
        if sample is None or clock is None:
            return
        sent = [at for packet, at in sample.sent if packet.timestep <= verdict.timestep]
        if sent:
            clock.told(cloud_seconds, perf_counter() - sent[-1], verdict.service_seconds)

    def _on_verdict(self, link: CloudLink, verdict: Verdict) -> None:
        """Take in a verdict, unless the session has left this stream since it came."""
        if self._link is not link:
            return
        if verdict.label >= len(self._labels):
            raise ProtocolError(f"expected a label below {len(self._labels)}, got {verdict.label}")
        sample = self._numbers.get(verdict.sample)
        if sample is not None:
            self._time(sample, verdict)
            if _deviates(sample.verdicts.setdefault(verdict.timestep, verdict), verdict):
                self._metrics.replay_deviated()
        began = perf_counter()
        actions = self._session.verdict(verdict)
        self._metrics.stage(EdgeStage.EXIT_RULE, perf_counter() - began)
        if sample is not None and self.onlooker.looking:
            self._show(sample)
        self._carry_out(actions)

    def _on_failure(self, link: CloudLink, failure: Failure) -> None:
        if self._link is not link:
            return
        self._metrics.error("receive", failure.code.name)
        if failure.code is SampleCode.CHECK_FAILED:
            self._metrics.check_failed()
        self._carry_out(self._session.failure(failure))

    def _time(self, sample: _Sample[F], verdict: Verdict) -> None:
        """Split the round trip that a verdict ends."""
        if self.placement is Placement.EDGE_ONLY:
            sample.latency.tail_seconds += verdict.service_seconds
            if sample.trace is not None:
                trace_local(sample.trace, verdict, sample.latency)
            return
        sent = [
            (packet.timestep, at)
            for packet, at in sample.sent
            if packet.timestep <= verdict.timestep
        ]
        if not sent:
            return
        now, (_, sent_at) = perf_counter(), sent[-1]
        if sample.trace is not None:
            trace_round_trip(sample.trace, verdict, sent_at, now)
        self._metrics.roundtrip(now - sent_at, verdict.service_seconds)
        # Round trips may overlap: what was waited for already is not waited for again.
        waited = now - max(sent_at, sample.heard)
        service_seconds = min(verdict.service_seconds, waited)
        sample.latency.service_seconds += service_seconds
        sample.latency.transport_seconds += waited - service_seconds
        sample.heard = now
        if self._tuner is not None:
            self._tuner.observer.verdict(sent, verdict.timestep, verdict.service_seconds, now)

    def _retune(self) -> None:
        """Let the tuner change the settings; never while the session's actions are carried out."""
        if self._tuner is None:
            return
        settings = self._tuner.settle(perf_counter())
        if settings is not None:
            self._carry_out(self._session.configure(settings))

    def _on_stream_ended(self, error: NeucodexError) -> None:
        again = str(error) == str(self._trouble)
        log.log(logging.DEBUG if again else logging.WARNING, "stream to the cloud: %s", error)
        if self._session.connected:
            self._metrics.retry(RetryReason.LINK_LOST)
            self._carry_out(self._session.lost())
        else:
            self._metrics.retry(RetryReason.CONNECT)
            self._trouble = error
            if isinstance(error, CloudFullError):
                self._breaker.full(error.retry_after_seconds)
            else:
                self._breaker.failed()
        refused = isinstance(error, RefusedError) and not isinstance(error, CloudFullError)
        if refused:
            self._trouble = error
        if self._trouble is None:
            return
        for sample in [self._samples[ticket] for ticket in self._session.tickets]:
            if self._fallback is not None:
                self._fall_back(sample, _fallback_reason(error))
            elif refused:
                self._fail(sample, error)

    # What the session wants.

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Compute(ticket, timestep):
                    self._compute(self._samples[ticket], timestep)
                case SendPacket(ticket):
                    self._send_packet(self._samples[ticket], action)
                case SendSettings(settings):
                    self._send(EdgeMessage(settings=settings))
                case SendCancel(number):
                    self._send(EdgeMessage(cancels=(number,)))
                case Answered(ticket, verdict, wasted):
                    self._on_answer(self._samples[ticket], verdict, wasted)
                case Fail(ticket, code, message):
                    self._on_fail(self._samples[ticket], code, message)
                case Wait(ticket, seconds):
                    self._metrics.replay(RetryReason.NO_SLOT)
                    self._forget_number(self._samples[ticket])
                    asyncio.get_running_loop().call_later(seconds, self._retry, ticket)
                case Replay(ticket, reason):
                    log.info("a sample is sent again: %s", reason.value)
                    self._metrics.replay(RetryReason(reason.value))
                    self._forget_number(self._samples[ticket])
                case Reconnect():
                    self._link = None
                    if self._reading is not None:
                        self._reading.cancel()

    def _send(self, message: EdgeMessage) -> None:
        if self._link is not None:
            self._link.send(message)

    def _retry(self, ticket: int) -> None:
        self._carry_out(self._session.retry(ticket))

    def _compute(self, sample: _Sample[F], timestep: int) -> None:
        if not sample.started:
            self._start(sample)
        task = asyncio.create_task(self._run_feed(sample, timestep))
        # Not at the end of the task itself: one cancelled before it began would never tell.
        task.add_done_callback(lambda _: self._carry_out(self._session.computed(sample.ticket)))
        sample.tasks.append(task)

    def _start(self, sample: _Sample[F]) -> None:
        sample.started = True
        now = perf_counter()
        sample.latency.queue_seconds = now - sample.accepted
        if sample.trace is not None:
            sample.trace.stage("queue", sample.accepted, now)
        if self._tuner is not None:
            self._tuner.observer.began(now)
        self._metrics.stage(EdgeStage.QUEUE, sample.latency.queue_seconds)
        self._queue_changed()

    async def _run_feed(self, sample: _Sample[F], timestep: int) -> None:
        latency = sample.latency
        input_before, head_before = latency.input_seconds, latency.head_seconds
        try:
            await sample.feed.compute(timestep)
        except NeucodexError as error:
            self._fail(sample, error)
        else:
            head_seconds = latency.head_seconds - head_before
            if sample.trace is not None:
                input_seconds = latency.input_seconds - input_before
                trace_head(sample.trace, timestep, input_seconds, head_seconds)
            if self._tuner is not None:
                self._tuner.observer.head(head_seconds, perf_counter())

    def _send_packet(self, sample: _Sample[F], send: SendPacket) -> None:
        if send.timestep == 0:
            sample.number = send.number
            sample.sent.clear()
            self._numbers[send.number] = sample
        before = sample.latency.codec_seconds
        packets = sample.feed.packets(send, self._session.settings)
        now = perf_counter()
        code_seconds = sample.latency.codec_seconds - before
        traces: tuple[TraceContext, ...] = ()
        if sample.trace is not None:
            steps, first = send.steps, send.timestep
            sample.trace.stage(EdgeStage.CODE, now - code_seconds, now, timestep=first, steps=steps)
            if first == 0:
                traces = (TraceContext(send.number, sample.trace.traceparent),)
        if self._tuner is not None:
            code_bytes = sum(packet.payload_bytes for packet in packets)
            self._tuner.observer.packets(send.steps, code_bytes, code_seconds, now)
        for packet in packets:
            sample.sent.append((packet, now))
            if self.placement is Placement.CO_INFERENCE:
                sample.payload_bytes += packet.payload_bytes
                self._metrics.payload(packet.payload_bytes)
        self._send(EdgeMessage(packets=tuple(packet.data for packet in packets), traces=traces))
        if self.onlooker.looking:
            self._show(sample)

    def _on_answer(self, sample: _Sample[F], verdict: Verdict, wasted: int) -> None:
        if wasted and self.placement is Placement.CO_INFERENCE:
            late = [packet for packet, _ in sample.sent if packet.timestep > verdict.timestep]
            self._metrics.wasted(wasted, sum(packet.payload_bytes for packet in late))
        self._answer(sample, verdict, self.placement)

    def _on_fail(self, sample: _Sample[F], code: SampleCode, message: str) -> None:
        if code is SampleCode.BAD_PACKET and self.placement is Placement.CLOUD_ONLY:
            # The packet was the caller's input.
            self._fail(sample, InputError(message))
        elif code is SampleCode.BAD_PACKET or self._fallback is None:
            self._fail(sample, SampleError(code, message))
        else:
            deadline = code is SampleCode.DEADLINE
            self._fall_back(sample, FallbackReason.DEADLINE if deadline else FallbackReason.ERROR)

    # The end of a sample.

    def _answer(self, sample: _Sample[F], verdict: Verdict, placement: Placement) -> None:
        self._end(sample)
        used = verdict.timestep + 1
        sample.latency.total_seconds = perf_counter() - sample.accepted
        self._count_energy(sample, placement, used)
        last = used == self.spec.timesteps
        self._metrics.answered(
            placement,
            ExitReason.MAX_TIMESTEPS if last else ExitReason.CONFIDENT,
            sample.latency.total_seconds,
            verdict.confidence,
            used,
            self.spec.timesteps - used,
        )
        milliseconds = 1e3 * sample.latency.total_seconds
        log.debug("a sample answered: %s, T = %d, %.1f ms", placement.value, used, milliseconds)
        if sample.trace is not None:
            sample.trace.end(
                sample.accepted + sample.latency.total_seconds,
                placement=placement.value,
                timesteps_used=used,
                confidence=verdict.confidence,
            )
        if placement is Placement.CO_INFERENCE:
            self._count_baselines()
        if self._tuner is not None:
            self._tuner.observer.answered(used, perf_counter())
            # Not before what else this event brings: the next sample's head runs meanwhile.
            asyncio.get_running_loop().call_soon(self._retune)
        self._answered[placement] += 1
        answer = Answer(
            label=verdict.label,
            name=self._labels[verdict.label],
            confidence=verdict.confidence,
            timesteps_used=used,
            placement=placement.value,
            latency=sample.latency,
            payload_bytes=sample.payload_bytes,
        )
        if self.onlooker.looking:
            self._show(sample, answer)
        if not sample.future.done():
            sample.future.set_result(answer)

    def _show(self, sample: _Sample[F], answer: Answer | None = None) -> None:
        """Show how far a sample has come."""
        view = View(
            bundle=self.bundle,
            sample=sample.ticket,
            alpha=self._options.settings.alpha,
            shown=sample.feed.shown(),
            packets=tuple((packet.timestep, packet.payload_bytes) for packet, _ in sample.sent),
            verdicts=tuple(sample.verdicts.values()),
            answer=answer,
        )
        self.onlooker.see(view)

    def _count_energy(self, sample: _Sample[F], placement: Placement, used: int) -> None:
        """Count what an answered sample's network parts on this device cost in the energy model."""
        joules = sample.feed.joules
        if placement in (Placement.EDGE_ONLY, Placement.FALLBACK):
            joules += used * self._options.local_step_joules
        if joules:
            self._metrics.modelled_energy(placement, joules)

    def _count_baselines(self) -> None:
        """Count what this sample would have cost: features over full T, and the input itself."""
        spec = self.spec
        features = prod(spec.feature_shape)
        frames = 1 if spec.input_kind == "static" else spec.timesteps
        for baseline, baseline_bytes in (
            (Baseline.FLOAT32_FEATURES, 4 * features * spec.timesteps),
            (Baseline.PACKED_FEATURES, (features + 7) // 8 * spec.timesteps),
            (Baseline.RAW_INPUT, prod(spec.input_shape) * frames),
        ):
            self._metrics.baseline(baseline, baseline_bytes)

    def _fail(
        self, sample: _Sample[F], error: NeucodexError, reason: ExitReason = ExitReason.ERROR
    ) -> None:
        """End a sample with an error, unless it has ended."""
        if sample.ticket not in self._samples:
            return
        if isinstance(error, SampleError):
            reason = EXIT_REASONS.get(error.code, reason)
        if isinstance(error, InputError):
            self._metrics.dropped(DropReason.INVALID)
        placement = Placement.FALLBACK if sample.local else self.placement
        self._end(sample)
        now = perf_counter()
        self._metrics.failed(placement, reason, now - sample.accepted)
        if sample.trace is not None:
            sample.trace.end(now, placement=placement.value, error=str(error))
        if not sample.future.done():
            sample.future.set_exception(error)
        self._carry_out(self._session.abandon(sample.ticket))

    def _forget_number(self, sample: _Sample[F]) -> None:
        if sample.number is not None:
            self._numbers.pop(sample.number, None)
            sample.number = None

    def _end(self, sample: _Sample[F]) -> None:
        del self._samples[sample.ticket]
        for timer in sample.timers:
            timer.cancel()
        for task in sample.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._forget_number(sample)
        self._queue_changed()
        if not self._samples:
            self._empty.set()

    def _on_done(self, sample: _Sample[F], future: asyncio.Future[Answer]) -> None:
        if future.cancelled():
            self._fail(sample, ClosingError("the caller went away"), ExitReason.CANCELLED)

    def _on_deadline(self, sample: _Sample[F]) -> None:
        if self._fallback is None or not sample.feed.complete:
            self._fail(sample, self._deadline_error(sample, self._options.deadline_seconds))
        elif not sample.local:
            self._fall_back(sample, FallbackReason.DEADLINE)

    def _expire(self, sample: _Sample[F]) -> None:
        seconds = perf_counter() - sample.accepted
        self._fail(sample, self._deadline_error(sample, seconds))

    def _deadline_error(self, sample: _Sample[F], seconds: float) -> NeucodexError:
        if not sample.feed.complete:
            message = f"expected the whole input within {seconds:.3g} s, timesteps are missing"
            return SampleError(SampleCode.DEADLINE, message)
        if self.connected or self.placement not in REMOTE:
            return SampleError(SampleCode.DEADLINE, f"expected an answer within {seconds:.3g} s")
        why = self._trouble or "the link was lost"
        return LinkLostError(f"expected an answer within {seconds:.3g} s, but {why}")

    def _fall_back(self, sample: _Sample[F], reason: FallbackReason) -> None:
        """Go on with a sample on this device."""
        as_planned = reason is FallbackReason.POLICY
        level = logging.DEBUG if as_planned else logging.INFO
        log.log(level, "a sample is finished on this device: %s", reason.value)
        sample.local = True
        self._metrics.fallback(reason)
        if not sample.started:
            self._start(sample)
        sample.tasks.append(asyncio.create_task(self._finish_locally(sample, sample.tasks[-1:])))
        self._carry_out(self._session.abandon(sample.ticket))

    async def _finish_locally(
        self, sample: _Sample[F], computing: list[asyncio.Task[None]]
    ) -> None:
        if computing:
            await asyncio.wait(computing)
        if self._fallback is None or sample.ticket not in self._samples:
            return
        began = perf_counter()
        try:
            verdict = await self._fallback(sample.feed)
        except NeucodexError as error:
            self._fail(sample, error)
        else:
            sample.latency.tail_seconds += verdict.service_seconds
            if sample.trace is not None:
                tail_seconds = verdict.service_seconds
                sample.trace.stage("fallback", began, perf_counter(), tail_seconds=tail_seconds)
            if self._tuner is not None:
                step_seconds = verdict.service_seconds / (verdict.timestep + 1)
                self._tuner.observer.tail(step_seconds, perf_counter())
            self._answer(sample, verdict, Placement.FALLBACK)


def _deviates(first: Verdict, again: Verdict) -> bool:
    """Say whether two verdicts on one timestep differ by more than rounding."""
    apart = abs(first.confidence - again.confidence)
    return first.label != again.label or apart >= REPLAY_TOLERANCE


def _fallback_reason(error: NeucodexError) -> FallbackReason:
    if isinstance(error, CloudFullError):
        return FallbackReason.OVERLOAD
    if isinstance(error, RefusedError):
        return FallbackReason.VERSION_MISMATCH
    return FallbackReason.UNAVAILABLE if isinstance(error, LinkLostError) else FallbackReason.ERROR
