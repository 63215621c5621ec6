"""Which Sentinel-1 scenes exist: frames along the orbits, their dates, polarisations and footprints.

A frame's lattice is its own: UTM of the frame's centre, 10 m, an origin that fits no other product's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import Polygon

from mmbuild.sandbox.earth_ground import ground
from mmbuild.sandbox.earth_noise import hash_floats, points
from mmbuild.sandbox.mgrs import transformer, zone_of
from mmbuild.sandbox.orbits import DAY_MS, EARTH_RADIUS_KM, Orbit, day_of_year, lonlat, turned
from mmbuild.sandbox.remembered import Remembered
from mmbuild.sandbox.scenes import lonlat_polygon, stamp

# Absolute orbit 32904 of Sentinel-1A (relative orbit 107) crossed its ascending node at 00:26:52 UTC on 2020-06-07.
SENTINEL1 = Orbit(
    cycle_days=12, cycle_orbits=175, inclination_deg=98.18, node_hour=18.0, node_ms=1591489612000, node_number=107
)
REFERENCE_ORBIT = 32904
SWATH_CENTRE_KM, HALF_ACROSS_M, HALF_ALONG_M = 490.0, 125_000.0, 95_000.0
NEAR_DEG, FAR_DEG = 30.6, 46.0
SLICES = 224
FIRST_MS = int(datetime(2014, 10, 3, tzinfo=UTC).timestamp() * 1000)
TWIN_MS = tuple(int(datetime(*d, tzinfo=UTC).timestamp() * 1000) for d in ((2016, 9, 26), (2021, 12, 23)))
END_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)


@dataclass(frozen=True)
class Frame:
    """One piece of a swath, imaged again and again: relative orbit 1..175 and slice 0..SLICES-1 from the node."""

    number: int
    piece: int

    @cached_property
    def centre(self) -> tuple[float, float]:
        lon, lat = _frame_table()
        i = (self.number - 1) * SLICES + self.piece
        return float(lon[i]), float(lat[i])

    @cached_property
    def _geometry(self) -> tuple[int, float, float, float, float]:
        """EPSG code, centre in metres, unit motion in metres."""
        lon, lat = self.centre
        epsg = (32700 if lat < 0 else 32600) + zone_of(lon, lat)
        at, motion = SENTINEL1.swath(np.array([self.argument]), SWATH_CENTRE_KM)
        at, motion = (turned(v[:, 0], float(SENTINEL1.node_lons[self.number - 1])) for v in (at, motion))
        ends = np.stack([at - 0.006 * motion, at + 0.006 * motion], axis=1)
        x, y = transformer(4326, epsg).transform(*lonlat(ends / np.sqrt(np.sum(ends * ends, axis=0))))
        cx, cy = transformer(4326, epsg).transform(lon, lat)
        length = math.hypot(x[1] - x[0], y[1] - y[0])
        return epsg, float(cx), float(cy), float(x[1] - x[0]) / length, float(y[1] - y[0]) / length

    @property
    def argument(self) -> float:
        """Degrees of the orbit from the ascending node at the middle of the frame."""
        return (self.piece + 0.5) * 360.0 / SLICES

    @property
    def is_ascending(self) -> bool:
        return self.argument < 90.0 or self.argument > 270.0

    @property
    def epsg(self) -> int:
        return self._geometry[0]

    @property
    def beam_deg(self) -> float:
        """Azimuth in which the beam travels over the ground: to the right of the motion."""
        _, _, _, mx, my = self._geometry
        return math.degrees(math.atan2(mx, my)) + 90.0

    def across_along(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Metres from the middle of the frame: away from the radar, and along its motion."""
        _, cx, cy, mx, my = self._geometry
        return np.asarray((x - cx) * my - (y - cy) * mx), np.asarray((x - cx) * mx + (y - cy) * my)

    def covers(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """Which points (in the frame's coordinates) were imaged."""
        across, along = self.across_along(x, y)
        return np.asarray((np.abs(across) <= HALF_ACROSS_M) & (np.abs(along) <= HALF_ALONG_M))

    def incidence_deg(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        """Incidence angle on the ellipsoid."""
        across, _ = self.across_along(x, y)
        return NEAR_DEG + (FAR_DEG - NEAR_DEG) * (across / (2.0 * HALF_ACROSS_M) + 0.5)

    @cached_property
    def area(self) -> Any:
        """The imaged rectangle in the frame's coordinates."""
        _, cx, cy, mx, my = self._geometry
        corners = ((-1, -1), (-1, 1), (1, 1), (1, -1))
        return Polygon([(cx + a * HALF_ACROSS_M * my + b * HALF_ALONG_M * mx,
                         cy - a * HALF_ACROSS_M * mx + b * HALF_ALONG_M * my) for a, b in corners])  # fmt: skip

    @cached_property
    def footprint(self) -> Any:
        return lonlat_polygon(self.epsg, self.area)

    @cached_property
    def lattice(self) -> tuple[float, float, int, int]:
        """Left, top, width, height of the 10 m lattice around the imaged area."""
        west, south, east, north = self.area.bounds
        dx, dy = (10.0 * f for f in hash_floats(self.number * 1009 + self.piece, 2))
        left, top = math.floor(west / 10.0) * 10.0 - 10.0 + round(dx, 3), math.ceil(north / 10.0) * 10.0 + round(dy, 3)
        return left, top, math.ceil((east - left) / 10.0), math.ceil((top - south) / 10.0)


@dataclass(frozen=True, kw_only=True)
class _Climate:
    """Of a frame: whether land is near, whether it is icy or polar, and one number of its region."""

    near_land: bool
    icy: bool
    region: float


@dataclass(frozen=True, kw_only=True)
class RadarScene:
    """One acquisition of a frame: satellite, start, absolute orbit, polarisations, mode ("IW" or "EW")."""

    frame: Frame
    satellite: str
    start_ms: int
    orbit: int
    polarisations: tuple[str, ...]
    mode: str = "IW"

    @cached_property
    def index(self) -> str:
        """For example S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457."""
        kind = {("VV", "VH"): "1SDV", ("HH", "HV"): "1SDH", ("VV",): "1SSV", ("HH",): "1SSH"}[self.polarisations]
        grid = "GRDM" if self.mode == "EW" else "GRDH"
        tail = int(hash_floats(self.orbit * 311 + self.frame.piece, 1)[0] * 65536)
        return (f"S1{self.satellite}_{self.mode}_{grid}_{kind}_{stamp(self.start_ms)}_{stamp(self.start_ms + 25_000)}"
                f"_{self.orbit:06d}_{(self.orbit * 8 + 0x2111) & 0xFFFFFF:06X}_{tail:04X}")  # fmt: skip

    @cached_property
    def day(self) -> float:
        return float(day_of_year(self.start_ms))


@cache
def _frame_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres of all frames, degrees, relative orbit major."""
    u = (np.arange(SLICES) + 0.5) * 360.0 / SLICES
    position, _ = SENTINEL1.swath(u, SWATH_CENTRE_KM)
    vectors = turned(position[:, None, :], SENTINEL1.node_lons[:, None])
    lon, lat = lonlat(vectors)
    return lon.ravel(), lat.ravel()


@cache
def _frame_vectors() -> NDArray[np.float64]:
    lon, lat = (np.radians(v) for v in _frame_table())
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


@lru_cache(maxsize=8192)
def _frame(number: int, piece: int) -> Frame:
    return Frame(number, piece)


def _work_out_climates(frames: Sequence[Frame]) -> list[_Climate]:
    """The climate of each frame, of all of them together."""
    g = ground(points(*np.concatenate([_ring(frame) for frame in frames], axis=1)))
    near = np.asarray((g.coast_km > -20.0).reshape(len(frames), -1).any(axis=1))
    warmest, at_sea = (v.reshape(len(frames), -1)[:, 0] for v in (g.temperature_c + np.abs(g.season_c), ~g.land))
    found = []
    for place, frame in enumerate(frames):
        icy = bool(warmest[place] < 1.0) or (abs(frame.centre[1]) > 66.0 and bool(at_sea[place]))
        found.append(_Climate(near_land=bool(near[place]), icy=icy, region=_region(frame)))
    return found


_climates_of = Remembered(_work_out_climates, key=lambda frame: frame, most=8192)


def _ring(frame: Frame) -> NDArray[np.float64]:
    """Longitudes and latitudes of the frame's centre and of eight places around it."""
    lon, lat = frame.centre
    turns = np.radians(45.0 * np.arange(8))
    east = np.append(0.0, 1.1 * np.sin(turns) / max(math.cos(math.radians(lat)), 0.1))
    north = np.append(0.0, np.cos(turns))
    return np.stack([lon + east, np.clip(lat + north, -90.0, 90.0)])


def _region(frame: Frame) -> float:
    """One number of the cell of 15 degrees that the frame's centre lies in."""
    lon, lat = frame.centre
    return hash_floats(int((lon + 180.0) // 15.0) * 31 + int((lat + 90.0) // 15.0), 1)[0]


def frames_near(lon: float, lat: float, reach_km: float) -> list[Frame]:
    """Frames near land whose centre is within reach of a place."""
    phi, lam = math.radians(lat), math.radians(lon)
    at = np.array([math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)])
    close = np.flatnonzero(at @ _frame_vectors() > math.cos(min(reach_km / EARTH_RADIUS_KM, math.pi)))
    frames = [_frame(int(i) // SLICES + 1, int(i) % SLICES) for i in close]
    frames = [f for f in frames if -79.0 < f.centre[1] < 83.0 and _serves(f)]
    return [f for f, climate in zip(frames, _climates_of(frames), strict=True) if climate.near_land]


def _serves(frame: Frame) -> bool:
    """In one region of nine only one of the two directions is flown."""
    region = _region(frame)
    return not ((region < 0.06 and frame.is_ascending) or (region > 0.95 and not frame.is_ascending))


def frame_scenes(frame: Frame, start_ms: int, end_ms: int) -> list[RadarScene]:
    """Acquisitions of a frame in [start_ms, end_ms)."""
    climate, found = _climates_of([frame])[0], []
    delay = frame.argument / 360.0 * SENTINEL1.period_ms
    for satellite, lag, (first, last) in (("A", 0, (FIRST_MS, END_MS)), ("B", 6, TWIN_MS)):
        base = int(SENTINEL1.node_time(frame.number) + delay) // 1000 * 1000 + lag * DAY_MS
        for k in SENTINEL1.cycles(base, max(start_ms, first), min(end_ms, last)):
            ms = base + k * SENTINEL1.cycle_ms
            orbit = _absolute_orbit(frame.number, k, satellite)
            made = _mode(climate.icy, ms, climate.region, is_dropped=_is_dropped(frame, orbit, ms))
            if made is not None and (satellite == "A" or 0.35 < climate.region < 0.9):
                mode, polarisations = made
                found.append(RadarScene(frame=frame, satellite=satellite, start_ms=ms, orbit=orbit,
                                        polarisations=polarisations, mode=mode))  # fmt: skip
    return found


def _mode(icy: bool, ms: int, region: float, *, is_dropped: bool) -> tuple[str, tuple[str, ...]] | None:
    """Mode and polarisations of a pass; over ice, one that brings no interferometric swath brings an extra wide one."""
    if not is_dropped:
        return "IW", _polarisations(icy, ms, region)
    # Some wide scenes of the ice come in one polarisation.
    return ("EW", ("HH",) if region < 0.3 else ("HH", "HV")) if icy else None


def _absolute_orbit(number: int, k: int, satellite: str) -> int:
    """Absolute orbit numbers: relative = (absolute - 73) mod 175 + 1 for 1A, (absolute - 27) mod 175 + 1 for 1B."""
    orbit = REFERENCE_ORBIT + (number - SENTINEL1.node_number) + k * SENTINEL1.cycle_orbits
    return orbit if satellite == "A" else orbit - 73 + 27 - 10_850


def _polarisations(icy: bool, ms: int, region: float) -> tuple[str, ...]:
    if icy:
        return ("HH", "HV")
    # Until 2016 some regions were imaged in one polarisation only.
    return ("VV",) if ms < 1_483_228_800_000 and 0.5 < region < 0.7 else ("VV", "VH")


def _is_dropped(frame: Frame, orbit: int, ms: int) -> bool:
    """One pass in twelve brings no product; until 2016, one in three."""
    draw = hash_floats(orbit * 4099 + frame.number * 251 + frame.piece, 1)[0]
    return draw < (0.35 if ms < 1_483_228_800_000 else 0.08)


def radar_scenes_in(bounds: Sequence[float], start_ms: int, end_ms: int) -> list[RadarScene]:
    """Scenes whose frame may touch the box (west, south, east, north), by index."""
    west, south, east, north = bounds
    east = east + 360.0 if west > east else east
    lon, lat = (west + east) / 2.0, (south + north) / 2.0
    corners = [(a, b) for a in (west, lon, east) for b in (south, lat, north)]
    reach = max(_distance_km(lon, lat, a, b) for a, b in corners) + 160.0
    if reach > 2500.0:
        raise ValueError(f"the box {tuple(bounds)} is too large for a scene search; filter by a smaller region")
    frames = frames_near(lon, lat, reach)
    if reach < 200.0:
        frames = [f for f in frames if _touches(f, west, south, east, north)]
    return sorted((s for f in frames for s in frame_scenes(f, start_ms, end_ms)), key=lambda s: s.index)


def _touches(frame: Frame, west: float, south: float, east: float, north: float) -> bool:
    """Whether a small box comes within 5 km of the imaged rectangle."""
    lon, lat = np.meshgrid(np.linspace(west, east, 5), np.linspace(south, north, 5))
    across, along = frame.across_along(*transformer(4326, frame.epsg).transform(lon.ravel(), lat.ravel()))
    margin = 5000.0 + 20_000.0 * max(east - west, north - south)
    inside = (np.abs(across) <= HALF_ACROSS_M + margin) & (np.abs(along) <= HALF_ALONG_M + margin)
    return bool(inside.any())


def _distance_km(lon0: float, lat0: float, lon1: float, lat1: float) -> float:
    a, b = math.radians(lat0), math.radians(lat1)
    half = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(lon1 - lon0) / 2) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(min(math.sqrt(half), 1.0))


def find_radar_scene(index: str) -> RadarScene:
    """The scene of a system:index. Raises KeyError when there is none."""
    try:
        parts = index.split("_")
        ms = int(datetime.strptime(parts[4], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp() * 1000)
        orbit = int(parts[6])
    except (ValueError, IndexError):
        raise KeyError(index) from None
    number = (orbit - (73 if parts[0] == "S1A" else 27 - 10_850)) % 175 + 1
    lag = 0 if parts[0] == "S1A" else 6 * DAY_MS
    since = (ms + 500 - lag - SENTINEL1.node_time(number)) % SENTINEL1.cycle_ms
    piece = int(since / SENTINEL1.period_ms * SLICES)
    for scene in (
        s for p in (piece - 1, piece) for s in frame_scenes(_frame(number, p % SLICES), ms - 2000, ms + 2000)
    ):
        if scene.index == index:
            return scene
    raise KeyError(index)
