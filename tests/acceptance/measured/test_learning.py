"""Every method learns its tasks from 512 samples of its recipe: `python benchmarks/learning.py out/learning`.

Some forty minutes on two idle cores the first time. What it has built and trained stays in out/learning, and is scored
anew when it is asked again; `make clean` removes it.
"""

from __future__ import annotations

import pytest

from tests.acceptance.test_learning import REPO, learn

OUT = REPO / "out" / "learning"
# What so few samples do not tell: a random forest on statistics of the whole image is not below the goal either.
MISSED: dict[str, set[str]] = {"mpmae": {"month"}, "croma": set(), "scale_alibi": set()}


@pytest.mark.slow
@pytest.mark.parametrize("method", list(MISSED))
def test_the_loss_of_each_task_on_val_is_below_09_of_the_best_constants(method: str) -> None:
    report = learn(OUT, method)
    assert (report["synthetic"], report["samples"]) == (True, 512)
    ratios = {one["task"]: one["ratio"] for one in report["tasks"]}
    assert {task for task, ratio in ratios.items() if not ratio < 0.9} == MISSED[method], ratios
    assert all(one["forest"] > 0.9 for one in report["tasks"] if one["task"] in MISSED[method])
    assert report["probe"]["label"] == "esa_worldcover:grain"
    assert {"image statistics", "random convolutions"} <= {one["over"] for one in report["probe"]["differences"]}
