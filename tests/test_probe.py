"""A forecast from a few samples agrees with what a build then really asks for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmbuild.build import build_corpus, spec_of
from mmbuild.cube import Corpus
from mmbuild.errors import QuotaStop
from mmbuild.governor import Governor
from mmbuild.probe import Forecast, Visit, probe
from mmbuild.probe import _shard as shard_of
from mmbuild.probe import _table as table_of
from mmbuild.recipe import Recipe
from mmbuild.throttle import Budget, Limits
from tests.corpora import small_recipe

# Cloudy granules and a strict rule: some samples need the second round of scenes.
STRICT = ("anchor.max_cloud=100", "anchor.min_clear=0.95", "store.samples_per_shard=16", "samples=32")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return small_recipe(*STRICT)


@pytest.fixture(scope="module")
def forecast(recipe: Recipe) -> Forecast:
    return probe(recipe, spec_of(recipe), samples=32, probed=20)


@pytest.fixture(scope="module")
def ledger(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    corpus: Corpus = build_corpus(recipe, tmp_path_factory.mktemp("forecast") / "out")
    (key,) = [key for key in corpus.store.list("runs/") if key.endswith(".json")]
    # With what locating the places took, which the forecast counts too.
    found: dict[str, float] = json.loads(corpus.store.get(key))["sent"]
    return found


def test_a_probe_forecasts_within_a_fifth_of_what_the_build_then_asks(
    forecast: Forecast, ledger: dict[str, float]
) -> None:
    assert forecast.requests.expected == pytest.approx(ledger["requests"], rel=0.2)
    assert forecast.bytes.expected == pytest.approx(ledger["received_bytes"], rel=0.2)
    assert forecast.eecu_hours is not None
    assert forecast.eecu_hours.expected * 3600 == pytest.approx(ledger["eecu_s"], rel=0.2)


def test_the_interval_holds_what_the_build_then_asks(forecast: Forecast, ledger: dict[str, float]) -> None:
    assert forecast.requests.low <= ledger["requests"] <= forecast.requests.high
    assert forecast.requests.low < forecast.requests.high


def test_a_probe_says_what_it_spent(forecast: Forecast) -> None:
    assert forecast.probed == 20
    assert forecast.spent.pixel_requests >= forecast.stored
    assert forecast.spent.metadata_requests >= 2
    assert forecast.spent_s > 0


def test_samples_share_metadata_requests_as_a_shard_does() -> None:
    plain = table_of([[Visit(screened=[2], read=True)]] * 70)
    # 70 samples lie in blocks of 64 and 6, each with one search and one request for its pairs of scenes.
    np.testing.assert_array_equal(shard_of(plain), [1 + 1, 70, 1 + 1, 140, 70, 70])


def test_more_pairs_than_one_request_takes_are_screened_in_several() -> None:
    plain = table_of([[Visit(screened=[3], read=True)]] * 64)
    np.testing.assert_array_equal(shard_of(plain), [1, 64, 2, 192, 64, 64])


def test_a_second_place_costs_a_round_of_its_own() -> None:
    rejected = [Visit(screened=[2, 6], read=False), Visit(screened=[2], read=True)]
    table = table_of([rejected] + [[Visit(screened=[2], read=True)]] * 9)
    np.testing.assert_array_equal(shard_of(table), [1 + 1, 11, 1 + 1 + 1, 20 + 6 + 2, 10, 10])


def test_a_part_of_a_probe_forecasts_nothing() -> None:
    recipe = small_recipe()
    gate = Governor(Limits(), Budget(max_requests=4))
    with pytest.raises(QuotaStop, match=r"--max-requests 4 is used up.*forecasts nothing"):
        probe(recipe, spec_of(recipe), samples=16, probed=8, gate=gate)


def test_a_probe_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe()
    probe(recipe, spec_of(recipe), samples=16, probed=2)
    assert not list(tmp_path.iterdir())
