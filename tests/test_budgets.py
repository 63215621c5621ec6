"""A budget or quota ends a build cleanly: what was read is kept, nothing is called failed, and the next run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmbuild.build import _check_compute, build_corpus
from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import QuotaStop, UserError
from mmbuild.recipe import Recipe, load_recipe
from mmbuild.shard import requests_before_pixels
from mmbuild.sources.earthengine import EarthEngine
from mmbuild.status import summary
from mmbuild.throttle import Budget
from tests.corpora import REPO, small_recipe, snapshot

# One product without dates, the cheapest to compute: what is tested is who stops when.
LIGHT = REPO / "benchmarks" / "recipes" / "chips64k.yaml"


def light_recipe(*overrides: str) -> Recipe:
    settings = ("source=sandbox", "grid.size=8", "samples=40", "store.samples_per_shard=8", *overrides)
    return load_recipe(LIGHT, settings)


def ledgers(out: Path) -> list[dict[str, dict[str, int]]]:
    return [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(light_recipe(), tmp_path_factory.mktemp("straight") / "corpus")


def test_a_build_of_many_small_budgets_ends_with_the_bytes_of_one_run(straight: Corpus, tmp_path: Path) -> None:
    out, runs = tmp_path / "corpus", 0
    while True:
        runs += 1
        try:
            corpus = build_corpus(light_recipe(), out, budget=Budget(max_requests=7))
            break
        except QuotaStop:
            assert ledgers(out)[-1]["sent"]["requests"] == 7
            assert runs < 40, "a budget that is renewed makes no progress"
    assert runs > 3
    assert snapshot(out) == snapshot(straight.store)
    assert summary(corpus)["statuses"] == {"stored": 40}


def test_a_stopped_build_says_which_budget_and_can_be_read(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with pytest.raises(QuotaStop, match=r"--max-requests 20 is used up: 20 requests were sent; \d of 5 shards were"):
        build_corpus(light_recipe(), out, budget=Budget(max_requests=20))
    corpus = open_corpus(out)
    found = summary(corpus)
    assert found["statuses"].get("failed", 0) == 0
    assert 0 < found["stored"] < 20
    assert found["missing"] == 40 - found["stored"]
    assert corpus.open_xarray()["aster_gdem"]["data"].shape[0] == 40


@pytest.mark.parametrize(
    "budget", [Budget(max_gb=6e-5), Budget(max_minutes=1e-4), Budget(max_eecu_hours=1e-4)], ids=["gb", "time", "eecu"]
)
def test_every_budget_stops_a_build_and_the_next_run_finishes_it(
    budget: Budget, straight: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(QuotaStop, match="is used up"):
        build_corpus(light_recipe(), tmp_path / "corpus", budget=budget)
    build_corpus(light_recipe(), tmp_path / "corpus")
    assert snapshot(tmp_path / "corpus") == snapshot(straight.store)


@pytest.mark.parametrize(
    ("budget", "fix"),
    [
        (Budget(max_requests=1), r"^--max-requests: --max-requests 1 is used up.*up to 1 requests; use 2 or more"),
        (Budget(max_gb=1e-9), r"^--max-gb: .*before the first sample was finished.*; use more"),
        (Budget(max_eecu_hours=1e-12), r"^--max-eecu-hours: .*before the first sample was finished.*; use more"),
    ],
)
def test_a_budget_that_no_sample_fits_into_is_refused_with_the_least_that_helps(
    budget: Budget, fix: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=fix):
        build_corpus(light_recipe(), tmp_path / "corpus", budget=budget)


def test_the_smallest_budget_makes_progress_each_time_it_is_renewed(straight: Corpus, tmp_path: Path) -> None:
    for runs in range(1, 60):
        try:
            build_corpus(light_recipe("samples=16"), tmp_path / "corpus", budget=Budget(max_requests=2))
            break
        except QuotaStop:
            assert summary(open_corpus(tmp_path / "corpus"))["stored"] == runs
    assert runs == 16


def test_a_shard_of_a_strict_recipe_says_how_much_it_asks_before_pixels() -> None:
    strict = small_recipe("anchor.min_clear=0.9", "store.samples_per_shard=64")
    # One search; two scenes, then six more of each sample, 128 in a request.
    assert requests_before_pixels(strict) == 1 + 1 + 3
    assert requests_before_pixels(light_recipe("store.samples_per_shard=130")) == 3


def test_compute_time_of_the_live_service_cannot_be_kept_and_is_refused_before_anything_is_asked() -> None:
    class Live:
        def tells_compute(self) -> bool:
            return False

    for source in (Live(), object()):
        with pytest.raises(UserError, match=r"^--max-eecu-hours: 5 EECU-hours cannot be kept.*; use --max-requests"):
            _check_compute(Budget(max_eecu_hours=5), source)  # type: ignore[arg-type]
    _check_compute(Budget(max_requests=5), Live())  # type: ignore[arg-type]


def test_a_quota_stop_of_the_service_behaves_alike(
    straight: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, left = EarthEngine.read, [11]

    def limited(self: EarthEngine, sample, choices):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] < 0:
            raise QuotaStop("Earth Engine's quota is used up: EECU-hours")
        return read(self, sample, choices)

    monkeypatch.setattr(EarthEngine, "read", limited)
    with pytest.raises(QuotaStop, match=r"EECU-hours; \d of 5 shards"):
        build_corpus(light_recipe(), tmp_path / "corpus")
    assert summary(open_corpus(tmp_path / "corpus"))["statuses"]["stored"] == 11
    monkeypatch.undo()
    build_corpus(light_recipe(), tmp_path / "corpus")
    assert snapshot(tmp_path / "corpus") == snapshot(straight.store)


def test_a_wrong_argument_in_one_shard_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = EarthEngine.read, []

    def forbidden(self: EarthEngine, sample, choices):  # type: ignore[no-untyped-def]
        asked.append(sample.slot)
        if sample.slot == 3:
            raise UserError("no permission", "asset", "ask for it")
        return read(self, sample, choices)

    monkeypatch.setattr(EarthEngine, "read", forbidden)
    with pytest.raises(UserError, match="no permission"):
        build_corpus(light_recipe("samples=400"), tmp_path / "corpus")
    assert len(asked) < 100


def test_a_budget_holds_over_worker_processes(straight: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with pytest.raises(QuotaStop, match="--max-requests"):
        build_corpus(light_recipe(), out, workers=2, budget=Budget(max_requests=25))
    assert ledgers(out)[-1]["sent"]["requests"] == 25
    assert summary(open_corpus(out))["statuses"].get("failed", 0) == 0
    build_corpus(light_recipe(), out, workers=2)
    assert snapshot(out) == snapshot(straight.store)
