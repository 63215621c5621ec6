"""A Sentinel-2 collection as an xarray dataset through Xee's own engine."""

from __future__ import annotations

import sys

import ee
import numpy as np
import xarray

from tests.foreign.sandbox import report, started

LON, LAT = 11.5, 48.1
CRS, LEFT, TOP, WIDTH, HEIGHT = "EPSG:32632", 685980.0, 5330040.0, 40, 32
BANDS = ["B4", "B11", "SCL"]


def collection() -> ee.ImageCollection:
    """Scenes of June 2020 on one tile, as Xee wants them: all with the same bands."""
    found = ee.ImageCollection("COPERNICUS/S2_SR_HARMONIZED").filterBounds(ee.Geometry.Point([LON, LAT]))
    return found.filterDate("2020-06-01", "2020-06-21").filter(ee.Filter.eq("MGRS_TILE", "32UPU")).select(BANDS)


def main() -> None:
    folder = started(sys.argv)
    cube = xarray.open_dataset(
        collection(),
        engine="ee",
        crs=CRS,
        crs_transform=(10.0, 0.0, LEFT, 0.0, -10.0, TOP),
        shape_2d=(WIDTH, HEIGHT),
        executor_kwargs={"max_workers": 2},
    )
    cube.load()
    np.savez(folder / "cube.npz", **{str(name): cube[name].values for name in (*cube.data_vars, *cube.coords)})
    report(folder, dims={name: list(cube[name].dims) for name in cube.data_vars}, attributes=dict(cube.attrs))


if __name__ == "__main__":
    main()
