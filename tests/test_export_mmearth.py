"""The MMEarth export in a reader that is written from the published description alone, and the way back.

``PublishedReader`` repeats none of mmbuild's tables: names, orders, no-data values and normalisation are those of
MMEarth-data's convert_to_h5.py and MMEarth-train's dataset, written down here a second time.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mmbuild as mm
from mmbuild.errors import UserError
from mmbuild.export import Options, export_corpus
from mmbuild.importers import import_corpus
from tests.packed import MMEARTH, Packed, pack_random
from tests.test_export import contents, killed_after_three_units

SIZE = 16
SCHEMA = {
    "sentinel2": ("uint16", (13, SIZE, SIZE)), "sentinel2_cloudmask": ("uint16", (1, SIZE, SIZE)),
    "sentinel2_cloudprod": ("uint16", (1, SIZE, SIZE)), "sentinel2_scl": ("uint8", (1, SIZE, SIZE)),
    "sentinel1": ("float32", (8, SIZE, SIZE)), "aster": ("int16", (2, SIZE, SIZE)), "era5": ("float32", (12,)),
    "dynamic_world": ("uint8", (1, SIZE, SIZE)), "canopy_height_eth": ("int8", (2, SIZE, SIZE)),
    "lat": ("float32", (2,)), "lon": ("float32", (2,)), "month": ("float32", (2,)), "biome": ("uint8", (14,)),
    "eco_region": ("uint16", (846,)), "esa_worldcover": ("uint8", (1, SIZE, SIZE)),
}  # fmt: skip
BIOMES = [
    "Tundra", "Tropical & Subtropical Moist Broadleaf Forests", "Mediterranean Forests, Woodlands & Scrub",
    "Deserts & Xeric Shrublands", "Temperate Grasslands, Savannas & Shrublands", "Boreal Forests/Taiga",
    "Temperate Conifer Forests", "Temperate Broadleaf & Mixed Forests", "Montane Grasslands & Shrublands", "Mangroves",
    "Flooded Grasslands & Savannas", "Tropical & Subtropical Grasslands, Savannas & Shrublands",
    "Tropical & Subtropical Dry Broadleaf Forests", "Tropical & Subtropical Coniferous Forests",
]  # fmt: skip
# The first and last ecoregions of the published label list, and one of each of some biomes.
ECOREGIONS = {0: "Adelie Land tundra", 1: "Ahklun and Kilbuck Upland Tundra", 845: "Bahamian pineyards"}


NO_DATA = {
    "sentinel2": 0, "sentinel1": -math.inf, "aster": -32768, "canopy_height_eth": 127, "era5": math.nan,
    "lat": -math.inf, "lon": -math.inf, "month": -math.inf,
}  # fmt: skip


class PublishedReader:
    """One row at a time: no data is NaN (continuous) or -1 (classes), continuous values are z-scores."""

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("*.h5")
        self.file = h5py.File(path, "r")
        read = lambda ending: json.loads((folder / f"{path.stem}_{ending}.json").read_text())  # noqa: E731
        self.stats, self.splits, self.tiles = read("band_stats"), read("splits"), read("tile_info")

    def raw(self, name: str, row: int) -> np.ndarray:
        return self.file[name][row]

    def tile(self, row: int) -> tuple[str, dict[str, Any]]:
        tile_id = self.file["metadata"][row]["tile_id"].decode()
        return tile_id, self.tiles[tile_id]

    def continuous(self, name: str, row: int) -> np.ndarray:
        values = self.raw(name, row).astype(np.float64)
        no_data = NO_DATA[name]
        values[np.isnan(values) if math.isnan(no_data) else values == no_data] = np.nan
        key = f"sentinel2_{self.tile(row)[1]['S2_type']}" if name == "sentinel2" else name
        shape = (-1,) + (1,) * (values.ndim - 1)
        mean, std = (np.array(self.stats[key][part], float).reshape(shape) for part in ("mean", "std"))
        values = (values - mean) / np.where(std > 0, std, 1)
        # Twelve bands are inputs: the cirrus band is not.
        return np.delete(values, 10, axis=0) if name == "sentinel2" else values

    def classes(self, name: str, row: int) -> np.ndarray:
        values = self.raw(name, row).astype(np.int64)
        if name == "dynamic_world":
            return np.where(values == 0, -1, values - 1)
        codes = [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
        return np.select([values == code for code in codes], range(len(codes)), default=-1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    one_of = ("sentinel2_l1c", "sentinel2_l2a")
    return pack_random(tmp_path_factory.mktemp("mmearth") / "corpus", MMEARTH, samples=40, size=SIZE, one_of=one_of)


@pytest.fixture(scope="module")
def folder(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "data_100k_v001"
    export_corpus(packed.corpus, folder, format="mmearth", options=Options(name="data_100k_v001"))
    return folder


@pytest.fixture(scope="module")
def reader(folder: Path) -> PublishedReader:
    return PublishedReader(folder)


def test_files_and_datasets_are_those_of_the_published_layout(folder: Path, reader: PublishedReader) -> None:
    files = {path.name for path in folder.iterdir() if path.is_file()} - {"export.json"}
    assert files == {f"data_100k_v001{end}" for end in (".h5", "_band_stats.json", "_splits.json", "_tile_info.json")}
    assert set(reader.file) == {*SCHEMA, "metadata"}
    for name, (dtype, shape) in SCHEMA.items():
        dataset = reader.file[name]
        assert (dataset.dtype, dataset.shape, dataset.chunks) == (np.dtype(dtype), (40, *shape), (1, *shape))
        assert (dataset.compression, dataset.compression_opts, dataset.shuffle) == ("gzip", 4, False)
    metadata = reader.file["metadata"]
    assert metadata.dtype == np.dtype([("tile_id", "S100"), ("S2_type", "S10")])
    assert (metadata.shape, metadata.chunks) == ((40,), (1,))


def test_every_value_is_that_of_the_cube_after_the_stated_recoding(packed: Packed, reader: PublishedReader) -> None:
    truth = {name: values[:, 0] for name, values in packed.truth.items()}
    order = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12"]
    for row in range(40):
        l1c, l2a = truth["sentinel2_l1c"][row], truth["sentinel2_l2a"][row]
        bands = dict(zip(packed.corpus.modalities["sentinel2_l1c"].band_names, l1c, strict=True))
        if row % 2:
            bands = dict(zip(packed.corpus.modalities["sentinel2_l2a"].band_names, l2a, strict=True))
        s2 = np.stack([bands.get(band, np.zeros((SIZE, SIZE), np.uint16)) for band in order])
        same(reader.raw("sentinel2", row), np.where(s2 == 65535, 0, s2))
        same(reader.raw("sentinel2_cloudmask", row), truth["sentinel2_qa60"][row])
        cloud = truth["sentinel2_cloudprob"][row]
        same(
            reader.raw("sentinel2_cloudprod", row),
            np.where(cloud == 255, 65535, cloud.astype(np.uint16)).astype(np.uint16),
        )
        scl = truth["sentinel2_scl"][row]
        same(reader.raw("sentinel2_scl", row), np.where(scl == 0, 255, scl).astype(np.uint8))
        s1 = np.concatenate([truth["sentinel1_asc"][row], truth["sentinel1_desc"][row]])
        same(reader.raw("sentinel1", row), np.where(s1 == -9999, -np.inf, s1).astype(np.float32))
        height, slope = truth["aster_gdem"][row]
        degrees = np.where(slope == -32768, -32768, slope // 100)  # slopes are never negative: whole degrees
        same(reader.raw("aster", row), np.stack([height, degrees]).astype(np.int16))
        canopy = truth["canopy_height"][row].astype(int)
        expected = np.where(canopy == 255, 127, np.minimum(canopy, 126)).astype(np.int8)
        same(reader.raw("canopy_height_eth", row), expected)
        cover = truth["dynamic_world"][row]
        same(reader.raw("dynamic_world", row), np.where(cover == 255, 0, cover + 1).astype(np.uint8))
        same(reader.raw("esa_worldcover", row), truth["esa_worldcover"][row])
        climate = truth["era5"][row]
        same(reader.raw("era5", row), np.where(climate == -9999, np.nan, climate).astype(np.float32))
        place = np.where(truth["geolocation"][row] == -9999, -np.inf, truth["geolocation"][row])
        same(np.concatenate([reader.raw("lat", row), reader.raw("lon", row)]), place.astype(np.float32))
        month = truth["month"][row]
        same(reader.raw("month", row), np.where(month == -9999, -np.inf, month).astype(np.float32))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found, expected, strict=True)


def test_classes_are_one_hot_in_the_order_of_the_published_labels(packed: Packed, reader: PublishedReader) -> None:
    biomes = {item.code: item.name for item in packed.corpus.modalities["biome"].classes}
    ecoregions = {item.name: item.code for item in packed.corpus.modalities["ecoregion"].classes}
    for row in range(40):
        code, hot = packed.truth["biome"][row, 0, 0], reader.raw("biome", row)
        entry = reader.tile(row)[1]
        if code == 255:
            assert (hot == 255).all()
            assert entry["biome"] is None
        else:
            assert (hot.sum(), BIOMES[int(hot.argmax())], entry["biome"]) == (1, biomes[code], int(hot.argmax()))
        region, hot = packed.truth["ecoregion"][row, 0, 0], reader.raw("eco_region", row)
        assert (hot == 65535).all() if region == 65535 else hot.sum() == 1
        assert entry["eco_region"] == (None if region == 65535 else int(hot.argmax()))
    from mmbuild.foreign.recode import load_layout

    codes = load_layout("mmearth").datasets["eco_region"].codes
    assert codes is not None
    assert len(set(codes)) == 846
    assert {label: ecoregions[name] for label, name in ECOREGIONS.items()} == {k: codes[k] for k in ECOREGIONS}


def test_labels_of_all_ecoregions_are_those_of_the_published_table(packed: Packed, shared: Path) -> None:
    import csv

    from mmbuild.foreign.recode import load_layout

    codes = load_layout("mmearth").datasets["eco_region"].codes or ()
    names = {item.code: item.name for item in packed.corpus.modalities["ecoregion"].classes}
    with (shared / "facts/data/mmearth_ecoregions.csv").open(encoding="utf-8") as file:
        published = {int(row["eco_label"]): row["eco_name"] for row in csv.DictReader(file) if row["eco_label"]}
    assert {label: names[code] for label, code in enumerate(codes)} == published


def test_tile_info_says_what_the_published_file_says(packed: Packed, reader: PublishedReader) -> None:
    for row, sample in enumerate(packed.samples):
        tile_id, entry = reader.tile(row)
        assert tile_id == sample.sample_id
        assert entry["S2_DATE"] == f"{sample.anchor_time:%Y-%m-%d}"
        assert entry["S2_type"] == ("l2a" if row % 2 else "l1c")
        assert reader.file["metadata"][row]["S2_type"].decode() == entry["S2_type"]
        assert (entry["CRS"], entry["lat"], entry["lon"]) == (f"EPSG:{sample.epsg}", sample.lat, sample.lon)
        assert entry["NO_DATA"] is True  # every random chip has a missing pixel
        quality = {"MSK_CLDPRB": "sentinel2_cloudprob", "SCL": "sentinel2_scl", "QA60": "sentinel2_qa60"}
        there = [band for band, name in quality.items() if packed.stored[name][row]]
        cirrus = [] if row % 2 else ["B10"]
        bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", *cirrus, "B11", "B12", *there]
        assert entry["BANDS"]["sentinel2"] == bands
        there = packed.stored["sentinel1_asc"][row]
        assert entry["BANDS"]["sentinel1_asc"] == (["VV", "VH", "HH", "HV"] if there else None)
        climate = packed.truth["era5"][row, 0].tolist() if packed.stored["era5"][row] else [None] * 12
        assert entry["era5"] == {"month1": climate[:4], "month2": climate[4:8], "year": climate[8:]}


def test_splits_are_those_of_the_corpus(packed: Packed, reader: PublishedReader) -> None:
    items = {item["id"]: item["split"] for item in packed_items(packed)}
    for split in ("train", "val", "test"):
        assert [reader.tile(row)[0] for row in reader.splits[split]] == [k for k, v in items.items() if v == split]
        assert reader.splits[split]


def packed_items(packed: Packed) -> list[dict[str, Any]]:
    from mmbuild.catalog import read_items

    return read_items(packed.corpus).select(["id", "split"]).to_pylist()


def test_normalised_masked_batches_equal_those_of_our_loader(packed: Packed, reader: PublishedReader) -> None:
    rows = {reader.tile(row)[0]: row for row in range(40)}
    # sensor order -> the published order: B8A stands before B8 there
    swap = [0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    compared = 0
    for batch in mm.Loader(packed.corpus, split="train", batch_size=7, shuffle=False):
        for place, sample_id in enumerate(batch["id"]):
            row = rows[sample_id]
            pairs = {
                "sentinel2": reader.continuous("sentinel2", row)[swap],
                "sentinel1_asc": reader.continuous("sentinel1", row)[:4],
                "sentinel1_desc": reader.continuous("sentinel1", row)[4:],
                "era5": reader.continuous("era5", row), "month": reader.continuous("month", row),
                "geolocation": np.concatenate([reader.continuous(name, row) for name in ("lat", "lon")]),
            }  # fmt: skip
            for name, expected in pairs.items():
                values, mask = batch[name][place].numpy(), batch[f"{name}_mask"][place].numpy()
                np.testing.assert_array_equal(mask, ~np.isnan(expected), err_msg=name)
                np.testing.assert_allclose(values[mask], expected[mask], rtol=2e-5, atol=2e-5, err_msg=name)
                compared += int(mask.sum())
            elevation = reader.continuous("aster", row)[0]
            mask = batch["aster_gdem_mask"][place, 0].numpy()
            np.testing.assert_array_equal(mask, ~np.isnan(elevation))
            np.testing.assert_allclose(batch["aster_gdem"][place, 0].numpy()[mask], elevation[mask], atol=2e-5)
            for name in ("dynamic_world", "esa_worldcover"):
                np.testing.assert_array_equal(batch[name][place].numpy(), reader.classes(name, row))
    assert compared > 10_000


def test_statistics_have_the_published_keys_and_are_those_of_the_train_split(packed: Packed, reader: Any) -> None:
    both = ("l1c", "l2a")
    keys = {f"sentinel2{part}_{product}" for part in ("", "_cloudmask", "_cloudprod") for product in both}
    assert set(reader.stats) == keys | {
        "aster", "canopy_height_eth", "era5", "lat", "lon", "month", "sentinel1"
    }  # fmt: skip
    assert all(set(entry) == {"mean", "std", "min", "max"} for entry in reader.stats.values())
    assert math.isnan(reader.stats["sentinel2_l2a"]["mean"][10])
    rows = reader.splits["train"]
    s1 = np.stack([reader.raw("sentinel1", row)[0] for row in rows]).astype(np.float64)
    known = s1[np.isfinite(s1)]
    assert reader.stats["sentinel1"]["mean"][0] == pytest.approx(known.mean(), rel=1e-6)
    assert reader.stats["sentinel1"]["std"][0] == pytest.approx(known.std(), rel=1e-6)
    assert reader.stats["sentinel1"]["max"][0] == pytest.approx(known.max(), rel=1e-6)


# -- options ---------------------------------------------------------------------------------------------------------


def test_faithful_writes_what_is_peculiar_to_the_published_files(packed: Packed, tmp_path: Path) -> None:
    export_corpus(packed.corpus, tmp_path / "x", format="mmearth", options=Options(faithful=True))
    reader = PublishedReader(tmp_path / "x")
    assert reader.splits == {"train": list(range(40)), "val": [], "test": []}
    row = int(np.flatnonzero(packed.stored["sentinel1_asc"] & packed.stored["canopy_height"])[0])
    s1, raw = packed.truth["sentinel1_asc"][row, 0], reader.raw("sentinel1", row)
    same(raw[:4], np.where(s1 == -9999, 0, s1).astype(np.float32))  # a masked pixel became 0 dB
    canopy = packed.truth["canopy_height"][row, 0].astype(int)
    expected = np.where(canopy == 255, 0, np.minimum(canopy, 127)).astype(np.int8)
    same(reader.raw("canopy_height_eth", row), expected)
    gone = int(np.flatnonzero(~packed.stored["sentinel1_asc"])[0])
    assert np.isneginf(reader.raw("sentinel1", gone)[:4]).all()
    # drawn with replacement by numpy's seed 0; the file's own no-data value is left out
    drawn = np.random.RandomState(0).randint(0, 40, 100_000)
    values = reader.file["aster"][:, 0].astype(np.float64)[drawn]
    known = values[values != -32768]
    assert reader.stats["aster"]["mean"][0] == pytest.approx(known.mean())
    assert reader.stats["aster"]["std"][0] == pytest.approx(known.std())
    month = reader.file["month"][:, 0].astype(np.float64)  # of all rows
    assert reader.stats["month"]["mean"][0] == pytest.approx(month[np.isfinite(month)].mean())


def test_a_centre_crop_is_that_of_the_published_taster(packed: Packed, tmp_path: Path) -> None:
    export_corpus(packed.corpus, tmp_path / "x", format="mmearth", options=Options(size=9))
    reader = PublishedReader(tmp_path / "x")
    cover = packed.truth["esa_worldcover"][4, 0]
    same(reader.raw("esa_worldcover", 4), cover[:, 3:12, 3:12])  # (16 - 9) // 2 = 3


def test_a_corpus_that_lacks_what_the_layout_needs_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    names = tuple(name for name in MMEARTH if name not in ("ecoregion", "era5"))
    one_of = ("sentinel2_l1c", "sentinel2_l2a")
    poor = pack_random(tmp_path / "poor", names, samples=8, size=8, one_of=one_of).corpus
    text = r"the layout needs what this corpus lacks: era5 \(for era5\), ecoregion \(for eco_region\); add them .* "
    with pytest.raises(UserError, match=text + "--allow-missing"):
        export_corpus(poor, tmp_path / "x", format="mmearth")
    assert not (tmp_path / "x").exists()
    export_corpus(poor, tmp_path / "x", format="mmearth", options=Options(allow_missing=True))
    reader = PublishedReader(tmp_path / "x")
    assert np.isnan(reader.raw("era5", 0)).all()
    assert (reader.raw("eco_region", 0) == 65535).all()
    with pytest.raises(UserError, match="--size: 9 px are asked, chips have 8; ask for at most 8"):
        export_corpus(poor, tmp_path / "y", format="mmearth", options=Options(allow_missing=True, size=9))


def test_an_export_killed_in_the_middle_is_complete_and_equal_after_another_run(
    packed: Packed, folder: Path, tmp_path: Path
) -> None:
    killed_after_three_units(Path(packed.corpus.store.url), tmp_path / "x", "mmearth", name="data_100k_v001")
    assert not list((tmp_path / "x").glob("*.h5"))
    export_corpus(packed.corpus, tmp_path / "x", format="mmearth", options=Options(name="data_100k_v001"))
    assert contents(tmp_path / "x") == contents(folder)


# -- and back --------------------------------------------------------------------------------------------------------


def test_export_then_import_gives_the_cube_back(packed: Packed, folder: Path, tmp_path: Path) -> None:
    back = import_corpus(folder, tmp_path / "back", format="mmearth")
    assert back.synthetic is True
    assert set(back.modalities) == set(MMEARTH)
    for name in MMEARTH:
        for slot in range(40):
            found, expected = back.read_chip(name, slot), packed.truth[name][slot, 0]
            if name == "aster_gdem":  # whole degrees of slope are what the layout keeps
                slope = expected[1]
                expected = np.stack([expected[0], np.where(slope == -32768, slope, slope // 100 * 100)])
            if name == "canopy_height":
                expected = np.where(expected == 255, 255, np.minimum(expected, 126)).astype(np.uint8)
            same(found, expected)


def test_an_import_says_what_is_not_known_and_invents_nothing(folder: Path, tmp_path: Path) -> None:
    back = import_corpus(folder / "data_100k_v001.h5", tmp_path / "back", format="mmearth", name="mine")
    assert back.recipe.name == "mine"
    assert set(back.lock["source"]["unknown"]) == {"transform", "scene ids", "dates"}
    records = back.records().to_pylist()
    assert all(row["x0"] is None and row["scene_ids"] == [] for row in records)
    dated = {row["modality"] for row in records if row["datetime"] is not None}
    assert dated == {"sentinel2_l1c", "sentinel2_l2a"}
    collection = json.loads(back.store.get("collection.json"))
    assert collection["mmbuild:unknown"] == back.lock["source"]["unknown"]
    with h5py.File(folder / "data_100k_v001.h5") as file:
        assert file.attrs["mmbuild:synthetic"] == "yes"


def test_a_published_file_does_not_say_whether_it_is_synthetic(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "published")
    with h5py.File(tmp_path / "published/data_100k_v001.h5", "a") as file:
        del file.attrs["mmbuild:synthetic"]
    back = import_corpus(tmp_path / "published", tmp_path / "back", format="mmearth")
    assert back.synthetic is None
    assert back.lock["source"]["unknown"]["synthetic"] == "the file does not say"


def test_an_imported_corpus_streams_and_is_catalogued(folder: Path, tmp_path: Path) -> None:
    back = import_corpus(folder, tmp_path / "back", format="mmearth")
    batch = next(iter(mm.Loader(back, split="train", batch_size=4)))
    assert batch["sentinel2"].shape[1:] == (12, SIZE, SIZE)
    from mmbuild.catalog import item_dict, read_items

    item = item_dict(read_items(back).slice(3, 1))
    assert item["geometry"]["type"] == "Point"  # only the centre is known
    asset = next(asset for name, asset in item["assets"].items() if name.startswith("sentinel2_l"))
    assert "proj:transform" not in asset
    assert asset["proj:shape"] == [SIZE, SIZE]
    taster = mm.cut_taster(back, tmp_path / "taster", samples=8, size=8)
    assert taster.read_chip("dynamic_world", 0).shape == (1, 8, 8)
    assert {row["x0"] for row in taster.records().to_pylist()} == {None}
    with pytest.raises(UserError, match=r"the grid of 40 samples is not known \(sample 000000 has no x0\)"):
        export_corpus(back, tmp_path / "x", format="geotiff")


def test_an_interrupted_import_goes_on_and_another_file_is_refused(folder: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, size: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        import_corpus(folder, tmp_path / "back", format="mmearth", progress=stop, threads=1)
    assert not (tmp_path / "back/items.parquet").exists()
    # The second shard was under way when the first was done: as if its arrays were there and its record was not.
    (tmp_path / "back/shards/000001.parquet").unlink(missing_ok=True)
    stamp = (tmp_path / "back/shards/000000.parquet").stat().st_mtime_ns
    import_corpus(folder, tmp_path / "back", format="mmearth")
    straight = import_corpus(folder, tmp_path / "straight", format="mmearth")
    assert (tmp_path / "back/shards/000000.parquet").stat().st_mtime_ns == stamp
    from tests.corpora import snapshot

    assert snapshot(tmp_path / "back") == snapshot(straight.store)
    with pytest.raises(UserError, match="there is a corpus of something else here already"):
        import_corpus(folder, tmp_path / "back", format="mmearth", name="other")


def test_a_broken_download_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes((folder / "data_100k_v001.h5").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"a.h5: cannot be read: .*truncated file.*; download it again"):
        import_corpus(tmp_path / "a.h5", tmp_path / "out", format="mmearth")
    (tmp_path / "b.h5").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"b.h5: is no HDF5 file; download it again"):
        import_corpus(tmp_path / "b.h5", tmp_path / "out", format="mmearth")
    shutil.copy(folder / "data_100k_v001.h5", tmp_path / "c.h5")
    with pytest.raises(UserError, match=r"c_tile_info.json is missing; it is published beside the .h5 file"):
        import_corpus(tmp_path / "c.h5", tmp_path / "out", format="mmearth")
    with pytest.raises(UserError, match="there is no format 'mmeart' to import; did you mean mmearth"):
        import_corpus(folder, tmp_path / "out", format="mmeart")
