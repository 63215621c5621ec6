"""From a recipe to work: where every sample lies, which shard it belongs to, and what asking for it will cost.

Planning touches no pixels; it asks a source only for what a sampler needs to choose places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from mmbuild import samplers
from mmbuild.anchors import SCREEN_ROUNDS, anchor_year
from mmbuild.choose import Sample
from mmbuild.cube import ArrayLayout, layouts
from mmbuild.errors import UserError
from mmbuild.grid import tile_at, tile_grid, to_earthengine, utm_grid
from mmbuild.recipe import BiomeSampler, CitiesSampler, Recipe, WebmercatorGrid, XyzSampler
from mmbuild.sources import (
    PAIRS_PER_REQUEST,
    RESPONSE_LIMIT_BYTES,
    SAMPLES_PER_REQUEST,
    Box,
    DrawsPoints,
    KnowsCoverage,
    Source,
    derived,
)
from mmbuild.sources.several import Several
from mmbuild.throttle import CONCURRENT_REQUESTS, REQUESTS_PER_SECOND
from mmbuild.times import year_window

if TYPE_CHECKING:
    import geopandas as gpd

# A chip request of some 30 bands at 128 px answers in about a second on the live service (believed, not measured).
TYPICAL_LATENCY_S = 1.0
# First and last year in which coverage counts when the recipe names none.
EVERY_YEAR = (2000, 2100)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build will be: counts, requests and bytes, computed without asking anybody."""

    samples: int
    steps: int
    shards: int
    modalities: tuple[str, ...]
    raw_bytes_per_sample: int
    pixel_requests: int
    metadata_requests: int
    seconds_at_quota: float

    @property
    def raw_bytes(self) -> int:
        return self.samples * self.raw_bytes_per_sample


def estimate(recipe: Recipe, samples: int) -> Plan:
    """Counts for ``samples`` stored samples, each taken at its first place; retries and alternates come on top."""
    arrays = layouts(recipe)
    shards = math.ceil(samples / recipe.store.samples_per_shard)
    lattices = _pixel_requests(recipe, arrays)
    per_shard = min(samples, recipe.store.samples_per_shard)
    searches = shards * math.ceil(per_shard / SAMPLES_PER_REQUEST)
    # Of each sample so many scenes are screened first; a second round is asked for the few that fail them.
    pairs = per_shard * recipe.steps * SCREEN_ROUNDS[0]
    screens = shards * math.ceil(pairs / PAIRS_PER_REQUEST) if recipe.anchor.min_clear else 0
    requests = samples * lattices + searches + screens
    rate = min(REQUESTS_PER_SECOND, CONCURRENT_REQUESTS / TYPICAL_LATENCY_S)
    return Plan(
        samples=samples, steps=recipe.steps, shards=shards, modalities=tuple(arrays), pixel_requests=samples * lattices,
        metadata_requests=searches + screens, seconds_at_quota=requests / rate,
        raw_bytes_per_sample=sum(a.times * math.prod(a.chip) * a.modality.np_dtype.itemsize for a in arrays.values()),
    )  # fmt: skip


def _pixel_requests(recipe: Recipe, arrays: Mapping[str, ArrayLayout]) -> int:
    """Pixel requests of one sample: one a lattice, more where all its chips are more than an answer holds.

    Of the products of ``one_of`` only the largest counts.
    """
    sizes: dict[float, int] = {}
    either: dict[float, list[int]] = {}
    for name, array in arrays.items():
        if array.gsd is None or array.modality.is_derived:
            continue
        size = array.times * math.prod(array.chip) * (array.modality.np_dtype.itemsize + 1)
        if name in (recipe.anchor.one_of or ()):
            either.setdefault(array.gsd, []).append(size)
            size = 0
        sizes[array.gsd] = sizes.get(array.gsd, 0) + size
    return sum(max(1, math.ceil((size + max(either.get(g, [0]))) / RESPONSE_LIMIT_BYTES)) for g, size in sizes.items())


def locate(recipe: Recipe, *, stop: int | None, start: int = 0, source: Source | None = None) -> gpd.GeoDataFrame:
    """The ordered candidate locations of slots ``start`` to ``stop``: one row per (slot, alternate), with its grid.

    stop: None takes every place of a sampler that has a list of them; a larger one keeps the first rows.
    source: asked for what a sampler needs of it, such as the polygons of a table it names.
    Raises UserError when the sampler has fewer places than asked.
    """
    spec, more = _sampler(recipe, source)
    bound = isinstance(spec, BiomeSampler) and not spec.can_grow
    places = samplers.candidates(
        spec, n=stop, start=0 if bound else start, seed=recipe.seed, alternates=recipe.alternates, **more
    )
    if bound and start:
        found = places["slot"].nunique()
        if found != start:
            raise UserError(
                f"the places of {stop} samples are {found} others than the {start} that are here", "sampler",
                "published allocation and seeds follow from the number of samples: build into another folder",
            )  # fmt: skip
        return places.iloc[:0]
    found = start + places["slot"].nunique()
    if stop is not None and found < stop and not bound:
        raise UserError(
            f"the sampler has {found} places, {stop} samples are asked", "samples", f"ask for at most {found}"
        )
    if places.empty:
        if start == 0:
            raise UserError("the sampler gives no place", "sampler", "check its file, or ask for more samples")
        return places
    return _with_grids(recipe, places)


def asks_source(recipe: Recipe) -> bool:
    """Whether the sampler needs something of a source before it can choose places."""
    spec = recipe.sampler
    if isinstance(spec, XyzSampler):
        return spec.covered_by is not None
    return isinstance(spec, BiomeSampler) and spec.ecoregions not in recipe.files


def survey(recipe: Recipe, *, samples: int | None, source: Source | None = None) -> samplers.Survey:
    """What the sampler does with the recipe: its places by stratum, and remarks."""
    spec, more = _sampler(recipe, source)
    return samplers.survey(spec, n=samples, seed=recipe.seed, alternates=recipe.alternates, **more)


def _sampler(recipe: Recipe, source: Source | None) -> tuple[Any, dict[str, Any]]:
    """The sampler's keys with its files found, and what it needs beside them."""
    written = {key: getattr(recipe.sampler, key, None) for key in ("file", "cities", "ecoregions")}
    files = {key: str(recipe.file(name)) for key, name in written.items() if name in recipe.files}
    spec = recipe.sampler.model_copy(update=files)
    match spec:
        case BiomeSampler():
            return spec, {} if "ecoregions" in files else _of_table(spec, source)
        case CitiesSampler():
            return spec, {"grid": recipe.grid}
        case XyzSampler():
            assert isinstance(recipe.grid, WebmercatorGrid), "the recipe's checks see to it"
            return spec, {"zoom": recipe.grid.zoom, "footprints": _footprints(recipe, spec, source)}
    return spec, {}


def _of_table(spec: BiomeSampler, source: Source | None) -> dict[str, Any]:
    """The ecoregions of a table that a source keeps, and how it draws points in them."""
    assert source is not None, "a table of polygons is asked of a source"
    more: dict[str, Any] = {"regions": source.regions(spec.ecoregions)}
    if spec.points == "published_seeds" and isinstance(source, DrawsPoints):
        more["random_points"] = partial(source.random_points, spec.ecoregions, "ECO_NAME")
    return more


def _footprints(
    recipe: Recipe, spec: XyzSampler, source: Source | None
) -> Callable[[Sequence[Sequence[Box]]], gpd.GeoDataFrame] | None:
    """Asks the source where the images of the covering modality lie, in the years of the recipe."""
    if spec.covered_by is None:
        return None
    assert source is not None, "coverage is asked of a source"
    keeper = source.keeper(spec.covered_by) if isinstance(source, Several) else source
    if not isinstance(keeper, KnowsCoverage):
        reason = f"the source of {spec.covered_by} does not say where it has images"
        raise UserError(reason, "sampler.covered_by", "remove it, and name areas that have images")
    years = recipe.anchor.years or EVERY_YEAR
    window = year_window(years[0])[0], year_window(years[-1])[1]
    return partial(keeper.coverage, spec.covered_by, window=window)


def count_places(recipe: Recipe) -> int:
    """How many samples a recipe without ``samples`` means: every place of its list."""
    return int(locate(recipe, stop=None)["slot"].nunique())


def _with_grids(recipe: Recipe, places: Any) -> gpd.GeoDataFrame:
    import geopandas as gpd
    import pandas as pd

    labels = [modality for modality in recipe.modality_defs.values() if modality.is_derived]
    rows = []
    for place in places.to_dict("records"):
        for modality in labels:
            derived.check(modality, place["tags"], f"place {place['slot']}")
        rows.append(_grid_row(recipe, place))
    table = pd.DataFrame(rows)
    table["date"] = pd.to_datetime(table["date"], utc=True).dt.as_unit("ms")
    table = table.astype(
        {"slot": "int64", "alternate": "int16", "epsg": "int32", "size": "int32", "anchor_year": "Int32"}
    )
    return gpd.GeoDataFrame(table, geometry=gpd.points_from_xy(table["lon"], table["lat"]), crs="EPSG:4326")


def _grid_row(recipe: Recipe, place: dict[str, Any]) -> dict[str, Any]:
    lon, lat, slot, alternate = place["lon"], place["lat"], int(place["slot"]), int(place["alternate"])
    if recipe.grid.kind == "utm":
        box = utm_grid(lon, lat, gsd=recipe.grid.gsd, size=recipe.grid.size)
    else:
        box = tile_grid(*tile_at(lon, lat, recipe.grid.zoom), size=recipe.grid.size)
    has_date = place.get("date") is not None and place["date"] == place["date"]  # NaT is not equal to itself
    own_dates = recipe.times is not None and recipe.times.kind == "seasons"
    if not (has_date or own_dates or recipe.anchor.years):
        raise UserError(
            f"place {slot} has no date and the recipe names no years", "anchor.years", "give it a date or add years"
        )
    return {
        "slot": slot, "alternate": alternate, "sample_id": f"{slot:06d}", "lon": float(lon), "lat": float(lat),
        "epsg": int(to_earthengine(box)["crsCode"].removeprefix("EPSG:")),
        "x0": box.affine.c, "y0": box.affine.f, "gsd": box.affine.a, "size": box.shape[0],
        "date": place["date"] if has_date else None,
        "anchor_year": None if has_date else anchor_year(recipe, slot, alternate, float(lon), float(lat)),
        "tags": json.dumps(place["tags"], sort_keys=True, default=str),
    }  # fmt: skip


def samples_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sample]:
    """Location rows as samples, in their order."""
    for row in rows:
        date, year = row["date"], row["anchor_year"]
        yield Sample(
            slot=int(row["slot"]), alternate=int(row["alternate"]), sample_id=row["sample_id"],
            lon=float(row["lon"]), lat=float(row["lat"]), epsg=int(row["epsg"]),
            x0=float(row["x0"]), y0=float(row["y0"]), gsd=float(row["gsd"]), size=int(row["size"]),
            date=None if date is None or date != date else _utc(date),
            anchor_year=None if year is None or year != year else int(year), tags=json.loads(row["tags"]),
        )  # fmt: skip


def _utc(date: Any) -> datetime:
    moment: datetime = date.to_pydatetime() if hasattr(date, "to_pydatetime") else date
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def slots_of_shard(shard: int, samples_per_shard: int, samples: int) -> range:
    """The slots that a shard owns; the last shard may be shorter."""
    return range(shard * samples_per_shard, min((shard + 1) * samples_per_shard, samples))
