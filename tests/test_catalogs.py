"""catalogs/ is what its generator writes, so it cannot drift from recipes and modality files (`make catalogs`)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pystac
import pytest

from mmbuild.recipe import load_recipe

FOLDER = Path(__file__).parents[1] / "catalogs"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_catalogs", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))


def test_reference_collections_are_what_recipes_and_modality_files_say(make: ModuleType) -> None:
    for name, content in make.references().items():
        assert (FOLDER / name).read_text("utf-8") == make.text_of(content), f"catalogs/{name}: run `make catalogs`"


def test_every_file_is_reached_from_the_root_and_every_link_leads_to_a_file() -> None:
    root = pystac.Catalog.from_file(str(FOLDER / "catalog.json"))
    children = list(root.get_children())
    items = [item for child in children for item in child.get_items()]
    reached = {Path(str(found.self_href)).resolve() for found in (root, *children, *items)}
    assert reached == {path.resolve() for path in FOLDER.rglob("*.json")}
    for path in sorted(FOLDER.rglob("*.json")):
        for link in json.loads(path.read_text("utf-8"))["links"]:
            if "://" not in link["href"]:
                assert (path.parent / link["href"]).is_file(), f"{path}: {link}"


def test_licences_are_those_of_the_modalities_inside(make: ModuleType) -> None:
    for name in make.REFERENCES:
        recipe, told = load_recipe(name), written(f"{name}/collection.json")
        inside = recipe.modality_defs
        assert set(told["item_assets"]) == set(inside)
        rolled = {one: entry for entry in told["mmbuild:licences"] for one in entry["modalities"]}
        assert {one: (entry["licence"], entry["attribution"]) for one, entry in rolled.items()} == {
            one: (m.licence, m.attribution) for one, m in inside.items()
        }
        assert {one["name"] for one in told["providers"]} == {p.name for m in inside.values() for p in m.providers}
        assert told["mmbuild:built"] is False
        assert (FOLDER / name / told["assets"]["recipe"]["href"]).is_file()


def test_the_taster_is_called_synthetic_wherever_it_appears() -> None:
    folders = [path.parent for path in FOLDER.glob("*_taster_*/collection.json")]
    assert len(folders) == 1
    told = json.loads((folders[0] / "collection.json").read_text("utf-8"))
    assert told["mmbuild:synthetic"] is True
    assert "synthetic" in told["keywords"]
    assert "Synthetic values from an offline Earth" in told["description"]
    assert set(told["mmbuild:taster"]["distance"]["variables"]) >= {"biome", "latitude", "month", "land_cover"}
    assert not {p["name"] for p in told["providers"]} & {"USGS", "NASA", "Google Earth Engine"}
    items = [json.loads(path.read_text("utf-8")) for path in folders[0].glob("0*.json")]
    assert len(items) == told["mmbuild:samples"]["stored"] == 8
    assert all(item["properties"]["mmbuild:synthetic"] is True for item in items)
