from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import fuzz
from benchmarks.report import Report
from shared.codec.bitpack import Frames
from shared.codec.codecs import History, RawCodec


def test_damaged_packets_end_in_frames_or_a_codec_error(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"

    assert fuzz.main(["--inputs", "10000", "--out", str(out)]) == 0

    report = msgspec.json.decode(out.read_bytes(), type=Report)
    values = {result.name: result.value for result in report.results}
    assert values["inputs"] >= 10000
    assert values["failures"] == 0


class BrokenCodec(RawCodec):
    """Trips over some frames."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        if self._error is not None:
            raise self._error
        found: NDArray[np.uint8] = np.full((steps, bits), 2, np.uint8)
        return found


@pytest.mark.parametrize("error", [IndexError("out of range"), None])
def test_a_decoder_that_breaks_is_found(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = fuzz.stream_settings

    def broken(seed: int, is_native: bool) -> list[fuzz.Setting]:
        packets, known = [b"\x08", b"\x01"], make(seed, is_native)  # of timesteps 0 and 1, coded
        return [each._replace(codec=BrokenCodec(error), packets=packets) for each in known]

    monkeypatch.setattr(fuzz, "stream_settings", broken)
    (failure,) = fuzz.fuzz((7, 1000)).failures
    assert failure.startswith("seed 7, codec raw")
