"""Encoded chunks into arrays that are there already: checksum, then Blosc.

Decoding releases the GIL and uses no thread of Blosc's own. Damaged bytes are a ValueError that says what is wrong.
Parts of a chip are not decoded by themselves: what Blosc decodes at once is so long that all of it holds pixels of any
window that people train with (tests/test_cube.py); what is outside a window is decoded and not copied.
This is one chunk at a time, where compiled code is missing or could not do it; ``_chunks.c`` does the same for many.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
from numcodecs import blosc

# Bytes as they came: of a file, or uint8 in the memory of an answer.
Encoded = bytes | np.ndarray
CRC_BYTES = 4
_HEADER_BYTES = 16
# crc32c of any bytes followed by their own crc32c (little-endian): so a chunk is checked without taking it apart.
CRC_RESIDUE = 0x48674BC7


def decode_chunk(chunk: Encoded, out: np.ndarray) -> None:
    """Decode one inner chunk into ``out`` (C-contiguous, the chip's dtype and shape), the GIL released.

    ValueError when the checksum is wrong or the chunk holds another number of bytes, before anything is written, or
    when Blosc cannot decode it.
    """
    if len(chunk) < _HEADER_BYTES + CRC_BYTES or google_crc32c.value(chunk) != CRC_RESIDUE:
        raise ValueError("its checksum is wrong")
    size = int.from_bytes(bytes(chunk[4:8]), "little")  # the Blosc header: bytes 4 to 8 are the decoded size
    if size != out.nbytes:
        raise ValueError(f"it decodes to {size} bytes where {out.nbytes} belong")
    try:
        # Given a destination, Blosc writes in place; outside the main thread it then releases the GIL.
        blosc.decompress(chunk, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
