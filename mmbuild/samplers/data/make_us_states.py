"""Make us_states.geojson: outlines of US states and territories, simplified together so that borders stay shared.

Source: us-atlas 3.0.1 (npm, states-10m.json, ISC), made from the Census Bureau's cartographic boundary files of 2017,
which are in the public domain. Run with the path of that file:
    python mmbuild/samplers/data/make_us_states.py states-10m.json
"""

from __future__ import annotations

import sys
from pathlib import Path

import geopandas as gpd
import shapely

# Kilometre scale: a border may lie some hundred metres off. Areas of a corpus of one state should be a file.
TOLERANCE_DEG = 0.03
OUT = Path(__file__).parent / "us_states.geojson"


def main(source: str) -> None:
    table = gpd.read_file(source, layer="states").sort_values("name", ignore_index=True)
    shapes = shapely.coverage_simplify(table.geometry.to_numpy(), TOLERANCE_DEG)
    # Quantised to 1e-4 degrees; rounding may touch itself, which the union of its own parts repairs.
    shapes = shapely.make_valid(shapely.set_precision(shapely.make_valid(shapes), 1e-4))
    out = gpd.GeoDataFrame({"area": table["name"]}, geometry=shapes, crs="EPSG:4326")
    OUT.unlink(missing_ok=True)
    out.to_file(OUT, driver="GeoJSON", COORDINATE_PRECISION=4, RFC7946="NO")


if __name__ == "__main__":
    main(sys.argv[1])
