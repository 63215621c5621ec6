"""The synthetic Earth as the tests ask it: scenes and chips at a place, clear scenes, co-located pixels of places."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.assets import BandInfo, ImageInfo
from mmbuild.sandbox.earth import Earth, SyntheticWorld
from mmbuild.sandbox.mgrs import transformer

L1C, L2A = "COPERNICUS/S2_HARMONIZED", "COPERNICUS/S2_SR_HARMONIZED"
RADAR, DEM = "COPERNICUS/S1_GRD", "projects/sat-io/open-datasets/ASTER/GDEM"
CANOPY, COVER = "users/nlang/ETH_GlobalCanopyHeight_2020_10m_v1", "ESA/WorldCover/v100"
SCORE, PHOTOGRAPHS = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED", "USDA/NAIP/DOQQ"
DEVIATION = "users/nlang/ETH_GlobalCanopyHeightSD_2020_10m_v1"
DYNAMIC_WORLD, CLIMATE = "GOOGLE/DYNAMICWORLD/V1", "ECMWF/ERA5_LAND/MONTHLY_AGGR"
LANDSAT, HARMONISED = "NASA/HLS/HLSL30/v002", "NASA/HLS/HLSS30/v002"
EMBEDDING = "GOOGLE/SATELLITE_EMBEDDING/V1/ANNUAL"
OPTICAL = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
SHADOW_AND_CLOUDS = (3, 8, 9, 10)

WORLD = SyntheticWorld()
EARTH = Earth(WORLD)


def ms(date: str) -> int:
    return int(np.datetime64(date, "ms").astype(np.int64))


def scenes(asset: str, lon: float, lat: float, start: str, end: str) -> list[ImageInfo]:
    dataset = WORLD.synthetic_dataset(asset)
    return list(dataset.images(bounds=(lon, lat, lon, lat), start_ms=ms(start), end_ms=ms(end)))


def band_of(image: ImageInfo, band: str) -> BandInfo:
    return next(b for b in image.bands if b.id == band)


def corner(image: ImageInfo, band: str, lon: float, lat: float) -> tuple[int, int]:
    """Row and column of the native pixel that contains a place."""
    info = band_of(image, band)
    x, y = (lon, lat) if info.crs == "EPSG:4326" else transformer(4326, info.crs).transform(lon, lat)
    return int((y - info.transform[5]) // info.transform[4]), int((x - info.transform[2]) // info.transform[0])


def chip(asset: str, image: ImageInfo, band: str, lon: float, lat: float, size: int) -> tuple[NDArray, NDArray]:
    row, col = corner(image, band, lon, lat)
    return WORLD.synthetic_dataset(asset).window(image, band, row - size // 2, col - size // 2, size, size)


def clearest(asset: str, lon: float, lat: float, start: str, end: str, size: int = 48) -> ImageInfo | None:
    """The image with the fewest clouds that sees the whole chip, and none of them in it."""
    found = sorted(scenes(asset, lon, lat, start, end), key=lambda i: i.properties["CLOUDY_PIXEL_PERCENTAGE"])
    for image in found[:12]:
        classes, seen = chip(asset, image, "SCL", lon, lat, size // 2)
        if seen.all() and not np.isin(classes, SHADOW_AND_CLOUDS).any():
            return image
    return None


@cache
def places(count: int, seed: int) -> list[tuple[float, float]]:
    """Places on land between 55 S and 68 N, drawn uniformly on the sphere, with two summer months of Sentinel-2."""
    rng = np.random.default_rng(seed)
    lon = rng.uniform(-180, 180, 40 * count)
    lat = np.degrees(np.arcsin(rng.uniform(-0.8, 0.92, 40 * count)))
    land = EARTH.elevation(lon, lat) > 1.0
    return [(round(float(a), 4), round(float(b), 4)) for a, b in zip(lon[land], lat[land], strict=True)][:count]


def summer(lat: float) -> tuple[str, str]:
    return ("2020-06-01", "2020-09-01") if lat > 0 else ("2019-12-01", "2020-03-01")


@cache
def land_pixels() -> dict[str, NDArray]:
    """Co-located pixels of many places: place number, twelve bands, land cover, canopy, elevation, VV and VH."""
    rows: dict[str, list[NDArray]] = {k: [] for k in ("place", "s2", "cover", "canopy", "height", "vv", "vh")}
    for number, (lon, lat) in enumerate(places(52, 5)):
        image = clearest(L2A, lon, lat, *summer(lat))
        radar = scenes(RADAR, lon, lat, *summer(lat))
        radar = [r for r in radar if "VV" in r.properties["transmitterReceiverPolarisation"]]
        if image is None or not radar:
            continue
        info = band_of(image, "B2")
        row, col = corner(image, "B2", lon, lat)
        x, y = np.meshgrid(np.arange(0, 48, 2) + col - 24 + 0.5, np.arange(0, 48, 2) + row - 24 + 0.5)
        x, y = info.transform[2] + 10 * x.ravel(), info.transform[5] - 10 * y.ravel()
        at = transformer(info.crs, 4326).transform(x, y)
        scene = next((r for r in radar if EARTH.product(RADAR, r.index, "VV", *at)[1].all()), None)
        if scene is None:
            continue
        values = {
            "s2": np.stack([EARTH.product(L2A, image.index, b, *at)[0] for b in OPTICAL], axis=1),
            "cover": EARTH.product(COVER, "2020", "Map", *at)[0],
            "canopy": EARTH.canopy_height(*at),
            "height": EARTH.elevation(*at),
            "vv": EARTH.product(RADAR, scene.index, "VV", *at)[0],
            "vh": EARTH.product(RADAR, scene.index, "VH", *at)[0],
            "place": np.full(x.size, number),
        }
        for key, value in values.items():
            rows[key].append(value)
    return {key: np.concatenate(value) for key, value in rows.items()}


def ndvi(pixels: NDArray) -> NDArray:
    red, infrared = pixels[:, OPTICAL.index("B4")].astype(float), pixels[:, OPTICAL.index("B8")].astype(float)
    return (infrared - red) / (infrared + red)


@cache
def wet_place() -> tuple[float, float]:
    """A place on land with 20 to 80 % water around it."""
    for lon, lat in places(300, 8):
        x, y = lon + np.linspace(-0.02, 0.02, 12)[None, :], lat + np.linspace(-0.02, 0.02, 12)[:, None]
        share = (EARTH.land_cover(x, y) == 80).mean()
        if 0.25 < share < 0.7 and clearest(L2A, lon, lat, *summer(lat)) is not None:
            return lon, lat
    raise AssertionError("no shore found")
