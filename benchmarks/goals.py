"""What loaders are compared on and what ours has to reach: the rows of benchmarks/loading.py and their judge."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, float]
# By peer.
Results = dict[str, Result]
Value = Callable[[dict[str, Results]], float]
# What people train with; TensorStore and zarr-python read the corpus itself.
TRAINERS = ("litdata_raw", "mosaicml_raw", "webdataset_blosc", "lmdb_blosc", "hdf5")
PEERS = (*TRAINERS, "tensorstore_cube")
REMOTE = ("litdata_blosc", "tensorstore_cube", "webdataset_blosc")
# How far values are on their way to training (benchmarks/peers/ours.py), to tell what each stage costs.
STAGES = ("ours:stored", "ours:masked", "ours:normalised", "ours:training")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One table: what is asked of whom."""

    title: str
    peers: tuple[str, ...]
    workers: int = 2
    modalities: str | None = None
    crop: int | None = None
    values: str = "stored"
    remote: bool = False


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a row has to reach; value: from what one round gave in all rows."""

    row: str
    unit: str
    value: Value
    goal: float
    at_most: bool = False


ROWS = {
    "all": Row(
        title="all modalities, random order, batch 128, 2 threads or workers, page cache warm",
        peers=("ours", "limit", *PEERS, "zarr_python", "memmap", "mmearth"),
    ),
    "one": Row(title="the same, one thread or worker", peers=("ours", "limit", *PEERS), workers=1),
    "optical": Row(title="Sentinel-2 only", peers=("ours", "limit", *PEERS), modalities="sentinel2_l2a"),
    "crop": Row(title="crop 112 of 128, all modalities", peers=("ours", "limit", *PEERS), crop=112),
    "training": Row(
        title="normalised float32, masks, crop 112, joint flips (ours:STAGE: as far as that stage)",
        peers=("ours", "mmearth", *STAGES[:-1]),
        crop=112,
        values="training",
    ),
    "remote": Row(
        title="HTTP ranges, 30 ms latency, 80 MB/s a connection, cold, one epoch",
        peers=("ours", *REMOTE),
        remote=True,
    ),
}


def over(row: str, peers: Sequence[str]) -> Value:
    """Ours beside the fastest of these peers."""

    def ratio(found: dict[str, Results]) -> float:
        rates = [found[row][peer]["samples_per_s"] for peer in peers if peer in found[row]]
        return found[row]["ours"]["samples_per_s"] / max(rates)

    return ratio


def of_ours(row: str, key: str) -> Value:
    return lambda found: found[row]["ours"][key]


def beside(row: str, other: str) -> Value:
    """Our rate in one row beside that in another."""
    return lambda found: found[row]["ours"]["samples_per_s"] / found[other]["ours"]["samples_per_s"]


GOALS = (
    Goal(row="all", unit="x the best loader people train with", value=over("all", TRAINERS), goal=3.0),
    Goal(row="all", unit="x tensorstore", value=over("all", ["tensorstore_cube"]), goal=2.5),
    Goal(row="all", unit="x MMEarth's reader", value=over("all", ["mmearth"]), goal=40.0),
    Goal(row="all", unit="of the memory-copy limit", value=over("all", ["limit"]), goal=0.5),
    Goal(row="one", unit="x the best peer", value=over("one", PEERS), goal=2.2),
    Goal(row="optical", unit="x our own rate of all modalities", value=beside("optical", "all"), goal=2.0),
    Goal(row="optical", unit="x the best peer", value=over("optical", PEERS), goal=2.2),
    Goal(row="crop", unit="x the best peer", value=over("crop", PEERS), goal=2.2),
    Goal(row="training", unit="x MMEarth's reader and transforms", value=over("training", ["mmearth"]), goal=15.0),
    Goal(row="remote", unit="x the best peer by epoch", value=over("remote", REMOTE), goal=2.0),
    Goal(row="remote", unit="s to the first batch", value=of_ours("remote", "first_s"), goal=1.0, at_most=True),
    Goal(row="all", unit="s to the first batch, warm", value=of_ours("all", "first_s"), goal=0.5, at_most=True),
    Goal(row="all", unit="MB above python + torch", value=of_ours("all", "rss_mb"), goal=600.0, at_most=True),
    Goal(row="all", unit="MB more in the second half of an epoch", value=of_ours("all", "grown_mb"),
         goal=10.0, at_most=True),
    Goal(row="training", unit="MB above python + torch", value=of_ours("training", "rss_mb"), goal=600.0, at_most=True),
    Goal(row="remote", unit="MB above python + torch", value=of_ours("remote", "rss_mb"), goal=600.0, at_most=True),
)  # fmt: skip


def judged(rounds: dict[str, list[Results]]) -> list[dict[str, Any]]:
    """Each goal of the rows that were measured; None where another row or a peer that it needs was left out.

    rounds: by row, what each round gave. The value is the median over the rounds of their own values: rates of a shared
    machine rise and fall together, ratios of one round less so.
    """
    return list(_judged(rounds))


def _judged(rounds: dict[str, list[Results]]) -> Iterator[dict[str, Any]]:
    number = min((len(results) for results in rounds.values()), default=0)
    each = [{row: results[k] for row, results in rounds.items()} for k in range(number)]
    for goal in [goal for goal in GOALS if goal.row in rounds]:
        try:
            value: float | None = statistics.median(goal.value(found) for found in each)
        except (KeyError, ValueError):
            value = None
        reached = None if value is None else (value <= goal.goal if goal.at_most else value >= goal.goal)
        yield {
            "row": goal.row, "work": ROWS[goal.row].title, "unit": goal.unit, "value": value, "goal": goal.goal,
            "at_most": goal.at_most, "reached": reached,
        }  # fmt: skip
