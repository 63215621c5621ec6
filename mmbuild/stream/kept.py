"""The arrays of an index in one file, ``index.npz``, so that no process has to parse every commit record again.

The records stay the truth: the file says for which bytes of which record it speaks, and who reads it compares them.
Whoever uses numpy can read it; who changes a byte of it makes it nothing.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping

import google_crc32c
import numpy as np

from mmbuild.stream.chunks import CRC_RESIDUE

KEPT = "index.npz"
# What the arrays mean; another number is another meaning, and the file is made anew.
VERSION = 1
_COMMENT = struct.Struct("<H")


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz of the arrays whose archive comment is the crc32c of all bytes before; equal arrays, equal bytes."""
    sink = io.BytesIO()
    np.savez(sink, version=np.array(VERSION), **arrays)  # type: ignore[arg-type]
    # A zip archive ends with the length of its comment, 0, and the comment.
    checked = sink.getvalue()[: -_COMMENT.size] + _COMMENT.pack(4)
    return checked + struct.pack("<I", google_crc32c.value(checked))


def unpacked(data: bytes) -> Mapping[str, np.ndarray] | None:
    """The arrays, each read when it is asked for; None when a byte is not as it was written, or of another version."""
    if google_crc32c.value(data) != CRC_RESIDUE:
        return None
    arrays = np.load(io.BytesIO(data))
    found: Mapping[str, np.ndarray] | None = arrays if int(arrays["version"]) == VERSION else None
    return found
