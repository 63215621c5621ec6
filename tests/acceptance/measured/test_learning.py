"""Every method learns its tasks from 512 samples of its recipe: `python benchmarks/learning.py out/learning`.

Some forty minutes on two idle cores the first time. What it has built and trained stays in out/learning, and is scored
anew when it is asked again; `make clean` removes it.
"""

from __future__ import annotations

import pytest

from tests.acceptance.test_learning import REPO, learn

OUT = REPO / "out" / "learning"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mpmae", "croma", "scale_alibi"])
def test_the_loss_of_each_task_on_val_is_below_09_of_the_best_constants(method: str) -> None:
    report = learn(OUT, method)
    assert (report["synthetic"], report["samples"]) == (True, 512)
    assert report["probe"]["label"] == "esa_worldcover:grain"
    assert {"image statistics", "random convolutions"} <= {one["over"] for one in report["probe"]["differences"]}
    assert {one["task"]: one["ratio"] for one in report["tasks"] if not one["ratio"] < 0.9} == {}
