"""GeoTIFFs behind the protocol: what a window holds (rasterio reads it independently), and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ee
import numpy as np
import pytest
import rasterio
import yaml
from pyproj import Transformer
from rasterio.warp import Resampling, reproject

from mmbuild.sandbox import offline_transport
from mmbuild.sandbox.archive import open_archive
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.values import EarthEngineError
from tests.sandbox_worlds import connected, disconnect, grid, initialize, pixels

ARCHIVE = Path(__file__).parents[1] / "recipes" / "archives" / "realdata.yaml"
LEFT, TOP = 500000.0, 4000020.0


def write_tiff(path: Path, data: np.ndarray, *, nodata: float | None = None, gsd: float = 10.0) -> None:
    """A (band, y, x) array in UTM 33N with its outer corner at LEFT, TOP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = rasterio.Affine(gsd, 0, LEFT, 0, -gsd, TOP)
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2]}
    with rasterio.open(
        path, "w", **profile, dtype=data.dtype, crs="EPSG:32633", transform=transform, nodata=nodata
    ) as file:
        file.write(data)


def write_archive(folder: Path, **images: Any) -> Path:
    """An archive of one collection with one `images` entry."""
    entry = {"licence": "CC0", "attribution": "nobody", "images": [images]}
    path = folder / "archive.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "datasets": {"A/B": entry}}))
    return path


@pytest.fixture
def ramp(tmp_path: Path) -> np.ndarray:
    """Two bands of int16, 20 x 30, in places/one/both.tif."""
    data = np.stack([np.arange(600).reshape(20, 30), -np.arange(600).reshape(20, 30)]).astype(np.int16)
    write_tiff(tmp_path / "places" / "one" / "both.tif", data)
    return data


def window(path: Path, band: str, *where: int, index: str = "one") -> tuple[np.ndarray, np.ndarray]:
    dataset = open_archive(path).dataset("A/B")
    return dataset.window(dataset.image(index), band, *where)


def test_a_window_holds_what_rasterio_reads_and_nothing_beyond_the_file(tmp_path: Path, ramp: np.ndarray) -> None:
    path = write_archive(tmp_path, files="places/{place}/both.tif", bands=["x", "y"])
    values, mask = window(path, "y", 3, 4, 5, 6)
    with rasterio.open(tmp_path / "places" / "one" / "both.tif") as file:
        np.testing.assert_array_equal(values, file.read(2)[3:8, 4:10])
    assert mask.all()
    values, mask = window(path, "x", -2, 28, 4, 5)
    np.testing.assert_array_equal(mask, np.pad(np.ones((2, 2), bool), ((2, 0), (0, 3))))
    np.testing.assert_array_equal(values[2:, :2], ramp[0, :2, 28:])


def test_values_become_the_products(tmp_path: Path, ramp: np.ndarray) -> None:
    path = write_archive(tmp_path, files="places/{place}/both.tif", bands=["x"], dtype="float32", multiply=0.5, add=-3)
    values, _ = window(path, "x", 0, 0, 1, 3)
    np.testing.assert_array_equal(values, [[-3, -2.5, -2]])
    path = write_archive(
        tmp_path,
        files="places/{place}/both.tif",
        bands=["x"],
        dtype="uint8",
        remap={0: 9, 1: 8, 2: 7},
        each={"one": {"add": 1}},
    )
    np.testing.assert_array_equal(window(path, "x", 0, 0, 1, 3)[0], [[10, 9, 8]])
    with pytest.raises(EarthEngineError, match=r"both.tif: value 3 is not in 'remap'"):
        window(path, "x", 0, 0, 1, 4)


def test_values_that_do_not_fit_are_an_error_not_a_wrap(tmp_path: Path, ramp: np.ndarray) -> None:
    path = write_archive(tmp_path, files="places/{place}/both.tif", bands={"y": 2}, dtype="uint16")
    with pytest.raises(EarthEngineError, match=r"values -29 to 0 do not fit the archive's dtype uint16"):
        window(path, "y", 0, 0, 1, 30)


@pytest.mark.parametrize(("declared", "key"), [(7.0, None), (None, 7), (None, None)])
def test_nodata_and_nan_are_masked(tmp_path: Path, declared: float | None, key: int | None) -> None:
    data = np.array([[[7.0, np.nan, 1.0]]], dtype=np.float32)
    write_tiff(tmp_path / "places" / "one" / "f.tif", data, nodata=declared)
    options = {} if key is None else {"nodata": key}
    path = write_archive(tmp_path, files="places/{place}/f.tif", bands=["f"], **options)
    expected = [[declared is None and key is None, False, True]]
    np.testing.assert_array_equal(window(path, "f", 0, 0, 1, 3)[1], expected)


def test_one_file_per_band_and_words_of_the_path(tmp_path: Path) -> None:
    for name, value in (("B1", 1), ("B2", 2)):
        write_tiff(tmp_path / "p" / "20200604T054639_x" / f"{name}.tif", np.full((1, 2, 2), value, np.uint8))
    path = write_archive(
        tmp_path, files="p/{start}_{rest}/{band}.tif", bands=["B2", "B1"], time="{start}", properties={"k": [1, "a"]}
    )
    (image,) = open_archive(path).dataset("A/B").images()
    assert (image.id, image.start_ms) == ("A/B/20200604T054639_x", 1591249599000)
    assert [b.id for b in image.bands] == ["B2", "B1"]
    assert image.properties == {"k": [1, "a"]}
    assert window(path, "B2", 0, 0, 1, 1, index="20200604T054639_x")[0] == 2


def test_the_version_follows_text_and_files(tmp_path: Path, ramp: np.ndarray) -> None:
    path = write_archive(tmp_path, files="places/{place}/both.tif", bands=["x"])
    first = open_archive(path)
    assert first.version == open_archive(path).version
    assert first.synthetic is False
    path.write_text(path.read_text() + "# more\n")
    assert open_archive(path).version != first.version


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"files": "none/{x}.tif"}, FileNotFoundError, r"images\[0\].files: no file under .* matches 'none/\{x\}.tif'"),
        ({"files": "places/{place}/{band}.tif"}, FileNotFoundError, r"images\[0\].bands: .*x.tif does not exist"),
        ({"bands": ["a", "b", "c"]}, ValueError, r"has 2 bands, band 3 is asked for"),
        ({"bend": 1}, ValueError, r"datasets.A/B.images\[0\]: unknown key 'bend'; known are add, bands"),
        ({"dtype": "uint17"}, ValueError, r"images\[0\].dtype: 'uint17' is not a numpy type"),
        ({"add": "much"}, ValueError, r"images\[0\].add: must be a number, is 'much'"),
        ({"time": "noon"}, ValueError, r"images\[0\].time: 'noon' is not a date and time"),
        ({"time": "{start}"}, ValueError, r"names a word that the file pattern does not have: 'start'"),
        ({"pyramiding": "MAX"}, ValueError, r"'MAX' is none of MEAN, SAMPLE, MODE"),
        ({"each": {"two": {}}}, ValueError, r"each: no image is called 'two'; found are one"),
        ({"each": {"one": {"bands": []}}}, ValueError, r"each.one: unknown key 'bands'"),
    ],
)
def test_a_wrong_archive_names_the_key(
    tmp_path: Path, ramp: np.ndarray, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = write_archive(tmp_path, **{"files": "places/{place}/both.tif", "bands": ["x", "y"]} | change)
    with pytest.raises(error, match=message):
        open_archive(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the archive: must be a mapping"),
        ("datasets: {}", "datasets: is empty"),
        ("a: [1", "not valid YAML"),
        ("datasets: {A: {licence: x, images: []}}", "datasets.A.attribution: is missing"),
        ("dataset: {}", "the archive: unknown key 'dataset'; known are datasets, name"),
    ],
)
def test_a_file_that_is_no_archive_says_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_archive(tmp_path / "a.yaml")


def test_two_images_of_one_index_are_refused(tmp_path: Path, ramp: np.ndarray) -> None:
    write_tiff(tmp_path / "places" / "two" / "both.tif", ramp)
    path = write_archive(tmp_path, files="places/{place}/both.tif", bands=["x", "y"], index="same")
    with pytest.raises(ValueError, match=r"images\[0\].index: two images are called 'same'"):
        open_archive(path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"archive root .*nowhere is not a folder"):
        open_archive(ARCHIVE, tmp_path / "nowhere")


# -- the real files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def realdata(shared: Path) -> Iterator[Path]:
    """The client over the archive of real files; the folder they are in."""
    root = shared / "realdata"
    transport = offline_transport(archive=str(ARCHIVE), archive_root=str(root))
    initialize("http://sandbox.invalid", http_transport=transport)
    yield root
    disconnect()


def test_with_an_archive_only_the_archive_is_served(realdata: Path) -> None:
    with pytest.raises(ee.EEException, match="'USGS/SRTMGL1_003' not found"):
        ee.Image("USGS/SRTMGL1_003").getInfo()


@pytest.mark.parametrize(
    ("collection", "file", "bands", "offset"),
    [
        ("COPERNICUS/S2_SR_HARMONIZED", "S2L2A.tif", 12, 0),
        ("COPERNICUS/S2_HARMONIZED", "S2L1C.tif", 13, -1000),
        ("projects/archive/terramesh/S1RTC", "S1RTC.tif", 2, 0),
        ("projects/archive/terramesh/DEM", "DEM.tif", 1, 0),
        ("projects/archive/terramesh/LULC", "LULC.tif", 1, 0),
    ],
)
def test_on_the_files_lattice_the_protocol_gives_the_files_numbers(
    realdata: Path, collection: str, file: str, bands: int, offset: int
) -> None:
    with rasterio.open(realdata / "colocated" / "terramesh" / "282D_485L_3_3" / file) as source:
        raw, transform = source.read(), source.transform
    image = ee.Image(f"{collection}/282D_485L_3_3").toDouble()
    answer = pixels(image, grid(transform.c, transform.f, size=224, crs="EPSG:32722"))
    assert len(answer.dtype.names) == bands
    for number, name in enumerate(answer.dtype.names):
        np.testing.assert_array_equal(answer[name], raw[number].astype(np.float32).astype(float) + offset)


def test_other_utm_grids_get_gdals_nearest_pixels(realdata: Path) -> None:
    """WorldCover on São Tomé in UTM 32N: equal but where a centre is within 0.01 px of a pixel edge."""
    to_utm = Transformer.from_crs(4326, 32632, always_xy=True).transform
    left, top = (round(v / 10) * 10.0 for v in to_utm(6.6, 0.25))
    image = ee.ImageCollection("ESA/WorldCover/v100").filterBounds(ee.Geometry.Point([6.6, 0.25])).first()
    answer = pixels(image, grid(left, top, size=256, crs="EPSG:32632"))["Map"]
    target = np.zeros((256, 256), np.uint8)
    file = realdata / "colocated" / "sao_tome" / "ESA_WorldCover_10m_2020_v100_N00E006_Map.tif"
    with rasterio.open(file) as source:
        reproject(
            rasterio.band(source, 1), target, dst_transform=rasterio.Affine(10, 0, left, 0, -10, top),
            dst_crs="EPSG:32632", resampling=Resampling.nearest, tolerance=0.0,
        )  # fmt: skip
        x, y = np.meshgrid(left + 10 * (np.arange(256) + 0.5), top - 10 * (np.arange(256) + 0.5))
        lon, lat = Transformer.from_crs(32632, 4326, always_xy=True).transform(x, y)
        column, row = (lon - source.transform.c) / source.transform.a, (lat - source.transform.f) / source.transform.e
    near_edge = np.minimum(abs(column - np.rint(column)), abs(row - np.rint(row))) <= 0.01
    assert near_edge.mean() < 0.05
    np.testing.assert_array_equal(answer[~near_edge], target[~near_edge])


def test_bilinear_elevation_is_within_a_tenth_of_a_metre_of_gdal(realdata: Path) -> None:
    to_utm = Transformer.from_crs(4326, 32632, always_xy=True).transform
    left, top = (round(v / 10) * 10.0 for v in to_utm(6.6, 0.25))
    tiles = ee.ImageCollection("COPERNICUS/DEM/GLO30").filterBounds(ee.Geometry.Point([6.6, 0.25]))
    image = tiles.mosaic().setDefaultProjection(tiles.first().projection()).resample("bilinear").toFloat()
    answer = pixels(image, grid(left, top, size=128, crs="EPSG:32632"))["DEM"]
    target = np.zeros((128, 128), np.float32)
    with rasterio.open(realdata / "colocated" / "sao_tome" / "Copernicus_DSM_COG_10_N00_00_E006_00_DEM.tif") as source:
        reproject(
            rasterio.band(source, 1), target, dst_transform=rasterio.Affine(10, 0, left, 0, -10, top),
            dst_crs="EPSG:32632", resampling=Resampling.bilinear, tolerance=0.0,
        )  # fmt: skip
    assert answer.std() > 10
    assert np.abs(answer - target).max() < 0.1


def test_radar_passes_follow_local_solar_time(realdata: Path) -> None:
    """Sentinel-1 descends at about 6 h and ascends at about 18 h local solar time."""
    for name in ("COPERNICUS/S1_GRD", "projects/archive/terramesh/S1RTC"):
        for feature in ee.ImageCollection(name).getInfo()["features"]:
            lon = np.mean([x for x, _ in feature["properties"]["system:footprint"]["coordinates"][0]])
            hour = (feature["properties"]["system:time_start"] / 3_600_000 + lon / 15) % 24
            expected = {6: "DESCENDING", 18: "ASCENDING"}[min((6, 18), key=lambda h: abs(h - hour))]
            assert feature["properties"]["orbitProperties_pass"] == expected
            assert min(abs(hour - 6), abs(hour - 18)) < 1


def test_each_real_band_carries_its_native_pixel_size(realdata: Path) -> None:
    info = ee.Image("COPERNICUS/S2_HARMONIZED/20200604T054639_20200604T054831_T43RCP").getInfo()
    sizes = {band["id"]: band["dimensions"][0] for band in info["bands"]}
    assert (sizes["B2"], sizes["B5"], sizes["B1"]) == (264, 132, 44)


def test_licences_and_attributions_travel_with_the_collection(realdata: Path) -> None:
    found = ee.ImageCollection("projects/archive/terramesh/S1RTC").limit(1).getInfo()["properties"]
    assert found["licence"] == "CC-BY-SA-4.0"
    assert "TerraMesh" in found["attribution"]
    assert found["synthetic"] is False


def test_a_sandbox_over_an_archive_says_it_is_not_synthetic(tmp_path: Path, ramp: np.ndarray) -> None:
    world = open_archive(write_archive(tmp_path, files="places/{place}/both.tif", bands=["x", "y"]))
    status, _, body = Sandbox(world).handle("GET", "/world", "", {}, b"")
    assert (status, yaml.safe_load(body)) == (200, {"world": world.version, "synthetic": False})
    with connected(world):
        assert ee.Image("A/B/one").bandNames().getInfo() == ["x", "y"]
