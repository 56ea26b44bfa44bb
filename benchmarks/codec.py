"""What the codecs make of real codes: bytes beside the bounds, microseconds, coder overhead.

The codes are those of the bundle's head on the 1,000 shipped test images, which neither training
nor the fitting of tables has seen. Beside each codec stand the ideal bits of its own model and of
a floating-point model, a small network over the same past and more, fitted offline to codes of
training images (``NEUCODEX_CIFAR10`` names the data set; without it that bound is left out).
Bernoulli sources of known entropy show the coder's own overhead.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks.float_code_model import bits_per_timestep, fit_float_model
from benchmarks.report import LOAD_CORE, Result, figure, pin, run
from examples.pictures import load_pictures
from shared.codec import native
from shared.codec.bitpack import pack
from shared.codec.codecs import Codec
from shared.codec.context_codec import ContextCodec, MixingCodec, contexts_of, walk
from shared.codec.context_model import ContextTables, current_logits, load_tables, past_logits
from shared.codec.context_model import squash as squashed
from shared.model.bundle import CODEC_TABLES, Bundle
from training.calibrate import head_codes
from training.data.cifar10 import load_cifar10

DATA = "NEUCODEX_CIFAR10"
FITTING_IMAGES = 2500
"""Training images, the last ones, behind the floating-point model."""
GOALS_OVER_PACKED = {"ctx": 0.5, "ctx-max": 0.45}
"""On static images."""
GOALS_SECONDS = {("ctx", "c"): 20e-6, ("ctx-max", "c"): 80e-6, ("ctx", "python"): 600e-6}
"""Per 1,024 bits, each way."""
BERNOULLI = ((256, 0.1), (1024, 0.1), (1024, 0.3), (8192, 0.05))
"""Bits per frame and rate of the sources with known entropy."""

Codes = NDArray[np.uint8]
"""``[N, T, n]``."""


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure all codecs of the bundle."""
    pin(LOAD_CORE)
    tables = load_tables(bundle.read(CODEC_TABLES))
    pictures = load_pictures()
    pixels = pictures.pixels[: 200 if quick else 1000]
    shaped = head_codes(bundle, pixels)
    codes = shaped.reshape(*shaped.shape[:2], -1)
    packed_bytes = math.ceil(codes.shape[2] / 8)
    zstd3 = zstandard.ZstdCompressor(level=3)
    # Not sent raw where it loses: the yardstick is what the library makes of a frame.
    means = {"zstd-3": byte_means(lambda frame, _: len(zstd3.compress(pack(frame))), codes)}
    for name, codec in bundle.codecs.items():
        means[name] = byte_means(length_of(codec), codes, packed_bytes)
    results = [figure("packed_bytes_per_timestep", [packed_bytes], "bytes")]
    for name, by_timestep in means.items():
        results += sizes(name, by_timestep)
    results += ratios({name: float(np.mean(each)) for name, each in means.items()}, packed_bytes)
    results += bounds(tables, codes)
    if DATA in os.environ:
        bound = float_bound(bundle, Path(os.environ[DATA]), shaped, quick)
        ratio = float(np.mean(means["ctx-max"])) / bound
        results += [
            figure("float_model_bytes_per_timestep", [bound], "bytes"),
            figure("ctx-max_over_float_model", [ratio], "ratio", "at most 1.05"),
        ]
    results += overheads(tables)
    results += speeds(tables, codes[: 50 if quick else 200])
    settings = {
        "images": len(codes),
        "timesteps": codes.shape[1],
        "bits_per_timestep": codes.shape[2],
        "implementation": native.IMPLEMENTATION,
        "float_model_images": FITTING_IMAGES if DATA in os.environ else 0,
    }
    return settings, results


def length_of(codec: Codec) -> Callable[[NDArray[np.uint8], Sequence[NDArray[np.uint8]]], int]:
    """Return the bytes of a frame's code word, before the raw packet takes over."""
    return lambda frame, past: len(codec.encode(frame[None], past))


def byte_means(
    length: Callable[[NDArray[np.uint8], Sequence[NDArray[np.uint8]]], int],
    codes: Codes,
    limit: float = math.inf,
) -> list[float]:
    """Return the mean bytes of a frame at every timestep; no frame counts more than ``limit``."""
    by_timestep: list[list[float]] = [[] for _ in range(codes.shape[1])]
    for sample in codes:
        for frame, timestep, past in walk(sample, []):
            by_timestep[timestep].append(min(limit, length(frame, past)))
    return [float(np.mean(each)) for each in by_timestep]


def sizes(name: str, by_timestep: Sequence[float]) -> list[Result]:
    """Return a codec's bytes per timestep, per image of full T, and at every timestep."""
    return [
        figure(f"{name}_bytes_per_timestep", [float(np.mean(by_timestep))], "bytes"),
        figure(f"{name}_bytes_per_image", [sum(by_timestep)], "bytes"),
        *(
            figure(f"{name}_bytes_at_t{timestep}", [value], "bytes")
            for timestep, value in enumerate(by_timestep)
        ),
    ]


def ratios(mean_bytes: Mapping[str, float], packed_bytes: int) -> list[Result]:
    """Return the ratios that have goals."""
    results = [
        figure(f"{name}_over_packed", [mean_bytes[name] / packed_bytes], "ratio", f"at most {goal}")
        for name, goal in GOALS_OVER_PACKED.items()
    ]
    over_zstd = mean_bytes["ctx"] / mean_bytes["zstd-3"]
    return [*results, figure("ctx_over_zstd-3", [over_zstd], "ratio", "at most 0.45")]


def bounds(tables: ContextTables, codes: Codes) -> list[Result]:
    """Return the ideal bytes per timestep of both fitted models."""
    totals = {"ctx": 0.0, "ctx-max": 0.0}
    for sample in codes:
        for frame, timestep, past in walk(sample, []):
            for name, probabilities in model_probabilities(tables, frame, timestep, past).items():
                chosen = np.where(frame, probabilities, 65536 - probabilities) / 65536
                totals[name] -= float(np.log2(chosen).sum()) / 8
    timesteps = codes.shape[0] * codes.shape[1]
    return [
        figure(f"{name}_ideal_bytes_per_timestep", [total / timesteps], "bytes")
        for name, total in totals.items()
    ]


def model_probabilities(
    tables: ContextTables, frame: NDArray[np.uint8], timestep: int, past: Sequence[Any]
) -> Mapping[str, NDArray[np.int64]]:
    """Return P(spike) of every neuron in units of 2 ** -16, int64 ``[n]``, by model."""
    shape, row = tables.shape, tables.row(timestep)
    contexts = contexts_of(frame, past, shape)
    found = {"ctx": np.take_along_axis(tables.probabilities[row], contexts, 1)}
    mixing = tables.mixing
    if mixing is not None:
        logits = np.take_along_axis(mixing.logits[row].astype(np.int64), contexts, 1)
        logits = logits.reshape(shape) + past_logits(mixing, row, past, shape)
        logits += current_logits(mixing, row, frame, shape)
        found["ctx-max"] = squashed(mixing, logits)
    return {name: values.astype(np.int64).ravel() for name, values in found.items()}


def float_bound(bundle: Bundle, data: Path, codes: NDArray[np.uint8], quick: bool) -> float:
    """Return the bytes per timestep of the floating-point model."""
    pixels = load_cifar10(data, train=True).pixels[-FITTING_IMAGES:]
    model = fit_float_model(head_codes(bundle, pixels), epochs=1 if quick else 12)
    return bits_per_timestep(model, codes) / 8


def overheads(tables: ContextTables) -> list[Result]:
    """Return the coder's bytes above the entropy of sources whose rate it knows."""
    results = []
    for bits, rate in BERNOULLI:
        known = tables._replace(
            shape=(1, 1, bits),
            probabilities=np.full((1, 1, 256), round(rate * 65536), np.uint16),
            mixing=None,
        )
        codec, generator = ContextCodec(known), np.random.default_rng(0)
        frames = (generator.random((400, bits)) < rate).astype(np.uint8)
        ones = frames.sum(1)
        p = round(rate * 65536) / 65536
        ideal_bytes = -(ones * math.log2(p) + (bits - ones) * math.log2(1 - p)) / 8
        coded_bytes = np.array([len(codec.encode(frame[None], [])) for frame in frames])
        over = float((coded_bytes - ideal_bytes).mean())
        name = f"overhead_{bits}_bits_rate_{rate}"
        results.append(figure(f"{name}_bytes", [over], "bytes per code word", "at most 0.4"))
        share = over / float(ideal_bytes.mean())
        goal = "at most 0.01" if bits >= 1024 else None
        results.append(figure(f"{name}_share", [share], "ratio", goal))
    return results


def speeds(tables: ContextTables, codes: Codes) -> list[Result]:
    """Return seconds per 1,024 bits of both codecs, in C where it was built and in Python."""
    results = []
    for kind in (ContextCodec, MixingCodec):
        if kind is MixingCodec and tables.mixing is None:
            continue
        for is_native in (True, False) if native.AVAILABLE else (False,):
            codec = kind(tables, native=is_native)
            some = codes if is_native else codes[: max(1, len(codes) // 10)]
            implementation = "c" if is_native else "python"
            goal = GOALS_SECONDS.get((kind.name, implementation))
            for way, seconds in times(codec, some).items():
                results.append(
                    figure(
                        f"{kind.name}_{implementation}_{way}_seconds_per_1024_bits",
                        [each * 1024 / codes.shape[2] for each in seconds],
                        "seconds",
                        None if goal is None else f"at most {goal:g}",
                    )
                )
    return results


def times(codec: ContextCodec | MixingCodec, codes: Codes) -> dict[str, list[float]]:
    """Return seconds per frame of several rounds, by way."""
    steps = [
        (frame[None], past, codec.encode(frame[None], past))
        for sample in codes
        for frame, _, past in walk(sample, [])
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("codec", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
