"""Loaders beside each other on the same samples: ours and what people use instead, in one interleaved run.

    python -m benchmarks.loading FOLDER [--rows all,one,...] [--rounds 3] [--samples 2112] [--json FILE]

Every peer has an environment and a process of its own (made in FOLDER and kept), gives stored dtypes without masks, and
has a byte of every cache line of every batch read. Samples: benchmarks/samples.py; they are synthetic. Numbers are the
medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.environments import REQUIREMENTS, environment
from benchmarks.remote import range_server
from benchmarks.samples import make
from mmbuild.cube import Corpus

PEERS = Path(__file__).parent / "peers"
Result = dict[str, float]
Medians = dict[str, Result]
TRAINERS = ("litdata_raw", "mosaicml_raw", "webdataset_blosc", "lmdb_blosc", "hdf5")
LOCAL = ("ours", "limit", *TRAINERS, "tensorstore_cube", "zarr_python", "memmap")
REMOTE = ("tensorstore_cube", "webdataset_blosc")
# MMEarth's reader gives under a hundred samples a second: two batches tell it as well as sixteen.
FEW = {"mmearth": 256, "zarr_python": 512, "hdf5": 1024}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what is asked of whom, and what is to be reached."""

    title: str
    peers: tuple[str, ...]
    workers: int = 2
    modalities: str | None = None
    crop: int | None = None
    values: str = "stored"
    remote: bool = False
    goals: tuple[tuple[str, Callable[[Medians], float], float], ...] = field(default=())


def rate(found: Medians, peer: str) -> float:
    return found[peer]["samples_per_s"] if peer in found else float("nan")


def best(found: Medians, peers: Sequence[str]) -> float:
    return max((rate(found, peer) for peer in peers if peer in found), default=float("nan"))


def over(*peers: str) -> Callable[[Medians], float]:
    return lambda found: rate(found, "ours") / best(found, peers)


OTHERS = tuple(peer for peer in LOCAL if peer not in ("ours", "limit", "memmap"))
BEST_PEER = ("x the best peer", over(*OTHERS), 2.2)
ROWS = {
    "all": Row(
        title="all modalities, random order, batch 128, 2 threads or workers, page cache warm",
        peers=(*LOCAL, "mmearth"),
        goals=(
            ("x the best loader people train with", over(*TRAINERS), 3.0),
            ("x tensorstore", over("tensorstore_cube"), 2.5),
            ("x MMEarth's reader", over("mmearth"), 40.0),
            ("of the memory-copy limit", over("limit"), 0.5),
            ("s to the first batch, at most", lambda found: -found["ours"]["first_s"], -0.5),
            ("MB of memory, at most", lambda found: -found["ours"]["rss_mb"], -600.0),
        ),
    ),
    "one": Row(title="the same, one thread or worker", peers=LOCAL, workers=1, goals=(BEST_PEER,)),
    "optical": Row(title="Sentinel-2 only", peers=LOCAL, modalities="sentinel2_l2a", goals=(BEST_PEER,)),
    "crop": Row(title="crop 112 of 128, all modalities", peers=LOCAL, crop=112, goals=(BEST_PEER,)),
    "training": Row(
        title="normalised float32, masks, crop 112, joint flips",
        peers=("ours", "mmearth"),
        crop=112,
        values="training",
        goals=(("x MMEarth's reader and transforms", over("mmearth"), 15.0),),
    ),
    "remote": Row(
        title="HTTP ranges, 30 ms latency, 80 MB/s a connection, cold, one epoch",
        peers=("ours", *REMOTE),
        remote=True,
        goals=(
            ("x the best peer by epoch", over(*REMOTE), 2.0),
            ("s to the first batch, at most", lambda found: -found["ours"]["first_s"], -1.0),
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2112)
    parser.add_argument("--peers", help="only these, separated by commas")
    parser.add_argument("--prepare", action="store_true", help="make samples, environments and stores, measure nothing")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    corpus = make(given.folder, given.samples)
    rows = {name: ROWS[name] for name in given.rows.split(",")}
    only = set(given.peers.split(",")) if given.peers else set(REQUIREMENTS) | {"ours"}
    peers = [p for p in dict.fromkeys(p for row in rows.values() for p in row.peers) if p in only]
    dump(corpus, given.folder / "arrays")
    ready = {peer: prepared(peer, given.folder, corpus) for peer in peers}
    if given.prepare:
        return
    sizes(given.folder, corpus, ready)
    found = {}
    for name, row in rows.items():
        found[name] = measure(row, {p: s for p, s in ready.items() if p in row.peers}, given)
        show(row, found[name])
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def dump(corpus: Corpus, folder: Path) -> None:
    """The samples as plain arrays, from which every peer writes its own store."""
    if (folder / "about.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in corpus.modalities:
        shape = corpus.shape(name)[1:]
        out = np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", corpus.layouts[name].modality.np_dtype, (corpus.n_slots, *shape)
        )
        for slot in range(corpus.n_slots):
            out[slot] = corpus.read_chip(name, slot)
    (folder / "about.json").write_text(json.dumps({"modalities": list(corpus.modalities)}))


def prepared(peer: str, folder: Path, corpus: Corpus) -> Path:
    """A peer's store, written once."""
    python = environment(peer, folder)
    if peer in ("ours", "zarr_python", "tensorstore_cube"):
        return Path(corpus.store.url)
    store = folder / "stores" / ("hdf5" if peer == "mmearth" else peer)
    if not (store / "ready").exists():
        print(f"writing the store of {peer}", flush=True)
        store.mkdir(parents=True, exist_ok=True)
        command = [str(python), str(PEERS / f"{'hdf5' if peer == 'mmearth' else peer}.py"), "write"]
        subprocess.run([*command, "--source", str(folder / "arrays"), "--store", str(store)], check=True, cwd=folder)
        (store / "ready").touch()
    return store


def sizes(folder: Path, corpus: Corpus, ready: dict[str, Path]) -> None:
    """What the stores weigh: ours is to be no larger than gzip HDF5."""

    def weigh(place: Path) -> int:
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())

    ours = weigh(Path(corpus.store.url) / "cube.zarr") / corpus.n_slots
    print(f"{corpus!r}\nbytes a sample: ours {ours:,.0f}", end="")
    for peer in [peer for peer in ready if peer in TRAINERS]:
        print(f", {peer} {weigh(ready[peer]) / corpus.n_slots:,.0f}", end="")
    print(flush=True)


def measure(row: Row, stores: dict[str, Path], given: argparse.Namespace) -> Medians:
    rounds: dict[str, list[Result]] = {peer: [] for peer in stores}
    for number in range(given.rounds):
        for peer, store in stores.items():
            rounds[peer].append(once(row, peer, store, given))
            last = rounds[peer][-1]
            told = f"{last['samples_per_s']:.0f}/s, {last['cpu_us']:.0f} us CPU, first batch {last['first_s']:.2f} s"
            print(f"  round {number + 1}: {peer} {told}", file=sys.stderr, flush=True)
    keys = ("samples_per_s", "mb_per_s", "cpu_us", "first_s", "rss_mb")
    return {peer: {k: statistics.median(r[k] for r in results) for k in keys} for peer, results in rounds.items()}


def once(row: Row, peer: str, store: Path, given: argparse.Namespace) -> Result:
    python = environment(peer, given.folder)
    command = [str(python), str(PEERS / f"{peer}.py"), "read", "--source", str(given.folder / "arrays")]
    command += ["--store", str(store), "--workers", str(row.workers)]
    command += ["--modalities", row.modalities] if row.modalities else []
    command += ["--crop", str(row.crop)] if row.crop else []
    command += ["--samples", str(FEW[peer])] if peer in FEW else []
    environ = os.environ | {"MMBUILD_BENCH_VALUES": row.values, "OMP_NUM_THREADS": "1"}
    if row.remote:
        with range_server(store) as url:
            done = subprocess.run([*command, "--url", url, "--cold"], env=environ, capture_output=True, text=True)
    else:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=given.folder)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{peer} failed:\n{done.stdout}\n{done.stderr}")
    result: Result = json.loads(lines[-1])
    return result


def show(row: Row, found: Medians) -> None:
    print(f"\n{row.title}\n  {'':18s} samples/s     MB/s  CPU us  first s  RSS MB")
    for peer, r in sorted(found.items(), key=lambda item: -item[1]["samples_per_s"]):
        rates = f"{r['samples_per_s']:9.0f} {r['mb_per_s']:8.0f} {r['cpu_us']:7.0f}"
        print(f"  {peer:18s} {rates} {r['first_s']:8.2f} {r['rss_mb']:7.0f}")
    for text, value, goal in row.goals:
        reached = value(found)
        if reached != reached:
            print(f"  not measured: {text} (goal {abs(goal):g})")
            continue
        print(f"  {abs(reached):.2f} {text} (goal {abs(goal):g}): {'reached' if reached >= goal else 'NOT reached'}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
