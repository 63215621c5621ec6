"""A corpus with several time steps a sample, from the recipe to the loader's batches."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from lightning_fabric import Fabric

from benchmarks.remote import range_server
from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import UserError
from mmbuild.report.picture import sample_picture
from mmbuild.sources.earthengine import EarthEngine
from mmbuild.status import summary
from mmbuild.stream.dataset import Samples
from mmbuild.stream.loader import Loader
from mmbuild.times import as_utc
from tests.corpora import build_small, snapshot
from train.config import load_config
from train.validate import Validation

REPO = Path(__file__).parents[1]

STEPS = 4
NAMES = ["sentinel2_l2a", "sentinel2_scl", "sentinel1_asc", "era5", "month", "esa_worldcover", "biome"]
SETTINGS = (
    "samples=8", "anchor.one_of=null", "anchor.modality=sentinel2_l2a", "anchor.years=[]", "anchor.pick=nearest",
    "times={kind: seasons, dates: [2019-12-21, 2020-03-20, 2020-06-21, 2020-09-22], max_days: 30, at_least: 3}",
)  # fmt: skip


def build(out: Path, *overrides: str, **options: Any) -> Corpus:
    from mmbuild.build import build_corpus
    from tests.corpora import small_recipe

    recipe = small_recipe(*SETTINGS, *overrides)
    uses = {name: use for name, use in recipe.modalities.items() if name in NAMES}
    return build_corpus(recipe.model_copy(update={"modalities": uses}), out, **options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tmp_path_factory.mktemp("steps") / "corpus")


@pytest.fixture(scope="module")
def rows(corpus: Corpus) -> list[dict[str, Any]]:
    return [row for row in corpus.records().to_pylist() if row["sample_status"] == "stored"]


def test_what_changes_has_a_step_for_every_date_and_what_does_not_has_one(corpus: Corpus) -> None:
    times = {name: corpus.shape(name)[0] for name in corpus.modalities}
    several = ("sentinel2_l2a", "sentinel2_scl", "sentinel1_asc", "era5", "month")
    assert times == {name: STEPS if name in several else 1 for name in NAMES}


def test_there_is_a_row_for_every_sample_modality_and_step(rows: list[dict[str, Any]], corpus: Corpus) -> None:
    found = [(row["slot"], row["modality"], row["time"]) for row in rows]
    slots = sorted({row["slot"] for row in rows})
    assert len(slots) >= 6, "hardly any sample was stored"
    assert found == [(s, n, t) for s in slots for n in corpus.modalities for t in range(corpus.shape(n)[0])]


def test_every_step_has_its_own_scene_near_its_own_date(rows: list[dict[str, Any]]) -> None:
    for slot in {row["slot"] for row in rows}:
        own = [row for row in rows if row["slot"] == slot and row["modality"] == "sentinel2_l2a"]
        there = [row for row in own if row["status"] == "stored"]
        assert len(there) >= 3
        assert len({row["scene_ids"][0] for row in there}) == len(there)
        assert all(abs(row["delta_days"]) <= 30 and row["clear_fraction"] >= 0.7 for row in there)
        dates = [row["datetime"] for row in there]
        assert all(29 < (b - a).days < 250 for a, b in pairwise(dates))
        # The dates that the steps asked for lie as far apart as those of the recipe.
        asked = {row["time"]: row["datetime"].timestamp() / 86_400 - row["delta_days"] for row in there}
        for a, b in pairwise(sorted(asked)):
            if b == a + 1:
                assert asked[b] - asked[a] == pytest.approx((90, 93, 93)[a], abs=1e-6)


def test_a_step_that_is_missing_says_why(rows: list[dict[str, Any]]) -> None:
    missing = [row for row in rows if row["status"] != "stored"]
    assert all(row["reason"] and row["sha256"] is None and row["offset"] == -1 for row in missing)


def test_companions_follow_step_by_step(rows: list[dict[str, Any]]) -> None:
    index = {(row["slot"], row["modality"], row["time"]): row for row in rows}
    for (slot, name, time), row in index.items():
        if name == "sentinel2_scl" and row["status"] == "stored":
            host = index[slot, "sentinel2_l2a", time]
            assert row["scene_ids"][0].rsplit("/", 1)[-1] == host["scene_ids"][0].rsplit("/", 1)[-1]


def test_one_pixel_request_carries_all_steps_of_a_sample(corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    ledgers = [json.loads(corpus.store.get(key)) for key in corpus.store.list("runs/") if key.endswith(".json")]
    requests = ledgers[-1]["requests"]
    assert requests["pixel_requests"] == len({row["slot"] for row in rows})


def test_the_cube_opens_as_sample_time_band_y_x_with_a_date_for_every_step(
    corpus: Corpus, rows: list[dict[str, Any]]
) -> None:
    group = xr.open_zarr(Path(corpus.store.url) / "cube.zarr", group="sentinel2_l2a")
    assert group["data"].dims == ("sample", "time", "band", "y", "x")
    assert group["data"].shape == (8, STEPS, 12, 16, 16)
    for row in rows:
        if row["modality"] == "sentinel2_l2a" and row["status"] == "stored":
            written = group["datetime"].values[row["slot"], row["time"]]
            assert as_utc(datetime.fromisoformat(str(written)[:19])) == row["datetime"].replace(microsecond=0)
            chip = corpus.read_chip("sentinel2_l2a", row["slot"], row["time"])
            shown = group["data"].values[row["slot"], row["time"]]
            assert np.array_equal(np.where(chip == 65535, np.nan, chip), shown, equal_nan=True)


def test_a_step_holds_the_very_pixels_of_its_scene(corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    """Asked for alone, as a corpus of one date would."""
    from mmbuild.choose import Choice, Scene
    from mmbuild.plan import samples_of
    from mmbuild.sources import SourceSpec

    row = next(r for r in rows if r["modality"] == "sentinel2_l2a" and r["time"] == 2 and r["status"] == "stored")
    places = corpus.locations().to_dict("records")
    samples = [s for s in samples_of(places) if (s.slot, s.alternate) == (row["slot"], row["alternate"])]
    source = EarthEngine(SourceSpec(name="sandbox"), dict(corpus.modalities), {"sentinel2_l2a": 10.0})
    scene = Scene(slot=row["slot"], modality="sentinel2_l2a", scene_id=row["scene_ids"][0], time=row["datetime"])
    alone = source.read(samples[0], {"any name": Choice(modality="sentinel2_l2a", scenes=(scene,))})["any name"]
    assert np.array_equal(alone, corpus.read_chip("sentinel2_l2a", row["slot"], 2))


def test_items_say_from_when_to_when_and_have_an_asset_for_every_step(corpus: Corpus) -> None:
    items = pq.read_table(Path(corpus.store.url) / "items.parquet").to_pylist()
    for item in items:
        assert item["start_datetime"] <= item["datetime"] <= item["end_datetime"]
        dated = [item["assets"][f"sentinel2_l2a.{t}"] for t in range(STEPS)]
        assert [asset["mmbuild:time"] for asset in dated if asset] == [t for t in range(STEPS) if dated[t]]
        assert {"esa_worldcover", "biome"} <= item["assets"].keys()


def test_batches_have_a_time_axis_and_a_date_for_every_step(corpus: Corpus) -> None:
    batch = next(iter(Loader(corpus, batch_size=2, shuffle=False, modalities=["sentinel2_l2a", "esa_worldcover"])))
    assert tuple(batch["sentinel2_l2a"].shape) == (2, STEPS, 12, 16, 16)
    assert tuple(batch["sentinel2_l2a_time"].shape) == (2, STEPS)
    assert tuple(batch["esa_worldcover"].shape) == (2, 1, 16, 16)
    first = corpus.read_chip("sentinel2_l2a", int(batch["index"][0]), 1)
    assert np.array_equal(batch["sentinel2_l2a_mask"][0, 1].numpy(), first != 65535)


def test_the_month_of_every_step_is_its_own(corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    anchors = {(r["slot"], r["time"]): r["datetime"] for r in rows if r["modality"] == "sentinel2_l2a"}
    seen = 0
    for (slot, time), when in anchors.items():
        if when is not None:
            sin, cos = corpus.read_chip("month", slot, time)
            month = round(np.arctan2(sin, cos) / (2 * np.pi) * 12) % 12
            assert month == when.month % 12
            seen += 1
    assert seen >= 18


def test_status_counts_samples_once_and_chips_by_step(corpus: Corpus) -> None:
    found = summary(corpus)
    assert sum(found["statuses"].values()) == 8
    entry = found["modalities"]["sentinel2_l2a"]
    assert sum(entry[s] for s in ("stored", "no_data", "rejected", "failed", "not_asked")) == 8 * STEPS


def test_a_sample_of_several_steps_is_drawn(corpus: Corpus, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert sample_picture(corpus, rows[0]["sample_id"], tmp_path / "sample.png").stat().st_size > 20_000


def test_interrupted_and_run_again_gives_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(name: str) -> None:
        if name.startswith("shard 0") and "era5" in name:
            raise Interrupted(name)

    with pytest.raises(Interrupted):
        build(tmp_path / "corpus", on_step=interrupt)
    build(tmp_path / "corpus")
    assert snapshot(tmp_path / "corpus") == snapshot(corpus.store)


def test_a_sample_with_too_few_dates_is_given_up_and_names_the_step(tmp_path: Path) -> None:
    impossible = build_small(
        tmp_path / "corpus",
        *SETTINGS,
        "times.at_least=4",
        "times.max_days=0.5",
        "alternates=0",
        "anchor.min_clear=null",
    )
    statuses = summary(impossible)["statuses"]
    assert statuses == {"no_data": 8}
    reason = open_corpus(tmp_path / "corpus").records(["reason"])["reason"][0].as_py()
    assert reason.startswith("step ")


# -- the loader reads the step that it is asked for, and no other


def by_sample(loader: Loader) -> dict[str, dict[str, Any]]:
    """Every entry of every sample of an epoch."""
    found = {}
    for batch in loader:
        for i, sample_id in enumerate(batch["id"]):
            found[sample_id] = {key: value[i] for key, value in batch.items() if hasattr(value, "shape")}
    return found


@pytest.mark.parametrize("time", ["random", 0, 3])
@pytest.mark.parametrize("options", [{"raw": True}, {"augment": True, "crop": 8}], ids=["raw", "training"])
def test_one_step_is_that_step_of_all_of_them(corpus: Corpus, time: Any, options: dict[str, Any]) -> None:
    whole = by_sample(Loader(corpus, batch_size=3, **options))
    for sample_id, one in by_sample(Loader(corpus, batch_size=2, time=time, **options)).items():
        step = int(one.pop("step"))
        assert time in ("random", step)
        for key, value in one.items():
            truth = whole[sample_id][key]
            if truth.ndim > value.ndim:
                truth = truth[step]
            np.testing.assert_array_equal(value.numpy(), truth.numpy())


def test_a_step_is_drawn_for_each_sample_and_epoch_whatever_batches_and_ranks_are(corpus: Corpus) -> None:
    one, ranks = Loader(corpus, batch_size=8, time="random"), []
    for rank in range(3):
        ranks.append(Loader(corpus, batch_size=1, time="random", rank=rank, world_size=3))
    steps = []
    for _ in range(8):
        straight = {k: int(v["step"]) for k, v in by_sample(one).items()}
        shared = {k: int(v["step"]) for loader in ranks for k, v in by_sample(loader).items()}
        assert straight == shared
        steps.append(straight)
    for sample_id in steps[0]:
        assert len({epoch[sample_id] for epoch in steps}) > 1


def test_the_chips_of_other_steps_are_neither_read_nor_decoded(corpus: Corpus) -> None:
    names = ["sentinel2_l2a", "sentinel1_asc"]
    all_steps, one_step = (Loader(corpus, modalities=names, batch_size=4, time=time) for time in ("all", 1))
    stored = {name: all_steps._reader.tables[name].length[[i for b in all_steps for i in b["index"]]] for name in names}
    list(one_step)
    assert one_step.meter.chunks == sum(int((length[:, 1] > 0).sum()) for length in stored.values())
    assert one_step.meter.read_bytes == sum(int(length[:, 1].sum()) for length in stored.values())


def test_on_a_web_server_too_in_blocks_and_by_index(corpus: Corpus) -> None:
    truth = by_sample(Loader(corpus, batch_size=4, time="random"))
    with range_server(Path(corpus.store.url), latency_s=0) as url:
        found = by_sample(Loader(url, batch_size=3, time="random", shuffle="blocks", block=2, window=2))
    samples = Samples(corpus, time="random")
    found_too = {one["id"]: {k: v for k, v in one.items() if hasattr(v, "shape")} for one in samples}
    for other in (found, found_too):
        assert other.keys() == truth.keys()
        for sample_id, entries in truth.items():
            for key, value in entries.items():
                np.testing.assert_array_equal(other[sample_id][key], value)


@pytest.mark.parametrize(("time", "text"), [(4, "time: 4 must be 0 to 3"), ("spring", "time: 'spring' must be one of")])
def test_a_step_that_there_is_not_is_refused(corpus: Corpus, time: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        Loader(corpus, batch_size=1, time=time)


def test_a_look_at_a_model_that_sees_one_step_loads_the_first_alone(corpus: Corpus) -> None:
    name = "sentinel2_l2a"
    changes = ["view.time=random", f"model.crop={corpus.shape(name)[-1]}", "validate_every=1"]
    config = load_config(REPO / "train" / "configs" / "tiny.yaml", changes)
    one_process = Fabric(accelerator="cpu", devices=1)
    seen = Validation(corpus, config, [name], batch=8, fabric=one_process, split="train")
    truth = Loader(corpus, split="train", modalities=[name], batch_size=8, shuffle=False)
    for ours, whole in zip(seen.batches(), truth, strict=True):
        assert ours["id"] == whole["id"]
        np.testing.assert_array_equal(ours[name], whole[name][:, 0])
    assert seen._loader.meter.chunks * STEPS >= truth.meter.chunks > seen._loader.meter.chunks
