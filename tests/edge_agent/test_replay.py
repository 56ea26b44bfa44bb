"""A link cut at every packet: what is sent again is the same to the byte, and so is the answer.

The tail is a small integer network, exact at any batch composition, so that answers can be held
against those of an unbroken run without tolerance.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.integer_tail import IntegerTail
from edge_agent.answers import Answer
from edge_agent.grpc_link import GrpcLink
from shared.codec.packet import parse_header
from shared.messages import EdgeMessage
from tests.edge_agent.conftest import Clouds, Edges, Metered, Relay, png, until

SEEDS = range(4)
SAMPLE_BITS = 0b0011_0000
"""Of the header: a sample sent again has another number."""


@pytest.fixture(autouse=True)
def exact_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cloud_server.model_store.load_engine", lambda bundle, part, config: IntegerTail(bundle)
    )


class Recorder:
    """Keeps the packets of every stream, and cuts the link when one of them is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, relay: Relay) -> None:
        self.streams: dict[GrpcLink, list[bytes]] = {}
        self.cut_at = -1
        self._relay = relay
        self._send = GrpcLink.send
        monkeypatch.setattr(GrpcLink, "send", lambda link, message: self._pass_on(link, message))

    def _pass_on(self, link: GrpcLink, message: EdgeMessage) -> None:
        before = sum(map(len, self.streams.values()))
        self.streams.setdefault(link, []).extend(message.packets)
        self._send(link, message)
        if before <= self.cut_at < before + len(message.packets):
            # Some of what waits in sockets still arrives, some does not.
            asyncio.get_running_loop().call_later(0.001 * (self.cut_at % 3), self._relay.cut)

    def samples(self) -> list[list[bytes]]:
        """Return the packets of every sample of every stream, without its number."""
        found: list[list[bytes]] = []
        for packets in self.streams.values():
            under_way: dict[int, list[bytes]] = {}
            for packet in packets:
                header = parse_header(packet)
                if header.first:
                    under_way[header.sample_mod4] = []
                    found.append(under_way[header.sample_mod4])
                anonymous = bytes([packet[0] & ~SAMPLE_BITS]) + packet[1:]
                under_way[header.sample_mod4].append(anonymous)
        return found


def essence(answers: list[Answer]) -> list[tuple[int, int, float]]:
    return [(each.label, each.timesteps_used, each.confidence) for each in answers]


async def classify(edge: Metered) -> list[Answer]:
    return list(await asyncio.gather(*(edge.loop.submit(png(seed)) for seed in SEEDS)))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"window": 2, "samples_in_flight": 2},
        {"window": 4, "steps_per_packet": 2, "samples_in_flight": 3},
        {"reply_mode": "exit", "samples_in_flight": 2},
    ],
    ids=str,
)
async def test_a_link_cut_at_any_packet_changes_neither_packets_nor_answers(
    clouds: Clouds,
    edges: Edges,
    relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
) -> None:
    async with clouds() as cloud:
        relay.target = cloud.address
        recorder = Recorder(monkeypatch, relay)
        async with edges(cloud=relay.address, alpha=0.0) as edge:
            confidences = sorted(answer.confidence for answer in await classify(edge))
        recorder.streams.clear()
        # Half of the samples exit at once.
        alpha = ((confidences[1] + confidences[2]) / 2, 1.0, 1.0)
        chosen = {"cloud": relay.address, "alpha": alpha, **how}
        async with edges(**chosen) as edge:
            expected = essence(await classify(edge))
        unbroken = recorder.samples()
        assert len(unbroken) == len(SEEDS)
        assert sorted(used for _, used, _ in expected) == [1, 1, 4, 4]
        replays = 0
        for cut_at in range(sum(map(len, unbroken))):
            recorder.streams.clear()
            recorder.cut_at = cut_at
            async with edges(**chosen) as edge:
                assert essence(await classify(edge)) == expected, f"cut at packet {cut_at}"
                assert edge.loop.answered == len(SEEDS)
                assert edge.count("edge_replay_deviations_total") == 0
                replays += int(edge.count("edge_replays_total", reason="link_lost"))
                recorder.cut_at = -1
            for sent in recorder.samples():
                whole = next(sample for sample in unbroken if sample[0] == sent[0])
                assert is_as_far(sent, whole), f"cut at packet {cut_at}"
            await until(lambda: not cloud._servicer._handlers)
        assert replays > 0


def is_as_far(sent: list[bytes], whole: list[bytes]) -> bool:
    """Say whether two runs of a sample sent the same, as far as both of them went."""
    return all(one == other for one, other in zip(sent, whole, strict=False))
