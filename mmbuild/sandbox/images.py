"""An image: named bands, each a node of the pixel tree with its pixel type and default projection, plus properties.

Nothing here computes pixels; that starts when a grid is pulled down the nodes (raster.py).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import shapely

from mmbuild.sandbox.assets import BandInfo, Dataset, ImageInfo
from mmbuild.sandbox.geometry import Geometry, prepared
from mmbuild.sandbox.picking import Pair
from mmbuild.sandbox.raster import Constant, Grid, Pixels, Reader, Stored
from mmbuild.sandbox.values import EarthEngineError, PixelType, Projection, pixel_type

# What composites and constants have for want of a better one: one degree in EPSG:4326.
DEFAULT_PROJECTION = Projection()
_ABSENT = object()


@dataclass(frozen=True, eq=False)
class Band:
    """One band: `node` computes it, the rest is what `getInfo` shows.

    size: (width, height) of a band with edges, in pixels of its projection. origin: its first column and row there.
    """

    name: str
    type: PixelType
    node: Pixels
    projection: Projection = DEFAULT_PROJECTION
    size: tuple[int, int] | None = None
    origin: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Image:
    """Bands and properties; footprint None means that the image has no edge."""

    bands: Sequence[Band]
    properties: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    footprint: Geometry | None = None

    @property
    def geometry(self) -> Geometry:
        """The footprint, or the whole globe."""
        return self.footprint or WORLD

    def get(self, name: str) -> Any:
        if name == "system:id":
            return self.id
        if isinstance(self.properties, ChainMap):
            # What ChainMap.get does, at a third of its cost: a search reads thousands of properties.
            for properties in self.properties.maps:
                value = properties.get(name, _ABSENT)
                if value is not _ABSENT:
                    return value
            return None
        return self.properties.get(name)

    def with_properties(self, properties: Mapping[str, Any]) -> Image:
        """The same image with these properties over its own; what is worked out when it is read stays so."""
        if isinstance(self.properties, ChainMap):
            top, *below = self.properties.maps
            return Image(self.bands, ChainMap({**top, **properties}, *below), self.id, self.footprint)
        return Image(self.bands, {**self.properties, **properties}, self.id, self.footprint)

    def with_bands(self, bands: Sequence[Band]) -> Image:
        """The same metadata, id included, and footprint over other bands (geedim finds its masks by that id)."""
        return Image(tuple(bands), self.properties, self.id, self.footprint)

    def band(self, name: str) -> Band | None:
        place = next((i for i, own in enumerate(self.names) if own == name), None)
        return None if place is None else self.bands[place]

    @property
    def names(self) -> list[str]:
        return self.bands.names if isinstance(self.bands, StoredBands) else [band.name for band in self.bands]


WORLD = Geometry(shapely.box(-180.0, -90.0, 180.0, 90.0), geodesic=False)


class StoredBands(Sequence[Band]):
    """The bands of an image in the world, each made when somebody looks: most images of a search are only filtered."""

    def __init__(self, dataset: Dataset, info: ImageInfo) -> None:
        self._dataset, self._info = dataset, info
        self._made: dict[int, Band] = {}

    @property
    def names(self) -> list[str]:
        return [band.id for band in self._info.bands]

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return self._band(places) if isinstance(places, int) else tuple(self._band(place) for place in places)

    def __len__(self) -> int:
        return len(self._info.bands)

    def _band(self, place: int) -> Band:
        # One object per band, also when threads meet here: pixels are remembered by it.
        made = self._made.get(place)
        return made or self._made.setdefault(place, _stored_band(self._dataset, self._info, self._info.bands[place]))


def _stored_band(dataset: Dataset, info: ImageInfo, band: BandInfo) -> Band:
    lattice = _lattice(band.crs, band.transform)
    size = None if band.width is None or band.height is None else (band.width, band.height)
    node = Stored(dataset, info, band, lattice)
    return Band(band.id, _type(band.dtype, band.value_range), node, lattice, size)


# Thousands of bands share a few lattices and types.
_lattice = lru_cache(maxsize=4096)(Projection)
_type = lru_cache(maxsize=256)(pixel_type)


def stored_image(dataset: Dataset, info: ImageInfo) -> Image:
    """The image of a dataset; its properties include system:index, system:time_start, system:time_end."""
    system: dict[str, Any] = {"system:index": info.index or info.id.rsplit("/", 1)[-1]}
    if info.start_ms is not None:
        system |= {"system:time_start": info.start_ms}
    if info.end_ms is not None:
        system |= {"system:time_end": info.end_ms}
    footprint = None if info.footprint is None else Geometry(info.footprint, geodesic=False)
    if footprint is not None and info.tells_footprint:
        system |= {"system:footprint": footprint}
    # Chained, not copied: some properties are only worked out when they are read.
    properties = ChainMap(system, cast(dict[str, Any], info.properties))
    return Image(StoredBands(dataset, info), properties, info.id, footprint)


def constant_image(value: Any) -> Image:
    """One band per number, named `constant` (or `constant_0`, `constant_1`, ... for a list; keys of a dictionary)."""
    if isinstance(value, Mapping):
        names, numbers = list(value), list(value.values())
    elif isinstance(value, list | tuple):
        numbers = list(value)
        names = ["constant"] if len(numbers) == 1 else [f"constant_{i}" for i in range(len(numbers))]
    else:
        names, numbers = ["constant"], [value]
    return Image(tuple(_constant_band(name, number) for name, number in zip(names, numbers, strict=True)))


def _constant_band(name: str, number: Any) -> Band:
    if isinstance(number, bool):
        number = int(number)
    if not isinstance(number, int | float):
        raise EarthEngineError(f"Image.constant: Invalid type for a constant: {type(number).__name__}.")
    kind = "int" if isinstance(number, int) else "double"
    return Band(name, PixelType(kind, float(number), float(number)), Constant(float(number)))


def masked_band(name: str, like: Band) -> Band:
    """A band of the same type without a single valid pixel."""
    return Band(name, like.type, Constant(0.0, valid=False), like.projection)


def default_projection(*bands: Band) -> Projection:
    """The first projection that says something; constants and composites do not."""
    return next((b.projection for b in bands if b.projection != DEFAULT_PROJECTION), DEFAULT_PROJECTION)


def within_edges(band: Band, *inputs: Band) -> Band:
    """The band with edges where those of its inputs meet, as far as they are on the band's lattice."""
    edged = [b for b in inputs if b.size is not None and b.projection == band.projection]
    if not edged:
        return band
    left, top = (max(b.origin[axis] for b in edged) for axis in (0, 1))
    right, bottom = (min(b.origin[axis] + b.size[axis] for b in edged if b.size) for axis in (0, 1))
    if right <= left or bottom <= top:
        return band
    return replace(band, origin=(left, top), size=(right - left, bottom - top))


@dataclass(frozen=True, eq=False)
class Inside:
    """1 where the pixel's centre lies in the geometry (its edge included), else 0; valid everywhere."""

    geometry: Geometry

    def read(self, reader: Reader, grid: Grid) -> Pair:
        lon, lat = (np.asarray(a) for a in np.broadcast_arrays(*reader.coordinates(grid, "EPSG:4326")))
        ones = np.broadcast_to(np.float64(1.0), lon.shape)
        shape = self.geometry.lonlat
        if float(lon.max()) - float(lon.min()) < 180.0:
            outline = shapely.box(lon.min(), lat.min(), lon.max(), lat.max())
            if shape.contains(outline):
                return ones, ones
        return shapely.intersects_xy(prepared(shape), lon, lat).astype(np.float64), ones


def pixelwise(compute: Callable[..., Pair], *pairs: Pair) -> Pair:
    """Apply a function to values whose mask is the least of the masks; values are 0 where nothing is valid."""
    values = compute(*(v for v, _ in pairs))
    mask = pairs[0][1]
    for _, other in pairs[1:]:
        mask = np.minimum(mask, other)
    return np.where(mask > 0, values, 0.0), mask
