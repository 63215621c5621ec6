"""The solid Earth and its climate: real coastlines, then elevation, slope, rivers, lakes, temperature, rain and biome.

Everything is a function of the place alone; seasons enter as amplitudes that the other rooms swing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import cast

import numpy as np

from mmbuild.sandbox.earth_grids import SphereGrid, sphere_grid
from mmbuild.sandbox.earth_noise import Bools, Floats, Ints, Noise, Points, noise, smoothstep

COAST_LIMIT_KM = 2000.0
# Warmest day of the year north of the equator: 19 July.
WARMEST_DAY = 200.0
YEAR_DAYS = 365.25


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """What a place is made of; all arrays of one length.

    coast_km: signed distance to the coast, land positive. elevation_m: below 0 at sea.
    slope_east, slope_north: rise per metre. flow_m: distance to the middle of the nearest river. lake: > 0 inside one.
    temperature_c: yearly mean at the surface. season_c: half the yearly range, negative south of the equator.
    hemisphere: -1 south to 1 north, smooth at the equator. people: 0..1, real cities, smeared. rain_mm: yearly.
    moisture: rain over what evaporation wants (1: forest begins).
    """

    points: Points
    coast_km: Floats
    elevation_m: Floats
    slope_east: Floats
    slope_north: Floats
    flow_m: Floats
    lake: Floats
    temperature_c: Floats
    season_c: Floats
    hemisphere: Floats
    people: Floats
    rain_mm: Floats
    moisture: Floats

    @property
    def land(self) -> Bools:
        return self.coast_km > 0

    @cached_property
    def biome(self) -> Ints:
        """1..14 as in RESOLVE; worked out when somebody looks, for no pixel needs it."""
        return _biome(self)


@dataclass(frozen=True, eq=False)
class _Fields:
    coast: SphereGrid
    people: SphereGrid
    relief: SphereGrid
    rain: SphereGrid
    heat: SphereGrid
    shore: Noise
    terrain: Noise
    hills: Noise
    rivers: Noise
    lakes: Noise
    weather: Noise
    biomes: Noise


@cache
def _fields() -> _Fields:
    with resources.files("mmbuild.sandbox").joinpath("data/geography.npz").open("rb") as file:
        data = np.load(file)
        steps = np.cumsum(data["coast"], axis=1, dtype=np.int8).astype(np.float64) / 127.0
        grids = {
            "people": data["people"] / 15.0,
            "relief": data["relief"] / 200.0,
            "rain": data["rain"] / 40.0,
            "heat": data["heat"] / 10.0,
        }
    return _Fields(
        coast=sphere_grid(np.sign(steps) * steps**2 * COAST_LIMIT_KM),
        **{name: sphere_grid(grid) for name, grid in grids.items()},
        shore=noise(11, 60e3, 10, roughness=0.95),
        terrain=noise(12, 320e3, 13, roughness=0.78),
        hills=noise(13, 1500e3, 5, roughness=0.7),
        # Distances to rivers are a ratio that is badly off where its slope is a little off.
        rivers=noise(14, 260e3, 7, roughness=1.15, smooth_m=700.0),
        lakes=noise(15, 30e3, 7, roughness=0.9),
        weather=noise(16, 4000e3, 5, roughness=0.6),
        biomes=noise(17, 3000e3, 4, roughness=0.6),
    )


def ground(p: Points) -> Ground:
    """The ground at the points."""
    fields = _fields()
    coast_km = coast_distance(p)
    relief = np.clip(fields.relief(p), 0.0, 1.0)
    lake, flow_m = _waters(fields, p, relief, coast_km)
    elevation, east, north = _terrain(fields, p, coast_km, relief, lake, flow_m)
    temperature, season, hemisphere = _temperature(fields, p, coast_km, elevation)
    rain = _rain(fields, p, coast_km)
    moisture = rain / (20.0 * np.maximum(temperature, 0.0) + 280.0)
    return Ground(
        points=p,
        coast_km=coast_km,
        elevation_m=elevation,
        slope_east=east,
        slope_north=north,
        flow_m=flow_m,
        lake=lake,
        temperature_c=temperature,
        season_c=season,
        hemisphere=hemisphere,
        people=fields.people(p),
        rain_mm=rain,
        moisture=moisture,
    )


def coast_distance(p: Points) -> Floats:
    """Signed distance to the coast in km, land positive: the real coast, with invented bays."""
    fields = _fields()
    return fields.coast(p) + 2.2 * fields.shore(p)


def yearly_rain(p: Points) -> tuple[Floats, Floats]:
    """Yearly rain in mm and the hemisphere (-1..1), without the rest of the ground."""
    fields = _fields()
    return _rain(fields, p, coast_distance(p)), p.z / np.sqrt(p.z * p.z + 0.06**2)


def _waters(fields: _Fields, p: Points, relief: Floats, coast_km: Floats) -> tuple[Floats, Floats]:
    """Lake score (> 0 inside) and distance to a river's middle: zero lines of a noise meander like rivers."""
    cold = smoothstep(np.abs(p.lat), 42.0, 58.0)
    lake = fields.lakes(p) - 2.1 + 0.75 * cold - 3.0 * relief - 2.0 * smoothstep(-coast_km, -1.5, 0.0)
    value, slope = fields.rivers.with_gradient(p)
    steepness = np.sqrt(slope[0] ** 2 + slope[1] ** 2 + slope[2] ** 2)
    return lake, np.abs(value) / (steepness + 1e-7)


def _terrain(
    fields: _Fields, p: Points, coast_km: Floats, relief: Floats, lake: Floats, flow_m: Floats
) -> tuple[Floats, Floats, Floats]:
    """Elevation in metres (0 at the coast, negative at sea) and its slopes to the east and north."""
    value, gradient = fields.terrain.with_gradient(p, ridged=(1, 7))
    hills = fields.hills(p)
    inland = np.maximum(coast_km, 0.0)
    rise = inland / (inland + 25.0)
    rough = (0.10 + 0.12 * smoothstep(hills, -0.5, 1.5) + 1.9 * relief) * 620.0
    rough = rough * (1.0 - 0.97 * smoothstep(lake, -0.25, 0.0))
    valley = np.exp(-((flow_m / 2500.0) ** 2))
    height = 90.0 + 140.0 * smoothstep(hills, -1.0, 2.0) + 4300.0 * relief + rough * value
    root = np.sqrt(height * height + 60.0**2)
    land = rise * (0.5 * (height + root)) * (1.0 - 0.35 * valley)
    scale = rise * (0.5 * (1.0 + height / root)) * (1.0 - 0.35 * valley) * rough
    depth = np.maximum(-coast_km, 0.0)
    sea = -25.0 * depth / (1.0 + depth / 160.0)
    east, north = _tangents(p, gradient)
    return np.where(coast_km > 0, land, sea), scale * east, scale * north


def _tangents(p: Points, gradient: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats]:
    """Components of a gradient in space along the local east and north (at a pole: along longitude 0)."""
    across = np.sqrt(p.x * p.x + p.y * p.y) + 1e-12
    gx, gy, gz = gradient
    east = (gy * p.x - gx * p.y) / across
    north = gz * across - p.z * (gx * p.x + gy * p.y) / across
    return east, north


def _temperature(fields: _Fields, p: Points, coast_km: Floats, elevation: Floats) -> tuple[Floats, Floats, Floats]:
    """Yearly mean in Celsius, half the yearly range (signed by hemisphere), and the hemisphere from -1 to 1."""
    height = np.abs(p.z)
    inland = np.maximum(coast_km, 0.0)
    mean = 27.5 - 47.0 * height**2.6 + fields.heat(p) - 0.0062 * np.maximum(elevation, 0.0)
    hemisphere = p.z / np.sqrt(p.z * p.z + 0.06**2)
    season = (1.0 + 29.0 * height**1.3) * (0.32 + 0.68 * inland / (inland + 350.0)) * hemisphere
    return mean, season, hemisphere


def _rain(fields: _Fields, p: Points, coast_km: Floats) -> Floats:
    """Yearly rain in mm: wet equator, dry subtropics, wet westerlies, dry poles; less far from the sea."""
    lat = np.abs(p.lat)
    belts = 150.0 + 2100.0 * np.exp(-((lat / 12.5) ** 2)) + 720.0 * np.exp(-(((lat - 50.0) / 17.0) ** 2))
    sea = 0.45 + 0.55 * np.exp(-np.maximum(coast_km, 0.0) / 900.0)
    return belts * sea * np.exp(fields.rain(p) + 0.22 * fields.weather(p))


def _biome(g: Ground) -> Ints:
    """RESOLVE biome numbers 1..14 by Whittaker-like rules; the first rule that holds decides."""
    p, temperature, season, moisture = g.points, g.temperature_c, np.abs(g.season_c), g.moisture
    elevation, coast_km = g.elevation_m, g.coast_km
    warmest, coldest = temperature + season, temperature - season
    odd = _fields().biomes(p)
    lat = np.abs(p.lat)
    tropical = (coldest > 11.0) & (lat < 31.0)
    mediterranean = (lat > 29.0) & (lat < 44.5) & (coldest > 0.5) & (moisture < 1.3) & (coast_km < 350.0)
    shore = (coast_km < 28.0) & (elevation < 120.0) & (np.abs(odd) < 0.55)
    rules: list[tuple[Bools, int]] = [
        (warmest < 8.5, 11),
        ((elevation > 2600.0) & (lat < 50.0) & (moisture < 2.6), 10),
        (moisture < 0.42, 13),
        (mediterranean & (odd > -1.2), 12),
        (tropical & (moisture > 1.1) & shore, 14),
        (tropical & (moisture > 0.7) & (odd > 1.75), 9),
        (tropical & (elevation > 1300.0) & (moisture > 0.7), 3),
        (tropical & (moisture > 2.0), 1),
        (tropical & (moisture > 1.45), 2),
        (tropical, 7),
        ((warmest < 15.5) & (p.z > 0), 6),
        (moisture < 1.0, 8),
        ((elevation > 900.0) | (odd > 1.2), 5),
    ]
    conditions = [np.asarray(rule) for rule, _ in rules]
    return cast(Ints, np.select(conditions, [np.int64(n) for _, n in rules], default=np.int64(4)))
