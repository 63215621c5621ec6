"""The synthetic Earth: one deterministic planet behind the offline Earth Engine, and its fields to check chips against.

Real coastlines, everything else invented. Every value is a function of place and date alone, so any window of any
lattice agrees with any other. It stands for no real product, and says so (`synthetic`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from importlib import resources
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mmbuild.sandbox import earth_climate, earth_terrain, ecoregions
from mmbuild.sandbox.assets import Dataset, ImageInfo
from mmbuild.sandbox.earth_aerial import AerialDataset
from mmbuild.sandbox.earth_cover import WORLDCOVER_CODES
from mmbuild.sandbox.earth_embeddings import EmbeddingDataset
from mmbuild.sandbox.earth_globes import DegreeTilesDataset, GlobeDataset, MonthlyDataset
from mmbuild.sandbox.earth_mesh import LARGEST_M
from mmbuild.sandbox.earth_noise import Floats
from mmbuild.sandbox.earth_optics import day_temperature
from mmbuild.sandbox.earth_products import FIELDS, Ask, reflectance_of
from mmbuild.sandbox.earth_site import Site, SiteCache, site_at
from mmbuild.sandbox.earth_world import (
    DerivedDataset,
    OpticalDataset,
    RadarDataset,
    SyntheticDataset,
    lattice_axes,
    places_site,
)
from mmbuild.sandbox.hls import HlsDataset
from mmbuild.sandbox.mgrs import transformer
from mmbuild.sandbox.radar_scenes import find_radar_scene
from mmbuild.sandbox.scenes import find_scene

# Raise this number whenever any field, scene or property changes (tests/test_earth.py pins what it stands for).
VERSION = 6


class EcoregionsDataset(SyntheticDataset):
    """The table of synthetic ecoregions."""

    kind = "table"

    def features(self) -> Sequence[tuple[Any, Mapping[str, Any]]]:
        return ecoregions.features()

    def images(self, **_: Any) -> Sequence[ImageInfo]:
        return []

    def image(self, index: str) -> ImageInfo:
        raise KeyError(index)


# Rooms of fields, which asset files name and which register themselves.
ROOMS = (earth_climate, earth_terrain)

_FAMILIES: dict[str, type[SyntheticDataset]] = {
    "optical": OpticalDataset,
    "derived": DerivedDataset,
    "radar": RadarDataset,
    "globe": GlobeDataset,
    "degree_tiles": DegreeTilesDataset,
    "monthly": MonthlyDataset,
    "ecoregions": EcoregionsDataset,
    "aerial": AerialDataset,
    "hls": HlsDataset,
    "embedding": EmbeddingDataset,
}


@cache
def _asset_files() -> tuple[Mapping[str, Any], ...]:
    """The contents of data/assets/*.yaml, read once in a process and never written to."""
    folder = resources.files("mmbuild.sandbox").joinpath("data/assets")
    return tuple(yaml.safe_load(f.read_text("utf-8")) for f in folder.iterdir() if f.name.endswith(".yaml"))


class SyntheticWorld:
    """All synthetic datasets, by Earth Engine asset id. Safe to share between threads."""

    version = f"synthetic-earth-{VERSION}"
    synthetic = True

    def __init__(self) -> None:
        self._sites = SiteCache()

    @cached_property
    def _datasets(self) -> dict[str, SyntheticDataset]:
        made = [_FAMILIES[spec["family"]](spec, self._sites) for spec in _asset_files()]
        return {dataset.id: dataset for dataset in sorted(made, key=lambda d: d.id)}

    def dataset(self, asset_id: str) -> Dataset | None:
        """The dataset with exactly this id, or None."""
        return self._datasets.get(asset_id)

    def ids(self) -> Sequence[str]:
        """Every dataset id, sorted."""
        return list(self._datasets)

    def synthetic_dataset(self, asset_id: str) -> SyntheticDataset:
        """The dataset with this id, with its fields. Raises KeyError."""
        return self._datasets[asset_id]


def _scene_site(epsg: int, lon: Any, lat: Any) -> Site:
    """Degrees (any shape, flattened) as the lattices of a scene's projected system see them."""
    lon, lat = (np.asarray(part, dtype=np.float64).ravel() for part in np.broadcast_arrays(lon, lat))
    return places_site(f"EPSG:{epsg}", LARGEST_M, *transformer(4326, epsg).transform(lon, lat))


class Earth:
    """The planet's fields at any longitude and latitude (degrees; arrays broadcast): the truth behind the chips."""

    def __init__(self, world: SyntheticWorld | None = None) -> None:
        self.world = world or SyntheticWorld()

    def elevation(self, lon: Any, lat: Any) -> Floats:
        """Metres above the sea; negative under it."""
        return site_at(lon, lat).ground.elevation_m.reshape(np.broadcast_shapes(np.shape(lon), np.shape(lat)))

    def temperature(self, lon: Any, lat: Any, day: float | None = None) -> Floats:
        """Air temperature in Celsius: yearly mean, or mean of a day of the year."""
        g = site_at(lon, lat).ground
        value = g.temperature_c if day is None else day_temperature(g, day)
        return value.reshape(np.broadcast_shapes(np.shape(lon), np.shape(lat)))

    def biome(self, lon: Any, lat: Any) -> NDArray[np.int64]:
        """RESOLVE biome number 1..14 (also under the sea, where it means nothing)."""
        return site_at(lon, lat).ground.biome.reshape(np.broadcast_shapes(np.shape(lon), np.shape(lat)))

    def land_cover(self, lon: Any, lat: Any) -> NDArray[np.int64]:
        """WorldCover code."""
        kind = WORLDCOVER_CODES[site_at(lon, lat).cover.kind]
        return kind.reshape(np.broadcast_shapes(np.shape(lon), np.shape(lat)))

    def canopy_height(self, lon: Any, lat: Any) -> Floats:
        """Metres, unrounded."""
        return site_at(lon, lat).cover.canopy_m.reshape(np.broadcast_shapes(np.shape(lon), np.shape(lat)))

    def reflectance(
        self, band: str, lon: Any, lat: Any, scene: str, *, level: str = "L2A", clouds: bool = True
    ) -> Floats:
        """Reflectance (no unit, unrounded) in a Sentinel-2 scene given by its system:index; clouds=False: bare ground.

        Clouds are decided on the 60 m cells of the scene's tile: within a cell, their place is the cell's centre.
        """
        found = find_scene(scene, level)
        site = _scene_site(found.tile.epsg, lon, lat)
        value = reflectance_of(site, found, band, level, clouds=clouds)
        return value.reshape(np.broadcast_shapes(np.shape(lon), np.shape(lat)))

    def backscatter(self, polarisation: str, lon: Any, lat: Any, scene: str) -> Floats:
        """Decibels in a Sentinel-1 scene given by its system:index."""
        found = find_radar_scene(scene)
        site = _scene_site(found.frame.epsg, lon, lat)
        value, _ = FIELDS["radar"](site, Ask(band=polarisation, scene=found))
        return np.asarray(value).reshape(np.broadcast_shapes(np.shape(lon), np.shape(lat)))

    def product(
        self, asset_id: str, index: str, band: str, lon: Any, lat: Any
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Stored value and validity of the native pixels that contain the places, in the product's dtype.

        Raises KeyError when there is no such asset, image or band.
        """
        dataset = self.world.synthetic_dataset(asset_id)
        image = dataset.image(index)
        bands = {b.id: b for b in image.bands}
        info = bands[band]
        shape = np.broadcast_shapes(np.shape(lon), np.shape(lat))
        flat = [
            np.ascontiguousarray(np.broadcast_to(np.asarray(v, dtype=np.float64), shape).ravel()) for v in (lon, lat)
        ]
        x, y = flat if info.crs == "EPSG:4326" else transformer(4326, info.crs).transform(flat[0], flat[1])
        a, _, left, _, e, top = info.transform
        cols, rows = np.floor((x - left) / a).astype(np.int64), np.floor((y - top) / e).astype(np.int64)
        cx, cy, _ = lattice_axes(info, rows, cols)
        key = (info.crs, a, cx.tobytes(), cy.tobytes())
        site = dataset.sites.get(key, lambda: places_site(info.crs, a, cx, cy))
        values, mask = dataset.pixels(image, info, site)
        inside = np.ones(cols.shape, dtype=bool)
        if info.width is not None and info.height is not None:
            inside = (cols >= 0) & (cols < info.width) & (rows >= 0) & (rows < info.height)
        mask = mask & inside
        return np.where(mask, values, 0).astype(info.dtype).reshape(shape), mask.reshape(shape)
