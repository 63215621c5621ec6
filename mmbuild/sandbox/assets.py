"""What the offline Earth Engine serves: worlds of datasets, images and bands, as plain facts plus one door to pixels.

A world only ever answers with windows of a band's own native lattice. Every resampling, mosaicking and filtering rule
belongs to the evaluator, so a synthetic Earth and an archive of GeoTIFFs behave alike. Nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

Affine6 = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: x = a*column + b*row + c, y = d*column + e*row + f, for pixel corners."""
Bounds = tuple[float, float, float, float]
"""west, south, east, north in degrees; west > east means that the box crosses the antimeridian."""
Kind = Literal["image", "image_collection", "table"]
Pyramiding = Literal["MEAN", "SAMPLE", "MODE"]


@dataclass(frozen=True, kw_only=True)
class BandInfo:
    """One band of an image on its native lattice.

    dtype: numpy name of the pixel type ("uint16", "int16", "float32", "float64", "uint8", ...).
    value_range: the pixel type's range when it is narrower than the dtype's own (SCL: (0, 255) is not 0..65535).
    width, height: size of the lattice window that exists, in pixels, from row 0 and column 0; None means unbounded.
    pyramiding: how coarser levels are made: mean of valid pixels, upper-left sample, most frequent value.
    """

    id: str
    dtype: str
    crs: str
    transform: Affine6
    width: int | None = None
    height: int | None = None
    pyramiding: Pyramiding = "MEAN"
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """Metadata of one image.

    id: full asset id ("COPERNICUS/S2_HARMONIZED/2020..."). index: its system:index ("" for a lone image).
    start_ms, end_ms: system:time_start and system:time_end, milliseconds since 1970 UTC.
    footprint: shapely geometry in lon/lat degrees (valid-data outline), None when the image covers the globe.
    tells_footprint: whether the outline is also a property, system:footprint, as in most collections.
    properties: everything else that `Image.get` answers; system:* properties are added by the evaluator.
    private: whatever the dataset wants back in `window` (never looked at by the evaluator, never compared).
    """

    id: str
    index: str
    bands: tuple[BandInfo, ...]
    start_ms: int | None = None
    end_ms: int | None = None
    footprint: Any = None
    tells_footprint: bool = True
    properties: Mapping[str, Any] = field(default_factory=dict)
    private: Any = field(default=None, compare=False, repr=False)


@runtime_checkable
class Dataset(Protocol):
    """One asset id: a lone image, a collection of images, or a table of features."""

    id: str
    kind: Kind

    def info(self) -> dict[str, Any]:
        """Asset metadata: title, licence, attribution, synthetic, ...: what assets.get shows as properties."""
        ...

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        """Images that may meet bounds and start in [start_ms, end_ms), in system:index order; supersets are fine."""
        ...

    def image(self, index: str) -> ImageInfo:
        """The image with this system:index ("" for a lone image); KeyError when there is none."""
        ...

    def window(
        self, image: ImageInfo, band: str, row0: int, col0: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values (any real dtype) and mask (bool, or float 0..1) of a native window; mask 0 outside the image."""
        ...

    def features(self) -> Sequence[tuple[Any, Mapping[str, Any]]]:
        """Rows of a table: shapely geometry in lon/lat degrees (or None) and properties, in a fixed order."""
        ...


@runtime_checkable
class DrawsLevels(Protocol):
    """A dataset that answers coarse requests itself, because drawing every native pixel would cost too much."""

    def level_window(
        self, image: ImageInfo, band: str, n: int, row0: int, col0: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """`Dataset.window` of the pyramid level whose pixels are n native pixels wide; n is a power of 2."""
        ...


@runtime_checkable
class World(Protocol):
    """Looks datasets up by asset id.

    version: changes whenever any answer of this world may change.
    synthetic: True when the pixels are computed, not observed.
    """

    version: str
    synthetic: bool

    def dataset(self, asset_id: str) -> Dataset | None:
        """The dataset with exactly this id, or None."""
        ...

    def ids(self) -> Sequence[str]:
        """Every dataset id, sorted."""
        ...


class LayeredWorld:
    """Several worlds as one: the first that knows an id serves it."""

    def __init__(self, *worlds: World) -> None:
        self.worlds = worlds
        self.version = "+".join(world.version for world in worlds)
        self.synthetic = any(world.synthetic for world in worlds)

    def dataset(self, asset_id: str) -> Dataset | None:
        found = (world.dataset(asset_id) for world in self.worlds)
        return next((dataset for dataset in found if dataset is not None), None)

    def ids(self) -> Sequence[str]:
        return sorted({asset_id for world in self.worlds for asset_id in world.ids()})


def find_image(world: World, asset_id: str) -> tuple[Dataset, ImageInfo] | None:
    """The image with this id: a lone image, or `collection id/system:index`; None when there is no such image."""
    dataset = world.dataset(asset_id)
    if dataset is not None:
        return (dataset, dataset.image("")) if dataset.kind == "image" else None
    for parent, index in _splits(asset_id):
        dataset = world.dataset(parent)
        if dataset is not None and dataset.kind == "image_collection":
            try:
                return dataset, dataset.image(index)
            except KeyError:
                return None
    return None


def _splits(asset_id: str) -> Iterator[tuple[str, str]]:
    parts = asset_id.split("/")
    for cut in range(len(parts) - 1, 0, -1):
        yield "/".join(parts[:cut]), "/".join(parts[cut:])
