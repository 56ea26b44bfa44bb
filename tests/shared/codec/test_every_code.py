"""Every codec on the code shapes of both backbones, within its bytes and its memory."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from shared.codec.bitpack import packed_bytes
from shared.codec.codecs import NAMES, codecs_with
from shared.codec.packet import Checksum, Header, Kind, SampleDecoder, SampleEncoder, Shape
from shared.errors import CodecError
from shared.model.spec import SPLIT_POINTS, NetworkSpec
from tests.shared.codec.test_context_codec import random_frames, random_tables

IMAGES, EVENTS = (3, 32, 32), (2, 34, 34)


def codes() -> Iterator[tuple[str, Shape, int]]:
    """Yield the code of every split of both backbones: its name, its shape, T."""
    for backbone, splits in SPLIT_POINTS.items():
        for split in splits:
            for kind, inputs, timesteps in (("static", IMAGES, 4), ("events", EVENTS, 9)):
                described = {
                    "backbone": backbone,
                    "width": 0.125,
                    "input_shape": inputs,
                    "input_kind": kind,
                    "classes": 10,
                    "timesteps": timesteps,
                    "bottleneck": {"split": split, "channels": 3, "stride": 1},
                }
                shape = msgspec.convert(described, NetworkSpec).code_shape
                yield f"{backbone} {split} {kind}", shape, timesteps


CODES = list(codes())


@pytest.mark.parametrize(("name", "shape", "timesteps"), CODES, ids=[name for name, *_ in CODES])
def test_every_codec_carries_the_codes_of_every_split(
    name: str, shape: Shape, timesteps: int
) -> None:
    codecs = codecs_with(random_tables(shape, min(timesteps, 8)))
    assert tuple(codecs) == NAMES
    for rate in (0.02, 0.3, 0.97):
        frames = random_frames(shape, timesteps, rate).reshape(timesteps, *shape)
        for codec in codecs.values():
            encoder = SampleEncoder(codec, shape, timesteps, Checksum.CRC16)
            decoder = SampleDecoder(codec, shape, timesteps, Checksum.CRC16)
            # A timestep, then all others in one code word where that is shorter.
            packets = [*encoder.encode(frames[:1]), *encoder.encode(frames[1:])]
            decoded = [decoder.decode(packet.to_bytes(0))[1] for packet in packets]
            np.testing.assert_array_equal(np.concatenate(decoded), frames)
            for packet in packets:
                most = packet.steps * packed_bytes(frames[0].size)
                assert packet.payload_bytes <= most
                assert len(packet.to_bytes(0)) <= (2 if packet.steps > 1 else 1) + most + 2


@pytest.mark.parametrize("name", NAMES)
def test_no_payload_makes_a_decoder_take_more_memory_than_its_frames_explain(name: str) -> None:
    shape = (4, 64, 64)
    bits = 4 * 64 * 64
    codec = codecs_with(random_tables(shape, 1))[name]
    noise = np.random.default_rng(0).bytes(4 * bits)
    payloads = [b"", noise[:40], noise[: bits // 8], noise, bytes(bits // 8), b"\xff" * bits]
    for steps in (1, 3):
        for payload in payloads:
            tracemalloc.start()
            with contextlib.suppress(CodecError):
                codec.decode(payload, steps, bits, [])
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            # A neuron is a byte a timestep, and ctx-max sums five numbers of two bytes for it.
            assert peak_bytes < 24 * bits * steps


def test_a_packet_that_claims_more_timesteps_than_are_left_is_refused_before_decoding() -> None:
    shape = (8, 64, 64)
    codec = codecs_with(random_tables(shape, 1))["ctx"]
    decoder = SampleDecoder(codec, shape, 4, Checksum.NONE)
    packet = Header(0, True, 0, Kind.STEPS, 255).to_bytes()
    tracemalloc.start()
    with pytest.raises(CodecError, match="at most 4 timesteps, got 255"):
        decoder.decode(packet)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000
