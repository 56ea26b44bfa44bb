"""Take the pictures of the live pages that are in ``docs/screens``: ``python -m examples.screens``.

Runs both services on this machine, has the edge classify the demo's pictures, and looks at the two
pages with Chromium (Debian: ``chromium``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from edge_agent import Edge
from examples.chromium import Browser, chromium
from examples.demo import BUNDLE
from examples.pair import pair
from examples.pictures import load_pictures
from shared.errors import NeucodexError

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "screens"
PICTURES = 200
CALLERS = 3
SECONDS = 15.0
"""Time for the charts to fill."""
COLOURS = 240
"""Enough for the pages, and a quarter smaller than all of them."""
# Lock-step, so that every timestep has its verdict.
EDGE_FLAGS = ("--window", "1", "--samples-in-flight", str(CALLERS))
LATE = "/after [234] of/.test(document.getElementById('headline').textContent)"
"""A sample is shown that did not exit at once."""


class Screen(NamedTuple):
    """A picture to take."""

    side: str
    width: int
    dark: bool

    @property
    def name(self) -> str:
        """Of its file."""
        look = "phone" if self.width < 600 else "dark" if self.dark else "light"
        return f"{self.side}-{look}.webp"


SCREENS = [
    Screen(side, width, dark)
    for side in ("edge", "cloud")
    for width, dark in ((1100, False), (1100, True), (390, True))
]


def main(argv: Sequence[str] | None = None) -> int:
    """Take them; return the exit code: 2, with one line on stderr, where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m examples.screens", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=FOLDER, help="where to")
    folder: Path = parser.parse_args(argv).out
    try:
        with (
            chromium() as browser,
            pair(BUNDLE, edge_flags=EDGE_FLAGS) as both,
            _classifying(both.edge.address),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            addresses = {"edge": both.edge.metrics, "cloud": both.cloud.metrics}
            for screen in SCREENS:
                _take(browser, screen, addresses[screen.side], folder)
    except NeucodexError as error:
        print(f"screens: {error}", file=sys.stderr)
        return 2
    return 0


def _take(browser: Browser, screen: Screen, address: str, folder: Path) -> None:
    size = {"width": screen.width, "height": 900}
    with browser.page(f"http://{address}/", **size, dark=screen.dark) as page:
        page.until("document.querySelector('#state.good') !== null")
        time.sleep(SECONDS)
        if screen.side == "edge":
            page.until(LATE)
        path = folder / screen.name
        with Image.open(io.BytesIO(page.screenshot())) as image:
            few = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.convert("RGB").save(path, lossless=True, method=6)
        print(f"{path}: {path.stat().st_size} bytes")


@contextlib.contextmanager
def _classifying(address: str) -> Iterator[None]:
    """Have several callers classify pictures over and over."""
    done, pixels = threading.Event(), load_pictures(PICTURES).pixels

    def classify(first: int) -> None:
        with Edge(address) as edge:
            while not done.is_set():
                for each in pixels[first::CALLERS]:
                    edge.classify(each)
                    if done.wait(0.05):
                        break

    callers = [threading.Thread(target=classify, args=(first,)) for first in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        done.set()
        for caller in callers:
            caller.join()


if __name__ == "__main__":
    sys.exit(main())
