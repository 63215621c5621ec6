"""What the public catalogue says of the assets, and how tests ask the offline ones: places, images and native chips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ee
import numpy as np
import yaml
from numpy.typing import NDArray

from tests.sandbox_worlds import grid, pixels

FACTS: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "catalogue_facts.yaml").read_text("utf-8"))
RASTERS = [name for name, facts in FACTS.items() if facts["type"] != "table"]
COLLECTIONS = [name for name in RASTERS if FACTS[name]["type"] == "image_collection"]
MUNICH, ATLANTIC, AMAZON = (11.35, 48.1), (-30.0, 25.0), (-60.1, -3.2)
GREENLAND, SACRAMENTO = (-45.0, 72.0), (-121.772, 38.794)
RAW, L1C, L2A = "COPERNICUS/S2", "COPERNICUS/S2_HARMONIZED", "COPERNICUS/S2_SR_HARMONIZED"
RADAR, NAIP, DYNAMIC_WORLD = "COPERNICUS/S1_GRD", "USDA/NAIP/DOQQ", "GOOGLE/DYNAMICWORLD/V1"
SCORE, EMBEDDING = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED", "GOOGLE/SATELLITE_EMBEDDING/V1/ANNUAL"
HLS_LANDSAT, HLS_SENTINEL = "NASA/HLS/HLSL30/v002", "NASA/HLS/HLSS30/v002"
ERA5, ERA5_LAND = "ECMWF/ERA5/MONTHLY", "ECMWF/ERA5_LAND/MONTHLY_AGGR"


def point(place: tuple[float, float]) -> ee.Geometry:
    return ee.Geometry.Point(place)


def images(asset: str, place: tuple[float, float], start: str, end: str) -> ee.ImageCollection:
    return ee.ImageCollection(asset).filterBounds(point(place)).filterDate(start, end)


def indexes(collection: ee.ImageCollection) -> list[str]:
    return collection.aggregate_array("system:index").getInfo()


def a_place(asset: str) -> tuple[float, float]:
    return SACRAMENTO if asset == NAIP else MUNICH


def a_time(asset: str) -> tuple[str, str]:
    """A span that every collection has images in, and every Sentinel-2 band is there."""
    facts = FACTS[asset]
    if "last" in facts:
        return str(facts["first"]), "2100-01-01"
    return ("2024-06-01", "2024-07-15") if asset not in (NAIP, EMBEDDING) else ("2020-01-01", "2024-12-31")


def an_image(asset: str) -> ee.Image:
    """A lone image, or one of a collection that has all its bands."""
    if FACTS[asset]["type"] == "image":
        return ee.Image(asset)
    return images(asset, a_place(asset), *a_time(asset)).first()


def chip(image: ee.Image, band: str, place: tuple[float, float], size: int = 32) -> tuple[NDArray, NDArray]:
    """Values and validity of native pixels around a place."""
    one = image.select([band])
    native = one.projection().getInfo()
    a, _, left, _, e, top = native["transform"]
    at = ee.Geometry.Point(place).transform(native["crs"], 0.001).coordinates().getInfo()
    col, row = np.floor((at[0] - left) / a) - size // 2, np.floor((at[1] - top) / e) - size // 2
    window = grid(left + col * a, top + row * e, gsd=a, size=size, crs=native["crs"])
    both = pixels(one.rename("value").addBands(one.mask().rename("mask")), window)
    return both["value"], both["mask"] > 0


def grid_like(native: dict[str, Any], place: tuple[float, float], size: int) -> dict[str, Any]:
    a, _, left, _, e, top = native["transform"]
    x, y = ee.Geometry.Point(place).transform(native["crs"], 0.001).coordinates().getInfo()
    col, row = np.floor((x - left) / a) - size // 2, np.floor((y - top) / e) - size // 2
    return grid(left + col * a, top + row * e, gsd=a, size=size, crs=native["crs"])
