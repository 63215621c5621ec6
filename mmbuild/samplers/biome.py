"""Places spread evenly over biomes, and inside a biome over its ecoregions by area.

Slot i is in biome i modulo the number of biomes; inside a biome the ecoregions take turns in the order of
Sainte-Laguë, so that every prefix is as proportional to area as whole places can be. The recipe may ask for MMEarth's
allocation, areas and point seeds instead, each for itself. Refuses polygons without the RESOLVE columns.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from mmbuild.errors import UserError
from mmbuild.published import batches, floor_allocation, point_seed
from mmbuild.samplers import (
    NEAR_ALTERNATES,
    NORTH_LIMIT_DEG,
    SOUTH_LIMIT_DEG,
    Floats,
    Ints,
    Survey,
    counters,
    draw_each,
    frame,
    ground_area,
    on_globe,
    uniform,
)
from mmbuild.samplers.area import read_polygons

NEEDED = ("ECO_ID", "ECO_NAME", "BIOME_NUM", "BIOME_NAME", "REALM")
# Areas (km2) and order of 846 ecoregions, as MMEarth-data publishes them in stats/ (RESOLVE 2017, CC-BY-4.0).
PUBLISHED = Path(__file__).parent / "data/mmearth_ecoregions.csv"
# (ecoregion's name, number of points, seed) -> lon, lat of each point (point, 2); what a source draws.
RandomPoints = Callable[[str, int, int], Floats]


@dataclass(frozen=True, kw_only=True)
class Ecoregion:
    """One ecoregion: its features joined, what it is tagged with, the area (km2) that its share of places follows.

    place: where the published files list it, (biome, ecoregion) from 0; None when they do not.
    """

    geometry: Any
    tags: dict[str, Any]
    area: float
    place: tuple[int, int] | None


def candidates(
    spec: Any,
    *,
    n: int,
    start: int = 0,
    seed: int,
    alternates: int,
    regions: gpd.GeoDataFrame | None = None,
    random_points: RandomPoints | None = None,
) -> gpd.GeoDataFrame:
    """Places by biome and ecoregion (see the module); ``regions`` or the file ``spec.ecoregions`` has
    RESOLVE's columns.

    Alternates 1 and 2 are in the same ecoregion, later ones in another ecoregion of the same biome, chosen by
    area. Tags: biome (BIOME_NUM), biome_name, ecoregion (ECO_ID), ecoregion_name, realm. With the floor allocation
    there are fewer places than ``n``. random_points: draws the first choices by published seeds; without it they come
    from our own counters under those seeds. Alternates, which nobody published, are always our own, and so is what
    would lie beyond the UTM limits.
    """
    biomes = _biomes(spec, regions)
    ecoregions = [e for b in biomes for e in b]
    own = _owners(spec, biomes, n)
    slots, numbers = counters(start, len(own), alternates)
    owner = _with_far_alternates(biomes, own[slots], seed, slots, numbers)
    lon, lat = np.empty(len(slots)), np.empty(len(slots))
    is_drawn = np.zeros(len(slots), bool)
    if spec.points == "published_seeds":
        points = _published_points(biomes, own, random_points)[slots]
        is_drawn = (numbers == 0) & (points[:, 1] >= SOUTH_LIMIT_DEG) & (points[:, 1] < NORTH_LIMIT_DEG)
        lon[is_drawn], lat[is_drawn] = points[is_drawn].T
    rest = ~is_drawn
    shapes = [e.geometry for e in ecoregions]
    lon[rest], lat[rest] = draw_each(shapes, owner[rest], seed, slots[rest], numbers[rest])
    tags = [ecoregions[k].tags for k in owner]
    return frame(slots=slots, alternates=numbers, lon=lon, lat=lat, tags=tags)


def survey(
    spec: Any, *, n: int, seed: int, alternates: int, regions: gpd.GeoDataFrame | None = None, random_points: Any = None
) -> Survey:
    """Places of each biome, and how the ecoregions share them; nothing is drawn."""
    biomes = _biomes(spec, regions)
    counts = np.split(
        np.bincount(_owners(spec, biomes, n), minlength=sum(map(len, biomes))), np.cumsum([len(b) for b in biomes])[:-1]
    )
    strata = [(b[0].tags["biome_name"], int(c.sum())) for b, c in zip(biomes, counts, strict=True)]
    each = np.concatenate(counts)
    notes = [f"{len(each)} ecoregions: {each.min()} to {each.max()} places each, {int((each == 0).sum())} without any"]
    if spec.areas == "published" and not _is_published(biomes):
        notes.append("none of these ecoregions is in the published table of areas: their polygons' areas count")
    if not spec.can_grow:
        notes.append("these places are bound to this number of samples: the corpus cannot be extended")
    return Survey(places=int(each.sum()), strata=strata, notes=notes)


def _owners(spec: Any, biomes: Sequence[Sequence[Ecoregion]], n: int) -> Ints:
    """Number of the ecoregion of each slot, ecoregions counted through all biomes."""
    firsts = np.cumsum([0, *(len(b) for b in biomes)])
    areas = [[e.area for e in b] for b in biomes]
    if spec.allocation == "floor":
        counts = [c for biome in floor_allocation(n, areas) for c in biome]
        return np.repeat(np.arange(firsts[-1]), counts)
    owners = np.empty(n, np.int64)
    for k, first in enumerate(firsts[:-1]):
        own = slice(k, None, len(biomes))
        owners[own] = first + seats(np.array(areas[k]), len(owners[own]))
    return owners


def _published_points(
    biomes: Sequence[Sequence[Ecoregion]], owners: Ints, random_points: RandomPoints | None
) -> Floats:
    """The point (lon, lat) of each slot, drawn in MMEarth's batches by MMEarth's seeds."""
    order, counts = np.argsort(owners, kind="stable"), np.bincount(owners, minlength=sum(map(len, biomes)))
    ecoregions = [e for b in biomes for e in b]
    seeds = _batch_seeds(biomes, counts)
    if random_points is None:
        drawn = _own_points(ecoregions, seeds)
    else:
        names = [e.tags["ecoregion_name"] for e in ecoregions]
        drawn = np.concatenate([random_points(names[k], size, seed) for k, size, seed in seeds])
    points = np.empty((len(owners), 2))
    points[order] = drawn
    return points


def _batch_seeds(biomes: Sequence[Sequence[Ecoregion]], counts: Ints) -> list[tuple[int, int, int]]:
    """Ecoregion (counted through all biomes), size and seed of each batch of points."""
    places = [
        (index if e.place is None else e.place[1], e.tags["ecoregion_name"])
        for b in biomes
        for index, e in enumerate(b)
    ]
    return [
        (k, size, point_seed(index, name, size, batch))
        for k, ((index, name), count) in enumerate(zip(places, counts.tolist(), strict=True))
        for batch, size in enumerate(batches(count))
    ]


def _own_points(ecoregions: Sequence[Ecoregion], seeds: Sequence[tuple[int, int, int]]) -> Floats:
    """Points of all batches in a row; point i of a batch follows from the batch's seed and i alone."""
    owner, sizes, values = np.array(seeds, np.int64).reshape(-1, 3).T
    rows = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, np.int64)])
    # Negative counters: no slot has them, so none of our own draws is repeated here.
    keys = -1 - np.repeat(values, sizes)
    return np.stack(draw_each([e.geometry for e in ecoregions], np.repeat(owner, sizes), 0, keys, rows), axis=1)


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


def _with_far_alternates(
    biomes: Sequence[Sequence[Ecoregion]], own: Ints, seed: int, slots: Ints, numbers: Ints
) -> Ints:
    """Ecoregion of each row: its slot's, or for far alternates another of the biome, chosen by area."""
    owner, first = own.copy(), 0
    for members in biomes:
        rows = np.flatnonzero((numbers > NEAR_ALTERNATES) & (own >= first) & (own < first + len(members)))
        if len(members) > 1 and len(rows):
            areas = np.array([e.area for e in members])
            owner[rows] = first + _other(areas, own[rows] - first, seed, slots[rows], numbers[rows])
        first += len(members)
    return owner


def _other(areas: Floats, own: Ints, seed: int, slots: Ints, numbers: Ints) -> Ints:
    """Another ecoregion than ``own`` for each row."""
    upper = np.cumsum(areas)
    target = uniform(seed, "other stratum", slots, numbers) * (upper[-1] - areas[own])
    target = np.where(target >= upper[own] - areas[own], target + areas[own], target)
    other = np.minimum(np.searchsorted(upper, target, side="right"), len(areas) - 1)
    # Rounding may land on the excluded neighbour; the next one is as good.
    return np.where(other == own, (own + 1) % len(areas), other)


def _biomes(spec: Any, regions: gpd.GeoDataFrame | None) -> list[list[Ecoregion]]:
    """The ecoregions of each biome, only what the recipe asks for: biomes by number and ecoregions by id, or all in
    the order of the published files where their allocation or seeds are asked for and they list them."""
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
    biomes = [[e for e in found if e.tags["biome"] == b] for b in sorted({e.tags["biome"] for e in found})]
    if spec.areas == "published" and _is_published(biomes):
        _refuse_unpublished(found, str(spec.ecoregions))
        biomes = [[replace(e, area=_published()[e.tags["ecoregion_name"]][1]) for e in b] for b in biomes]
    if not spec.can_grow and all(e.place for e in found):
        biomes = sorted((sorted(b, key=_place) for b in biomes), key=lambda b: _place(b[0]))
    return biomes


@cache
def _published() -> dict[str, tuple[tuple[int, int], float]]:
    """Place and area (km2) of each ecoregion in the published files, by name; Rock and Ice is not among them."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["biome_label"]]
    firsts: dict[int, int] = {}
    found = {}
    for row in rows:
        biome, label = int(row["biome_label"]), int(row["eco_label"])
        place = biome, label - firsts.setdefault(biome, label)
        found[row["eco_name"]] = place, float(row["area_km2"])
    return found


def _place(ecoregion: Ecoregion) -> tuple[int, int]:
    assert ecoregion.place is not None, "only ecoregions that the published files list are sorted by them"
    return ecoregion.place


def _is_published(biomes: Sequence[Sequence[Ecoregion]]) -> bool:
    """Whether the published files know any of these ecoregions; those of a synthetic Earth have names of their own."""
    return any(e.place is not None for b in biomes for e in b)


def _refuse_unpublished(found: Sequence[Ecoregion], where: str) -> None:
    strangers = [e.tags["ecoregion_name"] for e in found if e.place is None]
    if strangers:
        text = f"{len(strangers)} ecoregions are not in the published table of areas, the first is {strangers[0]!r}"
        raise UserError(text, where, "set sampler.areas: polygons, or leave them out with sampler.exclude")


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
    shapes, rows = table.geometry.to_numpy(), table[list(NEEDED)].to_dict("records")
    found = []
    for eco in np.unique(ids):
        own = np.flatnonzero(ids == eco)
        bounds = shapely.total_bounds(shapes[own])
        if bounds[1] >= NORTH_LIMIT_DEG or bounds[3] <= SOUTH_LIMIT_DEG:
            continue
        shape = on_globe(_union(shapes[own]), f"{where}: ECO_ID {eco}")
        tags, area = _tags(rows[own[0]]), float(ground_area([shape])[0])
        place = _published().get(tags["ecoregion_name"], (None,))[0]
        found.append(Ecoregion(geometry=shape, tags=tags, area=area, place=place))
    if not found:
        raise UserError("no ecoregion is left to draw from", str(where), "see sampler.biomes and sampler.exclude")
    return found


def _union(shapes: Any) -> Any:
    return shapes[0] if len(shapes) == 1 else shapely.union_all(shapely.make_valid(shapes))


def _tags(row: Any) -> dict[str, Any]:
    return {
        "biome": int(row["BIOME_NUM"]),
        "biome_name": str(row["BIOME_NAME"]),
        "ecoregion": int(float(row["ECO_ID"])),
        "ecoregion_name": str(row["ECO_NAME"]),
        "realm": str(row["REALM"]),
    }
