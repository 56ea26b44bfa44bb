"""One open stream: carries out what its protocol machine says, with slots, timers and outbox."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from cloud_server.config import CloudConfig
from cloud_server.limits import Visit
from cloud_server.model_store import ServedPart
from cloud_server.outbox import Outbox
from cloud_server.scheduler import Computed, Judged
from cloud_server.session import (
    Action,
    Begin,
    CloudSession,
    End,
    Ending,
    Release,
    Send,
    SendDraining,
)
from shared.engine.base import Array
from shared.errors import NeucodexError, SampleCode
from shared.messages import Draining, Failure, Opened, Settings, TraceContext, Verdict
from shared.tracing import Trace, Tracing

logger = logging.getLogger(__name__)

MAX_ANNOUNCED = 8
"""Samples whose traces are remembered before they begin."""


class LiveSample:
    """A sample under way: its slot, its timer, and the scheduler's listener for it.

    Args:
        stream: where it came from.
        number: in the stream.
        settings: its own.
    """

    def __init__(self, stream: Stream, number: int, settings: Settings) -> None:
        self._stream = stream
        self._number = number
        self._begun_at = self._active_at = time.monotonic()
        self._scheduler = stream.part.scheduler
        self._ticket = self._scheduler.begin(self, settings.confidence)
        self._judged_at = 0.0
        self.trace: Trace | None = None
        """Set by :meth:`follow`."""

    def follow(self, trace: Trace) -> None:
        """Tell a trace of its stages from now on."""
        self.trace = trace
        self._ticket.observe = self._computed

    def _computed(self, queued_seconds: float, computed: Computed) -> None:
        """The engine call with its next timestep is over."""
        if self.trace is not None:
            began, timestep = computed.began_seconds, self._ticket.timestep
            ended = began + computed.engine_seconds
            self._judged_at = ended + computed.exit_rule_seconds
            self.trace.stage("queue", queued_seconds, began, timestep=timestep)
            batch = len(computed.outcomes)
            self.trace.stage(self._stream.part.name, began, ended, timestep=timestep, batch=batch)
            self.trace.stage("exit_rule", ended, self._judged_at, timestep=timestep)

    def feed(self, frames: Iterable[Array], arrived_seconds: float) -> None:
        """Queue its next timesteps."""
        self._active_at = time.monotonic()
        self._scheduler.feed(self._ticket, frames, arrived_seconds)

    def release(self, ending: Ending) -> None:
        """Give everything back."""
        self._scheduler.release(self._ticket)
        if self.trace is not None:
            self._ticket.observe = None
            self.trace.end(time.perf_counter(), ending=ending.value)

    def judged(self, judged: Judged) -> None:
        """The network's word on its next timestep."""
        self._active_at = time.monotonic()
        if self.trace is not None:
            now = time.perf_counter()
            self.trace.stage("verdict", self._judged_at, now, timestep=judged.timestep)
        self._stream.judged(self._number, judged)

    def failed(self, code: SampleCode, message: str) -> None:
        """It cannot go on."""
        self._stream.drive(lambda: self._stream.session.failed(self._number, code, message))

    @property
    def due_at(self) -> float:
        """The first moment, ``time.monotonic()``, at which the sample could be too late."""
        return min(self._deadline, self._active_at + self._stream.config.packet_idle_seconds)

    @property
    def _deadline(self) -> float:
        return self._begun_at + self._stream.config.sample_deadline_seconds

    def check_time(self) -> None:
        """End the sample if it is too late."""
        now, config = time.monotonic(), self._stream.config
        if not self._stream.session.waits_for_edge(self._number):
            self._active_at = now
        if now >= self._deadline:
            message = f"expected the sample to end within {config.sample_deadline_seconds} s"
            self.failed(SampleCode.DEADLINE, message)
        elif now >= self.due_at:
            message = f"expected the next packet within {config.packet_idle_seconds} s"
            self.failed(SampleCode.DEADLINE, message)


class Stream:
    """What both kinds of streams have in common.

    Args:
        part: what the samples run on.
        opened: what the edge was told.
        settings: the edge's first settings, resolved.
        config: the server's.
        visit: whose stream it is, and what they may take.
        want_logits: whether verdicts carry the mean logits.
        tracing: goes on with the edge's traces; None for not.

    Attributes:
        outbox: what waits to be written.
        broken: done, with the error, when one has ended the stream and all has been released.
        clock_due: when the edge is next told the time, ``time.perf_counter()``.

    Raises:
        ProtocolError: the settings exceed the limits.
    """

    def __init__(
        self,
        part: ServedPart,
        opened: Opened,
        settings: Settings,
        config: CloudConfig,
        visit: Visit,
        *,
        want_logits: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self.part = part
        self.config = config
        self.visit = visit
        self.session = CloudSession(part.timesteps, opened, settings)
        self.outbox = Outbox()
        self.outbox.put(opened)
        self.broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.clock_due = 0.0
        self._want_logits = want_logits
        self._live: dict[int, LiveSample] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tracing = tracing
        self._announced: dict[int, str] = {}
        """Trace contexts of samples that have not begun."""

    def announce(self, traces: Iterable[TraceContext]) -> None:
        """Take in which traces the next few samples belong to."""
        if self._tracing is None:
            return
        told = self._announced | {each.sample: each.traceparent for each in traces}
        begins = self.session.next_number
        following = range(begins, begins + MAX_ANNOUNCED)
        self._announced = {number: told[number] for number in following if number in told}

    def _follow(self, live: LiveSample, traceparent: str) -> None:
        if self._tracing is not None:
            trace = self._tracing.join("serve", time.perf_counter(), traceparent)
            if trace is not None:
                live.follow(trace)

    def drive(self, event: Callable[[], Sequence[Action]]) -> None:
        """Carry out what follows from an event that no caller waits for."""
        self.guard(lambda: self.perform(event()))

    def guard(self, event: Callable[[], None]) -> None:
        """Let something happen; an error ends this stream alone."""
        try:
            event()
        except Exception as error:
            self.break_off(error)

    def perform(self, actions: Sequence[Action]) -> None:
        """Carry out the session's actions in their order."""
        for action in actions:
            self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        """Carry out one action; the kinds of streams add theirs."""
        match action:
            case Send():
                self._send(action.message)
                if action.hold is not None:
                    self.visit.held_back(action.hold)
            case Begin(number, settings):
                live = self._live[number] = LiveSample(self, number, settings)
                if number in self._announced:
                    self._follow(live, self._announced.pop(number))
                self.visit.begun()
                self._watch_time()
            case Release(number, ending):
                self._live.pop(number).release(ending)
                self.part.metrics.sample_released(ending)
            case SendDraining(last_sample):
                self.outbox.put(Draining(last_sample))
            case End():
                self.outbox.end()

    def _watch_time(self) -> None:
        """Look at the samples under way when the first of them could be too late.

        One timer for all that come and go until then: samples are many, late ones few, and no
        sample that begins later can be too late earlier.
        """
        if self._timer is None and self._live:
            due_seconds = min(sample.due_at for sample in self._live.values()) - time.monotonic()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(due_seconds, self._check_times)

    def _check_times(self) -> None:
        self._timer = None
        for sample in tuple(self._live.values()):
            sample.check_time()
        self._watch_time()

    def judged(self, number: int, judged: Judged) -> None:
        """Carry out what follows from the network's word on a sample's next timestep."""
        try:
            self.perform(self.session.judged(self._verdict(number, judged)))
        except Exception as error:
            self.break_off(error)

    def _verdict(self, number: int, judged: Judged) -> Verdict:
        """Put the network's word in the words of the protocol."""
        logits: tuple[float, ...] = ()
        if self._want_logits:
            logits = tuple(logit / (judged.timestep + 1) for logit in judged.logit_sum)
        service_seconds = time.perf_counter() - judged.arrived_seconds
        return Verdict(number, judged.timestep, *judged.decision, service_seconds, logits)

    def drain(self) -> None:
        """Begin no more samples; end when those under way have ended."""
        self.drive(self.session.drain)

    def half_closed(self) -> None:
        """The edge sends nothing more and wants no more answers."""
        self.drive(self.session.half_closed)

    def close(self) -> None:
        """Release what is under way, the edge being gone; harmless when called again."""
        self.perform(self.session.disconnected())
        if self._timer is not None:
            self._timer.cancel()

    def break_off(self, error: Exception) -> None:
        """End the stream with an error; only the first one counts."""
        if self.broken.done():
            return
        if not isinstance(error, NeucodexError):
            logger.error("a stream failed", exc_info=error)
        self.broken.set_result(error)
        self.part.metrics.samples_broken_off(len(self._live))
        self.perform(self.session.disconnected(Ending.ERROR))

    def _send(self, message: Verdict | Failure) -> None:
        self.outbox.put(message)
        if isinstance(message, Failure):
            self.part.metrics.sample_failed(message.code)
        else:
            self.part.metrics.served(message.service_seconds)
