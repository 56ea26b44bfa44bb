"""Samples through a real server: what an edge gets back when all goes well."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from shared.codec.codecs import NAMES
from shared.codec.packet import Checksum, Kind, parse_header
from shared.engine import torch_engine
from shared.engine.base import Engine
from shared.exit_rule import Confidence, Decision
from shared.messages import Opened, ReplyMode, Settings, Verdict
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import (
    ALWAYS,
    NEVER,
    Client,
    Start,
    expected_decisions,
    random_codes,
    scrape,
)
from training.calibrate import head_codes
from training.untrained import synthetic_frames

TIMESTEPS = 4


def settings(**fields: Any) -> Settings:
    return Settings(**({"alpha": NEVER} | fields))


def assert_agree(verdicts: list[Verdict], decisions: list[Decision]) -> None:
    """Labels are equal, confidences equal to the engine's rounding."""
    assert len(verdicts) == len(decisions)
    for verdict, decision in zip(verdicts, decisions, strict=True):
        assert verdict.label == decision.label
        assert verdict.confidence == pytest.approx(decision.confidence, abs=1e-5)


def decisions_of(tail: Engine, bundle: Bundle, seed: int) -> list[Decision]:
    return expected_decisions(tail, bundle, list(random_codes(bundle, seed)))


async def test_the_torch_engine_answers_as_itself(
    start: Start, connect: Any, tiny_bundle: Bundle
) -> None:
    tail = torch_engine.load_engine(tiny_bundle, "tail")
    client = connect(await start(engine="torch"))
    async with client.opened() as edge:
        for number in range(3):
            verdicts = await edge.run(number, random_codes(tiny_bundle, number))
            assert_agree(verdicts, decisions_of(tail, tiny_bundle, number))


async def test_opened_tells_what_was_agreed(client: Client) -> None:
    async with client.stream(samples_in_flight=3) as edge:
        message = await edge.receive()
    assert message.opened == Opened(
        max_window=16,
        max_steps_per_packet=16,
        samples_in_flight=3,
        codecs=("ctx", "ctx-max", "raw", "zstd"),
        packet_idle_seconds=10.0,
        model=f"{client.bundle.manifest.name} {client.bundle.manifest.version}",
    )


async def test_the_smaller_number_of_samples_in_flight_is_agreed(
    start: Start, connect: Any
) -> None:
    client = connect(await start(max_samples_in_flight=2))
    async with client.stream(samples_in_flight=3) as edge:
        message = await edge.receive()
    assert message.opened is not None
    assert message.opened.samples_in_flight == 2


@pytest.mark.parametrize("checksum", list(Checksum))
async def test_step_mode_answers_every_timestep(
    client: Client, tail: Engine, checksum: Checksum
) -> None:
    async with client.opened(checksum=checksum) as edge:
        for number in range(6):
            verdicts = await edge.run(number, random_codes(client.bundle, number))
            assert [verdict.sample for verdict in verdicts] == [number] * TIMESTEPS
            assert [verdict.timestep for verdict in verdicts] == list(range(TIMESTEPS))
            assert all(verdict.service_seconds > 0 for verdict in verdicts)
            assert_agree(verdicts, decisions_of(tail, client.bundle, number))
    await client.until_all_slots_are_back()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2])
async def test_every_codec_carries_the_head_s_codes(
    client: Client, tail: Engine, name: str, steps: int
) -> None:
    bundle = client.bundle
    codes = head_codes(bundle, synthetic_frames(bundle.spec, 3, seed=5))
    chosen, kinds = settings(codec=name, window=4, steps_per_packet=2), set()
    async with client.opened(settings=chosen) as edge:
        for number, frames in enumerate(codes):
            packets = edge.packets(number, frames, steps=steps, codec=name)
            kinds |= {parse_header(packet).kind for packet in packets}
            await edge.send(*packets)
            verdicts = await edge.answers(len(packets))
            decisions = expected_decisions(tail, bundle, list(frames))
            # A packet of several timesteps is answered for its last.
            answered = [decisions[verdict.timestep] for verdict in verdicts]
            assert_agree(verdicts, answered)
            assert verdicts[-1].timestep == TIMESTEPS - 1
    if name.startswith("ctx"):
        assert kinds & {Kind.CODED, Kind.STEPS}


async def test_a_server_offers_the_configured_codecs_that_the_bundle_has(
    start: Start, connect: Any
) -> None:
    client = connect(await start(codecs=("zstd", "ctx")))
    async with client.stream() as edge:
        code, details = await edge.status()  # the default of Settings is raw
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "expected a codec of zstd, ctx, got 'raw'"


async def test_a_sample_ends_at_the_first_timestep_above_its_alpha(
    client: Client, tail: Engine
) -> None:
    decisions = decisions_of(tail, client.bundle, 0)
    rising = decisions[1].confidence
    alpha = (1.0, rising - 1e-3, 1.0)
    async with client.opened(settings=settings(alpha=alpha)) as edge:
        packets = edge.packets(0, random_codes(client.bundle, 0))
        for packet in packets[:2]:
            await edge.send(packet)
            verdict = await edge.answer()
        assert verdict.timestep == 1
        assert await client.slots_in_use() == 0
        # What comes for the ended sample is no error, and the next one begins.
        await edge.send(packets[2], edge.packets(1, random_codes(client.bundle, 1))[0])
        assert (await edge.answer()).sample == 1


async def test_exit_mode_answers_once(client: Client, tail: Engine) -> None:
    chosen = settings(reply_mode=ReplyMode.EXIT)
    async with client.opened(settings=chosen) as edge:
        for number in range(3):
            await edge.send(*edge.packets(number, random_codes(client.bundle, number)))
            verdict = await edge.answer()
            assert (verdict.sample, verdict.timestep) == (number, TIMESTEPS - 1)
            assert_agree([verdict], decisions_of(tail, client.bundle, number)[-1:])
    assert [len(message.verdicts) for message in edge.messages if message.verdicts] == [1, 1, 1]


async def test_exit_mode_with_early_exit_wastes_what_was_sent_after_it(
    start: Start, connect: Any
) -> None:
    server = await start(metrics="127.0.0.1:0")
    client = connect(server)
    chosen = settings(alpha=ALWAYS, reply_mode=ReplyMode.EXIT)
    async with client.opened(settings=chosen) as edge:
        await edge.send(*edge.packets(0, random_codes(client.bundle, 0)))
        assert (await edge.answer()).timestep == 0
        await client.until_all_slots_are_back()
        figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_timesteps_total"] == 1
    assert figures["neucodex_cloud_wasted_timesteps_total"] == TIMESTEPS - 1
    code_bytes = client.bundle.spec.code_bits // 8
    assert figures["neucodex_cloud_wasted_bytes_total"] == (TIMESTEPS - 1) * code_bytes


@pytest.mark.parametrize("window", [2, 3, 4])
async def test_a_window_lets_timesteps_go_ahead(client: Client, tail: Engine, window: int) -> None:
    async with client.opened(settings=settings(window=window)) as edge:
        packets = edge.packets(0, random_codes(client.bundle, 0))
        await edge.send(*packets[:window])
        verdicts = []
        for packet in packets[window:]:
            verdicts.append(await edge.answer())
            await edge.send(packet)
        verdicts += await edge.answers(window)
    assert_agree(verdicts, decisions_of(tail, client.bundle, 0))


@pytest.mark.parametrize(("steps", "answered"), [(2, [1, 3]), (3, [2, 3]), (4, [3])])
async def test_a_packet_of_several_timesteps_gets_one_verdict(
    client: Client, tail: Engine, steps: int, answered: list[int]
) -> None:
    codes = np.zeros_like(random_codes(client.bundle, 0))
    codes[:, 0, :3] = 1  # Compressible, so that the encoder does not fall back to raw packets.
    chosen = settings(window=TIMESTEPS, steps_per_packet=steps, codec="zstd")
    async with client.opened(settings=chosen) as edge:
        packets = edge.packets(0, codes, steps=steps, codec="zstd")
        assert len(packets) == len(answered)
        await edge.send(*packets)
        verdicts = await edge.answers(len(answered))
    assert [verdict.timestep for verdict in verdicts] == answered
    decisions = expected_decisions(tail, client.bundle, list(codes))
    assert_agree(verdicts, [decisions[timestep] for timestep in answered])


async def test_a_packet_of_several_timesteps_is_answered_at_its_exit(client: Client) -> None:
    codes = np.zeros_like(random_codes(client.bundle, 0))
    chosen = settings(alpha=(1.0, 0.0, 1.0), window=4, steps_per_packet=4, codec="zstd")
    async with client.opened(settings=chosen) as edge:
        await edge.send(*edge.packets(0, codes, steps=4, codec="zstd"))
        assert (await edge.answer()).timestep == 1
    await client.until_all_slots_are_back()


async def test_samples_of_one_stream_interleave(client: Client, tail: Engine) -> None:
    async with client.opened(samples_in_flight=3) as edge:
        packets = [edge.packets(number, random_codes(client.bundle, number)) for number in range(3)]
        by_sample: dict[int, list[Verdict]] = {0: [], 1: [], 2: []}
        for timestep in range(TIMESTEPS):
            await edge.send(*(sample[timestep] for sample in packets))
            for verdict in await edge.answers(3):
                by_sample[verdict.sample].append(verdict)
    for number, verdicts in by_sample.items():
        assert [verdict.timestep for verdict in verdicts] == list(range(TIMESTEPS))
        assert_agree(verdicts, decisions_of(tail, client.bundle, number))


async def test_interleaved_streams_give_what_each_gives_alone(client: Client, tail: Engine) -> None:
    async def run(first_seed: int) -> list[list[Verdict]]:
        async with client.opened() as edge:
            return [
                await edge.run(number, random_codes(client.bundle, first_seed + number))
                for number in range(5)
            ]

    for first_seed, samples in zip(
        (0, 10, 20), await asyncio.gather(run(0), run(10), run(20)), strict=True
    ):
        for number, verdicts in enumerate(samples):
            assert_agree(verdicts, decisions_of(tail, client.bundle, first_seed + number))


async def test_settings_hold_for_the_samples_that_begin_after_them(client: Client) -> None:
    async with client.opened(samples_in_flight=2) as edge:
        first = edge.packets(0, random_codes(client.bundle, 0))
        second = edge.packets(1, random_codes(client.bundle, 1))
        await edge.send(first[0])
        assert (await edge.answer()).timestep == 0
        await edge.send(second[0], settings=settings(alpha=ALWAYS))
        assert (await edge.answer()).sample == 1
        for timestep in (1, 2, 3):
            await edge.send(first[timestep])
            assert (await edge.answer()).timestep == timestep


async def test_confidence_is_computed_as_asked_for(client: Client) -> None:
    confidences = set()
    for kind in Confidence:
        async with client.opened(settings=settings(confidence=kind)) as edge:
            await edge.send(edge.packets(0, random_codes(client.bundle, 0))[0])
            confidences.add((await edge.answer()).confidence)
    assert len(confidences) == len(Confidence)


async def test_logits_come_when_asked_for(client: Client) -> None:
    async with client.opened(want_logits=True) as edge:
        verdicts = await edge.run(0, random_codes(client.bundle, 0))
    for verdict in verdicts:
        assert len(verdict.logits) == 10
        assert int(np.argmax(verdict.logits)) == verdict.label


async def test_a_cancelled_sample_is_not_answered_and_the_next_begins(client: Client) -> None:
    async with client.opened() as edge:
        await edge.send(edge.packets(0, random_codes(client.bundle, 0))[0])
        await edge.answer()
        await edge.send(cancels=(0, 0))
        await edge.send(edge.packets(1, random_codes(client.bundle, 1))[0], cancels=(0,))
        assert (await edge.answer()).sample == 1
        assert await client.slots_in_use() == 1
    await client.until_all_slots_are_back()


async def test_a_half_closed_stream_ends_in_good_order(client: Client) -> None:
    async with client.opened() as edge:
        await edge.send(edge.packets(0, random_codes(client.bundle, 0))[0])
        await edge.answer()
        await edge.call.done_writing()
        code, _ = await edge.status()
    assert code.name == "OK"
    await client.until_all_slots_are_back()


async def test_metrics_tell_what_happened(start: Start, connect: Any) -> None:
    server = await start(metrics="127.0.0.1:0")
    client = connect(server)
    async with client.opened() as edge:
        packets = edge.packets(0, random_codes(client.bundle, 0))
        await edge.run(0, random_codes(client.bundle, 0))
        figures = await asyncio.to_thread(scrape, server)
    assert figures["neucodex_cloud_samples_total"] == 1
    assert figures["neucodex_cloud_timesteps_total"] == TIMESTEPS
    assert figures["neucodex_cloud_service_duration_seconds_count"] == TIMESTEPS
    payload = sum(len(packet) - 3 for packet in packets)
    assert figures["neucodex_cloud_payload_bytes_total"] == payload
    assert figures["neucodex_cloud_streams"] == 1
    assert figures["neucodex_cloud_slots_in_use"] == 0
    assert figures["neucodex_cloud_queue_depth"] == 0
    assert figures["neucodex_cloud_message_bytes_total"] > payload
    assert figures["neucodex_cloud_wire_bytes_total"] > 0
    assert figures["neucodex_modelled_energy_joules_total"] > 0


async def test_describe_tells_models_and_limits(client: Client) -> None:
    reply = await client.describe()
    (model,) = reply.models
    assert model.digest.hex() == client.bundle.digest
    assert tuple(model.code_shape) == client.bundle.spec.code_shape
    assert tuple(model.input_shape) == (3, 32, 32)
    assert (model.timesteps, model.slots, model.slots_in_use, model.whole) == (4, 128, 0, True)
    assert (reply.max_streams, reply.max_window, reply.max_samples_in_flight) == (64, 16, 3)
    assert list(reply.protocol_versions) == [1]
