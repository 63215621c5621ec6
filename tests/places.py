"""What the tests of samplers share: specs, four ecoregions, places as plain rows, the real ecoregions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from mmbuild import samplers
from mmbuild.recipe import AreaSampler, BiomeSampler, PointsSampler
from mmbuild.samplers import draw, on_globe, prepare

REAL = Path(__file__).parents[2] / "shared/realdata/vector/ecoregions2017/Ecoregions2017.shp"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="../shared/realdata is not here: the RESOLVE polygons")
# 99.9 % point of chi-square with 63 degrees of freedom (tables).
CHI2_63 = 103.44


def points_spec(file: Path, **more: Any) -> PointsSampler:
    return PointsSampler(kind="points", file=str(file), **more)


def area_spec(file: Path) -> AreaSampler:
    return AreaSampler(kind="area", file=str(file))


def biome_spec(**more: Any) -> BiomeSampler:
    return BiomeSampler(kind="biome", **more)


def ecoregions(rows: list[tuple[int, int, Any]]) -> gpd.GeoDataFrame:
    """(ECO_ID, BIOME_NUM, polygon) as the table a source would answer with."""
    return gpd.GeoDataFrame(
        {
            "ECO_ID": [r[0] for r in rows],
            "ECO_NAME": [f"eco {r[0]}" for r in rows],
            "BIOME_NUM": [float(r[1]) for r in rows],
            "BIOME_NAME": [f"biome {r[1]}" for r in rows],
            "REALM": ["Palearctic"] * len(rows),
        },
        geometry=[r[2] for r in rows],
        crs="EPSG:4326",
    )


FOUR = ecoregions(
    [
        (10, 1, shapely.box(0, 0, 10, 10)),
        (11, 1, shapely.box(20, 0, 25, 10)),
        (12, 1, shapely.box(30, 0, 31, 10)),
        (7, 4, shapely.box(0, 50, 10, 60)),
    ]
)


def rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(zip(frame.slot, frame.alternate, frame.lon, frame.lat, frame.tags.map(json.dumps), strict=True))


def many(geometry: Any, n: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    return draw(prepare(on_globe(geometry, "test")), seed=seed, slots=np.arange(n), alternates=np.zeros(n, int))


def places(kind: str, folder: Path, **asked: Any) -> gpd.GeoDataFrame:
    if kind == "biome":
        return samplers.candidates(biome_spec(), regions=FOUR, **{"seed": 5, "alternates": 4} | asked)
    file = folder / "a.geojson"
    FOUR.to_file(file)
    return samplers.candidates(area_spec(file), **{"seed": 5, "alternates": 4} | asked)
