"""Loaders beside each other on the same samples: ours and what people use instead, in one interleaved run.

    python benchmarks/loading.py [FOLDER] [--rows all,one,...] [--rounds 3] [--samples 2112] [--json FILE]

Every peer has an environment and a process of its own (made in FOLDER and kept: 16 GB), gives stored dtypes without
masks, and has a byte of every cache line of every batch read. Samples: benchmarks/samples.py; they are synthetic.
Numbers are the medians of the rounds, ratios those of each round's own; JSON has them all. Machines that do other work
meanwhile give other ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Run as a script, Python looks beside it and not where it is called from.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.environments import environment
from benchmarks.goals import ROWS, TRAINERS, Result, Results, Row, judged
from benchmarks.remote import range_server
from benchmarks.samples import make
from mmbuild.cube import Corpus

PEERS = Path(__file__).parent / "peers"
# Readers of the corpus itself, and whose store another peer's is.
OWN = ("ours", "zarr_python", "tensorstore_cube")
SHARED = {"mmearth": "hdf5"}
# Slow peers are told as well by some batches of an epoch.
FEW = {"mmearth": 256, "zarr_python": 256, "hdf5": 512}
KEYS = ("samples_per_s", "mb_per_s", "cpu_us", "first_s", "rss_mb", "grown_mb")


def main() -> None:
    given = parsed()
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder = given.folder.resolve()
    corpus = make(given.folder, given.samples)
    rows = {name: ROWS[name] for name in given.rows.split(",")}
    asked = dict.fromkeys(name.split(":")[0] for row in rows.values() for name in row.peers)
    peers = [peer for peer in asked if given.peers is None or peer in given.peers.split(",")]
    dump(corpus, given.folder / "arrays")
    ready = {peer: prepared(peer, given.folder, corpus) for peer in peers}
    if given.prepare:
        return
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{corpus!r}\n{machine}, load {os.getloadavg()[0]:.1f} at the start; medians of {given.rounds}", flush=True)
    weights = sizes(given.folder, corpus, ready)
    rounds: dict[str, list[Results]] = {}
    for name, row in rows.items():
        rounds[name] = measure(row, ready, given)
        show(row, medians(rounds[name]))
    goals = judged(rounds)
    table(goals)
    found = {name: medians(results) for name, results in rounds.items()}
    result = {"machine": machine, "samples": given.samples, "bytes_a_sample": weights, "goals": goals}
    told = given.json or given.folder / "loading.json"
    told.write_text(json.dumps(result | {"rows": found, "rounds": rounds}, indent=1))
    print(f"\nwritten to {told}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("out/loading"))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2112)
    parser.add_argument("--peers", help="only these, separated by commas")
    parser.add_argument("--prepare", action="store_true", help="make samples, environments and stores, measure nothing")
    parser.add_argument("--json", type=Path, help="where the numbers go; FOLDER/loading.json if left out")
    return parser.parse_args()


def dump(corpus: Corpus, folder: Path) -> None:
    """The samples as plain arrays, from which every peer writes its own store."""
    if (folder / "about.json").exists() and json.loads((folder / "about.json").read_text())["n"] == corpus.n_slots:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in corpus.modalities:
        shape = corpus.shape(name)[1:]
        out = np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", corpus.layouts[name].modality.np_dtype, (corpus.n_slots, *shape)
        )
        for slot in range(corpus.n_slots):
            out[slot] = corpus.read_chip(name, slot)
    (folder / "about.json").write_text(json.dumps({"modalities": list(corpus.modalities), "n": corpus.n_slots}))


def prepared(peer: str, folder: Path, corpus: Corpus) -> Path:
    """A peer's store, written once for so many samples."""
    python = environment(peer, folder)
    if peer in OWN:
        return Path(corpus.store.url)
    writer = SHARED.get(peer, peer)
    store = folder / "stores" / f"{writer}-{corpus.n_slots}"
    if not (store / "ready").exists():
        print(f"writing the store of {writer}", flush=True)
        store.mkdir(parents=True, exist_ok=True)
        command = [str(python), str(PEERS / f"{writer}.py"), "write", "--source", str(folder / "arrays")]
        done = subprocess.run([*command, "--store", str(store)], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{writer} could not write its store:\n{done.stdout}\n{done.stderr}")
        (store / "ready").touch()
    return store


def sizes(folder: Path, corpus: Corpus, ready: dict[str, Path]) -> dict[str, float]:
    """What a sample weighs in each store: ours is to be no larger than gzip HDF5."""
    stores = {"ours": Path(corpus.store.url) / "cube.zarr"} | {p: s for p, s in ready.items() if p in TRAINERS}
    weights = {
        peer: sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / corpus.n_slots
        for peer, place in stores.items()
    }
    print("bytes a sample: " + ", ".join(f"{peer} {weight:,.0f}" for peer, weight in weights.items()), flush=True)
    return weights


def measure(row: Row, stores: dict[str, Path], given: argparse.Namespace) -> list[Results]:
    """Every peer once a round, so that what else the machine does meets them alike."""
    rounds: list[Results] = []
    for number in range(given.rounds):
        rounds.append({})
        for name in [name for name in row.peers if name.split(":")[0] in stores]:
            rounds[-1][name] = last = once(row, name, stores[name.split(":")[0]], given)
            told = f"{last['samples_per_s']:.0f}/s, {last['cpu_us']:.0f} us CPU, first batch {last['first_s']:.2f} s"
            print(f"  round {number + 1}: {name} {told}", file=sys.stderr, flush=True)
    return rounds


def medians(rounds: list[Results]) -> Results:
    return {name: {key: statistics.median(r[name][key] for r in rounds) for key in KEYS} for name in rounds[0]}


def once(row: Row, name: str, store: Path, given: argparse.Namespace) -> Result:
    """One peer, one process; ``ours:stage`` is ours with the values of another stage than the row's."""
    peer, _, stage = name.partition(":")
    command = [str(environment(peer, given.folder)), str(PEERS / f"{peer}.py"), "read", "--store", str(store)]
    command += ["--source", str(given.folder / "arrays"), "--workers", str(row.workers)]
    command += ["--modalities", row.modalities] if row.modalities else []
    command += ["--crop", str(row.crop)] if row.crop else []
    command += ["--samples", str(FEW[peer])] if peer in FEW else []
    environ = os.environ | {"MMBUILD_BENCH_VALUES": stage or row.values, "OMP_NUM_THREADS": "1"}
    if row.remote:
        with range_server(store) as url:
            return _result(name, [*command, "--url", url, "--cold"], given.folder, environ)
    return _result(name, command, given.folder, environ)


def _result(name: str, command: list[str], folder: Path, environ: dict[str, str]) -> Result:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=folder, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
    result: Result = json.loads(lines[-1])
    return result


def show(row: Row, found: Results) -> None:
    print(f"\n{row.title}\n  {'':18s} samples/s     MB/s  CPU us  first s  RSS MB  grown MB")
    for peer, r in sorted(found.items(), key=lambda item: -item[1]["samples_per_s"]):
        rates = f"{r['samples_per_s']:9.0f} {r['mb_per_s']:8.0f} {r['cpu_us']:7.0f}"
        print(f"  {peer:18s} {rates} {r['first_s']:8.2f} {r['rss_mb']:7.0f} {r['grown_mb']:9.0f}")
    sys.stdout.flush()


def table(goals: list[dict[str, Any]]) -> None:
    print("\n| work | is | goal | |\n|---|---|---|---|")
    for goal in goals:
        told = {True: "reached", False: "NOT reached", None: "not measured"}[goal["reached"]]
        bound = "at most " if goal["at_most"] else "at least "
        value = "" if goal["value"] is None else f"{goal['value']:.2f}"
        print(f"| {goal['work']} | {value} {goal['unit']} | {bound}{goal['goal']:g} | {told} |")


if __name__ == "__main__":
    main()
