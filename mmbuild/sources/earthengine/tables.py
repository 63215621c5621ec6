"""Expressions whose answer is a table of features: random points of a region, and where images lie."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import ee

from mmbuild.errors import SourceError
from mmbuild.sources import Box


def random_points(table: str, column: str, value: str, count: int, seed: int) -> Any:
    """Points that Earth Engine draws in the rows of a table where ``column`` is ``value``, all one region."""
    region = ee.FeatureCollection(table).filter(ee.Filter.eq(column, value)).geometry()
    return ee.FeatureCollection.randomPoints(region, count, seed)


def footprints(collection: str, boxes: Sequence[Box], window: tuple[datetime, datetime]) -> Any:
    """The outlines and times (ms) of the images that meet boxes in a half-open window."""
    rings = [[[[w, s], [e, s], [e, n], [w, n], [w, s]]] for w, s, e, n in boxes]
    region = ee.Geometry.MultiPolygon(rings, None, False)
    images = ee.ImageCollection(collection).filterBounds(region).filterDate(*window)
    return ee.FeatureCollection(
        images.map(lambda image: ee.Feature(image.geometry(), {"time": image.get("system:time_start")}))
    )


def page(request: dict[str, Any]) -> dict[str, Any]:
    """One page of a table; the client hands on the text of a body that is no JSON, which is a transient error."""
    answer = ee.data.computeFeatures(request)
    if not isinstance(answer, dict):
        raise SourceError("a page of a table is not a whole JSON object", transient=True)
    return answer


def name_of(name: str, text: str) -> str:
    """What a refusal is about, whatever its text says."""
    return f"table {name}"
