"""Reading PMTiles archives of many tiles: the directory as arrays, tiles by id from mapped memory."""

from __future__ import annotations

import gzip
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmbuild.errors import UserError


class Archive:
    """An opened archive; threads may share it. ids: of every tile, rising.

    Raises UserError for a file that is none, or that has leaves where the specification has tiles.
    """

    def __init__(self, path: Path) -> None:
        from pmtiles.tile import MagicNumberNotFound, SpecVersionUnsupported, deserialize_header

        self.path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        try:
            self.header = deserialize_header(self._bytes[:127])
            entries = list(self._entries(self.header["root_offset"], self.header["root_length"]))
        except (MagicNumberNotFound, SpecVersionUnsupported, IndexError, EOFError, gzip.BadGzipFile) as error:
            fix = "download it again; it may be cut short"
            raise UserError(f"is no PMTiles archive of version 3 ({type(error).__name__})", str(path), fix) from None
        table = np.array(entries, np.int64).reshape(-1, 3)
        self.ids, self._offsets, self._lengths = table[np.argsort(table[:, 0])].T

    def _entries(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(tile id, offset, length) of every tile below a directory; a run of equal tiles is several."""
        from pmtiles.tile import deserialize_directory

        for entry in deserialize_directory(self._bytes[offset : offset + length]):
            if entry.run_length == 0:
                yield from self._entries(self.header["leaf_directory_offset"] + entry.offset, entry.length)
            else:
                for step in range(entry.run_length):
                    yield entry.tile_id + step, entry.offset, entry.length

    @property
    def metadata(self) -> dict[str, Any]:
        start = self.header["metadata_offset"]
        data = self._bytes[start : start + self.header["metadata_length"]]
        found: dict[str, Any] = (
            json.loads(gzip.decompress(data)) if data[:2] == b"\x1f\x8b" else json.loads(data or b"{}")
        )
        return found

    def get(self, tile_id: int) -> bytes | None:
        """The bytes of a tile, None when there is none."""
        row = int(np.searchsorted(self.ids, tile_id))
        if row == len(self.ids) or self.ids[row] != tile_id:
            return None
        start = self.header["tile_data_offset"] + int(self._offsets[row])
        data = self._bytes[start : start + int(self._lengths[row])]
        if len(data) < int(self._lengths[row]):
            raise UserError("is cut short", str(self.path), "download it again")
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
