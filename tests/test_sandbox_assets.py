"""Looking images up by id, and worlds in layers."""

from __future__ import annotations

from mmbuild.sandbox.assets import Dataset, LayeredWorld, World, find_image
from tests.sandbox_worlds import FormulaDataset, FormulaWorld, sentinel_world


def test_an_image_is_found_by_collection_and_index() -> None:
    world = sentinel_world()
    dataset, image = find_image(world, "C/S2/S004") or (None, None)
    assert (dataset.id, image.index) == ("C/S2", "S004")
    assert find_image(world, "C/DEM")[1].id == "C/DEM"


def test_a_collection_a_table_or_nothing_is_no_image() -> None:
    world = sentinel_world()
    assert [find_image(world, id) for id in ("C/S2", "C/REGIONS", "C/S2/NONE", "NO", "NO/SUCH/THING")] == [None] * 5


def test_the_first_layer_that_knows_an_id_serves_it() -> None:
    over = FormulaWorld([FormulaDataset("C/S2", "image_collection")], version="over", synthetic=False)
    world = LayeredWorld(over, sentinel_world())
    assert list(world.dataset("C/S2").images()) == []
    assert world.dataset("C/DEM") is not None
    assert world.dataset("NO") is None
    assert world.ids() == ["C/DEM", "C/REGIONS", "C/S2"]
    assert (world.version, world.synthetic) == ("over+formula-1", True)


def test_the_test_worlds_are_worlds() -> None:
    assert isinstance(sentinel_world(), World)
    assert isinstance(sentinel_world().dataset("C/S2"), Dataset)
