"""Yearly embeddings of the land: 64 numbers of unit length per 10 m pixel, a fixed function of what is there.

They stand in for the output of a large model and are none: a random, smooth, seeded map of climate, relief and cover,
so that near places and like places get like vectors, and a probe finds land cover in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

import numpy as np
from shapely.geometry import box

from mmbuild.sandbox.assets import Bounds, ImageInfo
from mmbuild.sandbox.earth_ground import coast_distance
from mmbuild.sandbox.earth_noise import Floats, hash_cells, hash_floats, noise, points, smoothstep
from mmbuild.sandbox.earth_products import Answer, Ask, product_field
from mmbuild.sandbox.earth_site import Site
from mmbuild.sandbox.earth_world import SyntheticDataset, band_info, required_bounds, square_transform
from mmbuild.sandbox.mgrs import to_lonlat, transformer, zone_of
from mmbuild.sandbox.scenes import lonlat_polygon

AXES = 64
# Tiles are 16384 pixels of 10 m. Source: AlphaEarth Foundations, description of the published files.
TILE_M, PIXELS = 163_840, 16_384
# Coastal water is embedded, the open sea is not.
OFFSHORE_KM = -20.0
SEARCH_LIMIT = 4000
_DRIFT = noise(98, 20e3, 5, roughness=0.5)
_INDEX = re.compile(r"x(\d{4})z(\d{2})([ns])c(\d)r(\d{2})")


def _traits(site: Site, year: int) -> Floats:
    """(trait, point): what the vectors are made of; all of order one."""
    g, c = site.ground, site.cover
    sure = 0.55 + 0.45 * smoothstep(c.margin, 0.0, 2.0)
    kinds = [1.3 * (sure * (c.kind == k) + (1.0 - sure) * (c.second == k)) for k in range(11)]
    octave, wave = np.meshgrid(*(np.arange(n) for n in _DRIFT.phases.shape), indexing="ij")
    drift = _DRIFT(site.points, hash_cells(99, octave, wave, np.full(octave.shape, year)))
    climate = [g.temperature_c / 18.0, g.season_c / 18.0, np.log1p(g.rain_mm) / 4.0, smoothstep(g.moisture, 0.0, 2.5)]
    relief = [g.elevation_m / 2500.0, 2.0 * np.hypot(g.slope_east, g.slope_north), np.exp(-np.abs(g.coast_km) / 15.0)]
    plants = [c.canopy_m / 25.0, c.density, c.town, c.parcel - 0.5, 0.25 * c.texture, 0.3 * c.vigour, 0.12 * drift]
    return np.stack([np.asarray(v, dtype=np.float64) for v in (*kinds, *climate, *relief, *plants)])


@cache
def _weights(traits: int) -> tuple[Floats, Floats]:
    """A seeded matrix (AXES, traits) of about normal numbers, and offsets (AXES, 1)."""
    draws = np.array(hash_floats(97, AXES * (traits + 1) * 4)).reshape(4, -1)
    normal = (draws.sum(axis=0) - 2.0) * np.sqrt(3.0)
    return 0.55 * normal[AXES:].reshape(AXES, traits), 0.6 * normal[:AXES, None]


def embeddings(site: Site, year: int) -> Floats:
    """(AXES, point) float64, each column of length 1."""
    traits = _traits(site, year)
    weights, offsets = _weights(len(traits))
    raw = np.array(np.broadcast_to(offsets, (AXES, site.points.size)))
    # Sums in a fixed order, so that a point's vector does not depend on how many others are asked with it.
    for number, trait in enumerate(traits):
        raw += weights[:, number, None] * trait
    raw = np.tanh(raw)
    length = np.zeros(site.points.size)
    for axis in raw:
        length += axis * axis
    return np.asarray(raw / np.sqrt(length))


@product_field
def embedding(site: Site, ask: Ask) -> Answer:
    """One axis, A00 to A63; masked on the open sea."""
    # Half a kilobyte a point: a site keeps one year.
    kept: dict[int, Floats] = site.lasting("embedding", dict)
    vectors = kept.get(ask.year)
    if vectors is None:
        vectors = embeddings(site, ask.year)
        kept.clear()
        kept[ask.year] = vectors
    return vectors[int(ask.band[1:])], np.asarray(site.ground.coast_km > OFFSHORE_KM)


@dataclass(frozen=True)
class EmbeddingTile:
    """A square of a UTM zone, counted from the zone's origin of coordinates."""

    zone: int
    south: bool
    column: int
    row: int

    @property
    def epsg(self) -> int:
        return (32700 if self.south else 32600) + self.zone

    @property
    def left(self) -> int:
        return self.column * TILE_M

    @property
    def top(self) -> int:
        return (self.row + 1) * TILE_M

    @property
    def name(self) -> str:
        """Made up of the place, where the real ids are opaque."""
        return f"z{self.zone:02d}{'s' if self.south else 'n'}c{self.column}r{self.row:02d}"


@lru_cache(maxsize=4096)
def _exists(tile: EmbeddingTile) -> bool:
    """Whether the tile has land, or water near it, in its own zone."""
    steps = (np.arange(10) + 0.5) / 10.0 * TILE_M
    x, y = np.meshgrid(tile.left + steps, tile.top - steps)
    lon, lat = to_lonlat(tile.epsg, x.ravel(), y.ravel())
    inside = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) < 84.0) & ((lat < 0) == tile.south)
    mine = [zone_of(float(a), float(b)) == tile.zone for a, b in zip(lon[inside], lat[inside], strict=True)]
    near = coast_distance(points(lon[inside], lat[inside])) > OFFSHORE_KM if inside.any() else np.zeros(0, dtype=bool)
    return bool((near & np.array(mine, dtype=bool)).any())


@lru_cache(maxsize=4096)
def _footprint(tile: EmbeddingTile) -> Any:
    return lonlat_polygon(tile.epsg, box(tile.left, tile.top - TILE_M, tile.left + TILE_M, tile.top))


def _tiles_at(lon: float, lat: float) -> Iterator[EmbeddingTile]:
    zone = zone_of(lon, lat)
    for step in (-1, 0, 1):
        number = (zone + step - 1) % 60 + 1
        for south in [lat < 0] if abs(lat) > 1.5 else [False, True]:
            x, y = transformer(4326, (32700 if south else 32600) + number).transform(lon, lat)
            if 0.0 <= x < 1_000_000.0 and 0.0 <= y < 10_000_000.0:
                yield EmbeddingTile(number, south, int(x // TILE_M), int(y // TILE_M))


def _tiles_in(bounds: Bounds) -> list[EmbeddingTile]:
    """Tiles that touch a box; ValueError when the box is larger than a search may be."""
    west, south, east, north = bounds
    east = east + 360.0 if west > east else east
    south, north = max(south, -83.9), min(north, 83.9)
    if south > north:
        return []
    lats = np.linspace(south, north, max(int(np.ceil((north - south) / 0.5)), 1) + 1)
    found: set[EmbeddingTile] = set()
    looked = 0
    for lat in lats:
        wide = 0.5 / max(float(np.cos(np.radians(lat))), 0.1)
        lons = np.linspace(west, east, max(int(np.ceil((east - west) / wide)), 1) + 1)
        looked += lons.size
        if looked > SEARCH_LIMIT:
            raise ValueError(f"the box {tuple(bounds)} is too large for a search of tiles; filter by a smaller region")
        for lon in lons:
            found |= set(_tiles_at(float((lon + 180.0) % 360.0 - 180.0), float(lat)))
    return [tile for tile in found if _exists(tile)]


class EmbeddingDataset(SyntheticDataset):
    """A tile a year."""

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        tiles = _tiles_in(required_bounds(self.id, bounds))
        low, high = start_ms or 0, 1 << 62 if end_ms is None else end_ms
        years = [y for y in self._years() if low <= _year_ms(y) < high]
        return sorted((self._info(tile, year) for tile in tiles for year in years), key=lambda info: info.index)

    def image(self, index: str) -> ImageInfo:
        if index in self._infos:
            return self._infos[index]
        match = _INDEX.fullmatch(index)
        if match is None:
            raise KeyError(index)
        year, zone, half, column, row = match.groups()
        tile = EmbeddingTile(int(zone), half == "s", int(column), int(row))
        if int(year) not in self._years() or not 1 <= tile.zone <= 60 or not _exists(tile):
            raise KeyError(index)
        return self._info(tile, int(year))

    def ask(self, image: ImageInfo, band: str) -> Ask:
        return Ask(band=band, year=image.private, options=self.options)

    def _years(self) -> range:
        return range(self.spec["first_year"], self.spec["last_year"] + 1)

    def _info(self, tile: EmbeddingTile, year: int) -> ImageInfo:
        index = f"x{year}{tile.name}"
        if index in self._infos:
            return self._infos[index]
        grid = square_transform(10.0, float(tile.left), float(tile.top))
        bands = tuple(
            band_info(name, row, f"EPSG:{tile.epsg}", grid, (PIXELS, PIXELS)) for name, row in self.fields.items()
        )
        return self._remember(
            ImageInfo(
                id=f"{self.id}/{index}",
                index=index,
                bands=bands,
                start_ms=_year_ms(year),
                end_ms=_year_ms(year + 1),
                footprint=_footprint(tile),
                tells_footprint=False,
                properties={
                    **self.spec["properties"],
                    "UTM_ZONE": f"{tile.zone}{'S' if tile.south else 'N'}",
                    "synthetic": 1,
                },
                private=year,
            )
        )


def _year_ms(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000)
