"""Exports as their own readers see them: rasterio and geopandas for GeoTIFF, the webdataset package for tars."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import webdataset

from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import UserError
from mmbuild.export import Exported, Options, export_corpus, formats
from tests.corpora import build_small
from tests.shards import TinyCorpus, write_corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A small corpus of the synthetic Earth, eight samples."""
    return build_small(tmp_path_factory.mktemp("built") / "corpus", "samples=8")


@pytest.fixture(scope="module")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("handmade"))


def rows_of(corpus: Corpus) -> list[dict[str, Any]]:
    return [row for row in corpus.records().to_pylist() if row["sample_status"] == "stored"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that an export is made of, without its own notes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {key: data for key, data in found.items() if not key.startswith(".mmbuild/")}


# -- what every format promises --------------------------------------------------------------------------------------


def test_the_folder_listing_is_the_list_of_formats() -> None:
    folder = Path(sys.modules["mmbuild.export"].__file__ or "").parent
    assert formats() == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def test_an_unknown_format_is_refused_with_the_nearest_name(handmade: TinyCorpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--format: there is no format 'geotif'; did you mean geotiff\?"):
        export_corpus(handmade.open(), tmp_path / "x", format="geotif")
    assert not (tmp_path / "x").exists()


def test_an_option_that_means_nothing_for_the_format_is_refused(handmade: TinyCorpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--faithful: means nothing for the format webdataset; it takes --modalities"):
        export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=Options(faithful=True))


def test_an_unknown_modality_and_an_empty_split_are_refused(handmade: TinyCorpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no modality 'radr' in .*; did you mean radar"):
        export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=Options(modalities=("radr",)))
    options = Options(split="holdout")
    with pytest.raises(UserError, match=r"no sample is in split 'holdout'; the catalogue has: .*train "):
        export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=options)


def test_a_folder_of_something_else_is_left_alone(handmade: TinyCorpus, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(UserError, match="there is something else here already; export into a new folder"):
        export_corpus(handmade.open(), tmp_path, format="webdataset")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_export_is_not_written_over(handmade: TinyCorpus, tmp_path: Path) -> None:
    export_corpus(handmade.open(), tmp_path / "x", format="webdataset")
    before = contents(tmp_path / "x")
    with pytest.raises(UserError, match=r"holds another export \(split: null, now train\); export into a new"):
        export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=Options(split="train"))
    assert contents(tmp_path / "x") == before


def test_an_object_store_is_refused(handmade: TinyCorpus) -> None:
    with pytest.raises(UserError, match="s3://bucket/x: exports are written to a folder"):
        export_corpus(handmade.open(), "s3://bucket/x", format="webdataset")


def test_a_corpus_without_catalogue_is_refused(handmade: TinyCorpus, tmp_path: Path) -> None:
    shutil.copytree(handmade.path, tmp_path / "bare")
    (tmp_path / "bare/items.parquet").unlink()
    with pytest.raises(UserError, match="there is no catalogue yet; make it: mmbuild catalog"):
        export_corpus(open_corpus(tmp_path / "bare"), tmp_path / "x", format="webdataset")


def test_a_second_run_writes_nothing_again(handmade: TinyCorpus, tmp_path: Path) -> None:
    first = export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=Options(samples_per_file=4))
    second = export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=Options(samples_per_file=4))
    assert (second.files, second.reused) == (0, first.files)
    assert json.loads((tmp_path / "x/export.json").read_text())["complete"] is True


def test_a_damaged_file_and_a_lost_file_are_written_again(handmade: TinyCorpus, tmp_path: Path) -> None:
    export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=Options(samples_per_file=4))
    before = contents(tmp_path / "x")
    tars = sorted((tmp_path / "x").glob("*.tar"))
    data = bytearray(tars[0].read_bytes())
    data[1000] ^= 1
    tars[0].write_bytes(data)
    tars[1].unlink()
    again = export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=Options(samples_per_file=4))
    assert again.files == 2
    assert contents(tmp_path / "x") == before


KILLED = """
import os, signal, sys
from mmbuild.cube import open_corpus
from mmbuild.export import Options, export_corpus

def progress(done, total, size):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

export_corpus(open_corpus(sys.argv[1]), sys.argv[2], format=sys.argv[3], options=Options(**eval(sys.argv[4])),
              threads=2, progress=progress)
"""


def killed_after_three_units(corpus: Path, dest: Path, format: str, **options: Any) -> None:
    """Run an export in a process of its own that dies, without any warning, after its third unit."""
    command = [sys.executable, "-c", KILLED, str(corpus), str(dest), format, repr(options)]
    assert subprocess.run(command, env=os.environ).returncode == -signal.SIGKILL


@pytest.mark.parametrize("format", ["geotiff", "webdataset"])
def test_an_export_killed_in_the_middle_goes_on_to_the_same_files(built: Corpus, tmp_path: Path, format: str) -> None:
    options = {"samples_per_file": 2} if format == "webdataset" else {}
    killed_after_three_units(Path(built.store.url), tmp_path / "killed", format, **options)
    assert json.loads((tmp_path / "killed/export.json").read_text())["complete"] is False
    (tmp_path / "killed/half.tif.partial").write_bytes(b"II*")  # as a kill inside a write leaves one
    resumed = export_corpus(built, tmp_path / "killed", format=format, options=Options(**options))
    export_corpus(built, tmp_path / "straight", format=format, options=Options(**options))
    killed, straight = contents(tmp_path / "killed"), contents(tmp_path / "straight")
    for stamped in ("samples.gpkg",):  # it carries the time of writing; its content has a test of its own
        assert (stamped in killed) == (stamped in straight)
        killed.pop(stamped, None), straight.pop(stamped, None)
    assert killed == straight
    assert resumed.reused >= 2


def test_files_of_samples_that_are_gone_are_removed(tmp_path: Path) -> None:
    big, small = write_corpus(tmp_path / "big", slots=16), write_corpus(tmp_path / "small", slots=8)
    options = Options(samples_per_file=2)
    export_corpus(big.open(), tmp_path / "x", format="webdataset", options=options)
    export_corpus(small.open(), tmp_path / "x", format="webdataset", options=options)
    export_corpus(small.open(), tmp_path / "y", format="webdataset", options=options)
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


# -- webdataset ------------------------------------------------------------------------------------------------------


def read_tars(folder: Path, pattern: str = "*.tar") -> dict[str, dict[str, Any]]:
    """Every sample as the webdataset package decodes it, by key."""
    tars = [str(path) for path in sorted(folder.glob(pattern))]
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode()
    return {sample["__key__"]: sample for sample in stream}


@pytest.fixture(scope="module")
def tars(handmade: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars") / "x"
    export_corpus(handmade.open(), folder, format="webdataset", options=Options(samples_per_file=4))
    return folder


def test_webdataset_reads_every_chip_value_for_value(handmade: TinyCorpus, tars: Path) -> None:
    read = read_tars(tars)
    assert sorted(read) == [item["id"] for item in handmade.items]
    for slot in handmade.slots:
        for name, truth in handmade.truth.items():
            member = read[f"{slot:06d}"].get(f"{name}.npy")
            if not handmade.stored[name][slot]:
                assert member is None
            else:
                np.testing.assert_array_equal(member, truth[slot, 0], strict=True)


def test_tars_keep_the_splits_apart(handmade: TinyCorpus, tars: Path) -> None:
    for split in ("train", "val", "test", ""):
        own = {item["id"] for item in handmade.items if item["split"] == split}
        assert set(read_tars(tars, f"handmade-{split or 'none'}-*.tar")) == own


def test_the_json_of_a_sample_says_what_is_missing_and_why(handmade: TinyCorpus, tars: Path) -> None:
    entries = {key: sample["json"] for key, sample in read_tars(tars).items()}
    gone = next(row for row in handmade.rows if row["status"] == "no_data" and row["sample_status"] == "stored")
    chip = entries[gone["sample_id"]]["modalities"][gone["modality"]]
    assert (chip["status"], chip["reason"], chip["datetime"]) == (["no_data"], ["left out"], [None])
    there = next(row for row in handmade.rows if row["status"] == "stored" and row["datetime"])
    chip = entries[there["sample_id"]]["modalities"][there["modality"]]
    assert chip["datetime"] == [there["datetime"].isoformat().replace("+00:00", "Z")]
    assert chip["scenes"] == [there["scene_ids"]]
    about = entries["000004"]
    assert about["synthetic"] is True
    assert (about["epsg"], about["corner"], about["lon"]) == (32632, [480_000.0, 5_200_000.0], 8.04)


def test_tars_of_one_split_and_some_modalities(handmade: TinyCorpus, tmp_path: Path) -> None:
    options = Options(split="val", modalities=("radar", "zone"), name="mine")
    done = export_corpus(handmade.open(), tmp_path / "x", format="webdataset", options=options)
    own = {item["id"] for item in handmade.items if item["split"] == "val"}
    assert isinstance(done, Exported)
    assert done.samples == len(own)
    assert [path.name for path in sorted((tmp_path / "x").glob("*.tar"))] == ["mine-val-000000.tar"]
    with tarfile.open(tmp_path / "x/mine-val-000000.tar") as tar:
        endings = {name.partition(".")[2] for name in tar.getnames()}
    assert endings == {"json", "radar.npy", "zone.npy"}


# -- geotiff ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rasters(built: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rasters") / "x"
    export_corpus(built, folder, format="geotiff")
    return folder


def test_rasterio_reads_every_chip_value_for_value_in_its_place(built: Corpus, rasters: Path) -> None:
    count = 0
    for row in rows_of(built):
        modality = built.modalities[row["modality"]]
        path = rasters / row["modality"] / f"{row['sample_id']}.tif"
        if modality.level == "image" or row["status"] != "stored":
            assert not path.exists()
            continue
        with rasterio.open(path) as image:
            np.testing.assert_array_equal(image.read(), built.read_chip(row["modality"], row["slot"]), strict=True)
            assert image.crs.to_epsg() == row["epsg"]
            assert tuple(image.transform)[:6] == (row["gsd"], 0, row["x0"], 0, -row["gsd"], row["y0"])
            assert image.nodata == modality.nodata
            assert image.descriptions == modality.band_names
            assert image.tags()["synthetic"] == "yes"
        count += 1
    assert count == len(list(rasters.rglob("*.tif")))
    assert count > 50


def test_units_scales_dates_and_scenes_travel_with_the_raster(built: Corpus, rasters: Path) -> None:
    row = next(r for r in rows_of(built) if r["modality"] == "sentinel1_asc" and r["status"] == "stored")
    with rasterio.open(rasters / f"sentinel1_asc/{row['sample_id']}.tif") as image:
        assert image.units == ("dB",) * 4
        assert image.tags()["datetime"] == row["datetime"].isoformat().replace("+00:00", "Z")
        assert image.tags()["scenes"] == ",".join(row["scene_ids"])
    with rasterio.open(next((rasters / "aster_gdem").glob("*.tif"))) as image:
        assert image.units == ("m", "deg")
        assert image.scales == (1.0, 0.01)


def test_classes_have_their_colours_and_names(rasters: Path) -> None:
    with rasterio.open(next((rasters / "esa_worldcover").glob("*.tif"))) as image:
        assert image.colormap(1)[10] == (0x00, 0x64, 0x00, 255)
        assert image.tags()["class_95"] == "mangroves"
    legend = (rasters / "esa_worldcover/legend.qml").read_text()
    assert '<paletteEntry value="10" color="#006400" alpha="255" label="tree cover"/>' in legend


def test_the_table_of_samples_has_outlines_dates_and_values(built: Corpus, rasters: Path) -> None:
    table = gpd.read_file(rasters / "samples.gpkg").set_index("id")
    stored = {row["sample_id"]: row for row in rows_of(built)}
    assert sorted(table.index) == sorted(stored)
    for sample_id, row in stored.items():
        found = table.loc[sample_id]
        assert found.geometry.buffer(1e-6).contains(gpd.points_from_xy([row["lon"]], [row["lat"]])[0])
        assert found["anchor"] == row["anchor_time"].isoformat().replace("+00:00", "Z")
        assert found["biome"] == built.read_chip("biome", row["slot"])[0]
        assert found["month_month_sin"] == pytest.approx(float(built.read_chip("month", row["slot"])[0]))
    assert table["biome_name"].notna().all()


def test_the_command_says_what_it_wrote_and_ends_with_2_when_refused(handmade: TinyCorpus, tmp_path: Path) -> None:
    script = "import sys; from mmbuild.cli import main; sys.argv[0] = 'mmbuild'; main()"
    command = [sys.executable, "-c", script, "export", str(handmade.path), str(tmp_path / "x"), "--format"]
    told = subprocess.run([*command, "webdataset", "--json"], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    assert (found["format"], found["samples"], found["lost"]) == ("webdataset", 20, [])
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "x").glob("*.tar"))
    refused = subprocess.run([*command, "nothing"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--format: there is no format 'nothing'" in refused.stderr
