from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from edge_agent.link import merge
from edge_agent.local_link import LocalLink, code_decoder
from edge_agent.local_network import LocalNetwork
from shared.codec.codecs import get_codec
from shared.codec.packet import Checksum, SampleEncoder
from shared.engine.onnx_runtime import load_engine
from shared.errors import SampleCode
from shared.messages import CloudMessage, EdgeMessage, Open, ReplyMode, Settings
from shared.metrics import EdgeMetrics, Part
from shared.model.bundle import Bundle
from shared.worker import Worker

SETTINGS = (Settings(alpha=(0.5,)), Settings(alpha=(0.7,)))
MESSAGES = st.one_of(
    st.sampled_from(SETTINGS).map(lambda value: EdgeMessage(settings=value)),
    st.binary(max_size=2).map(lambda value: EdgeMessage(packets=(value,))),
    st.integers(0, 9).map(lambda value: EdgeMessage(cancels=(value,))),
)


def effects(messages: list[EdgeMessage]) -> list[object]:
    """Return what the cloud would do, in order; settings are what a packet finds in force."""
    settings, done = None, list[object]()
    for message in messages:
        settings = message.settings or settings
        done += [(settings, packet) for packet in message.packets]
        done += message.cancels
    return [*done, settings]


@given(st.lists(MESSAGES, max_size=12))
def test_merged_messages_do_what_the_single_ones_did(messages: list[EdgeMessage]) -> None:
    sent: list[EdgeMessage] = []
    for message in messages:
        merged = merge(sent[-1], message) if sent else None
        sent[-1:] = [merged] if merged else [*sent[-1:], message]
    assert effects(sent) == effects(messages)


def test_packets_of_several_timesteps_and_samples_go_together() -> None:
    merged = merge(EdgeMessage(packets=(b"a",)), EdgeMessage(packets=(b"b",), cancels=(3,)))
    assert merged == EdgeMessage(packets=(b"a", b"b"), cancels=(3,))


class Local:
    """A local link and an encoder for it."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self.settings = settings
        metrics = EdgeMetrics(CollectorRegistry(), model="tiny")
        load = partial(load_engine, bundle, "tail")
        network = LocalNetwork(Part.TAIL, load, bundle.calibration(), metrics)
        self.link = LocalLink(network, bundle, code_decoder, Worker("tail"))
        self.replies: AsyncIterator[CloudMessage] = self.link.messages()

    async def open(self) -> None:
        digest = bytes.fromhex(self.bundle.digest)
        await self.link.open(Open(model_digest=digest, settings=self.settings))

    def packets(self, number: int, *, steps: int = 1) -> list[bytes]:
        spec = self.bundle.spec
        rng = np.random.default_rng(number)
        codes = rng.integers(0, 2, (spec.timesteps, *spec.code_shape), dtype=np.uint8)
        encoder = SampleEncoder(get_codec("raw"), spec.code_shape, spec.timesteps, Checksum.CRC16)
        chunks = [codes[start : start + steps] for start in range(0, len(codes), steps)]
        return [each.to_bytes(number) for chunk in chunks for each in encoder.encode(chunk)]

    def send(self, *packets: bytes, cancels: tuple[int, ...] = ()) -> None:
        self.link.send(EdgeMessage(packets=packets, cancels=cancels))


@pytest.fixture
async def local(tiny_bundle: Bundle) -> Local:
    local = Local(tiny_bundle, Settings(alpha=(1.0, 1.0, 1.0)))
    await local.open()
    return local


async def test_a_local_link_answers_every_packet_up_to_the_last(local: Local) -> None:
    local.send(*local.packets(0))
    verdicts = [(await anext(local.replies)).verdicts[0] for _ in range(4)]
    assert [verdict.timestep for verdict in verdicts] == [0, 1, 2, 3]
    assert all(verdict.service_seconds > 0 for verdict in verdicts)


async def test_a_local_link_keeps_samples_apart_and_drops_late_packets(local: Local) -> None:
    first, second = local.packets(0), local.packets(1)
    local.send(*first, first[-1], second[0], cancels=(1,))
    local.send(second[1], *local.packets(2)[:1])
    verdicts = [(await anext(local.replies)).verdicts[0] for _ in range(6)]
    assert [(each.sample, each.timestep) for each in verdicts[-2:]] == [(1, 0), (2, 0)]


async def test_in_exit_mode_a_local_link_answers_once(tiny_bundle: Bundle) -> None:
    settings = Settings(alpha=(1.0, 0.0, 1.0), reply_mode=ReplyMode.EXIT)
    local = Local(tiny_bundle, settings)
    await local.open()
    local.send(*local.packets(0))
    local.send(*local.packets(1))
    verdicts = [(await anext(local.replies)).verdicts[0] for _ in range(2)]
    assert [(each.sample, each.timestep) for each in verdicts] == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda packet: packet[:-3], SampleCode.BAD_PACKET),
        (lambda packet: packet[:1] + b"\xff" * 32 + packet[-2:], SampleCode.CHECK_FAILED),
    ],
)
async def test_a_damaged_packet_ends_its_sample_alone(
    local: Local, damage: object, code: SampleCode
) -> None:
    assert callable(damage)
    packet = local.packets(0)[0]
    assert len(packet) == 1 + 32 + 2
    local.send(damage(packet), *local.packets(1)[:1])
    failed, answered = await anext(local.replies), await anext(local.replies)
    assert failed.failures[0].code is code
    assert answered.verdicts[0].sample == 1


async def test_closing_a_local_link_ends_its_messages(local: Local) -> None:
    await local.link.close()
    assert [message async for message in local.replies] == []
