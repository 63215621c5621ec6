"""From a recipe to work: where every sample lies, which shard it belongs to, and what asking for it will cost.

Planning touches no pixels; the only thing it may ask a source for is a table of polygons.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mmbuild import samplers
from mmbuild.anchors import SCREEN_ROUNDS, anchor_year
from mmbuild.choose import Sample
from mmbuild.cube import ArrayLayout, layouts
from mmbuild.errors import UserError
from mmbuild.grid import tile_at, tile_grid, to_earthengine, utm_grid
from mmbuild.recipe import BiomeSampler, Recipe
from mmbuild.samplers.area import read_polygons
from mmbuild.sources import PAIRS_PER_REQUEST, RESPONSE_LIMIT_BYTES, SAMPLES_PER_REQUEST, derived
from mmbuild.throttle import CONCURRENT_REQUESTS, REQUESTS_PER_SECOND

if TYPE_CHECKING:
    import geopandas as gpd

# A chip request of some 30 bands at 128 px answers in about a second on the live service (believed, not measured).
TYPICAL_LATENCY_S = 1.0


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


def locate(
    recipe: Recipe,
    *,
    stop: int | None,
    start: int = 0,
    regions: Callable[[str], gpd.GeoDataFrame] | None = None,
) -> gpd.GeoDataFrame:
    """The ordered candidate locations of slots ``start`` to ``stop``: one row per (slot, alternate), with its grid.

    stop: None takes every place of a sampler that has a list of them; a larger one keeps the first rows.
    regions: asked for the polygons of a sampler that names a table.
    Raises UserError when the sampler has fewer places than asked.
    """
    spec, polygons = _sampler(recipe, regions)
    places = samplers.candidates(
        spec, n=stop, start=start, seed=recipe.seed, alternates=recipe.alternates, regions=polygons
    )
    found = start + places["slot"].nunique()
    if stop is not None and found < stop:
        raise UserError(
            f"the sampler has {found} places, {stop} samples are asked", "samples", f"ask for at most {found}"
        )
    if places.empty:
        if start == 0:
            raise UserError("the sampler gives no place", "sampler", "check its file")
        return places
    return _with_grids(recipe, places)


def _sampler(recipe: Recipe, regions: Callable[[str], gpd.GeoDataFrame] | None) -> tuple[Any, gpd.GeoDataFrame | None]:
    """The sampler's keys with its file found, and the polygons it asks the source for."""
    spec = recipe.sampler
    if isinstance(spec, BiomeSampler):
        if spec.ecoregions in recipe.files:
            return spec, read_polygons(recipe.file(spec.ecoregions))
        assert regions is not None, "a table of polygons is asked of a source"
        return spec, regions(spec.ecoregions)
    files = {key: getattr(spec, key, None) for key in ("file", "cities")}
    found = {key: str(recipe.file(name)) for key, name in files.items() if name is not None and name in recipe.files}
    return spec.model_copy(update=found), None


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
        "anchor_year": None if has_date else anchor_year(recipe.seed, slot, alternate, recipe.anchor.years),
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
