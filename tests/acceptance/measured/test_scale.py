"""However many samples are planned, the process of the scheduler holds a few shards' worth: the rest waits on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.earthengine_client import RECIPES, sandbox

# Builds in a process of its own, so that its peak is that of the scheduler and of nothing else.
BUILD = """
import json, resource, sys
from mmbuild.build import build_corpus
from mmbuild.recipe import load_recipe
if __name__ == "__main__":
    url, out, recipe, samples = sys.argv[1:]
    settings = [f"source={{name: earthengine, url: '{url}'}}", "grid.size=16", "store.samples_per_shard=256"]
    build_corpus(load_recipe(recipe, settings), out, samples=int(samples), workers=2)
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
# A million and more places as the parquet file that a plan leaves, and the tasks drawn from it one by one.
DRAW = """
import json, resource, sys, time
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from mmbuild.build import _tasks
from mmbuild.recipe import load_recipe
from mmbuild.store import open_store
folder, recipe, samples = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
folder.mkdir()
slots = np.arange(samples)
schema = pa.schema([("slot", pa.int64()), ("lon", pa.float64()), ("tags", pa.string())])
with pq.ParquetWriter(folder / "locations.parquet", schema) as file:
    for part in np.array_split(slots, 100):
        own = np.repeat(part, 5)
        file.write_table(pa.table({"slot": own, "lon": own * 1e-4, "tags": ["{}"] * len(own)}))
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.monotonic()
shards = rows = 0
for _, own in _tasks(open_store(folder), load_recipe(recipe), range(samples)):
    shards, rows = shards + 1, rows + len(own)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
print(json.dumps({"shards": shards, "rows": rows, "grown_mb": grown, "seconds": time.monotonic() - began}))
"""


def run(code: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_scheduler_of_20000_samples_stays_below_500_mb(OUT: Path, tmp_path: Path) -> None:
    script = tmp_path / "build_script.py"
    script.write_text(BUILD)
    with sandbox("--canned", "--requests-per-second", "0", "--max-concurrent", "0") as url:
        command = [sys.executable, str(script), url, str(OUT), str(RECIPES / "chips64k.yaml"), "20000"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert json.loads(done.stdout.splitlines()[-1])["peak_mb"] < 500


def test_the_tasks_of_1200000_samples_are_drawn_without_holding_them(OUT: Path) -> None:
    found = run(DRAW, OUT, RECIPES / "chips64k.yaml", 1_200_000)
    assert found["rows"] == 6_000_000
    assert found["shards"] == 18_750
    assert found["grown_mb"] < 200
