"""What is asked of Earth Engine, as expressions of its client; nothing here sends a request.

A stored image always carries an explicit validity: wherever it is not fully valid it holds the modality's nodata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import groupby
from typing import Any

import ee
import numpy as np

from mmbuild.choose import Choice, Sample, Scene, scene_index
from mmbuild.modality import Clear, Modality
from mmbuild.sources import Ask
from mmbuild.sources.earthengine.blocks import BandSource, Block

# A resampled or averaged pixel counts as valid only when all its inputs are; the slack is for float masks.
FULLY_VALID = 0.999
# Stands for a cloudiness that nobody wrote down: a row with a null in it would be dropped from a table.
UNKNOWN_CLOUD = -1
_PROPERTIES = {"index": "system:index", "time": "system:time_start"}
_CASTS = {
    "uint8": "toUint8", "int8": "toInt8", "uint16": "toUint16", "int16": "toInt16",
    "uint32": "toUint32", "int32": "toInt32", "float32": "toFloat", "float64": "toDouble",
}  # fmt: skip


def region(sample: Sample) -> Any:
    """The sample's ground as a planar rectangle in its own CRS."""
    return rectangle(sample.grid().boundingbox.bbox, f"EPSG:{sample.epsg}")


def rectangle(corners: Sequence[float], crs: str) -> Any:
    """Planar ground between left, bottom, right and top."""
    return ee.Geometry.Rectangle(list(corners), crs, False)


def place(sample: Sample, asks: Sequence[Ask]) -> dict[str, Any]:
    """Where and when a sample's asks look, as plain data; a window is left out where an ask has none."""
    box = sample.grid().boundingbox
    windows = {window_key(i): [millis(t) for t in ask.window] for i, ask in enumerate(asks) if ask.window is not None}
    return {
        "crs": f"EPSG:{sample.epsg}", "box": [box.left, box.bottom, box.right, box.top],
        "point": [sample.lon, sample.lat], **windows,
    }  # fmt: skip


def window_key(number: int) -> str:
    return f"window{number}"


def region_of(place: Any) -> Any:
    """``region`` of a sample that is known to the server only."""
    return ee.Geometry.Rectangle(ee.List(place.get("box")), ee.Projection(place.get("crs")), False)


def candidates(block: Block, region: Any, ask: Ask, place: Any, number: int) -> Any:
    """The images of a collection that may serve an ask; scenes must contain the whole chip, products only touch it.

    place: the server's copy of ``place``, which holds the window of ask ``number``.
    """
    images = ee.ImageCollection(block.collection)
    for key, value in block.where.items():
        for one in value if isinstance(value, list) else [value]:
            is_in = isinstance(value, list)
            images = images.filter(ee.Filter.listContains(key, one) if is_in else ee.Filter.eq(key, one))
    if ask.window is not None:
        window = ee.List(place.get(window_key(number)))
        images = images.filterDate(window.getNumber(0), window.getNumber(1))
    if block.cloud_property and ask.max_cloud is not None:
        images = images.filter(ee.Filter.lte(block.cloud_property, ask.max_cloud))
    if ask.modality.time == "months":
        return images
    images = images.filterBounds(region)
    return images.filter(ee.Filter.contains(".geo", region)) if ask.modality.time == "scene" else images


def table(images: Any, block: Block, modality: Modality) -> Any:
    """Rows of the block's columns, one per image."""
    columns = block.columns(modality)
    selectors = [_PROPERTIES.get(column, column) for column in columns]
    described = ee.ApiFunction.call_(
        "Collection.map", images, _describing("crs" in columns, "bands" in columns, block.cloud_property)
    )
    rows = ee.ImageCollection(described).reduceColumns(ee.Reducer.toList(len(selectors)), selectors)
    return rows.get("list")


@cache
def _describing(has_crs: bool, has_bands: bool, cloud_property: str | None) -> Any:
    """The function that gives an image these columns; the client takes milliseconds to wrap one, so each is kept."""

    def describe(image: Any) -> Any:
        described = image
        if has_crs:
            described = described.set("crs", image.select([0]).projection().crs())
        if has_bands:
            described = described.set("bands", image.bandNames())
        if cloud_property:
            # A row with a null in it would be dropped, and with it an image whose cloudiness nobody wrote down.
            known = ee.List([image.get(cloud_property), UNKNOWN_CLOUD]).reduce(ee.Reducer.firstNonNull())
            described = described.set("cloud", known)
        return described

    return ee.CustomFunction.create(describe, "Object", ["Image"])


def of_scene(block: Block, scene: Scene, region: Any) -> Any:
    """The images of a collection that belong to a scene: one, or none where the product lacks it."""
    assert scene.time is not None
    day = timedelta(days=1)
    images = ee.ImageCollection(block.collection).filterBounds(region)
    images = images.filterDate(millis(scene.time - day), millis(scene.time + day))
    return images.filter(ee.Filter.eq("system:index", scene_index(scene)))


def clear_ground(images: Any, band: str, rule: Clear, *, optional: bool) -> Any:
    """1 on clear ground, 0 elsewhere and where masked; -1 everywhere when ``images`` is empty.

    optional: an image may lack the band, which is as if there were no image.
    """
    absent = ee.Image.constant(-1).rename(["clear"]).toInt8()

    def flag(image: Any) -> Any:
        value = image.select([band])
        if rule.codes:
            clear = value.remap(list(rule.codes), [1] * len(rule.codes), 0)
        else:
            clear = value.gte(rule.at_least) if rule.at_least is not None else value.lte(rule.at_most)
        flagged = clear.unmask(0, False).rename(["clear"]).toInt8()
        return ee.Image(ee.Algorithms.If(image.bandNames().contains(band), flagged, absent)) if optional else flagged

    return ee.ImageCollection([absent]).merge(images.map(flag)).mosaic()


def stored(
    modality: Modality, block: Block, choice: Choice, region: Any, clear: Callable[[Scene], Any] | None = None
) -> Any:
    """One modality as it is stored: resampled, scaled, cast, with nodata wherever it is not fully valid.

    clear: the clear ground of a scene (see ``clear_ground``), which alone goes into a composite; None takes all of it.
    """
    present = None if any(s.bands is None for s in choice.scenes) else {b for s in choice.scenes for b in s.bands or ()}

    def kind(band: str) -> tuple[Any, ...]:
        source = block.band(band)
        return (present is None or source.band in present, source.image, source.terrain, source.multiply)

    return ee.Image.cat(
        [
            _stored_bands(modality, block, list(bands), choice, region, clear)
            if exists
            else _cast(ee.Image.constant([modality.nodata] * len(list(bands))), modality)
            for (exists, _, _, _), group in groupby(modality.band_names, key=kind)
            for bands in [list(group)]
        ]
    )


def _stored_bands(
    modality: Modality,
    block: Block,
    bands: Sequence[str],
    choice: Choice,
    region: Any,
    clear: Callable[[Scene], Any] | None,
) -> Any:
    """Bands that are treated alike, as they are stored."""
    sources = [block.band(band) for band in bands]
    if choice.reduce == "count":
        return _cast(_observations(modality, sources, choice, clear).count().unmask(0, False), modality)
    if choice.reduce is not None:
        image = getattr(_observations(modality, sources, choice, clear), choice.reduce)()
    else:
        image = _layered(modality, sources, _layers(modality, block, choice, region, sources[0].image))
    if sources[0].multiply != 1:
        image = image.multiply(sources[0].multiply)
    if modality.values == "continuous" and np.issubdtype(modality.np_dtype, np.integer):
        image = image.round()
    return _cast(_fully_valid(image).unmask(modality.nodata, False), modality)


def _layered(modality: Modality, sources: Sequence[BandSource], layers: Sequence[Any]) -> Any:
    """One image of several, each covering those before it where it is fully valid."""
    images = [_resampled(modality, sources, layer) for layer in layers]
    return images[0] if len(images) == 1 else ee.ImageCollection([_fully_valid(image) for image in images]).mosaic()


def _observations(
    modality: Modality, sources: Sequence[BandSource], choice: Choice, clear: Callable[[Scene], Any] | None
) -> Any:
    """The scenes of a composite that have these bands, each only where it is fully valid and its ground is clear."""
    images = []
    for scene in choice.scenes:
        if scene.bands is not None and not {source.band for source in sources} <= set(scene.bands):
            continue
        image = _fully_valid(_resampled(modality, sources, ee.Image(scene.scene_id)))
        images.append(image if clear is None else image.updateMask(clear(scene).eq(1)))
    return ee.ImageCollection(images)


def _resampled(modality: Modality, sources: Sequence[BandSource], image: Any) -> Any:
    """Bands of one image, made on its own lattice and interpolated from there."""
    image = image.select([source.band for source in sources])
    if sources[0].terrain == "slope":
        image = ee.Terrain.slope(image)
    return image.resample("bilinear") if modality.resampling == "bilinear" and modality.time != "year" else image


def _fully_valid(image: Any) -> Any:
    return image.updateMask(image.mask().gte(FULLY_VALID))


def _cast(image: Any, modality: Modality) -> Any:
    return getattr(image, _CASTS[modality.dtype])()


def _layers(modality: Modality, block: Block, choice: Choice, region: Any, image: str | None) -> list[Any]:
    """The images that a band is cut from, lowest first: a named asset, the chosen scene, or a composite."""
    if image or block.image:
        return [ee.Image(image or block.image)]
    if block.composite is None or (modality.time == "static" and block.composite == "first"):
        return [ee.Image(choice.scenes[0].scene_id)]
    if modality.time == "static":
        return _tiles(modality, choice)
    assert choice.window is not None
    images = ee.ImageCollection(block.collection).filterBounds(region)
    images = images.filterDate(millis(choice.window[0]), millis(choice.window[1]))
    bands = [block.band(name).band for name in modality.band_names]
    return [getattr(images.select(bands), block.composite)()]


def _tiles(modality: Modality, choice: Choice) -> list[Any]:
    """Tiles of a static product: their mosaic on the lattice of the first and, to be interpolated, each on its own.

    Neighbours may differ in pixel size, so a mosaic on one lattice holds pixels that were already moved to it; it only
    shows where a tile alone cannot be interpolated: in the half pixel along its edges.
    """
    parts = [ee.Image(scene.scene_id) for scene in choice.scenes]
    whole = ee.ImageCollection(parts).mosaic().setDefaultProjection(parts[0].select([0]).projection())
    return [whole, *parts] if modality.resampling == "bilinear" and len(parts) > 1 else [whole]


def millis(when: datetime) -> int:
    return int(when.timestamp() * 1000)
