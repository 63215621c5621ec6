"""Chips as 8-bit RGBA pictures and back: the rules of the Scale-ALiBi triple, and PNG."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mmbuild.explain import validate
from mmbuild.foreign.recode import FOLDER, Strict
from mmbuild.modality import Modality
from mmbuild.registry import load_modalities
from mmbuild.yamlfile import read_yaml

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Each row less the one above (PNG filter 2): a vectorised choice that compresses photographs well.
_UP = 2
_ZLIB_LEVEL = 6
OPAQUE = 255


class Picture(Strict):
    """Which bands of a modality are red, green and blue, and how they become bytes."""

    modality: str
    bands: tuple[str, ...] = Field(strict=False)
    render: Literal["bytes", "db"] = "bytes"
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None

    def paint(self, chip: np.ndarray, modality: Modality, *, faithful: bool) -> np.ndarray:
        """(y, x, 4) uint8 of a chip (band, y, x); alpha is 0, and all else too, where any shown band is missing."""
        found = np.zeros((*chip.shape[1:], 4), np.uint8)
        shown = [modality.band_names.index(band) for band in self.bands if band != "-"]
        valid = (chip[shown] != modality.fill).all(axis=0)
        for channel, band in enumerate(self.bands):
            if band != "-":
                found[..., channel] = np.where(valid, self._bytes(chip[modality.band_names.index(band)], faithful), 0)
        found[..., 3] = np.where(valid, OPAQUE, 0)
        return found

    def _bytes(self, values: np.ndarray, faithful: bool) -> np.ndarray:
        if self.render == "bytes":
            return values.astype(np.uint8)
        numbers = values.astype(np.float64)
        if faithful:
            # Clipped to 1 and scaled to 256: the brightest do not fit into a byte and turn over to 0.
            wrapped: np.ndarray = (np.minimum(10 ** (numbers / 20), 1) * 256).astype(np.int64).astype(np.uint8)
            return wrapped
        low, high = self.range or (0.0, 1.0)
        scaled: np.ndarray = np.round(np.clip((numbers - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        return scaled

    def read(self, picture: np.ndarray, modality: Modality) -> np.ndarray:
        """The chip (band, y, x) of an RGBA picture; nodata where it is transparent and in bands it does not show."""
        chip = np.full((len(modality.bands), *picture.shape[:2]), modality.fill)
        for channel, band in enumerate(self.bands):
            if band != "-":
                values = np.where(picture[..., 3] > 0, picture[..., channel], modality.fill)
                chip[modality.band_names.index(band)] = values.astype(modality.np_dtype)
        return chip


class Level(Strict):
    """What an archive shows at one zoom."""

    zoom: int
    one_of: tuple[Picture, ...] = Field(strict=False)
    imported: Picture


class Triple(Strict):
    """The layout: archives by name. anchor: the archive whose tiles date and place the samples."""

    archives: dict[str, Annotated[tuple[Level, ...], Field(strict=False)]]
    tile: int
    anchor: str


def load_triple() -> Triple:
    """The rules that come with mmbuild."""
    return validate(Triple, read_yaml(FOLDER / "pmtiles.yaml"))


def known_modalities() -> Mapping[str, Modality]:
    """The built-in modalities and those that only foreign files have."""
    return load_modalities(FOLDER / "modalities")


def encode_png(picture: np.ndarray) -> bytes:
    """(y, x, 4) uint8 as a PNG; the same picture gives the same bytes."""
    height, width, _ = picture.shape
    above = np.vstack([np.zeros((1, width, 4), np.uint8), picture[:-1]])
    rows = np.empty((height, 1 + 4 * width), np.uint8)
    rows[:, 0] = _UP
    rows[:, 1:] = (picture - above).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = zlib.compress(rows.tobytes(), _ZLIB_LEVEL)
    return _SIGNATURE + _part(b"IHDR", header) + _part(b"IDAT", data) + _part(b"IEND", b"")


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def decode_picture(data: bytes) -> np.ndarray:
    """(y, x, 4) uint8 of a PNG or JPEG; one without alpha is opaque, grey is three equal channels.

    Raises ValueError for anything else.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error
