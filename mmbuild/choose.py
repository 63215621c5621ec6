"""Which scenes make up a sample: pure rules over a table of candidates, the same for every source.

It reads no pixels and asks nobody; given the same samples, scenes and clear fractions it always answers the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from odc.geo.geobox import GeoBox

from mmbuild.grid import at_gsd, box_from_corner
from mmbuild.modality import Modality
from mmbuild.recipe import Recipe
from mmbuild.times import month_start, year_window

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
class Step:
    """One time step of a sample: the half-open window in which its anchor may lie, and the date it should be near."""

    time: int
    window: tuple[datetime, datetime]
    target: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """The anchor of a step with its clear fraction; without a scene, the status and reason that say why."""

    step: Step
    scene: Scene | None = None
    clear: float | None = None
    status: str = "no_data"  # "stored" where there is an anchor: a scene, or the scenes of a composite
    reason: str = ""

    @property
    def when(self) -> datetime | None:
        """The moment that the other modalities of the step are looked for around."""
        return self.step.target if self.scene is None else self.scene.time


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one modality of one sample at one step is made of; without scenes there is none: ``reason`` says why."""

    modality: str
    time: int = 0
    scenes: tuple[Scene, ...] = ()
    when: datetime | None = None
    window: tuple[datetime, datetime] | None = None
    reduce: str | None = None  # how several scenes become one image: median, mean, or count of valid observations
    delta_days: float | None = None
    clear_fraction: float | None = None
    status: str = "stored"
    reason: str = ""


def key_of(modality: str, time: int, times: int) -> str:
    """What a chip of a sample is called: its modality, and where that has several time steps its step."""
    return modality if times == 1 else f"{modality}.{time}"


def choose_steps(
    sample: Sample, anchors: Sequence[Anchored], scenes: Sequence[Scene], recipe: Recipe
) -> dict[str, Choice]:
    """The choice for every chip of a sample, by ``key_of``: modalities in recipe order, then their steps.

    What has one step in a sample of several goes by the first step that has an anchor.
    """
    each = [choose_all(sample, anchored, scenes, recipe) for anchored in anchors]
    lead = next((i for i, anchored in enumerate(anchors) if anchored.status == "stored"), 0)
    found = {}
    for name in recipe.modality_defs:
        times = recipe.steps_of(name)
        for time in range(times):
            found[key_of(name, time, times)] = replace(each[time if times > 1 else lead][name], time=time)
    return found


def choose_all(sample: Sample, anchored: Anchored, scenes: Iterable[Scene], recipe: Recipe) -> dict[str, Choice]:
    """The choice for every modality of the recipe at one step."""
    own: dict[str, list[Scene]] = {name: [] for name in recipe.modality_defs}
    for scene in scenes:
        if scene.slot == sample.slot and scene.modality in own:
            own[scene.modality].append(scene)
    chosen: dict[str, Choice] = {}
    for name, modality in recipe.modality_defs.items():
        if recipe.modalities[name].composite is not None:
            chosen[name] = _composite(name, own[name], anchored.step, sample, recipe)
        elif name in recipe.anchor.products:
            chosen[name] = _anchor_choice(name, anchored)
        elif modality.same_scene_as is None and modality.count_of is None:
            chosen[name] = _follow(modality, own[name], anchored, sample, recipe)
    for name, modality in recipe.modality_defs.items():
        if modality.count_of is not None:
            chosen[name] = _count(modality, chosen.get(modality.count_of))
        elif modality.same_scene_as is not None:
            chosen[name] = _companion(modality, _host(modality.same_scene_as, chosen, recipe), own[name])
    return {name: chosen[name] for name in recipe.modality_defs}


def _anchor_choice(name: str, anchored: Anchored) -> Choice:
    anchor, target = anchored.scene, anchored.step.target
    if anchor is None:
        reason = anchored.reason or f"no {name} scene in the anchor window"
        return Choice(modality=name, status=anchored.status, reason=reason)
    if name != anchor.modality:
        return Choice(modality=name, status="not_asked", reason=f"the anchor of this sample is {anchor.modality}")
    delta = 0.0 if target is None or anchor.time is None else _days(anchor.time, target)
    return Choice(modality=name, scenes=(anchor,), when=anchor.time, delta_days=delta, clear_fraction=anchored.clear)


def _composite(name: str, own: Sequence[Scene], step: Step, sample: Sample, recipe: Recipe) -> Choice:
    """The scenes of a step's window, one of each pass, the least cloudy of them where only so many are asked for."""
    use = recipe.modalities[name]
    limit = recipe.anchor.max_cloud if use.max_cloud is None else use.max_cloud
    inside = [s for s in own if _inside(s, step.window) and _clear_enough(s, limit)]
    passes = sorted(_passes(inside, sample), key=lambda scene: (scene.cloud or 0.0, scene.time, scene.scene_id))
    scenes = sorted(passes[: use.max_scenes], key=lambda scene: (scene.time, scene.scene_id))
    if not scenes:
        reason = f"no {name} scene covers the sample between {step.window[0]:%Y-%m-%d} and {step.window[1]:%Y-%m-%d}"
        return Choice(modality=name, window=step.window, status="no_data", reason=reason)
    return Choice(modality=name, scenes=tuple(scenes), when=step.target, window=step.window, reduce=use.composite)


def _passes(scenes: Sequence[Scene], sample: Sample) -> list[Scene]:
    """One scene of each pass: a pass is cut into scenes that overlap, and its ground must not count twice."""
    found: list[Scene] = []
    for scene in sorted(scenes, key=lambda scene: (scene.time, scene.epsg != sample.epsg, scene.scene_id)):
        if not found or distance_s(scene, found[-1].time) > ONE_PASS_S:
            found.append(scene)
        elif found[-1].epsg != sample.epsg and scene.epsg == sample.epsg:
            found[-1] = scene
    return found


def _count(modality: Modality, host: Choice | None) -> Choice:
    """How many observations are behind each pixel of the host's composite."""
    if host is None or not host.scenes:
        return Choice(modality=modality.name, status="not_asked", reason=f"{modality.count_of} has no scene here")
    return replace(host, modality=modality.name, reduce="count")


def _host(asked: str, chosen: Mapping[str, Choice], recipe: Recipe) -> Choice | None:
    """The choice of a modality, or of whichever modality of an alias has a scene."""
    hosts = [chosen[name] for name in recipe.hosts(asked) if name in chosen]
    return next((host for host in hosts if host.scenes), hosts[0] if hosts else None)


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


def _follow(modality: Modality, own: Sequence[Scene], anchored: Anchored, sample: Sample, recipe: Recipe) -> Choice:
    when = anchored.when
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
            return _nearest(modality.name, own, anchored, sample, recipe)


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


def _nearest(name: str, own: Sequence[Scene], anchored: Anchored, sample: Sample, recipe: Recipe) -> Choice:
    limit, when = recipe.modalities[name].max_days, anchored.when
    if when is None:
        return Choice(modality=name, status="no_data", reason="the sample has no anchor date")
    use = recipe.modalities[name]
    dated = [scene for scene in own if scene.time is not None and _clear_enough(scene, use.max_cloud)]
    if use.pick == "latest":
        return _latest(name, dated, anchored, sample)
    if limit is None:
        dated = [scene for scene in dated if _inside(scene, anchored.step.window)]
    if not dated:
        reach = "in the anchor's window; max_days looks further" if limit is None else f"within {limit:g} days"
        return Choice(modality=name, status="no_data", reason=f"no {name} scene covers the sample {reach}")
    # Acquisitions within a minute of the nearest are one pass cut into scenes: prefer the one on the sample's CRS.
    nearest = min(distance_s(scene, when) for scene in dated)
    one_pass = [scene for scene in dated if distance_s(scene, when) <= nearest + ONE_PASS_S]
    best = min(one_pass, key=lambda scene: (scene.epsg != sample.epsg, distance_s(scene, when), scene.scene_id))
    assert best.time is not None
    delta = _days(best.time, when)
    if limit is not None and abs(delta) > limit:
        reason = f"the nearest {name} scene is {abs(delta):.1f} days away, at most {limit:g} are allowed"
        return Choice(modality=name, status="no_data", reason=reason)
    return Choice(modality=name, scenes=(best,), when=best.time, delta_days=delta)


def _latest(name: str, own: Sequence[Scene], anchored: Anchored, sample: Sample) -> Choice:
    """The last scene of the anchor's window, whatever the anchor is."""
    inside = [scene for scene in own if _inside(scene, anchored.step.window)]
    if not inside:
        reason = f"no {name} scene covers the sample in the anchor's window"
        return Choice(modality=name, status="no_data", reason=reason)
    best = max(inside, key=lambda scene: (scene.time, scene.epsg == sample.epsg, scene.scene_id))
    target = anchored.step.target or anchored.when
    delta = None if best.time is None or target is None else _days(best.time, target)
    return Choice(modality=name, scenes=(best,), when=best.time, delta_days=delta)


def _clear_enough(scene: Scene, limit: float | None) -> bool:
    """False for a scene that is known to be cloudier than ``limit`` percent."""
    return limit is None or scene.cloud is None or scene.cloud <= limit


def distance_s(scene: Scene, when: datetime | None) -> float:
    """Seconds between a scene and a moment; 0 where either has no date."""
    if scene.time is None or when is None:
        return 0.0
    return abs((scene.time - when).total_seconds())


def _inside(scene: Scene, window: tuple[datetime, datetime]) -> bool:
    return scene.time is not None and window[0] <= scene.time < window[1]


def _days(later: datetime, earlier: datetime) -> float:
    return (later - earlier).total_seconds() / 86_400
