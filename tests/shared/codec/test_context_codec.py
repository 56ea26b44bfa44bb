from __future__ import annotations

import io
import itertools
import math
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import native
from shared.codec.bitpack import Frames
from shared.codec.context_codec import ContextCodec, MixingCodec
from shared.codec.context_model import (
    MAX_BYTES,
    ContextTables,
    MixingWeights,
    Shape,
    causal,
    load_tables,
    save_tables,
)
from shared.codec.packet import Checksum, SampleDecoder, SampleEncoder
from shared.errors import CodecError

ROOT = Path(__file__).resolve().parents[3]
KINDS = [ContextCodec, MixingCodec]
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def random_tables(
    shape: Shape,
    rows: int,
    seed: int = 0,
    *,
    sets: int = 1,
    place_sets: int = 1,
    maps: int = 5,
    side: int = 5,
    most: int = 300,
) -> ContextTables:
    generator, (channels, height, width) = np.random.default_rng(seed), shape

    def weights(*sizes: int, limit: int = most) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
        return generator.integers(-limit, limit, sizes).astype(np.int16)

    current = weights(sets, channels, side, side, channels * maps)
    current[:, ~causal(channels, side, maps)] = 0
    logits = (np.arange(4096) - 2048) / 256
    squash = np.clip(np.round(65536 / (1 + np.exp(-logits))), 1, 65535).astype(np.uint16)
    return ContextTables(
        shape,
        generator.integers(1, 65536, (rows, channels, 256)).astype(np.uint16),
        MixingWeights(
            logits=weights(rows, channels, 256, limit=900),
            places=weights(place_sets, height, width, channels * maps),
            past=weights(sets, 2, channels, 3, 3, channels * maps),
            current=current,
            hidden=weights(channels, maps - 1),
            squash=squash,
        ),
    )


def random_frames(shape: Shape, count: int, rate: float, seed: int = 0) -> Frames:
    generator = np.random.default_rng(seed)
    return (generator.random((count, math.prod(shape))) < rate).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    rows=st.integers(1, 3),
    by_row=st.tuples(st.booleans(), st.booleans()),
    network=st.tuples(
        st.integers(1, 5), st.sampled_from([3, 5]), st.sampled_from([50, 300, 3000, 32767])
    ),
    before=st.integers(0, 6),
    steps=st.integers(1, 3),
    rate=st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 99),
)
def test_decoding_undoes_encoding_and_c_equals_python(
    kind: type[ContextCodec | MixingCodec],
    shape: Shape,
    rows: int,
    by_row: tuple[bool, bool],
    network: tuple[int, int, int],
    before: int,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    maps, side, most = network
    sets, place_sets = (rows if each else 1 for each in by_row)
    sizes = {"sets": sets, "place_sets": place_sets, "maps": maps, "side": side}
    tables = random_tables(shape, rows, seed, **sizes, most=most)
    reference, fast = kind(tables, native=False), kind(tables)
    every = random_frames(shape, before + steps, rate, seed)
    frames, history = every[before:], list(every[:before])
    word = reference.encode(frames, history)
    assert fast.encode(frames, history) == word
    for codec in (reference, fast):
        again = codec.decode(word, steps, frames.shape[1], history)
        assert again.dtype == np.uint8
        np.testing.assert_array_equal(again, frames)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, data=st.binary(max_size=60), steps=st.integers(1, 3), seed=st.integers(0, 9))
def test_any_bytes_give_the_same_frames_or_the_same_error(
    kind: type[ContextCodec | MixingCodec], shape: Shape, data: bytes, steps: int, seed: int
) -> None:
    tables, bits = random_tables(shape, 2, seed), math.prod(shape)
    history = list(random_frames(shape, 2, 0.3, seed))

    def outcome(codec: ContextCodec | MixingCodec) -> tuple[bytes, str]:
        try:
            frames = codec.decode(data, steps, bits, history)
        except CodecError as error:
            return b"", str(error)
        assert frames.shape == (steps, bits)
        assert frames.max() <= 1
        return frames.tobytes(), ""

    assert outcome(kind(tables, native=False)) == outcome(kind(tables))


GOLDEN = {
    "ctx": "00f6ef1995150c3d ec19a2d355427baa30c40e960d4dca",
    "ctx-max": "2de45c902c04 dd44496022ab1a0944",
}
"""Code words of :func:`golden_frames`: the first frame, then the other two in one."""


def golden_tables() -> ContextTables:
    """Return tables by arithmetic: no random generator need stay the same for ever."""
    table = np.arange(2 * 2 * 256).reshape(2, 2, 256)
    current = (np.arange(2 * 5 * 5 * 6) % 23 * 20 - 220).reshape(1, 2, 5, 5, 6)
    current[:, ~causal(2, 5, 3)] = 0
    past = (np.arange(2 * 2 * 3 * 3 * 6) % 19 * 20 - 180).reshape(1, 2, 2, 3, 3, 6)
    places = (np.arange(4 * 5 * 6) % 17 * 40 - 320).reshape(1, 4, 5, 6)
    return ContextTables(
        (2, 4, 5),
        (table * 7919 % 60000 + 2000).astype(np.uint16),
        MixingWeights(
            logits=(table * 31 % 1500 - 750).astype(np.int16),
            places=places.astype(np.int16),
            past=past.astype(np.int16),
            current=current.astype(np.int16),
            hidden=np.array([[200, -150], [-300, 90]], np.int16),
            squash=(np.arange(4096) * 15 + 2000).astype(np.uint16),
        ),
    )


def golden_frames() -> Frames:
    """Return three frames for :func:`golden_tables`."""
    return (np.arange(3 * 40) * 37 % 11 < 4).astype(np.uint8).reshape(3, 40)


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_golden_bytes(kind: type[ContextCodec | MixingCodec], is_native: bool) -> None:
    codec, frames = kind(golden_tables(), native=is_native), golden_frames()
    words = [codec.encode(frames[:1], []), codec.encode(frames[1:], [frames[0]])]
    assert " ".join(word.hex() for word in words) == GOLDEN[kind.name]
    np.testing.assert_array_equal(codec.decode(words[0], 1, 40, []), frames[:1])
    np.testing.assert_array_equal(codec.decode(words[1], 2, 40, [frames[0]]), frames[1:])


CAN_BUILD = (
    shutil.which("gcc") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()
)


@pytest.mark.skipif(not CAN_BUILD, reason="no gcc or no Python.h")
def test_where_it_can_be_built_c_is_used() -> None:
    assert native.IMPLEMENTATION == "c"


@pytest.mark.skipif(not native.AVAILABLE, reason="the C implementation was not built")
def test_c_takes_whatever_is_not_zero_for_a_spike() -> None:
    tables = random_tables((2, 3, 4), 1)
    frames = random_frames((2, 3, 4), 3, 0.4)
    codec = ContextCodec(tables)
    wild = frames * np.array([[255], [7], [128]], np.uint8)
    assert codec.encode(wild[2:], list(wild[:2])) == codec.encode(frames[2:], list(frames[:2]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_native", [True, False])
def test_frames_of_another_size_are_refused(
    kind: type[ContextCodec | MixingCodec], is_native: bool
) -> None:
    codec = kind(random_tables((2, 3, 4), 1), native=is_native)
    with pytest.raises(ValueError, match="expected frames of 24 bits, as the tables, got 25"):
        codec.encode(np.zeros((1, 25), np.uint8), [])
    with pytest.raises(ValueError, match="expected frames of 24 bits, as the tables, got 23"):
        codec.decode(b"", 1, 23, [])


def test_mixing_needs_its_weights() -> None:
    with pytest.raises(ValueError, match="mixing weights"):
        MixingCodec(random_tables((1, 2, 2), 1)._replace(mixing=None))


# --- the parameter file ------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", [True, False])
def test_tables_survive_being_stored(mixing: bool) -> None:
    tables = random_tables((3, 4, 5), 2)
    tables = tables if mixing else tables._replace(mixing=None)
    stored = save_tables(tables)
    again = load_tables(stored)
    assert save_tables(again) == stored
    assert again.shape == (3, 4, 5)
    np.testing.assert_array_equal(again.probabilities, tables.probabilities)
    assert (again.mixing is not None) == mixing


def changed(tables: ContextTables | None = None, **arrays: object) -> bytes:
    """Return a valid parameter file with some arrays replaced, or left out where None."""
    tables = tables or random_tables((2, 3, 3), 1)
    assert tables.mixing is not None
    content: dict[str, object] = {
        "shape": np.array(tables.shape, np.uint16),
        "probabilities": tables.probabilities,
        **tables.mixing._asdict(),
        **arrays,
    }
    buffer = io.BytesIO()
    kept = {name: array for name, array in content.items() if array is not None}
    np.savez(buffer, **kept)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_what_the_other_tests_change_is_valid() -> None:
    assert load_tables(changed()).rows == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected codec tables"),
        (b"PK\x03\x04 no archive", "expected codec tables"),
        (changed(shape=None), r"expected shape of uint16 \[3\]"),
        (changed(shape=np.array([2, 3, 3], np.int16)), "expected shape of uint16"),
        (changed(shape=np.array([[2, 3, 3]], np.uint16)), r"got uint16 \[1, 3\]"),
        (changed(shape=np.array([2, 0, 3], np.uint16)), "expected a code shape"),
        (changed(shape=np.array(2, np.uint16)), "16-bit integers"),
        (changed(shape=np.array(["2", "3", "3"])), "16-bit integers"),
        (changed(probabilities=None), "expected probabilities of uint16"),
        (changed(probabilities=np.ones((1, 2, 255), np.uint16)), r"\[1, 2, 256\]"),
        (changed(probabilities=np.ones((1, 2, 256), np.float32)), "16-bit integers"),
        (changed(probabilities=np.ones((1, 2, 256), np.int16)), "got int16"),
        (changed(probabilities=np.zeros((1, 2, 256), np.uint16)), "at least 1"),
        (changed(probabilities=np.ones((9, 2, 256), np.uint16)), "1 to 8 rows"),
        (changed(squash=None), "expected squash"),
        (changed(squash=np.zeros(4096, np.uint16)), "got 0"),
        (changed(current=np.ones((1, 2, 5, 5, 10), np.int16)), "coded later"),
        (changed(current=None), "3 or 5 neurons a side"),
        (changed(current=np.zeros((1, 2, 4, 4, 10), np.int16)), "3 or 5 neurons a side"),
        (changed(past=np.ones((1, 1, 2, 3, 3, 10), np.int16)), "expected past"),
        (changed(past=np.ones((2, 2, 2, 3, 3, 10), np.int16)), "of 1 or 1 sets"),
        (changed(past=np.ones((1, 2, 2, 3, 3, 20), np.int16)), "1 to 9 maps"),
        (changed(past=np.ones((1, 2, 2, 3, 3, 11), np.int16)), "expected past"),
        (changed(places=np.ones((1, 3, 2, 10), np.int16)), "expected places"),
        (changed(hidden=np.ones((2, 3), np.int16)), "expected hidden"),
        (changed(shape=np.array(["a", "b", "c"], object)), "expected codec tables"),
    ],
)
def test_wrong_parameter_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        load_tables(data)


def test_a_parameter_file_that_would_unpack_to_too_much_is_refused_before() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("shape.npy", bytes(MAX_BYTES + 1))
    with pytest.raises(CodecError, match="expected at most"):
        load_tables(buffer.getvalue())


def test_an_array_that_claims_more_than_it_holds_is_refused_before() -> None:
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': %b, }"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("shape.npy", (head % b"(900000000, 900000000)").ljust(127) + b"\n1234")
    tracemalloc.start()
    with pytest.raises(CodecError, match=r"expected \[900000000, 900000000\] integers, got 2"):
        load_tables(buffer.getvalue())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_a_network_may_leave_places_and_hidden_units_out() -> None:
    tables = random_tables((2, 3, 3), 2, sets=2, maps=1, side=3)
    assert tables.mixing is not None
    mixing = tables.mixing._replace(places=np.zeros_like(tables.mixing.places))
    short = load_tables(changed(tables=tables, places=None, hidden=None))
    frames = random_frames((2, 3, 3), 3, 0.4)
    expected = MixingCodec(tables._replace(mixing=mixing)).encode(frames, [])
    assert MixingCodec(short).encode(frames, []) == expected


def deflated(file: bytes) -> bytes:
    """Return a parameter file with its arrays compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(file)) as stored,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    return buffer.getvalue()


STORED = save_tables(golden_tables())
PARAMETER_FILES = [STORED, deflated(STORED)]


def test_a_compressed_parameter_file_is_read_as_well() -> None:
    stored, compressed = PARAMETER_FILES
    assert len(compressed) < len(stored)
    assert save_tables(load_tables(compressed)) == stored


@settings(max_examples=200)
@given(st.sampled_from(PARAMETER_FILES), st.data())
def test_a_damaged_parameter_file_is_refused_or_valid(file: bytes, data: st.DataObject) -> None:
    content = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    kept = data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))
    try:
        tables = load_tables(bytes(content[:kept]))
    except CodecError:
        return
    ContextCodec(tables)


def test_without_the_c_module_the_reference_runs() -> None:
    program = (
        "import sys; sys.modules['shared.codec._native'] = None\n"
        "from shared.codec import native\n"
        "from shared.codec.context_codec import ContextCodec\n"
        "from tests.shared.codec.test_context_codec import random_frames, random_tables\n"
        "codec = ContextCodec(random_tables((2, 3, 4), 1))\n"
        "print(native.IMPLEMENTATION, codec.encode(random_frames((2, 3, 4), 1, 0.4), []).hex())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = ContextCodec(random_tables((2, 3, 4), 1)).encode(
        random_frames((2, 3, 4), 1, 0.4), []
    )
    assert done.stdout.split() == ["python", expected.hex()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_255_timesteps_in_packets_of_any_size(
    kind: type[ContextCodec | MixingCodec],
) -> None:
    shape, tables = (2, 3, 5), random_tables((2, 3, 5), 8)
    frames = random_frames(shape, 255, 0.2).reshape(255, *shape)
    encoder = SampleEncoder(kind(tables, native=False), shape, 255, Checksum.CRC16)
    decoder = SampleDecoder(kind(tables), shape, 255, Checksum.CRC16)
    sizes, start, found = itertools.cycle([1, 7, 2, 30]), 0, []
    while start < 255:
        steps = min(next(sizes), 255 - start)
        for packet in encoder.encode(frames[start : start + steps]):
            found.append(decoder.decode(packet.to_bytes(0))[1])
        start += steps
    np.testing.assert_array_equal(np.concatenate(found), frames)


@pytest.mark.skipif(not native.AVAILABLE, reason="the C implementation was not built")
def test_carries_run_through_long_code_words() -> None:
    shape = (8, 32, 32)
    tables = random_tables(shape, 2)
    frames = random_frames(shape, 8, 0.5)
    word = ContextCodec(tables, native=False).encode(frames, [])
    # About one byte in 256 is full, and half of the carries run into one from behind.
    assert word.count(b"\xff") > 16
    assert ContextCodec(tables).encode(frames, []) == word
