"""Which scenes make up a sample: pure rules over a table of candidates, the same for every source.

It reads no pixels and asks nobody; given the same samples, scenes and clear fractions it always answers the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from odc.geo.geobox import GeoBox

from mmbuild.grid import at_gsd, box_from_corner
from mmbuild.modality import Modality
from mmbuild.recipe import Anchor, Recipe
from mmbuild.times import month_start, window_around, year_window

# How many candidates are screened for clear pixels in each round before a place is given up: a few first
# (most acceptable granules pass), then one bigger round, so that a shard needs two metadata requests at most.
SCREEN_ROUNDS = (2, 6)
ONE_PASS_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One place and time the corpus asks for: candidate ``alternate`` of slot ``slot``."""

    slot: int
    alternate: int
    sample_id: str
    lon: float
    lat: float
    epsg: int
    x0: float  # outer left edge, metres in the CRS
    y0: float  # outer top edge
    gsd: float
    size: int  # pixels of the sample grid in both directions
    date: datetime | None
    anchor_year: int | None
    tags: Mapping[str, Any] = field(default_factory=dict)

    def grid(self, gsd: float | None = None) -> GeoBox:
        """The sample's ground as a grid, at its own pixel size or at ``gsd`` metres."""
        box = box_from_corner(self.epsg, self.x0, self.y0, gsd=self.gsd, size=self.size)
        return box if gsd is None else at_gsd(box, gsd)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One candidate acquisition or product image, as metadata."""

    slot: int
    modality: str
    scene_id: str
    time: datetime | None
    epsg: int | None = None
    cloud: float | None = None  # percent of the granule
    bands: tuple[str, ...] | None = None  # the source's band names; None: all that were asked
    values: Mapping[str, float] | None = None  # image-level products: source band -> value at the sample


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one modality of one sample is made of; no scenes means there is none, and ``reason`` says why."""

    modality: str
    scenes: tuple[Scene, ...] = ()
    when: datetime | None = None
    window: tuple[datetime, datetime] | None = None
    delta_days: float | None = None
    clear_fraction: float | None = None
    status: str = "stored"
    reason: str = ""


def draw(seed: int, *key: object) -> float:
    """A number in [0, 1) that depends on the key alone: the same in any process, in any order."""
    digest = hashlib.sha256("|".join(map(str, (seed, *key))).encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def anchor_year(seed: int, slot: int, alternate: int, years: Sequence[int]) -> int | None:
    """The year in which a sample's anchor is looked for."""
    return years[int(draw(seed, slot, alternate, "year") * len(years))] if years else None


def anchor_window(sample: Sample, anchor: Anchor) -> tuple[datetime, datetime]:
    """Half-open interval in which the anchor may lie: around the sample's own date, or its year."""
    if sample.date is not None and anchor.max_days is not None:
        return window_around(sample.date, anchor.max_days)
    if sample.anchor_year is not None:
        return year_window(sample.anchor_year)
    assert sample.date is not None, "the planner gives every sample a date or a year"
    return year_window(sample.date.year)


def rank_anchors(sample: Sample, scenes: Iterable[Scene], recipe: Recipe) -> list[Scene]:
    """Candidate anchors, best first.

    Products of ``one_of`` are tried in an order drawn for the sample; inside a product, scenes on the sample's
    own CRS come first, then the recipe's rule (random, least cloudy, nearest) decides, and the id breaks ties.
    """
    products = list(recipe.anchor.products)
    products.sort(key=lambda name: draw(recipe.seed, sample.slot, sample.alternate, "product", name))
    window = anchor_window(sample, recipe.anchor)
    limit = recipe.anchor.max_cloud
    fit = [
        scene
        for scene in scenes
        if scene.slot == sample.slot
        and scene.modality in products
        and scene.time is not None
        and window[0] <= scene.time < window[1]
        and (limit is None or scene.cloud is None or scene.cloud <= limit)
    ]

    def rank(scene: Scene) -> tuple[Any, ...]:
        return (
            products.index(scene.modality),
            scene.epsg != sample.epsg,
            *_rule(scene, sample, recipe),
            scene.scene_id,
        )

    return sorted(fit, key=rank)


def _rule(scene: Scene, sample: Sample, recipe: Recipe) -> tuple[float, ...]:
    match recipe.anchor.pick:
        case "random":
            return (draw(recipe.seed, sample.slot, sample.alternate, scene.scene_id),)
        case "least_cloudy":
            return (scene.cloud if scene.cloud is not None else 100.0, _distance(scene, sample.date))
        case _:
            return (_distance(scene, sample.date),)


def _distance(scene: Scene, when: datetime | None) -> float:
    if scene.time is None or when is None:
        return 0.0
    return abs((scene.time - when).total_seconds())


def accept(ranked: Sequence[Scene], clear: Mapping[str, float | None], min_clear: float | None) -> Scene | None:
    """The first ranked scene that is clear enough; scenes not screened yet (absent from ``clear``) do not count."""
    for scene in ranked:
        if min_clear is None:
            return scene
        fraction = clear.get(scene.scene_id)
        if fraction is not None and fraction >= min_clear:
            return scene
    return None


def why_no_anchor(ranked: Sequence[Scene], clear: Mapping[str, float | None], anchor: Anchor) -> tuple[str, str]:
    """Status and reason of a sample whose anchor could not be chosen."""
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


def choose_all(
    sample: Sample,
    anchor: Scene | None,
    scenes: Iterable[Scene],
    recipe: Recipe,
    *,
    clear: float | None = None,
) -> dict[str, Choice]:
    """The choice for every modality of the recipe, given the anchor scene (None: none was needed or found)."""
    own: dict[str, list[Scene]] = {name: [] for name in recipe.modality_defs}
    for scene in scenes:
        if scene.slot == sample.slot and scene.modality in own:
            own[scene.modality].append(scene)
    when = anchor.time if anchor is not None else sample.date
    chosen: dict[str, Choice] = {}
    for name, modality in recipe.modality_defs.items():
        if name in recipe.anchor.products:
            chosen[name] = _anchor_choice(name, anchor, clear, sample)
        elif modality.same_scene_as is None:
            chosen[name] = _follow(modality, own[name], when, sample, recipe)
    for name, modality in recipe.modality_defs.items():
        if modality.same_scene_as is not None:
            chosen[name] = _companion(modality, chosen.get(modality.same_scene_as), own[name])
    return {name: chosen[name] for name in recipe.modality_defs}


def _anchor_choice(name: str, anchor: Scene | None, clear: float | None, sample: Sample) -> Choice:
    if anchor is None:
        return Choice(modality=name, status="no_data", reason=f"no {name} scene in the anchor window")
    if name != anchor.modality:
        return Choice(modality=name, status="not_asked", reason=f"the anchor of this sample is {anchor.modality}")
    delta = None if sample.date is None or anchor.time is None else _days(anchor.time, sample.date)
    return Choice(modality=name, scenes=(anchor,), when=anchor.time, delta_days=delta or 0.0, clear_fraction=clear)


def _companion(modality: Modality, host: Choice | None, own: Sequence[Scene]) -> Choice:
    """The image of ``modality`` that belongs to the very scene chosen for its host."""
    name = modality.name
    if host is None or not host.scenes:
        return Choice(modality=name, status="not_asked", reason=f"{modality.same_scene_as} has no scene here")
    index = scene_index(host.scenes[0])
    twin = next((scene for scene in own if scene_index(scene) == index), None)
    if twin is None:
        return Choice(modality=name, status="no_data", reason=f"no {name} for scene {index}")
    return Choice(modality=name, scenes=(twin,), when=twin.time, delta_days=host.delta_days)


def scene_index(scene: Scene) -> str:
    """The last part of a scene's id, which products derived from one acquisition share."""
    return scene.scene_id.rsplit("/", 1)[-1]


def _follow(modality: Modality, own: Sequence[Scene], when: datetime | None, sample: Sample, recipe: Recipe) -> Choice:
    if modality.is_derived:
        return Choice(modality=modality.name, when=when)
    match modality.time:
        case "static":
            return _static(modality.name, own)
        case "year":
            return _year(modality.name, own, when)
        case "months":
            return _months(modality, own, when)
        case _:
            return _nearest(modality.name, own, when, sample, recipe)


def _static(name: str, own: Sequence[Scene]) -> Choice:
    if not own:
        return Choice(modality=name, status="no_data", reason=f"no {name} image covers the sample")
    scenes = tuple(sorted(own, key=lambda scene: scene.scene_id))
    return Choice(modality=name, scenes=scenes, when=scenes[0].time)


def _year(name: str, own: Sequence[Scene], when: datetime | None) -> Choice:
    if when is None:
        return Choice(modality=name, status="no_data", reason="the sample has no date, so no year")
    window = year_window(when.year)
    inside = sorted((s for s in own if _inside(s, window)), key=lambda scene: (scene.time, scene.scene_id))
    if not inside:
        return Choice(modality=name, window=window, status="no_data", reason=f"no {name} image in {when.year}")
    return Choice(modality=name, scenes=tuple(inside), window=window)


def _months(modality: Modality, own: Sequence[Scene], when: datetime | None) -> Choice:
    name = modality.name
    if when is None or modality.months is None:
        return Choice(modality=name, status="no_data", reason="the sample has no date, so no months before it")
    window = (month_start(when, modality.months[0]), month_start(when, modality.months[-1] + 1))
    inside = sorted((s for s in own if _inside(s, window)), key=lambda scene: (scene.time, scene.scene_id))
    if not inside:
        return Choice(modality=name, window=window, status="no_data", reason=f"no {name} month in the window")
    return Choice(modality=name, scenes=tuple(inside), window=window)


def _nearest(name: str, own: Sequence[Scene], when: datetime | None, sample: Sample, recipe: Recipe) -> Choice:
    limit = recipe.modalities[name].max_days
    if when is None:
        return Choice(modality=name, status="no_data", reason="the sample has no anchor date")
    dated = [scene for scene in own if scene.time is not None]
    if not dated:
        reach = "in the anchor's window; max_days looks further" if limit is None else f"within {limit:g} days"
        return Choice(modality=name, status="no_data", reason=f"no {name} scene covers the sample {reach}")
    # Acquisitions within a minute of the nearest are one pass cut into scenes: prefer the one on the sample's CRS.
    nearest = min(_distance(scene, when) for scene in dated)
    one_pass = [scene for scene in dated if _distance(scene, when) <= nearest + ONE_PASS_S]
    best = min(one_pass, key=lambda scene: (scene.epsg != sample.epsg, _distance(scene, when), scene.scene_id))
    assert best.time is not None
    delta = _days(best.time, when)
    if limit is not None and abs(delta) > limit:
        reason = f"the nearest {name} scene is {abs(delta):.1f} days away, at most {limit:g} are allowed"
        return Choice(modality=name, status="no_data", reason=reason)
    return Choice(modality=name, scenes=(best,), when=best.time, delta_days=delta)


def _inside(scene: Scene, window: tuple[datetime, datetime]) -> bool:
    return scene.time is not None and window[0] <= scene.time < window[1]


def _days(later: datetime, earlier: datetime) -> float:
    return (later - earlier).total_seconds() / 86_400
