"""From a recipe to a finished corpus: plan, then every unfinished shard on Dask, then split, stats and catalogue.

A shard is one task with one writer: it writes its arrays, then its commit record. Running again does what is missing,
retries what failed, and rewrites nothing that is good.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import yaml

from mmbuild.cube import LOCK, Corpus, layouts, open_corpus, packing_reasons, put_if_changed
from mmbuild.errors import QuotaStop, UserError
from mmbuild.finish import finish
from mmbuild.governor import Governor
from mmbuild.plan import locate, slots_of_shard
from mmbuild.recipe import Recipe, load_recipe
from mmbuild.records import committed_shards, read_record, record_key
from mmbuild.shard import ShardResult, requests_before_pixels
from mmbuild.sources import Source, SourceSpec, TellsCompute, Usage, kind_of, open_source
from mmbuild.store import Store, open_store
from mmbuild.threads import Crew, Task, Threads, Work
from mmbuild.throttle import Budget, Spending
from mmbuild.tree import write_tree

OnStep = Callable[[str], None]
# Rows of locations that are decoded together; some 10 MB.
ROWS_AT_ONCE = 8192
_VERSIONS = (
    "mmbuild",
    "earthengine-api",
    "numpy",
    "numcodecs",
    "zarr",
    "pyarrow",
    "pyproj",
    "shapely",
    "stac-geoparquet",
)


@dataclass(kw_only=True)
class BuildReport:
    """What one run did; ``failed`` samples can be retried by running again."""

    shards_total: int = 0
    shards_done: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    spending: Spending = field(default_factory=Spending)
    seconds: float = 0.0
    stopped: str = ""

    @property
    def rate(self) -> float:
        """Samples of finished shards a second."""
        return sum(self.statuses.values()) / self.seconds if self.seconds else 0.0

    def add(self, result: ShardResult) -> None:
        self.shards_done += not result.stopped
        self.stopped = self.stopped or result.stopped
        self.usage.add(result.usage)
        for status, count in result.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count


def build_corpus(
    recipe: str | os.PathLike[str] | Recipe,
    out: str | os.PathLike[str],
    *,
    samples: int | None = None,
    source: SourceSpec | None = None,
    workers: int = 0,
    scheduler: str | None = None,
    overrides: Sequence[str] = (),
    budget: Budget | None = None,
    progress: Callable[[BuildReport], None] | None = None,
    on_step: OnStep | None = None,
) -> Corpus:
    """Build a corpus, or finish or extend one, and return it opened.

    out: a folder or an object-store URL. samples: overrides the recipe's number (a corpus only grows).
    workers: processes, 0 for threads; scheduler: address of a running Dask scheduler instead.
    budget: what this run may use; it ends with QuotaStop, the corpus readable and ready to go on.
    on_step: called with the name of every step (in this process, so only with workers=0): tests interrupt there.
    Raises UserError for a wrong recipe or a corpus of another recipe, QuotaStop when a quota ended the work.
    """
    asked = recipe if isinstance(recipe, Recipe) else load_recipe(os.fspath(recipe), overrides)
    spec = spec_of(asked, source.name if source else None)
    spec = spec if source is None else replace(source, others=spec.others, tag=source.tag or spec.tag)
    step = on_step or (lambda name: None)
    started, began = datetime.now(UTC), time.monotonic()
    store = open_store(out)
    with store.lease("runs/lease"):
        store.sweep()
        report = BuildReport()
        # Workers may run in another folder.
        work = Work(out=os.path.abspath(store.url) if store.is_local else store.url, recipe=asked, source=spec)
        governor = Governor(work.limits(0), budget)
        try:
            slots = _prepare(store, asked, spec, samples, step, governor)
            todo = _unfinished(store, asked, slots)
            report.shards_total = len(todo)
            with _crew(work, governor, workers, scheduler, on_step, report) as crew:
                for result in crew.results(_tasks(store, asked, todo)):
                    if result.stopped:
                        crew.stop(result.stopped)
                    _check_visible(store, result)
                    report.add(result)
                    report.seconds = time.monotonic() - began
                    if progress is not None:
                        progress(report)
            # Also after a stop: what is stored can be looked at and trained on until the next run goes on.
            if not report.stopped or committed_shards(store):
                finish(open_corpus(out), step=step)
        except QuotaStop as stop:
            report.stopped = str(stop)
            _check_progress(asked, report, governor.used)
            raise
        finally:
            report.seconds = time.monotonic() - began
            report.spending.merge(governor.used)
            _write_ledger(store, report, started)
    if report.stopped:
        _check_progress(asked, report, governor.used)
        raise QuotaStop(_stop_text(report))
    return open_corpus(out)


def _check_visible(store: Store, result: ShardResult) -> None:
    if result.statuses and not store.exists(record_key(result.shard)):
        raise UserError(
            f"the workers wrote shard {result.shard} where this process cannot see it", store.url,
            "use a folder that all workers share, or an object-store URL",
        )  # fmt: skip


def _check_progress(recipe: Recipe, report: BuildReport, used: Spending) -> None:
    """Refuse a budget that was used up before the first sample was finished: it would be again, however often."""
    option = report.stopped.split(" ")[0]
    if report.statuses or option not in ("--max-requests", "--max-gb", "--max-eecu-hours"):
        return
    before = requests_before_pixels(recipe)
    enough = f"{max(before + 1, 2 * used.requests)} or more" if option == "--max-requests" else "more"
    raise UserError(
        f"{report.stopped}, before the first sample was finished: a shard asks for its scenes first, in up to "
        f"{before} requests", option, f"use {enough}, or a smaller store.samples_per_shard in a new folder",
    )  # fmt: skip


def _stop_text(report: BuildReport) -> str:
    """Which budget or quota ended the run, and how far it came."""
    return (
        f"{report.stopped}; {report.shards_done} of {report.shards_total} shards were finished in this run and "
        "everything that was read is kept; run the same command again to go on"
    )


# -- before the shards --------------------------------------------------------------------------------------------


def _prepare(store: Store, recipe: Recipe, spec: SourceSpec, samples: int | None, step: OnStep, gate: Governor) -> int:
    """Write the lock, the locations and the cube's metadata, or check and extend what is there; the number of slots.

    The lock goes first: a folder with a lock is ours, and everything after it can be written again.
    """
    _check_sources(spec)
    source = open_source(spec, recipe.known_modalities, {}, gate)
    _check_compute(gate.budget, source)
    old = json.loads(store.get(LOCK)) if store.exists(LOCK) else None
    if old is None and any(key.startswith(("cube.zarr/", "shards/")) for key in store.list()):
        raise UserError("there are files of something else here", store.url, "build into an empty folder")
    lock = _lock(recipe, source.identity())
    if old is not None:
        _check_same(store, old, lock, samples)
        # Asked for by name it may not shrink; the recipe's own number only says how far to go at least.
        samples = samples or max(old["samples"], recipe.samples or 0)
    step("checked")
    places = _locations(store, recipe, samples or recipe.samples, source)
    lock["samples"] = int(places["slot"].max()) + 1
    put_if_changed(store, LOCK, json.dumps(lock, indent=1, ensure_ascii=False).encode())
    step("locked")
    put_if_changed(store, "locations.parquet", _geoparquet(places))
    step("located")
    resolved = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    put_if_changed(store, "recipe.yaml", resolved.encode())
    if not store.exists("collection.json"):
        write_tree(store, layouts(recipe), lock["samples"], None, {"name": recipe.name})
    step("cube laid out")
    return int(lock["samples"])


def _check_sources(spec: SourceSpec) -> None:
    """Two sources that are both Earth Engine are refused: its client talks to one endpoint in a process."""
    for name, other in spec.others.items():
        if kind_of(other) == kind_of(spec):
            raise UserError(
                f"{other.name} and {spec.name} cannot be mixed in one build: both are reached by the same client",
                f"modalities.{name}.source", f"remove it or set source: {other.name} for the whole recipe",
            )  # fmt: skip


def _check_compute(budget: Budget, source: Source) -> None:
    """Refuse a budget of compute time, before anything is asked, of a source whose answers do not tell theirs."""
    if budget.max_eecu_hours is not None and not (isinstance(source, TellsCompute) and source.tells_compute()):
        raise UserError(
            f"{budget.max_eecu_hours:g} EECU-hours cannot be kept: this source's answers do not tell what they cost",
            "--max-eecu-hours", "use --max-requests; mmbuild plan RECIPE --probe N forecasts how many a build takes",
        )  # fmt: skip


def _lock(recipe: Recipe, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "digest": recipe.digest,
        "samples": 0,
        "source": source,
        "recipe": recipe.resolved(),
        "modalities": {name: m.model_dump(mode="json") for name, m in recipe.definitions.items()},
        "packing": packing_reasons(recipe),
        "versions": {name: version(name) for name in _VERSIONS},
    }


def spec_of(recipe: Recipe, name: str | None = None) -> SourceSpec:
    """The recipe's sources as plain data, their files found; ``name`` replaces the recipe's own source."""
    source = recipe.source
    archive = None if source.archive is None else str(recipe.file(source.archive))
    own = {source.name, name or source.name}
    catalog = source.catalog
    if catalog is not None and "://" not in catalog:
        catalog = str(recipe.file(catalog))
    named = {modality: use.source for modality, use in recipe.modalities.items()}
    return SourceSpec(
        name=name or source.name,
        url=source.url,
        project=source.project,
        catalog=catalog,
        archive=archive,
        archive_root=None if source.archive_root is None else str(recipe.file(source.archive_root)),
        tag=recipe.name,
        others={
            modality: SourceSpec(name=other, catalog=catalog)
            for modality, other in named.items()
            if other and other not in own
        },
    )


def _check_same(store: Store, old: dict[str, Any], new: dict[str, Any], samples: int | None) -> None:
    """Only a larger number of samples may differ; the packages of the first build stay on record."""
    if "taster" in old:
        parent = old["taster"]["parent"]["name"]
        raise UserError(
            f"this is a taster of {parent}: it was cut out of a corpus, not built, and cannot be extended", store.url,
            "build into another folder, or cut a larger taster: mmbuild taster OUT DEST --samples N",
        )  # fmt: skip
    if old["digest"] != new["digest"]:
        keys = [key for key in new["recipe"] if key != "samples" and old["recipe"].get(key) != new["recipe"][key]]
        changed = (
            f"the recipe changed ({', '.join(keys)})" if keys else "a file or modality that the recipe uses changed"
        )
        raise UserError(f"this corpus was built from another recipe: {changed}", store.url, "build into another folder")
    if old["source"] != new["source"]:
        raise UserError(
            f"this corpus came from another source ({_brief(old['source'])}, now {_brief(new['source'])})", store.url,
            "use the same --source, --archive and sandbox version, or build into another folder",
        )  # fmt: skip
    if samples is not None and old["samples"] > samples:
        raise UserError(
            f"this corpus has {old['samples']} samples already, {samples} are asked", store.url,
            "a corpus only grows; leave --samples out or build into another folder",
        )  # fmt: skip
    new["versions"] = old["versions"]


def _brief(source: dict[str, Any]) -> str:
    return " ".join(str(value)[:12] for key, value in source.items() if key not in ("name", "synthetic"))


def _locations(store: Store, recipe: Recipe, samples: int | None, source: Source) -> Any:
    """The locations of the first ``samples`` slots (None: every place); rows that are there stay as they are."""
    import geopandas as gpd
    import pandas as pd

    known = _read_locations(store) if store.exists("locations.parquet") else None
    first = 0 if known is None else int(known["slot"].max()) + 1
    if known is not None and samples is not None and first >= samples:
        return known
    more = locate(recipe, start=first, stop=samples, source=source)
    if known is None:
        return more
    return known if more.empty else gpd.GeoDataFrame(pd.concat([known, more], ignore_index=True), crs=more.crs)


def _read_locations(store: Store) -> Any:
    import geopandas as gpd
    import pyarrow as pa

    # Not io.BytesIO: a process that gave one to pyarrow was seen to abort at its end.
    return gpd.read_parquet(pa.BufferReader(store.get("locations.parquet")))


def _geoparquet(table: Any) -> bytes:
    sink = io.BytesIO()
    table.to_parquet(sink, index=False, compression="zstd")
    return sink.getvalue()


# -- the shards ---------------------------------------------------------------------------------------------------


def _unfinished(store: Store, recipe: Recipe, samples: int) -> list[int]:
    """Every shard without a record, with too few samples in it, or with failed samples."""
    size, done = recipe.store.samples_per_shard, set(committed_shards(store))
    return [
        shard
        for shard in range(-(-samples // size))
        if shard not in done or not _is_complete(store, shard, slots_of_shard(shard, size, samples))
    ]


def _tasks(store: Store, recipe: Recipe, todo: Sequence[int]) -> Iterator[Task]:
    """The rows of each shard, read as they are asked for: a plan of a million places never lies in memory whole."""
    wanted, size = set(todo), recipe.store.samples_per_shard
    shards = itertools.groupby(_rows(store), key=lambda row: int(row["slot"]) // size)
    return ((shard, list(rows)) for shard, rows in shards if shard in wanted)


def _rows(store: Store) -> Iterator[dict[str, Any]]:
    """The rows of locations.parquet in the order of their slots, without their geometry."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = "locations.parquet"
    with pq.ParquetFile(store.handle(key) if store.is_local else pa.BufferReader(store.get(key))) as file:
        columns = [name for name in file.schema_arrow.names if name != "geometry"]
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            yield from batch.to_pylist()


def _is_complete(store: Store, shard: int, slots: range) -> bool:
    record = read_record(store, shard)
    return set(record["slot"].to_pylist()) == set(slots) and "failed" not in record["status"].to_pylist()


@contextmanager
def _crew(
    work: Work, governor: Governor, workers: int, scheduler: str | None, step: OnStep | None, report: BuildReport
) -> Iterator[Crew]:
    """Who builds the shards: threads, a local cluster, or the workers of a scheduler; no cluster starts for nothing."""
    if report.shards_total == 0 or step is not None or not (workers or scheduler):
        yield Threads(work, governor, step)
        return
    from mmbuild.cluster import Cluster, client_of, interrupts_noted

    with interrupts_noted() as raise_interrupt, client_of(workers, scheduler) as client:
        cluster = Cluster(client, work, governor.so_far(), raise_interrupt)
        try:
            yield cluster
        finally:
            report.spending.merge(cluster.close())


# -- after the shards ---------------------------------------------------------------------------------------------


def _write_ledger(store: Store, report: BuildReport, started: datetime) -> None:
    """What this run asked and when: the only wall-clock times in a corpus."""
    ledger = {
        "started": started.isoformat(timespec="seconds"), "seconds": round(report.seconds, 3),
        "shards": {"planned": report.shards_total, "done": report.shards_done},
        "samples": report.statuses, "requests": vars(report.usage), "sent": vars(report.spending),
        "stopped": report.stopped or None,
    }  # fmt: skip
    name = f"runs/{started:%Y%m%dT%H%M%S%f}-{os.getpid()}.json"
    store.put(name, json.dumps(ledger, indent=1).encode())
