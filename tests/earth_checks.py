"""Places on the synthetic Earth where UTM grids are awkward, a recipe of them, and what its corpus must satisfy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import yaml

from mmbuild.modality import Modality
from mmbuild.registry import load_modalities
from mmbuild.sandbox.earth import Earth
from tests.earth_truth import Native, climate, closeness, displacement_m, expected, modes, natives
from tests.truth import as_stored, differing, in_bands, record_rows, stored_chip

Chip = tuple[str, str]
"""A place and a modality."""

# -- the places ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place to look at on the day of the clearest scene of a summer; other_zone: of a scene in another UTM zone."""

    lon: float
    lat: float
    other_zone: bool = False


# Where several kinds of ground meet, so that fields are not constant.
PLACES = {
    "north": Place(lon=10.68, lat=48.34),
    "south": Place(lon=-48.12, lat=-15.73),
    "seam": Place(lon=12.0008, lat=48.374, other_zone=True),
    "west_of_the_antimeridian": Place(lon=179.99, lat=66.72),
    "across_the_antimeridian": Place(lon=179.999, lat=66.58),
    "east_of_the_antimeridian": Place(lon=-179.99, lat=66.74),
    "fiji": Place(lon=-179.99, lat=-16.8),
    "svalbard": Place(lon=14.25, lat=78.08),
}
SCENES = "COPERNICUS/S2_SR_HARMONIZED"
SEARCHED_FROM, SEARCHED_DAYS = datetime(2020, 7, 1, tzinfo=UTC), 90
# The acquisition itself: a quarter of an hour on both sides.
SAME_SCENE_DAYS = 0.01
RECIPE = {
    "name": "truth", "title": "Places where chips are compared with fields", "licence": "CC0-1.0", "source": "sandbox",
    "sampler": {"kind": "points", "file": "places.csv", "date_column": "date", "id_column": "id"},
    "anchor": {"modality": "sentinel2_l2a", "years": [2020], "pick": "nearest", "max_days": SAME_SCENE_DAYS},
    "modalities": {
        "sentinel2_l2a": None, "sentinel2_l1c": {"max_days": SAME_SCENE_DAYS}, "sentinel2_scl": None,
        "cloud_score_plus": None, "sentinel1_asc": {"max_days": 12}, "sentinel1_desc": {"max_days": 12},
        "aster_gdem": None, "copernicus_dem": None, "canopy_height": None, "esa_worldcover": None,
        "dynamic_world": None, "era5": None,
    },
    "store": {"samples_per_shard": 8},
    "splits": {"val": 0.2, "test": 0.2, "block_km": 100, "buffer_m": 2000},
}  # fmt: skip


def write_recipe(folder: Path, earth: Earth, names: Sequence[str], *, size: int) -> Path:
    """A recipe of the named places, each on the day of its clearest scene."""
    lines = ["id,lon,lat,date"]
    for name in names:
        place = PLACES[name]
        lines.append(f"{name},{place.lon},{place.lat},{clearest_scene(earth, place):%Y-%m-%dT%H:%M:%SZ}")
    (folder / "places.csv").write_text("\n".join(lines) + "\n")
    path = folder / "truth.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"grid": {"kind": "utm", "gsd": 10, "size": size}}, sort_keys=False))
    return path


def clearest_scene(earth: Earth, place: Place) -> datetime:
    """When the clearest scene over the place was taken; other_zone: the clearest without a twin in the place's own."""
    ends = (SEARCHED_FROM, SEARCHED_FROM + timedelta(days=SEARCHED_DAYS))
    start_ms, end_ms = (round(when.timestamp() * 1000) for when in ends)
    reach = 0.005 / np.cos(np.radians(place.lat))
    west, east = ((place.lon + side * reach + 180.0) % 360.0 - 180.0 for side in (-1, 1))
    bounds = (west, place.lat - 0.005, east, place.lat + 0.005)
    found = earth.world.synthetic_dataset(SCENES).images(bounds=bounds, start_ms=start_ms, end_ms=end_ms)
    corners = [shapely.Point(lon, lat) for lon in (west, east) for lat in bounds[1::2]]
    whole = [image for image in found if all(image.footprint.intersects(corner) for corner in corners)]
    if place.other_zone:
        own = f"EPSG:{(32600 if place.lat >= 0 else 32700) + int((place.lon + 180) // 6) + 1}"
        taken = [image.start_ms for image in whole if image.bands[0].crs == own]
        whole = [i for i in whole if i.bands[0].crs != own and all(abs(i.start_ms - t) > 3_600_000 for t in taken)]
    assert whole, f"no scene for {place}"
    best = min(whole, key=lambda image: (image.properties["CLOUDY_PIXEL_PERCENTAGE"], image.index))
    return datetime.fromtimestamp(best.start_ms / 1000, tz=UTC)


# -- the corpus and what it must satisfy --------------------------------------------------------------------------

# Chips of one image, compared pixel by pixel; composites of a year and climate have their own checks.
ONE_IMAGE = tuple(name for name in RECIPE["modalities"] if name not in ("dynamic_world", "era5"))
# A tenth of a pixel of 10 m, where the fields are steep enough to tell that much.
IN_PLACE_M, TELLING_M = 1.0, 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class TruthCorpus:
    """A corpus of the recipe above."""

    out: Path
    earth: Earth

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        return load_modalities()

    @cached_property
    def rows(self) -> dict[Chip, dict[str, Any]]:
        """Record rows by place and modality."""
        return {(json.loads(row["tags"])["id"], row["modality"]): row for row in record_rows(self.out)}

    def chip(self, chip: Chip) -> np.ndarray:
        return stored_chip(self.out, self.rows[chip])

    def bands(self, chip: Chip) -> Iterator[tuple[str, np.ndarray, Native | None]]:
        """Name, stored pixels and native pixels of each band of a chip."""
        names = self.modalities[chip[1]].band_names
        stored = in_bands(self.chip(chip), names)
        for name, band in natives(self.earth, self.rows[chip], names).items():
            yield name, stored[name], band


def check_exact(corpus: TruthCorpus, chip: Chip) -> None:
    """Every stored pixel is what its native pixels give by the modality's resampling rule."""
    modality, row = corpus.modalities[chip[1]], corpus.rows[chip]
    for name, stored, band in corpus.bands(chip):
        if band is None:
            assert (stored == modality.nodata).all(), f"{chip} {name}: the scene has no such band"
            continue
        truth = expected(band.lattice, row, modality.resampling)
        sure = ~truth.unsure
        if band.is_inexact:
            sure &= np.abs(truth.values % 1.0 - 0.5) > 1e-3
        assert sure.mean() > 0.98, f"{chip} {name}: too few pixels can be judged"
        wrong = differing(stored, as_stored(truth, stored.dtype, modality.nodata), sure)
        assert wrong == 0, f"{chip} {name}: {wrong} of {sure.sum()} pixels differ from their native pixels"


def check_close(corpus: TruthCorpus, chip: Chip) -> None:
    """Every valid pixel of a bilinear chip is as near to the field as interpolation can be."""
    nodata = corpus.modalities[chip[1]].nodata
    for name, stored, band in corpus.bands(chip):
        if band is not None and band.field is not None:
            found = closeness(stored, band, corpus.rows[chip], nodata)
            beyond = int((found.error > found.bound).sum())
            assert beyond == 0, f"{chip} {name}: {beyond} of {found.error.size} pixels beyond their bound"


def check_in_place(corpus: TruthCorpus, chip: Chip) -> int:
    """No band lies a tenth of a pixel off its field; how many directions could tell."""
    told = 0
    for name, stored, band in corpus.bands(chip):
        if band is None or band.field is None:
            continue
        for off_m, spread_m in displacement_m(stored, band, corpus.rows[chip], corpus.modalities[chip[1]].nodata):
            if spread_m < TELLING_M:
                told += 1
                assert abs(off_m) < IN_PLACE_M, f"{chip} {name} lies {off_m:.2f} m off its field"
    return told


def check_mode(corpus: TruthCorpus, chip: Chip) -> None:
    """Every pixel of a yearly composite holds a class that no other was seen more often than."""
    (stored,), row = corpus.chip(chip), corpus.rows[chip]
    counts, seen = modes(corpus.earth, row, corpus.modalities[chip[1]].band_names[0])
    nodata = corpus.modalities[chip[1]].nodata
    assert ((stored != nodata) == seen).all()
    times_seen = np.take_along_axis(counts, stored[None].astype(np.int64), axis=0)[0]
    assert (times_seen == counts.max(axis=0))[seen].all()


def check_climate(corpus: TruthCorpus, chip: Chip) -> None:
    """Every value of the climate is the monthly images' at the sample's place, nodata where a month is masked."""
    modality = corpus.modalities[chip[1]]
    for name, stored in in_bands(corpus.chip(chip), modality.band_names).items():
        truth = climate(corpus.earth, corpus.rows[chip], name)
        assert stored == np.float32(modality.nodata if truth is None else truth), f"{chip} {name}"
