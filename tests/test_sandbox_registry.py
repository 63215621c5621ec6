"""The evaluator's algorithms against the list that the client's own wheel ships."""

from __future__ import annotations

import inspect
import json

import pytest

import mmbuild.sandbox.rest  # noqa: F401  (registers every algorithm)
from mmbuild.sandbox.graph import REGISTRY, parameter
from mmbuild.sandbox.signatures import REQUIRED, algorithms_path, signatures


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_an_implemented_algorithm_exists_and_takes_exactly_its_arguments(name: str) -> None:
    signature = signatures()[name]
    expected = {parameter(argument.name) for argument in signature.arguments}
    parameters = inspect.signature(REGISTRY[name]).parameters
    own = {n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD} - {"context"}
    assert own <= expected
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        assert own == expected


def test_the_list_is_the_one_in_the_wheel() -> None:
    entries = json.loads(algorithms_path().read_text("utf-8"))["algorithms"]
    assert len(signatures()) == len(entries) > 900


def test_reading_the_list_does_not_import_the_client() -> None:
    import subprocess
    import sys

    code = "import sys, mmbuild.sandbox.signatures as s; s.signatures(); assert 'ee' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# What MMEarth, SSL4EO-S12 and NAIP tiling send, and what planning a corpus takes; the reference to a function value
# that `Image.parseExpression` brings has no name of its own.
REFERENCE = {
    "AggregateFeatureCollection.array", "AggregateFeatureCollection.histogram",
    "AggregateFeatureCollection.max", "Collection", "Collection.distinct", "Collection.filter",
    "Collection.first", "Collection.geometry", "Collection.limit", "Collection.loadTable", "Collection.map",
    "Collection.reduceToImage", "Collection.size", "Collection.toList", "Date", "Date.difference",
    "Date.format", "DateRange", "Element.get", "Element.getNumber", "Element.set", "Feature", "Feature.bounds",
    "Feature.buffer", "FeatureCollection.randomPoints", "Filter.calendarRange", "Filter.contains",
    "Filter.dateRangeContains", "Filter.equals", "Filter.intersects", "Filter.lessThan", "Filter.listContains",
    "Filter.maxDifference", "Filter.or", "Geometry.bounds", "Geometry.buffer", "Geometry.centroid",
    "Geometry.coordinates", "GeometryConstructors.Point", "GeometryConstructors.Polygon",
    "GeometryConstructors.Rectangle", "Image.addBands", "Image.and", "Image.bandNames", "Image.bitwiseAnd",
    "Image.clip", "Image.clipToBoundsAndScale", "Image.constant", "Image.copyProperties", "Image.date",
    "Image.divide", "Image.eq", "Image.float", "Image.geometry", "Image.gte", "Image.linkCollection",
    "Image.load", "Image.mask", "Image.parseExpression", "Image.pixelLonLat", "Image.projection",
    "Image.reduce", "Image.reduceRegion", "Image.reduceRegions", "Image.reduceResolution", "Image.remap",
    "Image.rename", "Image.reproject", "Image.resample", "Image.sample", "Image.sampleRectangle",
    "Image.sampleRegions", "Image.select", "Image.setDefaultProjection", "Image.stratifiedSample",
    "Image.toByte", "Image.toFloat", "Image.toInt16", "Image.toUint16", "Image.unmask", "Image.updateMask",
    "Image.where", "ImageCollection.fromImages", "ImageCollection.load", "ImageCollection.merge",
    "ImageCollection.mosaic", "ImageCollection.qualityMosaic", "ImageCollection.reduce",
    "ImageCollection.toBands", "Join.apply", "Join.saveBest", "List.get", "List.map", "List.sequence",
    "Number.abs", "Projection", "Projection.atScale", "Reducer.first", "Reducer.frequencyHistogram",
    "Reducer.max", "Reducer.mean", "Reducer.min", "Reducer.sum", "Terrain.products", "Terrain.slope",
    "reduce.mean", "reduce.median", "reduce.mode",
}  # fmt: skip
# What else mmbuild's recipes, Xee and geedim send, or a script step by step.
OTHERS = {
    "Collection.iterate", "Collection.randomColumn", "Collection.reduceColumns", "Date.advance",
    "Dictionary.get", "Element.toDictionary", "Filter.and", "Filter.inList", "Filter.not", "Geometry.contains",
    "If", "Image.clipToCollection", "Image.pixelArea", "Image.slice", "Join.inner", "Join.saveAll",
    "Join.saveFirst", "List.size", "List.slice", "Number.add", "Reducer.count", "Reducer.median",
    "Reducer.mode", "Reducer.percentile", "Reducer.repeat", "Reducer.toList", "Terrain.aspect",
    "Terrain.hillshade", "reduce.max", "reduce.min",
}  # fmt: skip


def test_what_the_reference_corpora_ask_for_is_there() -> None:
    assert len(REFERENCE) == 108
    assert sorted((REFERENCE | OTHERS) - REGISTRY.keys()) == []


def test_defaults_come_from_the_list() -> None:
    """A few of the documented defaults, so that a list read wrongly shows."""
    defaults = {(name, a.name): a.default for name in REFERENCE for a in signatures()[name].arguments}
    assert defaults["Image.reduceRegion", "maxPixels"] == 1e7
    assert defaults["Image.reduceResolution", "maxPixels"] == 64
    assert defaults["Image.unmask", "sameFootprint"] is True
    assert defaults["FeatureCollection.randomPoints", "points"] == 1000
    assert defaults["Image.clip", "geometry"] is REQUIRED
