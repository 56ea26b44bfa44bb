"""Fuzz the Python reference by coverage: packets, every decoder, and the reader of tables.

Needs Atheris (``pip install atheris``), which mutates inputs towards branches not seen before, with
libFuzzer. The arguments are libFuzzer's; without ``-max_total_time`` it never ends::

    python -m benchmarks.fuzz_coverage corpus -max_total_time=3600

An empty or missing corpus folder is filled with valid inputs first. An input is a byte that chooses
what decodes, then packets, each behind a byte with its length, or a file of tables. What is neither
accepted nor refused with a ``CodecError`` ends the run and is written to a file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["shared.codec"]):
    from benchmarks import fuzz
    from shared.codec.context_model import load_tables, save_tables
    from shared.errors import CodecError

SEEDS = range(len(fuzz.SHAPES))
"""Of settings that are told apart by a byte."""


class Target:
    """What libFuzzer calls."""

    def __init__(self) -> None:
        self.settings = [
            each for seed in SEEDS for each in fuzz.stream_settings(seed, is_native=False)
        ]

    def __call__(self, data: bytes) -> None:
        """Decode one input."""
        if not data:
            return
        number = data[0] % (len(self.settings) + 1)
        if number < len(self.settings):
            fuzz.check(self.settings[number], packets(data[1:]))
            return
        try:
            load_tables(data[1:])
        except CodecError:
            return

    def seeds(self) -> Iterator[bytes]:
        """Yield a valid input for every setting, and one of tables."""
        for number, setting in enumerate(self.settings):
            known = (bytes((len(packet),)) + packet for packet in setting.packets)
            yield bytes((number,)) + b"".join(known)
        tables = fuzz.tables((1, 2, 2), np.random.default_rng(0))
        yield bytes((len(self.settings),)) + save_tables(tables)


def packets(data: bytes) -> Iterator[bytes]:
    """Yield the packets of an input."""
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        yield data[at + 1 : end]
        at = end


def main(argv: Sequence[str] = sys.argv) -> None:
    """Run libFuzzer, which ends the process."""
    target = Target()
    for folder in (Path(word) for word in argv[1:] if not word.startswith("-")):
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            for number, seed in enumerate(target.seeds()):
                (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup(list(argv), target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
