"""Zarr version 2 groups in a zip, written chunk by chunk: what readers that pin zarr 2 open.

The same arrays give the same bytes: entries carry no time, and chunks are encoded by one Blosc thread.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numcodecs import blosc

_LEVEL = 5
_COMPRESSOR = {"id": "blosc", "cname": "zstd", "clevel": _LEVEL, "shuffle": blosc.SHUFFLE, "blocksize": 0}


class ZarrZip:
    """A group that is being written; ``close`` writes the consolidated metadata."""

    def __init__(self, file: IO[bytes], attributes: Mapping[str, Any]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._metadata: dict[str, Any] = {}
        self._put_json(".zgroup", {"zarr_format": 2})
        self._put_json(".zattrs", dict(attributes))

    def array(self, name: str, dims: Sequence[str], values: np.ndarray, **attributes: Any) -> None:
        """A small array in one chunk."""
        shape = tuple(max(1, n) for n in values.shape)
        self.chunked(name, dims, values.shape, values.dtype, shape, [values], **attributes)

    def chunked(
        self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: np.dtype[Any], chunks: Sequence[int],
        values: Iterable[np.ndarray | None], *, fill: Any = None, **attributes: Any,
    ) -> None:  # fmt: skip
        """An array of the chunks that ``values`` gives in C order; None leaves a chunk out, which reads as ``fill``."""
        dtype = dtype.newbyteorder("<")
        self._put_json(
            f"{name}/.zarray",
            {
                "zarr_format": 2, "shape": list(shape), "chunks": list(chunks), "dtype": dtype.str, "order": "C",
                "compressor": _COMPRESSOR, "filters": None, "fill_value": fill,
            },
        )  # fmt: skip
        self._put_json(f"{name}/.zattrs", {"_ARRAY_DIMENSIONS": list(dims), **attributes})
        counts = [-(-n // step) for n, step in zip(shape, chunks, strict=True)]
        for place, chunk in zip(np.ndindex(*counts), values, strict=True):
            if chunk is not None:
                self._put(f"{name}/{'.'.join(map(str, place)) or '0'}", encode(chunk.astype(dtype, copy=False)))

    def close(self) -> None:
        self._put_json(".zmetadata", {"zarr_consolidated_format": 1, "metadata": self._metadata}, keep=False)
        self._zip.close()

    def _put_json(self, key: str, content: Mapping[str, Any], *, keep: bool = True) -> None:
        if keep:
            self._metadata[key] = content
        self._put(key, json.dumps(content, indent=1).encode())

    def _put(self, key: str, data: bytes) -> None:
        entry = zipfile.ZipInfo(key, date_time=(1980, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        self._zip.writestr(entry, data)


def encode(chunk: np.ndarray) -> bytes:
    """A chunk, C order, as Blosc has it."""
    blosc.set_nthreads(1)
    return bytes(blosc.compress(np.ascontiguousarray(chunk), b"zstd", _LEVEL, blosc.SHUFFLE, 0))
