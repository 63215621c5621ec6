"""Places that the user lists: CSV, GeoJSON, GeoPackage, Shapefile or (Geo)Parquet; slot i is row i.

A row with a coordinate or date that cannot be used is refused with its number; nothing is dropped or guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from mmbuild.errors import UserError
from mmbuild.samplers import NORTH_LIMIT_DEG, SOUTH_LIMIT_DEG, Floats, frame, plain_tags
from mmbuild.samplers.area import read_vector

# Names people give the two columns, best first; letter case does not matter.
LON_NAMES = ("lon", "longitude", "lng", "long", "x", "decimallongitude", "center_lon")
LAT_NAMES = ("lat", "latitude", "y", "decimallatitude", "center_lat")
LIMITS = {"longitude": (-180.0, 180.0), "latitude": (SOUTH_LIMIT_DEG, NORTH_LIMIT_DEG)}
TEXT_SUFFIXES = {".csv": ",", ".tsv": "\t", ".txt": ","}


def candidates(
    spec: Any,
    *,
    n: int | None,
    start: int = 0,
    seed: int = 0,
    alternates: int = 0,
    regions: gpd.GeoDataFrame | None = None,
) -> gpd.GeoDataFrame:
    """Rows ``start`` .. ``n - 1`` of ``spec.file`` (n None, or more than there are: all), each its own
    slot.

    There are no alternates and nothing is random: a listed place is that place. The columns that are neither
    coordinates nor the date are tags, the id column among them. Rows are checked whether they are asked for
    or not.
    """
    where = str(spec.file)
    table = _read(where)
    lon, lat, used = _coordinates(table, where)
    dates = None if spec.date_column is None else _dates(table, spec.date_column, where)
    if spec.id_column is not None:
        _check_ids(table, spec.id_column, where)
    tags = plain_tags(table, leave_out=[*used, *([spec.date_column] if spec.date_column else [])])
    rows = np.arange(len(table))[start:n]
    return frame(
        slots=rows,
        alternates=np.zeros_like(rows),
        lon=lon[rows],
        lat=lat[rows],
        tags=[tags[i] for i in rows],
        dates=None if dates is None else dates.iloc[rows].reset_index(drop=True),
    )


def read_places(where: str) -> tuple[pd.DataFrame, Floats, Floats]:
    """A table of places with their longitudes and latitudes, every row checked."""
    table = _read(where)
    lon, lat, _ = _coordinates(table, where)
    return table, lon, lat


def _read(where: str) -> pd.DataFrame:
    """The file as a table; a GeoDataFrame where it has geometries. Row numbers in errors count from 1."""
    path = Path(where)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UserError("there is no such file", where, "check the path; it counts from the recipe")
    if suffix in TEXT_SUFFIXES:
        table = _read_text(path, TEXT_SUFFIXES[suffix])
    elif suffix in (".parquet", ".geoparquet") and not _is_geoparquet(path):
        table = pd.read_parquet(path)
    else:
        table = read_vector(path)
    if not len(table):
        raise UserError("has no rows", where, "give it at least one place")
    return table


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    """Only an empty cell is empty: the country code NA is a value."""
    try:
        return pd.read_csv(
            path,
            sep=separator,
            keep_default_na=False,
            na_values=[""],
            dtype_backend="numpy_nullable",
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {str(error).strip()}", str(path), "save it as UTF-8 CSV") from error


def _is_geoparquet(path: Path) -> bool:
    try:
        return b"geo" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError("is not a Parquet file", str(path), "check the file") from error


def _coordinates(table: pd.DataFrame, where: str) -> tuple[Floats, Floats, list[str]]:
    """Longitudes, latitudes and the columns they came from; a geometry column goes before named columns."""
    if isinstance(table, gpd.GeoDataFrame):
        return _of_geometry(table, where)
    lon_name, lat_name = _find(table, LON_NAMES), _find(table, LAT_NAMES)
    if lon_name is None or lat_name is None:
        kind = "longitude" if lon_name is None else "latitude"
        names = LON_NAMES if lon_name is None else LAT_NAMES
        text = f"has no {kind} column among {', '.join(map(str, table.columns))}"
        raise UserError(text, where, f"call it {names[0]} or {names[1]}")
    lon = _checked(table[lon_name], "longitude", where)
    return lon, _checked(table[lat_name], "latitude", where), [lon_name, lat_name]


def _find(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    by_name = {str(column).strip().lower(): str(column) for column in table.columns}
    return next((by_name[name] for name in names if name in by_name), None)


def _of_geometry(table: gpd.GeoDataFrame, where: str) -> tuple[Floats, Floats, list[str]]:
    shapes = table.to_crs("EPSG:4326").geometry
    for row, shape in enumerate(shapes):
        if shape is None or shape.is_empty or shape.geom_type != "Point":
            found = "nothing" if shape is None or shape.is_empty else f"a {shape.geom_type}"
            fix = "the points sampler takes Points; for polygons use the sampler of kind area"
            raise UserError(f"is {found}, not a Point", f"{where}: row {row + 1}, column {shapes.name}", fix)
    xy = shapely.get_coordinates(shapes.to_numpy())
    lon = _checked(pd.Series(xy[:, 0], name=shapes.name), "longitude", where)
    return lon, _checked(pd.Series(xy[:, 1], name=shapes.name), "latitude", where), [str(shapes.name)]


def _checked(column: pd.Series[Any], kind: str, where: str) -> Floats:
    """Degrees as floats; the first cell that is empty, no number or out of range is an error with its row."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    low, high = LIMITS[kind]
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    if not len(bad):
        return values
    row = int(bad[0])
    raw = column.iloc[row]
    place = f"{where}: row {row + 1}, column {column.name}"
    if pd.isna(raw):
        raise UserError(f"the {kind} is empty", place, "fill it or remove the row")
    if np.isnan(values[row]):
        raise UserError(f"{raw!r} is not a number", place, "write decimal degrees, such as -12.5")
    text = f"the {kind} {values[row]:g} is not between {low:g} and {high:g}"
    raise UserError(text, place, _range_fix(kind, values[row]))


def _range_fix(kind: str, value: float) -> str:
    if kind == "latitude" and abs(value) <= 90:
        return "UTM grids end at 84° N and 80° S; remove the row"
    if kind == "longitude" and 180 < value <= 360:
        return f"write {value - 360:g} instead"
    return "check that longitude and latitude are not swapped and are in degrees"


# A date needs its day: a bare year would have to be guessed into one.
DATE_PATTERN = r"\d{4}-?\d{2}-?\d{2}(?:[T ].*)?"


def _dates(table: pd.DataFrame, name: str, where: str) -> pd.Series[Any]:
    """The date column in UTC; times without a zone are UTC. An empty cell is a place without a date (NaT)."""
    if name not in table.columns:
        have = ", ".join(map(str, table.columns))
        raise UserError(f"has no column {name!r}", where, f"set sampler.date_column to one of {have}")
    column = table[name]
    text = column.astype("string").str.strip()
    if pd.api.types.is_datetime64_any_dtype(column):
        parsed = pd.to_datetime(column, utc=True)
    else:
        usable = text.where(text.str.fullmatch(DATE_PATTERN).fillna(False))
        parsed = pd.to_datetime(usable, utc=True, format="ISO8601", errors="coerce")
    bad = np.flatnonzero((parsed.isna() & column.notna()).to_numpy())
    if len(bad):
        row = int(bad[0])
        place = f"{where}: row {row + 1}, column {name}"
        raise UserError(f"{str(column.iloc[row])!r} is not a date", place, "write YYYY-MM-DD, such as 2020-06-30")
    return parsed.astype("datetime64[ms, UTC]")


def _check_ids(table: pd.DataFrame, name: str, where: str) -> None:
    if name not in table.columns:
        have = ", ".join(map(str, table.columns))
        raise UserError(f"has no column {name!r}", where, f"set sampler.id_column to one of {have}")
    for mask, problem in ((table[name].isna(), "is empty"), (table[name].duplicated(), "appears twice")):
        if mask.any():
            row = int(np.flatnonzero(mask.to_numpy())[0])
            text = "the id is empty" if problem == "is empty" else f"the id {table[name].iloc[row]!r} appears twice"
            raise UserError(text, f"{where}: row {row + 1}, column {name}", "give every row its own id")
