"""A place that lacks a scene it cannot do without is left for its alternate before any of its pixels are asked for."""

from __future__ import annotations

from mmbuild.cube import layouts
from mmbuild.plan import locate, samples_of
from mmbuild.recipe import load_recipe
from mmbuild.shard import chip_readers, gather
from mmbuild.sources import SourceSpec, open_source

PLACES = 4


def test_no_pixels_are_read_where_a_required_modality_has_no_scene() -> None:
    # Anchors have dates, photographs are looked for within a quarter of an hour of them: there are none.
    recipe = load_recipe("tiny", ["modalities.naip={max_days: 0.01, required: true}", "grid.size=32"])
    gsd = {name: array.gsd for name, array in layouts(recipe).items() if array.gsd}
    source = open_source(SourceSpec(name="sandbox"), recipe.known_modalities | recipe.modality_defs, gsd)
    places = list(samples_of(locate(recipe, stop=PLACES, source=source).drop(columns="geometry").to_dict("records")))
    first = [place for place in places if place.alternate == 0]
    with chip_readers() as readers:
        outcomes, stopped = gather(recipe, source, first, readers, lambda name: None)
    assert not stopped
    statuses = [outcome.status for outcome in outcomes.values()]
    assert statuses.count("rejected") >= 1
    assert set(statuses) <= {"rejected", "no_data"}
    reasons = {outcome.reason for outcome in outcomes.values() if outcome.status == "rejected"}
    assert reasons == {"naip: no naip scene covers the sample within 0.01 days"}
    assert all(outcome.choices and outcome.anchor_time for outcome in outcomes.values() if outcome.status == "rejected")
    assert source.usage.pixel_requests == 0
    assert source.usage.metadata_requests >= 1
