"""What elevation models tell beside heights: how a pixel was made and edited, how far to trust it, where water lies.

Codes are those of the products' handbooks; which pixels carry them follows from water and slope.
"""

from __future__ import annotations

import numpy as np

from mmbuild.sandbox import earth_cover as kinds
from mmbuild.sandbox.earth_noise import Floats, noise, smoothstep
from mmbuild.sandbox.earth_products import FIELDS, Answer, Ask, product_field
from mmbuild.sandbox.earth_site import Site

# Steeper than this (rise over run), the radar saw a shadow and heights were filled from elsewhere.
VOID_SLOPE = 1.2
_SWATHS = noise(95, 90e3, 3, roughness=0.4)


def _slope(site: Site) -> Floats:
    return np.asarray(np.hypot(site.ground.slope_east, site.ground.slope_north))


@product_field
def edit_mask(site: Site, ask: Ask) -> Answer:
    """Copernicus EDM: 1 not edited, 2 filled, 8 ocean, 9 lake, 10 river."""
    water, _ = FIELDS["water_mask"](site, ask)
    land = np.where(_slope(site) > VOID_SLOPE, 2, 1)
    return np.select([water == 1, water == 2, water == 3], [8, 9, 10], default=land), None


@product_field
def fill_mask(site: Site, ask: Ask) -> Answer:
    """Copernicus FLM: 1 edited, 2 neither edited nor filled, 9 filled from another model."""
    edits, _ = edit_mask(site, ask)
    return np.select([edits == 2, edits == 1], [9, 2], default=1), None


@product_field
def height_error(site: Site, ask: Ask) -> Answer:
    """Copernicus HEM, metres: half a metre on flat ground, more on slopes and under trees."""
    return 0.5 + 2.5 * _slope(site) + 0.6 * smoothstep(site.cover.canopy_m, 2.0, 30.0), None


@product_field
def scene_count(site: Site, ask: Ask) -> Answer:
    """NASADEM num: 0 water, else how many radar scenes a height was averaged from; the orbits converge poleward."""
    crowded = 2.0 + 4.0 * smoothstep(np.abs(site.points.lat), 20.0, 60.0) + 0.8 * _SWATHS(site.points)
    return np.where(site.cover.kind == kinds.WATER, 0.0, np.rint(np.clip(crowded, 1.0, 23.0))), None


@product_field
def water_body(site: Site, ask: Ask) -> Answer:
    """NASADEM swb: 255 water, 0 land."""
    return np.where(site.cover.kind == kinds.WATER, 255, 0), None
