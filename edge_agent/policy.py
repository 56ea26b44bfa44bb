"""Which way of running a sample costs least, reckoned in closed form from what was measured.

A sample passes three machines in a row, head, link and tail; its jobs are its packets of k
timesteps. One packet takes ``h = k head``, ``g`` (on the link, where its rate is known) and
``s = k service``; with the rest of the round trip, r, its verdict is there after
``C = h + g + s + r``, and with nothing else in the way one verdict follows another by the slowest
machine's time, ``b = max(h, g, s)``. A window of M packets lets packet j begin only after the
verdict on packet j - M::

    verdict(j) = C + j b + floor(j / M) max(0, C - M b)
    begin(j)   = max(j h, verdict(j - M))        (j h for j < M)

In reply mode ``exit`` M has no end. A sample that exits on timestep t of packet j is answered at
``verdict(j)``, less the time of the timesteps behind t in that packet. What the head had begun by
then, it computed; what it had finished, it sent: both in vain after t. The next sample waits until
the head has finished the step it is at, and the link what was sent.

Pure: no clock, no threads, no gRPC, no metrics. The guide is ``docs/latency.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.messages import ReplyMode

NEAR = 0.01
"""Ways whose cost lies so close above the least count as equal; what else they cost decides."""
STAY = 0.03
"""The present way is kept while its cost lies no further above the least,"""
SAVE = 0.1
"""and unless another saves this share of what else it costs."""
SPARE = 0.1
"""A way that is not in use must keep the deadline with so much to spare."""
LATE_SHARE = 0.95
"""The deadline is kept if this share of the samples keep it."""

DEPTHS = (1, 2, 3, 4, 8)
"""Windows that are tried, in packets, besides the one that holds all T timesteps."""

HEADER_BYTES = 1
"""Of a packet; one of several timesteps has another."""
FIELD_BYTES = 2
"""Tag and length of a packet in its protobuf message."""
VERDICT_MESSAGE_BYTES = 16
"""One verdict as a protobuf message; measured."""
ACK_BYTES = 52
"""An IP and TCP header with timestamps: what a pure acknowledgement weighs."""
WIRE_MESSAGE_BYTES = ACK_BYTES + 14 + 26
"""A message's share of the wire besides itself: IP and TCP header, HTTP/2 and gRPC framing, and the
two window updates that gRPC answers it with. Measured on grpcio 1.85 with TCP_INFO."""
DELAYED_ACK_SECONDS = 0.04
"""A receiver with nothing to send acknowledges after this time (Linux)."""


class Objective(StrEnum):
    """What is to be as low as it can."""

    LATENCY = "latency"
    BYTES = "bytes"
    ENERGY = "energy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the user wants."""

    objective: Objective = Objective.LATENCY
    deadline_seconds: float | None = None
    """If possible, an answer within this time all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to run a sample."""

    reply_mode: ReplyMode = ReplyMode.STEP
    window: int = 1
    """W; means nothing in reply mode ``exit``."""
    steps_per_packet: int = 1
    """k."""
    local: bool = False
    """Head and tail on this device; the rest means nothing then."""

    def __str__(self) -> str:
        if self.local:
            return "all on this device"
        packets = "" if self.steps_per_packet == 1 else f", {self.steps_per_packet} steps a packet"
        if self.reply_mode is ReplyMode.EXIT:
            return f"answered at the exit{packets}"
        return ("lock-step" if self.window == 1 else f"window {self.window}") + packets

    @property
    def depth(self) -> float:
        """M: packets of one sample that may be under way at once."""
        if self.reply_mode is ReplyMode.EXIT:
            return math.inf
        return max(1, self.window // self.steps_per_packet)


LOCK_STEP = Choice()
LOCAL = Choice(local=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What the user has set; None where the policy chooses."""

    reply_mode: ReplyMode | None = None
    window: int | None = None
    steps_per_packet: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the cloud agrees to, and this device."""

    max_window: int
    max_steps_per_packet: int
    local: bool = False
    """Whether samples may be run wholly on this device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What device, link, cloud and samples are like; seconds and bytes are means."""

    exits: tuple[float, ...]
    """Share of the samples that exit at t = 0..T-1; sums to 1."""
    head_seconds: float
    """Head, encoder and codec, one timestep."""
    service_seconds: float
    """The cloud's work on one timestep, by its own clock."""
    transport_seconds: float
    """Round trip of a packet of one timestep and its verdict, less the cloud's work."""
    payload_bytes: float
    """Code bytes of one timestep."""
    follows: float = 1.0
    """Share of the samples that begin on the heels of another, and so may have to wait for it."""
    check_bytes: int = 2
    """Bytes that guard a packet."""
    link_bytes_per_second: float | None = None
    """Rate of the way up; None where it is not known: then it takes no time of its own."""
    head_joules: float = 0.0
    """Modelled, one timestep."""
    tail_joules: float = 0.0
    tail_seconds: float | None = None
    """One timestep of the tail on this device; None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one sample costs on average, one sample after the other."""

    choice: Choice
    latency_seconds: float
    """From the moment at which nothing but the vain work for the sample before could keep it from
    beginning, to its answer."""
    late_seconds: float
    """The same for a sample of the latest exits but one in twenty."""
    payload_bytes: float
    message_bytes: float
    """Both directions."""
    wire_bytes: float
    """Both directions; an estimate."""
    energy_joules: float
    """Modelled, of this device."""
    timesteps_computed: float
    """By the head, those in vain included."""
    timesteps_sent: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sample has come at some moment."""

    computed: int
    """Head steps begun."""
    packets: int
    """Packets sent."""
    head_free_seconds: float
    """When the head is done with what it has begun."""
    link_free_seconds: float
    """When the link is done with what was sent."""


class Timeline:
    """When what happens to one sample, in seconds from the begin of its first head step.

    A last packet of fewer than k timesteps takes as long as a full one.

    Args:
        choice: a way over the link.
        conditions: what holds.
    """

    def __init__(self, choice: Choice, conditions: Conditions) -> None:
        steps = choice.steps_per_packet
        self._timesteps = len(conditions.exits)
        self._choice = choice
        self._head_step = conditions.head_seconds
        self._service_step = conditions.service_seconds
        self._head = steps * conditions.head_seconds
        self._link = link_seconds(conditions, steps)
        self._service = steps * conditions.service_seconds
        rest_seconds = max(0.0, conditions.transport_seconds - link_seconds(conditions, 1))
        self._lone = self._head + self._link + self._service + rest_seconds
        self._slowest = max(self._head, self._link, self._service)

    def verdict(self, packet: int) -> float:
        """Return when the verdict on a packet's last timestep is there."""
        depth = self._choice.depth
        waits = packet // depth
        stall = max(0.0, self._lone - depth * self._slowest) if waits else 0.0
        return self._lone + packet * self._slowest + waits * stall

    def begin(self, packet: int) -> float:
        """Return when the head begins a packet's first timestep."""
        depth = self._choice.depth
        unhindered = packet * self._head
        return unhindered if packet < depth else max(unhindered, self.verdict(packet - int(depth)))

    def answer(self, timestep: int) -> float:
        """Return when the answer of a sample that exits on ``timestep`` is there."""
        steps = self._choice.steps_per_packet
        packet, place = divmod(timestep, steps)
        return self.verdict(packet) - (steps - 1 - place) * self._service_step

    def progress(self, seconds: float) -> Progress:
        """Return what was begun before that moment, no verdict having ended the sample."""
        steps = self._choice.steps_per_packet
        computed = packets = 0
        head_free = link_free = 0.0
        for first in range(0, self._timesteps, steps):
            begun = self.begin(first // steps)
            if begun >= seconds:
                break
            size = min(steps, self._timesteps - first)
            here = min(size, math.ceil((seconds - begun) / self._head_step))
            computed += here
            head_free = begun + here * self._head_step
            if begun + self._head < seconds:
                packets += 1
                link_free = max(link_free, begun + self._head) + self._link
        return Progress(computed, packets, head_free, link_free)

    def hold(self, answered: float, progress: Progress) -> float:
        """Return how long after its predecessor's answer a sample waits for head or link.

        Its first packet reaches the link one packet's head time after its begin.
        """
        head_seconds = progress.head_free_seconds - answered
        return max(0.0, head_seconds, progress.link_free_seconds - answered - self._head)


def link_seconds(conditions: Conditions, steps: int) -> float:
    """Return the time a packet of so many timesteps occupies the way up."""
    rate = conditions.link_bytes_per_second
    return 0.0 if rate is None else (_packet_bytes(conditions, steps) + WIRE_MESSAGE_BYTES) / rate


def _packet_bytes(conditions: Conditions, steps: int) -> float:
    """Return the bytes of a packet as a protobuf message."""
    header_bytes = HEADER_BYTES + (steps > 1)
    return steps * conditions.payload_bytes + header_bytes + conditions.check_bytes + FIELD_BYTES


def expect(choice: Choice, conditions: Conditions) -> Expected:
    """Return what a sample costs, run this way under these conditions.

    Raises:
        ValueError: a local choice, and the tail's time on this device is not known.
    """
    return _expect_here(conditions) if choice.local else _expect_over_link(choice, conditions)


def _expect_here(conditions: Conditions) -> Expected:
    if conditions.tail_seconds is None:
        raise ValueError("expected the tail's time on this device, it is not known")
    step_seconds = conditions.head_seconds + conditions.tail_seconds
    used = sum(share * (t + 1) for t, share in enumerate(conditions.exits))
    return Expected(
        choice=LOCAL,
        latency_seconds=used * step_seconds,
        late_seconds=(late_timestep(conditions.exits) + 1) * step_seconds,
        payload_bytes=0.0,
        message_bytes=0.0,
        wire_bytes=0.0,
        energy_joules=used * (conditions.head_joules + conditions.tail_joules),
        timesteps_computed=used,
        timesteps_sent=0.0,
    )


def _expect_over_link(choice: Choice, conditions: Conditions) -> Expected:
    steps, exits = choice.steps_per_packet, conditions.exits
    timeline = Timeline(choice, conditions)
    answers = [timeline.answer(timestep) for timestep in range(len(exits))]
    progress = [timeline.progress(seconds) for seconds in answers]

    def mean(values: Iterable[float]) -> float:
        return sum(share * value for share, value in zip(exits, values, strict=True))

    hold = conditions.follows * mean(map(timeline.hold, answers, progress))
    computed = mean(each.computed for each in progress)
    packets = mean(each.packets for each in progress)
    sent = mean(min(each.packets * steps, len(exits)) for each in progress)
    stepwise = choice.reply_mode is ReplyMode.STEP
    verdicts = mean(1 + stepwise * (timestep // steps) for timestep in range(len(exits)))
    flights = mean(max(1, math.ceil(each.packets / choice.depth)) for each in progress)
    silent = conditions.transport_seconds + conditions.service_seconds >= DELAYED_ACK_SECONDS
    message_bytes = packets * _packet_bytes(conditions, steps) + verdicts * VERDICT_MESSAGE_BYTES
    return Expected(
        choice=choice,
        latency_seconds=mean(answers) + hold,
        late_seconds=answers[late_timestep(exits)] + hold,
        payload_bytes=sent * conditions.payload_bytes,
        message_bytes=message_bytes,
        wire_bytes=message_bytes
        + (packets + verdicts) * WIRE_MESSAGE_BYTES
        + silent * flights * ACK_BYTES,
        energy_joules=computed * conditions.head_joules,
        timesteps_computed=computed,
        timesteps_sent=sent,
    )


def late_timestep(exits: Sequence[float]) -> int:
    """Return the first timestep by which :data:`LATE_SHARE` of the samples have exited."""
    total = 0.0
    for timestep, share in enumerate(exits):
        total += share
        if total >= LATE_SHARE:
            return timestep
    return len(exits) - 1


def choices(timesteps: int, limits: Limits, fixed: Fixed) -> list[Choice]:
    """Return the ways that are open; the first of them is the plainest.

    Packets of k timesteps are tried where k divides T; a window holds whole packets. A window that
    the user has set asks for reply mode ``step``, unless that is set too.
    """
    modes = list(ReplyMode) if fixed.reply_mode is None else [fixed.reply_mode]
    if fixed.reply_mode is None and fixed.window is not None:
        modes = [ReplyMode.STEP]
    found = [
        Choice(reply_mode=mode, window=window, steps_per_packet=steps)
        for mode in modes
        for steps in _packet_sizes(timesteps, limits, fixed)
        for window in _windows(mode, steps, timesteps, limits, fixed)
    ]
    return [*found, LOCAL] if limits.local else found


def _packet_sizes(timesteps: int, limits: Limits, fixed: Fixed) -> list[int]:
    if fixed.steps_per_packet is not None:
        return [fixed.steps_per_packet]
    most = min(timesteps, limits.max_steps_per_packet)
    return [steps for steps in range(1, most + 1) if timesteps % steps == 0]


def _windows(
    mode: ReplyMode, steps: int, timesteps: int, limits: Limits, fixed: Fixed
) -> list[int]:
    if mode is ReplyMode.EXIT:
        return [fixed.window or 1]
    if fixed.window is not None:
        return [fixed.window] if fixed.window % steps == 0 or fixed.steps_per_packet else []
    all_packets = math.ceil(timesteps / steps)
    depths = sorted({depth for depth in (*DEPTHS, all_packets) if depth <= all_packets})
    return [depth * steps for depth in depths if depth * steps <= limits.max_window]


def choose(options: Sequence[Expected], goal: Goal, present: Choice | None = None) -> Expected:
    """Return the best way.

    The cost is the objective's figure. Among ways whose costs are nearly the least, the one with
    the smallest product of the other two figures wins. The way in use stays while it is good
    enough, so that measurements that waver do not change it.

    Args:
        options: at least one.
        goal: what the user wants.
        present: the way in use.
    """
    open_ = [each for each in options if _keeps_deadline(each, goal, present)]
    if not open_:
        open_, goal = list(options), Goal()  # Too late whatever is done: then as soon as can be.
    least = min(cost(each, goal.objective) for each in open_)
    near = [each for each in open_ if cost(each, goal.objective) <= (1 + NEAR) * least]
    best = min(near, key=lambda each: (_other_costs(each, goal), each.latency_seconds))
    for each in open_:
        if (
            each.choice == present
            and cost(each, goal.objective) <= (1 + STAY) * least
            and _other_costs(each, goal) <= (1 + SAVE) * _other_costs(best, goal)
        ):
            return each
    return best


def _keeps_deadline(expected: Expected, goal: Goal, present: Choice | None) -> bool:
    if goal.deadline_seconds is None:
        return True
    share = 1.0 if expected.choice == present else 1 - SPARE
    return expected.late_seconds <= share * goal.deadline_seconds


def _costs(expected: Expected) -> dict[Objective, float]:
    return {
        Objective.LATENCY: expected.latency_seconds,
        Objective.BYTES: expected.wire_bytes,
        Objective.ENERGY: expected.energy_joules,
    }


def cost(expected: Expected, objective: Objective) -> float:
    """Return what a way costs of what is to be low: seconds, wire bytes or joules."""
    return _costs(expected)[objective]


def _other_costs(expected: Expected, goal: Goal) -> float:
    return math.prod(each for name, each in _costs(expected).items() if name != goal.objective)
