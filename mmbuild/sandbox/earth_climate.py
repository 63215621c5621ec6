"""A month of weather at a place: the fifty quantities of a land reanalysis, worked out of a few that are linked.

Temperature and rain come from the planet (earth_products); humidity, pressure, wind, sunlight, snow, soil, lakes and
the balances of energy and water follow by textbook formulas. A cell takes the ground of its centre.
"""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmbuild.sandbox import earth_cover as kinds
from mmbuild.sandbox import earth_optics as optics
from mmbuild.sandbox.earth_noise import Floats, smoothstep
from mmbuild.sandbox.earth_products import FIELDS, Answer, Ask, middle_of_month, month_anomaly, product_field
from mmbuild.sandbox.earth_site import Site

KELVIN = 273.15
SOLAR_CONSTANT = 1361.0  # W/m2
STEFAN_BOLTZMANN = 5.670e-8  # W/m2/K4
# Energy that evaporates a metre of water, J/m2: 2.45 MJ/kg.
EVAPORATION_HEAT = 2.45e9

Spread = tuple[Floats, Floats, Floats]
"""A quantity of a month: its mean (or sum), its lowest and its highest hour."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Air:
    """What everything else is worked out of.

    t: mean air temperature, K. swing: from the mean to the month's coldest or warmest hour, K. rain: m in the month.
    moist: 0 desert .. 1 rain forest. odd: this month's rain over the usual month's. humid: relative humidity, 0..1.
    cloud: 0..1. hours: in the month. day: the middle of the month, days since 1 January.
    """

    t: Floats
    swing: Floats
    rain: Floats
    moist: Floats
    odd: Floats
    humid: Floats
    cloud: Floats
    hours: float
    day: float


def air(site: Site, ask: Ask) -> Air:
    """The air of a month over a site, land and sea."""
    g = site.ground
    low, high = (_of_month("month_temperature", f"temperature_2m_{end}", site, ask) for end in ("min", "max"))
    rain = _of_month("month_rain", "total_precipitation_sum", site, ask)
    moist = smoothstep(g.moisture, 0.1, 1.6)
    odd = rain / (g.rain_mm / 12_000.0 + 1e-6) - 1.0
    humid = np.where(g.land, np.clip(0.32 + 0.5 * moist + 0.06 * odd, 0.1, 0.97), 0.8)
    return Air(
        t=(low + high) / 2.0, swing=(high - low) / 2.0, rain=rain, moist=moist, odd=odd, humid=humid,
        cloud=np.clip(0.25 + 0.45 * moist + 0.08 * odd, 0.05, 0.95),
        hours=24.0 * calendar.monthrange(ask.year, ask.month)[1], day=middle_of_month(ask),
    )  # fmt: skip


def _of_month(field: str, band: str, site: Site, ask: Ask) -> Floats:
    value, _ = FIELDS[field](site, Ask(band=band, year=ask.year, month=ask.month))
    return np.asarray(value, dtype=np.float64)


def dewpoint(celsius: Floats, humidity: Floats) -> Floats:
    """Dewpoint in Celsius. Source: Magnus formula, coefficients of Alduchov and Eskridge (1996)."""
    gamma = np.log(humidity) + 17.625 * celsius / (243.04 + celsius)
    return 243.04 * gamma / (17.625 - gamma)


def daily_sunlight(lat: Floats, day: float) -> Floats:
    """Sunlight above the air in a day, J/m2. Source: integrated zenith angle with Cooper's declination."""
    phi, declination = np.radians(lat), np.radians(23.44) * np.sin(2.0 * np.pi * (day - 80.0) / 365.25)
    half_day = np.arccos(np.clip(-np.tan(np.clip(phi, -1.57, 1.57)) * np.tan(declination), -1.0, 1.0))
    up = half_day * np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.sin(half_day)
    near = 1.0 + 0.0334 * np.cos(2.0 * np.pi * (day - 3.0) / 365.25)
    return np.asarray(86_400.0 / np.pi * SOLAR_CONSTANT * near * np.maximum(up, 0.0))


def _around(mean: Floats, spread: Floats | float, low: float = -np.inf, high: float = np.inf) -> Spread:
    """A state that swings by `spread` about its mean within physical limits."""
    return mean, np.clip(mean - spread, low, high), np.clip(mean + spread, low, high)


def _hourly(total: Floats, hours: float, least: float, most: float) -> Spread:
    """A monthly sum; its hours run from `least` to `most` times the mean hour, whatever its sign."""
    a, b = total / hours * least, total / hours * most
    return total, np.minimum(a, b), np.maximum(a, b)


def weather(site: Site, ask: Ask) -> Mapping[str, Spread]:
    """Every quantity of the month by its name without suffix, made once per site and month."""
    return site.memo(("weather", ask.year, ask.month), lambda: _weather(site, ask))


def _weather(site: Site, ask: Ask) -> Mapping[str, Spread]:
    a = air(site, ask)
    snow = _snow(site, a)
    sun = _radiation(site, a, snow)
    water = _water(site, a, snow, sun["net_radiation"][0])
    radiation = {name: spread for name, spread in sun.items() if name != "net_radiation"}
    return {**_atmosphere(site, ask, a), **snow, **radiation, **water, **_soil(site, a), **_lakes(site, a)}


def _atmosphere(site: Site, ask: Ask, a: Air) -> dict[str, Spread]:
    lat = np.radians(site.points.lat)
    dew = dewpoint(a.t - KELVIN, a.humid) + KELVIN
    sea_level = 100_900.0 + 600.0 * np.sin(2.0 * lat) ** 2 + 180.0 * month_anomaly(site, ask, 84)
    height = np.maximum(site.ground.elevation_m, 0.0)
    # Pressure falls with height. Source: hydrostatic air with 6.5 K/km.
    surface = sea_level * (1.0 - 0.0065 * height / (a.t + 0.0065 * height)) ** 5.2559
    rough = np.where(site.ground.land, 0.6, 1.0)
    # Trade winds, westerlies and polar easterlies.
    east = rough * (-4.5 * np.cos(3.0 * lat) * np.cos(lat) + 1.2 * month_anomaly(site, ask, 85))
    north = rough * (-1.6 * np.sin(6.0 * lat) + 0.9 * month_anomaly(site, ask, 86))
    return {
        "dewpoint_temperature_2m": _around(dew, 0.6 * a.swing),
        "mean_sea_level_pressure": _around(sea_level, 1200.0),
        "surface_pressure": _around(surface, 1200.0),
        "u_component_of_wind_10m": _around(east, 6.0 * rough),
        "v_component_of_wind_10m": _around(north, 6.0 * rough),
    }


def _snow(site: Site, a: Air) -> dict[str, Spread]:
    """Snow on the ground: what a cold month keeps of the year's rain; ten metres of water on glaciers, as in ERA5."""
    c = a.t - KELVIN
    frozen = 1.0 - smoothstep(c, -4.0, 4.0)
    glacier = site.cover.kind == kinds.SNOW
    water = np.where(glacier, 10.0, 0.3 * site.ground.rain_mm / 1000.0 * smoothstep(-c, -1.0, 7.0))
    density = 120.0 + 180.0 * smoothstep(c, -20.0, 2.0)
    albedo = 0.85 - 0.30 * smoothstep(c, -8.0, 1.0)
    covered = smoothstep(water, 0.0, 0.02)
    melt = np.minimum(water + a.rain * frozen, 0.4) * smoothstep(c, -6.0, 6.0)
    return {
        "snow_albedo": _around(albedo, 0.05, 0.5, 0.9),
        "snow_cover": _around(covered, 0.1 * covered, 0.0, 1.0),
        "snow_density": _around(density, 0.1 * density),
        "snow_depth": _around(1000.0 * water / density, 100.0 * water / density),
        "snow_depth_water_equivalent": _around(water, 0.1 * water),
        "snowfall": _hourly(a.rain * frozen, a.hours, 0.0, 9.0),
        "snowmelt": _hourly(melt, a.hours, 0.0, 6.0),
        "temperature_of_snow_layer": _around(np.minimum(a.t, KELVIN), 0.5 * a.swing, 200.0, KELVIN),
    }


def _radiation(site: Site, a: Air, snow: Mapping[str, Spread]) -> dict[str, Spread]:
    """Sunlight and heat at the ground, J/m2 downwards in the month; `net_radiation` is their sum."""
    seconds = 3600.0 * a.hours
    bare = 0.15 + 0.13 * (1.0 - a.moist)
    covered = snow["snow_cover"][0]
    albedo = bare * (1.0 - covered) + snow["snow_albedo"][0] * covered
    down = daily_sunlight(site.points.lat, a.day) * (0.76 - 0.45 * a.cloud) * a.hours / 24.0
    skin = a.t + 3.0 * (1.0 - a.moist) * down / (2e7 * a.hours / 24.0)
    # Heat from the sky. Source: Brutsaert (1975), clouds after Bolz.
    vapour_hpa = 6.1094 * a.humid * np.exp(17.625 * (a.t - KELVIN) / (243.04 + a.t - KELVIN))
    emits = np.minimum(1.24 * (vapour_hpa / a.t) ** (1.0 / 7.0) * (1.0 + 0.22 * a.cloud**2), 1.0)
    sky = emits * STEFAN_BOLTZMANN * a.t**4 * seconds
    net_sun, net_heat = down * (1.0 - albedo), sky - 0.97 * STEFAN_BOLTZMANN * skin**4 * seconds
    return {
        "forecast_albedo": _around(albedo, 0.03, 0.05, 0.9),
        "skin_temperature": _around(skin, 1.4 * a.swing),
        "surface_net_solar_radiation": _hourly(net_sun, a.hours, 0.0, 4.5),
        "surface_net_thermal_radiation": _hourly(net_heat, a.hours, 0.3, 2.0),
        "surface_solar_radiation_downwards": _hourly(down, a.hours, 0.0, 4.5),
        "surface_thermal_radiation_downwards": _hourly(sky, a.hours, 0.8, 1.2),
        "net_radiation": _hourly(net_sun + net_heat, a.hours, 0.0, 1.0),
    }


def _water(site: Site, a: Air, snow: Mapping[str, Spread], net: Floats) -> dict[str, Spread]:
    """Evaporation (negative: upwards), its parts, the heat it takes, and what runs off. Source: Budyko's curve."""
    green, _ = optics.plants(site.ground, site.cover, a.day)
    wants = np.maximum(0.9 * net / EVAPORATION_HEAT, 0.0) + 1e-6
    liquid = a.rain - snow["snowfall"][0] + snow["snowmelt"][0]
    has = liquid + 0.4 * a.moist * site.ground.rain_mm / 12_000.0 + 1e-7
    spent = has * wants / np.hypot(has, wants)
    lake = 0.9 * (site.cover.kind == kinds.WATER)
    white = 0.4 * snow["snow_cover"][0] * (1.0 - lake)
    rest = 1.0 - lake - white
    runoff = 0.8 * np.maximum(liquid - spent, 0.0)
    parts = {
        "evaporation_from_bare_soil": -spent * rest * (1.0 - 0.85 * green),
        "evaporation_from_open_water_surfaces_excluding_oceans": -spent * lake,
        "evaporation_from_the_top_of_canopy": -spent * rest * 0.2 * green,
        "evaporation_from_vegetation_transpiration": -spent * rest * 0.65 * green,
        "snow_evaporation": -spent * white,
        "total_evaporation": -spent,
        "potential_evaporation": -1.3 * wants,
        "surface_latent_heat_flux": -spent * EVAPORATION_HEAT,
    }
    sensible = EVAPORATION_HEAT * spent - net
    return {
        **{name: _hourly(value, a.hours, 0.0, 4.0) for name, value in parts.items()},
        "surface_sensible_heat_flux": _hourly(sensible, a.hours, -0.5, 4.0),
        **{name: _hourly(share * runoff, a.hours, 0.0, 8.0)
           for name, share in (("runoff", 1.0), ("surface_runoff", 0.35), ("sub_surface_runoff", 0.65))},
        **_leaves(site, a, green),
    }  # fmt: skip


def _leaves(site: Site, a: Air, green: Floats) -> dict[str, Spread]:
    wood = np.isin(site.cover.kind, (kinds.TREE, kinds.MANGROVE))
    tall, short = green * np.where(wood, 5.5, 0.4), green * np.where(wood, 0.6, 3.5)
    return {
        "leaf_area_index_high_vegetation": _around(tall, 0.08 * tall, 0.0),
        "leaf_area_index_low_vegetation": _around(short, 0.08 * short, 0.0),
        "skin_reservoir_content": _around(4e-4 * a.moist * green, 3e-4, 0.0, 2e-3),
    }


def _soil(site: Site, a: Air) -> dict[str, Spread]:
    """Four layers: the deeper, the later and the weaker the seasons and the storms."""
    layers = ((2.0, 0.98, 0.7), (7.0, 0.93, 0.3), (20.0, 0.80, 0.1), (55.0, 0.50, 0.03))
    found: dict[str, Spread] = {}
    for number, (lag, damp, swing) in enumerate(layers, start=1):
        heat = _damped(site, a, lag, damp)
        wet = np.clip(0.06 + 0.36 * a.moist + 0.05 * damp * a.odd, 0.02, 0.52)
        found[f"soil_temperature_level_{number}"] = _around(heat, swing * a.swing)
        found[f"volumetric_soil_water_layer_{number}"] = _around(wet, 0.12 * swing, 0.0, 0.6)
    return found


def _damped(site: Site, a: Air, lag_days: float, damp: float) -> Floats:
    """Temperature that follows the season late and weakly, K."""
    mean = site.ground.temperature_c
    return np.asarray(mean + damp * (site.temperature(a.day - lag_days) - mean) + KELVIN)


def _lakes(site: Site, a: Air) -> dict[str, Spread]:
    """Lakes as every land cell is thought to have one. Source: the state variables of ERA5-Land's lake model."""
    c = a.t - KELVIN
    mixed = np.maximum(_damped(site, a, 25.0, 0.9), KELVIN)
    bottom = 277.15 + 0.3 * np.maximum(site.ground.temperature_c, 0.0)
    ice = 1.4 * smoothstep(-c, 0.0, 25.0)
    deep = 6.0 + 18.0 * (1.0 - smoothstep(c, 4.0, 24.0))
    return {
        "lake_bottom_temperature": _around(bottom, 0.3, KELVIN),
        "lake_ice_depth": _around(ice, 0.1 * ice, 0.0),
        "lake_ice_temperature": _around(np.minimum(a.t, KELVIN), 0.5 * a.swing, 200.0, KELVIN),
        "lake_mix_layer_depth": _around(deep, 2.0, 0.0),
        "lake_mix_layer_temperature": _around(mixed, 0.2 * a.swing, KELVIN),
        "lake_shape_factor": _around(0.65 - 0.12 * smoothstep(c, 0.0, 20.0), 0.02, 0.5, 0.8),
        "lake_total_layer_temperature": _around(0.6 * mixed + 0.4 * bottom, 0.1 * a.swing, KELVIN),
    }


@product_field
def month_weather(site: Site, ask: Ask) -> Answer:
    """A land quantity by its band's name: mean or `_sum`, or its lowest (`_min`) and highest (`_max`) hour."""
    name, which = ask.band, 0
    for suffix, number in (("_sum", 0), ("_min", 1), ("_max", 2)):
        if ask.band.endswith(suffix):
            name, which = ask.band.removesuffix(suffix), number
    return weather(site, ask)[name][which], site.ground.land


# The first reanalysis names the same quantities differently, and has them over the sea too.
_ERA5 = {"dewpoint_2m_temperature": "dewpoint_temperature_2m"}
_ERA5_TEMPERATURE = {"mean_2m_air_temperature": 0.0, "minimum_2m_air_temperature": -1.0,
                     "maximum_2m_air_temperature": 1.0}  # fmt: skip


@product_field
def month_everywhere(site: Site, ask: Ask) -> Answer:
    """A quantity of ERA5, over land and sea."""
    if ask.band in _ERA5_TEMPERATURE:
        a = air(site, ask)
        return a.t + _ERA5_TEMPERATURE[ask.band] * a.swing, None
    if ask.band == "total_precipitation":
        return air(site, ask).rain, None
    return weather(site, ask)[_ERA5.get(ask.band, ask.band)][0], None
