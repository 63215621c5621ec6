"""The stac source: items of any kind of catalogue, windows of their files, and what goes wrong on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.errors import SourceError, UserError
from mmbuild.grid import utm_epsg, utm_grid
from mmbuild.modality import Clear, Modality
from mmbuild.recipe import load_recipe
from mmbuild.registry import load_modalities
from mmbuild.sources import Ask, SourceSpec, open_source
from mmbuild.sources.stac import Stac
from mmbuild.sources.stac.assets import GDAL_OPTIONS, path_of
from mmbuild.sources.stac.blocks import Entry, block_of
from mmbuild.sources.stac.catalogues import open_catalogue
from tests.stac_items import EARTH_SEARCH, L2A, as_json, item, static_catalogue, table
from tests.web import Web, serving

MODALITIES = load_modalities()
KNOWN = MODALITIES | load_modalities(Path(__file__).parents[1] / "recipes" / "modalities")
LON, LAT = 3.01, 36.14
EPSG, SIZE = utm_epsg(LON, LAT), 32
BOX = utm_grid(LON, LAT, gsd=10, size=SIZE)
YEAR = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))
SAMPLE = Sample(
    slot=0, alternate=0, sample_id="000000", lon=LON, lat=LAT, epsg=EPSG, x0=BOX.affine.c, y0=BOX.affine.f, gsd=10.0,
    size=SIZE, date=None, anchor_year=2020,
)  # fmt: skip
# Files start this many 10 m pixels up and left of the sample.
MARGIN, WIDTH = 30, 96
NAMES = ("sentinel2_l2a", "sentinel2_scl", "copernicus_dem_glo30")


def write(path: Path, values: np.ndarray, *, gsd: float = 10.0, **more: Any) -> Path:
    """A cloud-optimised GeoTIFF of one band around the sample."""
    transform = rasterio.Affine(gsd, 0, SAMPLE.x0 - 10 * MARGIN, 0, -gsd, SAMPLE.y0 + 10 * MARGIN)
    about = {"crs": f"EPSG:{EPSG}", "transform": transform, **more}
    height, width = values.shape[-2:]
    count = values.shape[0] if values.ndim == 3 else 1
    with rasterio.open(
        path, "w", driver="COG", width=width, height=height, count=count, dtype=values.dtype, **about
    ) as out:  # fmt: skip
        out.write(values.reshape(count, height, width))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten-metre bands that tell their band and place apart, and scene classes at 20 m: left clear, right cloud."""
    folder = tmp_path_factory.mktemp("files")
    plane = np.add.outer(np.arange(WIDTH), np.arange(WIDTH)).astype("uint16")
    for number, band in enumerate(L2A):
        write(folder / f"{EARTH_SEARCH[band]}.tif", plane + 1000 * (number + 1) + 1)
    classes = np.full((WIDTH // 2, WIDTH // 2), 4, "uint8")
    classes[:, (MARGIN + SIZE // 2) // 2 :] = 9
    write(folder / "scl.tif", classes, gsd=20.0, nodata=0)
    write(folder / "dem.tif", plane.astype("float32"))
    return folder


def optical(files: Path, name: str, when: str, **properties: Any) -> pystac.Item:
    assets = {key: files / f"{key}.tif" for key in [*(EARTH_SEARCH[band] for band in L2A), "scl"]}
    about = {"eo:cloud_cover": 20.0, "s2:processing_baseline": "02.09", **properties}
    return item("sentinel-2-l2a", name, when, assets, **about)


@pytest.fixture(scope="module")
def items(files: Path) -> list[pystac.Item]:
    return [
        optical(files, "S2A_first", "2020-06-01T10:00:00Z"),
        optical(files, "S2A_cloudy", "2020-06-11T10:00:00Z", **{"eo:cloud_cover": 90.0}),
        optical(files, "S2A_shifted", "2020-06-21T10:00:00Z", **{"s2:processing_baseline": "05.00"}),
        optical(files, "S2A_next_year", "2021-01-01T00:00:00Z"),
        item("cop-dem-glo-30", "tile", "2021-04-22T00:00:00Z", {"data": files / "dem.tif"}),
        item("another", "thing", "2020-06-01T10:00:00Z", {"data": files / "dem.tif"}),
    ]


@pytest.fixture(scope="module", params=["static", "table", "api"])
def place(
    request: pytest.FixtureRequest, items: list[pystac.Item], files: Path, tmp_path_factory: Any
) -> Iterator[str]:
    """The same items in each kind of catalogue."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "static":
        yield str(static_catalogue(items, folder))
    elif request.param == "table":
        yield str(table(items, folder / "items.parquet"))
    else:
        with serving(Web(folder=files, items=as_json(items))) as web:
            yield web.url


def source_at(place: str, *names: str, definitions: dict[str, Modality] | None = None) -> Stac:
    known = definitions or KNOWN
    used = {name: known[name] for name in names or NAMES}
    opened = open_source(SourceSpec(name="stac", catalog=place), used, dict.fromkeys(used, 10.0))
    assert isinstance(opened, Stac)
    return opened


def ask(name: str, *, max_cloud: float | None = None) -> Ask:
    return Ask(modality=KNOWN[name], window=None if KNOWN[name].time == "static" else YEAR, max_cloud=max_cloud)


def search(source: Stac, *asks: Ask) -> list[Scene]:
    return source.search([SAMPLE], {0: list(asks)})


def read_one(source: Stac, scene: Scene) -> np.ndarray:
    return source.read(SAMPLE, {"here": Choice(modality=scene.modality, scenes=(scene,))})["here"]


# -- the contract of a source, over every kind of catalogue -----------------------------------------------------------


def test_search_finds_the_scenes_of_the_window_and_no_other(place: str) -> None:
    found = search(source_at(place), ask("sentinel2_l2a"), ask("copernicus_dem_glo30"))
    assert [(s.modality, s.scene_id) for s in found] == [
        ("sentinel2_l2a", "sentinel-2-l2a/S2A_cloudy"),
        ("sentinel2_l2a", "sentinel-2-l2a/S2A_first"),
        ("sentinel2_l2a", "sentinel-2-l2a/S2A_shifted"),
        ("copernicus_dem_glo30", "cop-dem-glo-30/tile"),
    ]
    first = found[1]
    assert (first.time, first.cloud, first.epsg) == (datetime(2020, 6, 1, 10, tzinfo=UTC), 20.0, EPSG)
    assert found[-1].time is None


def test_search_leaves_out_what_is_too_cloudy(place: str) -> None:
    found = search(source_at(place), ask("sentinel2_l2a", max_cloud=50))
    assert [s.scene_id.split("_")[1] for s in found] == ["first", "shifted"]


def test_read_gives_the_files_own_pixels_on_the_samples_grid(place: str) -> None:
    source = source_at(place)
    scene = next(s for s in search(source, ask("sentinel2_l2a")) if s.scene_id.endswith("first"))
    chip = read_one(source, scene)
    rows = np.add.outer(np.arange(MARGIN, MARGIN + SIZE), np.arange(MARGIN, MARGIN + SIZE))
    expected = np.stack([rows + 1000 * (number + 1) + 1 for number in range(len(L2A))])
    assert chip.dtype == np.uint16
    np.testing.assert_array_equal(chip, expected)


def test_screen_looks_at_the_scene_classes_of_the_samples_own_ground(place: str) -> None:
    source = source_at(place)
    scene = next(s for s in search(source, ask("sentinel2_l2a")) if s.scene_id.endswith("first"))
    assert source.screen([(SAMPLE, scene), (SAMPLE, scene)]) == [0.5, 0.5]


def test_a_scene_is_found_again_by_its_id(place: str) -> None:
    searched, fresh = source_at(place), source_at(place)
    scene = search(searched, ask("copernicus_dem_glo30"))[0]
    np.testing.assert_array_equal(read_one(searched, scene), read_one(fresh, scene))
    assert "here" not in fresh.read(
        SAMPLE, {"here": Choice(modality=scene.modality, scenes=(replace(scene, scene_id="cop-dem-glo-30/none"),))}
    )


def test_what_was_asked_is_counted(place: str) -> None:
    source = source_at(place)
    scene = search(source, ask("copernicus_dem_glo30"))[0]
    read_one(source, scene)
    assert (source.usage.metadata_requests, source.usage.pixel_requests, source.usage.retries) == (1, 1, 0)
    assert source.usage.bytes >= SIZE * SIZE * 4


def test_a_table_of_polygons_is_refused(place: str) -> None:
    with pytest.raises(UserError) as caught:
        source_at(place).regions("RESOLVE/ECOREGIONS/2017")
    assert str(caught.value) == (
        "RESOLVE/ECOREGIONS/2017: a STAC catalogue has no tables of polygons; name a file of polygons in the recipe's "
        "sampler"
    )


# -- what the numbers mean ---------------------------------------------------------------------------------------------


def test_the_shift_of_later_baselines_is_taken_out_unless_the_provider_did(files: Path, tmp_path: Path) -> None:
    when, flag = "2022-06-01T10:00:00Z", "earthsearch:boa_offset_applied"
    wanted = {"old": ("03.01", None), "new": ("04.00", None), "newer": ("05.10", False), "done": ("05.10", True)}
    made = []
    for name, (baseline, applied) in wanted.items():
        about = {"s2:processing_baseline": baseline} | ({} if applied is None else {flag: applied})
        made.append(optical(files, name, when, **about))
    source = source_at(str(static_catalogue(made, tmp_path)))
    window = (datetime(2022, 1, 1, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC))
    found = search(source, replace(ask("sentinel2_l2a"), window=window))
    chips = {s.scene_id.split("/")[1]: read_one(source, s).astype(int) for s in found}
    assert {name: int((chip - chips["old"])[5].max()) for name, chip in chips.items()} == {
        "old": 0, "new": -1000, "newer": -1000, "done": 0,
    }  # fmt: skip
    # B1 holds 1061 to 1123 here, all above the shift; what is darker than 1000 becomes 0.
    assert chips["new"][0].min() == chips["old"][0].min() - 1000


def test_the_number_that_marks_no_data_is_not_a_measurement(tmp_path: Path) -> None:
    values = np.full((WIDTH, WIDTH), 500, "uint16")
    values[MARGIN + 3, MARGIN + 4] = 0
    paths = {EARTH_SEARCH[band]: write(tmp_path / f"{band}.tif", values) for band in L2A}
    made = item("sentinel-2-l2a", "one", "2020-06-01T10:00:00Z", paths, **{"s2:processing_baseline": "02.09"})
    source = source_at(str(static_catalogue([made], tmp_path / "cat")))
    chip = read_one(source, search(source, ask("sentinel2_l2a"))[0])
    missing = chip == MODALITIES["sentinel2_l2a"].nodata
    assert np.argwhere(missing[0]).tolist() == [[3, 4]]
    assert (chip[~missing] == 500).all()


def test_linear_power_becomes_decibels_and_absent_polarisations_are_missing(tmp_path: Path) -> None:
    power = np.full((WIDTH, WIDTH), 0.01, "float32")
    power[MARGIN, MARGIN] = -32768
    paths = {"vv": write(tmp_path / "vv.tif", power, nodata=-32768), "vh": write(tmp_path / "vh.tif", power * 0 + 10)}
    made = item("sentinel-1-rtc", "one", "2020-06-01T10:00:00Z", paths, **{"sar:instrument_mode": "IW"})
    source = source_at(str(static_catalogue([made], tmp_path / "cat")), "sentinel1_rtc")
    vv, vh, hh, _ = read_one(source, search(source, ask("sentinel1_rtc"))[0])
    assert vv[0, 0] == hh[5, 5] == -9999
    np.testing.assert_allclose(vv.ravel()[1:], -20, atol=1e-4)
    np.testing.assert_allclose(vh, 10, atol=1e-4)


def test_bands_of_one_file_are_told_apart_and_a_fourth_may_be_missing(tmp_path: Path) -> None:
    values = np.stack([np.full((WIDTH, WIDTH), value, "uint8") for value in (10, 20, 30)])
    made = item("naip", "one", "2020-06-01T10:00:00Z", {"image": write(tmp_path / "rgb.tif", values)})
    source = source_at(str(static_catalogue([made], tmp_path / "cat")), "naip")
    chip = read_one(source, search(source, ask("naip"))[0])
    assert [int(band.max()) for band in chip] == [10, 20, 30, 65535]


def test_a_scene_placed_by_control_points_lies_on_the_affine_through_them(tmp_path: Path) -> None:
    west, north, step = SAMPLE.x0 - 300, SAMPLE.y0 + 300, 10.0
    corners = [(0, 0), (0, WIDTH), (WIDTH, 0), (WIDTH, WIDTH)]
    points = [GroundControlPoint(row=r, col=c, x=west + step * c, y=north - step * r, z=0) for r, c in corners]
    plane = np.add.outer(np.arange(WIDTH), np.arange(WIDTH)).astype("uint16") + 1
    for name in ("vv", "vh"):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", width=WIDTH, height=WIDTH, count=1, dtype="uint16"
        ) as out:  # fmt: skip
            out.gcps = (points, CRS.from_epsg(EPSG))
            out.write(plane, 1)
    scene = as_json([item("x", "x", "2020-06-01T10:00:00Z", {"data": write(tmp_path / "d.tif", plane)})])[0]
    scene |= {"id": "grd", "collection": "sentinel-1-grd"}
    scene["properties"]["sar:instrument_mode"] = "IW"
    scene["assets"] = {name: {"href": str(tmp_path / f"{name}.tif")} for name in ("vv", "vh")}
    path = static_catalogue([pystac.Item.from_dict(scene)], tmp_path / "cat")
    source = source_at(str(path), "sentinel1_grd_dn")
    chip = read_one(source, search(source, ask("sentinel1_grd_dn"))[0])
    np.testing.assert_array_equal(chip[0], plane[MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE])


def test_a_composite_is_the_median_of_the_clear_observations(files: Path, tmp_path: Path) -> None:
    made = []
    for number, (value, code) in enumerate([(100, 4), (200, 4), (900, 4), (5000, 9)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths = {EARTH_SEARCH[b]: write(folder / f"{b}.tif", np.full((WIDTH, WIDTH), value, "uint16")) for b in L2A}
        paths["scl"] = write(folder / "scl.tif", np.full((WIDTH, WIDTH), code, "uint8"))
        made.append(
            item("sentinel-2-l2a", f"s{number}", f"2020-06-0{number + 1}T10:00:00Z", paths,
                 **{"s2:processing_baseline": "02.09"})
        )  # fmt: skip
    source = source_at(
        str(static_catalogue(made, tmp_path / "cat")), "sentinel2_l2a", "sentinel2_scl", "sentinel2_l2a_count"
    )
    scenes = tuple(search(source, ask("sentinel2_l2a")))
    counted = tuple(replace(scene, modality="sentinel2_l2a_count") for scene in scenes)
    chips = source.read(SAMPLE, {
        "median": Choice(modality="sentinel2_l2a", scenes=scenes, reduce="median"),
        "mean": Choice(modality="sentinel2_l2a", scenes=scenes, reduce="mean"),
        "count": Choice(modality="sentinel2_l2a_count", scenes=counted, reduce="count"),
    })  # fmt: skip
    assert {key: np.unique(chip).tolist() for key, chip in chips.items()} == {
        "median": [200],
        "mean": [400],
        "count": [3],
    }


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.fixture
def web(files: Path, items: list[pystac.Item], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    """A server with the items, their files at its own address; waiting between tries takes no time."""
    monkeypatch.setattr("mmbuild.sources.stac.time.sleep", lambda seconds: None)
    told = as_json(items)
    with serving(Web(folder=tmp_path, items=told)) as server:
        for path in files.glob("*.tif"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        for one in told:
            for asset in one["assets"].values():
                asset["href"] = f"{server.url}/{Path(asset['href']).name}"
        yield server


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_trouble_of_a_moment_is_asked_again(web: Web, status: int) -> None:
    source = source_at(web.url, "copernicus_dem_glo30")
    web.troubles, web.trouble_at = [status, status], "/search"
    scene = search(source, ask("copernicus_dem_glo30"))[0]
    web.troubles, web.trouble_at = [status, status], "/dem.tif"
    chip = read_one(source, scene)
    assert chip[0, 0, 0] == 2 * MARGIN
    assert source.usage.retries == 4


def test_a_file_in_a_bucket_is_asked_for_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_S3_ENDPOINT": web.url.removeprefix("http://"), "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_NO_SIGN_REQUEST": "YES",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (web.folder / "bucket").mkdir()
    (web.folder / "dem.tif").rename(web.folder / "bucket" / "dem.tif")
    for one in web.items:
        if one["collection"] == "cop-dem-glo-30":
            one["assets"]["data"]["href"] = "s3://bucket/dem.tif"
    source = source_at(web.url, "copernicus_dem_glo30")
    scene = search(source, ask("copernicus_dem_glo30"))[0]
    web.troubles, web.trouble_at = [503, 503, 503, 503], "/bucket/dem.tif"
    assert read_one(source, scene)[0, 0, 0] == 2 * MARGIN


def test_what_is_refused_for_good_is_asked_once(web: Web) -> None:
    source = source_at(web.url, "copernicus_dem_glo30")
    scene = search(source, ask("copernicus_dem_glo30"))[0]
    (web.folder / "dem.tif").unlink()
    with pytest.raises(SourceError, match=r"/dem.tif cannot be read: .*404") as caught:
        read_one(source, scene)
    assert not caught.value.transient
    assert source.usage.retries == 0


@pytest.mark.parametrize("status", [401, 403, 409])
def test_a_file_that_wants_credentials_says_which(web: Web, status: int) -> None:
    source = source_at(web.url, "copernicus_dem_glo30")
    scene = search(source, ask("copernicus_dem_glo30"))[0]
    web.troubles, web.trouble_at = [status] * 9, "/dem.tif"
    with pytest.raises(UserError, match=r"the file wants credentials: .*use a catalogue whose assets are open, or set"):
        read_one(source, scene)


def test_no_file_beside_an_asset_is_asked_for_and_no_size_alone(web: Web) -> None:
    source = source_at(web.url, "copernicus_dem_glo30")
    read_one(source, search(source, ask("copernicus_dem_glo30"))[0])
    asked = [text for text in web.asked if "search" not in text and not text.endswith(" /")]
    assert set(asked) == {"GET /dem.tif"}
    assert GDAL_OPTIONS["GDAL_HTTP_MAX_RETRY"] == "0"


def test_pages_are_followed_to_the_end(web: Web) -> None:
    web.page = 1
    assert len(search(source_at(web.url), ask("sentinel2_l2a"))) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such catalogue; name a catalog.json, a stac-geoparquet file or the address of a STAC API"),
        ("{", "is not JSON: "),
        ('{"some": "thing"}', "is no STAC catalogue: "),
    ],
)
def test_a_catalogue_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "catalog.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        open_catalogue(str(path))
    assert str(caught.value).startswith(f"{path}: {said}")


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is no stac-geoparquet file: "):
        open_catalogue(str(tmp_path / "items.parquet"))


def test_a_modality_that_no_catalogue_keeps_is_refused(items: list[pystac.Item], tmp_path: Path) -> None:
    source = source_at(str(static_catalogue(items, tmp_path)), "naip", "era5")
    with pytest.raises(UserError) as caught:
        search(source, ask("era5"))
    assert str(caught.value) == (
        "modalities.era5: era5 is not kept by source 'stac'; leave it out, take it from another source, or say in its "
        "modality file where a catalogue keeps it"
    )


def test_a_source_without_a_catalogue_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        open_source(SourceSpec(name="stac"), {}, {})
    assert str(caught.value) == (
        "source: needs to know the catalogue; add source.catalog: a path or URL, or source.url of a STAC API"
    )


def test_a_catalogue_that_was_moved_is_the_same_and_one_with_another_item_is_not(
    items: list[pystac.Item], tmp_path: Path
) -> None:
    here = open_catalogue(str(static_catalogue(items, tmp_path / "here"))).identity()
    there = open_catalogue(str(static_catalogue(items, tmp_path / "there"))).identity()
    fewer = open_catalogue(str(static_catalogue(items[:-1], tmp_path / "fewer"))).identity()
    assert here == there != fewer


# -- modality files and recipes ---------------------------------------------------------------------------------------

MAPPED = sorted(name for name, modality in KNOWN.items() if "stac" in modality.sources)


@pytest.mark.parametrize("name", MAPPED)
def test_every_mapping_of_a_modality_file_is_whole(name: str) -> None:
    for entry in block_of(KNOWN[name]).root.values():
        assert set(entry.bands) <= set(KNOWN[name].band_names)
        places = [(entry.band(band).asset, entry.band(band).band) for band in KNOWN[name].band_names]
        assert len(set(places)) == len(places), "two bands of one place"


def test_the_real_items_of_the_planetary_computer_are_recognised(shared: Path) -> None:
    folder = shared / "realdata" / "stac"
    for file, name in {
        "pc_sentinel-2-l2a_items.json": "sentinel2_l2a", "pc_cop-dem-glo-30_items.json": "copernicus_dem_glo30",
        "pc_naip_items.json": "naip", "pc_sentinel-1-rtc_items.json": "sentinel1_rtc",
    }.items():  # fmt: skip
        found = json.loads((folder / file).read_text())
        for one in found if isinstance(found, list) else found["features"]:
            entry = block_of(KNOWN[name]).entry(one, KNOWN[name])
            assert entry is not None, f"{file}: {one['id']} is no {name}"
            if name == "sentinel2_l2a":
                assert entry.shift(one) == -1000, one["properties"]["s2:processing_baseline"]
    hundred = open_catalogue(str(folder / "pc_s2l2a_100_items.parquet"))
    modality = KNOWN["sentinel2_l2a"]
    listed = hundred.search(["sentinel-2-l2a"], (-180.0, -90.0, 180.0, 90.0), None)
    assert len(listed) == 100
    assert all(block_of(modality).entry(one, modality) is not None for one in listed)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "sources.stac: Value error, name at least one kind of catalogue with its collection"),
        ({"some": {"bands": {}}}, "sources.stac.some.collection: Field required"),
        ({"some": {"collection": "c", "asset": 1}}, "sources.stac.some.asset: Extra inputs are not permitted"),
        ({"some": {"collection": "c", "bands": {"B13": "x"}}}, "sources.stac.some.bands: 'B13' is no band of it"),
    ],
)
def test_a_wrong_mapping_is_refused_with_its_key(block: dict[str, Any], said: str) -> None:
    modality = MODALITIES["sentinel2_l2a"].model_copy(update={"sources": {"stac": block}})
    with pytest.raises(UserError) as caught:
        block_of(modality)
    assert str(caught.value).startswith(f"modality sentinel2_l2a: {said}")


def test_a_product_that_no_item_holds_is_refused() -> None:
    modality = MODALITIES["era5"].model_copy(update={"sources": {"stac": {"some": {"collection": "c"}}}})
    with pytest.raises(UserError, match="a image product of time months is not read from items; remove the block"):
        block_of(modality)


def test_hrefs_open_by_their_own_doors() -> None:
    assert path_of("https://host/a.tif") == "/vsicurl/https://host/a.tif"
    assert path_of("s3://bucket/a.tif") == "/vsis3/bucket/a.tif"
    assert path_of("file:///a.tif") == "/a.tif"
    assert path_of("/a.tif") == "/a.tif"


def test_a_recipe_names_its_catalogue_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    text = """
name: mine
title: one
licence: CC-BY-4.0
samples: 1
sampler: {kind: points, file: places.csv}
grid: {kind: utm, size: 32}
anchor: {modality: sentinel2_l2a, years: [2020]}
modalities: {sentinel2_l2a: }
source: {name: stac, catalog: catalog.json}
"""
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "places.csv").write_text("lon,lat\n3,36\n")
    with pytest.raises(UserError, match=r"source.catalog: 'catalog.json' -> there is no such file; check the path"):
        load_recipe(tmp_path / "mine.yaml")
    (tmp_path / "catalog.json").write_text("{}")
    assert load_recipe(tmp_path / "mine.yaml").source.catalog == "catalog.json"
    assert load_recipe(tmp_path / "mine.yaml", ["source.catalog=https://host/v1"]).source.name == "stac"


def test_limits_tell_clear_ground_as_classes_do() -> None:
    judge = MODALITIES["sentinel2_scl"]
    chip = np.array([[[0, 4, 9]]], np.uint8)
    assert Clear(modality="x", codes=(4,)).is_clear(chip, judge).tolist() == [[False, True, False]]
    assert Clear(modality="x", at_most=4).is_clear(chip, judge).tolist() == [[False, True, False]]
    assert Clear(modality="x", at_least=5).is_clear(chip, judge).tolist() == [[False, False, True]]


def test_an_entry_knows_its_items_by_collection_filters_and_assets() -> None:
    entry = Entry(collection="c", where={"k": 1.0}, bands={})
    modality = MODALITIES["esa_worldcover"]
    fits = {"collection": "c", "properties": {"k": 1.0}, "assets": {"Map": {}}}
    assert entry.fits(fits, modality)
    for key, value in (("collection", "d"), ("properties", {"k": 2.0}), ("assets", {"other": {}})):
        assert not entry.fits(fits | {key: value}, modality)
