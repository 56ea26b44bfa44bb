"""What the codecs make of real codes: bytes beside the bounds, microseconds, coder overhead.

Of every ``--bundle`` the head's codes of up to 1,000 test samples, which neither training nor the
fitting of tables has seen. Beside each codec stand the ideal bits of its own model and those of
floating-point models fitted to the samples that codec tables are fitted to
(:mod:`benchmarks.float_code_model`). Bernoulli sources of known entropy show the coder's own
overhead. ``--data`` names the folder of a bundle's data set, once for each ``--bundle``, in their
order; without it the shipped pictures serve a bundle for them, and there is no such bound.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from benchmarks.float_code_model import HIDDEN, ROUNDS, fit_float_model, ideal_bytes
from benchmarks.report import DEMO_BUNDLE, LOAD_CORE, Result, figure, line, pin, tell
from examples.pictures import load_pictures
from shared.codec import native
from shared.codec.bitpack import Frames, pack, packed_bytes
from shared.codec.context_codec import ContextCodec, MixingCodec, walk
from shared.codec.context_model import ContextTables, load_tables
from shared.errors import ConfigError
from shared.model.bundle import CODEC_TABLES, Bundle
from training.calibrate import head_codes
from training.cli import find_bundle, recipe_of
from training.data.sets import IN_RANDOM_ORDER
from training.export import codec_inputs
from training.recipe_data import load_test, load_training

SAMPLES, QUICK_SAMPLES = 1000, 100
OVER_PACKED = {
    "static": {"ctx": 0.5, "ctx-max": 0.45},
    "events": {"ctx": 0.55, "ctx-max": 0.45},
}
"""Goals by kind of input and codec."""
CTX_OVER_ZSTD_3 = {"static": 0.45, "events": None}
GOAL_SECONDS = {("ctx", "c"): 20e-6, ("ctx-max", "c"): 80e-6, ("ctx", "python"): 600e-6}
"""Per 1,024 bits, each way."""
OVERHEAD_BYTES = 0.4
"""Goal: of a code word, above the ideal bits of the codec's own model."""
BERNOULLI = ((256, 0.1), (1024, 0.1), (1024, 0.3), (8192, 0.05))
"""Bits per frame and rate of the sources with known entropy."""
FLOAT_MODELS = {"logistic": 0, "network": HIDDEN}
"""Hidden units of a channel, by name."""

Codes = NDArray[np.uint8]
"""``[N, T, C, H, W]``."""


class Subject(NamedTuple):
    """A bundle and its codes."""

    bundle: Bundle
    test: Codes
    fitting: Codes | None
    """Codes of the samples that codec tables are fitted to; None without the data set."""

    @property
    def tables(self) -> ContextTables:
        """The bundle's."""
        return load_tables(self.bundle.read(CODEC_TABLES))

    @property
    def samples(self) -> Frames:
        """The test codes, ``[N, T, n]``."""
        return self.test.reshape(*self.test.shape[:2], -1)


def read_subject(path: Path, data: Path | None, *, quick: bool) -> Subject:
    """Open a bundle and compute its codes.

    Raises:
        BundleError: there is none, or it has no codec tables.
        ConfigError: it needs a data set, or its recipe cannot be found.
        DataError: the data set is missing or damaged.
    """
    found, count = find_bundle(path), QUICK_SAMPLES if quick else SAMPLES
    bundle = found.bundle
    if data is None:
        pixels = load_pictures(count).pixels
        if bundle.spec.input_kind != "static" or bundle.spec.input_shape != pixels.shape[1:]:
            raise ConfigError(f"expected --data for {path}, which is not for the shipped pictures")
        return Subject(bundle, head_codes(bundle, pixels), None)
    recipe = recipe_of(found, None)
    test, training = load_test(recipe, data), load_training(recipe, data)
    if recipe.data.name not in IN_RANDOM_ORDER:
        test = test.shuffled(recipe.seed)
    fitting = codec_inputs(training)[: count if quick else None]
    return Subject(bundle, head_codes(bundle, test.inputs[:count]), head_codes(bundle, fitting))


def measure(subject: Subject, *, quick: bool) -> Iterator[Result]:
    """Yield all figures of one bundle."""
    kind, tables = subject.bundle.spec.input_kind, subject.tables
    packed = packed_bytes(subject.samples.shape[2])
    lengths = {name: code_lengths(encode, subject.samples) for name, encode in encoders(subject)}
    ideals = dict(model_bytes(tables, subject.samples))
    # A frame that would grow is sent raw. Not so zstd-3: it is what the library makes of a frame.
    sent = {
        name: each if name == "zstd-3" else np.minimum(each, packed)
        for name, each in lengths.items()
    }
    means = {name: float(each.mean()) for name, each in sent.items()}
    yield figure("packed_bytes_per_timestep", [packed], "bytes")
    for name, each in sent.items():
        yield from sizes(name, each.mean(0).tolist())
    for name, goal in OVER_PACKED[kind].items():
        yield figure(f"{name}_over_packed", [means[name] / packed], "ratio", at_most(goal))
    over_zstd = means["ctx"] / means["zstd-3"]
    yield figure("ctx_over_zstd-3", [over_zstd], "ratio", at_most(CTX_OVER_ZSTD_3[kind]))
    for name, ideal in ideals.items():
        over = float(lengths[name].mean()) - ideal
        yield figure(f"{name}_ideal_bytes_per_timestep", [ideal], "bytes")
        yield figure(f"{name}_overhead_bytes", [over], "bytes", at_most(OVERHEAD_BYTES))
    if subject.fitting is not None:
        bound = yield from float_bound(subject.fitting, subject.test, quick=quick)
        model = ideals["ctx-max"] / bound
        yield figure("ctx-max_model_over_float_model", [model], "ratio", at_most(1.05))
        yield figure("ctx-max_over_float_model", [means["ctx-max"] / bound], "ratio")
    yield from speeds(tables, subject.samples[: 20 if quick else 200])


def at_most(goal: float | None) -> str | None:
    """Return a goal in words."""
    return None if goal is None else f"at most {goal:g}"


Encode = Callable[[Frames, Sequence[Frames]], bytes]
"""Takes one frame, ``[1, n]``, and those before it."""


def encoders(subject: Subject) -> Iterator[tuple[str, Encode]]:
    """Yield the bundle's codecs and, as the yardstick, zstd as it comes."""
    zstd = zstandard.ZstdCompressor(level=3)
    yield "zstd-3", lambda frame, past: zstd.compress(pack(frame))
    for name, codec in subject.bundle.codecs.items():
        yield name, codec.encode


def code_lengths(encode: Encode, samples: Frames) -> NDArray[np.int64]:
    """Return the bytes of every frame's code word, int64 ``[N, T]``."""
    return np.array(
        [[len(encode(frame[None], past)) for frame, past in walk(each, [])] for each in samples]
    )


def sizes(name: str, by_timestep: Sequence[float]) -> Iterator[Result]:
    """Yield the bytes per timestep, per sample of full T, and at every timestep."""
    yield figure(f"{name}_bytes_per_timestep", [float(np.mean(by_timestep))], "bytes")
    yield figure(f"{name}_bytes_per_sample", [sum(by_timestep)], "bytes")
    for timestep, value in enumerate(by_timestep):
        yield figure(f"{name}_bytes_at_t{timestep}", [value], "bytes")


def context_codecs(tables: ContextTables, *, is_native: bool) -> list[ContextCodec | MixingCodec]:
    """Return both codecs; without mixing weights only ``ctx``."""
    kinds = (ContextCodec,) if tables.mixing is None else (ContextCodec, MixingCodec)
    return [kind(tables, native=is_native) for kind in kinds]


def model_bytes(tables: ContextTables, samples: Frames) -> Iterator[tuple[str, float]]:
    """Yield the ideal bytes of a timestep under each of the tables' models."""
    for codec in context_codecs(tables, is_native=False):
        bits = 0.0
        for sample in samples:
            for frame, past in walk(sample, []):
                ones = codec.probabilities(frame, past)
                bits -= float(np.log2(np.where(frame, ones, 65536 - ones) / 65536).sum())
        yield codec.name, bits / 8 / samples[..., 0].size


def float_bound(fitting: Codes, test: Codes, *, quick: bool) -> Generator[Result, None, float]:
    """Yield the ideal bytes of the floating-point models; return the fewer ones."""
    found = {}
    for name, hidden in FLOAT_MODELS.items():
        model = fit_float_model(fitting, hidden, rounds=1 if quick else ROUNDS)
        found[name] = ideal_bytes(model, test)
        mean = float(np.mean(found[name]))
        yield figure(f"float_{name}_ideal_bytes_per_timestep", [mean], "bytes")
    best = min(found.values(), key=sum)
    yield from sizes("float_model", best)
    return float(np.mean(best))


def overheads() -> Iterator[Result]:
    """Yield the coder's bytes above the entropy of sources whose rate it knows."""
    for bits, rate in BERNOULLI:
        probability = round(rate * 65536)
        known = np.full((1, 1, 256), probability, np.uint16)
        codec, generator = (
            ContextCodec(ContextTables((1, 1, bits), known)),
            np.random.default_rng(0),
        )
        frames = (generator.random((400, bits)) < rate).astype(np.uint8)
        ones, p = frames.sum(1), probability / 65536
        ideal = -(ones * math.log2(p) + (bits - ones) * math.log2(1 - p)) / 8
        coded = np.array([len(codec.encode(frame[None], [])) for frame in frames])
        over, name = float((coded - ideal).mean()), f"overhead_{bits}_bits_rate_{rate}"
        yield figure(f"{name}_bytes", [over], "bytes per code word", at_most(OVERHEAD_BYTES))
        share = at_most(0.01 if bits >= 1024 else None)
        yield figure(f"{name}_share", [over / float(ideal.mean())], "ratio", share)


def speeds(tables: ContextTables, samples: Frames) -> Iterator[Result]:
    """Yield seconds per 1,024 bits of both codecs, in C where it was built and in Python."""
    for is_native in (True, False) if native.AVAILABLE else (False,):
        implementation = "c" if is_native else "python"
        some = samples if is_native else samples[: max(1, len(samples) // 20)]
        for codec in context_codecs(tables, is_native=is_native):
            goal = at_most(GOAL_SECONDS.get((codec.name, implementation)))
            for way, seconds in times(codec, some).items():
                per_1024_bits = [each * 1024 / samples.shape[2] for each in seconds]
                name = f"{codec.name}_{implementation}_{way}_seconds_per_1024_bits"
                yield figure(name, per_1024_bits, "seconds", goal)


def times(codec: ContextCodec | MixingCodec, samples: Frames) -> Mapping[str, list[float]]:
    """Return seconds per frame of several rounds, by way."""
    steps = [
        (frame[None], past, codec.encode(frame[None], past))
        for sample in samples
        for frame, past in walk(sample, [])
    ]
    found: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(5):
        began = time.perf_counter()
        for frame, past, _ in steps:
            codec.encode(frame, past)
        middle = time.perf_counter()
        for frame, past, word in steps:
            codec.decode(word, 1, frame.shape[1], past)
        found["encode"].append((middle - began) / len(steps))
        found["decode"].append((time.perf_counter() - middle) / len(steps))
    return found


def settings_of(subject: Subject) -> dict[str, Any]:
    """Return what the figures of a bundle depend on."""
    fitting = 0 if subject.fitting is None else len(subject.fitting)
    return {
        "digest": subject.bundle.digest,
        "samples": len(subject.test),
        "timesteps": subject.test.shape[1],
        "bits_per_timestep": subject.samples.shape[2],
        "firing_rate": round(float(subject.test.mean()), 4),
        "samples_behind_the_float_models": fitting,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec", description=__doc__)
    parser.add_argument(
        "--bundle", type=Path, action="append", help="bundle to measure; repeatable"
    )
    parser.add_argument("--data", type=Path, action="append", help="its data set; repeatable")
    parser.add_argument("--out", type=Path, help="write the report to this JSON file")
    parser.add_argument("--quick", action="store_true", help="few samples, under a minute")
    arguments = parser.parse_args(argv)
    bundles: list[Path] = arguments.bundle or [DEMO_BUNDLE]
    folders: list[Path | None] = arguments.data or [None] * len(bundles)
    if len(folders) != len(bundles):
        parser.error(f"expected --data for none or all of {len(bundles)} bundles")
    pin(LOAD_CORE)
    torch.set_num_threads(1)  # Two threads on one core spend their time waiting for each other.
    settings: dict[str, Any] = {"implementation": native.IMPLEMENTATION, "bundles": {}}
    results = list(overheads())
    for path, data in zip(bundles, folders, strict=True):
        subject = read_subject(path, data, quick=arguments.quick)
        name = subject.bundle.manifest.name
        settings["bundles"][name] = settings_of(subject)
        for each in measure(subject, quick=arguments.quick):
            results.append(msgspec.structs.replace(each, name=f"{name}.{each.name}"))
            # A run takes a quarter of an hour: show how far it is.
            sys.stderr.write(f"{line(results[-1])}\n")
    tell("codec", flags(arguments), settings, results, arguments.out)
    return 0


def flags(arguments: argparse.Namespace) -> str:
    """Return the command line that gives the same figures."""
    words = [f"--bundle {path}" for path in arguments.bundle or ()]
    words += ["--data DIR"] * len(arguments.data or ())
    return " ".join([*words, *(["--quick"] if arguments.quick else [])])


if __name__ == "__main__":
    sys.exit(main())
