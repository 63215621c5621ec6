"""A taster is nested, stratified, self-contained and true: its chips are the parent's, its words are about itself."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from corpora import build_small, small_recipe, snapshot
from hypothesis import given
from hypothesis import strategies as st

import mmbuild as mm
from mmbuild.build import build_corpus
from mmbuild.catalog import read_items
from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import UserError
from mmbuild.report.picture import sample_picture
from mmbuild.status import summary
from mmbuild.store import open_store
from mmbuild.taster import cut_taster
from mmbuild.taster.cut import shape_of
from mmbuild.taster.labels import dominant, latitude_bands
from mmbuild.taster.strata import distances, stratified_order

SIZE, HALF = 16, 8


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_small(tmp_path_factory.mktemp("parent") / "corpus", "samples=24")


@pytest.fixture(scope="module")
def twelve(parent: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return cut_taster(parent, tmp_path_factory.mktemp("twelve") / "taster", samples=12)


@pytest.fixture(scope="module")
def middle(parent: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Eight samples, the middle of two rasters and one vector each."""
    out = tmp_path_factory.mktemp("middle") / "taster"
    return cut_taster(parent, out, samples=8, size=HALF, modalities=["sentinel2_l2a", "esa_worldcover", "era5"])


def ids(corpus: Corpus) -> list[str]:
    return [str(name) for name in corpus.samples(["sample_id"])["sample_id"].to_pylist()]


def cube(corpus: Corpus) -> Any:
    return zarr.open_group(corpus.zarr_store(), mode="r")


def parent_slots(taster: Corpus, parent: Corpus) -> list[int]:
    all_ids = ids(parent)
    return [all_ids.index(name) for name in ids(taster)]


# -- what is taken --------------------------------------------------------------------------------------------------


def test_a_smaller_taster_is_the_beginning_of_a_larger_one(parent: Corpus, twelve: Corpus, tmp_path: Path) -> None:
    five = cut_taster(parent, tmp_path / "five", samples=5)
    assert ids(five) == ids(twelve)[:5]
    for name in parent.modalities:
        np.testing.assert_array_equal(cube(five)[f"{name}/data"][:], cube(twelve)[f"{name}/data"][:5])


def test_every_chip_of_a_taster_is_its_parents(parent: Corpus, twelve: Corpus) -> None:
    slots = parent_slots(twelve, parent)
    assert len(set(slots)) == 12
    for name in parent.modalities:
        np.testing.assert_array_equal(cube(twelve)[f"{name}/data"][:], cube(parent)[f"{name}/data"][:][slots])


def test_chips_that_are_not_cropped_are_copied_as_they_are_encoded(parent: Corpus, twelve: Corpus) -> None:
    def chunks(corpus: Corpus) -> dict[tuple[str, str], bytes]:
        rows = [row for row in corpus.records().to_pylist() if row["offset"] >= 0]
        return {
            (row["sample_id"], row["modality"]): corpus.store.get_range(
                corpus.layouts[row["modality"]].key(row["slot"] // 8), row["offset"], row["length"]
            )
            for row in rows
        }

    own, all_chunks = chunks(twelve), chunks(parent)
    assert own == {place: all_chunks[place] for place in own}
    assert len(own) > 100


def test_records_keep_scenes_dates_and_places(parent: Corpus, twelve: Corpus) -> None:
    moved = ("slot", "offset", "length")
    before = {(r["sample_id"], r["modality"]): r for r in parent.records().to_pylist()}
    for row in twelve.records().to_pylist():
        assert {k: v for k, v in row.items() if k not in moved} == {
            k: v for k, v in before[row["sample_id"], row["modality"]].items() if k not in moved
        }


def test_a_taster_has_the_splits_of_its_parent(parent: Corpus, twelve: Corpus) -> None:
    def splits(corpus: Corpus) -> dict[str, str]:
        items = read_items(corpus)
        return dict(zip(items["id"].to_pylist(), items["split"].to_pylist(), strict=True))

    assert splits(twelve) == {name: splits(parent)[name] for name in ids(twelve)}


def test_statistics_are_those_of_the_tasters_own_train_chips(twelve: Corpus) -> None:
    items = read_items(twelve)
    train = items["mmbuild:index"].to_numpy()[items["split"].to_numpy(zero_copy_only=False) == "train"]
    values = cube(twelve)["aster_gdem/data"][:][train, :, 0].astype(float)
    found = json.loads(twelve.store.get("stats.json"))["modalities"]["aster_gdem"]["bands"]["elevation"]
    assert found["mean"] == pytest.approx(values[values != twelve.modalities["aster_gdem"].nodata].mean())


# -- self-contained -------------------------------------------------------------------------------------------------


def test_a_taster_moved_elsewhere_opens_everywhere(parent: Corpus, tmp_path: Path) -> None:
    cut_taster(parent, tmp_path / "here", samples=10)
    shutil.move(tmp_path / "here", tmp_path / "there")
    corpus = open_corpus(tmp_path / "there")
    assert summary(corpus)["stored"] == 10
    assert corpus.locations()["slot"].nunique() == 10
    tree = corpus.open_xarray()
    assert list(tree["id"].values) == ids(corpus)
    assert tree["esa_worldcover"]["data"].shape == (10, 1, 1, SIZE, SIZE)
    batches = list(mm.Loader(corpus, split=None, batch_size=4, shuffle=False))
    assert [name for batch in batches for name in batch["id"]] == ids(corpus)
    assert sample_picture(corpus, ids(corpus)[3], tmp_path / "sample.png").stat().st_size > 1000


def test_a_taster_carries_its_parents_recipe_and_its_own_words(parent: Corpus, twelve: Corpus) -> None:
    assert twelve.store.get("recipe.yaml") == parent.store.get("recipe.yaml")
    collection = json.loads(twelve.store.get("collection.json"))
    about = collection["mmbuild:taster"]
    assert collection["id"] == "tiny_taster_12"
    assert collection["mmbuild:synthetic"] is True
    assert about["parent"] == {"name": "tiny", "digest": parent.digest, "samples": 24}
    assert set(about["distance"]["variables"]) == {"biome", "latitude", "month", "land_cover", "split"}
    assert about["land_cover"] == "dynamic_world"
    assert len({parent.digest, twelve.digest}) == 2


def test_making_the_catalogue_again_changes_nothing(twelve: Corpus) -> None:
    from mmbuild.finish import finish

    before = snapshot(twelve.store)
    finish(open_corpus(twelve.store.url), again=True)
    assert snapshot(twelve.store) == before


def test_a_taster_is_not_extended_by_a_build(twelve: Corpus) -> None:
    with pytest.raises(UserError) as caught:
        build_corpus(small_recipe("samples=24"), twelve.store.url)
    assert str(caught.value).endswith(
        "this is a taster of tiny: it was cut out of a corpus, not built, and cannot be extended; build into another "
        "folder, or cut a larger taster: mmbuild taster OUT DEST --samples N"
    )


def test_a_taster_of_a_taster_is_one_too(twelve: Corpus, tmp_path: Path) -> None:
    three = cut_taster(twelve, tmp_path / "three", samples=3)
    assert set(ids(three)) < set(ids(twelve))


# -- the middle of chips --------------------------------------------------------------------------------------------


def test_a_crop_is_the_middle_of_each_raster(parent: Corpus, middle: Corpus) -> None:
    slots, cut = parent_slots(middle, parent), slice(4, 12)
    for name in ("sentinel2_l2a", "esa_worldcover"):
        whole = cube(parent)[f"{name}/data"][:][slots]
        np.testing.assert_array_equal(cube(middle)[f"{name}/data"][:], whole[..., cut, cut])
    np.testing.assert_array_equal(cube(middle)["era5/data"][:], cube(parent)["era5/data"][:][slots])


def test_a_crop_moves_the_transform_by_what_was_cut_off(parent: Corpus, middle: Corpus) -> None:
    slots = parent_slots(middle, parent)
    before, after = cube(parent)["transform"][:][slots], cube(middle)["transform"][:]
    np.testing.assert_allclose(after - before, np.tile([0, 0, 40, 0, 0, -40], (8, 1)))
    places = middle.locations()
    assert set(places["size"]) == {HALF}
    first = places[places["alternate"] == 0].set_index("slot")
    stored = [row for row in middle.records().to_pylist() if row["alternate"] == 0]
    assert stored
    assert all((row["x0"], row["y0"]) == tuple(first.loc[row["slot"], ["x0", "y0"]]) for row in stored)


def test_a_crops_fractions_and_checksums_are_its_own(parent: Corpus, middle: Corpus) -> None:
    codes, slots = parent.modalities["sentinel2_l2a"].clear.codes, parent_slots(middle, parent)  # type: ignore[union-attr]
    rows = [r for r in middle.records().to_pylist() if r["status"] == "stored" and r["gsd"]]
    for row in rows:
        chip = middle.read_chip(row["modality"], row["slot"])
        assert row["sha256"] == hashlib.sha256(chip.tobytes()).hexdigest()
        assert row["valid_fraction"] == pytest.approx((chip != middle.modalities[row["modality"]].nodata).mean())
        assert (row["height"], row["width"]) == chip.shape[1:]
    optical = [row for row in rows if row["modality"] == "sentinel2_l2a"]
    assert optical
    for row in optical:
        scl = parent.read_chip("sentinel2_scl", slots[row["slot"]])[0, 4:12, 4:12]
        assert row["clear_fraction"] == pytest.approx(np.isin(scl, codes).mean())


def test_only_what_is_inside_is_in_the_catalogue(middle: Corpus) -> None:
    collection = json.loads(middle.store.get("collection.json"))
    kept = {"sentinel2_l2a", "esa_worldcover", "era5"}
    assert set(collection["item_assets"]) == kept == set(middle.modalities)
    assert {name for entry in collection["mmbuild:licences"] for name in entry["modalities"]} == kept


def test_a_sample_with_nothing_left_is_not_taken(parent: Corpus, tmp_path: Path) -> None:
    taster = cut_taster(parent, tmp_path / "taster", samples=8, modalities=["sentinel2_l2a"])
    assert [row["status"] for row in taster.records().to_pylist()] == ["stored"] * 8
    stored = sum(r["modality"] == "sentinel2_l2a" and r["status"] == "stored" for r in parent.records().to_pylist())
    with pytest.raises(UserError, match=f"24 samples are asked, only {stored} have something left"):
        cut_taster(parent, tmp_path / "more", samples=24, modalities=["sentinel2_l2a"])


# -- megabytes, places, interruptions -------------------------------------------------------------------------------


def bytes_of(corpus: Corpus) -> int:
    return sum(corpus.store.size(key) for key in corpus.store.list() if not key.startswith("runs/"))


def test_max_mb_takes_as_many_as_fit_with_all_files(parent: Corpus, twelve: Corpus, tmp_path: Path) -> None:
    limit = bytes_of(twelve) + 2000
    taster = cut_taster(parent, tmp_path / "taster", max_mb=limit / 1e6)
    assert bytes_of(taster) <= limit
    assert ids(taster)[:12] == ids(twelve)[: len(ids(taster))]
    assert 10 <= len(ids(taster)) <= 12


def test_too_few_megabytes_are_refused_with_what_one_sample_takes(parent: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--max-mb: one sample takes 0\.\d\d MB with all files of a corpus, 0\.01 are"):
        cut_taster(parent, tmp_path / "taster", max_mb=0.01)
    with pytest.raises(UserError, match="there is no corpus here"):
        open_corpus(tmp_path / "taster")


def test_an_object_store_holds_the_same_taster(parent: Corpus, twelve: Corpus, bucket_url: str, tmp_path: Path) -> None:
    far = cut_taster(parent, bucket_url, samples=12)
    assert snapshot(far.store) == snapshot(twelve.store)
    back = cut_taster(far, tmp_path / "back", samples=4)
    assert len(ids(back)) == 4


def test_an_interrupted_taster_is_no_corpus_and_the_same_command_makes_it(
    parent: Corpus, twelve: Corpus, tmp_path: Path
) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_taster(parent, tmp_path / "taster", samples=9, progress=stop)
    with pytest.raises(UserError, match="there is no corpus here"):
        open_corpus(tmp_path / "taster")
    assert snapshot(cut_taster(parent, tmp_path / "taster", samples=12).store) == snapshot(twelve.store)
    before = snapshot(tmp_path / "taster")
    cut_taster(parent, tmp_path / "taster", samples=12)
    assert snapshot(tmp_path / "taster") == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "taster: needs one of a number of samples and a size; give --samples N or --max-mb M"),
        ({"samples": 2, "max_mb": 1.0}, "taster: needs one of a number of samples and a size"),
        ({"samples": 25}, "25 samples are asked, 24 are stored; ask for fewer"),
        ({"samples": 2, "size": 17}, "--size: 17 pixels of 10 m are not in a chip of 16, or no whole number of pixels"),
        ({"samples": 2, "modalities": ["era"]}, "--modalities: no modality 'era' in "),
        ({"samples": 2, "land_cover": "era5"}, "--land-cover: era5 is no raster of classes in this corpus; "),
    ],
)
def test_what_a_corpus_cannot_give_is_refused(parent: Corpus, tmp_path: Path, options: Any, text: str) -> None:
    with pytest.raises(UserError) as caught:
        cut_taster(parent, tmp_path / "taster", **options)
    assert text in str(caught.value)
    assert not (tmp_path / "taster").exists()


def test_a_tile_is_not_cropped(parent: Corpus) -> None:
    lock = parent.lock | {"recipe": parent.lock["recipe"] | {"grid": {"kind": "webmercator", "zoom": 14, "size": 256}}}
    with pytest.raises(UserError, match="--size: the middle of a web-mercator tile is no tile; leave it out, or cut"):
        shape_of(Corpus(parent.store, lock), 128, None)


def test_a_place_with_something_else_in_it_is_refused(parent: Corpus, twelve: Corpus, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="there are files of something else here; cut the taster into an empty folder"):
        cut_taster(parent, tmp_path, samples=2)
    with pytest.raises(UserError, match="there is a corpus here already; cut the taster into another folder"):
        cut_taster(parent, parent.store.url, samples=2)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unfinished_parent_is_refused(parent: Corpus, tmp_path: Path) -> None:
    store = open_store(tmp_path / "half")
    store.put("recipe.lock.json", parent.store.get("recipe.lock.json"))
    with pytest.raises(UserError, match="the corpus is not finished; run its build again, or mmbuild catalog on it"):
        cut_taster(store.url, tmp_path / "taster", samples=2)


# -- the order, by itself -------------------------------------------------------------------------------------------


def test_equal_shares_are_taken_in_turn() -> None:
    labels = {"letter": ["a", "b", "c"] * 4}
    order = [labels["letter"][i] for i in stratified_order(labels, np.random.default_rng(0).random(12))]
    assert all(Counter(order[:n]).most_common()[0][1] == math.ceil(n / 3) for n in range(1, 13))


def test_ties_decide_among_samples_with_the_same_labels() -> None:
    assert list(stratified_order({"one": ["x"] * 5}, np.array([0.4, 0.1, 0.3, 0.0, 0.2]))) == [3, 1, 4, 2, 0]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=1, max_size=40), st.integers(0, 99))
def test_every_sample_is_taken_once_and_the_lags_stay_small(rows: list[tuple[str, str]], seed: int) -> None:
    labels = dict(zip(("first", "second"), map(list, zip(*rows, strict=True)), strict=True))
    order = list(stratified_order(labels, np.random.default_rng(seed).random(len(rows))))
    assert sorted(order) == list(range(len(rows)))
    last = distances(labels, order)
    assert all(own["total_variation"] == 0 for own in last.values())


def test_a_taster_is_nearer_to_its_parent_than_a_random_draw(twelve: Corpus) -> None:
    variables = twelve.lock["taster"]["distance"]["variables"]
    assert all(own["total_variation"] < own["random_draw"] for own in variables.values())


def test_the_distance_is_the_total_variation_of_the_shares() -> None:
    found = distances({"kind": ["a", "a", "a", "b"]}, [0, 3])["kind"]
    assert found["total_variation"] == 0.25  # 3/4, 1/4 against 1/2, 1/2
    assert (found["labels"], found["labels_here"]) == (2, 2)


def test_the_distance_of_a_random_draw_is_its_mean_over_all_draws() -> None:
    labels = ["a", "a", "b", "c"]
    shares = {"a": 0.5, "b": 0.25, "c": 0.25}
    mean = 0.0
    for draw in itertools.product("abc", repeat=3):
        own = Counter(draw)
        distance = sum(abs(own[name] / 3 - share) for name, share in shares.items()) / 2
        mean += math.prod(shares[name] for name in draw) * distance
    assert distances({"kind": labels}, [0, 1, 2])["kind"]["random_draw"] == pytest.approx(mean, abs=1e-6)


def test_labels_are_bands_of_latitude_and_the_most_frequent_class(parent: Corpus) -> None:
    assert latitude_bands(np.array([-0.1, 0.0, 14.9, 47.0])) == ["-15 to 0", "0 to 15", "0 to 15", "45 to 60"]
    modality = parent.modalities["esa_worldcover"]
    assert dominant(np.array([[10, 10, 255, 255, 255, 20]], np.uint8), modality) == 10
    assert dominant(np.array([[20, 10, 10, 20]], np.uint8), modality) == 10
    assert dominant(np.array([[255, 255]], np.uint8), modality) is None
