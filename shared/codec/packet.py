"""The packet: one timestep of one sample (or a few in one code word) as bytes.

::

    byte 0     bits 0-2  timestep mod 8
               bit  3    first packet of its sample
               bits 4-5  sample mod 4
               bits 6-7  kind: 0 coded, 1 raw, 2 several timesteps in one code word, 3 refused
    byte 1     kind 2 only: how many timesteps, 2 to 255
    then       payload: at most ceil(n / 8) bytes per timestep, n the bits of one code frame
    last 2     checksum mode crc16 only: CRC-16/CCITT, big-endian

The length is the transport's business. The check covers the packed code bits (not the payload) of
the packet's timesteps and is seeded with that of the sample's previous packet, 0xFFFF at first: it
also notices a lost packet, a wrong table and a wrong history. Frames sent raw enter the history
like all others.
"""

from __future__ import annotations

import binascii
import math
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.codec.bitpack import Frames, pack, packed_bytes, unpack
from shared.codec.codecs import Codec
from shared.errors import CheckError, CodecError

Shape = tuple[int, int, int]
"""``[C, H, W]`` of one code frame."""

MAX_TIMESTEPS = 255
_FIRST_SEED = 0xFFFF


class Checksum(StrEnum):
    """What guards a sample's bits on the way; agreed when the stream opens."""

    NONE = "none"
    CRC16 = "crc16"

    @property
    def size_bytes(self) -> int:
        """Bytes of the check at the end of every packet."""
        return 2 if self is Checksum.CRC16 else 0


class Kind(IntEnum):
    """How the payload is to be read."""

    CODED = 0
    RAW = 1
    STEPS = 2


class Header(NamedTuple):
    """What a packet says about itself."""

    timestep_mod8: int
    first: bool
    sample_mod4: int
    kind: Kind
    steps: int
    """Timesteps in the packet."""

    @property
    def size_bytes(self) -> int:
        """Bytes before the payload."""
        return 2 if self.kind is Kind.STEPS else 1

    def to_bytes(self) -> bytes:
        """Return the bytes before the payload."""
        first_byte = self.timestep_mod8 | self.first << 3 | self.sample_mod4 << 4 | self.kind << 6
        return bytes((first_byte, self.steps) if self.kind is Kind.STEPS else (first_byte,))


def parse_header(packet: bytes) -> Header:
    """Read where a packet belongs, without decoding it.

    Raises:
        CodecError: empty, truncated, of the reserved kind, or with a bad number of timesteps.
    """
    if not packet:
        raise CodecError("expected a packet, got no bytes")
    head = packet[0]
    if head >> 6 == 3:
        raise CodecError("expected packet kind 0, 1 or 2, got 3")
    header = _HEADERS[head]
    if header.kind is Kind.STEPS:
        return header._replace(steps=_parse_steps(packet))
    return header


_HEADERS = tuple(
    Header(
        timestep_mod8=head & 7,
        first=bool(head >> 3 & 1),
        sample_mod4=head >> 4 & 3,
        kind=Kind(head >> 6),
        steps=1,
    )
    for head in range(3 << 6)
)
"""What every valid first byte says; made once, since a server reads one per timestep."""


def _parse_steps(packet: bytes) -> int:
    if len(packet) < 2:
        raise CodecError("expected the number of timesteps in byte 1, the packet ends before")
    if packet[1] < 2:
        raise CodecError(f"expected 2 to 255 timesteps in one code word, got {packet[1]}")
    return packet[1]


def max_packet_bytes(shape: Shape, steps: int, checksum: Checksum) -> int:
    """Return the length of the longest valid packet of ``steps`` timesteps."""
    header_bytes = 2 if steps > 1 else 1
    return header_bytes + steps * packed_bytes(math.prod(shape)) + checksum.size_bytes


@dataclass(frozen=True, slots=True)
class EncodedPacket:
    """A packet that waits for the number of its sample.

    The same sample sent again under another number has the same bytes but for two header bits.
    """

    timestep: int
    """The first timestep in it, 0-based."""
    steps: int
    kind: Kind
    payload: bytes
    check: bytes

    @property
    def payload_bytes(self) -> int:
        """Code bits after the codec, in bytes: what the paper counts."""
        return len(self.payload)

    def to_bytes(self, sample: int) -> bytes:
        """Return the packet as part of the stream's sample number ``sample``."""
        header = Header(self.timestep % 8, self.timestep == 0, sample % 4, self.kind, self.steps)
        return header.to_bytes() + self.payload + self.check


class _Sample:
    """What both ends remember of one sample: how far it is, its frames, its check."""

    def __init__(self, codec: Codec, shape: Shape, timesteps: int, checksum: Checksum) -> None:
        if min(shape) < 1:
            raise ValueError(f"expected a code shape of positive sizes, got {shape}")
        if not 1 <= timesteps <= MAX_TIMESTEPS:
            raise ValueError(f"expected 1 to {MAX_TIMESTEPS} timesteps, got {timesteps}")
        self.codec = codec
        self.shape = shape
        self.timesteps = timesteps
        self.check_bytes = checksum.size_bytes
        self.bits = math.prod(shape)
        self.packed_bytes = packed_bytes(self.bits)
        self.history: list[Frames] = []
        self._seed = _FIRST_SEED

    @property
    def timestep(self) -> int:
        """The next timestep."""
        return len(self.history)

    @property
    def left(self) -> int:
        """Timesteps yet to come."""
        return self.timesteps - self.timestep

    def advance(self, frames: Frames, packed: bytes | None) -> bytes:
        """Remember decoded frames, uint8 ``[k, n]``; return the check of their packet.

        ``packed`` is what :func:`pack` makes of them, where that is known already.
        """
        self.history.extend(frames)
        if not self.check_bytes:
            return b""
        self._seed = binascii.crc_hqx(pack(frames) if packed is None else packed, self._seed)
        return self._seed.to_bytes(2, "big")


class SampleEncoder:
    """Turns the code frames of one sample into packets, in order.

    Args:
        codec: the stream's codec.
        shape: ``[C, H, W]`` of one frame.
        timesteps: T, the most frames the sample can have.
        checksum: the stream's checksum mode.
        raw: send every frame raw whatever the codec; a replay after a failed check does.

    Raises:
        ValueError: an impossible shape or number of timesteps.
    """

    def __init__(
        self,
        codec: Codec,
        shape: Shape,
        timesteps: int,
        checksum: Checksum,
        *,
        raw: bool = False,
    ) -> None:
        self._sample = _Sample(codec, shape, timesteps, checksum)
        self._raw = raw

    def encode(self, frames: NDArray[np.uint8] | NDArray[np.bool_]) -> list[EncodedPacket]:
        """Encode the next timesteps, as one packet where that is shortest.

        Args:
            frames: uint8 (0 or 1) or bool, ``[k, C, H, W]``; copied.

        Returns:
            One packet of k timesteps, or k raw packets.

        Raises:
            ValueError: another shape or type, more frames than timesteps left, or values other
                than 0 and 1.
        """
        flat = self._flatten(frames)
        code_word = None if self._raw else self._code_word(flat)
        if code_word is None:
            return [self._packet(Kind.RAW, frame, pack(frame)) for frame in flat[:, np.newaxis]]
        kind = Kind.CODED if len(flat) == 1 else Kind.STEPS
        return [self._packet(kind, flat, code_word)]

    def _flatten(self, frames: NDArray[np.uint8] | NDArray[np.bool_]) -> Frames:
        sample = self._sample
        if frames.shape[1:] != sample.shape or not 1 <= len(frames) <= sample.left:
            raise ValueError(
                f"expected 1 to {sample.left} frames of shape {sample.shape}, got {frames.shape}"
            )
        if frames.dtype not in (np.uint8, np.bool_) or frames.max() > 1:
            raise ValueError(f"expected zeros and ones in uint8 or bool, got {frames.dtype}")
        return frames.astype(np.uint8).reshape(len(frames), sample.bits)

    def _code_word(self, flat: Frames) -> bytes | None:
        """Return the code word of all frames, or nothing where raw packets are as short."""
        sample, steps = self._sample, len(flat)
        code_word = sample.codec.encode(flat, sample.history)
        raw_bytes = steps * sample.packed_bytes
        if steps == 1:
            return code_word if len(code_word) < raw_bytes else None
        total_bytes = 2 + len(code_word) + sample.check_bytes
        raw_total_bytes = steps * (1 + sample.packed_bytes + sample.check_bytes)
        fits = len(code_word) <= raw_bytes and total_bytes < raw_total_bytes
        return code_word if fits else None

    def _packet(self, kind: Kind, frames: Frames, payload: bytes) -> EncodedPacket:
        timestep = self._sample.timestep
        check = self._sample.advance(frames, payload if kind is Kind.RAW else None)
        return EncodedPacket(timestep, len(frames), kind, payload, check)


class SampleDecoder:
    """Turns the packets of one sample, from a stranger, back into code frames.

    Args:
        codec: the stream's codec.
        shape: ``[C, H, W]`` of one frame.
        timesteps: T, the most frames the sample can have.
        checksum: the stream's checksum mode.

    Raises:
        ValueError: an impossible shape or number of timesteps.
    """

    def __init__(self, codec: Codec, shape: Shape, timesteps: int, checksum: Checksum) -> None:
        self._sample = _Sample(codec, shape, timesteps, checksum)
        self._dead = False

    def decode(self, packet: bytes) -> tuple[int, Frames]:
        """Decode the sample's next packet. After an error no further one is taken.

        Returns:
            The first timestep in it and the frames, uint8 ``[k, C, H, W]``, read-only: the codec
            remembers them.

        Raises:
            CheckError: the check differs from that of the decoded bits.
            CodecError: malformed, out of order, or after an error.
        """
        if self._dead:
            raise CodecError("expected no packet after one of this sample failed")
        self._dead = True
        sample, header = self._sample, parse_header(packet)
        timestep, steps = sample.timestep, header.steps
        self._check_order(header, timestep)
        begin, end = header.size_bytes, len(packet) - sample.check_bytes
        if not 0 <= end - begin <= steps * sample.packed_bytes:
            limit = steps * sample.packed_bytes
            raise CodecError(f"expected a payload of 0 to {limit} bytes, got {end - begin}")
        payload, check = packet[begin:end], packet[end:]
        if header.kind is Kind.RAW:
            frames = unpack(payload, sample.bits)
            expected = sample.advance(frames, payload)
        else:
            frames = sample.codec.decode(payload, steps, sample.bits, sample.history)
            expected = sample.advance(frames, None)
        if check != expected:
            raise CheckError(
                f"timestep {timestep}: expected check {expected.hex()}, got {check.hex()}"
            )
        self._dead = False
        shaped = frames.reshape(steps, *sample.shape)
        shaped.setflags(write=False)
        return timestep, shaped

    def _check_order(self, header: Header, timestep: int) -> None:
        left = self._sample.timesteps - timestep
        if header.steps > left:
            raise CodecError(f"expected at most {left} timesteps, got {header.steps}")
        if header.timestep_mod8 != timestep % 8:
            raise CodecError(
                f"expected timestep {timestep} ({timestep % 8} mod 8), got {header.timestep_mod8}"
            )
        if header.first != (timestep == 0):
            raise CodecError(
                f"expected first-of-sample at timestep 0 alone, got {header.first} at {timestep}"
            )
