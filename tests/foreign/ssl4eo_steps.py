"""A patch the way SSL4EO-S12's downloader makes one: the newest clear scene of a window, its bands as JSON lists.

Search, region and order are those of the SSL4EO-S12 scripts; the text is our own.
"""

from __future__ import annotations

import sys

import ee
import numpy as np

from tests.foreign.sandbox import report, started

LON, LAT, RADIUS_M = 11.57, 48.09, 1320
CROPS = {"B2": 264, "B5": 132, "B1": 44}
RADAR = {"VV": 264, "VH": 264}


def centre_crop(values: np.ndarray, size: int) -> np.ndarray:
    """The middle of an array; a band is a few pixels larger than its crop."""
    top, left = (int((side - size + 1) * 0.5) for side in values.shape)
    assert min(top, left) >= 0, values.shape
    return values[top : top + size, left : left + size]


def newest(collection: ee.ImageCollection) -> ee.Image:
    return ee.Image(collection.sort("system:time_start", False).first())


def main() -> None:
    folder = started(sys.argv)
    place = ee.Geometry.Point([LON, LAT])
    region = place.buffer(RADIUS_M).bounds()
    window = ee.Filter.Or(ee.Filter.date("2020-06-06", "2020-07-06"), ee.Filter.date("2019-06-06", "2019-07-06"))
    optical = ee.ImageCollection("COPERNICUS/S2").filterBounds(place).filter(window)
    optical = optical.filter(ee.Filter.lt("CLOUDY_PIXEL_PERCENTAGE", 20))
    radar = (
        ee.ImageCollection("COPERNICUS/S1_GRD")
        .filterBounds(place)
        .filter(window)
        .filter(ee.Filter.listContains("transmitterReceiverPolarisation", "VV"))
        .filter(ee.Filter.listContains("transmitterReceiverPolarisation", "VH"))
        .filter(ee.Filter.eq("instrumentMode", "IW"))
    )
    arrays, info = {}, {}
    for name, collection, crops in (("s2c", optical, CROPS), ("s1", radar, RADAR)):
        assert collection.size().getInfo() > 0
        image = newest(collection)
        sampled = image.select(list(crops)).sampleRectangle(region, defaultValue=0).getInfo()["properties"]
        info[name] = image.getInfo()["id"]
        for band, size in crops.items():
            whole = np.array(sampled[band])
            arrays[f"{name}_{band}_whole"] = whole
            arrays[f"{name}_{band}"] = centre_crop(whole, size)
    np.savez(folder / "patch.npz", **arrays)
    report(folder, ids=info, corners=region.coordinates().getInfo()[0])


if __name__ == "__main__":
    main()
