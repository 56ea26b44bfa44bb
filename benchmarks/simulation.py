"""A discrete-event simulation of edge, link and cloud.

:class:`edge_agent.session.EdgeSession` and :class:`cloud_server.session.CloudSession` decide what
happens, as they do in the daemons; head, link and tail take the times they are told, on a clock
that jumps. The closed form of :mod:`edge_agent.policy` is checked against it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cloud_server import session as cloud
from edge_agent import session as edge
from edge_agent.policy import Choice, Conditions, link_seconds
from shared.codec.packet import Header, Kind
from shared.messages import Failure, Opened, Settings, Verdict

ALPHA = 0.5


@dataclass(slots=True)
class Trace:
    """What became of one sample."""

    exits_at: int
    begun_seconds: float
    answered_seconds: float = 0.0
    computed: int = 0
    """Head steps begun for it."""
    sent: int = 0
    """Timesteps sent."""
    verdicts: int = 0
    wasted: int = 0
    """Timesteps sent after the exit, by the edge's count."""
    wasted_in_cloud: int = 0
    """The same by the cloud's."""

    @property
    def latency_seconds(self) -> float:
        """From its submission to its answer."""
        return self.answered_seconds - self.begun_seconds


@dataclass(slots=True)
class _Tail:
    """What the cloud computes: by sample, the timesteps that wait; and whether it is busy."""

    waiting: dict[int, deque[int]] = field(default_factory=dict)
    busy: bool = False


class Simulation:
    """One edge, one cloud, one sample after the other.

    The whole round trip lies on the way up: only its sum shows. The cloud judges one timestep of
    every sample that waits at a time.

    Args:
        choice: how samples are run.
        conditions: how long everything takes.
    """

    def __init__(self, choice: Choice, conditions: Conditions) -> None:
        timesteps = len(conditions.exits)
        settings = Settings(
            alpha=(ALPHA,) * (timesteps - 1),
            reply_mode=choice.reply_mode,
            window=choice.window,
            steps_per_packet=choice.steps_per_packet,
        )
        opened = Opened(
            max_window=max(timesteps, choice.window),
            max_steps_per_packet=timesteps,
            samples_in_flight=1,
            codecs=("raw",),
            packet_idle_seconds=1.0,
            model="simulated",
        )
        self._conditions = conditions
        one_packet = link_seconds(conditions, 1)
        self._delay_seconds = max(0.0, conditions.transport_seconds - one_packet)
        self._now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._edge = edge.EdgeSession(timesteps, settings)
        self._cloud = cloud.CloudSession(timesteps, opened, self._edge.open())
        self._edge.opened(opened)
        self._tail = _Tail()
        self._head_free = self._link_free = 0.0
        self._computing: int | None = None
        self.samples: list[Trace] = []

    def run(self, exits_at: Iterable[int]) -> list[Trace]:
        """Run samples that exit on these timesteps, each submitted when the one before is answered.

        Everything that was sent arrives before this returns.
        """
        for timestep in exits_at:
            trace = Trace(timestep, self._now)
            self.samples.append(trace)
            self._edge_acts(self._edge.submit(len(self.samples) - 1))
            while not trace.answered_seconds:
                self._next_event()
        while self._events:
            self._next_event()
        return self.samples

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (seconds, next(self._order), event))

    def _next_event(self) -> None:
        self._now, _, event = heapq.heappop(self._events)
        event()

    def _edge_acts(self, actions: Iterable[edge.Action]) -> None:
        for action in actions:
            match action:
                case edge.Compute(ticket, _):
                    self._compute(ticket)
                case edge.SendPacket():
                    self._send(action)
                case edge.Answer(ticket, _, wasted):
                    self._answer(ticket, wasted)

    def _compute(self, ticket: int) -> None:
        """Begin a head step, as soon as the one under way is over."""
        self._computing = ticket
        self._at(max(self._now, self._head_free), lambda: self._begin_step(ticket))

    def _begin_step(self, ticket: int) -> None:
        if self._computing != ticket:
            return
        self.samples[ticket].computed += 1
        self._head_free = self._now + self._conditions.head_seconds
        self._at(self._head_free, lambda: self._computed(ticket))

    def _computed(self, ticket: int) -> None:
        if self._computing == ticket:
            self._computing = None
            self._edge_acts(self._edge.computed(ticket))

    def _answer(self, ticket: int, wasted: int) -> None:
        trace = self.samples[ticket]
        trace.answered_seconds, trace.wasted = self._now, wasted
        if self._computing == ticket:
            # As the loop does: the step goes on, but nobody waits for it any more.
            self._computing = None
            self._at(self._now, lambda: self._edge_acts(self._edge.computed(ticket)))

    def _send(self, packet: edge.SendPacket) -> None:
        self.samples[packet.ticket].sent += packet.steps
        self._link_free = max(self._now, self._link_free) + link_seconds(
            self._conditions, packet.steps
        )
        kind = Kind.RAW if packet.steps == 1 else Kind.STEPS
        header = Header(
            packet.timestep % 8, packet.timestep == 0, packet.number % 4, kind, packet.steps
        )
        arrival = self._link_free + self._delay_seconds
        self._at(arrival, lambda: self._arrive(header, packet))

    def _arrive(self, header: Header, packet: edge.SendPacket) -> None:
        actions = self._cloud.packet(header.to_bytes(), slot_free=True)
        for action in actions:
            if isinstance(action, cloud.Step):
                steps = range(packet.timestep, packet.timestep + packet.steps)
                self._tail.waiting.setdefault(packet.number, deque()).extend(steps)
            elif isinstance(action, cloud.Discard):
                self.samples[packet.ticket].wasted_in_cloud += action.steps
        self._cloud_acts(actions)
        self._start_tail()

    def _start_tail(self) -> None:
        batch = [(number, steps[0]) for number, steps in self._tail.waiting.items() if steps]
        if self._tail.busy or not batch:
            return
        self._tail.busy = True
        done = self._now + self._conditions.service_seconds
        self._at(done, lambda: self._judge(batch))

    def _judge(self, batch: list[tuple[int, int]]) -> None:
        self._tail.busy = False
        for number, timestep in batch:
            if number in self._tail.waiting:
                self._tail.waiting[number].popleft()
                # Tickets and numbers are the same here: nothing is ever sent twice.
                confident = timestep >= self.samples[number].exits_at
                verdict = Verdict(number, timestep, 0, float(confident))
                self._cloud_acts(self._cloud.judged(verdict))
        self._start_tail()

    def _cloud_acts(self, actions: Iterable[cloud.Action]) -> None:
        for action in actions:
            match action:
                case cloud.Release(number):
                    left = self._tail.waiting.pop(number, ())
                    self.samples[number].wasted_in_cloud += len(left)
                case cloud.Send(Verdict() as verdict):
                    self.samples[verdict.sample].verdicts += 1
                    self._edge_acts(self._edge.verdict(verdict))
                case cloud.Send(Failure() as failure):
                    raise AssertionError(f"expected no failure, got {failure}")
