"""Image.mask and its kin: reading, narrowing and filling masks, and cutting an image to a shape.

A mask is a number from 0 (no data) to 1 (valid); what lies between comes from interpolation, pyramids and cut edges.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mmbuild.sandbox.algorithms.exporting import bounded, with_window
from mmbuild.sandbox.coerce import to_geometry
from mmbuild.sandbox.covering import Covered
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.images import Band, Image, Inside, constant_image
from mmbuild.sandbox.picking import Pair
from mmbuild.sandbox.raster import Local
from mmbuild.sandbox.values import EarthEngineError, PixelType

MASK_TYPE = PixelType("float", 0.0, 1.0)


@algorithm("Image.mask")
def mask(context: Context, image: Image, mask: Image | None) -> Image:
    if mask is None:
        return image.with_bands([_mask_band(band) for band in image.bands])
    return _with_mask(image, mask, lambda own, new: new)


@algorithm("Image.updateMask")
def update_mask(context: Context, image: Image, mask: Image) -> Image:
    return _with_mask(image, mask, np.minimum)


@algorithm("Image.selfMask")
def self_mask(context: Context, image: Image) -> Image:
    return _with_mask(image, image, np.minimum)


def _mask_band(band: Band) -> Band:
    def compute(pair: Pair) -> Pair:
        return pair[1], np.broadcast_to(np.float64(1.0), pair[1].shape)

    return replace(band, type=MASK_TYPE, node=Local((band.node,), compute))


def _with_mask(image: Image, mask: Image, combine: Any) -> Image:
    """A mask image of one band serves all bands; its own masked pixels count as 0."""

    def compute(pair: Pair, other: Pair) -> Pair:
        new = combine(pair[1], np.where(other[1] > 0, np.clip(other[0], 0.0, 1.0), 0.0))
        return np.where(new > 0, pair[0], 0.0), new

    if len(mask.bands) not in (1, len(image.bands)):
        raise EarthEngineError(
            f"Image.updateMask: The mask must have one band or {len(image.bands)}, not {len(mask.bands)}."
        )
    masks = tuple(mask.bands) * len(image.bands) if len(mask.bands) == 1 else mask.bands
    bands = [
        replace(band, node=Local((band.node, m.node), compute)) for band, m in zip(image.bands, masks, strict=True)
    ]
    return image.with_bands(bands)


@algorithm("Image.unmask")
def unmask(context: Context, input: Image, value: Image | None, sameFootprint: bool) -> Image:
    """Value and mask of another image where the mask is exactly 0; beyond the footprint only when told to."""
    value = constant_image(0) if value is None else value
    if len(value.bands) not in (1, len(input.bands)):
        raise EarthEngineError(
            f"Image.unmask: The value must have one band or {len(input.bands)}, not {len(value.bands)}."
        )
    fills = tuple(value.bands) * len(input.bands) if len(value.bands) == 1 else value.bands
    inside = Inside(input.footprint) if sameFootprint and input.footprint is not None else None

    def compute(pair: Pair, fill: Pair, *where: Pair) -> Pair:
        change = pair[1] <= 0
        if where:
            change = change & (where[0][0] > 0)
        return np.where(change, fill[0], pair[0]), np.where(change, fill[1], pair[1])

    bands = [
        replace(
            band,
            type=band.type.union(fill.type),
            node=Local((band.node, fill.node) + (() if inside is None else (inside,)), compute),
        )
        for band, fill in zip(input.bands, fills, strict=True)
    ]
    image = input.with_bands(bands)
    return image if sameFootprint else replace(image, footprint=None)


@algorithm("Image.clip")
def clip(context: Context, input: Image, geometry: Any) -> Image:
    """Mask what the geometry does not cover; a pixel on its edge keeps the share of it that lies inside.

    Source: the guide "Weighted Reductions", which names clipping as what makes fractional pixels. That a fractional
    mask of the input and the share combine as their minimum is assumed, as for Image.updateMask.
    """
    shape = to_geometry(geometry)
    if not isinstance(shape, Geometry):
        raise EarthEngineError("Image.clip: The geometry must be a Geometry, Feature or FeatureCollection.")
    cover = Covered(shape)

    def compute(pair: Pair, covered: Pair) -> Pair:
        mask = np.minimum(pair[1], covered[0])
        return np.where(mask > 0, pair[0], 0.0), mask

    bands = [with_window(replace(band, node=Local((band.node, cover), compute)), shape) for band in input.bands]
    meet = shape if input.footprint is None else _meet(input.footprint, shape)
    return bounded(input.with_bands(bands), meet)


def _meet(left: Geometry, right: Geometry) -> Geometry:
    return Geometry(left.lonlat.intersection(right.lonlat), geodesic=False)


@algorithm("Image.clipToCollection")
def clip_to_collection(context: Context, input: Image, collection: Any) -> Image:
    clipped: Image = clip(context, input, collection)
    return clipped
