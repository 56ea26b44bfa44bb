"""Co-inference on real pictures: ``python -m examples.demo``, or ``make demo``.

Starts a cloud server and an edge daemon as two processes on this machine, has the edge daemon
classify CIFAR-10 test images with the shipped model in lock-step, then does the same with all of
the network on the edge, and shows what each costs. Stops what it started and leaves only
``demo-report.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from edge_agent import Answer, Edge
from examples.pair import Ready, pair, run_edge
from examples.pictures import Pictures, load_pictures, mean_file_bytes
from examples.report import Report, Run, show, summarise
from examples.scrape import scrape
from shared.errors import NeucodexError

log = logging.getLogger(__name__)

BUNDLE = Path(__file__).resolve().parents[1] / "shared" / "zoo" / "resnet18-cifar10-demo"
MAX_UNANSWERED = 10
"""After so many images without an answer the demo gives up."""
# In lock-step nothing is computed or sent in vain.
CO_INFERENCE = ("--window", "1")
EDGE_ONLY_EXIT = ("--placement", "edge_only")
# No confidence is greater than 1, so that every image takes all timesteps.
EDGE_ONLY_FULL = (*EDGE_ONLY_EXIT, "--network", "whole", "--alpha", "1")


class DemoError(NeucodexError):
    """The demo cannot go on."""


class Demo:
    """Runs the same pictures in every mode.

    Args:
        bundle: directory of the model bundle.
        pictures: what to classify.
        folder: for sockets and logs.
        console: where progress is shown.
    """

    def __init__(self, bundle: Path, pictures: Pictures, folder: Path, console: Console) -> None:
        self._bundle = bundle
        self._pictures = pictures
        self._folder = folder
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )

    def run(self) -> Report:
        """Run all modes, one after the other, and return what they cost."""
        with self._progress:
            co_inference = self._co_inference()
            exit_ = self._edge_only("edge-only-exit", EDGE_ONLY_EXIT)
            full = self._edge_only("edge-only-full", EDGE_ONLY_FULL)
        return summarise(co_inference, exit_, full, mean_file_bytes(self._pictures.pixels))

    def _co_inference(self) -> Run:
        folder = self._folder / "co-inference"
        folder.mkdir()
        with pair(self._bundle, edge_flags=CO_INFERENCE, folder=folder) as both:
            return self._stream("co-inference", both.edge, both.cloud)

    def _edge_only(self, name: str, flags: Sequence[str]) -> Run:
        folder = self._folder / name
        folder.mkdir()
        with run_edge(folder, self._bundle, *flags) as edge:
            return self._stream(name, edge)

    def _stream(self, name: str, edge: Ready, cloud: Ready | None = None) -> Run:
        """Have one edge daemon classify all pictures, one after the other."""
        tally = Tally()
        task = self._progress.add_task(name, total=len(self._pictures.labels), figures="")
        began = time.perf_counter()
        with Edge(edge.address) as client:
            for pixels, label in zip(*self._pictures, strict=True):
                tally.add(*_classify(client, pixels), int(label))
                seconds = time.perf_counter() - began
                self._progress.update(task, advance=1, figures=tally.figures(seconds))
        return Run(
            answers=tally.answers,
            correct=tally.correct,
            call_seconds=tally.call_seconds,
            total_seconds=time.perf_counter() - began,
            edge=scrape(edge.metrics),
            cloud=None if cloud is None else scrape(cloud.metrics),
        )


class Tally:
    """The answers so far."""

    def __init__(self) -> None:
        self.answers: list[Answer | None] = []
        self.call_seconds: list[float] = []
        self.correct = 0
        self._timesteps = 0

    def add(self, answer: Answer | None, seconds: float, label: int) -> None:
        """Take in the answer to one picture, or that there is none.

        Raises:
            DemoError: too many pictures have none.
        """
        self.answers.append(answer)
        if answer is not None:
            self.call_seconds.append(seconds)
            self.correct += answer.label == label
            self._timesteps += answer.timesteps_used
        elif len(self.answers) - len(self.call_seconds) > MAX_UNANSWERED:
            raise DemoError(f"more than {MAX_UNANSWERED} images got no answer")

    def figures(self, seconds: float) -> str:
        """Return what is known after so many seconds, on one line."""
        count = len(self.call_seconds)
        if not count:
            return ""
        return (
            f"accuracy {self.correct / len(self.answers):.1%}, "
            f"{self._timesteps / count:.2f} timesteps, {count / seconds:.0f}/s"
        )


def _classify(edge: Edge, pixels: NDArray[np.uint8]) -> tuple[Answer | None, float]:
    """Return the answer, if there is one, and the time it took in seconds."""
    began = time.perf_counter()
    try:
        answer = edge.classify(pixels)
    except NeucodexError as error:
        log.warning("an image got no answer: %s", error)
        return None, time.perf_counter() - began
    return answer, time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 only if every image got its answer in every mode."""
    flags = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    console = Console()
    try:
        with _unwound_by_sigterm(), _folder(flags.keep_logs) as folder:
            report = Demo(flags.bundle, load_pictures(flags.images), folder, console).run()
        flags.out.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (NeucodexError, ValueError, OSError) as error:
        console.print(f"demo: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    show(report, console)
    console.print(f"written to {flags.out}", markup=False, soft_wrap=True)
    return 0 if report.complete else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--images", type=int, help="how many of the 1,000; default: all")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="directory of a model bundle")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-report.json"), help="where the report goes"
    )
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="keep the daemons' logs here")
    return parser


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Have SIGTERM leave the block as Ctrl-C does: the daemons are stopped on the way out."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _folder(keep_logs: Path | None) -> Iterator[Path]:
    """Give a folder that is removed at the end, its logs copied to ``keep_logs``."""
    with tempfile.TemporaryDirectory(prefix="neucodex-") as name:
        folder = Path(name)
        try:
            yield folder
        finally:
            if keep_logs is not None:
                for path in folder.glob("*/*.log"):
                    target = keep_logs / path.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)


if __name__ == "__main__":
    sys.exit(main())
