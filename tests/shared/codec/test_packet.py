import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec.bitpack import Frames, pack, packed_bytes
from shared.codec.codecs import Codec, History, RawCodec, ZstdCodec
from shared.codec.packet import (
    Checksum,
    Header,
    Kind,
    SampleDecoder,
    SampleEncoder,
    Shape,
    max_packet_bytes,
    parse_header,
)
from shared.errors import CheckError, CodecError

SHAPE = (1, 2, 5)
FRAME_0 = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 1], np.uint8)
FRAME_1 = np.array([0, 0, 0, 0, 0, 0, 0, 1, 0, 1], np.uint8)
FRAMES = np.stack([FRAME_0, FRAME_1]).reshape(2, *SHAPE)


class FixedLengthCodec:
    """Encodes to a given number of zero bytes; never decoded."""

    name = "fixed"

    def __init__(self, length: int) -> None:
        self.length = length

    def encode(self, frames: Frames, history: History) -> bytes:
        return bytes(self.length)

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        raise CodecError("expected no decoding")


class RepeatCodec:
    """Nothing for frames equal to the last one, otherwise something too long to be used."""

    name = "repeat"

    def encode(self, frames: Frames, history: History) -> bytes:
        if history and (frames == history[-1]).all():
            return b""
        return bytes(frames.size + 1)

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        if data or not history:
            raise CodecError("expected a repetition")
        return np.tile(history[-1], (steps, 1))


CODECS: dict[str, Codec] = {"raw": RawCodec(), "zstd": ZstdCodec(), "repeat": RepeatCodec()}


def encoder(
    codec: Codec | None = None,
    checksum: Checksum = Checksum.NONE,
    shape: Shape = SHAPE,
    timesteps: int = 4,
    raw: bool = False,
) -> SampleEncoder:
    return SampleEncoder(codec or RawCodec(), shape, timesteps, checksum, raw=raw)


def decoder(
    codec: Codec | None = None,
    checksum: Checksum = Checksum.NONE,
    shape: Shape = SHAPE,
    timesteps: int = 4,
) -> SampleDecoder:
    return SampleDecoder(codec or RawCodec(), shape, timesteps, checksum)


def crc16_ccitt(data: bytes, seed: int) -> int:
    """CRC-16/CCITT bit by bit, as the standard draws it."""
    for byte in data:
        seed ^= byte << 8
        for _ in range(8):
            seed = (seed << 1) ^ (0x1021 if seed & 0x8000 else 0)
            seed &= 0xFFFF
    return seed


# --- exact bytes -------------------------------------------------------------------------------


def test_golden_raw_packets_without_check() -> None:
    packets = encoder(raw=True).encode(FRAMES)
    assert [packet.to_bytes(0) for packet in packets] == [
        bytes.fromhex("48 AA C0"),
        bytes.fromhex("41 01 40"),
    ]


def test_golden_raw_packets_with_check() -> None:
    packets = encoder(checksum=Checksum.CRC16, raw=True).encode(FRAMES)
    assert [packet.to_bytes(2) for packet in packets] == [
        bytes.fromhex("68 AA C0 36 F6"),
        bytes.fromhex("61 01 40 5B 1F"),
    ]


def test_golden_two_timesteps_in_one_code_word() -> None:
    (packet,) = encoder(checksum=Checksum.CRC16).encode(FRAMES)
    assert packet.to_bytes(7) == bytes.fromhex("B8 02 AA C0 01 40 5B 1F")


def test_golden_coded_packet() -> None:
    sample = encoder(RepeatCodec(), Checksum.CRC16)
    sample.encode(FRAMES[:1])
    (packet,) = sample.encode(FRAMES[:1])
    assert packet.to_bytes(1) == bytes.fromhex("11 0B 13")


def test_the_check_is_crc16_ccitt_chained_over_the_sample() -> None:
    first, second = encoder(checksum=Checksum.CRC16, raw=True).encode(FRAMES)
    check_0 = crc16_ccitt(pack(FRAME_0), 0xFFFF)
    check_1 = crc16_ccitt(pack(FRAME_1), check_0)
    assert first.check == check_0.to_bytes(2, "big")
    assert second.check == check_1.to_bytes(2, "big")


# --- headers -----------------------------------------------------------------------------------


def test_a_header_says_where_a_packet_belongs() -> None:
    assert parse_header(bytes.fromhex("68 AA C0")) == Header(0, True, 2, Kind.RAW, 1)
    assert parse_header(bytes.fromhex("35")) == Header(5, False, 3, Kind.CODED, 1)
    assert parse_header(bytes.fromhex("98 FF 00")) == Header(0, True, 1, Kind.STEPS, 255)


@settings(deadline=None)
@given(
    st.integers(0, 7), st.booleans(), st.integers(0, 3), st.sampled_from(Kind), st.integers(2, 255)
)
def test_a_header_survives_the_wire(
    timestep: int, first: bool, sample: int, kind: Kind, steps: int
) -> None:
    header = Header(timestep, first, sample, kind, steps if kind is Kind.STEPS else 1)
    assert parse_header(header.to_bytes()) == header


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"", "no bytes"),
        (b"\xc8\x00\x00", "kind 0, 1 or 2, got 3"),
        (b"\x88", "ends before"),
        (b"\x88\x00", "2 to 255 timesteps in one code word, got 0"),
        (b"\x88\x01\x00", "2 to 255 timesteps in one code word, got 1"),
    ],
)
def test_a_bad_header_is_refused(packet: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        parse_header(packet)
    with pytest.raises(CodecError, match=message):
        decoder().decode(packet)


# --- encoding ----------------------------------------------------------------------------------


def test_a_replay_differs_in_its_sample_bits_alone() -> None:
    (packet,) = encoder(checksum=Checksum.CRC16).encode(FRAMES)
    old, new = packet.to_bytes(4), packet.to_bytes(5)
    assert old[0] ^ new[0] == 0b0001_0000
    assert old[1:] == new[1:]


@pytest.mark.parametrize(("length", "kind"), [(0, Kind.CODED), (1, Kind.CODED), (2, Kind.RAW)])
def test_a_frame_is_sent_raw_unless_coding_is_shorter(length: int, kind: Kind) -> None:
    (packet,) = encoder(FixedLengthCodec(length)).encode(FRAMES[:1])
    assert packet.kind is kind
    assert packet.payload_bytes == min(length, 2)


@pytest.mark.parametrize(
    ("checksum", "length", "kinds"),
    [
        (Checksum.NONE, 3, [Kind.STEPS]),  # 2 + 3 bytes against 2 * (1 + 2)
        (Checksum.NONE, 4, [Kind.RAW, Kind.RAW]),
        (Checksum.CRC16, 4, [Kind.STEPS]),  # 2 + 4 + 2 bytes against 2 * (1 + 2 + 2)
        (Checksum.CRC16, 5, [Kind.RAW, Kind.RAW]),  # shorter, but beyond the payload limit
    ],
)
def test_several_timesteps_go_in_one_packet_only_where_that_is_shorter(
    checksum: Checksum, length: int, kinds: list[Kind]
) -> None:
    packets = encoder(FixedLengthCodec(length), checksum).encode(FRAMES)
    assert [packet.kind for packet in packets] == kinds
    assert sum(packet.steps for packet in packets) == 2


def test_forced_raw_never_asks_the_codec() -> None:
    packets = encoder(FixedLengthCodec(0), raw=True).encode(FRAMES)
    assert [(packet.timestep, packet.kind) for packet in packets] == [
        (0, Kind.RAW),
        (1, Kind.RAW),
    ]


def test_frames_sent_raw_enter_the_history() -> None:
    sample, other = encoder(RepeatCodec()), decoder(RepeatCodec())
    packets = [sample.encode(FRAMES[:1])[0] for _ in range(3)]
    assert [packet.kind for packet in packets] == [Kind.RAW, Kind.CODED, Kind.CODED]
    assert [packet.payload_bytes for packet in packets] == [2, 0, 0]
    for timestep, packet in enumerate(packets):
        found, frames = other.decode(packet.to_bytes(0))
        assert found == timestep
        np.testing.assert_array_equal(frames, FRAMES[:1])


def test_history_is_safe_from_a_caller_that_reuses_its_arrays() -> None:
    sample, other = encoder(RepeatCodec()), decoder(RepeatCodec())
    frames = FRAMES[:1].copy()
    packet = sample.encode(frames)[0]
    frames[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        other.decode(packet.to_bytes(0))[1][:] = 0
    packet = sample.encode(FRAMES[:1])[0]
    assert packet.kind is Kind.CODED
    np.testing.assert_array_equal(other.decode(packet.to_bytes(0))[1], FRAMES[:1])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 2, 5), np.uint8),
        np.zeros((0, 1, 2, 5), np.uint8),
        np.zeros((5, 1, 2, 5), np.uint8),
        np.zeros((1, 1, 5, 2), np.uint8),
        np.zeros((1, 1, 2, 5), np.float32),
        np.full((1, 1, 2, 5), 2, np.uint8),
    ],
)
def test_frames_that_are_not_the_next_spikes_are_refused(frames: Frames) -> None:
    with pytest.raises(ValueError, match="expected"):
        encoder().encode(frames)


def test_bool_frames_are_spikes_too() -> None:
    (as_bool,) = encoder().encode(FRAMES[:1].astype(bool))
    (as_uint8,) = encoder().encode(FRAMES[:1])
    assert as_bool == as_uint8


@pytest.mark.parametrize(("shape", "timesteps"), [((0, 1, 1), 4), (SHAPE, 0), (SHAPE, 256)])
def test_an_impossible_sample_is_refused(shape: Shape, timesteps: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        encoder(shape=shape, timesteps=timesteps)


# --- round trip --------------------------------------------------------------------------------


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[Frames], int]:
    """Frames of one sample, cut into runs that are encoded together."""
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    timesteps = draw(st.integers(1, 12))
    rate = draw(st.sampled_from([0.0, 0.02, 0.2, 0.5, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    frames = (random.random((timesteps, *shape)) < rate).astype(np.uint8)
    runs, start = [], 0
    while start < timesteps:
        stop = start + draw(st.integers(1, timesteps - start))
        runs.append(frames[start:stop])
        start = stop
    return runs, timesteps


@settings(max_examples=200, deadline=None)
@given(samples(), st.sampled_from(sorted(CODECS)), st.sampled_from(Checksum), st.booleans())
def test_what_is_encoded_is_decoded(
    sample: tuple[list[Frames], int], codec_name: str, checksum: Checksum, raw: bool
) -> None:
    runs, timesteps = sample
    shape, codec = runs[0].shape[1:], CODECS[codec_name]
    source = encoder(codec, checksum, shape, timesteps, raw)
    sink = decoder(codec, checksum, shape, timesteps)
    decoded: list[Frames] = []
    for frames in runs:
        packets = source.encode(frames)
        for packet in packets:
            data = packet.to_bytes(9)
            assert len(data) <= max_packet_bytes(shape, packet.steps, checksum)
            assert packet.payload_bytes <= packet.steps * packed_bytes(frames[0].size)
            timestep, found = sink.decode(data)
            assert timestep == packet.timestep == len(decoded)
            decoded.extend(found)
    np.testing.assert_array_equal(np.stack(decoded), np.concatenate(runs))


# --- hostile bytes -----------------------------------------------------------------------------


def raw_packet(timestep: int, payload: str = "AA C0", first: bool | None = None) -> bytes:
    header = Header(timestep % 8, timestep == 0 if first is None else first, 0, Kind.RAW, 1)
    return header.to_bytes() + bytes.fromhex(payload)


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([raw_packet(1, first=True)], r"expected timestep 0 \(0 mod 8\), got 1"),
        ([raw_packet(0), raw_packet(0)], "expected timestep 1"),
        ([raw_packet(0), raw_packet(2)], "expected timestep 1"),
        ([raw_packet(0, first=False)], "first-of-sample"),
        ([raw_packet(0), raw_packet(1, first=True)], "first-of-sample"),
        ([raw_packet(t) for t in range(5)], "at most 0 timesteps, got 1"),
        ([bytes([0x88, 5]) + bytes(10)], "at most 4 timesteps, got 5"),
        ([raw_packet(0, "AA")], "expected 2 bytes"),
        ([raw_packet(0, "")], "expected 2 bytes"),
        ([raw_packet(0, "AA C0 00")], "payload of 0 to 2 bytes, got 3"),
        ([raw_packet(0, "AA C1")], "zeros after 10 bits"),
    ],
)
def test_a_packet_out_of_place_is_refused(packets: list[bytes], message: str) -> None:
    sink = decoder()
    for packet in packets[:-1]:
        sink.decode(packet)
    with pytest.raises(CodecError, match=message):
        sink.decode(packets[-1])


def test_a_packet_that_ends_in_its_check_is_refused() -> None:
    with pytest.raises(CodecError, match="payload of 0 to 2 bytes, got -1"):
        decoder(checksum=Checksum.CRC16).decode(b"\x48\xaa")


def test_after_an_error_the_sample_takes_no_more() -> None:
    sink = decoder()
    with pytest.raises(CodecError):
        sink.decode(raw_packet(3))
    with pytest.raises(CodecError, match="after one of this sample failed"):
        sink.decode(raw_packet(0))


def test_changed_bits_are_found_by_the_check() -> None:
    (packet,) = encoder(checksum=Checksum.CRC16).encode(FRAMES[:1])
    data = bytearray(packet.to_bytes(0))
    data[1] ^= 0x10
    with pytest.raises(CheckError, match="timestep 0: expected check"):
        decoder(checksum=Checksum.CRC16).decode(bytes(data))


def test_a_check_of_the_sample_before_is_found() -> None:
    source = encoder(checksum=Checksum.CRC16)
    source.encode(FRAMES[:1])
    stray = source.encode(FRAMES[1:])[0].to_bytes(0)
    sink = decoder(checksum=Checksum.CRC16)
    sink.decode(encoder(checksum=Checksum.CRC16).encode(FRAMES[1:])[0].to_bytes(0))
    with pytest.raises(CheckError):
        sink.decode(stray)


def decode_or_refuse(sink: SampleDecoder, packet: bytes, timesteps: int, shape: Shape) -> None:
    try:
        timestep, frames = sink.decode(packet)
    except CodecError:
        return
    assert frames.shape[1:] == shape
    assert timestep + len(frames) <= timesteps
    assert frames.max() <= 1


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.binary(max_size=60), min_size=1, max_size=6),
    st.sampled_from(sorted(CODECS)),
    st.sampled_from(Checksum),
)
def test_any_bytes_are_frames_of_the_agreed_size_or_an_error(
    packets: list[bytes], codec_name: str, checksum: Checksum
) -> None:
    shape, timesteps = (2, 3, 7), 5
    sink = decoder(CODECS[codec_name], checksum, shape, timesteps)
    for packet in packets:
        decode_or_refuse(sink, packet, timesteps, shape)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_packets_are_refused_or_stay_in_their_bounds(data: st.DataObject) -> None:
    shape, timesteps = (4, 16, 16), 4
    codec = CODECS[data.draw(st.sampled_from(["raw", "zstd"]))]
    checksum = data.draw(st.sampled_from(Checksum))
    random = np.random.default_rng(data.draw(st.integers(0, 50)))
    frames = (random.random((timesteps, *shape)) < 0.02).astype(np.uint8)
    steps = data.draw(st.sampled_from([1, 2, 4]))
    source = encoder(codec, checksum, shape, timesteps)
    sink = decoder(codec, checksum, shape, timesteps)
    for start in range(0, timesteps, steps):
        for packet in source.encode(frames[start : start + steps]):
            whole = packet.to_bytes(0)
            bit = data.draw(st.integers(0, 8 * len(whole) - 1))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            cut = data.draw(st.integers(0, len(whole)))
            decode_or_refuse(sink, bytes(damaged[:cut]), timesteps, shape)


@pytest.mark.parametrize("codec", [RawCodec(), ZstdCodec()], ids=["raw", "zstd"])
def test_with_check_every_flipped_bit_is_refused(codec: Codec) -> None:
    shape = (4, 16, 16)
    frames = (np.random.default_rng(3).random((1, *shape)) < 0.02).astype(np.uint8)
    (packet,) = encoder(codec, Checksum.CRC16, shape).encode(frames)
    whole = packet.to_bytes(0)
    routing = {4, 5}  # The sample number, which the stream looks at before the decoder.
    for bit in sorted(set(range(8 * len(whole))) - routing):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        sink = decoder(codec, Checksum.CRC16, shape)
        try:
            _, found = sink.decode(bytes(damaged))
        except CodecError:
            continue
        # A change of the code word that means the same frames does no harm.
        np.testing.assert_array_equal(found, frames)


def test_the_longest_packets() -> None:
    assert max_packet_bytes(SHAPE, 1, Checksum.NONE) == 3
    assert max_packet_bytes(SHAPE, 1, Checksum.CRC16) == 5
    assert max_packet_bytes(SHAPE, 4, Checksum.CRC16) == 12
