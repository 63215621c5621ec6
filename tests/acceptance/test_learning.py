"""By one command every method is built, trained, validated and probed: it learns, and it takes real files.

Whether all tasks are learnt from 512 samples is asked in measured/test_learning.py. Here are fewer samples and steps,
for minutes instead of an hour, and of the tasks those that so few samples teach.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]
SAMPLES = 96
STEPS = {"mpmae": 250, "croma": 120, "scale_alibi": 120}
LEARNT = {
    "mpmae": {"sentinel2", "sentinel1_asc", "sentinel1_desc", "era5", "dynamic_world", "esa_worldcover"},
    "croma": {"optical", "radar"},
    "scale_alibi": {"contrastive", "lores", "radar", "hires"},
}


def learn(out: Path, method: str, *options: object) -> dict[str, Any]:
    """What the benchmark reports; the curves and the table lie beside it."""
    command = [sys.executable, "benchmarks/learning.py", str(out), "--method", method, *map(str, options)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / method / "curves.png").stat().st_size > 10_000
    report: dict[str, Any] = json.loads((out / method / "report.json").read_text())
    return report


@pytest.mark.slow
@pytest.mark.parametrize("method", list(STEPS))
def test_a_method_is_better_than_the_best_constants_and_its_probe_stands_beside_both_floors(
    method: str, tmp_path: Path
) -> None:
    report = learn(tmp_path, method, "--samples", SAMPLES, "--steps", STEPS[method])
    assert (report["synthetic"], report["samples"]) == (True, SAMPLES)
    ratios = {one["task"]: one["val"] / one["constant"] for one in report["tasks"]}
    assert {task for task, ratio in ratios.items() if ratio < 0.9} >= LEARNT[method], ratios
    sure = [one for one in report["tasks"] if one["low"] is not None]
    assert len(sure) == (len(report["tasks"]) if method == "mpmae" else 0)  # the others' losses include a contrast
    assert all(one["low"] <= one["ratio"] <= one["high"] for one in sure)
    gains = {one["over"]: one for one in report["probe"]["differences"] if one["method"] == "logistic"}
    for floor in ("image statistics", "random convolutions"):
        assert gains[floor]["low"] <= gains[floor]["gain"] <= gains[floor]["high"]


@pytest.mark.slow
@pytest.mark.parametrize("method", list(STEPS))
def test_a_method_runs_on_real_files_and_reports_its_numbers(method: str, shared: Path, tmp_path: Path) -> None:
    report = learn(tmp_path, method, "--steps", 10, "--real", shared / "realdata")
    assert (report["synthetic"], report["recipe"], report["samples"]) == (False, "real_mini", 7)
    scored = [one for one in report["tasks"] if one["ratio"] is not None]
    assert len(scored) >= 2
    assert all(math.isfinite(one[key]) for one in scored for key in ("train", "val", "constant"))
    assert "probe of terramesh_lulc:grain" in (tmp_path / method / "report.md").read_text()
