"""Reads the files of a served model for edges that fetch them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from protos import co_inference_pb2 as pb
from shared.errors import BundleError, InputError
from shared.model.bundle import Bundle

CHUNK_BYTES = 1 << 16


async def file_chunks(bundle: Bundle, name: str, offset_bytes: int) -> AsyncIterator[pb.FetchChunk]:
    """Yield a file from an offset on, at least one chunk, read on a thread of its own.

    Args:
        bundle: the model.
        name: ``manifest.json``, or as in the manifest: nothing else is opened.
        offset_bytes: where to begin.

    Raises:
        InputError: no such file, or an offset past its end.
    """
    try:
        file = bundle.open(name)
    except BundleError:
        # Its message has the path on this machine.
        held = f"a file that this server holds of {bundle.manifest.name}"
        raise InputError(f"expected {held}, got {name:.100}") from None
    with file:
        size_bytes = os.fstat(file.fileno()).st_size
        if offset_bytes > size_bytes:
            raise InputError(
                f"expected an offset of at most {size_bytes} bytes, got {offset_bytes}"
            )
        file.seek(offset_bytes)
        data = await asyncio.to_thread(file.read, CHUNK_BYTES)
        yield pb.FetchChunk(data=data, file_bytes=size_bytes)
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield pb.FetchChunk(data=data)
