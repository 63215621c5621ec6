"""A build goes through faults without losing or inventing anything, and stops at once where going on is no use.

The offline Earth Engine runs as its own server and plays a fault script over real sockets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmbuild.cube import open_corpus
from tests.corpora import snapshot

SAMPLES = 512
MMBUILD = str(Path(sys.executable).with_name("mmbuild"))
RECIPE = {
    "name": "faulty", "title": "Small chips for a build through faults", "licence": "CC-BY-4.0", "seed": 5,
    "samples": SAMPLES, "source": "earthengine",
    "sampler": {"kind": "biome"}, "grid": {"kind": "utm", "gsd": 10, "size": 16},
    "anchor": {"one_of": ["sentinel2_l1c", "sentinel2_l2a"], "years": [2020], "max_cloud": 40, "min_clear": 0.5},
    "modalities": {"sentinel2_l1c": None, "sentinel2_l2a": None, "sentinel1_asc": {"max_days": 12},
                   "aster_gdem": None, "esa_worldcover": None},
    "store": {"samples_per_shard": 64},
}  # fmt: skip
# 5 % transient errors, 1 % truncated bodies, one outage of 30 s, one storm of refusals for asking too much.
FAULTS = [
    # Not before the session stands, and early enough to meet the first searches: they may take half a minute.
    {"fault": "unavailable", "from_s": 2, "to_s": 32, "endpoint": "*:compute*"},
    # By number: while a busy machine searches, no request may come for ten seconds, and a storm of some seconds passes.
    {"fault": "rate", "from_request": 200, "to_request": 215},
    {"fault": "internal", "probability": 0.02, "seed": 1},
    {"fault": "bad_gateway", "probability": 0.02, "seed": 2},
    {"fault": "reset", "probability": 0.01, "seed": 3},
    {"fault": "truncated", "probability": 0.01, "seed": 4},
]


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """The address of an `mmbuild sandbox` process that runs for as long as the block."""
    command = [MMBUILD, "sandbox", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        try:
            assert process.stdout is not None
            yield re.search(r"http://\S+", process.stdout.readline())[0]  # type: ignore[index]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "faulty.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def build(recipe: Path, out: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [MMBUILD, "build", str(recipe), str(out), "--set", f"source.url={url}", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faults") / "straight"
    with server() as url:
        done = build(recipe, out, url)
    assert done.returncode == 0, done.stderr
    return out


def test_a_build_through_faults_ends_complete_and_with_the_same_bytes(
    recipe: Path, straight: Path, tmp_path: Path
) -> None:
    script = tmp_path / "faults.yaml"
    script.write_text(yaml.safe_dump(FAULTS))
    with server("--faults", str(script)) as url:
        done = build(recipe, tmp_path / "out", url)
        struck = counters(url)["faults"]
    assert done.returncode == 0, done.stderr
    assert set(struck) == {rule["fault"] for rule in FAULTS}, "a fault that never struck proves nothing"
    assert snapshot(tmp_path / "out") == snapshot(straight)


def counters(url: str) -> dict[str, Any]:
    import requests

    found: dict[str, Any] = requests.get(f"{url}/counters", timeout=10).json()
    return found


def test_a_permission_error_on_one_asset_stops_in_seconds_with_the_reason(recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "faults.yaml"
    script.write_text(yaml.safe_dump([{"fault": "permission", "match": "COPERNICUS/S1_GRD"}]))
    with server("--faults", str(script)) as url:
        began = time.monotonic()
        done = build(recipe, tmp_path / "out", url)
        took = time.monotonic() - began
    assert done.returncode == 2, done.stderr
    assert took < 60
    assert "COPERNICUS/S1_GRD" in done.stderr
    assert "sentinel1_asc" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_that_hits_its_budget_exits_3_and_finishes_when_run_again(recipe: Path, tmp_path: Path) -> None:
    few = ("--samples", "96")
    with server() as url:
        first = build(recipe, tmp_path / "out", url, *few, "--max-requests", "60")
        used = counters(url)["requests"]
        assert first.returncode == 3, first.stderr
        assert "--max-requests 60 is used up" in first.stderr
        assert used.get("value:compute", 0) + used.get("image:computePixels", 0) <= 60
        kept = open_corpus(tmp_path / "out").records()
        assert set(kept["sample_status"].to_pylist()) == {"stored"}
        second = build(recipe, tmp_path / "out", url, *few)
        assert second.returncode == 0, second.stderr
    with server() as url:
        assert build(recipe, tmp_path / "straight", url, *few).returncode == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "straight")
    ledgers = [json.loads(path.read_text()) for path in sorted((tmp_path / "out/runs").glob("*.json"))]
    assert [bool(ledger["stopped"]) for ledger in ledgers] == [True, False]
