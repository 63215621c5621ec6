"""CROMA-base from a file of the released layout and size gives the recorded outputs of the reference's own loader."""

from __future__ import annotations

import pytest
import torch

from tests.golden import close, detfill, needs_golden, recorded
from tests.test_train_croma import SENSORS, croma_batch
from tests.test_train_weights import released_shapes
from train.models.croma import CROMA
from train.weights import load_croma

TOKENS = [0, 7, 112, 224]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    fill, content = detfill(), {}
    for top, part in released_shapes(768, 12).items():
        values = {
            name: fill.fill_value(f"{top}/{name}", s, fill.role_of(f"{top}/{name}", s)) for name, s in part.items()
        }
        content[top] = {name: torch.from_numpy(value) for name, value in values.items()}
    path = tmp_path_factory.mktemp("released") / "CROMA_base.pt"
    torch.save(content, path)
    model = CROMA(**SENSORS, dim=768, depth=12, heads=16)
    load_croma(model, path)
    path.unlink()
    with torch.no_grad():
        return model.encode(croma_batch(1))


@needs_golden
@pytest.mark.parametrize(("theirs", "ours"), [("SAR", "radar"), ("optical", "optical"), ("joint", "joint")])
def test_golden_released_croma_base(theirs: str, ours: str, outputs: dict[str, torch.Tensor]) -> None:
    golden = recorded("croma_base_use")
    tokens, pooled = outputs[ours], outputs[f"pooled_{ours}"]
    close(tokens[:, TOKENS], golden[f"{theirs}_encodings"])
    close(tokens.abs().mean(), golden[f"{theirs}_encodings/mean_abs"])
    close(pooled, golden[f"{theirs}_GAP"])
    close(pooled.abs().mean(), golden[f"{theirs}_GAP/mean_abs"])
