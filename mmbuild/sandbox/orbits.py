"""Where the Sentinels fly: sun-synchronous circular orbits in closed form, close enough to give real revisit patterns.

Geometry only. An orbit's argument u runs from the ascending node, 0..360 degrees; orbits repeat after whole days.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.earth_noise import EARTH_RADIUS_M

Floats = NDArray[np.float64]
DAY_MS = 86_400_000
EARTH_RADIUS_KM = EARTH_RADIUS_M / 1000.0


@dataclass(frozen=True, kw_only=True)
class Orbit:
    """A repeating sun-synchronous orbit.

    cycle_days, cycle_orbits: the ground track repeats after so many. inclination_deg.
    node_hour: local solar time at the ascending node.
    node_ms: when the first satellite crossed the ascending node of relative orbit `node_number`.
    """

    cycle_days: int
    cycle_orbits: int
    inclination_deg: float
    node_hour: float
    node_ms: int
    node_number: int

    @property
    def period_ms(self) -> float:
        return self.cycle_days * DAY_MS / self.cycle_orbits

    @property
    def cycle_ms(self) -> int:
        return self.cycle_days * DAY_MS

    def node_time(self, number: int) -> float:
        """Milliseconds of the ascending node of relative orbit 1..cycle_orbits in the reference cycle."""
        return self.node_ms + (number - self.node_number) * self.period_ms

    def cycles(self, base_ms: int, start_ms: int, end_ms: int) -> range:
        """The k for which base_ms + k cycles lies in [start_ms, end_ms)."""
        return range(-((base_ms - start_ms) // self.cycle_ms), -((base_ms - end_ms) // self.cycle_ms))

    @cached_property
    def node_lons(self) -> Floats:
        """Longitude of the ascending node of relative orbits 1..cycle_orbits, in degrees (any turn)."""
        times = np.array([self.node_time(n) for n in range(1, self.cycle_orbits + 1)])
        hours = times % DAY_MS / 3_600_000.0
        return np.asarray((self.node_hour - hours) * 15.0)

    def track(self, u_deg: Floats) -> tuple[Floats, Floats]:
        """Unit position and unit motion over the turning ground, (3, n), for a node at longitude 0."""
        position, ahead = self._position(u_deg), self._position(u_deg + 0.01)
        motion = ahead - position
        motion -= position * np.sum(position * motion, axis=0)
        return position, motion / np.sqrt(np.sum(motion * motion, axis=0))

    def _position(self, u_deg: Floats) -> Floats:
        u, tilt = np.radians(u_deg), np.radians(self.inclination_deg)
        x, y, z = np.cos(u), np.sin(u) * np.cos(tilt), np.sin(u) * np.sin(tilt)
        turned = np.radians(-u_deg / 360.0 * self.period_ms / DAY_MS * 360.0)
        return np.stack([x * np.cos(turned) - y * np.sin(turned), x * np.sin(turned) + y * np.cos(turned), z])

    def swath(self, u_deg: Floats, right_km: float) -> tuple[Floats, Floats]:
        """Unit position and motion of a line that runs beside the track, right_km to its right."""
        position, motion = self.track(u_deg)
        right = np.cross(motion, position, axis=0)
        angle = right_km / EARTH_RADIUS_KM
        return position * np.cos(angle) + right * np.sin(angle), motion


def lonlat(vectors: Floats) -> tuple[Floats, Floats]:
    """Degrees of unit vectors (3, ...)."""
    return np.degrees(np.arctan2(vectors[1], vectors[0])), np.degrees(np.arcsin(np.clip(vectors[2], -1.0, 1.0)))


def turned(vectors: Floats, lon_deg: Floats | float) -> Floats:
    """Unit vectors turned east about the axis."""
    c, s = np.cos(np.radians(lon_deg)), np.sin(np.radians(lon_deg))
    return np.stack([vectors[0] * c - vectors[1] * s, vectors[0] * s + vectors[1] * c, vectors[2] + 0.0 * c])


def sun_position(lon: float, lat: float, ms: NDArray[np.int64] | int) -> tuple[Floats, Floats]:
    """Zenith and azimuth (clockwise from north) of the sun, degrees. Source: Cooper's declination, mean solar time."""
    times = np.asarray(ms, dtype=np.float64)
    day = day_of_year(times)
    declination = np.radians(23.44) * np.sin(2.0 * np.pi * (day - 80.0) / 365.25)
    hour = (times % DAY_MS) / 3_600_000.0 + lon / 15.0
    angle, phi = np.radians((hour - 12.0) * 15.0), np.radians(lat)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(angle)
    east = -np.cos(declination) * np.sin(angle)
    north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(angle)
    return np.degrees(np.arccos(np.clip(up, -1.0, 1.0))), np.degrees(np.arctan2(east, north)) % 360.0


def day_of_year(ms: NDArray[np.float64] | float) -> Floats:
    """Days since 1 January 00:00 UTC of the same year, with fraction."""
    stamps = np.asarray(ms, dtype=np.float64).astype("int64").astype("datetime64[ms]")
    return np.asarray((stamps - stamps.astype("datetime64[Y]")) / np.timedelta64(1, "D"), dtype=np.float64)
