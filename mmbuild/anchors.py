"""Which scene dates a sample, at each of its time steps: pure rules over candidates, the same for every source.

Every draw is a function of the recipe's seed and the place; which other scenes follow from an anchor is decided in
``choose``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from mmbuild.choose import Anchored, Sample, Scene, Step, distance_s
from mmbuild.published import tile_draws
from mmbuild.recipe import Anchor, Recipe, Seasons
from mmbuild.times import month_start, parse_date, window_around, year_window

# How many candidates are screened for clear pixels in each round before a place is given up: a few first
# (most acceptable granules pass), then one bigger round, so that a shard needs two metadata requests at most.
SCREEN_ROUNDS = (2, 6)


def draw(seed: int, *key: object) -> float:
    """A number in [0, 1) that depends on the key alone: the same in any process, in any order."""
    digest = hashlib.sha256("|".join(map(str, (seed, *key))).encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def anchor_year(recipe: Recipe, slot: int, alternate: int, lon: float, lat: float) -> int | None:
    """The year in which the anchor of a place is looked for."""
    years = recipe.anchor.years
    if not years:
        return None
    if recipe.anchor.draws == "published_seeds":
        return tile_draws(lon, lat, first_year=years[0], last_year=years[-1]).year
    return years[int(draw(recipe.seed, slot, alternate, "year") * len(years))]


def steps(sample: Sample, recipe: Recipe) -> tuple[Step, ...]:
    """The time steps of a sample, the earliest first: one around its own date or year unless the recipe has more."""
    times = recipe.times
    if times is None:
        return (Step(time=0, window=anchor_window(sample, recipe.anchor), target=sample.date),)
    if isinstance(times, Seasons):
        back = timedelta(days=phase(recipe.seed, sample.slot, sample.alternate, times.phase_days))
        dates = [parse_date(text) - back for text in times.dates]
        return tuple(
            Step(time=i, window=window_around(date, times.max_days), target=date) for i, date in enumerate(dates)
        )
    first = anchor_window(sample, recipe.anchor)[0]
    months = [(month_start(first, i), month_start(first, i + 1)) for i in range(times.count)]
    return tuple(Step(time=i, window=(a, b), target=a + (b - a) / 2) for i, (a, b) in enumerate(months))


def phase(seed: int, slot: int, alternate: int, most: int) -> int:
    """Whole days, 0 to ``most``, by which all dates of a sample go back."""
    return int(draw(seed, slot, alternate, "phase") * (most + 1))


def anchor_window(sample: Sample, anchor: Anchor) -> tuple[datetime, datetime]:
    """Half-open interval in which the anchor of a sample with one step may lie: around its own date, or its year."""
    if sample.date is not None and anchor.max_days is not None:
        return window_around(sample.date, anchor.max_days)
    year = sample.anchor_year if sample.anchor_year is not None or sample.date is None else sample.date.year
    assert year is not None, "the planner gives every sample a date or a year"
    if anchor.windows is not None and year in anchor.years:
        first, end = map(parse_date, anchor.windows[anchor.years.index(year)])
        return first, end
    return year_window(year)


def rank_anchors(sample: Sample, step: Step, scenes: Iterable[Scene], recipe: Recipe) -> list[Scene]:
    """Candidate anchors of a step, best first.

    Products of ``one_of`` are tried in an order drawn for the sample; inside a product, scenes on the sample's
    own CRS come first, then the recipe's rule (random, least cloudy, nearest, latest) decides, and the id breaks ties.
    """
    products = list(recipe.anchor.products)
    products.sort(key=lambda name: draw(recipe.seed, sample.slot, sample.alternate, "product", name))
    limit = recipe.anchor.max_cloud
    fit = [
        scene
        for scene in scenes
        if scene.slot == sample.slot
        and scene.modality in products
        and scene.time is not None
        and step.window[0] <= scene.time < step.window[1]
        and (limit is None or scene.cloud is None or scene.cloud <= limit)
    ]

    if recipe.anchor.draws == "published_seeds":
        return _drawn_as_published(sample, fit, recipe)

    def rank(scene: Scene) -> tuple[Any, ...]:
        return (
            products.index(scene.modality),
            scene.epsg != sample.epsg,
            *_rule(scene, sample, step, recipe),
            scene.scene_id,
        )

    return sorted(fit, key=rank)


def _drawn_as_published(sample: Sample, fit: Sequence[Scene], recipe: Recipe) -> list[Scene]:
    """The one scene that MMEarth's seeds draw, if any: its product first, then one of its scenes in their order.

    ``one_of`` is in the order of its draw: 0 is the first. Where the first has no scene the second is taken, never the
    other way round. (It looks for the second before it leaves out scenes that do not hold the whole tile.)
    """
    products, years = recipe.anchor.products, recipe.anchor.years
    draws = tile_draws(sample.lon, sample.lat, first_year=years[0], last_year=years[-1])
    for product in products[draws.is_l1c :]:
        own = sorted((s for s in fit if s.modality == product), key=lambda scene: scene.scene_id)
        if own:
            return [own[draws.image(len(own))]]
    return []


def _rule(scene: Scene, sample: Sample, step: Step, recipe: Recipe) -> tuple[float, ...]:
    match recipe.anchor.pick:
        case "random":
            return (draw(recipe.seed, sample.slot, sample.alternate, scene.scene_id),)
        case "least_cloudy":
            return (scene.cloud if scene.cloud is not None else 100.0, distance_s(scene, step.target))
        case "latest":
            return (-scene.time.timestamp() if scene.time is not None else 0.0,)
        case _:
            return (distance_s(scene, step.target),)


def accept(ranked: Sequence[Scene], clear: Mapping[str, float | None], anchor: Anchor) -> Scene | None:
    """The first ranked scene that is clear enough; scenes not screened yet (absent from ``clear``) do not count.

    Where the least cloudy one is asked for, the clearest of those that were screened, the better ranked of two.
    """
    if anchor.min_clear is None:
        return ranked[0] if ranked else None
    fit = [(scene, found) for scene in ranked if (found := clear.get(scene.scene_id)) is not None]
    fit = [(scene, found) for scene, found in fit if found >= anchor.min_clear]
    if not fit:
        return None
    return max(fit, key=lambda pair: pair[1])[0] if anchor.pick == "least_cloudy" else fit[0][0]


def anchored(
    step: Step, ranked: Sequence[Scene], clear: Mapping[str, float | None], anchor: Anchor, *, is_composite: bool
) -> Anchored:
    """The anchor of a step, or why there is none; the scenes of a composite are an anchor together."""
    if is_composite and ranked:
        return Anchored(step=step, status="stored")
    taken = None if is_composite else accept(ranked, clear, anchor)
    if taken is None:
        status, reason = why_no_anchor(ranked, clear, anchor)
        return Anchored(step=step, status=status, reason=reason)
    return Anchored(step=step, scene=taken, clear=clear.get(taken.scene_id), status="stored")


def why_no_anchor(ranked: Sequence[Scene], clear: Mapping[str, float | None], anchor: Anchor) -> tuple[str, str]:
    """Status and reason of a step whose anchor could not be chosen."""
    names = " or ".join(anchor.products)
    if not ranked:
        cloud = "" if anchor.max_cloud is None else f" with at most {anchor.max_cloud:g} % cloud"
        return "no_data", f"no {names} scene covers the sample{cloud}"
    seen = [fraction for scene in ranked if (fraction := clear.get(scene.scene_id)) is not None]
    best = f"the clearest has {max(seen):.2f}" if seen else "none has valid pixels"
    return (
        "rejected",
        f"{len(clear)} of {len(ranked)} {names} scenes screened, {best}, {anchor.min_clear:g} is asked",
    )
