"""Pixel answers are read by many threads at once."""

from __future__ import annotations

import gc
import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmbuild.registry import load_modalities
from mmbuild.sources.earthengine.pixels import chips

MODALITIES = load_modalities()
NAMES = ("sentinel2_l2a", "sentinel1_asc", "aster_gdem", "esa_worldcover")


@pytest.fixture
def restless() -> Iterator[None]:
    """An interpreter that changes threads and collects all the time, with a callback as Dask's workers have one."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()

    def yields(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    gc.callbacks.append(yields)
    try:
        yield
    finally:
        gc.callbacks.remove(yields)
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)


def answer(names: tuple[str, ...], value: int) -> bytes:
    fields = [
        (f"m{i}_{b}", MODALITIES[n].np_dtype) for i, n in enumerate(names) for b in range(len(MODALITIES[n].bands))
    ]
    stream = io.BytesIO()
    np.save(stream, np.full((4, 5), value, dtype=fields))
    return stream.getvalue()


@pytest.mark.usefixtures("restless")
def test_threads_that_read_answers_side_by_side_do_not_disturb_each_other() -> None:
    """CPython 3.11.7 and older fail one in fifty: python/cpython issue 106905."""
    asked = [NAMES[: 1 + i % len(NAMES)] for i in range(20)]
    answers = [answer(names, 1 + i) for i, names in enumerate(asked)]

    def read(turn: int) -> bool:
        i = turn % len(asked)
        found = chips(answers[i], [MODALITIES[name] for name in asked[i]], (4, 5))
        return all((chip == 1 + i).all() for chip in found)

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, range(1500)))
