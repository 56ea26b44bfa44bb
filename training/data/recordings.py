"""Read one recording file of a data set, in its published format; AEDAT with tonic's readers.

What tonic leaves to its caller is done here: a truncated file, a pixel outside the sensor and a
clock that does not start at 0 are seen before a frame is made of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.events.files import Raw, decode_atis, in_order
from shared.events.recording import Events
from training.data.labelled import DataError, MissingDataError

# tonic is imported where it is used: it brings torch, SciPy and HDF5 with it, which those who
# only frame events or read pictures need not wait for.

AEDAT2_EVENT_BYTES = 8
AEDAT2_VERSION = 2.0
DVS128 = (128, 128)


def read_atis(content: bytes, sensor: tuple[int, int], name: str) -> Events:
    """Read the 40-bit events of N-MNIST and N-Caltech101 (Orchard et al. 2015).

    Times count from the start of the recording.

    Args:
        content: the file.
        sensor: ``[H, W]``.
        name: the file's name, for errors.

    Raises:
        DataError: no events, a broken last event, or an event outside the sensor.
    """
    try:
        return in_order(decode_atis(content), sensor, from_first=False)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def read_aedat2(path: Path) -> Events:
    """Read a CIFAR10-DVS recording as first published (Li et al. 2017): AEDAT 2.0 of a DVS128.

    An event is a 32-bit address and a 32-bit time in microseconds, high byte first. Address bit
    0 is 1 for OFF, bits 1-7 and 8-14 are the sensor's axes, both backwards; the picture is upright
    after ``x = 127 - bits 8-14`` and ``y = 127 - bits 1-7``, as in the ``dat2mat.m`` published with
    the data. (tonic's ``read_dvs_128`` does not turn it, and in tonic 1.7 fails on its own header
    reader.) Times count from the first event.

    Raises:
        DataError: no AEDAT 2.0 header, no events, or a broken last event.
        MissingDataError: there is no such file.
    """
    if not path.is_file():
        raise MissingDataError(f"expected a recording at {path}, found nothing")
    start = _end_of_aedat2_header(path)
    size = path.stat().st_size - start
    if size < AEDAT2_EVENT_BYTES or size % AEDAT2_EVENT_BYTES:
        raise DataError(
            f"expected events of {AEDAT2_EVENT_BYTES} bytes after the header of {path}, "
            f"got {size} bytes"
        )
    from tonic.io import get_aer_events_from_file

    found = get_aer_events_from_file(str(path), AEDAT2_VERSION, start)
    address = found["address"].astype(np.int64)
    return _from_first(
        found["timeStamp"],
        127 - ((address >> 8) & 127),
        127 - ((address >> 1) & 127),
        1 - (address & 1),
        str(path),
    )


def read_aedat4(path: Path) -> Events:
    """Read a CIFAR10-DVS recording as tonic's copy of the data set holds it: AEDAT 4.

    Pixels and polarity are taken as they are stored; times count from the first event.

    Raises:
        DataError: not an AEDAT 4 file, no events, or an event outside the DVS128.
        MissingDataError: there is no such file.
    """
    if not path.is_file():
        raise MissingDataError(f"expected a recording at {path}, found nothing")
    from tonic.io import read_aedat4 as read

    try:
        found = read(str(path))
    except Exception as error:  # tonic raises nothing narrower, its decoder several kinds
        raise DataError(f"expected an AEDAT 4 recording at {path}: {error}") from error
    t, x, y, on = (found[name] for name in found.dtype.names)
    return _from_first(t, x, y, on, str(path))


def _end_of_aedat2_header(path: Path) -> int:
    """Return where the events begin: after the lines that begin with ``#``.

    No event does: the high byte of a DVS128 address is 0.
    """
    with path.open("rb") as file:
        first = file.readline()
        if not first.startswith(b"#!AER-DAT2.0"):
            raise DataError(f"expected a first line #!AER-DAT2.0 in {path}, got {first[:20]!r}")
        while file.peek(1)[:1] == b"#":
            file.readline()
        return file.tell()


def _from_first(
    microseconds: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    polarity: NDArray[Any],
    name: str,
) -> Events:
    try:
        return in_order(Raw(microseconds, x, y, polarity, None), DVS128, from_first=True)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
