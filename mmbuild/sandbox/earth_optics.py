"""Reflectance of the ground in the thirteen bands of Sentinel-2: mixtures of measured-looking spectra, lit by the sun.

Surface reflectance first; then the atmosphere (clouds, cirrus, shadow; and for top of atmosphere the path radiance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np

from mmbuild.sandbox import earth_cover as kinds
from mmbuild.sandbox.earth_clouds import CIRRUS, CLEAR, HIGH, MEDIUM, SHADOW, Sky
from mmbuild.sandbox.earth_cover import Cover
from mmbuild.sandbox.earth_ground import WARMEST_DAY, YEAR_DAYS, Ground
from mmbuild.sandbox.earth_noise import Floats, Ints, hash_floats, smoothstep, unsmooth, wave

BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")

# Reflectance of pure covers in the order of BANDS, drawn after published spectra; B10 never sees the ground.
LEAF, NEEDLE, STRAW, SOIL, SAND, ROCK, ROOF, STREET, ICE, SEA, SILT = range(11)
SPECTRA = np.array(
    [
        [0.020, 0.028, 0.062, 0.033, 0.105, 0.280, 0.355, 0.375, 0.395, 0.400, 0.0, 0.200, 0.090],
        [0.014, 0.018, 0.034, 0.022, 0.058, 0.150, 0.190, 0.205, 0.215, 0.225, 0.0, 0.100, 0.045],
        [0.060, 0.080, 0.120, 0.165, 0.205, 0.240, 0.270, 0.300, 0.320, 0.330, 0.0, 0.370, 0.270],
        [0.055, 0.072, 0.108, 0.150, 0.180, 0.200, 0.218, 0.235, 0.255, 0.270, 0.0, 0.330, 0.280],
        [0.130, 0.165, 0.250, 0.345, 0.380, 0.400, 0.420, 0.440, 0.455, 0.470, 0.0, 0.560, 0.500],
        [0.115, 0.130, 0.155, 0.175, 0.185, 0.195, 0.205, 0.212, 0.220, 0.225, 0.0, 0.245, 0.215],
        [0.130, 0.150, 0.175, 0.205, 0.215, 0.225, 0.235, 0.245, 0.252, 0.260, 0.0, 0.275, 0.250],
        [0.070, 0.078, 0.088, 0.096, 0.102, 0.108, 0.112, 0.118, 0.122, 0.126, 0.0, 0.135, 0.125],
        [0.860, 0.880, 0.880, 0.870, 0.860, 0.845, 0.830, 0.810, 0.780, 0.700, 0.0, 0.095, 0.070],
        [0.042, 0.036, 0.026, 0.013, 0.010, 0.009, 0.008, 0.007, 0.006, 0.006, 0.0, 0.004, 0.003],
        [0.065, 0.078, 0.110, 0.098, 0.078, 0.050, 0.046, 0.040, 0.036, 0.032, 0.0, 0.011, 0.007],
    ]
)
CLOUD = np.array([0.74, 0.72, 0.70, 0.70, 0.72, 0.74, 0.75, 0.76, 0.76, 0.70, 0.030, 0.52, 0.40])
SHADE = np.array([0.55, 0.50, 0.44, 0.40, 0.38, 0.36, 0.34, 0.33, 0.33, 0.33, 1.00, 0.30, 0.28])
# Clear sky, sun at 30 degrees: light scattered into the sensor, and the share of ground light that arrives.
PATH = np.array([0.098, 0.068, 0.040, 0.022, 0.016, 0.013, 0.011, 0.009, 0.008, 0.004, 0.0012, 0.002, 0.001])
CLARITY = np.array([0.78, 0.84, 0.88, 0.92, 0.93, 0.94, 0.95, 0.95, 0.96, 0.38, 0.0, 0.97, 0.95])
# Most and least green share of each kind (order of earth_cover), and how its brown part splits into straw, soil, rock.
_GREEN = np.array(
    [
        [0.93, 0.40],
        [0.52, 0.20],
        [0.78, 0.16],
        [0.94, 0.06],
        [0.30, 0.10],
        [0.05, 0.01],
        [0, 0],
        [0, 0],
        [0.62, 0.20],
        [0.86, 0.72],
        [0.38, 0.12],
    ]
)
_BROWN = np.array(
    [[0.5, 0.4, 0.1], [0.35, 0.55, 0.1], [0.75, 0.25, 0], [0.25, 0.75, 0], [0, 1, 0], [0.05, 0.65, 0.3],
     [0, 0, 1], [0, 0, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.5, 0.1, 0.4]]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sun:
    """When and whence the light comes: day of the year (0 = 1 January, UTC), zenith and azimuth in degrees."""

    day: float
    zenith_deg: float
    azimuth_deg: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The ground on one day: shares (11, n) of the pure spectra, green share, snow share, light (1 on flat ground).

    tone: brightness common to all bands. traits: what makes plants and soils of one kind differ in colour.
    """

    shares: Floats
    green: Floats
    snow: Floats
    light: Floats
    tone: Floats
    traits: tuple[Floats, Floats, Floats]


def day_temperature(g: Ground, day: float) -> Floats:
    """Mean air temperature of a day of the year, Celsius."""
    return np.asarray(g.temperature_c + g.season_c * swing(day))


def swing(day: float) -> float:
    """-1..1: where in its yearly range the temperature of a day lies."""
    return math.cos(2.0 * math.pi * (day - WARMEST_DAY) / YEAR_DAYS)


def growth(g: Ground, day: float, shift_days: Floats | float = 0.0) -> Floats:
    """0..1: how far plants are in their season: warmth where winters are cold, rain where summers are dry."""
    turn = 2.0 * np.pi * (day - shift_days - WARMEST_DAY - 10.0) / YEAR_DAYS
    warm = smoothstep(g.temperature_c + g.season_c * np.cos(turn), 2.0, 14.0)
    mild = smoothstep(g.temperature_c - np.abs(g.season_c), 2.0, 12.0)
    wet = 0.5 + 0.5 * g.hemisphere * np.cos(turn - 0.35)
    thirst = 0.85 * (1.0 - smoothstep(g.moisture, 1.0, 2.8)) * mild
    return warm * (1.0 - thirst * (1.0 - wet))


def surface(g: Ground, c: Cover, sun: Sun) -> Surface:
    """What the ground is made of on the sun's day, and how it is lit."""
    green = _green(g, c, sun.day)
    snow = snow_share(g, c, day_temperature(g, sun.day))
    shares = _shares(g, c, green) * (1.0 - snow)
    shares[ICE] += snow
    wet = shares[SEA] + shares[SILT]
    tone = np.exp(0.075 * c.texture + 0.07 * c.vigour + 0.16 * (c.parcel - 0.5))
    tone = np.where(c.kind == kinds.SNOW, 1.0 + 0.012 * c.texture, tone)
    tone = 1.0 + (tone - 1.0) * (1.0 - 0.8 * shares[SEA]) * (1.0 - 0.7 * snow)
    light = 1.0 + (_illumination(g, sun) - 1.0) * (1.0 - wet)
    return Surface(
        shares=shares,
        green=green * (1.0 - snow),
        snow=snow,
        light=light,
        tone=tone,
        traits=(c.texture, c.vigour, c.parcel),
    )


def plants(g: Ground, c: Cover, day: float) -> tuple[Floats, Floats]:
    """Green share and snow share of a day, without the spectra."""
    snow = snow_share(g, c, day_temperature(g, day))
    return _green(g, c, day) * (1.0 - snow), snow


def _green(g: Ground, c: Cover, day: float) -> Floats:
    farm = c.kind == kinds.CROP
    shift = np.where(farm, 70.0 * (c.parcel - 0.5), 12.0 * (c.parcel - 0.5))
    season = growth(g, day, shift)
    fallow = farm & (c.parcel * 7.0 % 1.0 < 0.22)
    # Needle forests of cold winters and wet tropical forests keep their leaves.
    cold = 1.0 - smoothstep(g.temperature_c, 1.0, 7.0)
    keeps = np.clip(cold + smoothstep(g.moisture, 1.4, 2.6) * smoothstep(g.temperature_c, 16.0, 22.0), 0.0, 1.0)
    most, least = _GREEN[c.kind, 0], _GREEN[c.kind, 1]
    least = np.where(c.kind == kinds.TREE, least + (0.85 - least) * keeps, least)
    full = (0.55 + 0.5 * c.density) * np.where(fallow, 0.25, 1.0)
    return np.asarray(np.clip((least + (most - least) * season) * full + 0.02 * c.texture * most, 0.0, 0.98))


def snow_share(g: Ground, c: Cover, temperature: Floats) -> Floats:
    """Share of snow and ice; conifers hide some, water freezes late."""
    lying = smoothstep(-(temperature + 1.5 * c.vigour), -0.5, 4.5) * smoothstep(g.rain_mm, 40.0, 160.0)
    ice = smoothstep(-temperature, 4.0, 9.0) * np.where(g.land, 1.0, smoothstep(-temperature, 11.0, 18.0))
    share = np.where(c.kind == kinds.WATER, ice, lying * (1.0 - _hidden(c)))
    return np.where(c.kind == kinds.SNOW, np.maximum(share, 0.94), share)


def _hidden(c: Cover) -> Floats:
    """Share of the snow that is not seen."""
    return np.where(c.kind == kinds.TREE, 0.65, np.where(c.kind == kinds.BUILT, 0.35, 0.06))


def snow_limit(g: Ground, c: Cover) -> Floats:
    """Temperatures of a day below which `snow_share` is over 0.55; infinite on eternal snow."""
    rarely = 0.55 / np.maximum((1.0 - _hidden(c)) * smoothstep(g.rain_mm, 40.0, 160.0), 1e-9)
    lying = np.where(rarely < 1.0, -unsmooth(np.minimum(rarely, 1.0), -0.5, 4.5) - 1.5 * c.vigour, -np.inf)
    ice = np.where(g.land, -unsmooth(0.55, 4.0, 9.0), -unsmooth(0.55, 11.0, 18.0))
    return np.where(c.kind == kinds.WATER, ice, np.where(c.kind == kinds.SNOW, np.inf, lying))


def _shares(g: Ground, c: Cover, green: Floats) -> Floats:
    shares = np.zeros((len(SPECTRA), green.size))
    needles = np.where(c.kind == kinds.TREE, 0.30 + 0.55 * (1.0 - smoothstep(g.temperature_c, 2.0, 9.0)), 0.05)
    shares[LEAF], shares[NEEDLE] = green * (1.0 - needles), green * needles
    brown = 1.0 - green
    dry = 1.0 - smoothstep(g.moisture, 0.05, 0.45)
    straw, soil, rock = (_BROWN[c.kind, i] for i in range(3))
    steep = smoothstep(np.hypot(g.slope_east, g.slope_north), 0.1, 0.5)
    shares[STRAW], shares[ROCK] = brown * straw, brown * (rock + soil * 0.6 * steep)
    shares[SOIL], shares[SAND] = (
        brown * soil * (1.0 - 0.6 * steep) * (1.0 - dry),
        brown * soil * (1.0 - 0.6 * steep) * dry,
    )
    city, open_water = c.kind == kinds.BUILT, c.kind == kinds.WATER
    roof = np.clip(0.25 + 0.75 * c.parcel, 0.0, 1.0)
    shares[ROOF:ICE] = np.where(city, brown * np.stack([roof, 1.0 - roof]), 0.0)
    shares[STRAW:ROOF] *= ~city
    muddy = np.exp(-g.flow_m / 500.0) * g.land + 0.7 * np.exp(-np.abs(g.coast_km) / 2.0) + 0.06
    muddy = np.clip(muddy + 0.08 * c.vigour, 0.0, 1.0)
    shares *= ~open_water
    shares[SEA], shares[SILT] = np.where(open_water, 1.0 - muddy, 0.0), np.where(open_water, muddy, 0.0)
    soaked = np.where(c.kind == kinds.WETLAND, 0.38, np.where(c.kind == kinds.MANGROVE, 0.22, 0.0))
    shares *= 1.0 - soaked
    shares[SILT] += soaked
    return shares


def _illumination(g: Ground, sun: Sun) -> Floats:
    """Direct and diffuse light on the slope over that on flat ground. Source: cosine law with 25 % diffuse light."""
    zenith, azimuth = np.radians(min(sun.zenith_deg, 75.0)), np.radians(sun.azimuth_deg)
    facing = g.slope_east * np.sin(azimuth) + g.slope_north * np.cos(azimuth)
    cosine = (np.cos(zenith) - np.sin(zenith) * facing) / np.sqrt(1.0 + g.slope_east**2 + g.slope_north**2)
    return np.asarray(0.25 + 0.75 * np.maximum(cosine, 0.0) / np.cos(zenith))


def ground_reflectance(s: Surface, band: int) -> Floats:
    """Surface reflectance of a band under a clear sky."""
    total = np.zeros(s.light.size)
    for share, spectrum in zip(s.shares, SPECTRA[:, band], strict=True):
        total += share * spectrum
    total *= s.light
    total *= s.tone
    total *= 1.0 + 0.055 * _colour(s, band) * (1.0 - s.snow)
    return total


def _colour(s: Surface, band: int) -> Floats:
    """-1..1, different in every band: pigments, minerals and moisture that no mixture of eleven spectra has."""
    texture, vigour, parcel = s.traits
    a, b, c, d = hash_floats(101 + band, 4)
    return wave((0.25 + 0.2 * a) * vigour + (0.06 + 0.1 * b) * texture + (0.4 + 1.2 * c) * parcel + d)


def under_sky(clear: Floats, sky: Sky, band: int) -> Floats:
    """Reflectance with clouds, cirrus and shadow: exactly the clear one where the sky's code is 0."""
    thick = 0.30 + 0.70 * sky.depth
    cover = np.select(
        [sky.code == HIGH, sky.code == MEDIUM, sky.code == CIRRUS],
        [np.maximum(thick, 0.62), thick, 0.05 + 0.34 * sky.veil],
        default=0.0,
    )
    lit = clear * np.where(sky.code == SHADOW, SHADE[band], 1.0)
    mixed = lit * (1.0 - cover) + cover * CLOUD[band] * (0.82 + 0.35 * sky.depth)
    return np.where(sky.code == CLEAR, clear, mixed)


def at_sensor(ground: Floats, sky: Sky, band: int, zenith_deg: float) -> Floats:
    """Top-of-atmosphere reflectance: path radiance plus what the air lets through; B10 sees only high clouds."""
    slant = min(1.0 / np.cos(np.radians(zenith_deg)), 4.0) / 1.1547
    if BANDS[band] == "B10":
        return np.asarray(PATH[band] + np.where(sky.code == CLEAR, 0.0, 0.035 * sky.veil + 0.012 * sky.depth + 0.0006))
    return np.asarray(PATH[band] * slant + CLARITY[band] ** slant * ground)


def scene_class(s: Surface, c: Cover, sky: Sky) -> Ints:
    """SCL codes: 3 shadow, 4 vegetation, 5 bare, 6 water, 8 and 9 clouds, 10 cirrus, 11 snow; 2 dark slopes."""
    clear = np.select(
        [s.snow > 0.5, c.kind == kinds.WATER, s.light < 0.32, s.green > 0.33],
        [np.int64(11), np.int64(6), np.int64(2), np.int64(4)],
        default=np.int64(5),
    )
    return cast(Ints, np.where(sky.code == CLEAR, clear, sky.code))
