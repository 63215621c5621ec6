"""On real files every method is built, trained, validated and probed by one command, and its numbers are reported."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mpmae", "croma", "scale_alibi"])
def test_a_method_runs_on_real_files_and_reports_its_numbers(method: str, shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/learning.py", str(tmp_path), "--method", method, "--steps", "10"]
    done = subprocess.run(
        [*command, "--real", str(shared / "realdata")], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / method / "report.json").read_text())
    assert (report["synthetic"], report["recipe"], report["samples"]) == (False, "real_mini", 7)
    scored = [one for one in report["tasks"] if one["ratio"] is not None]
    assert len(scored) >= 2
    assert all(math.isfinite(one[key]) for one in scored for key in ("train", "val", "constant"))
    assert (tmp_path / method / "curves.png").stat().st_size > 10_000
    assert "probe of terramesh_lulc:grain" in (tmp_path / method / "report.md").read_text()
