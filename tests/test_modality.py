"""Modalities are data: the files are right, and one that could corrupt a corpus is refused with line, key and fix."""

from __future__ import annotations

import copy
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmbuild.errors import UserError
from mmbuild.modality import Modality
from mmbuild.registry import BUILT_IN, load_modalities, load_modality

KNOWN = load_modalities()
RECIPES = Path(__file__).parents[1] / "recipes"
ALL = {**KNOWN, **load_modalities(RECIPES / "modalities")}
NAMES = [
    "aster_gdem", "biome", "canopy_height", "cloud_score_plus", "copernicus_dem", "dynamic_world", "ecoregion", "era5",
    "esa_worldcover", "geolocation", "month", "naip", "naip_2x", "sentinel1", "sentinel1_asc", "sentinel1_count",
    "sentinel1_desc", "sentinel1_grd_dn", "sentinel1_rtc", "sentinel2_cloudprob", "sentinel2_l1c", "sentinel2_l2a",
    "sentinel2_l2a_count", "sentinel2_qa60", "sentinel2_scl", "sentinel2_tci",
]  # fmt: skip

CONTINUOUS: dict[str, Any] = {
    "name": "mine",
    "title": "My product",
    "level": "pixel",
    "values": "continuous",
    "gsd": 10,
    "dtype": "uint16",
    "nodata": 65535,
    "resampling": "bilinear",
    "time": "scene",
    "bands": [
        {"name": "a", "gsd": 10, "valid_range": [0, 65534]},
        {"name": "b", "gsd": 20, "valid_range": [0, 65534]},
    ],
    "licence": "CC-BY-4.0",
    "attribution": "me",
    "providers": [{"name": "me", "roles": ["producer"]}],
    "sources": {"earthengine": {"collection": "MY/COLLECTION"}},
}
CATEGORICAL: dict[str, Any] = CONTINUOUS | {
    "values": "categorical",
    "dtype": "uint8",
    "nodata": 255,
    "resampling": "nearest",
    "bands": [{"name": "a", "valid_range": [0, 9]}],
    "classes": [{"code": 0, "name": "water"}, {"code": 9, "name": "land"}],
}


def write(folder: Path, data: dict[str, Any], name: str = "mine.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def changed(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one dotted key set, or removed when the value is ``...``."""
    data = copy.deepcopy(data)
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    inner: Any = data
    for part in parents:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


def line_with(path: Path, text: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


# -- what the registry refuses


@pytest.mark.parametrize("data", [CONTINUOUS, CATEGORICAL], ids=["continuous", "categorical"])
def test_the_examples_below_are_valid_before_they_are_changed(tmp_path: Path, data: dict[str, Any]) -> None:
    assert load_modality(write(tmp_path, data)).name == "mine"


REFUSALS = [
    # what, base, key changed, value, key blamed, reason, fix
    ("nodata outside the dtype", CONTINUOUS, "nodata", 65536, "nodata", "is not a uint16", "0 to 65535"),
    ("negative nodata of an unsigned type", CONTINUOUS, "nodata", -1, "nodata", "is not a uint16", "0 to 65535"),
    ("fractional nodata of an integer type", CONTINUOUS, "nodata", 0.5, "nodata", "is not a uint16", "can hold"),
    ("nodata inside a band's valid range", CONTINUOUS, "nodata", 0, "nodata", "valid range [0, 65534] of band a",
     "no measurement"),
    ("nodata that is a class code", CATEGORICAL, "nodata", 9, "nodata", "valid range", "no measurement"),
    ("NaN as nodata", CONTINUOUS | {"dtype": "float32"}, "nodata", float("nan"), "nodata", "finite", "number"),
    ("a valid range outside the dtype", CONTINUOUS, "bands.1.valid_range", [-1, 9], "bands.1.valid_range", "uint16",
     "0 to 65535"),
    ("a valid range upside down", CONTINUOUS, "bands.0.valid_range", [9, 1], "bands.0.valid_range", "starts above",
     "[lowest, highest]"),
    ("a band without valid range", CONTINUOUS, "bands.0.valid_range", ..., "bands.0.valid_range", "missing", "lowest"),
    ("a band whose values are all equal", CONTINUOUS, "bands.0.scale", 0.0, "bands.0.scale", "equal", "remove"),
    ("mixing of classes", CATEGORICAL, "resampling", "bilinear", "resampling", "mixes class codes", "use nearest"),
    ("classes of a float type", CATEGORICAL, "dtype", "float32", "dtype", "whole numbers", "uint8"),
    ("a categorical modality without classes", CATEGORICAL, "classes", [], "classes", "missing", "code"),
    ("classes of measurements", CONTINUOUS, "classes", [{"code": 1, "name": "x"}], "classes", "continuous", "remove"),
    ("a class code outside the valid range", CATEGORICAL, "classes.1.code", 10, "classes.1.code", "outside", "widen"),
    ("a class code outside the dtype", CATEGORICAL, "classes.1.code", 300, "classes.1.code", "outside", "correct"),
    ("a class code twice", CATEGORICAL, "classes.1.code", 0, "classes.1.code", "twice", "own code"),
    ("an unknown key", CONTINUOUS, "nodatta", 1, "nodatta", "no such key", "did you mean nodata?"),
    ("an unknown key of a band", CONTINUOUS, "bands.0.units", "m", "bands.0.units", "no such key", "unit?"),
    ("two bands of one name", CONTINUOUS, "bands.1.name", "a", "bands.1.name", "twice", "rename"),
    ("no licence", CONTINUOUS, "licence", ..., "licence", "missing", "SPDX"),
    ("an empty licence", CONTINUOUS, "licence", "", "licence", "must not be empty", "SPDX"),
    ("no attribution", CONTINUOUS, "attribution", ..., "attribution", "missing", "sentence"),
    ("no source", CONTINUOUS, "sources", {}, "sources", "at least 1", "where each source keeps it"),
    ("pixels without a size", CONTINUOUS, "gsd", ..., "gsd", "level: pixel", "metres"),
    ("a vector with a pixel size", CONTINUOUS | {"level": "image"}, "gsd", 10, "gsd", "level: image", "remove"),
    ("months of a scene", CONTINUOUS, "months", [-1, 0], "months", "time: scene", "remove"),
    ("a climate without months", CONTINUOUS, "time", "months", "months", "time: months", "[-11, 0]"),
    ("months that end before they start", CONTINUOUS | {"time": "months"}, "months", [0, -1], "months", "after its end",
     "[first, last]"),
    ("a companion of a static map", CONTINUOUS | {"time": "static"}, "same_scene_as", "naip", "same_scene_as",
     "time: static", "scene"),
    ("a companion of itself", CONTINUOUS, "same_scene_as", "mine", "same_scene_as", "itself", "accompanies"),
    ("an unknown dtype", CONTINUOUS, "dtype", "uint12", "dtype", "must be", "uint16"),
    ("a name that is not the file's", CONTINUOUS, "name", "yours", "name", "file's name 'mine'", "rename the file"),
    ("a picture of unknown bands", CONTINUOUS, "display", {"bands": ["c"]}, "display.bands", "'c'", "choose from a, b"),
    ("a picture of two bands", CONTINUOUS, "display", {"bands": ["a", "b"]}, "display.bands", "two bands", "three"),
    ("a colour that is none", CATEGORICAL, "classes.0.color", "blue", "classes.0.color", "must match", "#rrggbb"),
    ("text for a number", CONTINUOUS, "gsd", "ten", "gsd", "must be a number", "pixel size"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "key", "value", "blamed", "reason", "fix"), [r[1:] for r in REFUSALS],
                         ids=[r[0] for r in REFUSALS])  # fmt: skip
def test_the_registry_refuses(
    tmp_path: Path, base: dict[str, Any], key: str, value: Any, blamed: str, reason: str, fix: str
) -> None:
    path = write(tmp_path, changed(base, key, value))
    with pytest.raises(UserError) as error:
        load_modality(path)
    lines = [line for line in str(error.value).splitlines() if f": {blamed}: " in line]
    assert lines, str(error.value)
    assert re.match(rf"{re.escape(str(path))}:\d+: ", lines[0])
    said, _, advice = lines[0].rpartition("; ")
    assert reason in said
    assert fix in advice


def test_the_refusal_names_the_line_of_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, changed(CATEGORICAL, "classes.1.code", 10))
    with pytest.raises(UserError) as error:
        load_modality(path)
    assert str(error.value) == (
        f"{path}:{line_with(path, 'code: 10')}: classes.1.code: 10 -> is outside the valid range of band a; "
        "correct the code or widen valid_range"
    )


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("same_scene_as", "sentinel9", "same_scene_as: 'sentinel9' -> is no known modality"),
        ("clear", {"modality": "scl", "codes": [1]}, "clear.modality: 'scl' -> is no known modality"),
        ("clear", {"modality": "naip", "codes": [1]}, "clear.modality: 'naip' -> has no class codes"),
        ("clear", {"modality": "sentinel2_scl", "codes": [4, 12]}, "clear.codes.1: 12 -> is no class of sentinel2_scl"),
        ("clear", {"modality": "sentinel2_scl", "codes": []}, "needs exactly one of codes, at_least and at_most"),
    ],
)
def test_the_registry_refuses_references_to_what_nobody_defines(
    tmp_path: Path, key: str, value: Any, text: str
) -> None:
    path = write(tmp_path, changed(CONTINUOUS, key, value))
    with pytest.raises(UserError) as error:
        load_modalities(tmp_path)
    assert str(error.value).startswith(f"{path}:")
    assert text in str(error.value)


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, CONTINUOUS)
    second = write(tmp_path, CONTINUOUS, "mine.yml")
    with pytest.raises(
        UserError, match=r"mine is defined twice, by mine\.yaml too; keep one of the two files"
    ) as error:
        load_modalities(tmp_path)
    assert error.value.where == str(second)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        load_modalities(tmp_path / "nowhere")


# -- a user's own folder


def test_a_users_folder_adds_and_replaces(tmp_path: Path) -> None:
    write(tmp_path, CONTINUOUS)
    write(tmp_path, CONTINUOUS | {"name": "naip", "title": "My photographs"}, "naip.yaml")
    known = load_modalities(tmp_path)
    assert set(known) == {*KNOWN, "mine"}
    assert known["naip"].title == "My photographs"
    assert KNOWN["naip"].title != "My photographs"


def test_a_file_is_parsed_once_and_again_when_it_changed(tmp_path: Path) -> None:
    path = write(tmp_path, CONTINUOUS)
    first = load_modality(path)
    assert load_modality(path) is first
    write(tmp_path, CONTINUOUS | {"title": "Another and longer title"})
    assert load_modality(path).title == "Another and longer title"


# -- what comes with mmbuild


def test_the_modalities_are_those_of_the_folder() -> None:
    assert list(KNOWN) == sorted(path.stem for path in BUILT_IN.glob("*.yaml"))
    assert list(KNOWN) == NAMES


@pytest.mark.parametrize("name", ALL)
def test_a_missing_pixel_is_never_a_plausible_value(name: str) -> None:
    modality = ALL[name]
    assert modality.fill.dtype == modality.np_dtype == np.dtype(modality.dtype)
    assert modality.fill.item() == modality.nodata, "nodata survives the dtype"
    for band in modality.bands:
        low, high = band.valid_range
        assert np.array([low, high]).astype(modality.dtype).astype(float).tolist() == pytest.approx([low, high])
        assert not low <= modality.nodata <= high


@pytest.mark.parametrize("name", ALL)
def test_every_modality_says_who_made_it_and_on_which_terms(name: str) -> None:
    modality = ALL[name]
    assert modality.licence
    assert modality.attribution
    assert modality.providers
    if name.startswith("terramesh"):
        assert modality.licence == "CC-BY-SA-4.0"


@pytest.mark.parametrize("name", [n for n, m in ALL.items() if "earthengine" in m.sources])
def test_the_earth_engine_block_is_one_the_source_accepts(name: str) -> None:
    from mmbuild.sources.earthengine.blocks import block_of

    block = block_of(ALL[name])
    assert set(block.bands) <= set(ALL[name].band_names)
    assert block.source_bands(ALL[name])


@pytest.mark.parametrize("name", [n for n, m in KNOWN.items() if m.values == "categorical" and m.level == "pixel"])
def test_classes_have_colours_and_cover_the_valid_range_ends(name: str) -> None:
    modality = KNOWN[name]
    assert all(definition.color for definition in modality.classes)
    assert (modality.class_codes[0], modality.class_codes[-1]) == modality.bands[0].valid_range


def test_sentinel2_is_in_the_order_of_the_sensor() -> None:
    l1c, l2a = KNOWN["sentinel2_l1c"].band_names, KNOWN["sentinel2_l2a"].band_names
    assert l1c == ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
    assert l2a == tuple(name for name in l1c if name != "B10")
    wavelengths = [band.wavelength_um or 0 for band in KNOWN["sentinel2_l1c"].bands]
    assert wavelengths == sorted(wavelengths)
    assert KNOWN["sentinel2_l1c"].alias == KNOWN["sentinel2_l2a"].alias == "sentinel2"


def test_snow_water_and_land_are_clear_and_cloud_and_shadow_are_not() -> None:
    names = {definition.code: definition.name for definition in KNOWN["sentinel2_scl"].classes}
    for name in ("sentinel2_l1c", "sentinel2_l2a"):
        clear = KNOWN[name].clear
        assert clear is not None
        kept = {names[code] for code in clear.codes}
        assert kept == {"vegetation", "bare soil", "water", "unclassified", "snow or ice"}


def test_both_orbits_have_the_same_four_polarisations() -> None:
    ascending, descending = KNOWN["sentinel1_asc"], KNOWN["sentinel1_desc"]
    assert ascending.bands == descending.bands
    assert ascending.band_names == ("VV", "VH", "HH", "HV")
    passes = [m.sources["earthengine"]["where"]["orbitProperties_pass"] for m in (ascending, descending)]
    assert passes == ["ASCENDING", "DESCENDING"]


def test_the_climate_is_twelve_values_of_twelve_months() -> None:
    era5 = KNOWN["era5"]
    assert (era5.level, era5.months, len(era5.bands)) == ("image", (-11, 0), 12)
    source = era5.sources["earthengine"]["bands"]
    spans = {name.split("_")[0]: tuple(entry["months"]) for name, entry in source.items()}
    assert spans == {"prev": (-1, -1), "current": (0, 0), "year": (-11, 0)}
    rules = {(name.split("_", 1)[1], entry["band"], entry["reduce"]) for name, entry in source.items()}
    assert rules == {
        ("temperature_mean", "temperature_2m", "mean"),
        ("temperature_min", "temperature_2m_min", "min"),
        ("temperature_max", "temperature_2m_max", "max"),
        ("precipitation", "total_precipitation_sum", "sum"),
    }


def test_a_subset_keeps_the_order_and_drops_a_picture_it_cannot_paint() -> None:
    part = KNOWN["sentinel2_l2a"].subset(["B8", "B2"])
    assert part.band_names == ("B2", "B8")
    assert part.display.bands is None
    assert KNOWN["sentinel2_l2a"].subset(["B4", "B3", "B2"]).display.bands == ("B4", "B3", "B2")


@pytest.mark.parametrize("name", ALL)
def test_a_modality_survives_being_written_as_json(name: str) -> None:
    text = json.dumps(ALL[name].model_dump(mode="json"), allow_nan=False)
    assert Modality.model_validate(json.loads(text)) == ALL[name]


# -- compared with the facts that others published


def test_class_codes_are_those_of_the_products(shared: Path) -> None:
    constants = json.loads((shared / "facts/data/constants.json").read_text())
    scl = {code for code in constants["scl"] if code != "0"}
    for name, published in (
        ("dynamic_world", set(constants["dynamic_world_gee"])),
        ("esa_worldcover", set(constants["worldcover"])),
        ("sentinel2_scl", scl),
    ):
        assert {str(code) for code in KNOWN[name].class_codes} == published


def test_ecoregions_are_those_of_the_table(shared: Path) -> None:
    with (shared / "facts/data/mmearth_ecoregions.csv").open() as file:
        published = {row["eco_name"] for row in csv.DictReader(file)} - {"Rock and Ice"}
    assert {definition.name for definition in KNOWN["ecoregion"].classes} == published
    biomes = {definition.code: definition.name for definition in KNOWN["biome"].classes}
    for place in json.loads((shared / "realdata/places.json").read_text()):
        assert biomes[place["biome"]["biome_num"]] in biomes.values()


@pytest.fixture(scope="module")
def catalogue(shared_catalogue: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Bands of each Earth Engine asset with their properties, from the dump of the catalogue."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for section in shared_catalogue.split("\n===== "):
        name = section.removeprefix("===== ").split(" ", 1)[0]
        bands = re.findall(r"^    (\w+) (\{.*?\}) \|", section, re.M)
        found[name] = {band: yaml.safe_load(text) or {} for band, text in bands}
    return found


@pytest.fixture(scope="module")
def shared_catalogue(request: pytest.FixtureRequest) -> str:
    folder: Path = request.getfixturevalue("shared")
    return (folder / "facts/ee_catalog.txt").read_text()


@pytest.mark.parametrize("name", [n for n, m in KNOWN.items() if "collection" in m.sources.get("earthengine", {})])
def test_bands_are_those_of_the_earth_engine_catalogue(
    name: str, catalogue: dict[str, dict[str, dict[str, Any]]]
) -> None:
    from mmbuild.sources.earthengine.blocks import block_of

    modality, block = KNOWN[name], block_of(KNOWN[name])
    published = catalogue[str(block.collection)]
    assert [band for band in block.source_bands(modality) if band not in published] == []
    for band in () if modality.count_of else modality.bands:
        facts = published[block.band(band.name).band]
        if "center_wavelength" in facts:
            assert band.wavelength_um == facts["center_wavelength"]
        if "gee:scale" in facts:
            assert band.scale == facts["gee:scale"]
        if "gsd" in facts:
            assert band.gsd == facts["gsd"]


def test_only_a_modality_with_classes_can_be_the_land_cover(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_modality(write(tmp_path, CONTINUOUS | {"land_cover": True}))
    assert "land_cover: True -> a continuous modality has no classes; remove them or set values: categorical" in str(
        error.value
    )
    assert [name for name, m in ALL.items() if m.land_cover] == ["dynamic_world", "esa_worldcover", "terramesh_lulc"]
