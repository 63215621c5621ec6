"""The datasets of the synthetic Earth: asset descriptions (data/assets/*.yaml) turned into images with native lattices.

A dataset knows which images exist and on which lattice; the numbers come from earth_products.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox import scenes as optical_scenes
from mmbuild.sandbox.assets import Affine6, BandInfo, Bounds, ImageInfo, Kind, Pyramiding
from mmbuild.sandbox.earth_mesh import Blocks, Lattice, Scattered, has_nodes, points_on
from mmbuild.sandbox.earth_noise import Points, hash_floats, points
from mmbuild.sandbox.earth_products import FIELDS, Ask
from mmbuild.sandbox.earth_site import Site, SiteCache, Window
from mmbuild.sandbox.mgrs import TILE_M, Tile, to_lonlat
from mmbuild.sandbox.radar_scenes import RadarScene, find_radar_scene, radar_scenes_in
from mmbuild.sandbox.scene_properties import optical_properties, radar_properties, score_properties
from mmbuild.sandbox.scenes import OpticalScene, cloud_shares, find_scene, scenes_in

# Points computed at once: keeps the arrays in the processor's cache and memory small, however large the window.
BLOCK_POINTS = 70_000
ATTRIBUTION = "mmbuild synthetic Earth (coastlines: Natural Earth)"
INFOS_KEPT = 20_000


def milliseconds(date: str) -> int:
    """Milliseconds of an ISO date, UTC."""
    return int(datetime.fromisoformat(str(date)).replace(tzinfo=UTC).timestamp() * 1000)


class SyntheticDataset(ABC):
    """What all synthetic datasets share: description, cache of image metadata, and reading a window in blocks."""

    kind: Kind = "image_collection"

    def __init__(self, spec: Mapping[str, Any], sites: SiteCache) -> None:
        self.id: str = spec["id"]
        self.spec, self.sites = spec, sites
        self.options: Mapping[str, Any] = spec.get("options", {})
        self._infos: OrderedDict[str, ImageInfo] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.local()

    def info(self) -> dict[str, Any]:
        told = {key: self.spec[key] for key in ("title", "synthetic", "licence", "provider")}
        original = {f"original_{key}": value for key, value in self.spec["original"].items()}
        successor = {"deprecated": True, "successor": self.spec["successor"]} if "successor" in self.spec else {}
        return {**told, **original, **successor, "attribution": ATTRIBUTION}

    @abstractmethod
    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        """See `assets.Dataset`."""

    @abstractmethod
    def image(self, index: str) -> ImageInfo:
        """See `assets.Dataset`."""

    def features(self) -> Sequence[tuple[Any, Mapping[str, Any]]]:
        return []

    def ask(self, image: ImageInfo, band: str) -> Ask:
        """What a band of an image asks of the fields."""
        company = getattr(self._reading, "company", {})
        return Ask(
            band=band, scene=image.private, company=company.get(image.index, ()), level=self.spec.get("level", ""),
            options=self.options,
        )  # fmt: skip

    @contextmanager
    def expecting(self, images: Sequence[ImageInfo]) -> Iterator[None]:
        """While inside, this thread reads these images: what they share may be worked out for many at once."""
        before = getattr(self._reading, "company", {})
        scenes = [image.private for image in images]
        self._reading.company = {image.index: scenes[place + 1 :] for place, image in enumerate(images)}
        try:
            yield
        finally:
            self._reading.company = before

    def covers(self, image: ImageInfo, site: Site) -> NDArray[np.bool_] | None:
        """Which points of a site the image imaged; None: all that its lattice holds."""
        return None

    @cached_property
    def fields(self) -> dict[str, Mapping[str, Any]]:
        """Band name to its entry in the asset file, in the file's order."""
        rows = {name: row for row in self.spec["bands"] for name in row["ids"]}
        return {name: rows[name] for name in self.spec.get("order", rows)}

    def pixels(self, image: ImageInfo, band: BandInfo, site: Site) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Stored values and validity at a site whose points are native pixel centres; masked values are 0."""
        covered = self.covers(image, site)
        if covered is not None and not covered.any():
            return np.zeros(covered.shape, dtype=band.dtype), covered
        values, valid = FIELDS[self.fields[band.id]["field"]](site, self.ask(image, band.id))
        masks = [mask for mask in (valid, covered) if mask is not None]
        if not masks:
            return np.asarray(values).astype(band.dtype), np.ones(site.points.size, dtype=bool)
        mask = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        return np.where(mask, values, 0).astype(band.dtype), mask

    def window(
        self, image: ImageInfo, band: str, row0: int, col0: int, height: int, width: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values and mask of a native lattice window; mask False outside the image."""
        info = next(b for b in image.bands if b.id == band)
        top, left = max(row0, 0), max(col0, 0)
        bottom = row0 + height if info.height is None else min(row0 + height, info.height)
        right = col0 + width if info.width is None else min(col0 + width, info.width)
        if (top, left, bottom, right) == (row0, col0, row0 + height, col0 + width) and height * width <= BLOCK_POINTS:
            got = self.pixels(image, info, self._window_site(info, row0, col0, height, width))
            return got[0].reshape(height, width), got[1].reshape(height, width)
        columns = max(min(right - left, BLOCK_POINTS), 1)
        rows = max(BLOCK_POINTS // columns, 1)
        values, mask = np.zeros((height, width), dtype=info.dtype), np.zeros((height, width), dtype=bool)
        for r in range(top, bottom, rows):
            for c in range(left, right, columns):
                shape = min(rows, bottom - r), min(columns, right - c)
                block = np.s_[r - row0 : r - row0 + shape[0], c - col0 : c - col0 + shape[1]]
                got = self.pixels(image, info, self._window_site(info, r, c, *shape))
                values[block], mask[block] = (part.reshape(shape) for part in got)
        return values, mask

    def _window_site(self, band: BandInfo, row: int, col: int, height: int, width: int) -> Site:
        x, y, (*lattice, left, top) = lattice_axes(band, np.arange(row, row + height), np.arange(col, col + width))
        window = Window(lattice=tuple(lattice), left=left, top=top, width=width, height=height)
        return self.sites.get(window, lambda: lattice_site(band.crs, band.transform[0], x, y, self.sites.blocks))

    def _remember(self, info: ImageInfo) -> ImageInfo:
        with self._lock:
            self._infos[info.index] = info
            while len(self._infos) > INFOS_KEPT:
                self._infos.popitem(last=False)
        return info


def lattice_axes(
    band: BandInfo, rows: NDArray[np.int64], cols: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[Any, ...]]:
    """Coordinates of pixel centres per column and per row, and a name for the first pixel that images share.

    Coordinates are counted from the coordinate origin, so that equal ground gives equal bits in overlapping images.
    """
    a, _, left, _, e, top = band.transform
    first_col, first_row = round(left / a), round(top / -e)
    dx, dy = round(left - first_col * a, 6), round(top - first_row * -e, 6)
    x = np.asarray((first_col + cols + 0.5) * a + dx, dtype=np.float64)
    y = np.asarray((first_row - rows - 0.5) * -e + dy, dtype=np.float64)
    key = (band.crs, a, e, dx, dy, int(first_col + cols[0]), int(first_row - rows[0]))
    return x, y, key


def lattice_site(crs: str, step: float, x: NDArray[np.float64], y: NDArray[np.float64], blocks: Blocks) -> Site:
    """A site of all pixels `step` wide in these columns and rows, row by row."""
    epsg = int(crs.split(":")[1])
    if has_nodes(epsg, step):
        mesh = Lattice(epsg, x, y, blocks)
        return _site(epsg, points_on(mesh), *np.meshgrid(x, y))
    x, y = (axis.ravel() for axis in np.meshgrid(x, y))
    return _site(epsg, points(*(to_lonlat(epsg, x, y) if epsg != 4326 else (x, y))), x, y)


def places_site(crs: str, step: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> Site:
    """A site of pixel centres in no order: what a lattice of pixels `step` wide has at them."""
    epsg = int(crs.split(":")[1])
    if has_nodes(epsg, step):
        return _site(epsg, points_on(Scattered(epsg, x, y)), x, y)
    return _site(epsg, points(*(to_lonlat(epsg, x, y) if epsg != 4326 else (x, y))), x, y)


def _site(epsg: int, p: Points, x: NDArray[np.float64], y: NDArray[np.float64]) -> Site:
    """Sites in degrees have no coordinates but those of their points."""
    return Site(p) if epsg == 4326 else Site(p, epsg, np.ascontiguousarray(x.ravel()), np.ascontiguousarray(y.ravel()))


def band_info(name: str, row: Mapping[str, Any], crs: str, transform: Affine6, shape: tuple[int, int]) -> BandInfo:
    """A band from its entry in an asset file; shape is (height, width)."""
    pyramiding: Pyramiding = row.get("pyramiding", "MEAN")
    value_range = (float(row["range"][0]), float(row["range"][1])) if "range" in row else None
    return BandInfo(id=name, dtype=row["dtype"], crs=crs, transform=transform, width=shape[1], height=shape[0],
                    pyramiding=pyramiding, value_range=value_range)  # fmt: skip


def square_transform(step: float, left: float, top: float) -> Affine6:
    """A north-up lattice of square pixels."""
    return (step, 0.0, left, 0.0, -step, top)


def required_bounds(dataset_id: str, bounds: Bounds | None) -> Bounds:
    """The bounds, or ValueError: a planet of scenes is never listed."""
    if bounds is None:
        raise ValueError(f"{dataset_id}: a scene search needs a region; add filterBounds(region)")
    return bounds


class OpticalDataset(SyntheticDataset):
    """Sentinel-2 granules (also those that other products derive from them)."""

    def __init__(self, spec: Mapping[str, Any], sites: SiteCache) -> None:
        super().__init__(spec, sites)
        self._band_lists: dict[tuple[str, bool], tuple[BandInfo, ...]] = {}

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        box_, span = (
            required_bounds(self.id, bounds),
            (start_ms or 0, optical_scenes.END_MS if end_ms is None else end_ms),
        )
        found = scenes_in(box_, *span, self.spec["level"])
        shares = cloud_shares(found)
        limit = self.spec.get("max_cloud", 100.0)
        return [self._info(s, share) for s, share in zip(found, shares, strict=True) if share <= limit]

    def image(self, index: str) -> ImageInfo:
        if index in self._infos:
            return self._infos[index]
        scene = find_scene(index, self.spec["level"])
        if scene.cloud_percent > self.spec.get("max_cloud", 100.0):
            raise KeyError(index)
        return self._info(scene, scene.cloud_percent)

    def covers(self, image: ImageInfo, site: Site) -> NDArray[np.bool_] | None:
        scene: OpticalScene = image.private
        # A swath is straight: with the corners around the points, all of them lie in it.
        if scene.strip.covers(*site.corners(scene.tile.epsg)).all():
            return None
        return scene.strip.covers(*site.projected(scene.tile.epsg))

    def _info(self, scene: OpticalScene, cloud: float) -> ImageInfo:
        if scene.index in self._infos:
            return self._infos[scene.index]
        return self._remember(
            ImageInfo(
                id=f"{self.id}/{scene.index}",
                index=scene.index,
                bands=self._bands(scene),
                start_ms=scene.start_ms,
                end_ms=scene.start_ms,
                footprint=scene.footprint,
                properties=self._properties(scene, cloud),
                private=scene,
            )
        )

    def _bands(self, scene: OpticalScene) -> tuple[BandInfo, ...]:
        # One product in seven came without its probability maps. Source: catalogue, "missing in some products".
        full = hash_floats(scene.orbit * 7919 + scene.tile.north_m // 1000 + scene.tile.east_m, 1)[0] > 0.14
        key = scene.tile.name, full
        if key not in self._band_lists:
            self._band_lists[key] = tuple(self._make_bands(scene.tile, full))
        return self._band_lists[key]

    def _make_bands(self, tile: Tile, full: bool) -> Iterator[BandInfo]:
        for name, row in self.fields.items():
            size = round(TILE_M / row["gsd"])
            grid = square_transform(float(row["gsd"]), float(tile.left), float(tile.top))
            if full or not row.get("sometimes"):
                yield band_info(name, row, tile.crs, grid, (size, size))

    def _properties(self, scene: OpticalScene, cloud: float) -> Mapping[str, Any]:
        return optical_properties(scene, cloud, self.spec["level"])


class DerivedDataset(OpticalDataset):
    """Products made from L1C granules: same index, same lattice at 10 m."""

    def _properties(self, scene: OpticalScene, cloud: float) -> Mapping[str, Any]:
        told = score_properties(scene, cloud) if self.spec.get("tells_source") else {"MGRS_TILE": scene.tile.name}
        return {**self.spec.get("properties", {}), **told, "synthetic": 1}


class RadarDataset(SyntheticDataset):
    """Sentinel-1 frames, each on its own lattice."""

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        found = radar_scenes_in(required_bounds(self.id, bounds), start_ms or 0, 1 << 62 if end_ms is None else end_ms)
        return [self._info(scene) for scene in found]

    def image(self, index: str) -> ImageInfo:
        return self._infos[index] if index in self._infos else self._info(find_radar_scene(index))

    def _info(self, scene: RadarScene) -> ImageInfo:
        if scene.index in self._infos:
            return self._infos[scene.index]
        return self._remember(
            ImageInfo(
                id=f"{self.id}/{scene.index}",
                index=scene.index,
                bands=self._bands(scene),
                start_ms=scene.start_ms,
                end_ms=scene.start_ms + 25_000,
                footprint=scene.frame.footprint,
                properties=radar_properties(scene),
                private=scene,
            )
        )

    def _bands(self, scene: RadarScene) -> tuple[BandInfo, ...]:
        left, top, width, height = scene.frame.lattice
        bands = []
        for name in (*scene.polarisations, "angle"):
            row = self.fields[name]
            gsd = 40 if scene.mode == "EW" and name != "angle" else row["gsd"]
            step, shape = float(gsd), (-(-height * 10 // gsd), -(-width * 10 // gsd))
            bands.append(band_info(name, row, f"EPSG:{scene.frame.epsg}", square_transform(step, left, top), shape))
        return tuple(bands)
