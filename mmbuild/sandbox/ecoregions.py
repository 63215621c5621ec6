"""A map of the synthetic ecoregions: the biome field on a coarse grid, cut by realm and by distance, as polygons.

Whole cells only, so the polygons are simple, never overlap and leave no gaps on land; a place near a border may
lie in a cell of its neighbour's biome, as in any map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.ops import unary_union

from mmbuild.sandbox.earth_ground import ground
from mmbuild.sandbox.earth_noise import hash_floats, points

STEP_DEG = 1.0
# Far above the ids of the real table (1 to 847), so that no synthetic region is ever read as a real one.
FIRST_ID = 10_000
# An ecoregion is at most about this wide.
REACH_KM = 1800.0
BIOMES = (
    "Tropical & Subtropical Moist Broadleaf Forests",
    "Tropical & Subtropical Dry Broadleaf Forests",
    "Tropical & Subtropical Coniferous Forests",
    "Temperate Broadleaf & Mixed Forests",
    "Temperate Conifer Forests",
    "Boreal Forests/Taiga",
    "Tropical & Subtropical Grasslands, Savannas & Shrublands",
    "Temperate Grasslands, Savannas & Shrublands",
    "Flooded Grasslands & Savannas",
    "Montane Grasslands & Shrublands",
    "Tundra",
    "Mediterranean Forests, Woodlands & Scrub",
    "Deserts & Xeric Shrublands",
    "Mangroves",
)
_SHORT = (
    "moist forests", "dry forests", "pine forests", "mixed forests", "conifer forests", "taiga", "savanna", "steppe",
    "flooded savanna", "montane grasslands", "tundra", "woodlands and scrub", "desert", "mangroves",
)  # fmt: skip
_COLORS = ("38A700", "CCCD65", "88CE66", "00734C", "458970", "7AB6F5", "FEAA01", "FEFF73", "BEE7FF", "D6C39D", "9ED7C2",
           "FE0000", "CC6767", "FE01C4")  # fmt: skip


# How far nature is protected ("nature needs half"), drawn at random.
_PROTECTION = (
    "Half Protected", "Nature Could Reach Half Protected", "Nature Could Recover", "Nature Imperiled",
)  # fmt: skip
_PROTECTION_COLORS = ("257315", "7BC141", "F9A91B", "EE1E23")


def realm_of(lon: float, lat: float) -> str:
    """RESOLVE's realm of a place, by boxes."""
    if lat < -60.0:
        return "Antarctica"
    if lon < -30.0:
        return "Nearctic" if lat > 23.0 or (lat > 15.0 and lon < -118.0) else "Neotropic"
    if lon > 160.0 and lat < 15.0 and lat > -30.0:
        return "Oceania"
    if (lat < -10.5 and lon > 110.0) or (lon > 126.0 and lat < 0.0):
        return "Australasia"
    if lon < 60.0 and lat < (21.0 if lon < 36.0 else 13.0 if lon > 42.0 else 17.0):
        return "Afrotropic"
    return "Indomalayan" if lon > 66.0 and lat < 28.0 else "Palearctic"


@cache
def features() -> Sequence[tuple[Any, Mapping[str, Any]]]:
    """Rows of the table: polygon in degrees and properties, sorted by ECO_ID; a large ecoregion has several rows."""
    lat = 90.0 - STEP_DEG * (np.arange(round(180 / STEP_DEG), dtype=np.float64) + 0.5)
    lon = -180.0 + STEP_DEG * (np.arange(round(360 / STEP_DEG), dtype=np.float64) + 0.5)
    biome = _biome_cells(lon, lat)
    rows: list[tuple[Any, Mapping[str, Any]]] = []
    for number, (key, cells) in enumerate(sorted(_regions(biome, lon, lat).items()), start=1):
        rows += _rows(number, key, cells, lon, lat)
    return rows


def _biome_cells(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.int64]:
    """Biome of each cell (0 sea): the most frequent of 3 x 3 land points; mangroves win over their hinterland."""
    shape = (lat.size, lon.size)
    votes = np.zeros((15, *shape), dtype=np.int64)
    for dx in (-0.33, 0.0, 0.33):
        for dy in (-0.33, 0.0, 0.33):
            x, y = np.meshgrid(lon + dx * STEP_DEG, lat + dy * STEP_DEG)
            g = ground(points(x, y))
            kind = np.where(g.land, g.biome, 0).reshape(shape)
            for number in range(15):
                votes[number] += kind == number
    votes[14] *= 3
    best = np.argmax(votes[1:], axis=0) + 1
    return np.where(votes[0] > 5, 0, best)


def _regions(
    biome: NDArray[np.int64], lon: NDArray[np.float64], lat: NDArray[np.float64]
) -> dict[tuple[int, str, int], list[tuple[int, int]]]:
    """Cells of each (biome, realm, block); blocks cut realms into pieces about REACH_KM wide."""
    found: dict[tuple[int, str, int], list[tuple[int, int]]] = {}
    for row, col in np.argwhere(biome > 0).tolist():
        y, x = float(lat[row]), float(lon[col])
        wide = REACH_KM / 111.2 / max(float(np.cos(np.radians(y // 20 * 20 + 10))), 0.15)
        block = int((y + 90.0) // 20.0) * 100 + int((x + 180.0) // wide)
        found.setdefault((int(biome[row, col]), realm_of(x, y), block), []).append((row, col))
    return {key: cells for key, cells in found.items() if len(cells) >= 4 or key[0] in (3, 9, 10, 14)}


def _rows(
    number: int,
    key: tuple[int, str, int],
    cells: list[tuple[int, int]],
    lon: NDArray[np.float64],
    lat: NDArray[np.float64],
) -> list[tuple[Any, Mapping[str, Any]]]:
    biome, realm, _ = key
    half = STEP_DEG / 2.0
    shape = unary_union([box(lon[c] - half, lat[r] - half, lon[c] + half, lat[r] + half) for r, c in cells])
    parts = list(shape.geoms) if isinstance(shape, MultiPolygon) else [shape]
    # One ecoregion in four is stored as several rows with the same ECO_ID, as in the real table.
    split = len(parts) > 1 and hash_floats(number, 1)[0] < 0.25
    groups = [[p] for p in parts] if split else [parts]
    middle = shape.centroid
    name = f"Synthetic {realm} {_SHORT[biome - 1]} {_compass(middle.x, middle.y)} {number:03d}"
    return [(_geometry(group), _properties(number, name, biome, realm, _geometry(group))) for group in groups]


def _geometry(parts: list[Polygon]) -> Any:
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _compass(lon: float, lat: float) -> str:
    return f"{abs(lat):.0f}{'S' if lat < 0 else 'N'}{abs(lon):.0f}{'W' if lon < 0 else 'E'}"


def _properties(number: int, name: str, biome: int, realm: str, shape: Any) -> Mapping[str, Any]:
    protection = int(hash_floats(number + 50_000, 1)[0] * len(_PROTECTION))
    return {
        "BIOME_NAME": BIOMES[biome - 1],
        "BIOME_NUM": float(biome),
        "COLOR": "#" + _COLORS[biome - 1],
        "COLOR_BIO": "#" + _COLORS[biome - 1],
        "COLOR_NNH": "#" + _PROTECTION_COLORS[protection],
        "ECO_ID": float(FIRST_ID + number),
        "ECO_NAME": name,
        "LICENSE": "CC0-1.0",
        "NNH": float(protection + 1),
        "NNH_NAME": _PROTECTION[protection],
        "OBJECTID": float(number),
        "REALM": realm,
        "SHAPE_AREA": float(shape.area),
        "SHAPE_LENG": float(shape.length),
    }
