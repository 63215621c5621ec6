"""Datasets on global lattices in degrees: lone rasters, one-degree tiles, and a stack of months."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from shapely.geometry import box

from mmbuild.sandbox.assets import BandInfo, Bounds, ImageInfo
from mmbuild.sandbox.earth_ground import coast_distance
from mmbuild.sandbox.earth_noise import points
from mmbuild.sandbox.earth_products import Ask
from mmbuild.sandbox.earth_site import SiteCache
from mmbuild.sandbox.earth_world import SyntheticDataset, band_info, milliseconds, square_transform


class GlobeDataset(SyntheticDataset):
    """One image over the globe in degrees: a lone image, or a collection of one when the file gives an index."""

    def __init__(self, spec: Mapping[str, Any], sites: SiteCache) -> None:
        super().__init__(spec, sites)
        self.kind = "image_collection" if "index" in spec else "image"
        self._only = self._make()

    def _make(self) -> ImageInfo:
        north, south = self.spec.get("north", 90), self.spec.get("south", -90)
        bands = []
        for name, row in self.fields.items():
            n = row["per_degree"]
            grid, shape = square_transform(1.0 / n, -180.0, float(north)), ((north - south) * n, 360 * n)
            bands.append(band_info(name, row, "EPSG:4326", grid, shape))
        index = self.spec.get("index", "")
        start, end = (milliseconds(self.spec[key]) if key in self.spec else None for key in ("start", "end"))
        return ImageInfo(
            id=f"{self.id}/{index}".rstrip("/"),
            index=index,
            bands=tuple(bands),
            properties={**self.spec.get("properties", {}), "synthetic": 1},
            footprint=None if north == 90 else box(-180, south, 180, north),
            start_ms=start,
            end_ms=end,
        )

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        return [self._only]

    def image(self, index: str) -> ImageInfo:
        if index != self._only.index:
            raise KeyError(index)
        return self._only


class DegreeTilesDataset(SyntheticDataset):
    """A collection of 1 x 1 degree tiles where there is land; coarser in longitude towards the poles."""

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        west, south, east, north = bounds or (-180.0, -90.0, 180.0, 90.0)
        east = east + 360.0 if west > east else east
        lats = range(max(int(np.floor(south)), -90), min(int(np.floor(north)), 89) + 1)
        lons = {(lon + 180) % 360 - 180 for lon in range(int(np.floor(west)), int(np.floor(east)) + 1)}
        tiles = [(_tile_index(lat, lon), lat, lon) for lat in lats for lon in lons]
        return [self._info(*tile) for tile in sorted(tiles) if self._exists(tile[1], tile[2])]

    def image(self, index: str) -> ImageInfo:
        try:
            ns, ew = index.split("_")[4], index.split("_")[6]
            lat, lon = int(ns[1:]) * (-1 if ns[0] == "S" else 1), int(ew[1:]) * (-1 if ew[0] == "W" else 1)
        except (IndexError, ValueError):
            raise KeyError(index) from None
        if _tile_index(lat, lon) != index or not self._exists(lat, lon):
            raise KeyError(index)
        return self._info(index, lat, lon)

    def _exists(self, lat: int, lon: int) -> bool:
        """Whether a tile holds land that was not withheld."""
        west, south, east, north = self.spec.get("withheld", (0, 0, 0, 0))
        return not (west <= lon < east and south <= lat < north) and _has_land(lat, lon)

    def _info(self, index: str, lat: int, lon: int) -> ImageInfo:
        if index in self._infos:
            return self._infos[index]
        # Longitude spacing in arc seconds by latitude. Source: Copernicus DEM product handbook.
        away = max(abs(lat), abs(lat + 1)) - 1
        thin = next(
            f for limit, f in ((85, 10.0), (80, 5.0), (70, 3.0), (60, 2.0), (50, 1.5), (0, 1.0)) if away >= limit
        )
        bands = []
        for name, row in self.fields.items():
            n = row["per_degree"]
            grid = (thin / n, 0.0, float(lon), 0.0, -1.0 / n, float(lat + 1))
            bands.append(band_info(name, row, "EPSG:4326", grid, (n, round(n / thin))))
        span = milliseconds(self.spec["start"]), milliseconds(self.spec["end"])
        return self._remember(
            ImageInfo(
                id=f"{self.id}/{index}",
                index=index,
                bands=tuple(bands),
                start_ms=span[0],
                end_ms=span[1],
                footprint=box(lon, lat, lon + 1, lat + 1),
                properties={**self.spec.get("properties", {}), "synthetic": 1},
            )
        )


def _tile_index(lat: int, lon: int) -> str:
    ns, ew = ("S" if lat < 0 else "N"), ("W" if lon < 0 else "E")
    return f"Copernicus_DSM_COG_10_{ns}{abs(lat):02d}_00_{ew}{abs(lon):03d}_00_DEM"


def _has_land(lat: int, lon: int) -> bool:
    steps = (np.arange(8) + 0.5) / 8.0
    x, y = np.meshgrid(lon + steps, lat + steps)
    return bool((coast_distance(points(x, y)) > -3.0).any())


class MonthlyDataset(SyntheticDataset):
    """One global image per month, cell centres on whole steps of a fraction of a degree."""

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        low = max(milliseconds(self.spec["start"]), milliseconds(self.spec["start"]) if start_ms is None else start_ms)
        high = min(milliseconds(self.spec["end"]), milliseconds(self.spec["end"]) if end_ms is None else end_ms)
        first = datetime.fromtimestamp(low / 1000, tz=UTC)
        found, year, month = [], first.year, first.month
        while _month_ms(year, month) < high:
            if _month_ms(year, month) >= low:
                found.append(self.image(f"{year}{month:02d}"))
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
        return found

    def image(self, index: str) -> ImageInfo:
        if index in self._infos:
            return self._infos[index]
        if len(index) != 6 or not index.isdigit() or not 1 <= int(index[4:]) <= 12:
            raise KeyError(index)
        year, month = int(index[:4]), int(index[4:])
        start, end = _month_ms(year, month), _month_ms(year + month // 12, month % 12 + 1)
        if not milliseconds(self.spec["start"]) <= start < milliseconds(self.spec["end"]):
            raise KeyError(index)
        bands = tuple(self._band(name, row) for name, row in self.fields.items())
        return self._remember(
            ImageInfo(
                id=f"{self.id}/{index}",
                index=index,
                bands=bands,
                start_ms=start,
                end_ms=end,
                private=(year, month),
                properties={"month": month, "year": year, "synthetic": 1},
            )
        )

    def _band(self, name: str, row: Mapping[str, Any]) -> BandInfo:
        n = row["per_degree"]
        grid = square_transform(1.0 / n, -180.0 - 0.5 / n, 90.0 + 0.5 / n)
        # A grid that turns round the globe ends where it began, except that 0.1 degree data repeat the first column.
        return band_info(name, row, "EPSG:4326", grid, (180 * n + 1, 360 * n + (n == 10)))

    def ask(self, image: ImageInfo, band: str) -> Ask:
        return Ask(band=band, year=image.private[0], month=image.private[1], options=self.options)


def _month_ms(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000)
