"""Few requests a sample: metadata and cloud screening included, counted by the server that answers them."""

from __future__ import annotations

import pytest

from benchmarks.earthengine_client import MOST, requests_per_sample


@pytest.mark.parametrize("recipe", MOST)
def test_a_stored_sample_costs_as_few_requests_as_promised(recipe: str) -> None:
    without_rejected, together = requests_per_sample(recipe, 256)
    assert 1.0 < without_rejected <= MOST[recipe]
    assert without_rejected <= together
