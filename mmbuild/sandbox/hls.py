"""Harmonised Landsat and Sentinel-2: both missions on Sentinel-2's tiles at 30 m, with one quality band.

The pixels are the same ground and, for Sentinel-2, the same clouds as in the level-1C scene of that instant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox import earth_cover as kinds
from mmbuild.sandbox import landsat_scenes
from mmbuild.sandbox.assets import BandInfo, Bounds, ImageInfo
from mmbuild.sandbox.earth_clouds import CIRRUS, CLEAR, HIGH, MEDIUM, SHADOW
from mmbuild.sandbox.earth_products import FIELDS, Answer, Ask, product_field, reflectance_of, sun_of
from mmbuild.sandbox.earth_site import Site
from mmbuild.sandbox.earth_world import SyntheticDataset, band_info, milliseconds, required_bounds, square_transform
from mmbuild.sandbox.mgrs import TILE_M, tile_named
from mmbuild.sandbox.orbits import sun_position
from mmbuild.sandbox.scene_properties import SENTINEL2_HEIGHT_M, optical_properties, view_angles
from mmbuild.sandbox.scenes import OpticalScene, cloud_shares, scenes_in, stamp, tile_scenes, valid_area

# Fmask bits. Source: Earth Engine catalogue, HLSL30 v002; bit 0 is reserved and unused.
CLOUD, ADJACENT, CLOUD_SHADOW, SNOW, WATER, AEROSOL = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 6
# Clear pixels whose cloud score is above this lie beside a cloud (clouds begin near 0.33).
BESIDE_SCORE = 0.20


def _sensor_height_m(scene: OpticalScene) -> float:
    return landsat_scenes.HEIGHT_M if scene.satellite in landsat_scenes.SATELLITES else SENTINEL2_HEIGHT_M


@product_field
def hls_reflectance(site: Site, ask: Ask) -> Answer:
    """Reflectance in steps of 1e-4, of the Sentinel-2 band that the asset file likens the band to.

    At the ground; the bands of water vapour and cirrus are of the top of the atmosphere, as in the product.
    """
    like = ask.options["like"][ask.band]
    value = reflectance_of(site, ask.scene, like, "L1C" if like in ("B9", "B10") else "L2A")
    return np.rint(np.clip(value, 0.0, 1.6) * 1e4) / 1e4, None


@product_field
def hls_thermal(site: Site, ask: Ask) -> Answer:
    """Brightness temperature in Celsius: the ground warmed by the morning sun, or the cold top of a cloud."""
    scene, sky = ask.scene, site.sky(ask.scene)
    surface = site.surface(sun_of(scene))
    warmed = 9.0 * surface.light * np.cos(np.radians(scene.zenith_deg)) * (1.0 - 0.7 * surface.green)
    ground = site.temperature(scene.day) + warmed * (site.cover.kind != kinds.WATER)
    hidden = np.where(np.isin(sky.code, (MEDIUM, HIGH)), 0.4 + 0.6 * sky.depth, 0.5 * sky.veil * (sky.code == CIRRUS))
    value = ground * (1.0 - hidden) + hidden * np.minimum(ground - 6.0, -12.0)
    # The longer channel sees a little less contrast.
    return np.rint(100.0 * (value - (0.4 if ask.band == "B11" else 0.0))) / 100.0, None


@product_field
def hls_fmask(site: Site, ask: Ask) -> Answer:
    """Fmask: cloud (bit 1), beside a cloud (2), shadow (3), snow (4), water (5), aerosol 1..3 (6 and 7)."""
    sky = site.sky(ask.scene)
    haze, _ = FIELDS["aerosol"](site, ask)
    beside = (sky.code == CLEAR) & (sky.score > BESIDE_SCORE)
    value = (
        CLOUD * np.isin(sky.code, (MEDIUM, HIGH, CIRRUS))
        + ADJACENT * beside
        + CLOUD_SHADOW * (sky.code == SHADOW)
        + SNOW * (site.surface(sun_of(ask.scene)).snow > 0.5)
        + WATER * (site.cover.kind == kinds.WATER)
        + (1 + (haze > 150.0) + (haze > 220.0)) * (1 << AEROSOL)
    )
    return value, None


@product_field
def hls_angle(site: Site, ask: Ask) -> Answer:
    """Zenith and azimuth of the sun (SZA, SAA) and of the view (VZA, VAA), degrees."""
    scene = ask.scene
    if ask.band in ("SZA", "SAA"):
        zenith, azimuth = (np.asarray(a) for a in _sun(site, scene))
    else:
        zenith, azimuth = view_angles(scene, *site.projected(scene.tile.epsg), _sensor_height_m(scene))
    return np.rint(100.0 * (zenith if ask.band[1] == "Z" else azimuth)) / 100.0, None


def _sun(site: Site, scene: OpticalScene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles of the sun at each point. sun_position takes one place: hour angle and latitude vary over a tile."""
    lon, lat = scene.tile.centre
    zenith, azimuth = sun_position(lon, lat, scene.start_ms)
    step = 0.5
    east = [np.asarray(a) for a in sun_position(lon + step, lat, scene.start_ms)]
    north = [np.asarray(a) for a in sun_position(lon, lat + step, scene.start_ms)]
    x, y = (site.points.lon - lon + 180.0) % 360.0 - 180.0, site.points.lat - lat
    turn = [((e - a + 180.0) % 360.0 - 180.0) / step for e, a in zip(east, (zenith, azimuth), strict=True)]
    rise = [((n - a + 180.0) % 360.0 - 180.0) / step for n, a in zip(north, (zenith, azimuth), strict=True)]
    return zenith + turn[0] * x + rise[0] * y, (azimuth + turn[1] * x + rise[1] * y) % 360.0


class HlsDataset(SyntheticDataset):
    """One mission's scenes on 30 m tiles; `sensor` in the asset file is L30 (Landsat) or S30 (Sentinel-2)."""

    def images(
        self, *, bounds: Bounds | None = None, start_ms: int | None = None, end_ms: int | None = None
    ) -> Sequence[ImageInfo]:
        box_ = required_bounds(self.id, bounds)
        start = max(start_ms or 0, milliseconds(self.spec["start"]))
        end = 1 << 62 if end_ms is None else end_ms
        if self.spec["sensor"] == "L30":
            found = landsat_scenes.landsat_scenes_in(box_, start, end)
        else:
            found = scenes_in(box_, start, end, "L1C")
        infos = [self._info(s, share) for s, share in zip(found, cloud_shares(found), strict=True)]
        return sorted(infos, key=lambda info: info.index)

    def image(self, index: str) -> ImageInfo:
        if index in self._infos:
            return self._infos[index]
        try:
            name, when = index.split("_")
            ms = int(datetime.strptime(when, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp() * 1000)
            tile = tile_named(name[1:])
        except (ValueError, IndexError):
            raise KeyError(index) from None
        # A Sentinel-2 image is named after its data take, which began up to half an hour before the granule.
        span = max(ms - 60_000, milliseconds(self.spec["start"])), ms + 3_600_000
        find = landsat_scenes.landsat_tile_scenes if self.spec["sensor"] == "L30" else _sentinel_tile_scenes
        scene = next((s for s in find(tile, *span) if _index(s) == index), None)
        if scene is None:
            raise KeyError(index)
        return self._info(scene, scene.cloud_percent)

    def covers(self, image: ImageInfo, site: Site) -> NDArray[np.bool_]:
        scene: OpticalScene = image.private
        return scene.strip.covers(*site.projected(scene.tile.epsg))

    def _info(self, scene: OpticalScene, cloud: float) -> ImageInfo:
        index = _index(scene)
        if index in self._infos:
            return self._infos[index]
        told = _landsat_properties if self.spec["sensor"] == "L30" else _sentinel_properties
        return self._remember(
            ImageInfo(
                id=f"{self.id}/{index}",
                index=index,
                bands=tuple(self._bands(scene)),
                start_ms=scene.start_ms,
                end_ms=scene.start_ms,
                footprint=scene.footprint,
                properties={**_shared_properties(scene, cloud), **told(scene), "synthetic": 1},
                private=scene,
            )
        )

    def _bands(self, scene: OpticalScene) -> Iterator[BandInfo]:
        size = round(TILE_M / 30.0)
        grid = square_transform(30.0, float(scene.tile.left), float(scene.tile.top))
        for name, row in self.fields.items():
            yield band_info(name, row, scene.tile.crs, grid, (size, size))


def _sentinel_tile_scenes(tile: Any, start_ms: int, end_ms: int) -> list[OpticalScene]:
    return tile_scenes(tile, start_ms, end_ms, "L1C")


def _index(scene: OpticalScene) -> str:
    """For example T21JUL_20130427T135010."""
    return f"T{scene.tile.name}_{stamp(scene.datatake_ms)}"


def _shared_properties(scene: OpticalScene, cloud: float) -> dict[str, Any]:
    x, y = scene.tile.left + TILE_M / 2, scene.tile.top - TILE_M / 2
    view_zenith, view_azimuth = view_angles(scene, x, y, _sensor_height_m(scene))
    return {
        "ACCODE": "synthetic",
        "CLOUD_COVERAGE": float(round(cloud)),
        "HLS_PROCESSING_TIME": stamp(scene.start_ms + 3 * 86_400_000),
        "MEAN_SUN_AZIMUTH_ANGLE": scene.azimuth_deg,
        "MEAN_SUN_ZENITH_ANGLE": scene.zenith_deg,
        "MEAN_VIEW_AZIMUTH_ANGLE": float(view_azimuth),
        "MEAN_VIEW_ZENITH_ANGLE": float(view_zenith),
        "NBAR_SOLAR_ZENITH": scene.zenith_deg,
        "SPATIAL_COVERAGE": float(round(100.0 * valid_area(scene.tile, scene.strip).area / TILE_M**2)),
    }


def _landsat_properties(scene: OpticalScene) -> Mapping[str, Any]:
    path, row = landsat_scenes.path_row(scene.strip)
    day = stamp(scene.start_ms)[:8]
    return {
        "LANDSAT_PRODUCT_ID": f"LC0{scene.satellite}_L1TP_{path:03d}{row:03d}_{day}_{day}_02_T1",
        "TIRS_SSM_MODEL": "FINAL",
        "TIRS_SSM_POSITION_STATUS": "ESTIMATED",
        "USGS_SOFTWARE": "synthetic",
    }


def _sentinel_properties(scene: OpticalScene) -> Mapping[str, Any]:
    made = optical_properties(scene, 0.0, "L1C")
    # The adjustment is the identity: the synthetic missions see with equal bands.
    adjusted = {f"MSI_BAND_{band}_BANDPASS_ADJUSTMENT_{part}": value
                for band in ("01", "02", "03", "04", "11", "12", "8A")
                for part, value in (("SLOPE", 1.0), ("OFFSET", 0.0))}  # fmt: skip
    return {
        **adjusted,
        "ADD_OFFSET": 0.0,
        "ANG_SCALE_FACTOR": 0.01,
        "AROP_AVE_XSHIFT": 0.0,
        "AROP_AVE_YSHIFT": 0.0,
        "AROP_NCP": 0.0,
        "AROP_RMSE": 0.0,
        "AROP_S2_REFIMG": "NONE",
        "MGRS_TILE_ID": scene.tile.name,
        "PROCESSING_BASELINE": [made["PROCESSING_BASELINE"]],
        "PRODUCT_URI": f"{made['PRODUCT_ID']}.SAFE",
        "REF_SCALE_FACTOR": 0.0001,
        "SENSING_TIME": datetime.fromtimestamp(scene.start_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
