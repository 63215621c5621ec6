"""Places spread evenly over biomes, and inside a biome over its ecoregions by area.

Slot i is in biome i modulo the number of biomes; inside a biome the ecoregions take turns in the order of
Sainte-Laguë, so that every prefix is as proportional to area as whole places can be. Refuses polygons without
the RESOLVE columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from mmbuild.errors import UserError
from mmbuild.samplers import (
    NEAR_ALTERNATES,
    Floats,
    Ints,
    counters,
    draw_each,
    frame,
    on_globe,
    sphere_area,
    uniform,
)
from mmbuild.samplers.area import read_polygons

NEEDED = ("ECO_ID", "ECO_NAME", "BIOME_NUM", "BIOME_NAME", "REALM")


@dataclass(frozen=True, kw_only=True)
class Ecoregion:
    """One ecoregion: its features joined, what it is tagged with, its area on the unit sphere."""

    geometry: Any
    tags: dict[str, Any]
    area: float


def candidates(
    spec: Any,
    *,
    n: int,
    start: int = 0,
    seed: int,
    alternates: int,
    regions: gpd.GeoDataFrame | None = None,
) -> gpd.GeoDataFrame:
    """Places by biome and ecoregion (see the module); ``regions`` or the file ``spec.ecoregions`` has
    RESOLVE's columns.

    Alternates 1 and 2 are in the same ecoregion, later ones in another ecoregion of the same biome, chosen by
    area. Tags: biome (BIOME_NUM), biome_name, ecoregion (ECO_ID), ecoregion_name, realm.
    """
    biomes = _biomes(spec, regions)
    slots, numbers = counters(start, n, alternates)
    biome, seat = slots % len(biomes), slots // len(biomes)
    ecoregions = [e for b in biomes for e in b]
    owner = np.empty(len(slots), np.int64)
    first = 0
    for position, members in enumerate(biomes):
        rows = np.flatnonzero(biome == position)
        areas = np.array([e.area for e in members])
        owner[rows] = first + _choose(areas, seat[rows], seed, slots[rows], numbers[rows])
        first += len(members)
    lon, lat = draw_each([e.geometry for e in ecoregions], owner, seed, slots, numbers)
    tags = [ecoregions[k].tags for k in owner]
    return frame(slots=slots, alternates=numbers, lon=lon, lat=lat, tags=tags)


def seats(areas: Floats, count: int) -> Ints:
    """Who takes seat 0 .. count - 1 when places go by area in the divisor order of Sainte-Laguë (1, 3, 5,
    ...).

    The earlier one of two equal claims wins. Every party with area / (2 s + 1) above the threshold claims
    seat s; the threshold is low enough for ``count`` claims in all, so the sorted claims begin with the
    answer.
    """
    if not count:
        return np.empty(0, np.int64)
    threshold = areas.sum() / (2 * count + len(areas)) * (1 - 1e-9)
    claims = np.floor((areas / threshold + 1) / 2).astype(np.int64)
    party = np.repeat(np.arange(len(areas)), claims)
    earlier = np.arange(claims.sum()) - np.repeat(np.cumsum(claims) - claims, claims)
    order = np.lexsort((party, -areas[party] / (2 * earlier + 1)))
    return party[order][:count]


def _choose(areas: Floats, seat: Ints, seed: int, slots: Ints, numbers: Ints) -> Ints:
    """Index of the ecoregion of each row: its seat's, or for far alternates another one, chosen by area."""
    order = seats(areas, int(seat.max()) + 1 if len(seat) else 0)
    own = order[seat]
    if len(areas) == 1:
        return own
    upper = np.cumsum(areas)
    target = uniform(seed, "other stratum", slots, numbers) * (upper[-1] - areas[own])
    target = np.where(target >= upper[own] - areas[own], target + areas[own], target)
    other = np.minimum(np.searchsorted(upper, target, side="right"), len(areas) - 1)
    # Rounding may land on the excluded neighbour; the next one is as good.
    other = np.where(other == own, (own + 1) % len(areas), other)
    return np.where(numbers > NEAR_ALTERNATES, other, own)


def _biomes(spec: Any, regions: gpd.GeoDataFrame | None) -> list[list[Ecoregion]]:
    """The ecoregions of each biome, biomes by number and ecoregions by id; only what the recipe asks for."""
    table = _table(spec, regions)
    keep = np.ones(len(table), bool)
    if spec.biomes is not None:
        _refuse_unknown("biomes", spec.biomes, _numbers(table).tolist())
        keep &= np.isin(_numbers(table), spec.biomes)
    if spec.exclude:
        names = [table[c].astype(str) for c in ("ECO_NAME", "BIOME_NAME", "REALM")]
        _refuse_unknown("exclude", spec.exclude, sorted({v for column in names for v in column}))
        keep &= ~np.any([column.isin(list(spec.exclude)) for column in names], axis=0)
    # RESOLVE files "Rock and Ice" under the number of the tundra with the biome name N/A: it is in no biome.
    keep &= ~table["BIOME_NAME"].fillna("N/A").isin(["N/A", ""]).to_numpy()
    found = _joined(table[keep], spec.ecoregions)
    return [[e for e in found if e.tags["biome"] == b] for b in sorted({e.tags["biome"] for e in found})]


def _table(spec: Any, regions: gpd.GeoDataFrame | None) -> gpd.GeoDataFrame:
    where = str(spec.ecoregions)
    if regions is None:
        if not Path(where).is_file():
            fix = "name a file, or build with a source that has these polygons"
            raise UserError("there are no such polygons", f"sampler.ecoregions: {where}", fix)
        regions = read_polygons(where)
    missing = [c for c in NEEDED if c not in regions.columns]
    if missing:
        raise UserError(f"columns {', '.join(missing)} are missing", where, f"RESOLVE 2017 has {', '.join(NEEDED)}")
    return regions


def _numbers(table: gpd.GeoDataFrame) -> Ints:
    return np.asarray(table["BIOME_NUM"].astype(float).astype(np.int64))


def _refuse_unknown(key: str, asked: list[Any], known: list[Any]) -> None:
    strangers = [value for value in asked if value not in set(known)]
    if strangers:
        shown = ", ".join(map(str, sorted(set(known))[:14]))
        raise UserError(f"{strangers[0]!r} is not in the polygons", f"sampler.{key}", f"they have {shown}")


def _joined(table: gpd.GeoDataFrame, where: str) -> list[Ecoregion]:
    """Ecoregions in the order of their ids; several features with one ECO_ID are one ecoregion.

    What lies wholly beyond the UTM limits is left out; if nothing is left that is an error.
    """
    ids = table["ECO_ID"].astype(float).astype(np.int64).to_numpy()
    found = []
    for eco in np.unique(ids):
        features = table[ids == eco]
        bounds = features.geometry.total_bounds
        if bounds[1] >= 84 or bounds[3] <= -80:
            continue
        shape = on_globe(_union(features), f"{where}: ECO_ID {eco}")
        found.append(Ecoregion(geometry=shape, tags=_tags(features.iloc[0]), area=float(sphere_area([shape])[0])))
    if not found:
        raise UserError("no ecoregion is left to draw from", str(where), "see sampler.biomes and sampler.exclude")
    return found


def _union(features: gpd.GeoDataFrame) -> Any:
    shapes = features.geometry.to_numpy()
    return shapes[0] if len(shapes) == 1 else shapely.union_all(shapely.make_valid(shapes))


def _tags(row: Any) -> dict[str, Any]:
    return {
        "biome": int(row["BIOME_NUM"]),
        "biome_name": str(row["BIOME_NAME"]),
        "ecoregion": int(float(row["ECO_ID"])),
        "ecoregion_name": str(row["ECO_NAME"]),
        "realm": str(row["REALM"]),
    }
