"""The work of one shard: find a place and scenes for every slot, read the chips, write the arrays, then the record.

What did not work becomes a status with a reason; it never becomes pixels, and it never moves another sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from mmbuild import choose
from mmbuild.choose import Choice, Sample, Scene
from mmbuild.commit import OnStep, Outcome, keep, valid_mask, withdraw, withdrawn_key, write
from mmbuild.cube import layouts
from mmbuild.errors import QuotaStop, SourceError
from mmbuild.plan import samples_of
from mmbuild.recipe import Recipe
from mmbuild.records import write_record
from mmbuild.sources import Ask, Source, SourceSpec, Usage, derived, open_source
from mmbuild.store import open_store
from mmbuild.throttle import Gate
from mmbuild.times import month_start

# Threads that read a shard's chips. One shard alone can fill the 40 places that Earth Engine has; how many of them are
# under way is decided by the gate.
READ_THREADS = 40
# Samples that are searched, screened and read together. Blocks of one shard go side by side, so that some are read
# while others are searched, and a run that is stopped early has finished some.
BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard of work as plain data: ``rows`` are its rows of locations.parquet."""

    shard: int
    out: str
    recipe: Recipe
    source: SourceSpec
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a shard's task did; statuses count the samples of the shard.

    stopped: why a budget or quota ended it; finished samples are committed, the others are asked for by the next run.
    """

    shard: int
    statuses: Mapping[str, int]
    usage: Usage
    stopped: str = ""


def build_shard(task: ShardTask, step: OnStep = lambda name: None, gate: Gate | None = None) -> ShardResult:
    """Do what the shard still lacks and commit it; good chips of an earlier record are copied undecoded.

    gate: lets the source's requests pass; None sets no limit.
    """
    store, recipe = open_store(task.out), task.recipe
    arrays = layouts(recipe)
    source = open_source(
        task.source,
        recipe.known_modalities | recipe.modality_defs,
        {name: a.gsd for name, a in arrays.items() if a.gsd},
        gate,
    )
    kept_rows, kept_chunks = keep(store, task.shard, arrays)
    wanted = [row for row in task.rows if row["slot"] not in kept_rows]
    outcomes, stopped = gather(recipe, source, list(samples_of(wanted)), step)
    if stopped and not outcomes:
        return ShardResult(shard=task.shard, statuses={}, usage=source.usage, stopped=stopped)
    withdraw(store, task.shard)
    step(f"shard {task.shard}: withdrawn")
    rows, statuses = write(store, task.shard, arrays, kept_rows, kept_chunks, outcomes, step)
    step(f"shard {task.shard}: before the record")
    write_record(store, task.shard, rows)
    store.delete(withdrawn_key(task.shard))
    step(f"shard {task.shard}: committed")
    return ShardResult(shard=task.shard, statuses=statuses, usage=source.usage, stopped=stopped)


# -- which place, which scenes, which pixels ----------------------------------------------------------------------


def gather(
    recipe: Recipe, source: Source, candidates: Sequence[Sample], step: OnStep
) -> tuple[dict[int, Outcome], str]:
    """The outcome of every slot: its first candidate place that works, or the last one's reason.

    The second value says why a budget or quota ended the work; slots that were not finished then have no outcome.
    """
    queues: dict[int, list[Sample]] = {}
    for sample in candidates:
        queues.setdefault(sample.slot, []).append(sample)
    done: dict[int, Outcome] = {}
    history: dict[int, list[str]] = {slot: [] for slot in queues}
    stops: list[str] = []
    while any(queues.values()) and not stops:
        batch, before = [queue.pop(0) for queue in queues.values() if queue], copy(source.usage)
        for outcome in _attempts(recipe, source, batch, step, stops):
            slot = outcome.sample.slot
            history[slot].append(outcome.reason)
            # A place that failed is not a place without data: it keeps its turn and is asked again by the next build.
            if outcome.status in ("stored", "failed"):
                queues[slot] = []
            elif not queues[slot]:
                outcome.reason = _whole_story(history[slot])
            if not queues[slot]:
                done[slot] = outcome
        if any(sample.alternate for sample in batch):
            source.usage.add(Usage(alternate_requests=source.usage.since(before).requests))
    return done, stops[0] if stops else ""


def _whole_story(reasons: Sequence[str]) -> str:
    return reasons[0] if len(reasons) == 1 else f"{len(reasons)} places tried: {' | '.join(reasons)}"


def _attempts(
    recipe: Recipe, source: Source, samples: Sequence[Sample], step: OnStep, stops: list[str]
) -> list[Outcome]:
    """One candidate place of several slots, block by block side by side; ``stops`` takes why the work must end."""
    blocks = [samples[first : first + BLOCK] for first in range(0, len(samples), BLOCK)]

    def attempt(block: Sequence[Sample]) -> list[Outcome]:
        try:
            return _attempt(recipe, source, block, step, readers, stops)
        except QuotaStop as stop:
            stops.append(str(stop))
            return []

    with ThreadPoolExecutor(max_workers=READ_THREADS) as readers:
        if len(blocks) == 1:
            return attempt(blocks[0])
        with ThreadPoolExecutor(max_workers=len(blocks)) as side_by_side:
            return [outcome for found in side_by_side.map(attempt, blocks) for outcome in found]


def _attempt(
    recipe: Recipe, source: Source, samples: Sequence[Sample], step: OnStep, readers: Executor, stops: list[str]
) -> list[Outcome]:
    """Search, choose and read one candidate place of several slots; without those that a stop left unread."""
    try:
        scenes = _search(recipe, source, samples)
        step("searched")
        anchors, rest = _anchors(recipe, source, samples, scenes)
        step("screened")
    except SourceError as error:
        return [Outcome(sample=sample, status="failed", reason=str(error)) for sample in samples]
    jobs = []
    for sample in samples:
        if sample.slot in anchors:
            anchor, clear = anchors[sample.slot]
            choices = choose.choose_all(sample, anchor, scenes.get(sample.slot, ()), recipe, clear=clear)
            when = anchor.time if anchor is not None else sample.date
            jobs.append(Outcome(sample=sample, status="stored", anchor_time=when, choices=choices))

    def read(job: Outcome) -> Outcome | None:
        try:
            return _read(recipe, source, job)
        except QuotaStop as stop:
            stops.append(str(stop))
            return None

    found = [outcome for outcome in readers.map(read, jobs) if outcome is not None]
    step("read")
    return [*rest, *found]


def _search(recipe: Recipe, source: Source, samples: Sequence[Sample]) -> dict[int, list[Scene]]:
    """Candidate scenes by slot; a request that is too large is halved until it fits."""
    asks = {sample.slot: asks_of(recipe, sample) for sample in samples}
    try:
        found = source.search(samples, asks)
    except SourceError as error:
        if not error.too_large or len(samples) == 1:
            raise
        middle = len(samples) // 2
        return _search(recipe, source, samples[:middle]) | _search(recipe, source, samples[middle:])
    scenes: dict[int, list[Scene]] = {sample.slot: [] for sample in samples}
    for scene in found:
        scenes[scene.slot].append(scene)
    return scenes


def asks_of(recipe: Recipe, sample: Sample) -> list[Ask]:
    """What to look for: anchors inside their window, everything else wherever the anchor may lead it."""
    window = choose.anchor_window(sample, recipe.anchor)
    asks = []
    for name, modality in recipe.modality_defs.items():
        if modality.is_derived:
            continue
        use = recipe.modalities[name]
        if name in recipe.anchor.products:
            asks.append(Ask(modality=modality, window=window, max_cloud=recipe.anchor.max_cloud))
        elif modality.time == "static":
            asks.append(Ask(modality=modality, window=None))
        elif modality.time == "year":
            years = (datetime(window[0].year, 1, 1, tzinfo=window[0].tzinfo), _year_end(window[1]))
            asks.append(Ask(modality=modality, window=years))
        elif modality.time == "months":
            assert modality.months is not None
            first, last = (
                month_start(window[0], modality.months[0]),
                month_start(window[1], modality.months[-1] + 1),
            )
            asks.append(Ask(modality=modality, window=(first, last)))
        else:
            reach = timedelta(days=use.max_days if use.max_days is not None else 0.0)
            asks.append(Ask(modality=modality, window=(window[0] - reach, window[1] + reach)))
    return asks


def _year_end(end: datetime) -> datetime:
    """First moment after the calendar year that holds the last moment before ``end``."""
    return datetime((end - timedelta(milliseconds=1)).year + 1, 1, 1, tzinfo=end.tzinfo)


def _anchors(
    recipe: Recipe, source: Source, samples: Sequence[Sample], scenes: Mapping[int, Sequence[Scene]]
) -> tuple[dict[int, tuple[Scene | None, float | None]], list[Outcome]]:
    """The anchor of each sample with its clear fraction, and the outcomes of samples that have none but need one."""
    rule = recipe.anchor
    ranked = {sample.slot: choose.rank_anchors(sample, scenes[sample.slot], recipe) for sample in samples}
    clear: dict[int, dict[str, float | None]] = {sample.slot: {} for sample in samples}
    for count in choose.SCREEN_ROUNDS if rule.min_clear is not None else ():
        pairs = [
            (sample, scene)
            for sample in samples
            if choose.accept(ranked[sample.slot], clear[sample.slot], rule.min_clear) is None
            for scene in ranked[sample.slot][len(clear[sample.slot]) :][:count]
        ]
        for (sample, scene), fraction in zip(pairs, source.screen(pairs) if pairs else (), strict=True):
            clear[sample.slot][scene.scene_id] = fraction
    anchors: dict[int, tuple[Scene | None, float | None]] = {}
    without: list[Outcome] = []
    for sample in samples:
        taken = choose.accept(ranked[sample.slot], clear[sample.slot], rule.min_clear)
        if taken is not None:
            anchors[sample.slot] = (taken, clear[sample.slot].get(taken.scene_id))
        elif rule.required:
            status, reason = choose.why_no_anchor(ranked[sample.slot], clear[sample.slot], rule)
            without.append(Outcome(sample=sample, status=status, reason=reason))
        else:
            anchors[sample.slot] = (None, None)
    return anchors, without


def _read(recipe: Recipe, source: Source, job: Outcome) -> Outcome:
    """Fill in the chips; a sample whose anchor or required modality has no valid pixel is rejected."""
    asked = {name: choice for name, choice in job.choices.items() if not recipe.modality_defs[name].is_derived}
    try:
        chips = source.read(job.sample, asked)
    except SourceError as error:
        return Outcome(
            sample=job.sample,
            status="failed",
            reason=str(error),
            anchor_time=job.anchor_time,
            choices=job.choices,
        )
    choices = dict(job.choices)
    for name, choice in job.choices.items():
        modality = recipe.modality_defs[name]
        if modality.is_derived:
            chips[name] = derived.value(modality, job.sample, choice)
        if name in chips and not valid_mask(chips[name], modality.fill).any():
            del chips[name]
            choices[name] = replace(choice, status="no_data", reason="every value is masked")
    missing = [name for name in required(recipe, choices) if name not in chips]
    pixels = [name for name in chips if not recipe.modality_defs[name].is_derived]
    if missing or not pixels:
        reason = "; ".join(f"{name}: {choices[name].reason}" for name in missing) or "no modality has data here"
        return Outcome(
            sample=job.sample, status="rejected", reason=reason, anchor_time=job.anchor_time, choices=choices
        )
    return replace(job, choices=choices, chips=chips)


def required(recipe: Recipe, choices: Mapping[str, Choice]) -> list[str]:
    """Modalities that a sample cannot do without: the anchor that was chosen, and those the recipe marks."""
    names = [name for name, use in recipe.modalities.items() if use.required]
    if recipe.anchor.required:
        names += [name for name in recipe.anchor.products if choices[name].scenes]
    return list(dict.fromkeys(names))
