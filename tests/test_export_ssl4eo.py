"""The SSL4EO-S12 exports as their readers open them (xarray for v1.1, rasterio for v1.0), and the way back.

Band names, offsets and folders are those of the published descriptions, written down here a second time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import torch
import xarray as xr
import zarr

import mmbuild as mm
from mmbuild.cube import Corpus
from mmbuild.direct import PublishedLoader
from mmbuild.errors import UserError
from mmbuild.export import Options, export_corpus
from mmbuild.importers import import_corpus
from mmbuild.stream.loader import Loader
from tests.packed import Packed, pack_random
from tests.test_export import contents, killed_after_three_units

SIZE, SAMPLES = 24, 10
SSL4EO = ("sentinel1", "sentinel2_l1c", "sentinel2_l2a", "sentinel2_scl")
SEASONS = {"times": {
    "kind": "seasons", "dates": ["2020-12-21", "2021-03-20", "2021-06-21", "2021-09-22"], "max_days": 15.0,
}}  # fmt: skip
FOLDERS = {"S1GRD": "sentinel1", "S2L1C": "sentinel2_l1c", "S2L2A": "sentinel2_l2a"}
BANDS = {
    "S1GRD": ["vv", "vh"],
    "S2L1C": ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"],
    "S2L2A": ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"],
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("seasons") / "corpus"
    return pack_random(folder, SSL4EO, samples=SAMPLES, size=SIZE, times=4, more=SEASONS, absent=0.1)


@pytest.fixture(scope="module")
def zips(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v11") / "ssl4eo"
    export_corpus(packed.corpus, folder, format="ssl4eo", options=Options(samples_per_file=4))
    return folder


@pytest.fixture(scope="module")
def tree(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v10") / "ssl4eo"
    export_corpus(packed.corpus, folder, format="ssl4eo", options=Options(version="v1.0"))
    return folder


def opened(path: Path) -> xr.Dataset:
    return xr.open_zarr(zarr.storage.ZipStore(path, mode="r", read_only=True))


def read_zips(folder: Path, array: str) -> dict[str, xr.Dataset]:
    """Every location of one array by its id, as xarray opens the files that the split lists name."""
    found = {}
    for listing in sorted((folder / "splits").glob("ssl4eos12_*.txt")):
        split = listing.stem.removeprefix("ssl4eos12_")
        for file in listing.read_text().split():
            data = opened(folder / split / array / file)
            found |= {str(name): data.isel(sample=i) for i, name in enumerate(data["sample"].values)}
    return found


def test_v11_files_hold_the_published_variables(zips: Path) -> None:
    path = min((zips / "train/S2L1C").glob("*.zarr.zip"))
    assert path.name == "ssl4eos12_train_seasonal_data_000001.zarr.zip"
    data = opened(path)
    assert data["bands"].dims == ("sample", "time", "band", "y", "x")
    assert data["bands"].dtype == np.int16
    assert data["band"].values.tolist() == BANDS["S2L1C"]
    assert data["cloud_mask"].dims == ("sample", "time", "y", "x")
    assert data["cloud_mask"].dtype == np.uint8
    for name in ("center_lat", "center_lon", "crs"):
        assert data[name].dims == ("sample",)
    assert data["time_"].dtype.kind == "M"
    assert data["x_"].dims == ("sample", "x")
    assert data["y_"].dims == ("sample", "y")
    assert all(len(name) == 7 for name in data["sample"].values.tolist())
    assert data["sample_id"].values[0].tolist() == [f"{data['sample'].values[0]}_{i}" for i in range(4)]
    assert opened(zips / "train/S1GRD" / path.name)["bands"].dtype == np.float16
    names = {folder: sorted(p.name for p in (zips / "train" / folder).glob("*")) for folder in FOLDERS}
    assert names["S1GRD"] == names["S2L1C"] == names["S2L2A"]  # the same locations under the same name


@pytest.mark.parametrize("array", list(FOLDERS))
def test_v11_values_are_those_of_the_cube_after_the_stated_recoding(packed: Packed, zips: Path, array: str) -> None:
    read = read_zips(zips, array)
    assert sorted(read) == [f"{slot:07d}" for slot in range(SAMPLES)]
    for slot in range(SAMPLES):
        chips = packed.truth[FOLDERS[array]][slot]
        if array == "S1GRD":
            with np.errstate(over="ignore"):
                expected = np.where(chips == -9999, np.nan, chips).astype(np.float16)
        else:
            expected = np.where(chips == 65535, 0, chips.astype(np.int64) + 1000).astype(np.int16)
        np.testing.assert_array_equal(read[f"{slot:07d}"]["bands"].values, expected, strict=True)


def test_v11_says_where_and_when_every_location_was_seen(packed: Packed, zips: Path) -> None:
    read = read_zips(zips, "S2L2A")
    for slot, sample in enumerate(packed.samples):
        data = read[f"{slot:07d}"]
        assert int(data["crs"]) == sample.epsg
        assert (float(data["center_lat"]), float(data["center_lon"])) == (sample.lat, sample.lon)
        assert sample.x0 is not None
        assert sample.y0 is not None
        np.testing.assert_allclose(data["x_"].values, sample.x0 + 5 + 10 * np.arange(SIZE))
        np.testing.assert_allclose(data["y_"].values, sample.y0 - 5 - 10 * np.arange(SIZE))
        for step in range(4):
            seen = sample.seen.get(("sentinel2_l2a", step))
            time = data["time_"].values[step]
            assert np.isnat(time) if seen is None else time == np.datetime64(seen.datetime.replace(tzinfo=None))
            assert str(data["file_id"].values[step]) == ("" if seen is None else seen.scene_ids[0])


def test_v11_cloud_masks_are_the_classification_in_the_published_classes(packed: Packed, zips: Path) -> None:
    classes = {4: 0, 5: 0, 7: 0, 6: 1, 11: 2, 10: 3, 8: 4, 9: 4, 3: 5}
    for slot, data in ((int(name), data) for name, data in read_zips(zips, "S2L1C").items()):
        expected = np.full((4, SIZE, SIZE), 255, np.uint8)
        for code, mask in classes.items():
            expected[packed.truth["sentinel2_scl"][slot, :, 0] == code] = mask
        np.testing.assert_array_equal(data["cloud_mask"].values, expected)


def test_v11_metadata_has_a_row_a_location_and_date(packed: Packed, zips: Path) -> None:
    tables = [pq.read_table(path).to_pylist() for path in sorted(zips.glob("*_metadata.parquet"))]
    rows = [row for table in tables for row in table]
    assert len(rows) == 4 * SAMPLES
    first = next(row for row in rows if row["sample_id"] == "0000003" and row["time_id"] == 0)
    sample = packed.samples[3]
    assert shapely.from_wkb(first["geometry"]).buffer(1e-6).contains(shapely.Point(sample.lon, sample.lat))
    assert first["tile_crs"] == sample.epsg


def test_v11_reads_one_date_without_the_others(zips: Path) -> None:
    group = zarr.open_group(zarr.storage.ZipStore(min((zips / "train/S2L1C").glob("*")), mode="r"), mode="r")
    assert group["bands"].chunks[1] == 1
    assert group.metadata.zarr_format == 2


def test_v10_is_a_geotiff_a_band_with_the_values_of_the_cube(packed: Packed, tree: Path) -> None:
    folders = {"s1": "sentinel1", "s2c": "sentinel2_l1c", "s2a": "sentinel2_l2a"}
    read = 0
    for folder, name in folders.items():
        modality = packed.corpus.modalities[name]
        for slot, sample in enumerate(packed.samples):
            for step in range(4):
                root = tree / folder / f"{slot:07d}" / f"{name.upper()}_{slot:03d}_{step}"
                assert root.is_dir() == (sample.chips.get((name, step)) is not None)
                if not root.is_dir():
                    continue
                assert {p.stem for p in root.glob("*.tif")} == set(modality.band_names)
                for index, band in enumerate(modality.band_names):
                    with rasterio.open(root / f"{band}.tif") as image:
                        np.testing.assert_array_equal(image.read(1), packed.truth[name][slot, step, index], strict=True)
                        assert image.nodata == modality.nodata
                        assert image.crs.to_epsg() == sample.epsg
                        assert (image.transform.a, image.transform.c, image.transform.f) == (10, sample.x0, sample.y0)
                        read += 1
                when = sample.seen[name, step].datetime
                assert when is not None
                properties = json.loads((root / "metadata.json").read_text())
                assert properties["system:time_start"] == round(when.timestamp() * 1000)
    assert read > 500


def test_v10_faithful_keeps_the_pixel_sizes_of_the_sensor(packed: Packed, tmp_path: Path) -> None:
    export_corpus(
        packed.corpus, tmp_path / "x", format="ssl4eo", options=Options(version="v1.0", faithful=True, split="train")
    )
    root = next((tmp_path / "x/s2c").glob("*/*"))
    slot, step = int(root.parent.name), int(root.name[-1])
    for band, side in {"B2": 24, "B5": 12, "B1": 4}.items():
        index = packed.corpus.modalities["sentinel2_l1c"].band_names.index(band)
        values = packed.truth["sentinel2_l1c"][slot, step, index].astype(float)
        factor = 24 // side
        with rasterio.open(root / f"{band}.tif") as image:
            found = image.read(1)
            assert (image.shape, image.transform.a) == ((side, side), 10.0 * factor)
        for row, column in ((0, 0), (side - 1, 1)):
            block = values[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert found[row, column] == (65535 if (block == 65535).any() else round(block.mean()))


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_corpus_of_other_times_or_modalities_is_refused(tmp_path: Path) -> None:
    once = pack_random(tmp_path / "once", SSL4EO[:3], samples=8, size=8).corpus
    with pytest.raises(UserError, match="sentinel1 has 1 time steps, the layout has 4; give the recipe times of 4"):
        export_corpus(once, tmp_path / "x", format="ssl4eo")
    bare = pack_random(tmp_path / "bare", SSL4EO[:1], samples=8, size=8, times=4, more=SEASONS).corpus
    text = r"lacks: sentinel2_l1c \(for S2L1C\), sentinel2_l2a \(for S2L2A\); add them .* --allow-missing"
    with pytest.raises(UserError, match=text):
        export_corpus(bare, tmp_path / "x", format="ssl4eo")
    with pytest.raises(UserError, match=r"--version: there is no version 'v2'; choose from v1.1, v1.0"):
        export_corpus(bare, tmp_path / "x", format="ssl4eo", options=Options(version="v2"))
    export_corpus(bare, tmp_path / "x", format="ssl4eo", options=Options(allow_missing=True))
    assert {path.parent.name for path in (tmp_path / "x").rglob("*.zarr.zip")} == {"S1GRD"}


@pytest.mark.parametrize("version", ["v1.1", "v1.0"])
def test_an_export_killed_in_the_middle_is_complete_and_equal_after_another_run(
    packed: Packed, zips: Path, tree: Path, tmp_path: Path, version: str
) -> None:
    options = {"samples_per_file": 4} if version == "v1.1" else {"version": "v1.0"}
    killed_after_three_units(Path(packed.corpus.store.url), tmp_path / "x", "ssl4eo", **options)
    export_corpus(packed.corpus, tmp_path / "x", format="ssl4eo", options=Options(**options))
    assert contents(tmp_path / "x") == contents(zips if version == "v1.1" else tree)


# -- and back --------------------------------------------------------------------------------------------------------


def check_back(packed: Packed, back: Corpus, names: tuple[str, ...], rename: str) -> None:
    """Chips, grids, dates and scenes by sample id."""
    slots = {row["sample_id"]: row["slot"] for row in back.records(["sample_id", "slot"]).to_pylist()}
    records = {(r["sample_id"], r["modality"], r["time"]): r for r in back.records().to_pylist()}
    for slot, sample in enumerate(packed.samples):
        own = rename.format(slot)
        for name in names:
            for step in range(4):
                found, expected = back.read_chip(name, slots[own], step), packed.truth[name][slot, step]
                if back.lock["source"]["format"].endswith("v1.1") and name == "sentinel1":
                    expected = np.where(expected == -9999, expected, expected.astype(np.float16).astype(np.float32))
                np.testing.assert_array_equal(found, expected, strict=True)
                row = records[own, name, step]
                assert (row["epsg"], row["x0"], row["y0"]) == (sample.epsg, sample.x0, sample.y0)
                seen = sample.seen.get((name, step))
                assert row["datetime"] == (None if seen is None else seen.datetime.replace(microsecond=0))
                assert row["scene_ids"] == ([] if seen is None else list(seen.scene_ids))


def test_export_to_v11_then_import_gives_the_cube_back(packed: Packed, zips: Path, tmp_path: Path) -> None:
    back = import_corpus(zips, tmp_path / "back", format="ssl4eo", name="mine")
    assert back.synthetic is True
    assert back.lock["source"]["unknown"] == {}
    check_back(packed, back, SSL4EO[:3], "{:07d}")
    batch = next(iter(mm.Loader(back, split="train", batch_size=2)))
    assert batch["sentinel2_l2a"].shape[1:] == (4, 12, SIZE, SIZE)
    tags = {row["sample_id"]: json.loads(row["tags"]) for row in back.records().to_pylist()}
    assert {tag["published_split"] for tag in tags.values()} <= {"train", "val", "test", "none"}


def test_export_to_v10_then_import_gives_the_cube_back(packed: Packed, tree: Path, tmp_path: Path) -> None:
    back = import_corpus(tree, tmp_path / "back", format="ssl4eo")
    assert back.synthetic is True
    check_back(packed, back, SSL4EO[:3], "{:07d}")


def test_a_published_tree_in_degrees_gets_its_centre_and_no_grid(tmp_path: Path) -> None:
    """One location as the published scripts write it: bands of 264, 132 and 44 px, an affine in degrees."""
    west, north, step = 11.0, 48.0, 0.03 / 264
    for scene, day in (("20210105T102401_20210105T102502_T32UPU", 5), ("20210405T102401_20210405T102502_T32UPU", 9)):
        root = tmp_path / "published/s2c/0000007" / scene
        root.mkdir(parents=True)
        for band, side in {"B1": 44, "B2": 264, "B5": 132, "B9": 44}.items():
            pixel = step * 264 / side
            with rasterio.open(
                root / f"{band}.tif", "w", driver="GTiff", count=1, height=side, width=side, dtype="uint16",
                crs="+proj=latlong", transform=rasterio.Affine(pixel, 0, west, 0, -pixel, north),
            ) as image:  # fmt: skip
                image.write(np.full((side, side), day * 100 + side, np.uint16), 1)
    back = import_corpus(tmp_path / "published", tmp_path / "back", format="ssl4eo")
    assert set(back.lock["source"]["unknown"]) == {"grid", "synthetic"}
    assert back.synthetic is None
    row = next(r for r in back.records().to_pylist() if r["time"] == 1)
    assert (row["epsg"], row["x0"], row["lon"], row["lat"]) == (
        None,
        None,
        pytest.approx(11.015),
        pytest.approx(47.985),
    )
    assert f"{row['datetime']:%Y-%m-%d %H:%M:%S}" == "2021-04-05 10:24:01"
    assert row["scene_ids"] == ["20210405T102401_20210405T102502_T32UPU"]
    chip = back.read_chip("sentinel2_l1c", 0, 1)
    assert chip.shape == (13, 264, 264)
    assert np.unique(chip[0]).tolist() == [944]
    assert np.unique(chip[2]).tolist() == [65535]  # a band that the location lacks
    assert np.unique(back.read_chip("sentinel2_l1c", 0, 2)).tolist() == [65535]


def test_something_else_is_no_ssl4eo(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no SSL4EO-S12; name the folder with train/S1GRD/... \(v1.1\) or s1, s2c"):
        import_corpus(tmp_path, tmp_path / "out", format="ssl4eo")


@pytest.mark.parametrize("time", ["all", "random", 2])
def test_v11_streams_as_it_is_with_the_batches_of_its_import(zips: Path, tmp_path: Path, time: int | str) -> None:
    back = import_corpus(zips, tmp_path / "back", format="ssl4eo")
    options: dict[str, Any] = {"time": time, "seed": 3, "crop": 8, "augment": True}
    truth = {}
    for batch in Loader(back, batch_size=5, normalize=False, **options):
        for i, sample_id in enumerate(batch["id"]):
            truth[sample_id] = {k: v[i] for k, v in batch.items() if isinstance(v, torch.Tensor)}
    seen = []
    for batch in PublishedLoader(zips, format="ssl4eo", batch_size=4, **options):
        for i, sample_id in enumerate(batch["id"]):
            seen.append(sample_id)
            for key, value in truth[sample_id].items():
                torch.testing.assert_close(batch[key][i], value, rtol=0, atol=0, equal_nan=True, msg=key)
    assert sorted(seen) == sorted(truth)
    assert len(seen) > 4
