"""Stored chips are what independent arithmetic makes of native pixels; tests/acceptance/ looks at more of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from pyproj import Transformer

from mmbuild.build import build_corpus
from mmbuild.recipe import load_recipe
from mmbuild.registry import load_modality
from mmbuild.sandbox.earth import Earth
from mmbuild.sources import SourceSpec
from mmbuild.sources.earthengine.session import connect
from tests import real_places
from tests.earth_checks import (
    ONE_IMAGE,
    TruthCorpus,
    check_climate,
    check_close,
    check_exact,
    check_in_place,
    check_mode,
    write_recipe,
)
from tests.truth import (
    Filled,
    as_stored,
    bilinear,
    by_gdal,
    centres,
    differing,
    file_lattice,
    nearest,
    record_rows,
    stored_chip,
)

# -- the oracle itself ----------------------------------------------------------------------------------------------

# A chip beside 12 E, in zone 33, and rasters around it in zone 32 and in degrees.
CHIP: dict[str, Any] = {"epsg": 32633, "x0": 271_980.0, "y0": 5_210_100.0, "gsd": 10.0, "height": 32, "width": 24}
CENTRE = Transformer.from_crs(32633, 4326, always_xy=True).transform(272_100.0, 5_209_940.0)


def write_raster(path: Path, values: np.ndarray, epsg: int, width: float, height: float) -> Path:
    """A GeoTIFF whose middle is near the chip's, its corner on no lattice in particular."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(*CENTRE)
    rows, columns = values.shape
    place = Affine(width, 0, x - (columns / 2 + 0.3) * width, 0, -height, y + (rows / 2 - 0.2) * height)
    with rasterio.open(
        path, "w", driver="GTiff", width=columns, height=rows, count=1, dtype=values.dtype, crs=epsg, transform=place
    ) as file:
        file.write(values, 1)
    return path


def test_bilinear_gives_a_plane_back(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:80, 0:80] + 0.5
    path = write_raster(tmp_path / "plane.tif", 3.0 * rows - 2.0 * columns, 32632, 11.0, 13.0)
    with rasterio.open(path) as file:
        to_pixel = ~file.transform
    x, y = Transformer.from_crs(32633, 32632, always_xy=True).transform(*centres(CHIP))
    column, row = to_pixel @ (x, y)
    found = bilinear(file_lattice(path), CHIP["epsg"], *centres(CHIP))
    np.testing.assert_allclose(found.values, 3.0 * row - 2.0 * column, atol=1e-6)
    assert (found.share > 1 - 1e-12).all()


@pytest.mark.parametrize(
    ("epsg", "width", "height"), [(32632, 11.0, 13.0), (4326, 1.3e-4, 0.9e-4), (32633, 20.0, 20.0)]
)
def test_the_oracle_agrees_with_gdal(tmp_path: Path, epsg: int, width: float, height: float) -> None:
    noise = np.random.default_rng(1).uniform(0, 1000, (90, 90))
    path = write_raster(tmp_path / "noise.tif", noise, epsg, width, height)
    for rule, own in (("bilinear", bilinear), ("nearest", nearest)):
        found: Filled = own(file_lattice(path), CHIP["epsg"], *centres(CHIP))
        gdal, valid = by_gdal(path, 1, CHIP, rule=rule)
        assert valid.all()
        np.testing.assert_allclose(found.values, gdal, atol=1e-3)


def test_nearest_is_unsure_beside_an_edge_only(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "noise.tif", np.zeros((90, 90), np.uint8), 4326, 1.3e-4, 0.9e-4)
    found = nearest(file_lattice(path), CHIP["epsg"], *centres(CHIP), edge_px=0.01)
    assert 0.0 < found.unsure.mean() < 0.08


def test_a_pixel_that_is_not_fully_valid_is_nodata() -> None:
    share = np.array([1.0, 0.9995, 0.99, 0.0])
    filled = Filled(values=np.array([2.5, 3.49, 4.0, 0.0]), share=share, unsure=np.zeros(4, bool))
    assert as_stored(filled, np.dtype("uint16"), 65535).tolist() == [3, 3, 65535, 65535]


# -- files with holes, in three coordinate systems ----------------------------------------------------------------

MODALITY: dict[str, Any] = {
    "title": "Handmade", "description": "Random numbers with holes.", "level": "pixel", "gsd": 10, "licence": "CC0-1.0",
    "attribution": "nobody", "providers": [{"name": "nobody", "roles": ["producer"]}],
}  # fmt: skip
HOLES: dict[str, dict[str, Any]] = {
    "holes_scene": {
        "values": "continuous", "dtype": "uint16", "nodata": 65535, "resampling": "bilinear", "time": "scene",
        "bands": [{"name": "B", "valid_range": [0, 65534]}],
        "sources": {"earthengine": {"collection": "projects/archive/scene"}},
    },
    "holes_float": {
        "values": "continuous", "dtype": "float32", "nodata": -9999, "resampling": "bilinear", "time": "static",
        "bands": [{"name": "B", "valid_range": [0, 1000]}],
        "sources": {"earthengine": {"collection": "projects/archive/float", "composite": "mosaic"}},
    },
    "holes_classes": {
        "values": "categorical", "dtype": "uint8", "nodata": 255, "resampling": "nearest", "time": "static",
        "bands": [{"name": "B", "valid_range": [1, 9]}],
        "classes": [{"code": code, "name": f"class {code}"} for code in range(1, 10)],
        "sources": {"earthengine": {"collection": "projects/archive/classes", "composite": "first"}},
    },
}  # fmt: skip
RECIPE = {
    "name": "holes", "title": "Files with holes", "licence": "CC0-1.0", "source": "sandbox",
    "sampler": {"kind": "points", "file": "places.csv", "date_column": "date"},
    "grid": {"kind": "utm", "gsd": 10, "size": 64}, "store": {"samples_per_shard": 8},
    "anchor": {"modality": "holes_scene", "years": [2020], "pick": "nearest", "max_days": 1},
    "modalities": dict.fromkeys(HOLES), "splits": {"val": 0, "test": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def with_holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three rasters with missing pixels, in degrees, zone 32 and zone 33, on a chip in zone 33."""
    folder = tmp_path_factory.mktemp("holes")
    draw = np.random.default_rng(2)
    hole = draw.random((120, 120)) < 0.1
    hole[40:60, 50:75] = True
    number = np.where(hole, 0, draw.integers(1, 5000, hole.shape)).astype(np.uint16)
    write_raster(folder / "scene.tif", number, 4326, 1.3e-4, 0.9e-4)
    write_raster(folder / "float.tif", np.where(hole, np.nan, draw.uniform(0, 1000, hole.shape)), 32633, 9.5, 12.0)
    write_raster(folder / "classes.tif", np.where(hole, 0, number % 9 + 1).astype(np.uint8), 32632, 11.0, 13.0)
    about = {"licence": "CC0-1.0", "attribution": "nobody"}
    more = {
        "scene": {"nodata": 0, "time": "2020-06-15T10:00:00Z"},
        "float": {"dtype": "float32"},
        "classes": {"nodata": 0},
    }
    archive = {
        f"projects/archive/{name}": {
            **about,
            "images": [{"files": f"{name}.tif", "index": name, "bands": ["B"], **keys}],
        }
        for name, keys in more.items()
    }
    (folder / "archive.yaml").write_text(yaml.safe_dump({"name": "holes", "datasets": archive}))
    (folder / "modalities").mkdir()
    for name, own in HOLES.items():
        (folder / "modalities" / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **MODALITY, **own}))
    (folder / "places.csv").write_text(f"lon,lat,date\n{CENTRE[0]},{CENTRE[1]},2020-06-15\n")
    (folder / "holes.yaml").write_text(yaml.safe_dump(RECIPE))
    spec = SourceSpec(name="sandbox", archive=str(folder / "archive.yaml"), archive_root=str(folder))
    build_corpus(folder / "holes.yaml", folder / "out", source=spec)
    return folder


@pytest.mark.parametrize(("name", "nodata"), [("scene", 0.0), ("float", None), ("classes", 0.0)])
def test_holes_are_nodata_and_all_else_is_exact(with_holes: Path, name: str, nodata: float | None) -> None:
    (row,) = [row for row in record_rows(with_holes / "out") if row["modality"] == f"holes_{name}"]
    assert row["epsg"] == 32633
    modality = load_modality(with_holes / "modalities" / f"holes_{name}.yaml")
    (stored,), lattice = stored_chip(with_holes / "out", row), file_lattice(with_holes / f"{name}.tif", nodata=nodata)
    own = {"nearest": nearest, "bilinear": bilinear}[modality.resampling]
    truth = own(lattice, row["epsg"], *centres(row))
    assert 0.1 < (stored == modality.nodata).mean() < 0.7
    assert row["valid_fraction"] == pytest.approx((stored != modality.nodata).mean())
    exact = as_stored(truth, stored.dtype, modality.nodata)
    assert differing(stored, exact, ~truth.unsure) == 0


# -- the synthetic Earth ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> TruthCorpus:
    """Two small chips: one in the south, one across the antimeridian."""
    folder, earth = tmp_path_factory.mktemp("truth"), Earth()
    recipe = write_recipe(folder, earth, ["south", "across_the_antimeridian"], size=24)
    build_corpus(recipe, folder / "out")
    connect(SourceSpec(name="sandbox"))
    return TruthCorpus(out=folder / "out", earth=earth)


def stored(corpus: TruthCorpus, place: str, *names: str) -> list[tuple[str, str]]:
    return [(place, name) for name in names if corpus.rows[place, name]["status"] == "stored"]


@pytest.mark.parametrize("place", ["south", "across_the_antimeridian"])
def test_synthetic_chips_are_native_pixels_resampled_exactly(synthetic: TruthCorpus, place: str) -> None:
    chips = stored(synthetic, place, *ONE_IMAGE)
    assert len(chips) >= 8
    for chip in chips:
        check_exact(synthetic, chip)


def test_synthetic_chips_are_near_their_fields_and_in_place(synthetic: TruthCorpus) -> None:
    chips = stored(
        synthetic, "south", "sentinel2_l2a", "sentinel1_asc", "sentinel1_desc", "copernicus_dem", "aster_gdem"
    )
    assert len(chips) >= 4
    for chip in chips:
        check_close(synthetic, chip)
    assert sum(check_in_place(synthetic, chip) for chip in chips) >= 10


def test_synthetic_composites_and_climate_are_those_of_their_images(synthetic: TruthCorpus) -> None:
    check_mode(synthetic, ("south", "dynamic_world"))
    check_climate(synthetic, ("south", "era5"))


# -- real files ---------------------------------------------------------------------------------------------------


def test_real_chips_equal_their_files(shared: Path, tmp_path: Path) -> None:
    """recipes/real_mini.yaml with small chips."""
    spec = SourceSpec(name="sandbox", archive=str(real_places.ARCHIVE), archive_root=str(shared / "realdata"))
    built = build_corpus(load_recipe(real_places.RECIPE, ["grid.size=24"]), tmp_path / "out", source=spec)
    corpus = real_places.RealCorpus(out=tmp_path / "out", realdata=shared / "realdata")
    assert {chip for chip, row in corpus.rows().items() if row["status"] == "stored"} == set(real_places.EXPECTED)
    for chip in real_places.EXPECTED:
        assert real_places.compare(corpus, chip, float(built.modalities[chip[1]].nodata)) > 0
