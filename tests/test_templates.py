"""Pixel requests from text with gaps: the same as the client writes for each sample, which is slow and the oracle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import ee
import httplib2
import pytest

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.grid import to_earthengine, utm_epsg, utm_grid
from mmbuild.registry import load_modalities
from mmbuild.sandbox import offline_transport
from mmbuild.sources import SourceSpec
from mmbuild.sources.earthengine import EarthEngine
from mmbuild.sources.earthengine.session import compute_pixels
from mmbuild.sources.earthengine.templates import Templates
from tests.sandbox_worlds import disconnect, initialize

MODALITIES = load_modalities()
PIXELS = sorted(
    n for n, m in MODALITIES.items() if "earthengine" in m.sources and m.level == "pixel" and not m.count_of
)
DAY = datetime(2020, 3, 4, 10, 20, 30, tzinfo=UTC)
WINDOW = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))
OPTICAL, COUNT = "sentinel2_l2a", "sentinel2_l2a_count"


@pytest.fixture(scope="module", autouse=True)
def source() -> Iterator[EarthEngine]:
    yield EarthEngine(SourceSpec(name="sandbox"), MODALITIES, dict.fromkeys(MODALITIES, 10.0))
    disconnect()


def place(lon: float = 9.3, lat: float = 47.2) -> Sample:
    box = utm_grid(lon, lat, gsd=10, size=16)
    return Sample(
        slot=0, alternate=0, sample_id="000000", lon=lon, lat=lat, epsg=utm_epsg(lon, lat), x0=box.affine.c,
        y0=box.affine.f, gsd=10.0, size=16, date=None, anchor_year=2020,
    )  # fmt: skip


def scenes_of(name: str, count: int, first: int = 0) -> tuple[Scene, ...]:
    """Scenes as a search finds them; an id may hold what JSON has to escape."""
    modality = MODALITIES[name]
    collection = modality.sources["earthengine"].get("collection", "SOME/IMAGE")
    time = None if modality.time == "static" else DAY
    bands = ("VV", "VH", "angle") if modality.sources["earthengine"].get("optional_bands") else None
    return tuple(
        Scene(
            slot=0, modality=name, scene_id=f'{collection}/2020_{i}_"é"', bands=bands,
            time=time and time + timedelta(hours=31 * i),
        )
        for i in range(first, first + count)
    )  # fmt: skip


def choice_of(name: str, first: int = 0) -> Choice:
    modality = MODALITIES[name]
    count = {"static": 3, "year": 2}.get(modality.time, 1)
    return Choice(
        modality=name, scenes=scenes_of(name, count, first), window=WINDOW if modality.time == "year" else None
    )


def composites(first: int = 0) -> list[Choice]:
    """A median of clear observations and how many they are."""
    scenes = scenes_of(OPTICAL, 3, first)
    return [
        Choice(modality=OPTICAL, scenes=scenes, window=WINDOW, reduce="median"),
        Choice(modality=COUNT, scenes=scenes, window=WINDOW, reduce="count"),
    ]


def tree(expression: Mapping[str, Any]) -> Any:
    """An expression with its references resolved and constants in one form: equal for equal expressions."""
    return _node(expression["values"][expression["result"]], expression["values"])


def _node(node: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    ((kind, held),) = node.items()
    if kind == "valueReference":
        return _node(values[held], values)
    if kind == "arrayValue":
        return [_node(item, values) for item in held["values"]]
    if kind == "dictionaryValue":
        return {key: _node(item, values) for key, item in held["values"].items()}
    if kind == "functionDefinitionValue":
        return ("function", held["argumentNames"], _node(values[held["body"]], values))
    if kind == "functionInvocationValue":
        arguments = {name: _node(item, values) for name, item in held["arguments"].items()}
        called = held.get("functionName") or _node(values[held["functionReference"]], values)
        return ("call", called, arguments)
    return held if kind == "constantValue" else (kind, held)


def parts(node: Any) -> list[Any]:
    """The images whose bands lie one behind the other, however they were put together."""
    if node[:2] != ("call", "Image.addBands"):
        return [node]
    return parts(node[2]["dstImg"]) + parts(node[2]["srcImg"])


def by_client(source: EarthEngine, sample: Sample, choices: Sequence[Choice]) -> Any:
    corners, crs = sample.grid().boundingbox.bbox, f"EPSG:{sample.epsg}"
    images = [source._drawn(choice, f"m{i}", corners, crs) for i, choice in enumerate(choices)]
    return tree(json.loads(json.dumps(ee.serializer.encode(ee.Image.cat(images)))))


def request(templates: Templates, sample: Sample, choices: Sequence[Choice]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(templates.request(sample, choices, to_earthengine(sample.grid())))
    return body


@pytest.mark.parametrize("name", PIXELS)
def test_a_filled_template_is_what_the_client_writes_for_the_sample(source: EarthEngine, name: str) -> None:
    templates = Templates(source._drawn)
    for sample, first in ((place(), 0), (place(-70.1, -33.4), 5)):
        choices = [choice_of(name, first)]
        assert tree(request(templates, sample, choices)["expression"]) == by_client(source, sample, choices)
    assert len(templates._known) == 1


def test_all_chips_of_a_sample_make_one_expression(source: EarthEngine) -> None:
    choices = [choice_of(name) for name in PIXELS]
    body = request(Templates(source._drawn), place(), choices)
    assert tree(body["expression"]) == by_client(source, place(), choices)
    assert (body["fileFormat"], body["grid"]) == ("NPY", to_earthengine(place().grid()))


def test_a_composite_and_its_count_name_each_scene_once(source: EarthEngine) -> None:
    templates = Templates(source._drawn)
    for first in (0, 7):
        choices = [choice_of("copernicus_dem"), *composites(first)]
        body = request(templates, place(), choices)
        assert parts(tree(body["expression"])) == parts(by_client(source, place(), choices))
        scene = json.dumps(choices[1].scenes[0].scene_id)
        assert json.dumps(body).count(scene) == 1


def test_scenes_with_other_bands_or_in_another_number_have_a_template_of_their_own(source: EarthEngine) -> None:
    templates = Templates(source._drawn)
    for count in (1, 2):
        choices = [Choice(modality="copernicus_dem", scenes=scenes_of("copernicus_dem", count))]
        assert tree(request(templates, place(), choices)["expression"]) == by_client(source, place(), choices)
    assert len(templates._known) == 2


def test_a_time_that_has_no_gap_is_refused_when_the_template_is_written(source: EarthEngine) -> None:
    def draw(choice: Choice, name: str, corners: Sequence[float], crs: str) -> Any:
        when = choice.scenes[0].time
        assert when is not None
        return ee.Image.constant(int((when + timedelta(hours=1)).timestamp() * 1000)).rename([f"{name}_0"])

    with pytest.raises(KeyError):
        request(Templates(draw), place(), [choice_of(OPTICAL)])


class Noting:
    """A transport that notes what passes."""

    def __init__(self) -> None:
        self.inner, self.noted = offline_transport(), list[tuple[Any, ...]]()

    def request(
        self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **options: Any
    ) -> tuple[httplib2.Response, bytes]:
        if method == "POST":
            sent = json.loads(body)
            self.noted.append((uri, method, dict(headers), {**sent, "expression": tree(sent["expression"])}))
        return self.inner.request(uri, method, body=body, headers=headers, **options)

    def close(self) -> None:
        self.inner.close()


def test_a_request_is_the_clients_own_to_the_header_and_gives_the_same_bytes() -> None:
    noting, grid = Noting(), to_earthengine(place().grid())
    try:
        initialize("http://sandbox.invalid", http_transport=noting)
        image = ee.Image.constant(7).toUint8()
        body = {"expression": ee.serializer.encode(image), "fileFormat": "NPY", "grid": grid}
        own = ee.data.computePixels({"expression": image, "fileFormat": "NPY", "grid": grid})
        assert compute_pixels(json.dumps(body)) == own
    finally:
        disconnect()
    ours, theirs = ({**call[2], "content-length": None} for call in noting.noted)
    assert ours == theirs
    assert noting.noted[0][:2] == noting.noted[1][:2]
    assert noting.noted[0][3] == noting.noted[1][3]
