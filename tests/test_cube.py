"""A shard we pack is a shard any Zarr reader reads, and the same chips are always the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
import zarr

from mmbuild.cube import CUBE, ArrayLayout, chip_digest, layouts, pack_shard
from mmbuild.errors import IntegrityError
from mmbuild.registry import load_modalities
from mmbuild.store import Store, open_store
from mmbuild.tree import write_tree

MODALITIES = load_modalities()


def layout(name: str, *, size: int = 16, codec: str = "zstd") -> ArrayLayout:
    modality = MODALITIES[name]
    pixels = (size, size) if modality.level == "pixel" else ()
    chip = (len(modality.bands), *pixels)
    return ArrayLayout(
        modality=modality, gsd=10.0 if pixels else None, times=1, chip=chip, samples_per_shard=8, codec=codec, level=5
    )


def chips_of(array: ArrayLayout, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [(generator.random(array.chip) * 200).astype(array.modality.np_dtype) for _ in range(count)]


def write(store: Store, array: ArrayLayout, chips: list[np.ndarray | None]) -> list[tuple[int, int]]:
    data, places = pack_shard([None if chip is None else array.encode(chip) for chip in chips])
    store.put(array.key(0), data)
    return places


@pytest.mark.parametrize("codec", ["zstd", "lz4", "lz4hc"])
@pytest.mark.parametrize("name", ["sentinel2_l2a", "sentinel1_asc", "esa_worldcover", "aster_gdem", "era5"])
def test_zarr_python_reads_the_shards_we_pack(name: str, codec: str, tmp_path: Path) -> None:
    array, store = layout(name, codec=codec), open_store(tmp_path)
    chips = chips_of(array, 8)
    write_tree(store, {name: array}, 8, None, {})
    write(store, array, [*chips[:3], None, *chips[4:]])
    stored = zarr.open_array(tmp_path / CUBE / name / "data", mode="r")
    for sample in (0, 2, 4, 7):
        np.testing.assert_array_equal(stored[sample, 0], chips[sample])
    assert (stored[3, 0] == array.modality.fill).all(), "an absent chip reads as nodata"


@pytest.mark.parametrize("codec", ["zstd", "lz4", "lz4hc"])
@pytest.mark.parametrize("name", ["sentinel2_l2a", "sentinel1_asc", "esa_worldcover", "aster_gdem"])
@pytest.mark.parametrize(("size", "window"), [(128, 112), (264, 120)], ids=["mmearth", "croma"])
def test_every_block_of_blosc_holds_pixels_of_every_window(name: str, codec: str, size: int, window: int) -> None:
    """Why the stream decodes whole chips: what Blosc decodes at once is longer than what lies between two windows."""
    array = layout(name, size=size, codec=codec)
    (chip,) = chips_of(array, 1)
    block = int.from_bytes(array.encode(chip)[8:12], "little")  # of the Blosc header
    between = (size - window + 1) * chip[0, 0].nbytes  # the end of a window in one plane and its beginning in the next
    assert block >= min(between, chip.nbytes)


def test_the_places_in_the_record_are_the_bytes_of_the_chip(tmp_path: Path) -> None:
    array, store = layout("sentinel2_l2a"), open_store(tmp_path)
    chips = chips_of(array, 8)
    places = write(store, array, [None, *chips[1:]])
    assert places[0] == (-1, -1)
    for sample in range(1, 8):
        chunk = store.get_range(array.key(0), *places[sample])
        np.testing.assert_array_equal(array.decode(chunk), chips[sample])


def test_encoding_is_reproducible() -> None:
    array = layout("sentinel1_asc", size=64)
    chip = chips_of(array, 1)[0]
    assert len({array.encode(chip.copy()) for _ in range(5)}) == 1


def test_a_flipped_bit_is_an_integrity_error() -> None:
    array = layout("esa_worldcover")
    chunk = bytearray(array.encode(chips_of(array, 1)[0]))
    chunk[20] ^= 1
    with pytest.raises(IntegrityError, match="checksum of a stored chip is wrong"):
        array.decode(bytes(chunk))


def test_a_chip_of_another_shape_or_dtype_is_refused() -> None:
    array = layout("esa_worldcover")
    with pytest.raises(IntegrityError, match="the cube holds uint8"):
        array.encode(np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(IntegrityError, match="a chip is int64"):
        array.encode(np.zeros((1, 16, 16), np.int64))


def test_the_digest_is_of_little_endian_c_order_bytes() -> None:
    chip = np.arange(12, dtype=">u2").reshape(3, 4).T
    truth = hashlib.sha256(np.ascontiguousarray(chip).astype("<u2").tobytes()).hexdigest()
    assert chip_digest(chip) == truth


def test_xarray_opens_tree_and_group_with_coordinates_and_nan_where_missing(tmp_path: Path) -> None:
    array, store = layout("sentinel2_l2a"), open_store(tmp_path)
    chips = chips_of(array, 2)
    times = pa.array([[1_577_836_800_000], [None]], type=pa.list_(pa.timestamp("ms", tz="UTC")))
    root = pa.table({"id": ["000000", "000001"], "lon": [1.0, 2.0], "datetime:sentinel2_l2a": times})
    write_tree(store, {array.name: array}, 2, root, {"title": "a title"})
    write(store, array, [chips[0], *[None] * 7])
    tree = xr.open_datatree(tmp_path / CUBE, engine="zarr")
    group = xr.open_zarr(tmp_path / CUBE, group=array.name)
    assert tree.attrs["title"] == "a title"
    assert list(tree["id"].values) == ["000000", "000001"]
    assert tree[array.name]["data"].dims == ("sample", "time", "band", "y", "x")
    assert list(group["band"].values) == list(array.modality.band_names)
    assert group["datetime"].values[0, 0] == np.datetime64("2020-01-01")
    assert np.isnat(group["datetime"].values[1, 0])
    np.testing.assert_array_equal(group["data"][0, 0].values, chips[0])
    assert np.isnan(group["data"][1, 0].values).all()


def test_growing_the_cube_keeps_the_bytes_of_its_chips(tmp_path: Path) -> None:
    array, store = layout("canopy_height"), open_store(tmp_path)
    write_tree(store, {array.name: array}, 8, None, {})
    write(store, array, [*chips_of(array, 8)])
    before = store.get(array.key(0))
    write_tree(store, {array.name: array}, 24, None, {})
    assert store.get(array.key(0)) == before
    assert zarr.open_array(tmp_path / CUBE / array.name / "data", mode="r").shape[0] == 24


def test_the_lock_says_how_each_modality_is_packed_and_why(tmp_path: Path) -> None:
    from mmbuild.build import _lock
    from tests.corpora import small_recipe

    told = _lock(small_recipe("modalities.era5={codec: zstd}"), {})["packing"]
    assert told["era5"] == {"codec": "zstd", "level": 5, "shuffle": True, "why": "the recipe says so"}
    assert (told["sentinel1_asc"]["codec"], told["sentinel1_asc"]["level"]) == ("lz4hc", 9)
    assert told["sentinel1_asc"]["why"].startswith("measured: the fastest to decode")
    assert not told["esa_worldcover"]["shuffle"]


def test_a_recipe_chooses_the_codec_of_all_modalities_or_of_one() -> None:
    from tests.corpora import small_recipe

    def packed(*overrides: str) -> set[tuple[str, int]]:
        return {(layout.codec, layout.level) for layout in layouts(small_recipe(*overrides)).values()}

    assert packed() == {("lz4hc", 9)}
    assert packed("store.codec=zstd") == {("zstd", 5)}
    assert packed("store.codec=zstd", "store.level=3") == {("zstd", 3)}
    assert packed("store.codec=zstd", "store.level=3", "modalities.era5={codec: lz4}") == {("zstd", 3), ("lz4", 5)}
