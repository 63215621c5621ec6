"""What threads that build shards do to their process, and undo."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from mmbuild.threads import OBJECTS_PER_COLLECTION, collecting_seldom


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_the_garbage_collector_looks_seldom_while_shards_are_built_and_as_before_afterwards() -> None:
    gc.set_threshold(700, 10, 10)
    with collecting_seldom():
        assert gc.get_threshold() == (OBJECTS_PER_COLLECTION, 10, 10)
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() == 0


def test_a_collector_that_is_off_stays_off() -> None:
    gc.set_threshold(0)
    with collecting_seldom():
        assert gc.get_threshold()[0] == 0
