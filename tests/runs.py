"""Short training runs on hand-made corpora, for tests of what is done with their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from train.config import load_config
from train.pretrain import pretrain

# A model of sensors as small as it can be.
SMALL = {"dim": 16, "depth": 2, "heads": 2, "patch": 4, "decoder_dim": 16}


def train_briefly(corpus: Path, folder: Path, model: dict[str, Any], **changes: Any) -> Path:
    """Train for a step or two and return the run's ``out``; the config stays beside it."""
    content = {
        "corpus": str(corpus), "out": str(folder / "run"), "batch_size": 8, "steps": 2, "optim": {"lr": 1e-3},
        "model": model, **changes,
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    pretrain(load_config(folder / "c.yaml"))
    return folder / "run"
