"""Every method trains at least 1.5 times as fast as its straightforward formulation, steps of both taken in turn."""

from __future__ import annotations

import pytest
import torch

from benchmarks.train import CASES, SPEED_GOAL, Case, matrix_rate, measure

TINY = [case for case in CASES if case.shape == "tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("case", TINY, ids=[case.method for case in TINY])
def test_it_trains_half_again_as_fast_as_the_straightforward_formulation(case: Case) -> None:
    device = torch.device("cpu")
    rate = matrix_rate(device)
    ours, theirs = measure(case, device=device, steps=5, rate=rate, compiles=False, memory=False)
    assert ours.samples_per_s >= SPEED_GOAL * theirs.samples_per_s
    assert ours.data_wait < 0.05
    assert 0 < ours.mfu < 1.5
