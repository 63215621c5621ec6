"""The evaluator's algorithms against the list that the client's own wheel ships."""

from __future__ import annotations

import inspect
import json

import pytest

import mmbuild.sandbox.rest  # noqa: F401  (registers every algorithm)
from mmbuild.sandbox.graph import REGISTRY, parameter
from mmbuild.sandbox.signatures import algorithms_path, signatures


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


def test_what_the_reference_corpora_ask_for_is_there() -> None:
    wanted = {
        "Collection.filter", "Collection.first", "Collection.limit", "Collection.loadTable", "Collection.map",
        "Collection.reduceColumns", "Collection.size", "Collection.toList", "Date", "Date.difference", "Date.format",
        "DateRange", "Element.get", "Element.set", "Feature", "Feature.bounds", "Feature.buffer", "Filter.and",
        "Filter.calendarRange", "Filter.contains", "Filter.dateRangeContains", "Filter.equals", "Filter.inList",
        "Filter.intersects", "Filter.lessThan", "Filter.listContains", "Filter.not", "Filter.or", "Geometry.bounds",
        "Geometry.buffer", "Geometry.centroid", "Geometry.contains", "GeometryConstructors.Polygon",
        "GeometryConstructors.Rectangle", "If", "Image.addBands", "Image.bandNames", "Image.bitwiseAnd", "Image.clip",
        "Image.constant", "Image.date", "Image.divide", "Image.linkCollection", "Image.load", "Image.mask",
        "Image.pixelLonLat", "Image.projection", "Image.reduceRegion", "Image.remap", "Image.reproject",
        "Image.resample", "Image.sampleRectangle", "Image.select", "Image.setDefaultProjection", "Image.toUint16",
        "Image.unmask", "Image.updateMask", "Image.where", "ImageCollection.load", "ImageCollection.mosaic",
        "ImageCollection.reduce", "ImageCollection.toBands", "List.get", "List.map", "List.sequence", "Projection",
        "Reducer.first", "Reducer.mean", "Reducer.repeat", "Reducer.toList", "Terrain.slope", "reduce.mean",
        "reduce.median", "reduce.mode",
    }  # fmt: skip
    assert wanted <= REGISTRY.keys()
