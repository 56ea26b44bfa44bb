"""Read compressed event recordings with *faery*, in a process of its own.

faery 0.7 ends its whole process on some damaged files. Here that is a child process, with limits on
its memory and time, and the file an input like others that cannot be used. Run as a module, this
file is that child: it writes a line of JSON, then the events as :data:`RECORD`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError, InputError

MAX_EVENTS = 1 << 25
"""Most events of one recording."""
MEMORY_BYTES = 4 << 30
PATIENCE_SECONDS = 60
NOT_INSTALLED, UNUSABLE = 3, 4
"""Exit codes of the child."""
RECORD = np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")])


class Decoded(NamedTuple):
    """What the child found."""

    events: NDArray[np.void]
    """Of :data:`RECORD`, as they are in the file."""
    sensor: tuple[int, int]
    """``[H, W]``."""


def decode(path: Path) -> Decoded:
    """Read a recording.

    Raises:
        InputError: no such recording, damaged, too large, or it takes too long.
        ConfigError: faery is not installed.
    """
    command = [sys.executable, "-P", "-m", __name__, str(path.resolve())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{path}: expected to read it in {PATIENCE_SECONDS} s") from error
    if done.returncode == NOT_INSTALLED:
        raise ConfigError(
            f"{path}: expected the extra 'events' to read {path.suffix}: "
            "pip install 'neucodex[events]'"
        )
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").split("\n\n")[0].splitlines()
        reason = lines[-1] if lines else f"its reader ended with {done.returncode}"
        raise InputError(f"{path}: expected a whole event recording: {reason}")
    head, _, body = done.stdout.partition(b"\n")
    width, height = json.loads(head)
    return Decoded(np.frombuffer(body, RECORD), (height, width))


def main(path: str) -> int:
    """Be the child; return its exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import faery
    except ImportError:
        return NOT_INSTALLED
    try:
        stream = faery.events_stream_from_file(path)
        pieces, events = [], 0
        for piece in stream:
            events += len(piece)
            if events > MAX_EVENTS:
                raise ValueError(f"expected at most {MAX_EVENTS} events, got more")
            pieces.append(piece)
        dimensions = stream.dimensions()
    except Exception as error:  # faery raises nothing narrower
        print(" ".join(str(error).split()), file=sys.stderr)
        return UNUSABLE
    sys.stdout.buffer.write(json.dumps(dimensions).encode() + b"\n")
    for piece in pieces:
        sys.stdout.buffer.write(piece.astype(RECORD).tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
