"""The protocol, edge side, as a pure state machine: event in, actions out.

No gRPC, no clock, no thread, no tensors. It outlives streams: a *ticket* is a sample as the
daemon knows it, a *number* is its name on the present stream. The loop feeds it what happens and
carries out the actions in their order.

A sample is begun (given a number) when its first packet can go; a sample that must be sent again
(stream lost, server draining, check or worker failed) loses its number and is begun anew, in the
old order, from the timesteps already computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from shared.errors import ProtocolError, SampleCode
from shared.exit_rule import exits
from shared.messages import Draining, Failure, Opened, ReplyMode, Settings, Verdict


class ReplayReason(Enum):
    """Why a sample is sent again."""

    LINK_LOST = "link_lost"
    DRAINING = "draining"
    CHECK_FAILED = "check_failed"
    WORKER_LOST = "worker_lost"


class Compute(msgspec.Struct, frozen=True):
    """Run head and encoder for this timestep; answer with :meth:`EdgeSession.computed`."""

    ticket: int
    timestep: int


class SendSettings(msgspec.Struct, frozen=True):
    """Send new settings, before any later packet."""

    settings: Settings


class SendPacket(msgspec.Struct, frozen=True):
    """Send the timesteps ``timestep .. timestep + steps - 1`` of a sample under ``number``.

    ``timestep == 0`` begins the sample: the encoder starts afresh, with ``settings.codec``, or
    raw if ``raw``.
    """

    ticket: int
    number: int
    timestep: int
    steps: int
    raw: bool


class SendCancel(msgspec.Struct, frozen=True):
    """Give up a sample of the present stream."""

    number: int


class Answer(msgspec.Struct, frozen=True):
    """The sample is answered; ``wasted`` timesteps were sent after its exit."""

    ticket: int
    verdict: Verdict
    wasted: int


class Fail(msgspec.Struct, frozen=True):
    """The cloud cannot answer this sample."""

    ticket: int
    code: SampleCode
    message: str


class Wait(msgspec.Struct, frozen=True):
    """Call :meth:`EdgeSession.retry` for this ticket after so many seconds."""

    ticket: int
    seconds: float


class Replay(msgspec.Struct, frozen=True):
    """For the record: the sample will be sent again from its first timestep."""

    ticket: int
    reason: ReplayReason


class Reconnect(msgspec.Struct, frozen=True):
    """Close the present stream, if there is one, and open another."""


Action = (
    Compute | SendSettings | SendPacket | SendCancel | Answer | Fail | Wait | Replay | Reconnect
)


@dataclass(slots=True)
class _Sample:
    """A sample that has been submitted and neither answered nor given up."""

    settings: Settings | None = None
    """Those it began with; None before."""
    number: int | None = None
    computed: int = 0
    sent: int = 0
    judged: int = 0
    raw: bool = False
    waiting: bool = False
    retried: tuple[SampleCode, ...] = ()


class EdgeSession:
    """The protocol of one edge daemon towards its cloud.

    Args:
        timesteps: T of the model.
        settings: for all samples until :meth:`configure`; resolved for T.

    All methods return the actions to carry out, in order. Verdicts, failures and draining of an
    earlier stream must not be fed in after :meth:`lost` or ``Reconnect``. ProtocolError is raised
    where the cloud broke the protocol; the loop then drops the stream and calls :meth:`lost`.
    """

    def __init__(self, timesteps: int, settings: Settings) -> None:
        self._timesteps = timesteps
        self._settings = self._told = settings
        self._samples: dict[int, _Sample] = {}
        self._numbers: dict[int, int] = {}
        """Number to ticket, for samples live on the present stream."""
        self._next = 0
        self._in_flight_limit = 0
        """S of the present stream; 0 while there is none."""
        self._draining = False
        self._check_failures = 0
        self._computing: int | None = None

    @property
    def tickets(self) -> tuple[int, ...]:
        """Samples in hand, oldest first."""
        return tuple(self._samples)

    @property
    def connected(self) -> bool:
        """Whether a stream is open."""
        return self._in_flight_limit > 0

    @property
    def settings(self) -> Settings:
        """What the next sample will begin with."""
        return self._settings

    @property
    def awaited(self) -> tuple[tuple[int, int], ...]:
        """Samples that the cloud owes a word: ticket, and the timestep whose packet asks for it."""
        found = []
        for ticket, sample in self._samples.items():
            if self._settings_of(sample).reply_mode is ReplyMode.EXIT:
                if sample.sent == self._timesteps:
                    found.append((ticket, self._timesteps - 1))
            elif sample.sent > sample.judged:
                found.append((ticket, sample.judged))
        return tuple(found)

    def submit(self, ticket: int) -> list[Action]:
        """Take in a new sample."""
        if ticket in self._samples:
            raise ValueError(f"ticket {ticket} has been submitted already")
        self._samples[ticket] = _Sample()
        return self._go_on()

    def configure(self, settings: Settings) -> list[Action]:
        """Use other settings (resolved for T) for the samples not yet begun."""
        self._settings = settings
        return self._tell_settings() + self._go_on() if self.connected else []

    def open(self) -> Settings:
        """Return what the Open of a new stream is to say."""
        self._told = self._settings
        return self._told

    def opened(self, opened: Opened) -> list[Action]:
        """A stream is open with what :meth:`open` returned; settings changed since then follow."""
        self._in_flight_limit = opened.samples_in_flight
        self._next = 0
        self._draining = False
        self._check_failures = 0
        return self._tell_settings() + self._go_on()

    def computed(self, ticket: int) -> list[Action]:
        """The head's timestep asked for with Compute is there (or was dropped)."""
        self._computing = None
        if ticket in self._samples:
            self._samples[ticket].computed += 1
        return self._go_on()

    def verdict(self, verdict: Verdict) -> list[Action]:
        """Take in a verdict; ignored for a sample that has ended."""
        found = self._find(verdict.sample)
        if found is None:
            return []
        ticket, sample = found
        settings = self._settings_of(sample)
        if not sample.judged <= verdict.timestep < sample.sent:
            raise ProtocolError(
                f"expected a verdict on timestep {sample.judged} to {sample.sent - 1} of sample "
                f"{verdict.sample}, got one on {verdict.timestep}"
            )
        if exits(verdict.confidence, verdict.timestep, settings.alpha):
            wasted = sample.sent - verdict.timestep - 1
            self._remove(ticket)
            return [Answer(ticket, verdict, wasted), *self._go_on()]
        if settings.reply_mode is ReplyMode.EXIT:
            raise ProtocolError(
                f"expected a verdict that exits, got one on timestep {verdict.timestep} of sample "
                f"{verdict.sample} with confidence {verdict.confidence}"
            )
        sample.judged = verdict.timestep + 1
        return self._go_on()

    def failure(self, failure: Failure) -> list[Action]:
        """Take in a sample's failure; ignored for a sample that has ended."""
        found = self._find(failure.sample)
        if found is None:
            return []
        ticket, sample = found
        first_time = failure.code not in sample.retried
        sample.retried = (*sample.retried, failure.code)
        self._forget_number(sample)
        if failure.code is SampleCode.NO_SLOT:
            sample.waiting = True
            return [Wait(ticket, failure.retry_after_seconds), *self._go_on()]
        if failure.code is SampleCode.CHECK_FAILED:
            self._check_failures += 1
            sample.raw = True
            reason = ReplayReason.CHECK_FAILED
        elif failure.code is SampleCode.WORKER_LOST:
            reason = ReplayReason.WORKER_LOST
        else:
            first_time = False
        if first_time:
            return [Replay(ticket, reason), *self._go_on()]
        self._remove(ticket)
        return [Fail(ticket, failure.code, failure.message), *self._go_on()]

    def retry(self, ticket: int) -> list[Action]:
        """The time of a Wait is over; ignored if the sample is gone."""
        sample = self._samples.get(ticket)
        if sample is not None:
            sample.waiting = False
        return self._go_on()

    def draining(self, draining: Draining) -> list[Action]:
        """The server will stop: finish what it began, send the rest elsewhere."""
        self._draining = True
        last = -1 if draining.last_sample is None else draining.last_sample
        late = [ticket for number, ticket in self._numbers.items() if number > last]
        actions: list[Action] = []
        for ticket in late:
            self._forget_number(self._samples[ticket])
            actions.append(Replay(ticket, ReplayReason.DRAINING))
        return [*actions, *self._go_on()]

    def lost(self) -> list[Action]:
        """The stream ended; everything under way is sent again on the next."""
        actions: list[Action] = []
        for ticket in list(self._numbers.values()):
            self._forget_number(self._samples[ticket])
            actions.append(Replay(ticket, ReplayReason.LINK_LOST))
        self._in_flight_limit = 0
        return [*actions, Reconnect(), *self._go_on()]

    def abandon(self, ticket: int) -> list[Action]:
        """Give up a sample (deadline, caller gone, finished locally); ignored if it has ended."""
        sample = self._samples.get(ticket)
        if sample is None:
            return []
        cancel: list[Action] = [] if sample.number is None else [SendCancel(sample.number)]
        self._remove(ticket)
        return [*cancel, *self._go_on()]

    def _tell_settings(self) -> list[Action]:
        if self._told == self._settings:
            return []
        self._told = self._settings
        return [SendSettings(self._settings)]

    def _find(self, number: int) -> tuple[int, _Sample] | None:
        if number >= self._next:
            raise ProtocolError(f"got word of sample {number}, only {self._next} were begun")
        ticket = self._numbers.get(number)
        return None if ticket is None else (ticket, self._samples[ticket])

    def _settings_of(self, sample: _Sample) -> Settings:
        return sample.settings or self._settings

    def _forget_number(self, sample: _Sample) -> None:
        if sample.number is not None:
            del self._numbers[sample.number]
        sample.number = sample.settings = None
        sample.sent = sample.judged = 0

    def _remove(self, ticket: int) -> None:
        self._forget_number(self._samples.pop(ticket))

    def _go_on(self) -> list[Action]:
        """Send and compute whatever the rules allow now."""
        if self._draining and self.connected and not self._numbers:
            self._in_flight_limit = 0
            return [Reconnect(), *self._go_on()]
        actions: list[Action] = []
        for ticket, sample in self._samples.items():
            while self._may_send(sample):
                actions.append(self._send(ticket, sample))
        if self._computing is None:
            actions += self._compute()
        return actions

    def _may_send(self, sample: _Sample) -> bool:
        settings = self._settings_of(sample)
        steps = min(settings.steps_per_packet, self._timesteps - sample.sent)
        if steps == 0 or sample.computed - sample.sent < steps:
            return False
        if sample.number is None and not self._may_begin(sample):
            return False
        if settings.reply_mode is ReplyMode.EXIT:
            return True
        return sample.sent + steps - sample.judged <= settings.window

    def _may_begin(self, sample: _Sample) -> bool:
        return (
            len(self._numbers) < self._in_flight_limit
            and not self._draining
            and not sample.waiting
            and self._next - 4 not in self._numbers
        )

    def _send(self, ticket: int, sample: _Sample) -> SendPacket:
        if sample.number is None:
            sample.number = self._next
            sample.settings = self._settings
            self._numbers[self._next] = ticket
            self._next += 1
            # Two failed checks on one stream: whatever damages the bits, coding makes it worse.
            sample.raw = sample.raw or self._check_failures >= 2
        settings = self._settings_of(sample)
        steps = min(settings.steps_per_packet, self._timesteps - sample.sent)
        packet = SendPacket(ticket, sample.number, sample.sent, steps, sample.raw)
        sample.sent += steps
        return packet

    def _compute(self) -> list[Action]:
        """Ask for the next useful timestep, oldest sample first."""
        active = list(self._samples.items())[: max(1, self._in_flight_limit)]
        for ticket, sample in active:
            settings = self._settings_of(sample)
            ahead = sample.computed - sample.judged
            in_window = settings.reply_mode is ReplyMode.EXIT or ahead < settings.window
            if sample.computed < self._timesteps and in_window:
                self._computing = ticket
                return [Compute(ticket, sample.computed)]
        return []
