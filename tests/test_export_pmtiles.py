"""The Scale-ALiBi triple as the pmtiles package and Pillow read it, and the way back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pmtiles.reader import MemorySource, Reader, all_tiles
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from typer.testing import CliRunner

from mmbuild.catalog import item_dict, read_items
from mmbuild.cli import app
from mmbuild.errors import UserError
from mmbuild.export import Options, export_corpus
from mmbuild.foreign.pictures import decode_picture, encode_png
from mmbuild.importers import import_corpus
from tests.packed import Packed, pack_random
from tests.test_export import killed_after_three_units

NAMES = ("sentinel1", "sentinel2_tci", "naip", "naip_2x")
ZOOM, SAMPLES = 15, 9
SIDE = 2 * 20037508.342789244 / 2**ZOOM


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("tiles") / "corpus"
    gsds = {"naip_2x": SIDE / 512}
    return pack_random(folder, NAMES, samples=SAMPLES, size=256, grid="webmercator", zoom=ZOOM, gsds=gsds)


@pytest.fixture(scope="module")
def triple(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triple") / "x"
    export_corpus(packed.corpus, folder, format="pmtiles", options=Options(name="small"))
    return folder


def tile_of(packed: Packed, slot: int) -> tuple[int, int]:
    sample = packed.samples[slot]
    assert sample.x0 is not None
    assert sample.y0 is not None
    return round((sample.x0 + 20037508.342789244) / SIDE), round((20037508.342789244 - sample.y0) / SIDE)


def archive(folder: Path, name: str) -> Reader:
    return Reader(MemorySource((folder / f"{name}_tiles_small.pmtile").read_bytes()))


def picture(reader: Reader, z: int, x: int, y: int) -> np.ndarray | None:
    data = reader.get(z, x, y)
    return None if data is None else np.asarray(Image.open(io.BytesIO(data)))


def shown(chip: np.ndarray, fill: int = 65535) -> np.ndarray:
    """(y, x, 4): the bands as they are, black and transparent where one is missing."""
    valid = (chip != fill).all(axis=0)
    return np.dstack([np.where(valid, band, 0).astype(np.uint8) for band in chip] + [np.where(valid, 255, 0)])


def test_archives_are_pmtiles_of_uncompressed_pngs_in_hilbert_order(packed: Packed, triple: Path) -> None:
    assert sorted(path.name for path in triple.glob("*.pmtile")) == [
        "hires_visual_tiles_small.pmtile", "sar_tiles_small.pmtile", "visual_tiles_small.pmtile",
    ]  # fmt: skip
    for name, zooms in {"sar": (15, 15), "visual": (15, 15), "hires_visual": (15, 16)}.items():
        reader = archive(triple, name)
        header = reader.header()
        assert (header["version"], header["tile_type"], header["tile_compression"]) == (
            3, TileType.PNG, Compression.NONE,
        )  # fmt: skip
        assert (header["min_zoom"], header["max_zoom"], header["clustered"]) == (*zooms, True)
        assert header["min_lon_e7"] < header["center_lon_e7"] < header["max_lon_e7"]
        assert reader.metadata()["mmbuild:synthetic"] == "yes"
    data = (triple / "hires_visual_tiles_small.pmtile").read_bytes()
    ids = [zxy_to_tileid(*place) for place, _ in all_tiles(MemorySource(data))]
    assert ids == sorted(ids)
    assert len(ids) == int(packed.stored["naip"].sum() + 4 * packed.stored["naip_2x"].sum())


def test_optical_pictures_are_the_values_of_the_cube(packed: Packed, triple: Path) -> None:
    visual, hires = archive(triple, "visual"), archive(triple, "hires_visual")
    compared = 0
    for slot in range(SAMPLES):
        x, y = tile_of(packed, slot)
        for reader, name in ((visual, "sentinel2_tci"), (hires, "naip")):
            found = picture(reader, ZOOM, x, y)
            assert (found is not None) == packed.stored[name][slot]
            if found is not None:
                # NAIP has a fourth band, which no picture shows
                bands = packed.truth[name][slot, 0][:3]
                np.testing.assert_array_equal(found, shown(bands))
                compared += 1
    assert compared > 10


def test_the_next_zoom_is_the_chip_of_twice_the_pixels_in_four(packed: Packed, triple: Path) -> None:
    hires, seen = archive(triple, "hires_visual"), 0
    for slot in np.flatnonzero(packed.stored["naip_2x"]):
        x, y = tile_of(packed, int(slot))
        rows = [[picture(hires, ZOOM + 1, 2 * x + i, 2 * y + j) for i in (0, 1)] for j in (0, 1)]
        whole = np.vstack([np.hstack(row) for row in rows])
        assert whole.shape == (512, 512, 4)
        np.testing.assert_array_equal(whole, shown(packed.truth["naip_2x"][slot, 0][:3]))
        seen += 1
    assert seen > 3


def test_radar_is_green_and_blue_over_the_stated_range(packed: Packed, triple: Path) -> None:
    sar = archive(triple, "sar")
    slot = int(np.flatnonzero(packed.stored["sentinel1"])[0])
    found = picture(sar, ZOOM, *tile_of(packed, slot))
    assert found is not None
    db = packed.truth["sentinel1"][slot, 0]
    valid = (db != -9999).all(axis=0)
    assert not found[..., 0].any()
    np.testing.assert_array_equal(found[..., 3], np.where(valid, 255, 0))
    for channel, band in ((1, 0), (2, 1)):
        expected = np.round((np.clip(db[band].astype(float), -30, 0) + 30) / 30 * 255)
        np.testing.assert_array_equal(found[..., channel][valid], expected[valid])
    assert not found[~valid].any()


def test_faithful_radar_turns_over_where_it_is_brightest(packed: Packed, tmp_path: Path) -> None:
    export_corpus(
        packed.corpus, tmp_path / "x", format="pmtiles", options=Options(name="small", faithful=True)
    )  # fmt: skip
    slot = int(np.flatnonzero(packed.stored["sentinel1"])[0])
    found = picture(archive(tmp_path / "x", "sar"), ZOOM, *tile_of(packed, slot))
    assert found is not None
    db = packed.truth["sentinel1"][slot, 0].astype(float)
    valid = (db != -9999).all(axis=0)
    bright = valid & (db[0] >= 0)
    assert bright.any()
    assert not found[..., 1][bright].any()  # 256 does not fit into a byte
    dim = valid & (db[0] < 0)
    np.testing.assert_array_equal(found[..., 1][dim], np.floor(10 ** (db[0][dim] / 20) * 256))


@pytest.mark.parametrize("mode", ["fixed", "faithful"])
def test_an_export_has_the_mode_of_its_corpus_unless_it_is_told_otherwise(mode: str, tmp_path: Path) -> None:
    one = pack_random(
        tmp_path / "one", NAMES[:1], samples=8, size=256, grid="webmercator", more={"mode": mode}, absent=0.0
    )
    other = "fixed" if mode == "faithful" else "faithful"
    found = {}
    for asked in (None, other):
        dest = tmp_path / f"x{asked}"
        faithful = None if asked is None else asked == "faithful"
        options = Options(allow_missing=True, faithful=faithful)
        done = export_corpus(one.corpus, dest, format="pmtiles", options=options)
        assert done.faithful == ((asked or mode) == "faithful")
        found[asked] = (dest / "sar_tiles.pmtile").read_bytes()
    assert found[None] != found[other]
    command = ["export", str(one.corpus.store.url), str(tmp_path / "xNone"), "--format", "pmtiles", "--allow-missing"]
    told = CliRunner().invoke(app, command).output
    assert f"mode: {mode}, as the corpus's recipe says" in told
    assert ("--fixed leaves them out" in told) == (mode == "faithful")
    assert "finished already" in told


def test_pngs_are_read_as_they_were_painted() -> None:
    rng = np.random.default_rng(0)
    painted = rng.integers(0, 256, (7, 5, 4)).astype(np.uint8)
    data = encode_png(painted)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), painted)
    np.testing.assert_array_equal(decode_picture(data), painted)
    for mode, bands in (("RGB", painted[..., :3]), ("L", painted[..., 0])):
        sink = io.BytesIO()
        Image.fromarray(bands, mode).save(sink, "PNG")
        found = decode_picture(sink.getvalue())
        assert (found[..., 3] == 255).all()
        np.testing.assert_array_equal(found[..., 0], painted[..., 0])


# -- what is refused, and resuming -----------------------------------------------------------------------------------


def test_a_corpus_of_other_chips_is_refused(packed: Packed, tmp_path: Path) -> None:
    utm = pack_random(tmp_path / "utm", NAMES[:1], samples=8, size=8).corpus
    with pytest.raises(UserError, match="web-map tiles of 256 px, this corpus has utm chips of 8 px; use a recipe"):
        export_corpus(utm, tmp_path / "x", format="pmtiles")
    one = pack_random(tmp_path / "one", NAMES[:1], samples=8, size=256, grid="webmercator").corpus
    text = r"lacks: sentinel2_tci \(for visual\), naip \(for hires_visual\), naip_2x \(for hires_visual\); add them"
    with pytest.raises(UserError, match=text):
        export_corpus(one, tmp_path / "x", format="pmtiles")
    export_corpus(one, tmp_path / "x", format="pmtiles", options=Options(allow_missing=True))
    assert [path.name for path in (tmp_path / "x").glob("*.pmtile")] == ["sar_tiles.pmtile"]


def test_an_export_killed_in_the_middle_is_complete_and_equal_after_another_run(
    packed: Packed, triple: Path, tmp_path: Path
) -> None:
    killed_after_three_units(Path(packed.corpus.store.url), tmp_path / "x", "pmtiles", name="small")
    assert not list((tmp_path / "x").glob("*.pmtile"))
    export_corpus(packed.corpus, tmp_path / "x", format="pmtiles", options=Options(name="small"))
    for path in triple.glob("*.pmtile"):
        tiles = [
            list(all_tiles(MemorySource((folder / path.name).read_bytes()))) for folder in (tmp_path / "x", triple)
        ]
        assert tiles[0] == tiles[1]


# -- and back --------------------------------------------------------------------------------------------------------


def test_export_then_import_gives_the_pictures_back_on_their_ground(
    packed: Packed, triple: Path, tmp_path: Path
) -> None:
    back = import_corpus(triple, tmp_path / "back", format="pmtiles", name="mine")
    assert back.synthetic is True
    assert set(back.lock["source"]["unknown"]) == {"dates", "scene ids", "radar in dB"}
    rows = {row["sample_id"]: row for row in back.records().to_pylist()}
    assert len(rows) == SAMPLES
    for slot, sample in enumerate(packed.samples):
        x, y = tile_of(packed, slot)
        row = rows[f"{ZOOM}-{x}-{y}"]
        assert (row["epsg"], row["x0"], row["y0"]) == (3857, pytest.approx(sample.x0), pytest.approx(sample.y0))
        for name in ("sentinel2_tci", "naip", "naip_2x"):
            expected = packed.truth[name][slot, 0][:3].copy()
            expected[:, (expected == 65535).any(axis=0)] = 65535
            np.testing.assert_array_equal(back.read_chip(name, row["slot"]), expected, strict=True)
        radar = back.read_chip("radar_picture", row["slot"])
        found = picture(archive(triple, "sar"), ZOOM, x, y)
        if found is None:
            assert (radar == 65535).all()
        else:
            np.testing.assert_array_equal(radar[0][found[..., 3] > 0], found[..., 1][found[..., 3] > 0])


def test_imported_tiles_have_outlines_and_no_dates(triple: Path, tmp_path: Path) -> None:
    back = import_corpus(triple, tmp_path / "back", format="pmtiles")
    item = item_dict(read_items(back).slice(0, 1))
    assert item["properties"]["datetime"] is None
    assert item["geometry"]["type"] == "Polygon"
    assert item["properties"]["start_datetime"].startswith("1970")
    assert all(row["datetime"] is None for row in back.records().to_pylist())
    again = tmp_path / "again"
    export_corpus(back, again, format="pmtiles", options=Options(name="small"))
    for path in triple.glob("*.pmtile"):  # pictures of pictures are the same
        first, second = (list(all_tiles(MemorySource((f / path.name).read_bytes()))) for f in (triple, again))
        assert first == second


def test_other_archives_are_named(triple: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has none of sar_tiles.pmtile, visual_tiles.pmtile, hires_visual_tiles"):
        import_corpus(tmp_path, tmp_path / "out", format="pmtiles")
    (tmp_path / "sar_tiles.pmtile").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"sar_tiles.pmtile: is no PMTiles archive of version 3"):
        import_corpus(tmp_path, tmp_path / "out", format="pmtiles")
    (tmp_path / "sar_tiles.pmtile").write_bytes((triple / "sar_tiles_small.pmtile").read_bytes())
    (tmp_path / "sar_tiles_micro.pmtile").write_bytes((triple / "sar_tiles_small.pmtile").read_bytes())
    with pytest.raises(UserError, match=r"has several archives of sar: .*; keep one set in the folder"):
        import_corpus(tmp_path, tmp_path / "out", format="pmtiles")
    assert json.loads((triple / "export.json").read_text())["complete"] is True
