"""Feed every decoder damaged packets for as long as you like.

Valid packets of random samples are mutated as AFL does (bits flipped, bytes set, cut, repeated,
spliced from elsewhere, or all random) and given to :class:`shared.codec.packet.SampleDecoder` with
every codec, in C and in Python. Each must end in frames of the agreed size or in a ``CodecError``,
at once, and the process must not grow. Anything else is counted as a failure, with its seed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import figure, tell
from shared.codec import native
from shared.codec.codecs import Codec, RawCodec, ZstdCodec
from shared.codec.context_codec import ContextCodec, MixingCodec
from shared.codec.context_model import ContextTables, MixingWeights, Shape, causal
from shared.codec.packet import Checksum, SampleDecoder, SampleEncoder
from shared.errors import CodecError

SHAPES: tuple[Shape, ...] = ((1, 1, 1), (1, 3, 3), (4, 8, 8), (3, 5, 7))
TIMESTEPS = 4
SLOWEST_SECONDS = 5.0
"""No input may take longer; the reference takes milliseconds."""
GROWTH_LIMIT_BYTES = 64 << 20
CHUNK = 5000
"""Inputs per seed and set of codecs."""
PYTHON_SHARE = 0.02
"""Share of the inputs that go to the Python reference, which is slow."""


class Setting(NamedTuple):
    """A stream's agreement, with valid packets to damage."""

    codec: Codec
    shape: Shape
    checksum: Checksum
    packets: list[bytes]


def tables(shape: Shape, generator: np.random.Generator) -> ContextTables:
    """Return random tables."""
    channels, height, width = shape
    limits = (3, 3, 6, 3)
    place_sets, sets, maps, side = (int(generator.integers(1, most)) for most in limits)
    side, every = 2 * side + 1, channels * maps

    def weights(*sizes: int) -> NDArray[np.int16]:
        return generator.integers(-1500, 1500, sizes).astype(np.int16)

    current = weights(sets, channels, side, side, every)
    current[:, ~causal(channels, side, maps)] = 0
    return ContextTables(
        shape,
        generator.integers(1, 65536, (2, channels, 256)).astype(np.uint16),
        MixingWeights(
            logits=weights(2, channels, 256),
            places=weights(place_sets, height, width, every),
            past=weights(sets, 2, channels, 3, 3, every),
            current=current,
            hidden=weights(channels, maps - 1),
            squash=generator.integers(1, 65536, 4096).astype(np.uint16),
        ),
    )


def stream_settings(seed: int, is_native: bool = True) -> list[Setting]:
    """Return every codec with a shape and a checksum mode of its own.

    Args:
        seed: of all that is random; the shapes take turns.
        is_native: use the C implementation where there is one.
    """
    generator, choose = np.random.default_rng(seed), random.Random(seed)
    found = []
    shape = SHAPES[seed % len(SHAPES)]
    fitted = tables(shape, generator)
    codecs: list[Codec] = [
        RawCodec(),
        ZstdCodec(),
        ContextCodec(fitted, native=is_native),
        MixingCodec(fitted, native=is_native),
    ]
    for codec in codecs:
        checksum = choose.choice(list(Checksum))
        encoder = SampleEncoder(codec, shape, TIMESTEPS, checksum)
        frames = (generator.random((TIMESTEPS, *shape)) < choose.random()).astype(np.uint8)
        cut = choose.randint(1, TIMESTEPS)
        encoded = encoder.encode(frames[:cut])
        if cut < TIMESTEPS:
            encoded += encoder.encode(frames[cut:])
        packets = [packet.to_bytes(0) for packet in encoded]
        found.append(Setting(codec, shape, checksum, packets))
    return found


def mutated(packet: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """Return a damaged packet; now and then an undamaged or an all-random one."""
    kind = choose.randrange(8)
    data = bytearray(packet)
    if kind == 0:
        return choose.randbytes(choose.randrange(80))
    for _ in range(choose.choice((1, 1, 2, 8))):
        if kind == 1 and data:
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        elif kind == 2 and data:
            data[choose.randrange(len(data))] = choose.choice((0, 1, 127, 128, 255))
        elif kind == 3:
            del data[choose.randrange(len(data) + 1) :]
        elif kind == 4:
            data += choose.randbytes(choose.randrange(1, 9))
        elif kind == 5:
            other = choose.choice(others)
            at = choose.randrange(len(data) + 1)
            data[at:] = other[choose.randrange(len(other) + 1) :]
        elif kind == 6 and data:
            at = choose.randrange(len(data))
            data[at:at] = data[at : at + choose.randrange(1, 9)]
    return bytes(data)


def check(setting: Setting, packets: Iterator[bytes]) -> int:
    """Give one sample's packets to a decoder until it refuses one; return how many it took."""
    decoder = SampleDecoder(setting.codec, setting.shape, TIMESTEPS, setting.checksum)
    taken = 0
    for packet in packets:
        taken += 1
        try:
            _, frames = decoder.decode(packet)
        except CodecError:
            break
        if frames.shape[1:] != setting.shape or frames.max() > 1:
            raise AssertionError(f"got frames of shape {frames.shape}, up to {frames.max()}")
    return taken


class Outcome(NamedTuple):
    """What came of one chunk."""

    inputs: int
    """Packets decoded or refused."""
    failures: tuple[str, ...]


def fuzz(job: tuple[int, int]) -> Outcome:
    """Run one chunk: ``(seed, inputs)``; its first failure ends it."""
    seed, inputs = job
    choose, done = random.Random(seed), 0
    known = stream_settings(seed, is_native=choose.random() >= PYTHON_SHARE)
    while done < inputs:
        setting = choose.choice(known)
        began = time.monotonic()
        damaged = (
            packet if choose.random() < 0.5 else mutated(packet, setting.packets, choose)
            for packet in [*setting.packets, *setting.packets]
        )
        try:
            done += check(setting, damaged)
        except Exception as error:
            return Outcome(done, (f"seed {seed}, codec {setting.codec.name}: {error!r}",))
        if time.monotonic() - began > SLOWEST_SECONDS:
            return Outcome(done, (f"seed {seed}, codec {setting.codec.name}: took too long",))
    return Outcome(done, ())


def resident_bytes() -> int:
    """Return the largest resident size of this process and its ended children so far."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(each).ru_maxrss for each in who)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000, help="packets to decode")
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write a report to this JSON file")
    arguments = parser.parse_args(argv)
    fuzz((arguments.seed, CHUNK))  # everything is loaded before memory is looked at
    before_bytes = resident_bytes()
    chunks = -(-arguments.inputs // CHUNK)
    jobs = [(arguments.seed + number, CHUNK) for number in range(chunks)]
    with multiprocessing.Pool(arguments.processes) as pool:
        outcomes = list(pool.imap_unordered(fuzz, jobs))
    inputs = sum(outcome.inputs for outcome in outcomes)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    for failure in failures:
        sys.stderr.write(f"{failure}\n")
    growth_bytes = resident_bytes() - before_bytes
    results = [
        figure("inputs", [inputs], "packets"),
        figure("failures", [len(failures)], "packets", "0"),
        figure("memory_growth", [growth_bytes], "bytes", f"at most {GROWTH_LIMIT_BYTES}"),
    ]
    settings = {"first_seed": arguments.seed, "codec_implementation": native.IMPLEMENTATION}
    tell(
        "fuzz",
        f"--inputs {arguments.inputs} --seed {arguments.seed}",
        settings,
        results,
        arguments.out,
    )
    return 1 if failures or growth_bytes > GROWTH_LIMIT_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
