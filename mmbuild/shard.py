"""The work of one shard: find a place and scenes for every slot, read the chips, write the arrays, then the record.

What did not work becomes a status with a reason; it never becomes pixels, and it never moves another sample.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from mmbuild import anchors as anchoring
from mmbuild.choose import Anchored, Choice, Sample, Scene, Step, choose_steps
from mmbuild.commit import OnStep, Outcome, keep, packed, valid_mask, withdraw, withdrawn_key, write
from mmbuild.cube import ArrayLayout, layouts
from mmbuild.errors import QuotaStop, SourceError
from mmbuild.heap import share_heaps
from mmbuild.modality import Modality
from mmbuild.plan import samples_of
from mmbuild.recipe import Recipe
from mmbuild.records import write_record
from mmbuild.sources import PAIRS_PER_REQUEST, Ask, Source, SourceSpec, Usage, derived, open_source
from mmbuild.store import open_store
from mmbuild.throttle import Gate
from mmbuild.times import month_start

Window = tuple[datetime, datetime]

# Threads of a process that read chips, for all its shards together. More than the 40 requests that Earth Engine answers
# at once, since a thread also unpacks what came; how many are under way is decided by the gate.
READ_THREADS = 64
# Heaps that they allocate from; with one each, a quarter of a build's memory was free (measured).
HEAPS = 2
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


def requests_before_pixels(recipe: Recipe) -> int:
    """The most metadata requests that a shard makes for the first place of each sample, before any pixels."""
    rounds = () if recipe.anchor.min_clear is None else anchoring.SCREEN_ROUNDS
    blocks = [min(BLOCK, recipe.store.samples_per_shard - first) for first in _firsts(recipe.store.samples_per_shard)]
    pairs = [places * recipe.steps * count for places in blocks for count in rounds]
    return len(blocks) + sum(-(-number // PAIRS_PER_REQUEST) for number in pairs)


def _firsts(samples: int) -> range:
    """Where the blocks of so many samples begin."""
    return range(0, samples, BLOCK)


def chip_readers() -> ThreadPoolExecutor:
    """Threads that read the chips of all shards of a process, in the order in which they are known.

    So the oldest shard is done first. With threads of their own, shards side by side would all be read, and then all be
    searched, at the same time: requests would come in waves.
    """
    share_heaps(HEAPS)
    return ThreadPoolExecutor(max_workers=READ_THREADS, thread_name_prefix="read")


def build_shard(
    task: ShardTask, readers: Executor, step: OnStep = lambda name: None, gate: Gate | None = None
) -> ShardResult:
    """Do what the shard still lacks and commit it; good chips of an earlier record are copied undecoded.

    readers: where chips are read, see ``chip_readers``. gate: lets the source's requests pass; None sets no limit.
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
    outcomes, stopped = gather(recipe, source, list(samples_of(wanted)), readers, step)
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
    recipe: Recipe, source: Source, candidates: Sequence[Sample], readers: Executor, step: OnStep
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
        batch = [queue.pop(0) for queue in queues.values() if queue]
        source.usage.add(Usage(places=len(batch)))
        for outcome in _attempts(recipe, source, batch, readers, step, stops):
            slot = outcome.sample.slot
            history[slot].append(outcome.reason)
            # A place that failed is not a place without data: it keeps its turn and is asked again by the next build.
            if outcome.status in ("stored", "failed"):
                queues[slot] = []
            elif not queues[slot]:
                outcome.reason = _whole_story(history[slot])
            if not queues[slot]:
                done[slot] = outcome
    return done, stops[0] if stops else ""


def _whole_story(reasons: Sequence[str]) -> str:
    return reasons[0] if len(reasons) == 1 else f"{len(reasons)} places tried: {' | '.join(reasons)}"


def _attempts(
    recipe: Recipe, source: Source, samples: Sequence[Sample], readers: Executor, step: OnStep, stops: list[str]
) -> list[Outcome]:
    """One candidate place of several slots, block by block side by side; ``stops`` takes why the work must end."""
    blocks = [samples[first : first + BLOCK] for first in _firsts(len(samples))]

    def attempt(block: Sequence[Sample]) -> list[Outcome]:
        try:
            return _attempt(recipe, source, block, readers, step, stops)
        except QuotaStop as stop:
            stops.append(str(stop))
            return []

    if len(blocks) == 1:
        return attempt(blocks[0])
    with ThreadPoolExecutor(max_workers=len(blocks)) as side_by_side:
        return [outcome for found in side_by_side.map(attempt, blocks) for outcome in found]


def _attempt(
    recipe: Recipe, source: Source, samples: Sequence[Sample], readers: Executor, step: OnStep, stops: list[str]
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
            own = anchors[sample.slot]
            choices = choose_steps(sample, own, scenes.get(sample.slot, ()), recipe)
            when = next((anchored.when for anchored in own if anchored.status == "stored"), own[0].when)
            job = Outcome(sample=sample, status="stored", anchor_time=when, choices=choices)
            # What has no scene will have no pixels: a place that cannot do without it is not read in vain.
            if (rejected := _rejected(recipe, job, _readable(recipe, job))) is None:
                jobs.append(job)
            else:
                rest.append(rejected)

    arrays = layouts(recipe)

    def read(job: Outcome) -> Outcome | None:
        try:
            return _read(recipe, source, arrays, job)
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
    scenes: dict[int, dict[tuple[str, str], Scene]] = {sample.slot: {} for sample in samples}
    for scene in found:
        scenes[scene.slot].setdefault((scene.modality, scene.scene_id), scene)
    return {slot: list(own.values()) for slot, own in scenes.items()}


def asks_of(recipe: Recipe, sample: Sample) -> list[Ask]:
    """What to look for: anchors inside their windows, everything else wherever the anchors may lead it."""
    steps = anchoring.steps(sample, recipe)
    asks = []
    for name, modality in recipe.modality_defs.items():
        if modality.is_derived or modality.count_of is not None:
            continue
        use = recipe.modalities[name]
        limited = name in recipe.anchor.products or use.composite is not None
        cloud = recipe.anchor.max_cloud if limited and use.max_cloud is None else use.max_cloud
        for window in _windows(recipe, modality, steps):
            asks.append(Ask(modality=modality, window=window, max_cloud=cloud))
    return asks


def _windows(recipe: Recipe, modality: Modality, steps: Sequence[Step]) -> list[Window | None]:
    """Where the images of a modality may lie, as windows that do not overlap; None stands for any time."""
    whole = steps[0].window[0], steps[-1].window[1]
    if modality.name in recipe.anchor.products or recipe.modalities[modality.name].composite is not None:
        return list(_joined([step.window for step in steps]))
    match modality.time:
        case "static":
            return [None]
        case "year":
            return [(datetime(whole[0].year, 1, 1, tzinfo=whole[0].tzinfo), _year_end(whole[1]))]
        case "months":
            assert modality.months is not None
            return [(month_start(whole[0], modality.months[0]), month_start(whole[1], modality.months[-1] + 1))]
    # What is taken from another modality's scene is looked for wherever that one is.
    hosts = [name for name, m in recipe.modality_defs.items() if modality.same_scene_as in (name, m.alias)]
    uses = [recipe.modalities[name] for name in (hosts if modality.same_scene_as else [modality.name])]
    reach = timedelta(days=max((0.0 if use.pick == "latest" else use.max_days or 0.0 for use in uses), default=0.0))
    return list(_joined([(step.window[0] - reach, step.window[1] + reach) for step in steps]))


def _joined(windows: Sequence[Window]) -> list[Window]:
    """Windows in the order of their starts, those that overlap or touch made one."""
    found: list[Window] = []
    for start, end in windows:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _year_end(end: datetime) -> datetime:
    """First moment after the calendar year that holds the last moment before ``end``."""
    return datetime((end - timedelta(milliseconds=1)).year + 1, 1, 1, tzinfo=end.tzinfo)


def _anchors(
    recipe: Recipe, source: Source, samples: Sequence[Sample], scenes: Mapping[int, Sequence[Scene]]
) -> tuple[dict[int, list[Anchored]], list[Outcome]]:
    """The anchors of each sample, one a step, and the outcomes of samples that have too few of them."""
    rule = recipe.anchor
    is_composite = any(recipe.modalities[name].composite is not None for name in rule.products)
    rounds = () if rule.min_clear is None or is_composite else anchoring.SCREEN_ROUNDS
    steps = [(sample, step) for sample in samples for step in anchoring.steps(sample, recipe)]
    ranked = [anchoring.rank_anchors(sample, step, scenes[sample.slot], recipe) for sample, step in steps]
    clear: list[dict[str, float | None]] = [{} for _ in steps]
    for count in rounds:
        pairs = [
            (index, scene)
            for index, own in enumerate(ranked)
            if anchoring.accept(own, clear[index], rule) is None
            for scene in own[len(clear[index]) :][:count]
        ]
        fractions = source.screen([(steps[index][0], scene) for index, scene in pairs]) if pairs else ()
        for (index, scene), fraction in zip(pairs, fractions, strict=True):
            clear[index][scene.scene_id] = fraction
    anchors: dict[int, list[Anchored]] = {}
    for (sample, step), own, found in zip(steps, ranked, clear, strict=True):
        anchored = anchoring.anchored(step, own, found, rule, is_composite=is_composite)
        anchors.setdefault(sample.slot, []).append(anchored)
    without = [_without(sample, anchors.pop(sample.slot)) for sample in samples if _lacks(recipe, anchors[sample.slot])]
    return anchors, without


def _lacks(recipe: Recipe, anchors: Sequence[Anchored]) -> bool:
    """True for a sample that cannot do with the anchors it has."""
    return recipe.anchor.required and sum(a.status == "stored" for a in anchors) < needed_steps(recipe)


def needed_steps(recipe: Recipe) -> int:
    """How many steps of a sample must have an anchor."""
    return (recipe.times and recipe.times.at_least) or recipe.steps


def _without(sample: Sample, anchors: Sequence[Anchored]) -> Outcome:
    """The outcome of a sample that lacks anchors: the first missing step says why."""
    missing = next(anchored for anchored in anchors if anchored.status != "stored")
    where = f"step {missing.step.time} near {missing.step.window[0]:%Y-%m-%d}: " if len(anchors) > 1 else ""
    return Outcome(sample=sample, status=missing.status, reason=where + missing.reason)


def _read(recipe: Recipe, source: Source, arrays: Mapping[str, ArrayLayout], job: Outcome) -> Outcome:
    """Fill in the chips; a sample whose anchors or required modalities have no valid pixel is rejected."""
    defs = recipe.modality_defs
    asked = {key: choice for key, choice in job.choices.items() if not defs[choice.modality].is_derived}
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
    for key, choice in job.choices.items():
        modality = defs[choice.modality]
        if modality.is_derived:
            chips[key] = derived.value(modality, job.sample, choice)
        if key in chips and not valid_mask(chips[key], modality.fill).any():
            del chips[key]
            choices[key] = replace(choice, status="no_data", reason="every value is masked")
    job = replace(job, choices=choices)
    rejected = _rejected(recipe, job, chips)
    if rejected is not None:
        return rejected
    stored = {key: packed(chip, arrays[choices[key].modality]) for key, chip in chips.items()}
    return replace(job, chips=stored)


def _readable(recipe: Recipe, job: Outcome) -> list[str]:
    """The chips that may have pixels: what has a scene, and what is derived."""
    defs = recipe.modality_defs
    return [key for key, choice in job.choices.items() if choice.scenes or defs[choice.modality].is_derived]


def _rejected(recipe: Recipe, job: Outcome, there: Collection[str]) -> Outcome | None:
    """The rejection of a sample that has only these chips, if it cannot do without others; or without any pixels."""
    missing = missing_chips(recipe, job.choices, there)
    if not missing and any(not recipe.modality_defs[job.choices[key].modality].is_derived for key in there):
        return None
    reason = "; ".join(f"{key}: {job.choices[key].reason}" for key in missing) or "no modality has data here"
    return replace(job, status="rejected", reason=reason)


def missing_chips(recipe: Recipe, choices: Mapping[str, Choice], chips: Iterable[str]) -> list[str]:
    """Chips that a sample cannot do without and lacks: of modalities the recipe marks, and of its anchors."""
    there = set(chips)
    missing = [k for k, choice in choices.items() if recipe.modalities[choice.modality].required and k not in there]
    if recipe.anchor.required:
        anchors = [k for k, choice in choices.items() if choice.modality in recipe.anchor.products and choice.scenes]
        gone = [key for key in anchors if key not in there]
        missing += gone if len(anchors) - len(gone) < needed_steps(recipe) else []
    return list(dict.fromkeys(missing))
