"""Feed the server's streams sequences of valid and broken messages for as long as you like.

Everything that serves a stream runs, but for gRPC itself: messages come as serialised protobuf and
go through the servicer, the protocol machine, decoders, scheduler and slots. Broken are bits of
messages and of packets, the order, numbers, settings and sizes. Each stream must end in good order
or with a status that says what was wrong, say at most one last word on every sample, and leave no
slot behind; clean streams beside them must be answered exactly. Anything else is a failure, told
with its seed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from benchmarks.fuzz import GROWTH_LIMIT_BYTES, mutated, resident_bytes
from benchmarks.integer_tail import IntegerTail
from benchmarks.report import DEMO_BUNDLE, figure, tell
from cloud_server.config import CloudConfig
from cloud_server.model_store import ModelStore
from cloud_server.servicer import CoInference
from protos import co_inference_pb2 as pb
from shared import wire
from shared.codec.codecs import get_codec
from shared.codec.packet import Checksum, SampleEncoder
from shared.engine.base import zero_state
from shared.exit_rule import Confidence, Decision, added, decide
from shared.messages import EdgeMessage, Open, ReplyMode, Settings
from shared.metrics import CloudMetrics
from shared.model.bundle import Bundle

ALLOWED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""How a stream may end, whatever came on it."""
STREAMS_AT_ONCE = 8
SLOTS = 16
"""Fewer than the streams could use, so that some samples find none."""
STREAM_SECONDS = 20.0
"""A stream that takes longer hangs."""
MOST_MESSAGES = 60
CLEAN_SHARE = 0.1


class Ended(Exception):  # noqa: N818  not an error: how gRPC leaves a handler
    """Leaves the handler, as gRPC's own exception does."""


class Context:
    """The server's end of a stream without gRPC.

    Args:
        choose: now and then lets others run before a message.
    """

    def __init__(self, choose: random.Random) -> None:
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.replies: asyncio.Queue[pb.CloudMessage] = asyncio.Queue()
        self.read_messages = 0
        self.code = grpc.StatusCode.OK
        self._choose = choose

    async def read(self) -> Any:
        """Return the next message, parsed as gRPC parses it."""
        if self._choose.random() < 0.5:
            await asyncio.sleep(0)
        data = await self.inbox.get()
        if data is None:
            return grpc.aio.EOF
        self.read_messages += 1
        return pb.EdgeMessage.FromString(data)

    async def write(self, message: pb.CloudMessage) -> None:
        """Take a message of the server's."""
        self.replies.put_nowait(message)
        if self._choose.random() < 0.2:
            await asyncio.sleep(0)

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        """End the stream."""
        self.code = code
        raise Ended(details)

    def peer(self) -> str:
        """Return who it is."""
        return "fuzz"

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Return what the connection showed: no certificate."""
        return {}


@dataclass
class Outcome:
    """What came of a run."""

    messages: int = 0
    """That the server read."""
    streams: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    clean_samples: int = 0
    failures: list[str] = field(default_factory=list)


class Writer:
    """Makes the messages of one stream.

    Args:
        bundle: the model.
        choose: what to do next.
    """

    def __init__(self, bundle: Bundle, choose: random.Random) -> None:
        self._bundle = bundle
        self._choose = choose
        self._number = 0
        self._packets: dict[int, list[bytes]] = {}
        self._sent: list[bytes] = [b"\x48"]
        self._settings = self.settings()
        self._checksum = choose.choice(list(Checksum))

    def settings(self) -> Settings:
        """Return settings that the server takes."""
        choose, last = self._choose, self._bundle.spec.timesteps - 1
        alpha = tuple(choose.choice((0.0, 0.3, 0.6, 1.0)) for _ in range(last))
        mode = choose.choice(list(ReplyMode))
        window = choose.randint(1, 16)
        return Settings(
            alpha=alpha,
            confidence=choose.choice(list(Confidence)),
            reply_mode=mode,
            window=window,
            steps_per_packet=choose.randint(1, min(window, 16)),
            codec=choose.choice(("raw", "zstd", "ctx")),
        )

    def open(self) -> bytes:
        """Return the first message, mostly a good one."""
        request = Open(
            model_digest=bytes.fromhex(self._bundle.digest),
            settings=self._settings,
            checksum=self._checksum,
            samples_in_flight=self._choose.randint(1, 3),
            want_logits=self._choose.random() < 0.2,
        )
        return self._maybe_broken(_bytes(EdgeMessage(open=request)), share=0.1)

    def messages(self) -> Iterator[bytes]:
        """Yield the messages after it."""
        for _ in range(self._choose.randrange(MOST_MESSAGES)):
            yield self._maybe_broken(_bytes(self._message()), share=0.03)

    def _maybe_broken(self, data: bytes, share: float) -> bytes:
        if self._choose.random() >= share:
            return data
        return mutated(data, [data, *self._sent[-3:]], self._choose)

    def _message(self) -> EdgeMessage:
        choose = self._choose
        match choose.randrange(40):
            case 0:
                return EdgeMessage(cancels=(choose.randrange(self._number + 2),))
            case 1 | 2 if self._number:
                return EdgeMessage(cancels=(choose.randrange(self._number),))
            case 3:
                self._settings = self.settings()
                return EdgeMessage(settings=self._settings)
            case 4:
                late = choose.choice(self._sent)
                return EdgeMessage(packets=(late,))
            case 5:
                damaged = mutated(choose.choice(self._sent), self._sent[-8:], choose)
                return EdgeMessage(packets=(damaged,))
            case 6:
                return EdgeMessage()
            case _:
                return EdgeMessage(packets=tuple(self._next_packets()))

    def _next_packets(self) -> Iterator[bytes]:
        """Yield packets of a sample under way, or of a new one."""
        choose = self._choose
        live = [number for number, left in self._packets.items() if left]
        if not live or (len(live) < 3 and choose.random() < 0.2):
            self._packets[self._number] = self._encoded(self._number)
            live = [self._number]
            self._number += 1
        left = self._packets[choose.choice(live)]
        for _ in range(min(len(left), choose.randint(1, 4))):
            self._sent.append(left.pop(0))
            yield self._sent[-1]

    def _encoded(self, number: int) -> list[bytes]:
        spec, settings = self._bundle.spec, self._settings
        codec = get_codec(settings.codec, self._bundle.codecs)
        encoder = SampleEncoder(codec, spec.code_shape, spec.timesteps, self._checksum)
        codes = _codes(self._bundle, self._choose.getrandbits(32))
        found: list[bytes] = []
        for start in range(0, spec.timesteps, settings.steps_per_packet):
            chunk = codes[start : start + settings.steps_per_packet]
            found += [packet.to_bytes(number) for packet in encoder.encode(chunk)]
        return found


def _bytes(message: EdgeMessage) -> bytes:
    data: bytes = wire.edge_message_to_proto(message).SerializeToString()
    return data


def _codes(bundle: Bundle, seed: int) -> NDArray[np.uint8]:
    """Return one sample's codes, uint8 ``[T, C', H', W']``."""
    spec, generator = bundle.spec, np.random.default_rng(seed)
    density = generator.random()
    return (generator.random((spec.timesteps, *spec.code_shape)) < density).astype(np.uint8)


def one_last_word(replies: Sequence[pb.CloudMessage]) -> None:
    """Raise AssertionError if anything follows a sample's failure, or timesteps go back."""
    heard: dict[int, int] = {}
    for message in replies:
        for verdict in message.verdicts:
            last = heard.get(verdict.sample, -1)
            if verdict.timestep <= last:
                raise AssertionError(f"a word on timestep {verdict.timestep} after {last}")
            heard[verdict.sample] = verdict.timestep
        for failure in message.errors:
            if heard.get(failure.sample, -1) == sys.maxsize:
                raise AssertionError(f"sample {failure.sample} failed twice")
            heard[failure.sample] = sys.maxsize


class Fuzz:
    """A server's streams, and those who write on them.

    Args:
        servicer: serves them.
        bundle: the model it serves.
        slots_in_use: tells the slots that are held.
    """

    def __init__(self, servicer: CoInference, bundle: Bundle, store: ModelStore) -> None:
        self._servicer = servicer
        self._bundle = bundle
        self._store = store
        self._tail = IntegerTail(bundle)
        self.outcome = Outcome()

    async def run(self, seed: int, messages: int) -> int:
        """Run streams until so many messages were read; return the next seed."""
        while self.outcome.messages < messages and not self.outcome.failures:
            seeds = range(seed, seed + STREAMS_AT_ONCE)
            await asyncio.gather(*(self._stream(each) for each in seeds))
            seed += STREAMS_AT_ONCE
            await self._check_slots(seed)
        return seed

    async def _stream(self, seed: int) -> None:
        choose = random.Random(seed)
        try:
            async with asyncio.timeout(STREAM_SECONDS):
                clean = choose.random() < CLEAN_SHARE
                await (self._clean(seed, choose) if clean else self._fuzzed(choose))
        except Exception as error:
            self.outcome.failures.append(f"seed {seed}: {error!r}")
        self.outcome.streams += 1

    async def _serve(self, context: Context) -> None:
        try:
            served: Any = context
            await self._servicer.Infer(None, served)
        except Ended:
            pass
        finally:
            self.outcome.messages += context.read_messages
        self.outcome.statuses[context.code.name] += 1
        if context.code not in ALLOWED:
            raise AssertionError(f"the stream ended with {context.code.name}")

    async def _fuzzed(self, choose: random.Random) -> None:
        context, writer = Context(choose), Writer(self._bundle, choose)
        context.inbox.put_nowait(writer.open())
        serving = asyncio.create_task(self._serve(context))
        for data in writer.messages():
            context.inbox.put_nowait(data)
            if choose.random() < 0.3:
                await asyncio.sleep(0)
        if choose.random() < 0.2:
            serving.cancel()  # The edge is gone: gRPC cancels the handler.
            await asyncio.wait({serving})
        else:
            context.inbox.put_nowait(None)
            await serving
        one_last_word([context.replies.get_nowait() for _ in range(context.replies.qsize())])

    async def _clean(self, seed: int, choose: random.Random) -> None:
        """Run a few samples in lock-step and compare every answer."""
        context = Context(choose)
        settings = Settings(alpha=(1.0,) * (self._bundle.spec.timesteps - 1))
        opening = Open(model_digest=bytes.fromhex(self._bundle.digest), settings=settings)
        context.inbox.put_nowait(_bytes(EdgeMessage(open=opening)))
        serving = asyncio.create_task(self._serve(context))
        await context.replies.get()
        for number in range(3):
            await self._clean_sample(context, number, _codes(self._bundle, seed + number))
        context.inbox.put_nowait(None)
        await serving

    async def _clean_sample(self, context: Context, number: int, codes: NDArray[np.uint8]) -> None:
        spec = self._bundle.spec
        encoder = SampleEncoder(get_codec("raw"), spec.code_shape, spec.timesteps, Checksum.CRC16)
        for code, decision in zip(codes, self._expected(codes), strict=True):
            (packet,) = encoder.encode(code[None])
            context.inbox.put_nowait(_bytes(EdgeMessage(packets=(packet.to_bytes(number),))))
            reply = await context.replies.get()
            if reply.errors and reply.errors[0].code == pb.NO_SLOT:
                return  # Others hold all of them.
            (verdict,) = reply.verdicts
            if (verdict.label, verdict.confidence) != (decision.label, decision.confidence):
                raise AssertionError(f"expected {decision} of sample {number}, got {verdict}")
        self.outcome.clean_samples += 1

    def _expected(self, codes: NDArray[np.uint8]) -> Iterator[Decision]:
        state, total = zero_state(self._tail, 1), [0.0] * self._bundle.spec.classes
        temperature = self._bundle.calibration().temperature
        for timestep, code in enumerate(codes):
            logits, state = self._tail.step(code[None], state)
            total = added(total, logits[0].tolist())
            yield decide(total, timestep, temperature)

    async def _check_slots(self, seed: int) -> None:
        """Expect every slot back once the engine is idle."""
        deadline = time.monotonic() + STREAM_SECONDS
        while held := sum(model.tail.scheduler.slots_in_use for model in self._store):
            if time.monotonic() > deadline:
                self.outcome.failures.append(f"before seed {seed}: {held} slots are still held")
                return
            await asyncio.sleep(0)


async def fuzz(bundle: Path, seed: int, messages: int) -> Outcome:
    """Run streams from a seed on until the server has read so many messages, or failed."""
    config = CloudConfig(bundles=(str(bundle),), slots=SLOTS, metrics="")
    metrics = CloudMetrics(CollectorRegistry())
    store = ModelStore(config, metrics, lambda bundle, part, config: IntegerTail(bundle))
    run = Fuzz(CoInference(store, config, metrics), Bundle(bundle), store)
    await run.run(seed, messages)
    await store.close()
    return run.outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_protocol", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="messages to be read")
    parser.add_argument("--seed", type=int, default=0, help="of the first stream")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="gives the code's shape")
    parser.add_argument("--out", type=Path, help="write a report to this JSON file")
    arguments = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)  # every broken stream is logged
    asyncio.run(fuzz(arguments.bundle, arguments.seed, 5000))  # warm, before memory is looked at
    before_bytes = resident_bytes()
    outcome = asyncio.run(fuzz(arguments.bundle, arguments.seed, arguments.messages))
    growth_bytes = resident_bytes() - before_bytes
    for failure in outcome.failures:
        sys.stderr.write(f"{failure}\n")
    results = [
        figure("messages", [outcome.messages], "messages"),
        figure("streams", [outcome.streams], "streams"),
        figure("clean_samples", [outcome.clean_samples], "samples answered exactly"),
        figure("failures", [len(outcome.failures)], "streams", "0"),
        figure("memory_growth", [growth_bytes], "bytes", f"at most {GROWTH_LIMIT_BYTES}"),
    ]
    settings = {"first_seed": arguments.seed, "statuses": dict(outcome.statuses)}
    flags = f"--messages {arguments.messages} --seed {arguments.seed}"
    tell("fuzz_protocol", flags, settings, results, arguments.out)
    return 1 if outcome.failures or growth_bytes > GROWTH_LIMIT_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
