"""Encoded chunks into memory that is there already: checksum, then Blosc.

Decoding releases the GIL and uses no thread of Blosc's own. Damaged bytes are a ValueError that says what is wrong.
Parts of a chip are not decoded by themselves: with LZ4 a Blosc block is never below 64 KiB, two planes of 128 px, so
that a window needs nearly every block (measured); what is outside a window is decoded and not copied.

It is python-blosc that decodes, and not numcodecs, which has the same C library and does more in Python before it lets
other threads on: two threads get through 1.16 times as many samples (benchmarks/decoders.py).
"""

from __future__ import annotations

import blosc
import google_crc32c
import numpy as np
from blosc.blosc_extension import error as BloscError

# Of python-blosc only, and for the whole process: it lets the GIL go, and one thread decodes one chunk.
blosc.set_releasegil(True)
blosc.set_nthreads(1)

# Bytes as they came: of a file, or uint8 in the memory of an answer.
Encoded = bytes | np.ndarray
CRC_BYTES = 4
_HEADER_BYTES = 16
# crc32c of any bytes followed by their own crc32c (little-endian): so a chunk is checked without taking it apart.
CRC_RESIDUE = 0x48674BC7


def decode_chunk(chunk: Encoded, address: int, nbytes: int) -> None:
    """Decode one inner chunk into the ``nbytes`` writable bytes at ``address``, the GIL released.

    ValueError when the checksum is wrong or the chunk holds another number of bytes, before anything is written, or
    when Blosc cannot decode it; nothing is ever written beyond.
    """
    if len(chunk) < _HEADER_BYTES + CRC_BYTES or google_crc32c.value(chunk) != CRC_RESIDUE:
        raise ValueError("its checksum is wrong")
    size = int.from_bytes(bytes(chunk[4:8]), "little")  # the Blosc header: bytes 4 to 8 are the decoded size
    if size != nbytes:
        raise ValueError(f"it decodes to {size} bytes where {nbytes} belong")
    try:
        blosc.decompress_ptr(memoryview(chunk)[:-CRC_BYTES], address)  # type: ignore[arg-type]
    except BloscError as error:
        raise ValueError(str(error)) from error
