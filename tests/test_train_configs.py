"""The shipped configs load, and those of the papers say what the papers and the published code say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmbuild.errors import UserError
from train import optim
from train.config import Settings, load_config

CONFIGS = Path(__file__).parents[1] / "train" / "configs"

# Dotted key -> value, out of the papers and the training scripts that were published with them.
CROMA = {
    "model.name": "croma", "model.crop": 120, "model.patch": 8, "model.mask_ratio": 0.75, "model.masks": "shared",
    "model.norm_pix": "joint", "model.decoder_dim": 512, "model.decoder_depth": 1, "model.compat": None,
    "model.radar.bands": ["VV", "VH"], "optim.base_lr": 4e-6, "optim.weight_decay": 0.01, "optim.betas": [0.9, 0.999],
    "optim.schedule": "cosine", "optim.warmup_steps": None, "optim.warmup_epochs": None, "optim.clip": None,
    "batch_size": 7200, "accumulate": 1, "augment": True, "view.scaling": "satmae", "view.window": [60, 180],
    "view.mixup": 0.3, "view.time": "random", "precision": "bf16-mixed", "ema": None,
}  # fmt: skip
FACTS: dict[str, dict[str, Any]] = {
    "mpmae_mmearth": {
        "model.name": "mpmae", "model.size": "atto", "model.crop": 112, "model.patch": 16, "model.mask_ratio": 0.6,
        "model.norm_pix": ["sentinel2"], "model.decoder_dim": 512, "model.decoder_depth": 1, "model.decoder": "shared",
        "model.weighting": "uncertainty", "model.stem": "overlapping", "optim.base_lr": 1.5e-4,
        "optim.weight_decay": 0.05, "optim.betas": [0.9, 0.95], "optim.schedule": "cosine", "optim.warmup_epochs": 40,
        "optim.clip": None, "batch_size": 4096, "accumulate": 16, "epochs": 200, "precision": "32-true", "seed": 0,
        "ema": None, "augment": True,
    },
    "croma_base_ssl4eo": CROMA | {"model.size": "base", "epochs": 300},
    "croma_large_ssl4eo": CROMA | {"model.size": "large", "epochs": 600},
    "scale_alibi": {
        "model.name": "scale_alibi", "model.dim": 768, "model.depth": 12, "model.heads": 16, "model.crop": 512,
        "model.patch": 16, "model.mask_ratio": 0.4, "model.masks": "independent", "model.decoder_dim": 512,
        "model.decoder_depth": 1, "model.compat": None, "optim.lr": 1e-4, "optim.weight_decay": 0,
        "optim.schedule": "constant", "optim.warmup_steps": 0, "optim.clip": None, "batch_size": 128, "accumulate": 1,
        "epochs": 50, "augment": False, "view.mixup": None, "ema": None,
    },
}  # fmt: skip


def value(config: Settings, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", FACTS)
def test_a_config_of_a_paper_has_its_hyperparameters(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert {key: value(config, key) for key in FACTS[name]} == FACTS[name]


def test_croma_sees_twelve_bands_in_the_order_of_its_weights() -> None:
    optical = load_config(CONFIGS / "croma_base_ssl4eo.yaml").model.optical
    assert optical.bands == ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"]


def test_the_tasks_of_mmearth_are_its_twelve_modalities() -> None:
    """Sentinel-1 is two of ours, one an orbit; latitude and longitude are one."""
    tasks = load_config(CONFIGS / "mpmae_mmearth.yaml").tasks
    assert sorted(tasks or ()) == sorted(
        ["sentinel2", "sentinel1_asc", "sentinel1_desc", "aster_gdem", "era5", "dynamic_world", "canopy_height",
         "geolocation", "biome", "ecoregion", "month", "esa_worldcover"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "peak"), [("mpmae_mmearth", 2.4e-3), ("croma_base_ssl4eo", 1.125e-4), ("scale_alibi", 1e-4)]
)
def test_the_peak_rate_is_the_published_one(name: str, peak: float) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    found = optim.peak_rate(lr=config.optim.lr, base_lr=config.optim.base_lr, batch=config.batch_size)
    assert found == pytest.approx(peak)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load_config(path).model.name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("view.window=[180, 60]", r"--set: view\.window: \[180, 60\] -> must rise; write \[60, 180\]"),
        ("view.scaling=imagenet", r"--set: view\.scaling: 'imagenet' -> must be"),
        ("optim.warmup_epochs=3", r"optim: .* -> has both warmup_steps and warmup_epochs; leave one of them out"),
        ("accumulate=0", r"--set: accumulate: 0 -> must be at least 1"),
        ("strategy=deepspeed", r"--set: strategy: 'deepspeed' -> must be"),
        ("ema=1", r"--set: ema: 1 -> must be less than 1"),
        ("probe={label: biome}", r"probe\.every.*missing"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_place_and_a_fix(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(CONFIGS / "tiny.yaml", [override])
