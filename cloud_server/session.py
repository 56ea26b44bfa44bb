"""One stream's protocol, cloud side, as a pure state machine: event in, actions out.

No gRPC, no clock, no thread, no tensors. The servicer feeds it what arrives and what the
scheduler computes, and carries out the actions in their order. A sample's life::

    first packet ── Begin ─► live ── verdict that exits, t = T-1, error, cancel ─► Release, ended

Every sample that begins is released exactly once. A packet names its sample modulo 4: it belongs
to the youngest sample begun with that residue, because the edge begins sample n only after it has
ended sample n - 4.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from shared.codec.packet import parse_header
from shared.errors import CodecError, ProtocolError, SampleCode
from shared.exit_rule import exits
from shared.messages import Failure, Opened, ReplyMode, Settings, Verdict


class Ending(Enum):
    """Why a sample was released."""

    EXIT = "exit"
    MAX_TIMESTEPS = "max_timesteps"
    CANCELLED = "cancelled"
    ERROR = "error"
    DEADLINE = "deadline"
    DISCONNECTED = "disconnected"


class Hold(msgspec.Struct, frozen=True):
    """Why no sample may begin now although there is a slot."""

    reason: str
    """For those who count."""
    message: str
    """For the edge."""
    seconds: float
    """When it may ask again."""


class Begin(msgspec.Struct, frozen=True):
    """Take a state slot for the sample and make its decoder."""

    sample: int
    settings: Settings


class Step(msgspec.Struct, frozen=True):
    """Decode the packet and queue its timesteps for the tail."""

    sample: int
    packet: bytes


class Release(msgspec.Struct, frozen=True):
    """Drop the sample's queued timesteps and give its slot back."""

    sample: int
    ending: Ending
    unused_packets: int = 0
    """The last so many of its packets began after the timestep on which it exited."""


class Send(msgspec.Struct, frozen=True):
    """Send a verdict or a failure."""

    message: Verdict | Failure
    hold: Hold | None = None
    """What a sample was refused for, if it was that."""


class SendDraining(msgspec.Struct, frozen=True):
    """Tell the edge that samples after ``last_sample`` were not begun."""

    last_sample: int | None


class Discard(msgspec.Struct, frozen=True):
    """Count a packet that came for an ended sample as wasted."""

    steps: int
    size_bytes: int


class End(msgspec.Struct, frozen=True):
    """End the stream in good order: nothing more will be sent."""


Action = Begin | Step | Release | Send | SendDraining | Discard | End


@dataclass(slots=True)
class _Sample:
    """A live sample."""

    settings: Settings
    received: int = 0
    judged: int = 0
    ends: deque[int] = field(default_factory=deque)
    """Last timestep of each packet that has no verdict yet."""


class CloudSession:
    """The protocol of one open ``Infer`` stream.

    Args:
        timesteps: T of the model.
        opened: the limits that were told to the edge.
        settings: the edge's, resolved for T.
        slot_retry_seconds: what NO_SLOT tells the edge to wait.

    All methods return the actions to carry out, in order, and raise :class:`ProtocolError` where
    the edge broke the protocol; the stream then ends with that message, after
    :meth:`disconnected` has released what was live.
    """

    def __init__(
        self,
        timesteps: int,
        opened: Opened,
        settings: Settings,
        slot_retry_seconds: float = 0.05,
    ) -> None:
        self._timesteps = timesteps
        self._opened = opened
        self._settings = self.check(settings, opened)
        self._slot_retry_seconds = slot_retry_seconds
        self._next = 0
        self._live: dict[int, _Sample] = {}
        self._draining = False
        self._ended = False

    @property
    def live(self) -> tuple[int, ...]:
        """Numbers of the samples under way."""
        return tuple(self._live)

    @property
    def next_number(self) -> int:
        """Number of the sample that begins next."""
        return self._next

    def waits_for_edge(self, sample: int) -> bool:
        """Say whether a live sample can go on only when another packet of it arrives."""
        state = self._live.get(sample)
        return state is not None and state.received == state.judged

    @staticmethod
    def check(settings: Settings, opened: Opened) -> Settings:
        """Return the settings, or raise ProtocolError if they exceed the limits agreed."""
        if not 1 <= settings.window <= opened.max_window:
            raise ProtocolError(
                f"expected a window of 1 to {opened.max_window}, got {settings.window}"
            )
        most = min(opened.max_steps_per_packet, settings.window)
        if settings.reply_mode is ReplyMode.EXIT:
            most = opened.max_steps_per_packet
        if not 1 <= settings.steps_per_packet <= most:
            raise ProtocolError(
                f"expected 1 to {most} timesteps per packet, got {settings.steps_per_packet}"
            )
        if settings.codec not in opened.codecs:
            raise ProtocolError(
                f"expected a codec of {', '.join(opened.codecs)}, got {settings.codec!r}"
            )
        return settings

    def settings(self, settings: Settings) -> list[Action]:
        """Adopt settings (resolved for T) for the samples that begin from now on."""
        self._settings = self.check(settings, self._opened)
        return []

    def packet(self, packet: bytes, *, slot_free: bool, hold: Hold | None = None) -> list[Action]:
        """Take in one packet.

        Args:
            packet: as it came.
            slot_free: whether a new sample could have a slot.
            hold: what a new sample would be refused for all the same.
        """
        try:
            header = parse_header(packet)
        except CodecError as error:
            raise ProtocolError(str(error)) from error
        if header.first:
            return self._first(header.sample_mod4, header.steps, packet, slot_free, hold)
        number = self._youngest(header.sample_mod4)
        if number is None:
            raise ProtocolError(
                f"got a packet of a sample that is {header.sample_mod4} mod 4, none has begun"
            )
        sample = self._live.get(number)
        if sample is None:
            return [Discard(header.steps, len(packet))]
        self._check_steps(sample.settings, header.steps)
        return self._receive(number, sample, header.steps, packet)

    def _youngest(self, residue: int) -> int | None:
        """Return the youngest sample begun whose number is ``residue`` modulo 4."""
        number = self._next - 1 - (self._next - 1 - residue) % 4
        return number if number >= 0 else None

    def _first(
        self, residue: int, steps: int, packet: bytes, slot_free: bool, hold: Hold | None
    ) -> list[Action]:
        number = self._next
        if residue != number % 4:
            raise ProtocolError(
                f"expected the first packet of sample {number}, which is {number % 4} mod 4, "
                f"got one that is {residue} mod 4"
            )
        if len(self._live) >= self._opened.samples_in_flight:
            raise ProtocolError(self._too_many())
        if number - 4 in self._live:
            raise ProtocolError(f"sample {number} began before sample {number - 4} had ended")
        # Before the sample begins: one that never began must not be released.
        self._check_steps(self._settings, steps)
        actions = self._begin(steps, len(packet), slot_free, hold)
        sample = self._live.get(number)
        return actions if sample is None else actions + self._receive(number, sample, steps, packet)

    def whole_input(self, *, slot_free: bool, hold: Hold | None = None) -> list[Action]:
        """Take in the next sample's whole input: all its timesteps at once, each a packet's worth.

        The window does not apply; the arguments are those of :meth:`packet`.
        """
        number = self._next
        if len(self._live) >= self._opened.samples_in_flight:
            raise ProtocolError(self._too_many())
        actions = self._begin(0, 0, slot_free, hold)
        sample = self._live.get(number)
        if sample is not None:
            sample.received = self._timesteps
            sample.ends.extend(range(self._timesteps))
        return actions

    def _begin(
        self, steps: int, size_bytes: int, slot_free: bool, hold: Hold | None
    ) -> list[Action]:
        """Begin the next sample, unless the stream is draining, on hold, or there is no slot."""
        number = self._next
        self._next += 1
        if self._draining:
            return [Discard(steps, size_bytes)]
        if hold is not None:
            failure = Failure(number, SampleCode.NO_SLOT, hold.message, hold.seconds)
            return [Discard(steps, size_bytes), Send(failure, hold)]
        if not slot_free:
            message = "all state slots are taken"
            failure = Failure(number, SampleCode.NO_SLOT, message, self._slot_retry_seconds)
            return [Discard(steps, size_bytes), Send(failure)]
        sample = self._live[number] = _Sample(self._settings)
        return [Begin(number, sample.settings)]

    def _too_many(self) -> str:
        return (
            f"expected at most {self._opened.samples_in_flight} samples in flight, "
            "got the first packet of another"
        )

    @staticmethod
    def _check_steps(settings: Settings, steps: int) -> None:
        if steps > settings.steps_per_packet:
            raise ProtocolError(
                f"expected at most {settings.steps_per_packet} timesteps per packet, got {steps}"
            )

    def _receive(self, number: int, sample: _Sample, steps: int, packet: bytes) -> list[Action]:
        settings = sample.settings
        if sample.received + steps > self._timesteps:
            message = (
                f"expected {self._timesteps} timesteps, got {sample.received + steps} of sample "
                f"{number}"
            )
            return self._fail(number, SampleCode.BAD_PACKET, message)
        outstanding = sample.received + steps - sample.judged
        if settings.reply_mode is ReplyMode.STEP and outstanding > settings.window:
            raise ProtocolError(
                f"expected at most {settings.window} timesteps of a sample without verdict, "
                f"got {outstanding} of sample {number}"
            )
        sample.received += steps
        sample.ends.append(sample.received - 1)
        return [Step(number, packet)]

    def judged(self, verdict: Verdict) -> list[Action]:
        """Take in the tail's word on the next timestep of a sample."""
        number, timestep = verdict.sample, verdict.timestep
        sample = self._live.get(number)
        if sample is None:
            return []
        sample.judged = timestep + 1
        if exits(verdict.confidence, timestep, sample.settings.alpha):
            last = timestep == self._timesteps - 1
            ending = Ending.MAX_TIMESTEPS if last else Ending.EXIT
            unused = len(sample.ends) - 1
            return [*self._release(number, ending, unused), Send(verdict), *self._after()]
        if timestep < sample.ends[0]:
            return []
        sample.ends.popleft()
        return [Send(verdict)] if sample.settings.reply_mode is ReplyMode.STEP else []

    def failed(self, number: int, code: SampleCode, message: str) -> list[Action]:
        """End a live sample with an error; ignored for an ended one."""
        return self._fail(number, code, message) if number in self._live else []

    def _fail(self, number: int, code: SampleCode, message: str) -> list[Action]:
        ending = Ending.DEADLINE if code is SampleCode.DEADLINE else Ending.ERROR
        failure = Send(Failure(number, code, message))
        return [*self._release(number, ending), failure, *self._after()]

    def cancel(self, number: int) -> list[Action]:
        """End a sample the edge gives up; ignored for an ended one."""
        if number >= self._next:
            raise ProtocolError(f"got a cancel of sample {number}, which has not begun")
        if number not in self._live:
            return []
        return [*self._release(number, Ending.CANCELLED), *self._after()]

    def drain(self) -> list[Action]:
        """Begin no more samples; end the stream when those under way have ended."""
        if self._draining:
            return []
        self._draining = True
        return [SendDraining(self._next - 1 if self._next else None), *self._after()]

    def half_closed(self) -> list[Action]:
        """The edge will send nothing more and wants no more answers."""
        return [*self.disconnected(), *self._end()]

    def disconnected(self, ending: Ending = Ending.DISCONNECTED) -> list[Action]:
        """The stream is gone: release everything."""
        return [action for number in self.live for action in self._release(number, ending)]

    def _release(self, number: int, ending: Ending, unused_packets: int = 0) -> list[Action]:
        del self._live[number]
        return [Release(number, ending, unused_packets)]

    def _after(self) -> list[Action]:
        return self._end() if self._draining and not self._live else []

    def _end(self) -> list[Action]:
        if self._ended:
            return []
        self._ended = True
        return [End()]
