"""How rows of benchmarks/loading.py are judged: each round by itself, then the median."""

from __future__ import annotations

from benchmarks.goals import Results, judged


def a_round(ours: float, limit: float) -> Results:
    rest = {"first_s": 0.1, "rss_mb": 100.0, "grown_mb": 0.0}
    return {"ours": {"samples_per_s": ours, **rest}, "limit": {"samples_per_s": limit, **rest}}


def share(rounds: list[Results]) -> tuple[float, bool]:
    (goal,) = [one for one in judged({"all": rounds}) if one["unit"] == "of the memory-copy limit"]
    return goal["value"], goal["reached"]


def test_a_machine_that_slows_down_within_the_rounds_changes_no_ratio() -> None:
    # Medians of each by themselves would give 3000 / 5000.
    assert share([a_round(3000, 6000), a_round(1500, 3000), a_round(3500, 5000)]) == (0.5, True)
    assert share([a_round(2900, 6000), a_round(1500, 3200), a_round(3500, 5000)]) == (2900 / 6000, False)


def test_a_goal_whose_peer_was_left_out_is_neither_reached_nor_missed() -> None:
    goals = judged({"all": [a_round(3000, 6000)]})
    assert {one["unit"]: one["reached"] for one in goals}["x tensorstore"] is None
