"""Both protocol machines, joined by two queues and a scheduler that may do anything in any order.

Every reachable state is visited: messages arrive late, timesteps are judged in any order across
samples, and at each point one of the disturbances may strike. In every state nothing may raise;
in every final state each sample has exactly one answer or one error, the answer is that of its
exit timestep, and no slot is held.
"""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from cloud_server import session as cloud
from edge_agent import session as edge
from shared.errors import SampleCode
from shared.messages import (
    REMEMBERED,
    Draining,
    Failure,
    Opened,
    ReplyMode,
    Settings,
    Verdict,
)

SLOTS = 2
FAILURES: dict[str | None, SampleCode] = {code.name: code for code in SampleCode}


@dataclass
class World:
    """The state of everything."""

    timesteps: int
    opened: Opened
    exits_at: tuple[int, ...]
    """By ticket: the timestep from which its confidence exceeds alpha."""
    disturbance: str | None
    """The one thing that may still go wrong, at any point; None once it has happened."""
    split: bool
    """Packets of several timesteps go as packets of one."""
    edge: edge.EdgeSession
    cloud: cloud.CloudSession | None = None
    up: list[Any] = field(default_factory=list)
    down: list[Any] = field(default_factory=list)
    queued: dict[int, list[int]] = field(default_factory=dict)
    """By sample on the cloud: timesteps that wait for the tail."""
    tickets: dict[int, int] = field(default_factory=dict)
    """By sample on the cloud: the ticket whose spikes its packets carry."""
    submitted: int = 0
    computing: tuple[int, int] | None = None
    computed: dict[int, int] = field(default_factory=dict)
    waits: list[int] = field(default_factory=list)
    connecting: bool = True
    opening: Settings | None = None
    """What the Open under way says."""
    slots_held: int = 0
    refuse_next: bool = False
    """The next sample finds no slot."""
    closing: bool = False
    outcomes: list[tuple[int, str, int]] = field(default_factory=list)


def new_world(
    timesteps: int,
    settings: Settings,
    samples_in_flight: int,
    exits_at: tuple[int, ...],
    disturbance: str | None,
) -> World:
    opened = Opened(
        max_window=timesteps,
        max_steps_per_packet=timesteps,
        samples_in_flight=samples_in_flight,
        codecs=("raw",),
        packet_idle_seconds=1.0,
        model="test",
    )
    machine = edge.EdgeSession(timesteps, settings)
    return World(timesteps, opened, exits_at, disturbance, disturbance == "split", machine)


def moves(world: World) -> list[tuple[Any, ...]]:
    """Return everything that may happen next."""
    possible: list[tuple[Any, ...]] = []
    if world.submitted < len(world.exits_at):
        possible.append(("submit",))
    if world.computing is not None:
        possible.append(("compute",))
    if world.connecting:
        possible.append(("open",) if world.opening is None else ("connect",))
    if world.up and world.cloud is not None:
        possible.append(("up",))
    if world.down:
        possible.append(("down",))
    possible += [("judge", sample) for sample, steps in world.queued.items() if steps]
    possible += [("retry", ticket) for ticket in world.waits]
    if world.disturbance == "abandon":
        possible += [("abandon", ticket) for ticket in world.edge.tickets]
    elif world.disturbance == "configure":
        possible.append(("configure",))
    elif world.disturbance in ("cut", "drain") and world.cloud is not None:
        possible.append((world.disturbance,))
    elif world.disturbance in FAILURES and world.cloud is not None:
        code = FAILURES[world.disturbance]
        if code is SampleCode.NO_SLOT:
            possible.append(("no_slot",))
        else:
            possible += [("fail", sample, code) for sample in world.cloud.live]
    return possible


def apply(world: World, move: tuple[Any, ...]) -> None:
    """Let one thing happen."""
    kind = move[0]
    if kind == "submit":
        ticket = world.submitted
        world.submitted += 1
        edge_acts(world, world.edge.submit(ticket))
    elif kind == "compute":
        assert world.computing is not None
        ticket, timestep = world.computing
        assert timestep == world.computed.get(ticket, 0), "a timestep is computed once, in order"
        world.computed[ticket] = timestep + 1
        world.computing = None
        edge_acts(world, world.edge.computed(ticket))
    elif kind == "open":
        world.opening = world.edge.open()
    elif kind == "connect":
        assert world.opening is not None
        world.cloud = cloud.CloudSession(world.timesteps, world.opened, world.opening)
        world.connecting, world.opening = False, None
        edge_acts(world, world.edge.opened(world.opened))
    elif kind == "up":
        cloud_receives(world, world.up.pop(0))
    elif kind == "down":
        edge_receives(world, world.down.pop(0))
    elif kind == "judge":
        judge(world, move[1])
    elif kind == "retry":
        world.waits.remove(move[1])
        edge_acts(world, world.edge.retry(move[1]))
    else:
        world.disturbance = None
        disturb(world, move)


def disturb(world: World, move: tuple[Any, ...]) -> None:
    assert world.cloud is not None or move[0] in ("abandon", "configure")
    if move[0] == "configure":
        edge_acts(world, world.edge.configure(others(world.edge.settings, world.timesteps)))
    elif move[0] == "abandon":
        world.outcomes.append((move[1], "abandoned", -1))
        edge_acts(world, world.edge.abandon(move[1]))
    elif move[0] == "cut":
        lose(world)
    elif move[0] == "drain":
        assert world.cloud is not None
        cloud_acts(world, world.cloud.drain())
    elif move[0] == "fail":
        assert world.cloud is not None
        cloud_acts(world, world.cloud.failed(move[1], move[2], "disturbed"))
    elif move[0] == "no_slot":
        world.refuse_next = True


def others(settings: Settings, timesteps: int) -> Settings:
    """Return settings with another reply mode, window and packet size."""
    if settings.reply_mode is ReplyMode.EXIT:
        return replace(settings, reply_mode=ReplyMode.STEP, window=1, steps_per_packet=1)
    steps = 1 if settings.steps_per_packet > 1 else timesteps
    return replace(settings, reply_mode=ReplyMode.EXIT, window=1, steps_per_packet=steps)


def lose(world: World) -> None:
    """Cut the link: what was under way is gone, both sides notice."""
    assert world.cloud is not None
    cloud_acts(world, world.cloud.disconnected())
    end_stream(world)
    edge_acts(world, world.edge.lost())


def end_stream(world: World) -> None:
    assert not world.queued, "a stream that ends has released its samples"
    world.cloud = None
    world.up, world.down, world.tickets = [], [], {}
    world.closing = False


def edge_acts(world: World, actions: list[edge.Action]) -> None:
    for action in actions:
        if isinstance(action, edge.Compute):
            assert world.computing is None, "one timestep is computed at a time"
            world.computing = (action.ticket, action.timestep)
        elif isinstance(action, edge.SendPacket):
            assert action.timestep + action.steps <= world.computed[action.ticket]
            world.up += split(action) if world.split else [action]
        elif isinstance(action, edge.SendCancel | edge.SendSettings):
            world.up.append(action)
        elif isinstance(action, edge.Answer):
            world.outcomes.append((action.ticket, "answer", action.verdict.timestep))
        elif isinstance(action, edge.Fail):
            world.outcomes.append((action.ticket, action.code.name, -1))
        elif isinstance(action, edge.Wait):
            world.waits.append(action.ticket)
        elif isinstance(action, edge.Reconnect):
            if world.cloud is not None:
                # The edge hangs up: the cloud sees the end of the stream.
                cloud_acts(world, world.cloud.half_closed())
                end_stream(world)
            world.connecting = True


def split(packet: edge.SendPacket) -> list[edge.SendPacket]:
    """Return the single-timestep packets that go in a packet's place where coding does not win."""
    timesteps = range(packet.timestep, packet.timestep + packet.steps)
    return [replace(packet, timestep=timestep, steps=1) for timestep in timesteps]


def packet_bytes(action: edge.SendPacket) -> bytes:
    kind = 0 if action.steps == 1 else 2
    header = action.timestep % 8 | (action.timestep == 0) << 3 | action.number % 4 << 4 | kind << 6
    return bytes([header]) + (bytes([action.steps]) if kind else b"")


def cloud_receives(world: World, message: Any) -> None:
    assert world.cloud is not None
    if isinstance(message, edge.SendCancel):
        cloud_acts(world, world.cloud.cancel(message.number))
        return
    if isinstance(message, edge.SendSettings):
        cloud_acts(world, world.cloud.settings(message.settings))
        return
    if message.timestep == 0:
        world.tickets[message.number] = message.ticket
    slot_free = world.slots_held < SLOTS and not world.refuse_next
    if message.timestep == 0:
        world.refuse_next = False
    actions = world.cloud.packet(packet_bytes(message), slot_free=slot_free)
    for action in actions:
        if isinstance(action, cloud.Step):
            assert action.sample == message.number, "a packet reaches the sample it was sent for"
            steps = range(message.timestep, message.timestep + message.steps)
            world.queued.setdefault(action.sample, []).extend(steps)
    cloud_acts(world, actions)


def cloud_acts(world: World, actions: list[cloud.Action]) -> None:
    for action in actions:
        if not isinstance(action, cloud.Discard):
            assert not world.closing, "nothing follows the end of a stream"
        if isinstance(action, cloud.Begin):
            world.slots_held += 1
            assert world.slots_held <= SLOTS
        elif isinstance(action, cloud.Release):
            world.slots_held -= 1
            assert world.slots_held >= 0, "a slot comes back once"
            world.queued.pop(action.sample, None)
        elif isinstance(action, cloud.Send):
            world.down.append(action.message)
        elif isinstance(action, cloud.SendDraining):
            world.down.append(Draining(action.last_sample))
        elif isinstance(action, cloud.End):
            world.closing = True
            world.down.append("end")


def judge(world: World, sample: int) -> None:
    assert world.cloud is not None
    timestep = world.queued[sample].pop(0)
    confident = timestep >= world.exits_at[world.tickets[sample]]
    verdict = Verdict(sample, timestep, 0, 1.0 if confident else 0.0)
    cloud_acts(world, world.cloud.judged(verdict))


def edge_receives(world: World, message: Any) -> None:
    if message == "end":
        assert world.cloud is not None
        cloud_acts_after_end = world.cloud.disconnected()
        assert not cloud_acts_after_end, "a stream ends in good order with nothing live"
        world.cloud = None
        end_stream(world)
        edge_acts(world, world.edge.lost())
    elif isinstance(message, Verdict):
        edge_acts(world, world.edge.verdict(message))
    elif isinstance(message, Failure):
        edge_acts(world, world.edge.failure(message))
    else:
        edge_acts(world, world.edge.draining(message))


def check_final(world: World, disturbance: str | None) -> None:
    """Nothing can happen any more: every sample must have ended exactly once."""
    counts = Counter(ticket for ticket, _, _ in world.outcomes)
    assert counts == dict.fromkeys(range(len(world.exits_at)), 1), world.outcomes
    assert world.slots_held == 0, "no slot is held"
    assert world.edge.tickets == ()
    for ticket, outcome, timestep in world.outcomes:
        if outcome == "answer":
            assert timestep == min(world.exits_at[ticket], world.timesteps - 1)
        elif outcome == "abandoned":
            assert disturbance == "abandon"
        else:
            assert outcome == disturbance and disturbance in ("DEADLINE", "BAD_PACKET")


def explore(start: World) -> int:
    """Visit every reachable state and return their number."""
    disturbance = start.disturbance
    first = pickle.dumps(start)
    seen, frontier = {first}, [first]
    while frontier:
        state = frontier.pop()
        world = pickle.loads(state)
        possible = moves(world)
        # A world in which only the disturbance could still happen is a final one.
        if all(is_disturbance(move) for move in possible):
            check_final(world, disturbance)
        for index, move in enumerate(possible):
            after = world if index == len(possible) - 1 else pickle.loads(state)
            apply(after, move)
            key = pickle.dumps(after)
            if key not in seen:
                seen.add(key)
                frontier.append(key)
    return len(seen)


def is_disturbance(move: tuple[Any, ...]) -> bool:
    return move[0] in ("abandon", "configure", "cut", "drain", "fail", "no_slot")


DISTURBANCES = (None, "split", "abandon", "configure", "cut", "drain", *SampleCode.__members__)


def settings_of(timesteps: int) -> list[Settings]:
    """Return every reply mode, window and packet size that ``timesteps`` allow."""
    alpha = (0.5,) * (timesteps - 1)
    return [
        Settings(alpha=alpha, reply_mode=mode, window=window, steps_per_packet=steps)
        for mode in ReplyMode
        for window in range(1, timesteps + 1)
        for steps in range(1, timesteps + 1)
        if (steps <= window if mode is ReplyMode.STEP else window == 1)
    ]


Case = tuple[int, int, Settings, tuple[int, ...], str | None]


def cases(timesteps: int, exits: list[tuple[int, ...]]) -> list[Case]:
    return [
        (timesteps, samples_in_flight, settings, exits_at, disturbance)
        for samples_in_flight in (1, 2)
        for settings in settings_of(timesteps)
        for exits_at in exits
        for disturbance in DISTURBANCES
        if disturbance != "split" or settings.steps_per_packet > 1
    ]


def explore_all(chosen: list[Case]) -> int:
    states = 0
    for case in chosen:
        timesteps, samples_in_flight, settings, exits_at, disturbance = case
        world = new_world(timesteps, settings, samples_in_flight, exits_at, disturbance)
        try:
            states += explore(world)
        except Exception as error:
            error.add_note(f"in the case {case}")
            raise
    return states


def all_exits(timesteps: int) -> list[tuple[int, ...]]:
    """Return the exit timesteps of two samples, in every combination."""
    return list(itertools.product(range(timesteps), repeat=2))


@pytest.mark.parametrize("timesteps", [1, 2])
def test_every_interleaving_of_two_samples_ends_well(timesteps: int) -> None:
    assert explore_all(cases(timesteps, all_exits(timesteps))) > 1000


def test_three_timesteps_with_one_early_exit_end_well() -> None:
    assert explore_all(cases(3, [(1, 2)])) > 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_interleaving_at_three_timesteps_ends_well() -> None:
    assert explore_all(cases(3, all_exits(3))) > 100_000


@pytest.mark.parametrize("disturbance", [None, "cut", "abandon"])
def test_numbers_wrap_around_the_four_residues(disturbance: str | None) -> None:
    assert REMEMBERED == 4
    settings = Settings(alpha=(0.5,))
    explore_all([(2, 2, settings, (1, 0, 0, 0, 0, 0), disturbance)])
