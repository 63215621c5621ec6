"""Whatever happens to a build, running it again ends with the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmbuild.build import build_corpus
from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import IntegrityError, SourceError, UserError
from mmbuild.records import read_record, write_record
from mmbuild.sources.earthengine import EarthEngine
from mmbuild.status import summary
from tests.corpora import TINY, build_small, small_recipe, snapshot


class Interrupted(Exception):
    """Raised by a test's hook in the middle of a build."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """An uninterrupted build."""
    return build_small(tmp_path_factory.mktemp("straight") / "corpus")


def ledgers(out: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]


def test_every_sample_is_stored_and_every_missing_chip_has_a_reason(straight: Corpus) -> None:
    found = summary(straight)
    assert found["stored"] == 16
    assert found["synthetic"] is True
    rows = straight.records().to_pylist()
    assert len(rows) == 16 * len(straight.modalities)
    assert all(row["reason"] for row in rows if row["status"] != "stored")
    assert all((row["offset"] >= 0) == (row["status"] == "stored") for row in rows)


def test_every_stored_chip_names_its_scenes(straight: Corpus) -> None:
    for row in straight.records().to_pylist():
        modality = straight.modalities[row["modality"]]
        if row["status"] == "stored" and not modality.is_derived:
            assert row["scene_ids"], row["modality"]
            assert row["scene_count"] == len(row["scene_ids"])


def test_the_stored_bytes_have_the_recorded_digest(straight: Corpus) -> None:
    from mmbuild.cube import chip_digest

    for row in straight.records().to_pylist():
        if row["status"] == "stored":
            assert chip_digest(straight.read_chip(row["modality"], row["slot"])) == row["sha256"]


def test_a_second_run_stores_nothing_and_asks_for_no_pixels(straight: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    build_small(out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "runs" not in path.parts}
    build_small(out)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "runs" not in path.parts}
    assert after == before
    assert ledgers(out)[-1]["requests"]["pixel_requests"] == 0  # type: ignore[index]
    assert snapshot(out) == snapshot(straight.store)


def test_a_larger_corpus_keeps_the_bytes_of_the_smaller(straight: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    build_small(out, "samples=12")
    build_small(out, "samples=16")
    assert snapshot(out) == snapshot(straight.store)


def test_a_corpus_never_shrinks(straight: Corpus) -> None:
    with pytest.raises(UserError, match="has 16 samples already, 8 are asked"):
        build_corpus(small_recipe(), straight.store.url, samples=8)


def test_another_recipe_is_refused_and_the_changed_key_named(straight: Corpus) -> None:
    with pytest.raises(UserError, match=r"another recipe: the recipe changed \(seed\)"):
        build_small(straight.store.url, "seed=99")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cube.zarr").mkdir()
    (tmp_path / "cube.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(UserError, match="build into an empty folder"):
        build_small(tmp_path)


def test_interrupted_at_any_step_and_run_again_gives_the_same_bytes(straight: Corpus, tmp_path: Path) -> None:
    """Every seventh step here; the acceptance test takes every one."""
    steps: list[str] = []
    build_small(tmp_path / "counted", on_step=steps.append)
    for stop in range(0, len(steps), 7):
        out = tmp_path / f"stopped-{stop}"
        seen: list[str] = []

        def interrupt(name: str, stop: int = stop, seen: list[str] = seen) -> None:
            seen.append(name)
            if len(seen) > stop:
                raise Interrupted(name)

        with pytest.raises(Interrupted):
            build_small(out, on_step=interrupt)
        build_small(out)
        assert snapshot(out) == snapshot(straight.store), steps[stop]


def fail_slot(monkeypatch: pytest.MonkeyPatch, slot: int) -> None:
    """Reading this slot fails as during an outage, until the patch is undone."""
    read = EarthEngine.read

    def failing(self: EarthEngine, sample, choices):  # type: ignore[no-untyped-def]
        if sample.slot == slot:
            raise SourceError("Earth Engine answered 503: unavailable", transient=True)
        return read(self, sample, choices)

    monkeypatch.setattr(EarthEngine, "read", failing)


def test_a_retry_interrupted_at_any_step_of_its_shard_and_run_again_gives_the_same_bytes(
    straight: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dangerous moment: new arrays beside an old record, whose offsets point into other bytes."""
    steps: list[str] = []
    failed = tmp_path / "failed"
    fail_slot(monkeypatch, 1)
    build_small(failed)
    monkeypatch.undo()
    build_small(shutil.copytree(failed, tmp_path / "counted"), on_step=steps.append)
    inside = [index for index, name in enumerate(steps) if name.startswith("shard 0")]
    for stop in inside:
        out = shutil.copytree(failed, tmp_path / f"stopped-{stop}")
        left = [stop]

        def interrupt(name: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted(name)

        with pytest.raises(Interrupted):
            build_small(out, on_step=interrupt)
        build_small(out)
        assert snapshot(out) == snapshot(straight.store), steps[stop]


def test_a_build_killed_among_its_first_files_goes_on(straight: Corpus, tmp_path: Path) -> None:
    for step in ("checked", "locked", "located"):
        out = tmp_path / step

        def interrupt(name: str, step: str = step) -> None:
            if name == step:
                raise Interrupted(name)

        with pytest.raises(Interrupted):
            build_small(out, on_step=interrupt)
        build_small(out)
        assert snapshot(out) == snapshot(straight.store)


def test_a_damaged_shard_is_named_with_its_remedy_and_the_remedy_works(straight: Corpus, tmp_path: Path) -> None:
    out = Path(shutil.copytree(straight.store.url, tmp_path / "corpus"))
    shard = out / "cube.zarr/esa_worldcover/data/c/0/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 255
    shard.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"slot 0: .* delete shards/000000.parquet and run the build again"):
        open_corpus(out).read_chip("esa_worldcover", 0)
    (out / "shards/000000.parquet").unlink()
    build_small(out)
    assert snapshot(out) == snapshot(straight.store)


def test_a_list_of_places_without_a_number_of_samples_is_built_whole_and_run_again(tmp_path: Path) -> None:
    places = tmp_path / "places.csv"
    places.write_text("lon,lat,kind\n10.5,48.1,field\n11.5,48.2,town\n-60.1,-3.2,forest\n")
    settings = [f"sampler={{kind: points, file: {places}}}", "samples=null", "modalities.biome=null"]
    recipe = small_recipe(*settings[:2])
    kept = {name: use for name, use in recipe.modalities.items() if name != "biome"}
    recipe = recipe.model_copy(update={"modalities": kept})
    first = build_corpus(recipe, tmp_path / "corpus")
    assert first.n_slots == 3
    before = snapshot(first.store)
    build_corpus(recipe, tmp_path / "corpus")
    assert snapshot(first.store) == before


def test_two_endpoints_of_earth_engine_in_one_build_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be mixed in one build"):
        build_small(tmp_path / "corpus", "modalities.aster_gdem.source=earthengine")


def test_the_recipes_own_number_never_shrinks_a_corpus(straight: Corpus, tmp_path: Path) -> None:
    out = Path(shutil.copytree(straight.store.url, tmp_path / "corpus"))
    recipe = small_recipe("samples=8")
    assert build_corpus(recipe, out).n_slots == 16
    with pytest.raises(UserError, match="16 samples already, 8 are asked"):
        build_corpus(recipe, out, samples=8)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_bytes(straight: Corpus, tmp_path: Path, workers: int) -> None:
    build_small(tmp_path / "corpus", workers=workers)
    assert snapshot(tmp_path / "corpus") == snapshot(straight.store)


def test_a_bucket_holds_the_same_bytes_as_a_folder(straight: Corpus, bucket_url: str) -> None:
    corpus = build_small(bucket_url)
    assert snapshot(corpus.store) == snapshot(straight.store)
    assert corpus.open_xarray()["esa_worldcover"]["data"].shape[0] == 16


def test_a_failed_sample_is_kept_apart_retried_and_ends_with_the_same_bytes(
    straight: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    fail_slot(monkeypatch, 3)
    corpus = build_small(out)
    assert summary(corpus)["statuses"] == {"failed": 1, "stored": 15}
    assert "503" in next(iter(summary(corpus)["modalities"]["esa_worldcover"]["reasons"]))
    monkeypatch.undo()
    build_small(out)
    assert ledgers(out)[-1]["samples"] == {"stored": 8}, "only the shard with the failed sample was done again"
    assert ledgers(out)[-1]["requests"]["pixel_requests"] == 1  # type: ignore[index]
    assert snapshot(out) == snapshot(straight.store)


def test_a_stale_catalogue_is_noticed(straight: Corpus, tmp_path: Path) -> None:
    """A build killed between its last record and its catalogue leaves the old catalogue behind."""
    out = tmp_path / "corpus"
    build_small(out, "samples=8")
    steps: list[str] = []

    def interrupt(name: str) -> None:
        steps.append(name)
        if name == "split":
            raise Interrupted

    with pytest.raises(Interrupted):
        build_small(out, on_step=interrupt)
    build_small(out)
    assert snapshot(out) == snapshot(straight.store)


def test_readers_trust_only_commit_records(straight: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    corpus = build_small(out)
    corpus.store.delete("shards/000001.parquet")
    again = open_corpus(out)
    assert again.records().num_rows == 8 * len(corpus.modalities)
    assert (again.read_chip("esa_worldcover", 9) == again.modalities["esa_worldcover"].fill).all()


def test_a_record_reads_back_as_written(straight: Corpus, tmp_path: Path) -> None:
    from mmbuild.store import open_store

    rows = read_record(straight.store, 0).to_pylist()
    copy = open_store(tmp_path)
    write_record(copy, 0, rows)
    assert copy.get("shards/000000.parquet") == straight.store.get("shards/000000.parquet")


def test_no_credentials_for_the_live_service_names_both_remedies(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"earthengine authenticate.*--source sandbox"):
        build_corpus(TINY, tmp_path / "corpus", overrides=["source=earthengine"])
    assert not (tmp_path / "corpus" / "recipe.lock.json").exists()


def test_the_digest_of_the_recipe_ignores_samples_only() -> None:
    assert small_recipe("samples=8").digest == small_recipe("samples=16").digest
    assert small_recipe("seed=1").digest != small_recipe("seed=2").digest
