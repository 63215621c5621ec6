"""Pixels and places as features: Image.sample and its kin, and random points.

Seeds give the same answer every time and another one than the service's: its generator is not documented, so only
distributional facts about these answers carry over. A pixel belongs to a region when its centre does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from mmbuild.sandbox.algorithms.projecting import chosen_projection
from mmbuild.sandbox.algorithms.regions import coverage, region_grid
from mmbuild.sandbox.geometry import GEOD, LONLAT, Geometry, prepared
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.raster import Grid
from mmbuild.sandbox.values import Collection, EarthEngineError, Feature, Projection, transformer

# Pixels of one region that are looked at; more would end as the service does when it runs out of memory.
MAX_PIXELS = 2**27
# Rows are read in strips of about this many pixels.
STRIP_PIXELS = 2**20
# A region that fills less of its bounding boxes than one draw in this many is refused rather than waited for.
MAX_DRAWS_PER_POINT = 20_000


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed % 2**64)


@dataclass(frozen=True)
class Sampled:
    """Pixels of an image: columns by band (NaN where masked), and where their centres are in `crs`."""

    columns: dict[str, NDArray[np.float64]]
    whole: dict[str, bool]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    crs: str

    def kept(self, which: NDArray[Any]) -> Sampled:
        """The pixels of a boolean mask, or at positions in their order."""
        columns = {name: column[which] for name, column in self.columns.items()}
        return replace(self, columns=columns, x=self.x[which], y=self.y[which])

    def complete(self) -> NDArray[np.bool_]:
        """Which pixels are valid in every band."""
        return ~np.asarray(np.logical_or.reduce([np.isnan(column) for column in self.columns.values()]), dtype=bool)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Values by band, null where masked; integers from integer bands."""
        names = list(self.columns)
        for values in zip(*(self.columns[name].tolist() for name in names), strict=True):
            pairs = zip(names, values, strict=True)
            yield {n: None if v != v else int(v) if self.whole[n] else v for n, v in pairs}

    def points(self) -> list[Geometry]:
        """The pixel centres."""
        lon, lat = transformer(self.crs, LONLAT).transform(self.x, self.y) if self.crs != LONLAT else (self.x, self.y)
        return [Geometry(shapely.Point(a, b)) for a, b in zip(lon, lat, strict=True)]

    def features(self, *, geometries: bool, prefix: str = "", **properties: Any) -> list[Feature]:
        places: Sequence[Geometry | None] = self.points() if geometries else [None] * len(self.x)
        return [
            Feature(place, {**properties, **row}, f"{prefix}{position}")
            for position, (place, row) in enumerate(zip(places, self.rows(), strict=True))
        ]


def _pixels(context: Context, image: Image, region: Geometry, projection: Projection) -> Sampled:
    """Every pixel of the lattice whose centre lies in the region, row by row."""
    shape = region.in_crs(projection.crs)
    grid = region_grid(shape, projection, np.inf)
    if grid.width * grid.height > MAX_PIXELS:
        raise EarthEngineError("User memory limit exceeded.")
    a, _, c, _, e, f = grid.transform
    step = max(1, STRIP_PIXELS // grid.width)
    strips = []
    for row in range(0, grid.height, step):
        part = Grid(grid.crs, (a, 0.0, c, 0.0, e, f + row * e), grid.width, min(step, grid.height - row))
        inside = coverage(shape, part, weighted=False) > 0
        x, y = np.broadcast_arrays(*part.centres())
        values = [_valid_or_nan(*context.reader.read(band.node, part), inside) for band in image.bands]
        strips.append((x[inside], y[inside], *values))
    x, y, *columns = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    whole = {band.name: band.type.precision == "int" for band in image.bands}
    return Sampled(dict(zip(image.names, columns, strict=True)), whole, x, y, grid.crs)


def _valid_or_nan(values: Any, mask: Any, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(mask[inside] > 0, values[inside], np.nan)


def _lattice(image: Image, projection: Projection | None, scale: float | None, name: str) -> Projection:
    if not image.bands:
        raise EarthEngineError(f"{name}: The image has no bands.")
    return chosen_projection(projection or image.bands[0].projection, None, scale)


def _region(image: Image, region: Geometry | None, name: str) -> Geometry:
    found = region or image.footprint
    if found is None:
        raise EarthEngineError(f"{name}: The image is unbounded; give a region.")
    return found


@algorithm("Image.sample")
def sample(
    context: Context,
    image: Image,
    region: Geometry | None,
    scale: float | None,
    projection: Projection | None,
    factor: float | None,
    numPixels: int | None,
    seed: int,
    dropNulls: bool,
    tileScale: float,
    geometries: bool,
) -> Collection:
    """Each pixel is kept with the probability `factor`, or the one that gives about `numPixels`; then nulls go."""
    if factor is not None and numPixels is not None:
        raise EarthEngineError("Image.sample: 'factor' and 'numPixels' are mutually exclusive.")
    if factor is not None and not 0.0 < factor <= 1.0:
        raise EarthEngineError(f"Image.sample: 'factor' must be within (0, 1], found {factor}.")
    lattice = _lattice(image, projection, scale, "Image.sample")

    def features() -> list[Feature]:
        found = _pixels(context, image, _region(image, region, "Image.sample"), lattice)
        share = factor if numPixels is None else min(1.0, numPixels / max(len(found.x), 1))
        if share is not None and share < 1.0:
            found = found.kept(_generator(seed).random(len(found.x)) < share)
        return (found.kept(found.complete()) if dropNulls else found).features(geometries=geometries)

    return Collection("feature", features)


@algorithm("Image.sampleRegions")
def sample_regions(
    context: Context,
    image: Image,
    collection: Collection,
    properties: Sequence[str] | None,
    scale: float | None,
    projection: Projection | None,
    tileScale: float,
    geometries: bool,
) -> Collection:
    """A feature per valid pixel per region, with the region's properties; index `<index of the region>_<number>`."""
    lattice = _lattice(image, projection, scale, "Image.sampleRegions")

    def of_region(feature: Feature) -> list[Feature]:
        if feature.geometry is None:
            return []
        names = properties if properties is not None else [k for k in feature.properties if not k.startswith("system:")]
        copied = {name: feature.get(name) for name in names}
        found = _pixels(context, image, feature.geometry, lattice)
        found = found.kept(found.complete())
        return found.features(geometries=geometries, prefix=f"{feature.get('system:index')}_", **copied)

    return Collection("feature", lambda: [made for feature in collection.elements for made in of_region(feature)])


@algorithm("Image.stratifiedSample")
def stratified_sample(
    context: Context,
    image: Image,
    numPoints: int,
    classBand: str | None,
    region: Geometry | None,
    scale: float | None,
    projection: Projection | None,
    seed: int,
    classValues: Sequence[int] | None,
    classPoints: Sequence[int] | None,
    dropNulls: bool,
    tileScale: float,
    geometries: bool,
) -> Collection:
    """Up to so many pixels of each class, drawn without replacement; classes in rising order."""
    name = "Image.stratifiedSample"
    if len(classValues or ()) != len(classPoints or ()):
        raise EarthEngineError(f"{name}: 'classValues' and 'classPoints' must be of the same size.")
    lattice = _lattice(image, projection, scale, name)
    band = classBand or image.names[0]
    if image.band(band) is None:
        raise EarthEngineError(f"{name}: No band named '{band}'. Available bands: [{', '.join(image.names)}]")
    wanted = dict(zip(classValues or (), classPoints or (), strict=True))

    def features() -> list[Feature]:
        found = _pixels(context, image, _region(image, region, name), lattice)
        found = found.kept(found.complete() if dropNulls else ~np.isnan(found.columns[band]))
        classes = found.columns[band]
        if not np.equal(classes, np.floor(classes)).all():
            raise EarthEngineError(f"{name}: The class band '{band}' must contain integer values.")
        rng = _generator(seed)
        drawn = [
            rng.permutation(np.flatnonzero(classes == value))[: wanted.get(int(value), numPoints)]
            for value in np.unique(classes)
        ]
        order = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
        return found.kept(order).features(geometries=geometries)

    return Collection("feature", features)


# -- random -----------------------------------------------------------------------------------------------------------


@algorithm("FeatureCollection.randomPoints")
def random_points(context: Context, region: Geometry, points: int, seed: int, maxError: Any) -> Collection:
    """Uniform on the sphere inside polygons, along lines, or among points; of mixed shapes the highest dimension."""
    if points < 0:
        raise EarthEngineError(f"FeatureCollection.randomPoints: 'points' must not be negative, found {points}.")

    def features() -> list[Feature]:
        shape, rng = region.lonlat, _generator(seed)
        parts = _simple_parts(shape)
        if not parts:
            raise EarthEngineError("FeatureCollection.randomPoints: The region is empty.")
        draw = {2: _in_polygons, 1: _on_lines, 0: _among_points}[shapely.get_dimensions(parts[0])]
        places = draw(parts, points, rng)
        return [Feature(Geometry(shapely.Point(*place)), {}, str(i)) for i, place in enumerate(places)]

    return Collection("feature", features)


def _simple_parts(shape: BaseGeometry) -> list[BaseGeometry]:
    """The polygons, else the lines, else the points that the shape is made of."""
    parts = [part for part in shapely.get_parts(shapely.get_parts(shape)) if not part.is_empty]
    parts = [piece for part in parts for piece in shapely.get_parts(part)]
    highest = max((int(shapely.get_dimensions(part)) for part in parts), default=0)
    return [part for part in parts if shapely.get_dimensions(part) == highest]


def _in_polygons(parts: Sequence[BaseGeometry], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Longitude and the sine of latitude are uniform on a sphere: draws in the parts' boxes, kept when inside."""
    west, south, east, north = shapely.bounds(parts).T
    low, high = np.sin(np.radians(south)), np.sin(np.radians(north))
    area = (east - west) * (high - low)
    if area.sum() <= 0.0:
        raise EarthEngineError("FeatureCollection.randomPoints: The region has no area.")
    shapes = [prepared(part) for part in parts]
    found, kept, drawn = [np.zeros((0, 2))], 0, 0
    while kept < count:
        if drawn > MAX_DRAWS_PER_POINT * count:
            raise EarthEngineError("FeatureCollection.randomPoints: The region is too thin to draw points in it.")
        size = max(1024, 2 * (count - kept))
        part = rng.choice(len(parts), size, p=area / area.sum())
        lon = rng.uniform(west[part], east[part])
        lat = np.degrees(np.arcsin(rng.uniform(low[part], high[part])))
        inside = np.zeros(size, dtype=bool)
        for number, shape in enumerate(shapes):
            here = part == number
            inside[here] = shapely.intersects_xy(shape, lon[here], lat[here])
        found.append(np.column_stack([lon[inside], lat[inside]]))
        kept, drawn = kept + int(inside.sum()), drawn + size
    return np.concatenate(found)[:count]


def _on_lines(parts: Sequence[BaseGeometry], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniform by length on the ellipsoid: a segment by its length, then a place on it."""
    ends = [shapely.get_coordinates(part) for part in parts]
    start, end = np.concatenate([xy[:-1] for xy in ends]), np.concatenate([xy[1:] for xy in ends])
    _, _, metres = GEOD.inv(start[:, 0], start[:, 1], end[:, 0], end[:, 1])
    segment = rng.choice(len(start), count, p=np.asarray(metres) / np.sum(metres))
    along = rng.random(count)[:, None]
    return np.asarray(start[segment] + along * (end[segment] - start[segment]))


def _among_points(parts: Sequence[BaseGeometry], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(shapely.get_coordinates(parts)[rng.integers(len(parts), size=count)])


@algorithm("Collection.randomColumn")
def random_column(
    context: Context,
    collection: Collection,
    columnName: str,
    seed: int,
    distribution: str,
    rowKeys: Sequence[str] | None,
) -> Collection:
    """A random number per element, uniform in [0, 1) or standard normal, that depends on the seed and its row keys."""
    if distribution not in ("uniform", "normal"):
        raise EarthEngineError(f"Collection.randomColumn: Unknown distribution '{distribution}'; uniform or normal.")

    def number(element: Any) -> float:
        key = repr([seed, *(element.get(name) for name in rowKeys or ("system:index",))])
        rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()))
        return float(rng.random() if distribution == "uniform" else rng.standard_normal())

    return collection.derive(lambda: [e.with_properties({columnName: number(e)}) for e in collection.elements])
