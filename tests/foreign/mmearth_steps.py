"""A tile the way MMEarth's downloader makes one: a round trip for each decision, then one download of the stack.

The order of the questions, the rules of choice and the stacking are those of MMEarth-data's ee_data.py; the text is our
own. Each `getInfo` waits for an answer before the next step, as in the original.
"""

from __future__ import annotations

import random
import sys
from datetime import date, timedelta
from typing import Any

import ee
import requests

from tests.foreign.sandbox import report, started

SIDE_DEG_LAT, SIDE_DEG_LON = 0.0117, 0.0175
LON, LAT = 11.57, 48.09
L2A_BANDS = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B11", "B12", "SCL", "MSK_CLDPRB", "QA60"]
CLIMATE = ["temperature_2m", "temperature_2m_min", "temperature_2m_max", "total_precipitation_sum"]


class Tile:
    """The steps of one tile, sharing what earlier ones decided; `bands` lists the stack by product."""

    def __init__(self, lon: float, lat: float) -> None:
        west, east = lon - SIDE_DEG_LON / 2, lon + SIDE_DEG_LON / 2
        south, north = lat - SIDE_DEG_LAT / 2, lat + SIDE_DEG_LAT / 2
        self.corners = [[[west, south], [east, south], [east, north], [west, north], [west, south]]]
        self.polygon = ee.Geometry.Polygon(self.corners)
        self.lon = self.polygon.centroid().coordinates().get(0).getInfo()
        self.lat = self.polygon.centroid().coordinates().get(1).getInfo()
        self.images: list[ee.Image] = []
        self.bands: dict[str, list[str] | None] = {}
        self.climate: dict[str, Any] = {}
        self.ids: dict[str, str] = {}

    def _keep(self, name: str, image: ee.Image) -> None:
        self.images.append(image)
        self.bands[name] = image.bandNames().getInfo()

    def optical(self) -> None:
        """A random scene of 2019 with little cloud whose outline holds the tile and 200 m around it."""
        scenes = (
            ee.ImageCollection("COPERNICUS/S2_SR_HARMONIZED")
            .filterBounds(self.polygon)
            .filterDate("2019-06-01", "2019-09-30")
            .filterMetadata("CLOUDY_PIXEL_PERCENTAGE", "less_than", 10)
        )
        assert scenes.size().getInfo() > 0
        whole = scenes.filter(ee.Filter.contains(".geo", self.polygon.buffer(200)))
        count = whole.size().getInfo()
        chosen = ee.Image(whole.toList(whole.size()).get(random.Random(4).randint(0, count - 1)))
        present = chosen.bandNames().getInfo()
        names = [name for name in L2A_BANDS if name in present]
        image = chosen.select(names).clip(self.polygon).float()
        self.day = image.date().format("YYYY-MM-dd").getInfo()
        self.projection = image.select("B4").projection()
        self.crs = self.projection.getInfo()["crs"]
        flags = image.select(["SCL", "QA60"]).reproject(self.projection)
        spectral = image.select([name for name in names if name not in ("SCL", "QA60")])
        self._keep("sentinel2", spectral.resample("bilinear").reproject(self.projection).addBands(flags))
        self.ids["sentinel2"] = chosen.id().getInfo()

    def radar(self) -> None:
        """The nearest scene in time of each orbit direction, all its polarisations."""
        day = self.day
        scenes = (
            ee.ImageCollection("COPERNICUS/S1_GRD")
            .filterBounds(self.polygon)
            .filterDate("2019-01-01", "2019-12-31")
            .filterMetadata("instrumentMode", "equals", "IW")
            .filter(ee.Filter.contains(".geo", self.polygon.buffer(200)))
            .map(lambda image: image.clip(self.polygon))
            .map(lambda image: image.set("gap", ee.Date(image.get("system:time_start")).difference(day, "day").abs()))
            .sort("gap")
        )
        for orbit in ("ASCENDING", "DESCENDING"):
            image = scenes.filterMetadata("orbitProperties_pass", "equals", orbit).first()
            name = f"sentinel1_{orbit[:4].lower().rstrip('e')}"
            try:
                names = [band for band in image.bandNames().getInfo() if band != "angle"]
            except ee.EEException:
                self.bands[name] = None
                continue
            self.images.append(image.select(names).float().resample("bilinear").reproject(self.projection))
            self.bands[name] = names

    def elevation(self) -> None:
        height = ee.Image("projects/sat-io/open-datasets/ASTER/GDEM").clip(self.polygon).select(["b1"]).float()
        both = ee.Image.cat([height, ee.Terrain.slope(height)])
        self._keep("aster", both.resample("bilinear").reproject(self.projection))

    def weather(self) -> None:
        """Means over the tile: the month before, the month, and the year that ends with it."""
        this = date.fromisoformat(self.day).replace(day=1)
        last = (this + timedelta(days=32)).replace(day=1) - timedelta(days=1)
        before = (this - timedelta(days=1)).replace(day=1)
        monthly = ee.ImageCollection("ECMWF/ERA5_LAND/MONTHLY_AGGR").select(CLIMATE)
        two = monthly.filterDate(before.isoformat(), last.isoformat()).toBands()
        year = monthly.filterDate(this.replace(year=this.year - 1).isoformat(), last.isoformat())
        reducers = [ee.Reducer.mean(), ee.Reducer.min(), ee.Reducer.max(), ee.Reducer.sum()]
        yearly = ee.ImageCollection(
            [year.select([name]).reduce(how) for name, how in zip(CLIMATE, reducers, strict=True)]
        ).toBands()
        names = two.bandNames().getInfo()
        for which, image in (("months", two), ("year", yearly)):
            found = image.reduceRegion(reducer=ee.Reducer.mean(), geometry=self.polygon, scale=10).getInfo()
            self.climate[which] = found
        self.bands["era5"] = names

    def cover(self) -> None:
        """The label of most observations of the year, counted from 1 so that 0 is free for nothing."""
        year = self.day[:4]
        labels = (
            ee.ImageCollection("GOOGLE/DYNAMICWORLD/V1")
            .filterBounds(self.polygon)
            .filterDate(f"{year}-01-01", f"{year}-12-31")
            .select("label")
        )
        assert labels.size().getInfo() > 0

        def from_one(image: ee.Image) -> ee.Image:
            moved = image
            for label in range(9, -1, -1):
                moved = moved.where(image.eq(label), label + 1)
            return moved

        image = labels.map(from_one).mode().clip(self.polygon).float().reproject(self.projection)
        self._keep("dynamic_world", image)
        canopy = ee.Image("users/nlang/ETH_GlobalCanopyHeight_2020_10m_v1").rename("height")
        spread = ee.Image("users/nlang/ETH_GlobalCanopyHeightSD_2020_10m_v1").rename("std")
        heights = ee.Image.cat([canopy, spread]).clip(self.polygon).float()
        self._keep("canopy_height_eth", heights.resample("bilinear").reproject(self.projection))
        world = ee.ImageCollection("ESA/WorldCover/v100").first().select("Map").clip(self.polygon).float()
        self._keep("esa_worldcover", world.reproject(self.projection))

    def download(self, path: Any) -> None:
        stacked = ee.Image.cat(self.images)
        params = {"name": "tile", "scale": 10, "crs": self.crs, "region": self.corners, "format": "GeoTIFF"}
        answer = requests.get(stacked.getDownloadURL(params), timeout=60)
        answer.raise_for_status()
        path.write_bytes(answer.content)


def main() -> None:
    folder = started(sys.argv)
    tile = Tile(LON, LAT)
    for step in (tile.optical, tile.radar, tile.elevation, tile.weather, tile.cover):
        step()
    tile.download(folder / "tile.tif")
    report(
        folder, lon=tile.lon, lat=tile.lat, day=tile.day, crs=tile.crs, bands=tile.bands, climate=tile.climate,
        ids=tile.ids, corners=tile.corners,
    )  # fmt: skip


if __name__ == "__main__":
    main()
