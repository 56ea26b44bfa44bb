"""Lossless codecs: frames of spikes to code words and back.

A codec may lean on the sample's earlier frames; both sides hand it the same. Its output may be
longer than the packed frames: :mod:`shared.codec.packet` sends those raw instead.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import zstandard

from shared.codec.bitpack import Frames, pack, packed_bytes, unpack
from shared.codec.context_codec import ContextCodec, MixingCodec
from shared.codec.context_model import ContextTables
from shared.errors import CodecError

History = Sequence[Frames]
"""The sample's frames so far, uint8 ``[n]`` each, oldest first."""


class Codec(Protocol):
    """A lossless code for ``k`` consecutive frames. Safe to share between threads."""

    @property
    def name(self) -> str:
        """The name both sides agree on when a stream opens."""

    def encode(self, frames: Frames, history: History) -> bytes:
        """Return the code word of ``frames``, uint8 ``[k, n]`` of zeros and ones."""

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        """Return the frames, uint8 ``[steps, bits]``, of a code word from a stranger.

        Raises:
            CodecError: not a code word of that many frames. Nothing larger than the frames is
                ever allocated.
        """


class RawCodec:
    """The packed bits themselves."""

    name = "raw"

    def encode(self, frames: Frames, history: History) -> bytes:
        """Return the packed frames."""
        return pack(frames)

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        """Return the frames; CodecError unless ``data`` is exactly their packed form."""
        return unpack(data, bits, steps)


class _ZstdContexts(threading.local):
    """Working memory of libzstd, which no two threads may use at once."""

    @cached_property
    def compressor(self) -> zstandard.ZstdCompressor:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _ZSTD_LEVEL,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        return zstandard.ZstdCompressor(compression_params=parameters)

    @cached_property
    def decompressor(self) -> zstandard.ZstdDecompressor:
        return zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)


_ZSTD_LEVEL = 19
"""On frames of 1024 bits 5 % fewer bytes than level 3, for some 20 microseconds each."""
_ZSTD_MIN_WINDOW_BYTES = 1024


class ZstdCodec:
    """A Zstandard frame of the packed bits, without magic number, size, checksum and dictionary.

    Each frame stands alone: the fixed cost is 5 bytes, so that codes of a few hundred bits
    seldom gain; it serves large codes and as a yardstick.
    """

    name = "zstd"

    def __init__(self) -> None:
        self._contexts = _ZstdContexts()

    def encode(self, frames: Frames, history: History) -> bytes:
        """Return the compressed packed frames; the history is not used."""
        return self._contexts.compressor.compress(pack(frames))

    def decode(self, data: bytes, steps: int, bits: int, history: History) -> Frames:
        """Return the frames of one whole Zstandard frame and nothing behind it.

        Raises:
            CodecError: damaged, truncated, followed by more, of another size, or in need of more
                memory than the frames explain.
        """
        expected = steps * packed_bytes(bits)
        try:
            _check_zstd_header(data, expected)
            packed = self._contexts.decompressor.decompress(
                data, max_output_size=expected, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise CodecError(f"expected a zstd frame of {expected} bytes: {error}") from error
        return unpack(packed, bits, steps)


def _check_zstd_header(data: bytes, expected: int) -> None:
    """Refuse what a frame header asks for before the library believes it.

    libzstd allocates the size that a frame declares, whatever limit it was given, and a window
    of up to 128 MiB for a frame that declares none.
    """
    header = zstandard.get_frame_parameters(data, zstandard.FORMAT_ZSTD1_MAGICLESS)
    if header.content_size not in (zstandard.CONTENTSIZE_UNKNOWN, expected):
        raise CodecError(f"expected a zstd frame of {expected} bytes, got {header.content_size}")
    limit = max(_ZSTD_MIN_WINDOW_BYTES, 2 * expected)
    if header.window_size > limit:
        raise CodecError(f"expected a window of at most {limit} bytes, got {header.window_size}")


CODECS: Mapping[str, Codec] = MappingProxyType(
    {codec.name: codec for codec in (RawCodec(), ZstdCodec())}
)
"""The codecs that need no tables, by name."""
NAMES = (ContextCodec.name, MixingCodec.name, *CODECS)
"""Every codec there is."""


def codecs_with(tables: ContextTables) -> Mapping[str, Codec]:
    """Return every codec that the tables of a bundle allow, by name."""
    found: dict[str, Codec] = {ContextCodec.name: ContextCodec(tables)}
    if tables.mixing is not None:
        found[MixingCodec.name] = MixingCodec(tables)
    return MappingProxyType(found | dict(CODECS))


def get_codec(name: str, codecs: Mapping[str, Codec] = CODECS) -> Codec:
    """Return the codec of that name.

    Raises:
        CodecError: there is none.
    """
    try:
        return codecs[name]
    except KeyError:
        known = ", ".join(codecs)
        raise CodecError(f"expected a codec of {known}; got {name!r}") from None
