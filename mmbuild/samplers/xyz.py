"""Web-mercator tiles of one zoom inside areas: polygons of a file, larger tiles, or US states; each tile at most once.

Tiles are counted, never listed: a tree of larger tiles covers the areas, and a seeded permutation of the numbers says
which tile is whose, so that a larger corpus keeps the first tiles. Refuses to give out more tiles than there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from mmbuild.errors import UserError
from mmbuild.samplers import Floats, Ints, Survey, counters, frame, on_globe, plain_tags, uniform
from mmbuild.samplers._covered import Coverage, Footprints, Times, first_covered
from mmbuild.samplers.area import read_polygons

# Boundaries of the Census Bureau, simplified; public domain. Made by make_us_states.py beside it.
US_STATES = Path(__file__).parent / "data/us_states.geojson"


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """All tiles of ``zoom`` in an area, as larger tiles (z, x, y) that hold them; ``upper``: their summed counts."""

    zoom: int
    z: Ints
    x: Ints
    y: Ints
    upper: Ints

    @classmethod
    def of(cls, zoom: int, z: Ints, x: Ints, y: Ints) -> Tiles:
        return cls(zoom=zoom, z=z, x=x, y=y, upper=np.cumsum(4 ** (zoom - z)))

    def __len__(self) -> int:
        return int(self.upper[-1]) if len(self.upper) else 0

    def numbered(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Columns and rows of the tiles with these numbers, from 0."""
        node = np.searchsorted(self.upper, numbers, side="right")
        side = 2 ** (self.zoom - self.z[node])
        down, right = np.divmod(numbers - (self.upper[node] - side * side), side)
        return self.x[node] * side + right, self.y[node] * side + down


def candidates(
    spec: Any, *, n: int, start: int = 0, seed: int, alternates: int, zoom: int, footprints: Footprints | None = None
) -> gpd.GeoDataFrame:
    """Centres of tiles, drawn without replacement from all tiles that lie in the areas whole.

    zoom: of the tiles. footprints: asked for where images of the covering modality lie; only tiles that one of them
    covers whole are drawn, each with the date of such an image, and only those that the order comes to are asked about.
    Alternates are tiles of their own, anywhere in the areas. Tags: tile (z/x/y) and what is known of the area.
    Raises UserError when the areas hold fewer tiles than samples and alternates need.
    """
    areas = _areas(spec)
    order = _order(spec, areas, seed, zoom, footprints)
    slots, numbers = counters(start, n, alternates)
    chosen, dates = order.chosen(slots, numbers, n, alternates)
    x, y = order.tiles.numbered(chosen)
    lon, lat = _middles(x, y, zoom)
    of_area = plain_tags(areas.drop(columns=areas.geometry.name))
    tags = [
        {**of_area[k], "tile": f"{zoom}/{column}/{row}"}
        for k, column, row in zip(_owners(areas, lon, lat), x.tolist(), y.tolist(), strict=True)
    ]
    return frame(slots=slots, alternates=numbers, lon=lon, lat=lat, tags=tags, dates=dates)


def survey(spec: Any, *, n: int, seed: int, alternates: int, zoom: int, footprints: Footprints | None = None) -> Survey:
    """First places by area, and how many tiles there are."""
    areas = _areas(spec)
    order = _order(spec, areas, seed, zoom, footprints)
    slots, numbers = counters(0, n, 0)
    chosen, _ = order.chosen(slots, numbers, n, 0)
    owners, coverage = _owners(areas, *_middles(*order.tiles.numbered(chosen), zoom)), order.coverage
    names = areas[NAME].tolist() if NAME in areas else [f"row {k + 1}" for k in range(len(areas))]
    counts = np.bincount(owners, minlength=len(names)).tolist()
    there, covered = len(order.tiles), ""
    if coverage is not None and coverage.asked:
        covered = f" {spec.covered_by} covers {coverage.covered:,} of the {coverage.asked:,} that were looked at:"
        there = there * coverage.covered // coverage.asked
    note = (
        f"{len(order.tiles):,} tiles of zoom {zoom} lie in the areas,{covered} enough for "
        f"{there // (1 + alternates):,} samples with {alternates} alternates each"
    )
    return Survey(places=n, strata=list(zip(names, counts, strict=True)), notes=[note])


@dataclass(frozen=True, kw_only=True)
class _Order:
    """Tiles in the order of a seed: all of them, or those that are covered by the modality ``by``."""

    tiles: Tiles
    seed: int
    coverage: Coverage | None
    by: str | None

    def chosen(self, slots: Ints, numbers: Ints, n: int, alternates: int) -> tuple[Ints, Times | None]:
        """The tile of each slot and number of a choice (0: the first), of ``n`` slots with so many alternates.

        The second value says when it was taken, None where nobody asked.

        Alternates come from the end of the order, so that their number does not move the first choices.
        """
        size = len(self.tiles)
        self._refuse_too_many(n, size, alternates, "")
        last = slots * alternates + numbers - 1
        if self.coverage is None:
            return permuted(np.where(numbers == 0, slots, size - 1 - last), size, self.seed), None
        (front, back), seen = self._covered([(n, lambda k: k), (n * alternates, lambda k: size - 1 - k)])
        if seen >= size:
            there = len(self._covered([(size + 1, lambda k: k)])[0][0][0])
            self._refuse_too_many(n, there, alternates, f" that {self.by} covers")
        place = np.where(numbers == 0, slots, n + last)
        return np.append(front[0], back[0])[place], np.append(front[1], back[1])[place]

    def _covered(self, ends: Sequence[tuple[int, Callable[[Ints], Ints]]]) -> tuple[list[tuple[Ints, Times]], int]:
        """The first covered tiles from each end of the order with their times, and how many were looked at."""
        size, coverage = len(self.tiles), self.coverage
        assert coverage is not None

        def taken(numbers: Ints) -> Times:
            x, y = self.tiles.numbered(numbers)
            return coverage.of(numbers, _bounds(np.full(len(x), self.tiles.zoom), x, y).T)

        def along(place: Callable[[Ints], Ints]) -> Callable[[Ints], Ints]:
            return lambda position: permuted(place(position), size, self.seed)

        return first_covered([(count, along(place)) for count, place in ends], size, taken)

    def _refuse_too_many(self, n: int, there: int, alternates: int, which: str) -> None:
        fit = there // (1 + alternates)
        if n <= fit:
            return
        text = f"the areas hold {there:,} tiles{which}, enough for {fit:,} samples with {alternates} alternates each"
        smaller = ", set alternates: 0" if alternates else ""
        raise UserError(f"{text}; {n:,} samples are asked", "sampler", f"ask for fewer{smaller}, or name more areas")


def _order(spec: Any, areas: gpd.GeoDataFrame, seed: int, zoom: int, footprints: Footprints | None) -> _Order:
    coverage = None if footprints is None else Coverage(footprints=footprints, seed=seed)
    return _Order(tiles=_tiles(spec, areas, zoom), seed=seed, coverage=coverage, by=spec.covered_by)


# --- areas

NAME = "area"


def _areas(spec: Any) -> gpd.GeoDataFrame:
    """The areas as polygons in longitude and latitude, with what is known of each as columns."""
    if spec.tiles is not None:
        z, x, y = _parsed(spec.tiles)
        boxes = shapely.box(*_bounds(z, x, y))
        return gpd.GeoDataFrame({NAME: list(spec.tiles)}, geometry=boxes, crs="EPSG:4326")
    if spec.states is not None:
        table = gpd.read_file(US_STATES).set_index(NAME, drop=False).loc[list(dict.fromkeys(spec.states))]
        return table.reset_index(drop=True)
    table = read_polygons(spec.file)
    if not len(table):
        raise UserError("has no rows", str(spec.file), "give it at least one polygon")
    shapes = [on_globe(shape, f"{spec.file}: row {k + 1}") for k, shape in enumerate(table.geometry)]
    return table.set_geometry(gpd.GeoSeries(shapes, index=table.index, crs="EPSG:4326"))


def _parsed(tiles: Sequence[str]) -> tuple[Ints, Ints, Ints]:
    z, x, y = np.array([tile.split("/") for tile in tiles], np.int64).T
    return z, x, y


def _tiles(spec: Any, areas: gpd.GeoDataFrame, zoom: int) -> Tiles:
    """The tiles that lie whole in the areas together."""
    if spec.tiles is not None:
        z, x, y = _parsed(spec.tiles)
        outer = [k for k in range(len(z)) if not _is_inside(k, z, x, y)]
        return Tiles.of(zoom, z[outer], x[outer], y[outer])
    return cover(shapely.union_all(areas.geometry.to_numpy()), zoom)


def _is_inside(k: int, z: Ints, x: Ints, y: Ints) -> bool:
    """Whether a listed tile lies in another listed one, or repeats an earlier one."""
    shift = z[k] - z
    larger = (shift > 0) | ((shift == 0) & (np.arange(len(z)) < k))
    shift = np.maximum(shift, 0)
    return bool((larger & (x[k] >> shift == x) & (y[k] >> shift == y)).any())


def _owners(areas: gpd.GeoDataFrame, lon: Floats, lat: Floats) -> Ints:
    """The first area that holds each place; the nearest one where a simplified border runs between two."""
    shapes = areas.geometry.to_numpy()
    tree = shapely.STRtree(shapes)
    points = shapely.points(lon, lat)
    owner = np.full(len(points), len(shapes))
    place, area = tree.query(points, predicate="intersects")
    np.minimum.at(owner, place, area)
    lost = np.flatnonzero(owner == len(shapes))
    owner[lost] = tree.nearest(points[lost])
    return owner


# --- tiles


def latitude(share: Floats) -> Floats:
    """Latitude at a share of the web-mercator square counted from the north, in degrees."""
    return np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * share))))


def _middles(x: Ints, y: Ints, zoom: int) -> tuple[Floats, Floats]:
    """Longitude and latitude of the middle of each tile's square."""
    lon = np.asarray((x + 0.5) / 2.0**zoom * 360 - 180, np.float64)
    return lon, latitude(np.asarray((y + 0.5) / 2.0**zoom, np.float64))


def _bounds(z: Ints, x: Ints, y: Ints) -> Floats:
    """west, south, east, north of tiles in degrees, (4, tile)."""
    side = 2.0**-z
    west, east = x * side * 360 - 180, (x + 1) * side * 360 - 180
    return np.stack([west, latitude((y + 1) * side), east, latitude(y * side)])


def cover(ground: Any, zoom: int) -> Tiles:
    """The tiles of a zoom that lie in a polygon whole: large tiles inside stand for all that they hold."""
    shapely.prepare(ground)
    found: list[tuple[Ints, Ints, Ints]] = []
    x = y = np.zeros(1, np.int64)
    for level in range(zoom + 1):
        z = np.full(len(x), level)
        boxes = shapely.box(*_bounds(z, x, y))
        inside = shapely.covers(ground, boxes)
        found.append((z[inside], x[inside], y[inside]))
        cut = ~inside & shapely.intersects(ground, boxes)
        x, y = (np.add.outer(2 * v[cut], shift).ravel() for v, shift in ((x, [0, 1, 0, 1]), (y, [0, 0, 1, 1])))
    z, x, y = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Tiles.of(zoom, z, x, y)


def permuted(numbers: Ints, size: int, seed: int) -> Ints:
    """Where a seeded permutation of 0 .. size - 1 takes ``numbers``; nothing is listed, so size may be any.

    Four Feistel rounds over the smallest even number of bits; what falls outside goes round again (Black and Rogaway,
    Ciphers with arbitrary finite domains, 2002).
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    todo, result = np.arange(len(numbers)), np.array(numbers, np.int64)
    while len(todo):
        left, right = result[todo] >> half, result[todo] & (2**half - 1)
        for turn in range(4):
            noise = (uniform(seed, "tile order", right, turn) * 2**half).astype(np.int64)
            left, right = right, left ^ noise
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= size]
    return result
