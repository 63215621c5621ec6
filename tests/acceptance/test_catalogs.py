"""Issue 4: the taster in catalogs/ is the one that its commands build and cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_catalogs import FOLDER, make

__all__ = ["make"]


def agree(left: Any, right: Any, where: str) -> None:
    """Equal, numbers to nine digits: other processors may round the synthetic Earth's last one otherwise."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            agree(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            agree(*pair, f"{where}[{index}]")
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-9), where
    else:
        assert left == right, where


def test_the_taster_is_what_is_built_and_cut_here(make: Any, tmp_path: Path) -> None:
    for name, content in make.taster(tmp_path).items():
        told = json.loads((FOLDER / name).read_text("utf-8"))
        agree(json.loads(make.text_of(content)), told, f"catalogs/{name} (run `make catalogs`)")
