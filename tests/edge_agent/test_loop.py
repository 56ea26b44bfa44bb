"""The loop with a real cloud behind a real network, all in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.answers import Answer, ClosingError, QueueFullError
from edge_agent.grpc_link import GrpcLink
from edge_agent.inputs import Recording
from shared.codec.packet import Header, Kind, parse_header
from shared.energy.config import EnergyConfig
from shared.engine.base import zero_state
from shared.engine.onnx_runtime import load_counting_engine
from shared.errors import (
    BundleError,
    ConfigError,
    InputError,
    LinkLostError,
    RefusedError,
    SampleCode,
    SampleError,
)
from shared.messages import EdgeMessage
from shared.model.bundle import HEAD_OPERATIONS, Bundle, pick_alpha
from shared.model.preprocessing import prepare
from tests.edge_agent.conftest import Clouds, Edges, Metered, Relay, picture, png, until

SEEDS = range(6)


async def classify_all(edge: Metered) -> list[Answer]:
    return list(await asyncio.gather(*(edge.loop.submit(png(seed)) for seed in SEEDS)))


def essence(answers: list[Answer]) -> list[tuple[int, int, float]]:
    return [(each.label, each.timesteps_used, round(each.confidence, 4)) for each in answers]


@pytest.fixture
async def alpha(edges: Edges) -> tuple[float, ...]:
    """Alpha at which half of the pictures exit at once and the others never early."""
    async with edges(placement="edge_only", alpha=0.0) as edge:
        confidences = sorted(answer.confidence for answer in await classify_all(edge))
    middle = len(confidences) // 2
    return ((confidences[middle - 1] + confidences[middle]) / 2, 1.0, 1.0)


@pytest.fixture
async def expected(edges: Edges, alpha: tuple[float, ...]) -> list[tuple[int, int, float]]:
    """What the split network says, all on this device."""
    async with edges(placement="edge_only", alpha=alpha) as edge:
        return essence(await classify_all(edge))


async def test_co_inference_answers_as_the_edge_alone_does(
    clouds: Clouds,
    edges: Edges,
    alpha: tuple[float, ...],
    expected: list[tuple[int, int, float]],
) -> None:
    async with clouds() as cloud, edges(cloud=cloud.address, alpha=alpha) as edge:
        answers = await classify_all(edge)
        assert essence(answers) == expected
        assert sorted(answer.timesteps_used for answer in answers) == [1, 1, 1, 4, 4, 4]
        assert {answer.placement for answer in answers} == {"co_inference"}
        used = sum(answer.timesteps_used for answer in answers)
        assert edge.count("edge_timesteps_total", outcome="used") == used
        assert edge.count("edge_timesteps_total", outcome="skipped") == 4 * len(SEEDS) - used
        assert edge.count("edge_timesteps_total", outcome="wasted") == 0
        sent_bytes = edge.count("edge_payload_bytes_total", direction="sent")
        assert sent_bytes == sum(answer.payload_bytes for answer in answers)
        # Code [4, 8, 8] is 32 bytes; features [16, 16, 16] of float32 over four timesteps.
        assert sent_bytes <= 32 * used
        baseline_bytes = edge.count("edge_baseline_bytes_total", baseline="float32_features")
        assert baseline_bytes == len(SEEDS) * 4 * 4 * 16 * 16 * 16
        assert edge.count("edge_message_bytes_total", direction="sent") > sent_bytes
        wire_bytes = edge.count("edge_wire_bytes_total", direction="sent")
        assert wire_bytes > edge.count("edge_message_bytes_total", direction="sent")
        assert edge.count("modelled_energy_joules_total", component="head") > 0
        assert edge.count("modelled_energy_joules_total", component="tail") == 0
        assert edge.count("edge_roundtrip_seconds_count") == used


@pytest.mark.parametrize("every", [2, 0])
async def test_operations_are_counted_in_one_sample_of_so_many(
    edges: Edges, tiny_bundle: Bundle, every: int
) -> None:
    energy = EnergyConfig(count_every=every)
    async with edges(placement="edge_only", alpha=1.0, energy=energy) as edge:
        answers = await classify_all(edge)

        def told(kind: str, source: str) -> float:
            labels = {"part": "head", "kind": kind, "source": source}
            return edge.count("synaptic_operations_total", **labels)

        mean = tiny_bundle.calibration().operations["head"]
        timesteps = tiny_bundle.spec.timesteps
        counted = [index for index in range(len(SEEDS)) if every and index % every == 0]
        rest = timesteps * (len(SEEDS) - len(counted))
        assert told("ac", "calibrated") == pytest.approx(rest * mean.ac)
        assert told("neuron", "counted") == len(counted) * timesteps * mean.neuron
        assert told("ac", "counted") == counted_accumulates(tiny_bundle, counted)
        joules = edge.count("modelled_energy_joules_total", component="head", basis="counted")
        assert (joules > 0) == bool(counted)
    assert len(answers) == len(SEEDS)


def counted_accumulates(bundle: Bundle, indices: list[int]) -> float:
    """Return those of the head over all timesteps of some pictures."""
    engine = load_counting_engine(bundle, "head", bundle.read(HEAD_OPERATIONS))
    total = 0.0
    for index in indices:
        x = prepare(picture(SEEDS[index]), bundle.spec, bundle.manifest.preprocessing)
        state = zero_state(engine, 1)
        for _ in range(bundle.spec.timesteps):
            _, state, ((_, ac),) = engine.count(x[np.newaxis], state)
            total += float(ac)
    return total


@pytest.mark.parametrize(
    "how",
    [
        {"window": 3},
        {"window": 4, "steps_per_packet": 2},
        {"window": 4, "steps_per_packet": 4, "codec": "raw"},
        {"reply_mode": "exit"},
        {"reply_mode": "exit", "steps_per_packet": 3, "checksum": "none"},
        {"samples_in_flight": 2},
        {"samples_in_flight": 3, "window": 2, "reply_mode": "step"},
    ],
    ids=str,
)
async def test_window_packets_reply_mode_and_samples_in_flight_change_no_answer(
    clouds: Clouds,
    edges: Edges,
    alpha: tuple[float, ...],
    expected: list[tuple[int, int, float]],
    how: dict[str, Any],
) -> None:
    async with clouds() as cloud, edges(cloud=cloud.address, alpha=alpha, **how) as edge:
        answers = await classify_all(edge)
    assert essence(answers) == expected


async def test_the_whole_network_runs_here_over_all_timesteps_unless_alpha_is_set(
    edges: Edges,
) -> None:
    async with edges(placement="edge_only", network="whole", alpha=None) as edge:
        full = await edge.loop.submit(png(0))
        assert (full.timesteps_used, full.placement) == (4, "edge_only")
        assert edge.count("modelled_energy_joules_total", component="whole") > 0
        assert edge.count("edge_payload_bytes_total") == 0
    async with edges(placement="edge_only", network="whole", alpha=0.0) as edge:
        assert (await edge.loop.submit(png(0))).timesteps_used == 1


async def test_cloud_only_answers_as_the_whole_network_here_does(
    clouds: Clouds, edges: Edges, alpha: tuple[float, ...]
) -> None:
    async with edges(placement="edge_only", network="whole", alpha=alpha) as edge:
        expected = essence(await classify_all(edge))
    async with (
        clouds() as cloud,
        edges(cloud=cloud.address, placement="cloud_only", alpha=alpha) as edge,
    ):
        answers = await classify_all(edge)
        assert essence(answers) == expected
        assert {answer.placement for answer in answers} == {"cloud_only"}
        as_array = await edge.loop.submit(picture(0))
        assert essence([as_array]) == expected[:1]
        with pytest.raises(InputError, match="expected an image file"):
            await edge.loop.submit(b"no image")
        recording = Recording(edge.loop.spec)
        recording.push(picture(0))
        future = edge.loop.submit(recording)
        recording.end()
        assert essence([await future]) == expected[:1]


async def test_early_exits_are_honoured_by_configuration_and_by_loss_budget(
    edges: Edges, tiny_bundle: Bundle
) -> None:
    async with edges(placement="edge_only", alpha=0.0) as edge:
        assert {answer.timesteps_used for answer in await classify_all(edge)} == {1}
    async with edges(placement="edge_only", alpha=(1.0, 0.0, 1.0)) as edge:
        assert {answer.timesteps_used for answer in await classify_all(edge)} == {2}
    calibration = tiny_bundle.calibration()
    name = calibration.default_alpha
    async with (
        edges(placement="edge_only", alpha=None) as default,
        edges(placement="edge_only", alpha=None, loss_budget=name) as named,
    ):
        assert essence(await classify_all(default)) == essence(await classify_all(named))
    picked = pick_alpha(1, calibration.alpha, calibration.tests)
    async with (
        edges(placement="edge_only", alpha=None, loss_budget=1) as points,
        edges(placement="edge_only", alpha=calibration.alpha[picked]) as same,
    ):
        assert essence(await classify_all(points)) == essence(await classify_all(same))


async def test_a_value_that_does_not_fit_the_bundle_is_refused(edges: Edges) -> None:
    with pytest.raises(ConfigError, match="alpha: expected 3 alpha values"):
        async with edges(alpha=(0.5, 0.5)):
            pass
    with pytest.raises(ConfigError, match="loss_budget: expected one of"):
        async with edges(alpha=None, loss_budget="none_such"):
            pass
    with pytest.raises(ConfigError, match="loss_budget: expected .*, got 0.7 points; its alpha"):
        async with edges(alpha=None, loss_budget=0.7):
            pass


async def test_an_input_can_arrive_one_timestep_at_a_time(clouds: Clouds, edges: Edges) -> None:
    frames = [picture(seed) for seed in range(4)]
    async with clouds() as cloud, edges(cloud=cloud.address) as edge:
        expected = essence([await edge.loop.submit(np.stack(frames))])
        recording = Recording(edge.loop.spec)
        future = edge.loop.submit(recording)
        before = edge.count("edge_roundtrip_seconds_count")
        for done, frame in enumerate(frames, start=1):
            assert not future.done()
            recording.push(frame)
            # Every timestep is computed, sent and judged before the next frame is there.
            await until(partial(edge.counts, "edge_roundtrip_seconds_count", before + done))
        assert essence([await future]) == expected


async def test_bad_inputs_end_alone(edges: Edges) -> None:
    bad: list[tuple[Any, str]] = [
        (b"no image", "expected an image file"),
        (np.zeros((3, 31, 32), np.uint8), "expected an array"),
        (np.full((3, 32, 32), np.nan, np.float32), "finite"),
        (np.zeros((3, 32, 32), np.int64), "uint8 or float32"),
    ]
    async with edges(placement="edge_only") as edge:
        futures = [edge.loop.submit(data) for data, _ in bad]
        good = edge.loop.submit(png(0))
        for future, (_, message) in zip(futures, bad, strict=True):
            with pytest.raises(InputError, match=message):
                await future
        assert (await good).timesteps_used == 4
        assert edge.count("edge_samples_dropped_total", reason="invalid") == 4


async def begin(edge: Metered) -> tuple[Recording, asyncio.Future[Answer]]:
    """Submit a sample and wait until its first timestep is judged."""
    recording = Recording(edge.loop.spec)
    future = edge.loop.submit(recording)
    recording.push(picture(0))
    await until(lambda: edge.count("edge_roundtrip_seconds_count") == 1)
    return recording, future


async def test_a_link_cut_in_mid_sample_is_replayed_and_answered_once(
    clouds: Clouds, edges: Edges, relay: Relay
) -> None:
    async with clouds() as cloud:
        relay.target = cloud.address
        async with edges(cloud=relay.address) as edge:
            straight = await edge.loop.submit(np.stack([picture(0)] * 4))
        async with edges(cloud=relay.address) as edge:
            recording, future = await begin(edge)
            relay.cut()
            await until(lambda: edge.count("edge_replays_total", reason="link_lost") == 1)
            recording.end()
            answer = await future
            assert essence([answer]) == essence([straight])
            assert edge.count("edge_inferences_total") == edge.loop.answered == 1
            # The first timestep went twice, from the code in hand: the head ran four times.
            assert edge.count("edge_stage_duration_seconds_count", stage="head") == 4
            assert answer.payload_bytes > straight.payload_bytes


class CorruptingLinks:
    """Damages the check of packets that every link of this process sends, and remembers all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, damaged: Callable[[int, Header], bool]):
        self.sent: list[Header] = []
        """What was sent, in order, over all links."""
        self._damaged = damaged
        self._send = GrpcLink.send
        monkeypatch.setattr(GrpcLink, "send", lambda link, message: self._pass_on(link, message))

    def _pass_on(self, link: GrpcLink, message: EdgeMessage) -> None:
        packets = tuple(self._packet(packet) for packet in message.packets)
        self._send(link, replace(message, packets=packets))

    def _packet(self, packet: bytes) -> bytes:
        header = parse_header(packet)
        hit = self._damaged(len(self.sent), header)
        self.sent.append(header)
        return packet[:-1] + bytes([packet[-1] ^ hit])

    def kinds(self, start: int) -> set[Kind]:
        """Return how the packets from number ``start`` on were coded."""
        return {header.kind for header in self.sent[start:]}


@pytest.mark.parametrize(
    ("how", "hit"),
    [
        ({}, 0),
        ({}, 2),
        ({"window": 4, "steps_per_packet": 2}, 1),
        ({"reply_mode": "exit", "steps_per_packet": 4}, 0),
    ],
    ids=["first packet", "third packet", "second of two", "all in one"],
)
async def test_damage_on_the_way_is_noticed_and_the_sample_sent_again_raw(
    clouds: Clouds, edges: Edges, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], hit: int
) -> None:
    async with edges(placement="edge_only") as edge:
        expected = essence([await edge.loop.submit(png(0))])
    links = CorruptingLinks(monkeypatch, lambda number, _: number == hit)
    async with clouds() as cloud, edges(cloud=cloud.address, **how) as edge:
        assert essence([await edge.loop.submit(png(0))]) == expected
        assert edge.count("edge_check_failures_total") == 1
        assert edge.count("edge_replays_total", reason="check_failed") == 1
        assert edge.count("edge_replays_total") == 1
        assert edge.count("edge_stage_duration_seconds_count", stage="head") == 4
    again = next(at for at, header in enumerate(links.sent) if header.sample_mod4 == 1)
    assert Kind.RAW not in {header.kind for header in links.sent[: hit + 1]}
    assert again > hit
    assert [(header.sample_mod4, header.timestep_mod8) for header in links.sent[again:]] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
    ]
    assert links.kinds(again) == {Kind.RAW}


async def test_a_sample_is_sent_again_once_and_fails_when_damaged_again(
    clouds: Clouds, edges: Edges, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = CorruptingLinks(monkeypatch, lambda number, _: number in (0, 1))
    async with clouds() as cloud, edges(cloud=cloud.address) as edge:
        with pytest.raises(SampleError) as raised:
            await edge.loop.submit(png(0))
        assert raised.value.code is SampleCode.CHECK_FAILED
        assert [header.sample_mod4 for header in links.sent] == [0, 1]
        assert edge.count("edge_replays_total") == 1
        # The stream lives: both failures were of one sample, the next one is answered.
        assert (await edge.loop.submit(png(1))).timesteps_used == 4
        assert edge.count("edge_retries_total") == 0


async def test_after_two_failed_checks_the_stream_goes_on_raw_and_the_next_stream_does_not(
    clouds: Clouds, edges: Edges, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = CorruptingLinks(monkeypatch, lambda _, header: header.first and not raw(header))

    def raw(header: Header) -> bool:
        return header.kind is Kind.RAW

    async with edges(placement="edge_only") as edge:
        expected = essence(await classify_all(edge))
    async with clouds() as cloud:
        relay.target = cloud.address
        async with edges(cloud=relay.address) as edge:
            answers = [await edge.loop.submit(png(seed)) for seed in (0, 1)]
            assert edge.count("edge_check_failures_total") == 2
            assert [header.kind is Kind.RAW for header in links.sent] == [
                *[False, True, True, True, True] * 2
            ]
            before = len(links.sent)
            answers += [await edge.loop.submit(png(seed)) for seed in (2, 3)]
            # Nothing was damaged, because nothing was coded: both samples went once.
            assert [header.sample_mod4 for header in links.sent[before:]] == [0] * 4 + [1] * 4
            assert links.kinds(before) == {Kind.RAW}
            assert edge.count("edge_check_failures_total") == 2

            relay.cut()
            await until(lambda: edge.count("edge_retries_total", reason="link_lost") == 1)
            await until(lambda: edge.loop.connected)
            before = len(links.sent)
            answers += [await edge.loop.submit(png(seed)) for seed in (4, 5)]
            assert links.sent[before].kind is not Kind.RAW
            assert edge.count("edge_check_failures_total") == 4
    assert essence(answers) == expected


async def test_a_cloud_that_stops_hands_over_to_another(
    clouds: Clouds, edges: Edges, relay: Relay
) -> None:
    async with clouds() as first, clouds() as second:
        relay.target = first.address
        async with edges(cloud=relay.address) as edge:
            recording, future = await begin(edge)
            waiting = edge.loop.submit(png(1))
            relay.target = second.address
            drained = asyncio.create_task(first.drain())
            await until(lambda: edge.count("edge_retries_total", reason="draining") == 1)
            recording.end()
            assert (await future).timesteps_used == 4
            assert (await waiting).timesteps_used == 4
            await drained
            assert edge.count("edge_replays_total", reason="link_lost") == 0
            assert edge.loop.answered == 2


async def test_samples_wait_while_the_cloud_has_no_slot(clouds: Clouds, edges: Edges) -> None:
    async with (
        clouds(slots=1) as cloud,
        edges(cloud=cloud.address) as holder,
        edges(cloud=cloud.address) as edge,
    ):
        recording, held = await begin(holder)
        future = edge.loop.submit(png(1))
        await until(lambda: edge.count("edge_replays_total", reason="no_slot") >= 1)
        recording.end()
        assert (await held).timesteps_used == (await future).timesteps_used == 4


async def test_past_the_deadline_a_sample_is_finished_here_if_allowed(
    clouds: Clouds, edges: Edges, relay: Relay, alpha: tuple[float, ...]
) -> None:
    async with edges(placement="edge_only", alpha=alpha) as edge:
        expected = essence([await edge.loop.submit(png(0))])
    async with clouds() as cloud:
        relay.target = cloud.address
        async with edges(
            cloud=relay.address, fallback="local", deadline_seconds=0.5, alpha=alpha
        ) as edge:
            await until(lambda: edge.loop.connected)
            relay.hold()
            answer = await edge.loop.submit(png(0))
            assert answer.placement == "fallback"
            assert essence([answer]) == expected
            assert edge.count("edge_fallbacks_total", reason="deadline") == 1
            assert edge.count("edge_inferences_total", placement="fallback") == 1
            assert edge.count("modelled_energy_joules_total", component="tail") > 0


async def test_past_the_deadline_a_sample_fails_if_no_fallback_is_allowed(
    clouds: Clouds, edges: Edges, relay: Relay
) -> None:
    async with clouds() as cloud:
        relay.target = cloud.address
        async with edges(cloud=relay.address, deadline_seconds=0.5) as edge:
            await until(lambda: edge.loop.connected)
            relay.hold()
            with pytest.raises(SampleError) as raised:
                await edge.loop.submit(png(0))
            assert raised.value.code is SampleCode.DEADLINE
            assert edge.count("edge_inferences_total", exit_reason="deadline") == 1


async def test_the_callers_own_deadline_allows_no_fallback(
    clouds: Clouds, edges: Edges, relay: Relay
) -> None:
    async with clouds() as cloud:
        relay.target = cloud.address
        async with edges(cloud=relay.address, fallback="local") as edge:
            await until(lambda: edge.loop.connected)
            relay.hold()
            with pytest.raises(SampleError, match="expected an answer within"):
                await edge.loop.submit(png(0), deadline_seconds=0.1)


async def test_without_a_cloud_samples_are_finished_here_at_once_if_allowed(edges: Edges) -> None:
    async with edges(cloud="127.0.0.1:1", fallback="local") as edge:
        answers = await classify_all(edge)
        assert {answer.placement for answer in answers} == {"fallback"}
        assert edge.count("edge_fallbacks_total", reason="unavailable") == len(SEEDS)


async def test_without_a_cloud_a_sample_ends_with_why_it_cannot_be_reached(edges: Edges) -> None:
    async with edges(cloud="127.0.0.1:1", deadline_seconds=0.5) as edge:
        with pytest.raises(LinkLostError, match="UNAVAILABLE"):
            await edge.loop.submit(png(0))


async def test_a_refusal_reaches_the_caller_with_the_clouds_reason(
    clouds: Clouds, edges: Edges
) -> None:
    async with (
        clouds(max_window=2) as cloud,
        edges(cloud=cloud.address, window=3) as edge,
    ):
        with pytest.raises(RefusedError, match="expected a window of 1 to 2, got 3"):
            await edge.loop.submit(png(0))


async def test_a_full_cloud_is_asked_again(clouds: Clouds, edges: Edges) -> None:
    async with clouds(max_streams=1) as cloud, contextlib.AsyncExitStack() as later:
        async with edges(cloud=cloud.address) as first:
            await until(lambda: first.loop.connected)
            edge = await later.enter_async_context(edges(cloud=cloud.address))
            future = edge.loop.submit(png(0))
            await until(lambda: edge.count("edge_retries_total", reason="connect") >= 1)
        assert (await future).timesteps_used == 4


async def test_a_caller_that_goes_away_ends_its_sample_and_the_next_begins(
    clouds: Clouds, edges: Edges
) -> None:
    async with clouds(slots=1) as cloud, edges(cloud=cloud.address) as edge:
        _, future = await begin(edge)
        waiting = edge.loop.submit(png(1))
        future.cancel()
        assert (await waiting).timesteps_used == 4
        assert edge.count("edge_inferences_total", exit_reason="cancelled") == 1


async def test_a_full_queue_refuses_and_the_samples_in_it_are_answered(edges: Edges) -> None:
    async with edges(placement="edge_only", queue_limit=1) as edge:
        recording = Recording(edge.loop.spec)
        held = edge.loop.submit(recording)
        await until(lambda: edge.loop.queue_depth == 0)
        waiting = edge.loop.submit(png(0))
        with pytest.raises(QueueFullError, match="at most 1"):
            edge.loop.submit(png(1))
        recording.push(picture(1))
        recording.end()
        assert (await held).timesteps_used == (await waiting).timesteps_used == 4
        assert edge.count("edge_samples_dropped_total", reason="queue_full") == 1


async def test_a_recording_that_stalls_ends_at_the_deadline_even_with_a_fallback(
    edges: Edges,
) -> None:
    async with edges(cloud="127.0.0.1:1", fallback="local", deadline_seconds=0.3) as edge:
        with pytest.raises(SampleError, match="timesteps are missing"):
            await edge.loop.submit(Recording(edge.loop.spec))
        assert (await edge.loop.submit(png(0))).placement == "fallback"


async def test_closing_answers_the_sample_in_hand_and_drops_the_rest(
    clouds: Clouds, edges: Edges
) -> None:
    async with clouds() as cloud, edges(cloud=cloud.address) as edge:
        recording, held = await begin(edge)
        waiting = edge.loop.submit(png(1))
        closing = asyncio.create_task(edge.loop.close())
        with pytest.raises(ClosingError):
            await waiting
        with pytest.raises(ClosingError):
            edge.loop.submit(png(2))
        assert not closing.done()
        recording.end()
        assert (await held).timesteps_used == 4
        await closing


async def test_a_local_fallback_needs_a_tail(
    edges: Edges, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "has", lambda self, part: part != "tail")
    with pytest.raises(BundleError, match="expected a tail"):
        async with edges(cloud="127.0.0.1:1", fallback="local"):
            pass
