"""C-band backscatter of the ground in decibels: rough and tall is bright, water is dark, slopes to the radar shine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np

from mmbuild.sandbox import earth_cover as kinds
from mmbuild.sandbox.earth_cover import Cover
from mmbuild.sandbox.earth_ground import Ground
from mmbuild.sandbox.earth_noise import Floats, Noise, Points, hash_floats, noise, smoothstep

POLARISATIONS = ("VV", "VH", "HH", "HV")
# Decibels at 38 degrees incidence in the order of earth_cover: like-polarised, and how far cross-polarised lies below.
_LIKE = np.array([-9.6, -11.8, -13.2, -12.0, -6.5, -15.5, -11.5, -19.5, -11.0, -8.6, -13.6])
_CROSS = np.array([6.0, 7.0, 7.6, 7.2, 6.8, 9.0, 6.6, 7.2, 7.2, 5.6, 7.8])


@dataclass(frozen=True, kw_only=True)
class Look:
    """One radar acquisition: day of the year, azimuth in which the beam travels (degrees), weather seed."""

    day: float
    beam_deg: float
    seed: int


@cache
def _speckle() -> Noise:
    return noise(61, 150.0, 4, ratio=1.7, waves=5, roughness=-0.3, bend=2.4)


@cache
def _wind() -> Noise:
    return noise(62, 30e3, 5, ratio=2.6, roughness=0.5)


def speckle(p: Points, seed: int) -> Floats:
    """Unit-variance grain of about 20 to 60 m that differs from date to date."""
    field = _speckle()
    phases = np.array(hash_floats(seed, field.phases.size)).reshape(field.phases.shape)
    return field(p, phases)


def backscatter(
    p: Points, g: Ground, c: Cover, green: Floats, snow: Floats, incidence_deg: Floats, look: Look, polarisation: str
) -> Floats:
    """Backscatter in dB, clipped to -50..1 as the product is."""
    cross = polarisation in ("VH", "HV")
    horizontal = polarisation in ("HH", "HV")
    wood = smoothstep(c.canopy_m, 0.0, 32.0)
    value = (
        _LIKE[c.kind] + 1.1 * wood + 1.6 * (green - 0.4) * (c.kind == kinds.CROP) - 2.0 * snow * (c.kind != kinds.WATER)
    )
    value += np.where(c.kind == kinds.BUILT, 5.0 * (c.parcel - 0.4), 1.3 * (c.parcel - 0.5) * (c.kind == kinds.CROP))
    rough = 0.5 * c.vigour + 0.5 * c.texture
    water = np.flatnonzero(c.kind == kinds.WATER)
    if water.size:
        rough[water] = 2.4 * _waves(p.take(water), look) + 7.0 * snow[water]
    value += rough
    value += 1.2 * (smoothstep(g.moisture, 0.2, 1.6) - 0.5) * (c.kind != kinds.WATER)
    value += _tilt(g, c, incidence_deg, look)
    value += 0.9 * horizontal * (np.where(c.kind == kinds.WATER, -1.5, 0.6))
    if cross:
        value += 2.4 * wood - _CROSS[c.kind]
    value += 1.05 * speckle(p, look.seed * 4 + POLARISATIONS.index(polarisation))
    return np.asarray(np.clip(value, -50.0, 1.0))


def _waves(p: Points, look: Look) -> Floats:
    """Wind on water, unit variance."""
    field = _wind()
    phases = np.array(hash_floats(look.seed + 7, field.phases.size)).reshape(field.phases.shape)
    return field(p, phases)


def _tilt(g: Ground, c: Cover, incidence_deg: Floats, look: Look) -> Floats:
    """Slopes that face the radar are bright, those that turn away dark; more so over smooth ground."""
    beam = np.radians(look.beam_deg)
    facing = -(g.slope_east * np.sin(beam) + g.slope_north * np.cos(beam))
    # A slope facing the beam rises along it: rise per metre in the beam's direction is positive.
    local = np.radians(incidence_deg) + np.arctan(facing)
    open_ground = np.where(c.kind == kinds.TREE, 0.8, 1.0)
    strength = 13.0 * open_ground * (np.cos(np.clip(local, 0.0, 1.45)) - np.cos(np.radians(38.0)))
    return cast(Floats, np.where(c.kind == kinds.WATER, -0.22 * (incidence_deg - 38.0), strength))
