"""The properties that Sentinel scenes carry: every name of the catalogue's schema, values that fit the scene's pixels.

Orbits, angles and names come from the scene; what a product is made of is counted on the scene's own class map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from mmbuild.sandbox import earth_optics as optics
from mmbuild.sandbox.earth_noise import points
from mmbuild.sandbox.earth_products import UNSHIFTED_UNTIL_MS, sun_of
from mmbuild.sandbox.earth_site import Site
from mmbuild.sandbox.mgrs import TILE_M, Tile, to_lonlat
from mmbuild.sandbox.orbits import DAY_MS
from mmbuild.sandbox.radar_scenes import SENTINEL1, RadarScene
from mmbuild.sandbox.scenes import OpticalScene, sample_cells, stamp

SENTINEL2_HEIGHT_M = 786_000.0
# Extraterrestrial sunlight per band, W/m2/um, in the order of earth_optics.BANDS. Source: Sentinel-2A product metadata.
IRRADIANCE = (1884.69, 1959.66, 1823.24, 1512.06, 1424.64, 1287.61, 1162.08, 1041.63, 955.32, 812.92, 367.15, 245.59,
              85.25)  # fmt: skip
# SCL code to the level-2A property that says how much of the granule has it.
CLASS_SHARES = {
    2: "DARK_FEATURES_PERCENTAGE",
    3: "CLOUDY_SHADOW_PERCENTAGE",
    4: "VEGETATION_PERCENTAGE",
    5: "NOT_VEGETATED_PERCENTAGE",
    6: "WATER_PERCENTAGE",
    7: "UNCLASSIFIED_PERCENTAGE",
    8: "MEDIUM_PROBA_CLOUDS_PERCENTAGE",
    9: "HIGH_PROBA_CLOUDS_PERCENTAGE",
    10: "THIN_CIRRUS_PERCENTAGE",
    11: "SNOW_ICE_PERCENTAGE",
}


Group = tuple[tuple[str, ...], Callable[[], Mapping[str, Any]]]
"""Names of properties, and how to work them out."""


class LazyProperties(Mapping[str, Any]):
    """Properties of which some are worked out, a group at a time, when the first of it is read.

    A search makes thousands of scenes and reads two properties of each.
    """

    def __init__(self, known: Mapping[str, Any], *groups: Group) -> None:
        self._known, self._groups = dict(known), groups

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            for names, make in self._groups:
                if name in names:
                    self._known = {**self._known, **make()}
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._known, *(name for names, _ in self._groups for name in names))))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def optical_properties(scene: OpticalScene, cloud: float, level: str) -> Mapping[str, Any]:
    """The properties of a granule at level "L1C" or "L2A"."""
    known = {
        "CLOUDY_PIXEL_PERCENTAGE": cloud,
        "CLOUD_COVERAGE_ASSESSMENT": cloud,
        "MEAN_SOLAR_AZIMUTH_ANGLE": round(scene.azimuth_deg, 6),
        "MEAN_SOLAR_ZENITH_ANGLE": round(scene.zenith_deg, 6),
        "synthetic": 1,
    }
    named: Group = (_NAMED, lambda: _optical_names(scene, level))
    told: Group = (_TOLD, lambda: _told(scene, level))
    if level == "L1C":
        return LazyProperties(known, named, told)
    return LazyProperties(known, named, told, (_L2A_QUALITY_NAMES, lambda: _L2A_QUALITY),
                          (_COUNTED, lambda: class_percentages(scene)))  # fmt: skip


_QUALITY: Mapping[str, Any] = {
    "DEGRADED_MSI_DATA_PERCENTAGE": 0.0,
    "FORMAT_CORRECTNESS": "PASSED",
    "GENERAL_QUALITY": "PASSED",
    "GEOMETRIC_QUALITY": "PASSED",
    "RADIOMETRIC_QUALITY": "PASSED",
    "SENSOR_QUALITY": "PASSED",
    **{f"SOLAR_IRRADIANCE_{band}": value for band, value in zip(optics.BANDS, IRRADIANCE, strict=True)},
}
_L2A_QUALITY: Mapping[str, Any] = {
    "AOT_RETRIEVAL_ACCURACY": 0.0,
    "RADIATIVE_TRANSFER_ACCURACY": 0.0,
    "SATURATED_DEFECTIVE_PIXEL_PERCENTAGE": 0.0,
    "WATER_VAPOUR_RETRIEVAL_ACCURACY": 0.0,
}


_NAMED = (
    "DATATAKE_IDENTIFIER",
    "DATATAKE_TYPE",
    "GRANULE_ID",
    "MGRS_TILE",
    "PROCESSING_BASELINE",
    "PRODUCT_ID",
    "SENSING_ORBIT_DIRECTION",
    "SENSING_ORBIT_NUMBER",
    "SPACECRAFT_NAME",
)
_L2A_QUALITY_NAMES = tuple(_L2A_QUALITY)
_COUNTED = (*CLASS_SHARES.values(), "NODATA_PIXEL_PERCENTAGE")
_TOLD = (
    "DATASTRIP_ID",
    "GENERATION_TIME",
    "REFLECTANCE_CONVERSION_CORRECTION",
    *_QUALITY,
    *(f"MEAN_INCIDENCE_{kind}_ANGLE_{band}" for kind in ("AZIMUTH", "ZENITH") for band in optics.BANDS),
)


def _told(scene: OpticalScene, level: str) -> dict[str, Any]:
    """What nobody filters by."""
    made = scene.datatake_ms + 9_000_000
    strip = (f"S2{scene.satellite}_OPER_MSI_{level}_DS_SYNT_{stamp(made)}_S{stamp(scene.datatake_ms)}"
             f"_N{_baseline(scene)}")  # fmt: skip
    near = 1.0 + 0.0334 * math.cos(2.0 * math.pi * (scene.day - 3.0) / 365.25)
    names = {"DATASTRIP_ID": strip, "GENERATION_TIME": made, "REFLECTANCE_CONVERSION_CORRECTION": near}
    return {**names, **_QUALITY, **_view_angles(scene)}


def _baseline(scene: OpticalScene) -> str:
    return "02.07" if scene.start_ms < UNSHIFTED_UNTIL_MS else "04.00"


def _optical_names(scene: OpticalScene, level: str) -> dict[str, Any]:
    tile, craft = scene.tile.name, scene.satellite
    baseline, made = _baseline(scene), scene.datatake_ms + 9_000_000
    product = (f"S2{craft}_MSI{level}_{stamp(scene.datatake_ms)}_N{baseline.replace('.', '')}"
               f"_R{scene.strip.number:03d}_T{tile}_{stamp(made)}")  # fmt: skip
    return {
        "DATATAKE_IDENTIFIER": f"GS2{craft}_{stamp(scene.datatake_ms)}_{scene.orbit:06d}_N{baseline}",
        "DATATAKE_TYPE": "INS-NOBS",
        "GRANULE_ID": f"{level}_T{tile}_A{scene.orbit:06d}_{stamp(scene.start_ms)}",
        "MGRS_TILE": tile,
        "PROCESSING_BASELINE": baseline,
        "PRODUCT_ID": product,
        "SENSING_ORBIT_DIRECTION": "DESCENDING",
        "SENSING_ORBIT_NUMBER": scene.strip.number,
        "SPACECRAFT_NAME": f"Sentinel-2{craft}",
    }


def _view_angles(scene: OpticalScene) -> dict[str, Any]:
    """View angles at the middle of the granule; the detectors of the bands look ahead by different angles."""
    x, y = scene.tile.left + TILE_M / 2, scene.tile.top - TILE_M / 2
    zenith, azimuth = view_angles(scene, x, y, SENTINEL2_HEIGHT_M)
    angles = {}
    for number, band in enumerate(optics.BANDS):
        angles[f"MEAN_INCIDENCE_AZIMUTH_ANGLE_{band}"] = round((float(azimuth) + 0.3 * (number - 6)) % 360.0, 6)
        angles[f"MEAN_INCIDENCE_ZENITH_ANGLE_{band}"] = round(float(zenith) + 0.01 * number, 6)
    return angles


def view_angles(scene: OpticalScene, x: Any, y: Any, height_m: float) -> tuple[Any, Any]:
    """Zenith and azimuth (degrees) in which a place, in the tile's metres, sees the satellite; over a flat ground."""
    off = scene.strip.a * x + scene.strip.b * y + scene.strip.c
    towards = np.degrees(np.arctan2(-np.sign(off) * scene.strip.a, -np.sign(off) * scene.strip.b))
    return np.degrees(np.arctan(np.abs(off) / height_m)), towards % 360.0


@lru_cache(maxsize=64)
def _sample_site(tile: Tile) -> Site:
    """The cloud cells that a tile's cloud share is measured at, with the ground under them."""
    x, y = sample_cells(tile)
    return Site(points(*to_lonlat(tile.epsg, x, y)), tile.epsg, x, y)


def class_percentages(scene: OpticalScene) -> dict[str, float]:
    """Share of each class of the scene's SCL, in percent of its valid pixels, from a sample of 11 x 11 cells."""
    site = _sample_site(scene.tile)
    valid = scene.strip.covers(*site.projected(scene.tile.epsg))
    classes = optics.scene_class(site.surface(sun_of(scene)), site.cover, site.sky(scene))[valid]
    shares = {name: 100.0 * float(np.mean(classes == code)) if valid.any() else 0.0
              for code, name in CLASS_SHARES.items()}  # fmt: skip
    return {**{name: round(share, 6) for name, share in shares.items()},
            "NODATA_PIXEL_PERCENTAGE": round(100.0 * float(1.0 - valid.mean()), 6)}  # fmt: skip


def score_properties(scene: OpticalScene, cloud: float) -> dict[str, Any]:
    """What Cloud Score+ adds: which level-1C product it was made of."""
    product = optical_properties(scene, cloud, "L1C")["PRODUCT_ID"]
    return {
        "DATE_PRODUCT_GENERATED": "2023-12-01",
        "MGRS_TILE": scene.tile.name,
        "MODEL_VERSION": "synthetic",
        "NO_CONTEXT_FRACTION": 0.0,
        "PROCESSING_SOFTWARE_VERSION": "synthetic",
        "SOURCE_ASSET_ID": f"COPERNICUS/S2_HARMONIZED/{scene.index}",
        "SOURCE_PRODUCT_ID": product,
    }


def radar_properties(scene: RadarScene) -> dict[str, Any]:
    """The properties of a Sentinel-1 scene."""
    return {**_RADAR_MAKING, **_radar_orbit(scene), **_radar_product(scene), "synthetic": 1}


_RADAR_MAKING: Mapping[str, Any] = {
    **{f"{step}_facility_{key}": "synthetic" for step in ("GRD_Post_Processing", "SLC_Processing")
       for key in ("country", "name", "organisation", "site")},
    **{f"{step}_software_{key}": "synthetic" for step in ("GRD_Post_Processing", "SLC_Processing")
       for key in ("name", "version")},
    "S1TBX_Calibration_Operator_version": "synthetic",
    "S1TBX_SAR_Processing_version": "synthetic",
    "SNAP_Graph_Processing_Framework_GPF_version": "synthetic",
    "familyName": "SENTINEL-1",
    "instrument": "Synthetic Aperture Radar",
    "phaseIdentifier": 1,
    "productClass": "S",
    "productClassDescription": "SAR Standard L1 Product",
    "productComposition": "Slice",
    "productTimelinessCategory": "Fast-24h",
    "productType": "GRD",
    "sliceProductFlag": "true",
}  # fmt: skip


def _radar_orbit(scene: RadarScene) -> dict[str, Any]:
    since_node = scene.frame.argument / 360.0 * SENTINEL1.period_ms
    return {
        "cycleNumber": scene.orbit // SENTINEL1.cycle_orbits,
        "missionDataTakeID": scene.orbit * 8 + 0x2111,
        "nssdcIdentifier": {"A": "2014-016A", "B": "2016-025A"}[scene.satellite],
        "orbitNumber_start": scene.orbit,
        "orbitNumber_stop": scene.orbit,
        "orbitProperties_ascendingNodeTime": scene.start_ms - round(since_node),
        "orbitProperties_pass": "ASCENDING" if scene.frame.is_ascending else "DESCENDING",
        "platformHeading": (scene.frame.beam_deg - 90.0 + 180.0) % 360.0 - 180.0,
        "platform_number": scene.satellite,
        "relativeOrbitNumber_start": scene.frame.number,
        "relativeOrbitNumber_stop": scene.frame.number,
        "startTimeANX": since_node,
        "stopTimeANX": since_node + 25_000.0,
    }


def _radar_product(scene: RadarScene) -> dict[str, Any]:
    is_wide = scene.mode == "EW"
    made = scene.start_ms + DAY_MS // 6
    return {
        "GRD_Post_Processing_start": made,
        "GRD_Post_Processing_stop": made + 600_000,
        "SLC_Processing_start": made - 1_200_000,
        "SLC_Processing_stop": made - 600_000,
        "instrumentConfigurationID": 6,
        "instrumentMode": scene.mode,
        "instrumentSwath": scene.mode,
        "resolution": "M" if is_wide else "H",
        "resolution_meters": 40 if is_wide else 10,
        "segmentStartTime": scene.start_ms,
        "sliceNumber": scene.frame.piece + 1,
        "totalSlices": 224,
        "transmitterReceiverPolarisation": list(scene.polarisations),
    }
