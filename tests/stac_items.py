"""STAC items over the real files of the shared folder, as Earth Search and the Planetary Computer would list them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import rasterio
import shapely
from rasterio.warp import transform_bounds

# Band of Sentinel-2 -> the asset's name at Earth Search.
EARTH_SEARCH = {
    "B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "rededge1", "B6": "rededge2", "B7": "rededge3",
    "B8": "nir", "B8A": "nir08", "B9": "nir09", "B10": "cirrus", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
L2A = [band for band in EARTH_SEARCH if band != "B10"]
L1C = list(EARTH_SEARCH)
# When TerraMesh's Sentinel-2 and Sentinel-1 scenes were taken (the files' tags and the folder's manifest).
TERRAMESH = {
    "282D_485L_3_3": ("2021-07-23T13:22:41Z", "2021-07-21T08:40:10Z"),
    "38D_378R_2_3": ("2023-06-10T07:46:21Z", "2023-06-10T16:04:18Z"),
    "637U_59R_1_3": ("2017-10-30T10:41:51Z", "2017-10-30T05:32:30Z"),
}


def item(collection: str, name: str, when: str, assets: Mapping[str, Path], **properties: Any) -> pystac.Item:
    """An item whose outline is that of its first file."""
    with rasterio.open(next(iter(assets.values()))) as file:
        bounds = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        epsg = file.crs.to_epsg()
    moment = datetime.fromisoformat(when.replace("Z", "+00:00")).astimezone(UTC)
    made = pystac.Item(
        id=name, geometry=shapely.geometry.mapping(shapely.box(*bounds)), bbox=list(bounds), datetime=moment,
        properties={"proj:epsg": epsg, **properties}, collection=collection,
    )  # fmt: skip
    for key, path in assets.items():
        made.add_asset(key, pystac.Asset(href=str(path), media_type=pystac.MediaType.COG, roles=["data"]))
    return made


def real_items(shared: Path, work: Path) -> Iterator[pystac.Item]:
    """Items of the places of recipes/real_mini.yaml; bands of multiband files are copied apart into ``work``."""
    root = shared / "realdata" / "colocated"
    for place, (optical, radar) in TERRAMESH.items():
        folder = root / "terramesh" / place
        # Level-1C of this place alone carries the +1000 of its baseline; in Level-2A it was taken out.
        baseline = "04.00" if place == "282D_485L_3_3" else "02.09"
        about = {"s2:processing_baseline": baseline, "eo:cloud_cover": 5.0}
        yield item("sentinel-2-l1c", place, optical, _apart(folder / "S2L1C.tif", L1C, work), **about)
        about["earthsearch:boa_offset_applied"] = True
        yield item("sentinel-2-l2a", place, optical, _apart(folder / "S2L2A.tif", L2A, work), **about)
        yield item("terramesh-s1rtc", place, radar, {"data": folder / "S1RTC.tif"})
        yield item("terramesh-dem", place, optical, {"data": folder / "DEM.tif"})
        yield item("terramesh-lulc", place, optical, {"data": folder / "LULC.tif"})
    for kind, collection in (("s2c", "sentinel-2-l1c"), ("s2a", "sentinel-2-l2a")):
        for folder in sorted((root / "ssl4eo_s12" / kind).glob("*/*")):
            files = {
                EARTH_SEARCH[path.stem]: path for path in sorted(folder.glob("*.tif")) if path.stem in EARTH_SEARCH
            }
            when = datetime.strptime(folder.name.split("_")[0], "%Y%m%dT%H%M%S").isoformat() + "Z"
            yield item(collection, folder.name, when, files, **{"s2:processing_baseline": "02.09"})
    for path in sorted((root / "sao_tome").glob("Copernicus_DSM_*.tif")):
        yield item("cop-dem-glo-30", path.stem, "2021-04-22T00:00:00Z", {"data": path})
    for path in sorted((root / "sao_tome").glob("*_Map.tif")):
        version = {"esa_worldcover:product_version": "1.0.0"}
        yield item("esa-worldcover", path.stem, "2020-01-01T00:00:00Z", {"map": path}, **version)


def _apart(path: Path, bands: list[str], work: Path) -> dict[str, Path]:
    """Each band of a file as a cloud-optimised GeoTIFF of its own, pixels unchanged, by Earth Search's name."""
    found = {}
    with rasterio.open(path) as file:
        for number, band in enumerate(bands, 1):
            out = work / f"{path.parent.name}_{path.stem}_{band}.tif"
            profile = {"crs": file.crs, "transform": file.transform, "width": file.width, "height": file.height}
            with rasterio.open(out, "w", driver="COG", count=1, dtype="uint16", **profile) as copy:
                copy.write(file.read(number).astype("uint16"), 1)
            found[EARTH_SEARCH[band]] = out
    return found


def static_catalogue(items: list[pystac.Item], folder: Path) -> Path:
    """catalog.json with a collection per collection of the items, all hrefs relative where they can be."""
    catalogue = pystac.Catalog("real", "real files of several places")
    for name in sorted({str(i.collection_id) for i in items}):
        own = [i.clone() for i in items if i.collection_id == name]
        spatial = pystac.SpatialExtent([[-180.0, -90.0, 180.0, 90.0]])
        extent = pystac.Extent(spatial, pystac.TemporalExtent([[None, None]]))
        collection = pystac.Collection(name, name, extent)
        collection.add_items(own)
        catalogue.add_child(collection)
    catalogue.normalize_hrefs(str(folder))
    catalogue.make_all_asset_hrefs_relative()
    catalogue.save(pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


def table(items: list[pystac.Item], path: Path) -> Path:
    """The items as stac-geoparquet."""
    import stac_geoparquet.arrow as sga

    sga.to_parquet(sga.parse_stac_items_to_arrow([i.to_dict(transform_hrefs=False) for i in items]), path)
    return path


def as_json(found: list[pystac.Item]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(i.to_dict(transform_hrefs=False))) for i in found]
