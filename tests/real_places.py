"""What recipes/real_mini.yaml must find at each of its places, read straight from the files of ../shared/realdata.

Written by hand from the folder's own description (places.json, manifest.json), not from the archive that builds use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.truth import (
    Filled,
    Lattice,
    as_stored,
    bilinear,
    by_gdal,
    centres,
    differing,
    file_lattice,
    in_bands,
    nearest,
    record_rows,
    stored_chip,
)

REPO = Path(__file__).parent.parent
RECIPE = REPO / "recipes" / "real_mini.yaml"
ARCHIVE = REPO / "recipes" / "archives" / "realdata.yaml"
# A nearest pixel may go either way this near to an edge of a native pixel.
EDGE_PX = 0.01
# The issue allows two numbers beside GDAL; its exact warp leaves at most a tie of rounding, and float32's last digits.
GDAL_DN, GDAL_FLOAT = 1.0, 1e-5

L1C_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
L2A_BANDS = tuple(band for band in L1C_BANDS if band != "B10")
RADAR_BANDS = ("VV", "VH", "HH", "HV")
TERRAMESH = {"parana_coast": "282D_485L_3_3", "north_tanzania": "38D_378R_2_3", "north_jutland": "637U_59R_1_3"}
# Processed again in 2023 with baseline 05.00: its numbers carry +1000, the others' do not (shown by a test).
SHIFTED = {("parana_coast", "sentinel2_l1c"): -1000.0}
SSL4EO = {
    ("punjab_june", "sentinel2_l2a"): "s2a/0000200/20200604T054639_20200604T054831_T43RCP",
    ("punjab_june", "sentinel2_l1c"): "s2c/0000200/20200604T054639_20200604T054831_T43RCP",
    ("punjab_august", "sentinel2_l2a"): "s2a/0000200/20200813T054639_20200813T054952_T43RCP",
    ("punjab_august", "sentinel2_l1c"): "s2c/0000200/20200823T054639_20200823T055618_T43RCP",
    # 01:08 UTC is six in the morning in Punjab, when Sentinel-1 descends; 13:12 UTC is six in the evening.
    ("punjab_june", "sentinel1_desc"): (
        "s1/0000200/S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457"
    ),
    ("punjab_august", "sentinel1_asc"): (
        "s1/0000200/S1A_IW_GRDH_1SDV_20200903T131212_20200903T131237_034195_03F8F5_AC1C"
    ),
}
SAO_TOME = {
    "copernicus_dem_glo30": "Copernicus_DSM_COG_10_N00_00_E006_00_DEM.tif",
    "esa_worldcover": "ESA_WorldCover_10m_2020_v100_N00E006_Map.tif",
}
TERRAMESH_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sentinel2_l2a": ("S2L2A.tif", L2A_BANDS),
    "sentinel2_l1c": ("S2L1C.tif", L1C_BANDS),
    "terramesh_s1rtc": ("S1RTC.tif", ("VV", "VH")),
    "terramesh_dem": ("DEM.tif", ("DEM",)),
    "terramesh_lulc": ("LULC.tif", ("LULC",)),
}
CATEGORICAL = ("terramesh_lulc", "esa_worldcover")

Chip = tuple[str, str]
"""A place of the recipe and a modality."""
EXPECTED: tuple[Chip, ...] = (
    *((place, modality) for place in TERRAMESH for modality in TERRAMESH_FILES),
    *SSL4EO,
    *((place, modality) for place in ("sao_tome_forest", "sao_tome_city") for modality in SAO_TOME),
)


@dataclass(frozen=True, kw_only=True)
class FileBand:
    """A band of a file, what is added to its numbers, and the number that means missing there."""

    path: Path
    number: int = 1
    offset: float = 0.0
    nodata: float | None = None

    @property
    def lattice(self) -> Lattice:
        return file_lattice(self.path, self.number, offset=self.offset, nodata=self.nodata)


def bands_of(realdata: Path, place: str, modality: str) -> dict[str, FileBand | None]:
    """The file behind every band of a chip, in disk order; None: no file has the band."""
    if place in TERRAMESH:
        file, names = TERRAMESH_FILES[modality]
        path, offset = terramesh(realdata, place, file), SHIFTED.get((place, modality), 0.0)
        return {name: FileBand(path=path, number=n, offset=offset) for n, name in enumerate(names, start=1)}
    if modality in SAO_TOME:
        path = realdata / "colocated" / "sao_tome" / SAO_TOME[modality]
        if modality == "esa_worldcover":
            return {"Map": FileBand(path=path, nodata=0.0)}
        return {"DEM": FileBand(path=path)}
    folder = realdata / "colocated" / "ssl4eo_s12" / SSL4EO[place, modality]
    names = {"sentinel2_l2a": L2A_BANDS, "sentinel2_l1c": L1C_BANDS}.get(modality, RADAR_BANDS)
    paths = {name: folder / f"{name}.tif" for name in names}
    return {name: FileBand(path=path) if path.exists() else None for name, path in paths.items()}


def terramesh(realdata: Path, place: str, file: str) -> Path:
    return realdata / "colocated" / "terramesh" / TERRAMESH[place] / file


@dataclass(frozen=True, kw_only=True)
class RealCorpus:
    """A corpus of real_mini with the folder it was made from."""

    out: Path
    realdata: Path

    def rows(self) -> dict[Chip, dict[str, Any]]:
        """Record rows by place and modality."""
        return {(yaml.safe_load(row["tags"])["id"], row["modality"]): row for row in record_rows(self.out)}

    def planes(self, chip: Chip) -> list[tuple[str, np.ndarray, FileBand | None, dict[str, Any]]]:
        """Name, stored pixels, file and record row of each band of a chip."""
        row, files = self.rows()[chip], bands_of(self.realdata, *chip)
        stored = in_bands(stored_chip(self.out, row), list(files))
        return [(name, stored[name], file, row) for name, file in files.items()]


def filled(lattice: Lattice, row: dict[str, Any]) -> Filled:
    """The chip's grid filled from the file by the rule of its modality."""
    x, y = centres(row)
    if row["modality"] not in CATEGORICAL:
        return bilinear(lattice, row["epsg"], x, y)
    same_crs = lattice.epsg == row["epsg"]
    return nearest(lattice, row["epsg"], x, y, edge_px=0.0 if same_crs else EDGE_PX)


def wrong_pixels(stored: np.ndarray, lattice: Lattice, row: dict[str, Any], nodata: float) -> tuple[int, int]:
    """How many pixels of a stored band differ from the independent reading, and how many were compared."""
    truth = filled(lattice, row)
    sure = ~truth.unsure
    return differing(stored, as_stored(truth, stored.dtype, nodata), sure), int(sure.sum())


def compare(corpus: RealCorpus, chip: Chip, nodata: float) -> int:
    """Assert that every band equals its independent reading; the number of pixels that were compared."""
    total = 0
    for name, stored, file, row in corpus.planes(chip):
        if file is None:
            assert (stored == nodata).all(), f"{chip} {name} is in no file"
            continue
        wrong, compared = wrong_pixels(stored, file.lattice, row, nodata)
        assert wrong == 0, f"{chip} {name}: {wrong} of {compared} pixels differ from the file"
        total += compared
    return total


def compare_with_gdal(corpus: RealCorpus, chip: Chip, nodata: float) -> None:
    """Assert that GDAL finds the same pixels valid, and the same values up to rounding (nearest: away from edges)."""
    for name, stored, file, row in corpus.planes(chip):
        if file is None:
            continue
        is_nearest = chip[1] in CATEGORICAL
        gdal, mask = by_gdal(file.path, file.number, row, rule="nearest" if is_nearest else "bilinear")
        judged = ~filled(file.lattice, row).unsure
        assert ((stored != nodata) == mask)[judged].all(), f"{chip} {name}: GDAL finds other pixels valid"
        off = np.abs(stored.astype(np.float64) - gdal - file.offset)[judged & mask].max()
        limit = 0.0 if is_nearest else GDAL_DN if stored.dtype.kind in "iu" else GDAL_FLOAT
        assert off <= limit, f"{chip} {name}: {off} from GDAL"


def declared_shifts(archive: dict[str, Any]) -> list[tuple[str, str, float]]:
    """File pattern, place and number of every value that an archive file says to add to pixels."""
    found = []
    for dataset in archive["datasets"].values():
        for images in dataset["images"]:
            found.append((images["files"], "", images.get("add", 0)))
            found += [(images["files"], key, one.get("add", 0)) for key, one in images.get("each", {}).items()]
    return [shift for shift in found if shift[2] != 0]
