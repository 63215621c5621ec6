"""From fields to stored values: what each band of each product holds at a site, and where it is masked.

One small function per kind of value; the asset files (data/assets/*.yaml) name them in `field`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox import earth_cover as kinds
from mmbuild.sandbox import earth_optics as optics
from mmbuild.sandbox.earth_clouds import CIRRUS, CLEAR, HIGH, MEDIUM
from mmbuild.sandbox.earth_ground import WARMEST_DAY, YEAR_DAYS
from mmbuild.sandbox.earth_noise import Bools, Floats, Ints, hash_cells, hash_floats, noise, smoothstep
from mmbuild.sandbox.earth_radar import Look, backscatter
from mmbuild.sandbox.earth_site import Site
from mmbuild.sandbox.radar_scenes import RadarScene
from mmbuild.sandbox.scenes import OpticalScene

# QA60 was not made from 2022-01-25 to 2024-02-28 inclusive. Source: Earth Engine catalogue, S2_SR_HARMONIZED.
QA60_GAP_MS = (1_643_068_800_000, 1_709_164_800_000)
# Processing baseline 04.00, from 2022-01-25 on, stores digital numbers shifted. Source: catalogue, COPERNICUS/S2.
UNSHIFTED_UNTIL_MS = 1_643_068_800_000
# MSK_CLASSI_* were not made before 2024-02-01. Source: Earth Engine catalogue, "masked out before February 2024".
FIRST_CLASSI_MS = 1_706_745_600_000


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked at a site: the band, the scene or the month it belongs to, and the asset's own options.

    company: scenes of which the same is about to be asked.
    """

    band: str
    scene: Any = None
    company: Sequence[Any] = ()
    level: str = ""
    year: int = 0
    month: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


Codes = NDArray[np.uint8]
Answer = tuple[Any, Bools | None]
"""Values in the product's own numbers (rounded where it is integer) and validity (None: all valid)."""
FIELDS: dict[str, Callable[[Site, Ask], Answer]] = {}


def product_field(function: Callable[[Site, Ask], Answer]) -> Callable[[Site, Ask], Answer]:
    """Register a kind of value under the function's name, which asset files give in `field`."""
    FIELDS[function.__name__] = function
    return function


def sun_of(scene: OpticalScene) -> optics.Sun:
    """The light of a scene."""
    return optics.Sun(day=scene.day, zenith_deg=scene.zenith_deg, azimuth_deg=scene.azimuth_deg)


def reflectance_of(site: Site, scene: OpticalScene, band: str, level: str, *, clouds: bool = True) -> Floats:
    """Reflectance (no unit) at surface ("L2A") or at the sensor ("L1C"); clouds=False takes the sky away."""
    number = optics.BANDS.index(band)
    ground = optics.ground_reflectance(site.surface(sun_of(scene)), number)
    sky = site.sky(scene)
    if not clouds:
        sky = type(sky)(code=np.zeros_like(sky.code), depth=sky.depth, veil=sky.veil, score=sky.score)
    seen = optics.under_sky(ground, sky, number)
    return optics.at_sensor(seen, sky, number, scene.zenith_deg) if level == "L1C" else seen


@product_field
def reflectance(site: Site, ask: Ask) -> Answer:
    value = reflectance_of(site, ask.scene, ask.band, ask.level)
    shift = float(ask.options.get("shift", 0.0)) if ask.scene.start_ms >= UNSHIFTED_UNTIL_MS else 0.0
    return np.clip(np.rint(value * 10_000.0) + shift, 1.0, 65_535.0), None


@product_field
def true_colour(site: Site, ask: Ask) -> Answer:
    band = {"TCI_R": "B4", "TCI_G": "B3", "TCI_B": "B2"}[ask.band]
    return np.clip(np.rint(reflectance_of(site, ask.scene, band, ask.level) / 0.3558 * 255.0), 1.0, 255.0), None


@product_field
def scene_class(site: Site, ask: Ask) -> Answer:
    sun = sun_of(ask.scene)
    return optics.scene_class(site.surface(sun), site.cover, site.sky(ask.scene)), None


@product_field
def cloud_probability(site: Site, ask: Ask) -> Answer:
    sky = site.sky(ask.scene)
    shown = np.isin(sky.code, (MEDIUM, HIGH))
    value = np.where(shown, 55.0 + 45.0 * sky.depth, 38.0 * smoothstep(sky.score, -0.7, 0.5))
    return np.rint(np.clip(value, 0.0, 100.0)), None


@product_field
def snow_probability(site: Site, ask: Ask) -> Answer:
    return np.rint(100.0 * site.surface(sun_of(ask.scene)).snow), None


@product_field
def cloud_bits(site: Site, ask: Ask) -> Answer:
    """QA60: bit 10 opaque cloud, bit 11 cirrus; masked in its gap."""
    sky = site.sky(ask.scene)
    value = np.where(np.isin(sky.code, (MEDIUM, HIGH)), 1024, np.where(sky.code == CIRRUS, 2048, 0))
    made = not QA60_GAP_MS[0] <= ask.scene.start_ms < QA60_GAP_MS[1]
    return value, np.full(value.shape, made)


@product_field
def empty_flag(site: Site, ask: Ask) -> Answer:
    """QA10 and QA20, which the catalogue calls always empty: 0 everywhere, and valid."""
    return np.zeros(site.points.size), None


@product_field
def opaque_flag(site: Site, ask: Ask) -> Answer:
    value = np.isin(site.sky(ask.scene).code, (MEDIUM, HIGH)).astype(np.float64)
    return value, np.full(value.shape, ask.scene.start_ms >= FIRST_CLASSI_MS)


@product_field
def cirrus_flag(site: Site, ask: Ask) -> Answer:
    value = (site.sky(ask.scene).code == CIRRUS).astype(np.float64)
    return value, np.full(value.shape, ask.scene.start_ms >= FIRST_CLASSI_MS)


@product_field
def snow_flag(site: Site, ask: Ask) -> Answer:
    value = (site.surface(sun_of(ask.scene)).snow > 0.5).astype(np.float64)
    return value, np.full(value.shape, ask.scene.start_ms >= FIRST_CLASSI_MS)


@product_field
def aerosol(site: Site, ask: Ask) -> Answer:
    dusty = 1.0 - smoothstep(site.ground.moisture, 0.1, 0.8)
    return np.rint(1000.0 * (0.09 + 0.16 * dusty + 0.02 * site.cover.vigour).clip(0.02, 0.6)), None


@product_field
def vapour(site: Site, ask: Ask) -> Answer:
    warm = np.exp(0.06 * np.minimum(site.temperature(ask.scene.day), 30.0))
    return np.rint(
        1000.0 * np.clip(0.55 * warm * (0.5 + 0.5 * smoothstep(site.ground.moisture, 0.0, 1.5)), 0.02, 6.0)
    ), None


@product_field
def clarity(site: Site, ask: Ask) -> Answer:
    """Cloud Score+: about 0.9 on clear ground, below 0.4 under clouds and shadows."""
    sky = site.sky(ask.scene)
    covered = np.maximum(sky.depth, 0.8 * sky.veil)
    clear = 0.93 - 0.18 * smoothstep(sky.score, -0.9, 0.25) + 0.02 * site.cover.texture
    value = np.where(sky.code == CLEAR, clear, 0.42 - 0.38 * covered)
    return np.clip(value ** (0.7 if ask.band == "cs_cdf" else 1.0), 0.0, 1.0), None


@product_field
def dynamic_world(site: Site, ask: Ask) -> Answer:
    """Dynamic World label of a date: the cover, its runner-up where the two are close, snow when it lies; no clouds."""
    valid = site.is_clear(ask.scene, ask.company)
    label = _label(site, ask.scene) if valid.any() else np.zeros(valid.shape, dtype=np.uint8)
    if ask.band == "label":
        return label, valid
    wanted = _DYNAMIC_WORLD_BANDS.index(ask.band)
    first, second = kinds.DYNAMIC_WORLD[site.cover.kind], kinds.DYNAMIC_WORLD[site.cover.second]
    sure = 0.42 + 0.4 * smoothstep(site.cover.margin, 0.0, 2.5)
    other = np.where(label == first, second, first)
    rest = (1.0 - sure) * 0.6 * (other != label)
    share = (1.0 - sure - rest) / np.where(other != label, 7.0, 8.0)
    return np.select([label == wanted, other == wanted], [sure, rest], default=share), valid


_DYNAMIC_WORLD_BANDS = (
    "water", "trees", "grass", "flooded_vegetation", "crops", "shrub_and_scrub", "built", "bare", "snow_and_ice",
)  # fmt: skip
_SNOW_AND_ICE = _DYNAMIC_WORLD_BANDS.index("snow_and_ice")
# Waves that are not bent, so that a date's are sums of two that all dates share.
_FLICKER = noise(71, 500.0, 2, ratio=2.4, roughness=0.3, bend=0.0)
# Labels change to the second where it scores less than this times the flicker below the first.
_DOUBT = 0.35


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choice:
    """Best and second label of each point, where the second may win, and what decides it on a date.

    open: places where it may. lag: how much of the flicker that takes. waves: the flicker's `Noise.basis` there.
    chill: how far below its yearly mean a day must be for snow.
    """

    first: Codes
    second: Codes
    open: Ints
    lag: Floats
    waves: Floats
    chill: Floats


def _choice(site: Site) -> _Choice:
    c = site.cover
    first, second = (kinds.DYNAMIC_WORLD[kind].astype(np.uint8) for kind in (c.kind, c.second))
    lag = c.margin / _DOUBT
    may = (first != second) & (c.second != kinds.BUILT) & (c.kind != kinds.SNOW) & (lag < _FLICKER.most)
    undecided = np.flatnonzero(may)
    chill = optics.snow_limit(site.ground, c) - site.ground.temperature_c
    return _Choice(first=first, second=second, open=undecided, lag=lag[undecided], chill=chill,
                   waves=_FLICKER.basis(site.points.take(undecided)))  # fmt: skip


def _label(site: Site, scene: OpticalScene) -> Codes:
    """The label of a date."""
    choice = site.lasting("dw", lambda: _choice(site))
    phases = np.array(hash_floats(scene.passage, _FLICKER.phases.size)).reshape(_FLICKER.phases.shape)
    changed = choice.open[choice.lag < _FLICKER.turned(choice.waves, phases)]
    label = choice.first.copy()
    label[changed] = choice.second[changed]
    label[site.ground.season_c * optics.swing(scene.day) < choice.chill] = _SNOW_AND_ICE
    return label


@product_field
def radar(site: Site, ask: Ask) -> Answer:
    scene = cast(RadarScene, ask.scene)
    x, y = site.projected(scene.frame.epsg)
    look = Look(day=scene.day, beam_deg=scene.frame.beam_deg, seed=scene.orbit * 64 + scene.frame.piece % 64)
    green, snow = site.memo(("growth", scene.start_ms), lambda: optics.plants(site.ground, site.cover, scene.day))
    angle = scene.frame.incidence_deg(x, y)
    value = backscatter(site.points, site.ground, site.cover, green, snow, angle, look, ask.band)
    return value, scene.frame.covers(x, y)


@product_field
def incidence(site: Site, ask: Ask) -> Answer:
    scene = cast(RadarScene, ask.scene)
    x, y = site.projected(scene.frame.epsg)
    return scene.frame.incidence_deg(x, y), None


@product_field
def elevation(site: Site, ask: Ask) -> Answer:
    """Metres; the sea is 0."""
    value = np.maximum(site.ground.elevation_m, 0.0)
    return (np.rint(value) if ask.options.get("round") else value), None


@product_field
def water_mask(site: Site, ask: Ask) -> Answer:
    """Copernicus WBM: 0 land, 1 ocean, 2 lake, 3 river."""
    wet = site.cover.kind == kinds.WATER
    return np.select([~site.ground.land, wet & (site.ground.lake > 0), wet], [1, 2, 3], default=0), None


@product_field
def worldcover(site: Site, ask: Ask) -> Answer:
    """WorldCover code; in the later year one parcel in thirty has changed hands between crop and grass."""
    kind = site.cover.kind
    if ask.options.get("year") == 2021:
        swap = site.cover.parcel * 31.0 % 1.0 < 1.0 / 30.0
        kind = np.where(swap & (kind == kinds.CROP), kinds.GRASS, kind)
    return kinds.WORLDCOVER_CODES[kind], None


@product_field
def canopy_height(site: Site, ask: Ask) -> Answer:
    return np.rint(np.clip(site.cover.canopy_m, 0.0, 60.0)), _grows(site)


@product_field
def canopy_deviation(site: Site, ask: Ask) -> Answer:
    value = 1.6 + 0.16 * site.cover.canopy_m + 0.5 * np.abs(site.cover.texture)
    return np.rint(np.clip(value, 1.0, 30.0)), _grows(site)


def _grows(site: Site) -> Bools:
    return np.asarray((site.cover.kind != kinds.WATER) & (site.cover.kind != kinds.SNOW))


_ANOMALY = noise(81, 3500e3, 3, roughness=0.6)


def month_anomaly(site: Site, ask: Ask, salt: int) -> Floats:
    """Unit-variance weather of a month, the same however it is asked; each salt is another quantity's."""
    return site.memo(
        ("anomaly", salt, ask.year, ask.month),
        lambda: _ANOMALY(site.points, _month_phases(salt, ask.year * 12 + ask.month)),
    )


@lru_cache(maxsize=4096)
def _month_phases(salt: int, month: int) -> Floats:
    octave, wave = np.meshgrid(*(np.arange(n) for n in _ANOMALY.phases.shape), indexing="ij")
    return hash_cells(salt, octave, wave, np.full(octave.shape, month))


def middle_of_month(ask: Ask) -> float:
    """Days since 1 January."""
    return (ask.month - 0.5) * 30.4375


@product_field
def month_temperature(site: Site, ask: Ask) -> Answer:
    """Kelvin: mean, or the month's coldest and warmest hour."""
    mean = site.temperature(middle_of_month(ask)) + 1.1 * month_anomaly(site, ask, 82) + 273.15
    swing = 5.0 + 6.0 * (1.0 - smoothstep(site.ground.moisture, 0.1, 1.6)) + 0.25 * np.abs(site.ground.season_c)
    return mean + {"min": -1.0, "max": 1.0}.get(ask.band.rsplit("_", 1)[-1], 0.0) * swing, site.ground.land


@product_field
def month_rain(site: Site, ask: Ask) -> Answer:
    """Metres in the month (sum), or in its driest and wettest hour."""
    g = site.ground
    turn = np.cos(2.0 * np.pi * (middle_of_month(ask) - WARMEST_DAY - 15.0) / YEAR_DAYS)
    summer = 0.75 * smoothstep(g.temperature_c, 14.0, 24.0) + 0.25
    month = g.rain_mm / 12_000.0 * (1.0 + summer * g.hemisphere * turn) * np.exp(0.3 * month_anomaly(site, ask, 83))
    return month * {"min": 0.0005, "max": 0.0125}.get(ask.band.rsplit("_", 1)[-1], 1.0), g.land
