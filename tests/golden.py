"""What the golden tests share: the recorded outputs, their generator of inputs and weights, and the tolerance."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmbuild.registry import BUILT_IN, load_modality
from mmbuild.stream.transforms import Field

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="needs ../shared/golden, the references' recorded outputs, which is not here"
)
ATOL = 2e-5

# Our name of a weight -> the reference's.
Naming = Callable[[str], str | None]


@functools.cache
def detfill() -> ModuleType:
    """The golden data's own generator of inputs and weights."""
    spec = importlib.util.spec_from_file_location("detfill", GOLDEN / "detfill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def recorded(name: str) -> dict[str, np.ndarray]:
    """One file of recorded outputs."""
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


@torch.no_grad()
def fill_weights(model: nn.Module, reference_name: Naming) -> None:
    """Give every weight its recorded value; ``reference_name``: ours -> the reference's. Scalars stay as they are."""
    fill = detfill()
    for name, value in model.state_dict().items():
        theirs, shape = reference_name(name), tuple(value.shape)
        assert theirs is not None, name
        if shape:
            value.copy_(torch.from_numpy(fill.fill_value(theirs, shape, fill.role_of(theirs, shape))))


def close(ours: Tensor | list[float] | float, theirs: np.ndarray, *, atol: float = ATOL) -> None:
    values = ours.detach().numpy() if isinstance(ours, Tensor) else ours
    np.testing.assert_allclose(values, theirs, rtol=0, atol=atol)


def same_gradients(
    model: nn.Module, names: np.ndarray, norms: np.ndarray, reference_name: Naming, *, absent: int = 0
) -> None:
    """Every parameter has the recorded gradient norm; the ``absent`` ones get none there (-1) and ours lacks them."""
    theirs = dict(zip(names.tolist(), norms.tolist(), strict=True))
    ours = {reference_name(n): p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    assert theirs.keys() - ours.keys() == {name for name, norm in theirs.items() if norm < 0}
    assert len(theirs) - len(ours) == absent
    for name, norm in ours.items():
        assert norm == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def field_of(modality: str, side: int, bands: tuple[str, ...] = ()) -> Field:
    """What a loader would say of a built-in modality whose chips have ``side`` pixels."""
    one = load_modality(BUILT_IN / f"{modality}.yaml")
    bands = bands or one.band_names
    shape = (1, len(bands), side, side)
    return Field(
        name=modality, members=(one,), bands=bands, shape=shape, gsd=one.gsd, n_classes=0, statistics=(None,)
    )  # fmt: skip
