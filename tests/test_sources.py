"""The earthengine source against the genuine client: what errors mean, what is split, what a chip is cut from."""

from __future__ import annotations

import io
import json
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import ee
import numpy as np
import pytest
import shapely

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.errors import QuotaStop, SourceError, UserError
from mmbuild.grid import utm_epsg, utm_grid
from mmbuild.modality import Modality
from mmbuild.registry import load_modalities
from mmbuild.sandbox.assets import World
from mmbuild.sandbox.earth import Earth
from mmbuild.sandbox.rest import Answer, Sandbox
from mmbuild.sandbox.server import serve
from mmbuild.sandbox.transport import Transport
from mmbuild.sources import Ask, SourceSpec, Usage, derived
from mmbuild.sources.earthengine import EarthEngine, expressions, session
from mmbuild.sources.earthengine.session import call
from tests.earth_truth import expected, native
from tests.sandbox_worlds import FormulaWorld, disconnect, initialize, sentinel_world
from tests.truth import Filled, as_stored, differing

SPEC = SourceSpec(name="sandbox")
MODALITIES = load_modalities()
Change = Callable[[str, bytes, Answer], Answer]
"""A scripted server: what it says, given the path, the body and what the sandbox would say."""


class Scripted(Sandbox):
    """An offline Earth Engine whose answers to expressions are changed on the way out."""

    change: Change | None = None

    def handle(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = super().handle(method, path, query, headers, body)
        return answer if self.change is None or method == "GET" else self.change(path, body, answer)


@contextmanager
def scripted(world: World, change: Change | None = None) -> Iterator[Scripted]:
    """The genuine client pointed at a scripted sandbox, as the source leaves it."""
    sandbox = Scripted(world)
    initialize("http://sandbox.invalid", http_transport=Transport(sandbox))
    session._connected = SPEC
    sandbox.change = change
    try:
        yield sandbox
    finally:
        disconnect()


def refusal(status: int, message: str, reason: str = "") -> Answer:
    """Google's error JSON."""
    error: dict[str, Any] = {"code": status, "message": message}
    if reason:
        error["errors"] = [{"domain": "usageLimits", "reason": reason}]
    return status, {"content-type": "application/json"}, json.dumps({"error": error}).encode()


def sample_at(lon: float, lat: float, size: int) -> Sample:
    box = utm_grid(lon, lat, gsd=10, size=size)
    return Sample(
        slot=0, alternate=0, sample_id="000000", lon=lon, lat=lat, epsg=utm_epsg(lon, lat), x0=box.affine.c,
        y0=box.affine.f, gsd=10.0, size=size, date=None, anchor_year=2020,
    )  # fmt: skip


def row_of(sample: Sample) -> dict[str, Any]:
    """A sample's grid as a record says it."""
    return {**vars(sample), "height": sample.size, "width": sample.size}


def source_of(*names: str) -> EarthEngine:
    chosen = {name: MODALITIES[name] for name in names}
    return EarthEngine(SPEC, chosen, dict.fromkeys(names, 10.0))


def choices_of(source: EarthEngine, sample: Sample, names: Sequence[str]) -> dict[str, Choice]:
    """Every image of static modalities that touches the sample, in the order of their ids."""
    asks = [Ask(modality=MODALITIES[name], window=None) for name in names]
    found = sorted(source.search([sample], {0: asks}), key=lambda scene: scene.scene_id)
    return {
        name: Choice(modality=name, scenes=tuple(scene for scene in found if scene.modality == name)) for name in names
    }


@pytest.fixture(scope="module")
def earth() -> Earth:
    return Earth()


# -- what an error means ------------------------------------------------------------------------------------------

HTML = (503, {"content-type": "text/html"}, b"<html>Service Unavailable</html>")
EMPTY = (502, {}, b"")
TRANSIENT = {
    "429": refusal(429, "Too many concurrent aggregations."), "500": refusal(500, "An internal error has occurred"),
    "503": refusal(503, "The service is currently unavailable."), "504": refusal(504, "Deadline exceeded."),
    "html": HTML, "empty": EMPTY,
    "403 rate": refusal(403, "Quota exceeded for requests per minute.", "rateLimitExceeded"),
    "403 user rate": refusal(403, "User Rate Limit Exceeded", "userRateLimitExceeded"),
    "half a body": (200, {"content-type": "application/json"}, b'{"result": 1'),
    "html with 200": (200, {"content-type": "text/html"}, b"<html>Try later</html>"),
    "no result": (200, {"content-type": "application/json"}, b"{}"), "not text": (200, {}, b"\xff\xfe"),
}  # fmt: skip
TOO_LARGE = {
    "memory": refusal(400, "User memory limit exceeded."), "time": refusal(400, "Computation timed out."),
    "time 5xx": refusal(503, "Computation timed out."),
    "bytes": refusal(400, "Total request size (60000000 bytes) must be less than or equal to 50331648 bytes."),
    "payload": refusal(400, "Request payload size exceeds the limit: 10485760 bytes."),
    "413": (413, {"content-type": "text/html"}, b"<html>too large</html>"),
}  # fmt: skip
WRONG = {
    "argument": refusal(400, "Image.select: Pattern 'nope' did not match any bands."),
    "asset": refusal(404, "Image.load: Image asset 'C/none' not found."),
    "rights": refusal(403, "Caller does not have required permission.", "forbidden"),
    "login": refusal(401, "Request had invalid authentication credentials."),
}


def outcome(answer: Answer) -> Exception:
    with scripted(FormulaWorld([]), lambda path, body, own: answer):
        with pytest.raises((SourceError, UserError, QuotaStop)) as caught:
            call(ee.Number(1).getInfo)
        return caught.value


@pytest.mark.parametrize("kind", TRANSIENT)
def test_an_answer_that_may_be_better_next_time_is_transient(kind: str) -> None:
    error = outcome(TRANSIENT[kind])
    assert isinstance(error, SourceError)
    assert (error.transient, error.too_large) == (True, False)


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_a_request_that_must_be_split_is_too_large(kind: str) -> None:
    error = outcome(TOO_LARGE[kind])
    assert isinstance(error, SourceError)
    assert (error.transient, error.too_large) == (False, True)


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_argument_stops_and_says_what_earth_engine_said(kind: str) -> None:
    error = outcome(WRONG[kind])
    assert isinstance(error, UserError)
    assert json.loads(WRONG[kind][2])["error"]["message"] in str(error)


def test_a_spent_quota_stops_the_build() -> None:
    assert isinstance(outcome(refusal(429, "Your project's monthly EECU quota is used up.")), QuotaStop)


def test_a_lost_connection_is_transient() -> None:
    def lose(path: str, body: bytes, own: Answer) -> Answer:
        raise ConnectionResetError("gone")

    with scripted(FormulaWorld([]), lose), pytest.raises(SourceError, match="did not answer: ConnectionReset") as error:
        call(ee.Number(1).getInfo)
    assert error.value.transient


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: ee.Image("C/DEM").select("nope").projection().getInfo(), "answered 400: .*nope"),
        (lambda: ee.Image("C/none").bandNames().getInfo(), "answered 400: .*C/none"),
        (lambda: ee.data.getAsset("C/none"), "answered 404: .*C/none"),
        (lambda: ee.Number("four").getInfo(), "client refused: .*four"),
    ],
)
def test_genuine_refusals_stop_the_build(ask: Callable[[], Any], said: str) -> None:
    with scripted(sentinel_world()), pytest.raises(UserError, match=said):
        call(ask)


def test_a_modality_with_a_band_that_does_not_exist_stops_the_build(earth: Earth) -> None:
    dem = MODALITIES["copernicus_dem"]
    block = dem.sources["earthengine"] | {"bands": {"DEM": "HEIGHT"}}
    wrong = dem.model_copy(update={"sources": {"earthengine": block}})
    sample = sample_at(9.3, 47.2, 8)
    with scripted(earth.world):
        source = EarthEngine(SPEC, {"copernicus_dem": wrong}, {"copernicus_dem": 10.0})
        with pytest.raises(UserError, match="HEIGHT"):
            source.read(sample, choices_of(source, sample, ["copernicus_dem"]))


def test_a_transient_error_is_asked_again_and_counted_as_a_retry(earth: Earth) -> None:
    left = [refusal(503, "The service is currently unavailable.")]
    sample = sample_at(9.3, 47.2, 8)
    with scripted(earth.world, lambda path, body, own: left.pop() if left else own):
        source = source_of("copernicus_dem")
        assert choices_of(source, sample, ["copernicus_dem"])["copernicus_dem"].scenes
    assert source.usage == Usage(metadata_requests=1, retries=1)


def test_a_broken_page_of_a_table_is_asked_again() -> None:
    left = [(200, {"content-type": "application/json"}, b'{"features": [')]
    with scripted(sentinel_world(), lambda path, body, own: left.pop() if left else own):
        source = source_of()
        assert sorted(source.regions("C/REGIONS")["ECO_ID"]) == [1, 2]
    assert source.usage == Usage(metadata_requests=1, retries=1)


# -- what samplers ask --------------------------------------------------------------------------------------------


def test_random_points_of_a_table_follow_from_the_seed_and_lie_in_the_region(earth: Earth) -> None:
    with scripted(earth.world):
        source = source_of()
        table = source.regions("RESOLVE/ECOREGIONS/2017")
        row = table.iloc[40]
        own = table[table.ECO_NAME == row.ECO_NAME].geometry.union_all()
        one, same, other = (
            source.random_points("RESOLVE/ECOREGIONS/2017", "ECO_NAME", row.ECO_NAME, 1200, seed)
            for seed in (36_139, 36_139, 8_880)
        )
    assert shapely.contains_xy(own, one[:, 0], one[:, 1]).all()
    assert one.tolist() == same.tolist()
    assert not np.isin(one, other).any()
    # The table in one page, three times two pages of points.
    assert source.usage.metadata_requests == 1 + 3 * 2


def test_coverage_is_the_outlines_of_the_images_of_a_time_that_meet_the_boxes(earth: Earth) -> None:
    window = datetime(2018, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
    near, also, far = (-84.0, 33.0, -83.5, 33.5), (-82.5, 33.0, -82.2, 33.2), (10.0, 50.0, 10.5, 50.5)
    with scripted(earth.world):
        source = source_of("naip")
        found = source.coverage("naip", [[near, also], [far]], window)
        nothing = source.coverage("naip", [[far]], window)
    asked = shapely.box(*near) | shapely.box(*also)
    assert shapely.covers(found.geometry.union_all(), asked)
    assert shapely.intersects(found.geometry.to_numpy(), asked).all()
    assert found["time"].between("2018-01-01", "2020-12-31").all()
    assert (len(nothing), nothing.crs.to_epsg(), list(nothing)) == (0, 4326, ["time", "geometry"])
    assert source.usage.metadata_requests == 3


# -- what is split ------------------------------------------------------------------------------------------------


def at_most(count: int, algorithm: str, asked: list[int]) -> Change:
    """Refuses a request that calls an algorithm more often; notes how often each request called it."""

    def change(path: str, body: bytes, own: Answer) -> Answer:
        calls = body.count(f'"{algorithm}"'.encode())
        asked.append(calls)
        return own if calls <= count else refusal(400, "User memory limit exceeded.")

    return change


STATIC = ("copernicus_dem", "aster_gdem", "esa_worldcover", "canopy_height")


def test_a_pixel_request_that_is_too_large_is_halved_and_gives_the_same_chips(earth: Earth) -> None:
    asked: list[int] = []
    sample = sample_at(9.3, 47.2, 8)
    with scripted(earth.world) as sandbox:
        source = source_of(*STATIC)
        choices = choices_of(source, sample, STATIC)
        whole = source.read(sample, choices)
        before = replace(source.usage)
        sandbox.change = at_most(1, "Image.rename", asked)
        parts = source.read(sample, choices)
        sandbox.change = at_most(0, "Image.rename", [])
        with pytest.raises(SourceError, match="memory limit") as error:
            source.read(sample, choices)
    assert asked == [4, 2, 1, 1, 2, 1, 1]
    assert source.usage.pixel_requests - before.pixel_requests == 4
    assert list(parts) == list(STATIC)
    assert all(np.array_equal(parts[name], whole[name]) for name in STATIC)
    assert error.value.too_large


def test_a_screening_that_is_too_large_is_halved_and_gives_the_same_fractions(earth: Earth) -> None:
    asked: list[int] = []
    sample = sample_at(9.3, 47.2, 8)
    window = (datetime(2020, 6, 1, tzinfo=UTC), datetime(2020, 7, 1, tzinfo=UTC))
    with scripted(earth.world) as sandbox:
        source = source_of("sentinel2_l2a", "sentinel2_scl")
        scenes = source.search([sample], {0: [Ask(modality=MODALITIES["sentinel2_l2a"], window=window)]})
        pairs = [(sample, scene) for scene in scenes[:5]]
        whole = source.screen(pairs)
        sandbox.change = at_most(1, "Image.reduceRegion", asked)
        parts = source.screen(pairs)
        sandbox.change = at_most(0, "Image.reduceRegion", [])
        with pytest.raises(SourceError, match="memory limit"):
            source.screen(pairs)
    assert len(set(whole)) > 1
    assert parts == whole
    assert asked == [5, 2, 1, 1, 3, 1, 2, 1, 1]


# -- what a pixel answer must be ----------------------------------------------------------------------------------


def recast(dtype: str) -> Change:
    """Sends every band of a pixel answer in another dtype."""

    def change(path: str, body: bytes, own: Answer) -> Answer:
        if not path.endswith("computePixels"):
            return own
        pixels, kept = np.load(io.BytesIO(own[2])), io.BytesIO()
        np.save(kept, pixels.astype([(name, dtype) for name in pixels.dtype.names]))
        return own[0], own[1], kept.getvalue()

    return change


def test_another_dtype_than_asked_for_is_refused_and_another_byte_order_is_not(earth: Earth) -> None:
    sample = sample_at(9.3, 47.2, 8)
    with scripted(earth.world) as sandbox:
        source = source_of("copernicus_dem")
        choices = choices_of(source, sample, ["copernicus_dem"])
        plain = source.read(sample, choices)["copernicus_dem"]
        sandbox.change = recast(">f4")
        swapped = source.read(sample, choices)["copernicus_dem"]
        sandbox.change = recast("float64")
        with pytest.raises(SourceError, match="band DEM of copernicus_dem came as float64, expected float32") as error:
            source.read(sample, choices)
    assert not error.value.transient
    assert swapped.dtype == plain.dtype == np.float32
    assert np.array_equal(swapped, plain)


# -- tiles of different widths ------------------------------------------------------------------------------------

DEM = "copernicus_dem"


def dem_chip(earth: Earth, sample: Sample) -> tuple[np.ndarray, tuple[Scene, ...]]:
    """The stored heights of a place (y, x) and the tiles they were cut from."""
    source = source_of(DEM)
    choices = choices_of(source, sample, [DEM])
    return source.read(sample, choices)[DEM][0], choices[DEM].scenes


def dem_truth(earth: Earth, sample: Sample, tiles: Sequence[str]) -> Filled:
    """The place interpolated on the lattice of the first of some tiles, over pixels of all of them."""
    return expected(native(earth, tiles, "DEM").lattice, row_of(sample), "bilinear")


def test_tiles_of_different_widths_are_each_interpolated_on_their_own_lattice(earth: Earth) -> None:
    sample = sample_at(20.5, 50.0, 32)
    with scripted(earth.world):
        chip, scenes = dem_chip(earth, sample)
        alone = [dem_truth(earth, sample, [scene.scene_id]) for scene in scenes]
        together = dem_truth(earth, sample, [scene.scene_id for scene in scenes])
    assert len(alone) == 2
    north_south = [as_stored(truth, chip.dtype, -9999) for truth in alone]
    inside = [plane != -9999 for plane in north_south]
    seam = ~(inside[0] | inside[1])
    assert all(part.mean() > 0.25 for part in inside)
    assert not (inside[0] & inside[1]).any()
    assert 0 < seam.sum() <= 4 * 32  # an arc second is 31 m
    for truth, here in zip(north_south, inside, strict=True):
        assert differing(chip, truth, here) == 0
    # The lattice of one tile for both, as it was once, is another picture: the comparison can tell.
    assert differing(chip, as_stored(together, chip.dtype, -9999), ~seam) > 300
    # In the seam that lattice is all there is; a third of its columns lie on an edge of the wider pixels: a tie.
    assert (chip[seam] != -9999).all()
    # What is on the other side of a tie is at most one of those away, on this slope.
    steepest = np.abs(np.diff(together.values, axis=1)).max()
    assert np.abs(chip - together.values)[seam].max() < 4.7 * steepest  # an arc second and a half, in pixels of 10 m
    assert differing(chip, as_stored(together, chip.dtype, -9999), seam) <= seam.sum() / 3 * 2


def test_tiles_of_one_width_are_interpolated_across_their_seam(earth: Earth) -> None:
    sample = sample_at(9.0, 47.2, 32)
    with scripted(earth.world):
        chip, scenes = dem_chip(earth, sample)
        truth = dem_truth(earth, sample, [scene.scene_id for scene in scenes])
    assert len(scenes) == 2
    assert (chip != -9999).all()
    assert differing(chip, as_stored(truth, chip.dtype, -9999), ~truth.unsure) == 0


def test_a_single_tile_is_one_layer(earth: Earth) -> None:
    sample = sample_at(9.3, 47.2, 8)
    with scripted(earth.world):
        source = source_of(DEM)
        choice = choices_of(source, sample, [DEM])[DEM]
        stored = expressions.stored(MODALITIES[DEM], source.blocks[DEM], choice, expressions.region(sample))
        (tile,) = [ee.Image(scene.scene_id) for scene in choice.scenes]
        lattice = tile.select([0]).projection()
        image = ee.ImageCollection([tile]).mosaic().setDefaultProjection(lattice).select(["DEM"]).resample("bilinear")
        by_hand = ee.Image.cat(
            [image.updateMask(image.mask().gte(expressions.FULLY_VALID)).unmask(-9999, False).toFloat()]
        )
        assert stored.serialize() == by_hand.serialize()


# -- what a server says of its world ------------------------------------------------------------------------------


class Page(Sandbox):
    """Scripted answers at /world, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(FormulaWorld([]))
        self.answers, self.asked = list(answers), 0

    def handle(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer:
        assert path == "/world"
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


SAYS_SYNTHETIC = (200, {"content-type": "application/json"}, b'{"world": "w", "synthetic": true}')


def about(page: Sandbox) -> dict[str, Any]:
    with serve(page) as server:
        return session._about(server.url, sleep=lambda seconds: None)


def test_a_sandbox_says_what_its_world_is() -> None:
    assert about(Sandbox(FormulaWorld([], synthetic=True)))["synthetic"] is True
    assert about(Sandbox(FormulaWorld([], synthetic=False)))["synthetic"] is False


def test_only_a_missing_page_means_that_a_server_is_no_sandbox() -> None:
    assert about(Page((404, {}, b"not found"))) == {"synthetic": False}


@pytest.mark.parametrize("first", [HTML, refusal(429, "slow down"), (200, {}, b"<html>")])
def test_a_sandbox_that_is_busy_is_asked_again(first: Answer) -> None:
    assert about(Page(first, first, SAYS_SYNTHETIC)) == {"world": "w", "synthetic": True}


@pytest.mark.parametrize(
    ("answer", "times"),
    [(HTML, session.ABOUT_TRIES), ((403, {}, b""), 1), ((200, {}, b'{"world": "w"}'), 1), ((200, {}, b"[]"), 1)],
)
def test_a_world_that_cannot_be_told_is_not_recorded_as_real(answer: Answer, times: int) -> None:
    page = Page(answer)
    with pytest.raises(UserError, match="start `mmbuild sandbox` or correct the URL"):
        about(page)
    assert page.asked == times


# -- counting -----------------------------------------------------------------------------------------------------


class Yielding(int):
    """One; lets other threads run between the reading of a counter and its writing."""

    def __radd__(self, count: int) -> int:
        time.sleep(0)
        return count + 1


def test_usage_is_exact_when_threads_share_it_and_travels_by_pickle() -> None:
    usage, one = Usage(), Usage(pixel_requests=Yielding(1), bytes=3)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [usage.add(one) for _ in range(500)], range(8)))
    assert usage == Usage(pixel_requests=4000, bytes=12_000)
    assert pickle.loads(pickle.dumps(usage)) == usage


# -- tags ---------------------------------------------------------------------------------------------------------


@cache
def tagged(dtype: str, nodata: int) -> Modality:
    return MODALITIES["biome"].model_copy(update={"dtype": dtype, "nodata": nodata})


def value_of(modality: Modality, tags: Mapping[str, Any]) -> float:
    sample = replace(sample_at(9.3, 47.2, 8), tags=tags)
    (value,) = derived.value(modality, sample, Choice(modality=modality.name))
    assert value.dtype == modality.np_dtype
    return float(value)


@pytest.mark.parametrize("tag", [4, 4.0, np.int64(4), np.float32(4), 0, 254])
def test_a_tag_that_fits_is_stored(tag: float) -> None:
    derived.check(tagged("uint8", 255), {"biome": tag}, "places.csv: row 1")
    assert value_of(tagged("uint8", 255), {"biome": tag}) == float(tag)


@pytest.mark.parametrize("tag", [None, float("nan"), np.float64("nan")])
def test_a_tag_given_as_missing_is_nodata(tag: float | None) -> None:
    derived.check(tagged("uint8", 255), {"biome": tag}, "places.csv: row 1")
    assert value_of(tagged("uint8", 255), {"biome": tag}) == 255


@pytest.mark.parametrize("tag", ["forest", "4", 999, -1, 4.5, float("inf"), True, [4], 10**400])
def test_a_tag_that_cannot_be_stored_is_refused(tag: object) -> None:
    said = r"^places\.csv: row 1: tag biome: .* is not a whole number that biome can store as uint8; .* 0 to 255"
    with pytest.raises(UserError, match=said):
        derived.check(tagged("uint8", 255), {"biome": tag}, "places.csv: row 1")
    with pytest.raises(UserError, match=r"^sample 000000: tag biome"):
        value_of(tagged("uint8", 255), {"biome": tag})


def test_a_float_modality_takes_fractions_but_nothing_infinite() -> None:
    derived.check(tagged("float32", -9999), {"biome": 4.5}, "row")
    assert value_of(tagged("float32", -9999), {"biome": 4.5}) == 4.5
    for tag in (float("-inf"), 1e39):
        with pytest.raises(UserError, match="is not a finite number"):
            derived.check(tagged("float32", -9999), {"biome": tag}, "row")


def test_a_tag_that_the_sampler_did_not_give_is_refused() -> None:
    with pytest.raises(UserError, match=r"^row 1: has no tag 'biome', of which biome is made; add a column biome"):
        derived.check(MODALITIES["biome"], {"biom": 4}, "row 1")
    with pytest.raises(UserError, match=r"^sample 000000: has no tag 'biome'"):
        value_of(MODALITIES["biome"], {})


def test_synthetic_ecoregions_outside_the_valid_range_fit_their_dtype() -> None:
    derived.check(MODALITIES["ecoregion"], {"ecoregion": 10001}, "row")
    assert value_of(MODALITIES["ecoregion"], {"ecoregion": 10001}) == 10001


@pytest.mark.parametrize("name", ["geolocation", "month", "sentinel2_l2a"])
def test_modalities_that_are_not_made_of_tags_need_none(name: str) -> None:
    derived.check(MODALITIES[name], {}, "row")
