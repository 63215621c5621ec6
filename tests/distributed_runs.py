"""Runs of one method on several processes, for tests: ``torchrun ... tests/distributed_runs.py FOLDER NAME ...``.

Every name is a config in FOLDER; a run goes on where it was left.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from train.config import load_config
from train.pretrain import pretrain


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        pretrain(load_config(folder / f"{name}.yaml"), resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
