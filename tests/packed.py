"""Corpora packed from random arrays with the built-in modalities: what exports are compared with, value for value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mmbuild.cube import Corpus
from mmbuild.grid import tile_grid, utm_grid
from mmbuild.importers import Foreign, Sample, Seen, pack, places_of
from mmbuild.modality import Modality
from mmbuild.registry import load_modalities

START = datetime(2019, 11, 5, 10, 31, 12, tzinfo=UTC)
MMEARTH = (
    "sentinel2_l1c", "sentinel2_l2a", "sentinel2_scl", "sentinel2_cloudprob", "sentinel2_qa60", "sentinel1_asc",
    "sentinel1_desc", "aster_gdem", "canopy_height", "dynamic_world", "esa_worldcover", "era5", "biome", "ecoregion",
    "geolocation", "month",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A corpus and what is in it: chips by modality, (slot, time, band[, y, x]), nodata where there are none."""

    corpus: Corpus
    truth: Mapping[str, np.ndarray]
    stored: Mapping[str, np.ndarray]
    samples: list[Sample]


def random_chip(rng: np.random.Generator, m: Modality, shape: tuple[int, ...]) -> np.ndarray:
    """Values within each band's valid range (never 0), a tenth of them missing, and a corner that is whole."""
    chip = np.empty((len(m.bands), *shape), m.np_dtype)
    for index, band in enumerate(m.bands):
        low, high = max(band.valid_range[0], -40), min(band.valid_range[1], 12_000)
        values = rng.choice(m.class_codes, shape) if m.classes else rng.uniform(low, high, shape)
        chip[index] = np.where(values.astype(m.np_dtype) == 0, 1, values) if not m.classes else values
    if m.level == "pixel":
        holes = rng.random(shape) < 0.1
        holes[0, 0] = False
        chip[:, holes] = m.fill
    return chip


def pack_random(
    path: Path, names: tuple[str, ...], *, samples: int, size: int, one_of: tuple[str, ...] = (), times: int = 1,
    synthetic: bool | None = True, grid: str = "utm", zoom: int = 15, more: Mapping[str, Any] | None = None,
    definitions: Mapping[str, Modality] | None = None, absent: float = 0.15, gsds: Mapping[str, float] | None = None,
) -> Packed:  # fmt: skip
    """A corpus of random chips on real grids; of the ``one_of`` every sample has exactly one."""
    rng = np.random.default_rng(3)
    known = load_modalities() | dict(definitions or {})
    modalities = {name: known[name] for name in names}
    made = [
        _sample(rng, modalities, slot, size, one_of, times, grid, zoom, absent, gsds or {}) for slot in range(samples)
    ]
    anchor = {"one_of": list(one_of)} if one_of else {"modality": names[0]}
    kind = {"kind": "utm", "gsd": 10.0, "size": size} if grid == "utm" else {
        "kind": "webmercator", "zoom": zoom, "size": size
    }  # fmt: skip
    recipe = {
        "name": "packed", "title": "Random chips", "licence": "CC0-1.0",
        "sampler": {"kind": "points", "file": "locations.parquet", "date_column": "date"},
        "grid": kind, "anchor": anchor,
        "modalities": {name: {"gsd": gsds[name]} if gsds and name in gsds else {} for name in names},
        "splits": {"val": 0.3, "test": 0.2, "block_km": 20.0, "buffer_m": 0.0}, **(more or {}),
    }  # fmt: skip
    places = places_of([
        {"sample_id": s.sample_id, "lon": s.lon, "lat": s.lat, "epsg": s.epsg, "x0": s.x0, "y0": s.y0,
         "date": s.anchor_time, "tags": "{}"} for s in made
    ])  # fmt: skip
    foreign = Foreign(
        format="test", recipe=recipe, modalities=modalities, files={}, synthetic=synthetic, unknown={}, places=places,
        read=lambda rows: [made[row] for row in rows],
    )  # fmt: skip
    corpus = pack(foreign, path)
    truth = {name: np.stack([_stack(s, modalities[name], corpus) for s in made]) for name in names}
    stored = {name: np.array([s.chips.get((name, 0)) is not None for s in made]) for name in names}
    return Packed(corpus=corpus, truth=truth, stored=stored, samples=made)


def _sample(
    rng: np.random.Generator, modalities: Mapping[str, Modality], slot: int, size: int, one_of: tuple[str, ...],
    times: int, grid: str, zoom: int, absent: float, gsds: Mapping[str, float],
) -> Sample:  # fmt: skip
    lon, lat = 8.0 + slot * 0.11, 47.0 + (slot % 5) * 0.13
    if grid == "utm":
        box = utm_grid(lon, lat, gsd=10.0, size=size)
    else:
        box = tile_grid(17_000 + slot % 7, 11_500 - slot // 7, zoom, size=size)
    corner = box.affine
    chips: dict[tuple[str, int], np.ndarray | None] = {}
    seen: dict[tuple[str, int], Seen] = {}
    date = START + timedelta(days=17 * slot)
    for name, m in modalities.items():
        lasting = m.time != "scene"
        is_there = (one_of[slot % len(one_of)] == name) if name in one_of else rng.random() >= absent
        side = 0 if m.level == "image" else round(size * corner.a / gsds.get(name, corner.a))
        for time in range(1 if lasting else times):
            if not is_there or (name not in one_of and time and rng.random() < absent):
                continue
            chips[name, time] = random_chip(rng, m, (side, side) if side else ())
            when = None if lasting else date + timedelta(days=90 * time, hours=len(name))
            seen[name, time] = Seen(datetime=when, scene_ids=[f"{name.upper()}_{slot:03d}_{time}"])
    return Sample(
        sample_id=f"{slot:06d}", lon=lon, lat=lat, epsg=box.crs.to_epsg(), x0=corner.c, y0=corner.f, anchor_time=date,
        tags={}, chips=chips, seen=seen,
    )  # fmt: skip


def _stack(sample: Sample, m: Modality, corpus: Corpus) -> np.ndarray:
    shape = corpus.shape(m.name)
    return np.stack(
        [
            chip if (chip := sample.chips.get((m.name, time))) is not None else np.full(shape[1:], m.fill)
            for time in range(shape[0])
        ]
    )
