"""A recipe determines a corpus: how it is read, merged, resolved and named, and how it is refused."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import rasterio
import yaml
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds

from mmbuild.errors import UserError
from mmbuild.grid import utm_grid
from mmbuild.recipe import Recipe, UtmGrid, known_recipes, load_recipe, recipe_from_resolved
from mmbuild.registry import load_modalities
from tests.recipe_faults import (
    NOT_A_RECIPE,
    Fault,
    api,
    bases,
    check_fault,
    check_file,
    dump,
    faults,
    line_of,
    write_neighbours,
)

SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small recipe",
    "licence": "CC-BY-4.0",
    "samples": 16,
    "source": "sandbox",
    "sampler": {"kind": "biome"},
    "grid": {"kind": "utm", "gsd": 10, "size": 64},
    "anchor": {"modality": "sentinel2_l2a", "years": [2019, 2020], "max_cloud": 40},
    "modalities": {"sentinel2_l2a": None, "aster_gdem": None, "era5": None},
}


def write(folder: Path, data: dict[str, Any], name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(dump(data))
    return path


def small(folder: Path, *overrides: str, **changes: Any) -> Recipe:
    return load_recipe(write(folder, SMALL | changes), overrides)


def refused(folder: Path, *overrides: str, **changes: Any) -> str:
    with pytest.raises(UserError) as error:
        small(folder, *overrides, **changes)
    assert error.value.exit_code == 2
    return str(error.value)


# -- every way to be wrong (all of them: tests/acceptance/test_recipe_errors.py)


@pytest.mark.parametrize("fault", faults()[::9], ids=lambda fault: fault.name)
def test_a_wrong_key_is_one_readable_line(fault: Fault, tmp_path: Path) -> None:
    check_fault(fault, tmp_path, api)


@pytest.mark.parametrize("name", NOT_A_RECIPE)
def test_a_file_that_is_no_recipe_is_refused(name: str, tmp_path: Path) -> None:
    check_file(*NOT_A_RECIPE[name], tmp_path, api)


@pytest.mark.parametrize("number", range(len(bases())))
def test_the_recipes_behind_the_sweep_are_valid(number: int, tmp_path: Path) -> None:
    write_neighbours(tmp_path)
    assert load_recipe(write(tmp_path, bases()[number])).name == "sweep"


def test_a_line_number_is_found_through_lists_and_comments(tmp_path: Path) -> None:
    text = "# a comment\n\n" + dump(SMALL).replace("years:\n  - 2019\n  - 2020", "years: # which\n  - 2019\n  - 1999")
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "r.yaml")
    line = text.splitlines().index("  - 1999") + 1
    assert str(error.value).startswith(f"{tmp_path}/r.yaml:{line}: anchor.years.1: 1999 -> must be at least 2015; ")


def test_several_faults_are_several_complete_lines(tmp_path: Path) -> None:
    text = refused(tmp_path, seed=-1, samples="many", grid={"kind": "utm", "gsd": 10, "sise": 64})
    lines = text.splitlines()
    assert len(lines) == 4
    assert all(re.match(r".+small\.yaml:\d+: [a-z.]+: .+; .+", line) for line in lines)
    assert {line.split(": ")[1] for line in lines} == {"seed", "samples", "grid.sise", "grid.size"}


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["grid.size=0"], "grid.size", ["0 -> must be at least 1", "chips are usually 64 to 264 px"]),
        (["grid.sise=8"], "grid.sise", ["did you mean size?"]),
        (["grid.size=5"], "grid.size", ["50 m wide", "60 m"]),
        (["grid.size=20000"], "grid.size", ["at most 4096"]),
        (["store.codec=gzip"], "store.codec", ["'gzip' -> must be", "auto, zstd, lz4, lz4hc"]),
        (["modalities.sentinel2_l3={}"], "modalities.sentinel2_l3", ["did you mean", "sentinel2_l2a"]),
        (["modalities.naip.bands=[R, X]"], "modalities.naip.bands.1", ["'X' -> is no band of naip", "R, G, B, N"]),
        (["modalities.naip.bands=[R, R]"], "modalities.naip.bands.1", ["named twice"]),
        (["modalities.sentinel2_scl={}", "anchor.modality=sentinel2_scl"], "anchor.modality", ["no scenes of its own"]),
        (["anchor.modality=aster_gdem"], "anchor.modality", ["no scenes", "choose from sentinel2_l2a"]),
        (["anchor.modality=naip"], "anchor.modality", ["not among this recipe's modalities"]),
        (["anchor={modality: naip, one_of: [naip], years: [2020]}"], "anchor", ["exactly one of modality and one_of"]),
        (["anchor.years=[2020, 2019]"], "anchor.years", ["must rise", "[2019, 2020]"]),
        (["anchor.years=[]"], "anchor.years", ["is missing", "[2019, 2020]"]),
        (["anchor.pick=nearest"], "anchor.pick", ["date_column"]),
        (["anchor.max_days=3"], "anchor.max_days", ["date_column"]),
        (["splits.val=0.6", "splits.test=0.4"], "splits.val", ["val + test = 1", "below 1"]),
        (["samples=null"], "samples", ["is missing", "samples: 64"]),
        (["source=moon"], "source.name", ["no known source", "earthengine, sandbox"]),
        (["modalities.aster_gdem.source=stac"], "modalities.aster_gdem.source", ["not kept by source 'stac'"]),
        (["modalities.era5.gsd=30"], "modalities.era5.gsd", ["has no pixels"]),
        (["modalities.era5.max_days=3"], "modalities.era5.max_days", ["no scene of its own"]),
        (["modalities.aster_gdem.gsd=30"], "modalities.aster_gdem.gsd", ["whole number of 30 m", "to 10 or 20"]),
        (["modalities.aster_gdem.gsd=15"], "modalities.aster_gdem.gsd", ["do not nest"]),
        (["sampler={kind: points, file: nowhere.csv}"], "sampler.file", ["no such file"]),
        (["sampler={kind: xyz}"], "sampler", ["exactly one of file, tiles and states"]),
        (["sampler={kind: xyz, states: [Iowa, Goergia]}"], "sampler.states.1", ["no US state", "did you mean Georgia"]),
        (["sampler={kind: xyz, tiles: [2/4/0]}"], "sampler.tiles.0", ["is no tile", "zoom 2 go from 0 to 3"]),
        (["sampler={kind: xyz, tiles: [30/4/0]}"], "sampler.tiles.0", ["is no tile", "zoom ends at 24"]),
        (["sampler={kind: xyz, states: [Iowa]}"], "grid.kind", ["'utm' -> has no tiles", "kind webmercator"]),
        (["sampler={kind: xyz, states: [Iowa], covered_by: nap}"], "sampler.covered_by", ["recipe's modalities"]),
        (
            ["sampler={kind: xyz, tiles: [9/1/2]}", "grid={kind: webmercator, zoom: 8}"],
            "sampler.tiles.0",
            ["smaller than the tiles of the grid", "raise grid.zoom"],
        ),
        (["sampler={kind: cities, cities: geoname}"], "sampler.cities", ["no known list of cities", "use geonames"]),
        (["sampler={kind: cities, cities: nowhere.csv}"], "sampler.cities", ["no such file"]),
        (["sampler={kind: cities, keep: large}"], "sampler.keep", ["has no columns to choose by"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and "=" in value[0] else None,
)
def test_keys_that_do_not_fit_each_other_name_the_one_to_change(
    tmp_path: Path, overrides: list[str], key: str, words: list[str]
) -> None:
    text = refused(tmp_path, *overrides)
    (line,) = (line for line in text.splitlines() if f": {key}: " in line)
    assert re.match(r"(--set|.*small\.yaml:\d+): ", line)
    assert [word for word in words if word not in line] == []


def test_a_companion_without_its_host_is_refused(tmp_path: Path) -> None:
    text = refused(
        tmp_path,
        anchor={"modality": "sentinel2_l1c", "years": [2020]},
        modalities={"sentinel2_l1c": {}, "sentinel2_scl": {}},
    )
    assert "modalities.sentinel2_scl: comes with the scene of sentinel2_l2a" in text
    assert "add sentinel2_l2a or remove sentinel2_scl" in text


def test_min_clear_needs_a_rule_for_clear_ground(tmp_path: Path) -> None:
    anchor = {"modality": "sentinel1_asc", "years": [2020], "min_clear": 0.5}
    text = refused(tmp_path, modalities={"sentinel1_asc": {}}, anchor=anchor)
    assert "anchor.min_clear: 0.5 -> sentinel1_asc has no rule for clear ground; remove min_clear" in text


def test_a_shard_that_is_too_large_says_how_many_samples_fit(tmp_path: Path) -> None:
    text = refused(tmp_path, "grid.size=512", "store.samples_per_shard=64")
    one = 512 * 512 * (12 * 2 + 2 * 2) + 12 * 4
    assert f"at most {256 * 2**20 // one} samples fit" in text
    fits = small(tmp_path, "grid.size=512", f"store.samples_per_shard={256 * 2**20 // one}")
    assert fits.store.samples_per_shard == 36


def test_a_shard_that_cannot_fit_eight_samples_says_what_to_shrink(tmp_path: Path) -> None:
    assert "make grid.size smaller" in refused(tmp_path, "grid.size=2048")


def test_an_unknown_recipe_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"tinny: there is no such recipe; did you mean tiny\?"):
        load_recipe("tinny")


# -- reading and merging


def test_set_values_are_yaml_and_win(tmp_path: Path) -> None:
    recipe = small(tmp_path, "grid.size=96", "anchor.years=[2021]", "modalities.aster_gdem={gsd: 30}", "seed=5")
    assert recipe.grid.size == 96
    assert recipe.anchor.years == [2021]
    assert recipe.gsd("aster_gdem") == 30
    assert recipe.seed == 5


def test_set_of_another_kind_replaces_the_section(tmp_path: Path) -> None:
    recipe = small(tmp_path, "grid.kind=webmercator", "grid.zoom=14")
    assert recipe.grid.model_dump() == {"kind": "webmercator", "zoom": 14, "size": 256}


def test_set_of_the_source_keeps_its_shorthand(tmp_path: Path) -> None:
    recipe = small(tmp_path, "source.project=mine")
    assert (recipe.source.name, recipe.source.project) == ("sandbox", "mine")


@pytest.mark.parametrize("text", ["grid.size", "=3", "grid..size=3"])
def test_set_without_key_and_value_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith(f"--set: {text!r} -> is not key=value; ")


def test_extends_merges_key_by_key_and_keeps_the_order_of_the_base(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    child = {
        "extends": "small.yaml",
        "name": "child",
        "grid": {"size": 96},
        "anchor": {"one_of": ["sentinel2_l1c", "sentinel2_l2a"]},
        "modalities": {"sentinel2_l1c": {"max_days": 3}, "aster_gdem": {"gsd": 30}},
    }
    recipe = load_recipe(write(tmp_path, child, "child.yaml"))
    assert recipe.title == SMALL["title"]
    assert recipe.grid.model_dump() == {"kind": "utm", "gsd": 10.0, "size": 96}
    assert recipe.anchor.products == ("sentinel2_l1c", "sentinel2_l2a")
    assert list(recipe.modalities) == ["sentinel2_l2a", "aster_gdem", "era5", "sentinel2_l1c"]
    assert recipe.gsd("aster_gdem") == 30


def test_extends_finds_a_known_recipe_by_name(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, {"extends": "tiny", "name": "mine", "samples": 8}))
    assert (recipe.samples, recipe.title) == (8, load_recipe("tiny").title)


def test_a_fault_in_a_base_names_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, SMALL | {"seed": -1}, "base.yaml")
    child = write(tmp_path, {"extends": "base.yaml", "samples": 0}, "child.yaml")
    with pytest.raises(UserError) as error:
        load_recipe(child)
    lines = str(error.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == [f"{base}:{line_of(base.read_text(), ('seed',))}:", f"{child}:2:"]


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"extends": "b.yaml"}, "a.yaml")
    write(tmp_path, {"extends": "a.yaml"}, "b.yaml")
    with pytest.raises(UserError, match=r"extends: 'a.yaml' -> extends itself in a circle; "):
        load_recipe(tmp_path / "a.yaml")


def test_numbers_and_dates_read_as_people_mean_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dump(SMALL).replace("title: A small recipe", "title: 2020-01-01") + "splits:\n  buffer_m: 2e3\n")
    recipe = load_recipe(path)
    assert (recipe.title, recipe.splits.buffer_m) == ("2020-01-01", 2000.0)


def test_modality_files_beside_the_recipe_add_and_replace(tmp_path: Path) -> None:
    folder = tmp_path / "modalities"
    folder.mkdir()
    source = Path(load_modalities.__code__.co_filename).parent / "modalities" / "aster_gdem.yaml"
    text = source.read_text()
    (folder / "aster_gdem.yaml").write_text(text.replace("gsd: 10\n", "gsd: 20\n"))
    (folder / "my_dem.yaml").write_text(text.replace("name: aster_gdem", "name: my_dem"))
    recipe = small(tmp_path, "modalities.my_dem={}")
    assert recipe.gsd("aster_gdem") == 20
    assert recipe.modality_defs["my_dem"].title == load_modalities()["aster_gdem"].title
    assert "my_dem" not in load_modalities()


def test_files_are_relative_to_the_recipe_and_not_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "places.csv").write_text("lon,lat\n10,50\n")
    sampler = {"kind": "points", "file": "places.csv"}
    path = write(tmp_path, SMALL | {"sampler": sampler})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    here, there = load_recipe("../small.yaml"), load_recipe(path)
    assert here.file("places.csv") == tmp_path / "places.csv"
    assert here.digest == there.digest
    assert str(tmp_path) not in json.dumps(here.resolved())


def test_a_file_named_with_set_is_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "places.csv").write_text("lon,lat\n10,50\n")
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(write(tmp_path, SMALL), ["sampler={kind: points, file: places.csv}"])
    assert recipe.file("places.csv") == tmp_path / "here" / "places.csv"


# -- what it says when it is read


def test_pixel_sizes_follow_the_grid_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    assert small(tmp_path).gsd("sentinel2_l2a") == 10
    assert small(tmp_path, "grid.gsd=20").gsd("sentinel2_l2a") == 20
    fine = small(tmp_path, "grid.gsd=1", "grid.size=640", "modalities.naip={}", "store.samples_per_shard=8")
    assert (fine.gsd("sentinel2_l2a"), fine.gsd("naip"), fine.gsd("era5")) == (10, 1, None)
    assert (fine.shape("sentinel2_l2a"), fine.shape("naip")) == ((1, 12, 64, 64), (1, 4, 640, 640))
    assert fine.shape("era5") == (1, 12)
    tile = small(tmp_path, "grid.kind=webmercator", "grid.zoom=15")
    assert tile.gsd("sentinel2_l2a") == pytest.approx(4.7773, abs=1e-4)  # corpora.md, 9
    assert tile.shape("aster_gdem") == (1, 2, 256, 256)


def test_a_band_subset_keeps_the_order_of_the_sensor(tmp_path: Path) -> None:
    recipe = small(tmp_path, "modalities.sentinel2_l2a.bands=[B8A, B2, B8]")
    assert recipe.modality_defs["sentinel2_l2a"].band_names == ("B2", "B8", "B8A")
    assert recipe.shape("sentinel2_l2a") == (1, 3, 64, 64)
    assert len(recipe.known_modalities["sentinel2_l2a"].bands) == 12


@pytest.mark.parametrize("name", known_recipes())
def test_a_resolved_recipe_is_json_and_loads_again_with_the_same_digest(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    resolved = json.loads(json.dumps(recipe.resolved(), allow_nan=False))
    again = recipe_from_resolved(resolved, recipe.known_modalities)
    assert again.resolved() == recipe.resolved()
    assert again.digest == recipe.digest
    source = known_recipes()[name].parent
    for file in recipe.files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(recipe.file(file), tmp_path / file)
    if (source / "modalities").is_dir():
        shutil.copytree(source / "modalities", tmp_path / "modalities")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    assert load_recipe(tmp_path / "recipe.yaml").digest == recipe.digest


def test_a_recipe_travels_between_processes(tmp_path: Path) -> None:
    recipe = small(tmp_path)
    again = pickle.loads(pickle.dumps(recipe))
    assert (again.digest, again.shape("aster_gdem")) == (recipe.digest, (1, 2, 64, 64))


def test_the_digest_leaves_out_samples_and_who_asks(tmp_path: Path) -> None:
    same = {
        small(tmp_path).digest,
        small(tmp_path, "samples=96").digest,
        small(tmp_path, "source.project=mine").digest,
        small(tmp_path, "seed=0").digest,  # the default, written out
        small(tmp_path, "grid.gsd=10.0").digest,
    }
    assert len(same) == 1


@pytest.mark.parametrize(
    "change",
    ["seed=1", "grid.size=32", "anchor.max_cloud=41", "store.level=6", "title=Other", "source=earthengine",
     "modalities.aster_gdem.gsd=20", "modalities.month={}", "alternates=5", "splits.val=0.2"],
)  # fmt: skip
def test_any_other_change_gives_another_digest(tmp_path: Path, change: str) -> None:
    assert small(tmp_path, change).digest != small(tmp_path).digest


def test_the_order_of_modalities_is_part_of_the_digest(tmp_path: Path) -> None:
    turned = dict(reversed(SMALL["modalities"].items()))
    assert small(tmp_path, modalities=turned).digest != small(tmp_path).digest


def test_a_file_counts_in_the_digest_by_its_content(tmp_path: Path) -> None:
    def digest(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return small(tmp_path, sampler={"kind": "points", "file": name}).digest

    first = digest("a.csv", "lon,lat\n10,50\n")
    assert digest("b.csv", "lon,lat\n10,50\n") == first
    assert digest("a.csv", "lon,lat\n10,51\n") != first


def test_a_modality_counts_in_the_digest_by_its_definition(tmp_path: Path) -> None:
    before = small(tmp_path).digest
    source = Path(load_modalities.__code__.co_filename).parent / "modalities"
    folder = tmp_path / "modalities"
    folder.mkdir()
    for name, old, new in (("naip", "gsd: 1\n", "gsd: 2\n"), ("aster_gdem", "nodata: -32768", "nodata: -32767")):
        (folder / f"{name}.yaml").write_text((source / f"{name}.yaml").read_text().replace(old, new))
        changed = small(tmp_path).digest
        assert (changed == before) == (name == "naip"), "only modalities that are used count"


def test_a_file_that_changed_since_the_recipe_was_resolved_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("lon,lat\n10,50\n")
    recipe = small(tmp_path, sampler={"kind": "points", "file": "p.csv"})
    (tmp_path / "p.csv").write_text("lon,lat\n10,51\n")
    with pytest.raises(UserError, match=r"files\.p\.csv: '?.*the file has changed since; restore the file"):
        load_recipe(write(tmp_path, recipe.resolved()))


# -- the recipes that come with mmbuild


@pytest.mark.parametrize("name", known_recipes())
def test_every_recipe_of_the_folder_is_valid_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name).name == name


def test_the_tiny_recipe_has_seven_or_more_modalities_in_shards_of_eight() -> None:
    tiny = load_recipe("tiny")
    assert (tiny.samples, tiny.store.samples_per_shard, tiny.source.name) == (64, 8, "sandbox")
    assert len(tiny.modalities) >= 7
    assert tiny.digest == load_recipe(os.path.relpath(known_recipes()["tiny"])).digest


REAL_FILES = {
    "parana_coast": "colocated/terramesh/282D_485L_3_3/*.tif",
    "north_tanzania": "colocated/terramesh/38D_378R_2_3/*.tif",
    "north_jutland": "colocated/terramesh/637U_59R_1_3/*.tif",
    "punjab_june": "colocated/ssl4eo_s12/*/*/*/*.tif",
    "punjab_august": "colocated/ssl4eo_s12/*/*/*/*.tif",
    "sao_tome_forest": "colocated/sao_tome/*.tif",
    "sao_tome_city": "colocated/sao_tome/*.tif",
}


@pytest.mark.parametrize("place", REAL_FILES)
def test_every_chip_of_the_real_recipe_lies_inside_its_files(place: str, shared: Path) -> None:
    recipe = load_recipe("real_mini")
    with recipe.file("real_mini_points.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["id"] == place)
    assert isinstance(recipe.grid, UtmGrid)
    box = utm_grid(float(row["lon"]), float(row["lat"]), gsd=recipe.grid.gsd, size=recipe.grid.size)
    files = sorted((shared / "realdata").glob(REAL_FILES[place]))
    assert files
    for path in files:
        with rasterio.open(path) as source:
            chip = transform_bounds(box.crs.to_wkt(), source.crs, *array_bounds(*box.shape, box.affine))
            file_bounds, pixel = source.bounds, abs(source.transform.e)
        margins = [chip[0] - file_bounds.left, chip[1] - file_bounds.bottom]
        margins += [file_bounds.right - chip[2], file_bounds.top - chip[3]]
        assert min(margins) > pixel, path


def test_the_dates_of_the_real_recipe_are_those_of_the_scenes(shared: Path) -> None:
    entries = json.loads((shared / "realdata/places.json").read_text())
    places = {entry["place_id"]: entry["modalities"] for entry in entries}
    with load_recipe("real_mini").file("real_mini_points.csv").open() as file:
        dates = {row["id"]: row["date"] for row in csv.DictReader(file)}
    for name, place in (
        ("parana_coast", "282D_485L_3_3"),
        ("north_tanzania", "38D_378R_2_3"),
        ("north_jutland", "637U_59R_1_3"),
    ):
        assert [dates[name]] == places[f"terramesh/{place}"]["S2L2A"]
    assert [dates["punjab_june"][:10], dates["punjab_august"][:10]] == places["ssl4eo_s12"]["S2L2A"]
    assert dates["sao_tome_forest"] == dates["sao_tome_city"] == ""
