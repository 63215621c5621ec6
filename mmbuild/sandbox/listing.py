"""Assets as metadata: one asset, what a folder or collection holds, a table's rows; in pages, filtered alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import shapely

from mmbuild.sandbox.asset_filters import Condition, conditions, region_of, time_window
from mmbuild.sandbox.assets import Bounds, Dataset, ImageInfo, World, find_image
from mmbuild.sandbox.encode import planar_feature_json, to_json
from mmbuild.sandbox.geometry import Geometry
from mmbuild.sandbox.graph import Context
from mmbuild.sandbox.images import Image, stored_image
from mmbuild.sandbox.values import EarthEngineError, Feature

Item = TypeVar("Item")
_KINDS = {"image": "IMAGE", "image_collection": "IMAGE_COLLECTION", "table": "TABLE"}
PER_PAGE = 1000


def asset_id(name: str) -> str:
    """The id people write, from a resource name: public assets and legacy ones lose their project."""
    match = re.fullmatch(r"projects/(earthengine-public|earthengine-legacy)/assets/(.+)", name)
    if match:
        return match.group(2)
    return name


def page(items: Sequence[Item], asked: Mapping[str, Any], size: int) -> tuple[Sequence[Item], dict[str, str]]:
    """One page of items and, unless it is the last, {"nextPageToken": ...}; the token is the next position."""
    try:
        wanted = int(asked.get("pageSize") or size)
        start = int(asked.get("pageToken") or 0)
    except ValueError as error:
        raise EarthEngineError("Invalid page token or page size.") from error
    end = start + max(1, min(wanted, size))
    return items[start:end], {"nextPageToken": str(end)} if end < len(items) else {}


def get_asset(world: World, name: str) -> dict[str, Any]:
    """EarthEngineAsset of an image, collection or table; 404 when there is none."""
    wanted = asset_id(name)
    dataset = world.dataset(wanted)
    if dataset is not None and dataset.kind != "image":
        return {"type": _KINDS[dataset.kind], "name": name, "id": wanted, "properties": to_json(dataset.info())}
    found = find_image(world, wanted)
    if found is None and _below(world, wanted):
        return {"type": "FOLDER", "name": name, "id": wanted}
    if found is None:
        raise _missing(wanted)
    return _image_asset(*found, name=name)


def stored(context: Context, name: str) -> Image:
    """The image of an asset; 404 when there is none."""
    found = find_image(context.world, asset_id(name))
    if found is None:
        raise _missing(asset_id(name))
    return context.image(*found)


def _missing(wanted: str) -> EarthEngineError:
    return EarthEngineError(f"Asset '{wanted}' does not exist or doesn't allow this operation.", 404, "NOT_FOUND")


def _image_asset(
    dataset: Dataset, info: ImageInfo, *, name: str | None = None, bands: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    image = stored_image(dataset, info)
    asset: dict[str, Any] = {
        **_named(info),
        **({"name": name} if name else {}),
        "bands": _bands(dataset, info) if bands is None else bands,
        "properties": to_json({k: v for k, v in image.properties.items() if not k.startswith("system:")}),
    }
    for key, ms in (("startTime", info.start_ms), ("endTime", info.end_ms)):
        if ms is not None:
            asset[key] = datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if image.footprint is not None:
        asset["geometry"] = image.footprint.to_json()
    return asset


def _bands(dataset: Dataset, info: ImageInfo) -> list[dict[str, Any]]:
    return [_band(band) for band in to_json(stored_image(dataset, info))["bands"]]


def _band(band: Mapping[str, Any]) -> dict[str, Any]:
    a, b, c, d, e, f = band["crs_transform"]
    kind = band["data_type"]
    result: dict[str, Any] = {"id": band["id"], "dataType": {"precision": kind["precision"].upper()}}
    if "min" in kind:
        result["dataType"]["range"] = {"min": kind["min"], "max": kind["max"]}
    grid: dict[str, Any] = {"crsCode": band["crs"]}
    if "dimensions" in band:
        grid["dimensions"] = {"width": band["dimensions"][0], "height": band["dimensions"][1]}
    grid["affineTransform"] = {"scaleX": a, "shearX": b, "translateX": c, "shearY": d, "scaleY": e, "translateY": f}
    return {**result, "grid": grid}


def list_assets(world: World, parent: str, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of a collection's images that pass the filter, or of the assets in a folder or project."""
    wanted = asset_id(parent)
    dataset = world.dataset(wanted)
    if dataset is None or dataset.kind != "image_collection":
        return _list_folder(world, parent, query)
    asked = conditions(query.get("filter", ""))
    found, token = page([info for info in _listed(dataset, asked) if _passes(info, asked)], query, PER_PAGE)
    if query.get("view") == "BASIC":
        return {"assets": [_named(info) for info in found], **token}
    # The images of a collection mostly share their bands, and some have hundreds.
    bands = {info.bands: _bands(dataset, info) for info in {info.bands: info for info in found}.values()}
    return {"assets": [_image_asset(dataset, info, bands=bands[info.bands]) for info in found], **token}


def _listed(dataset: Dataset, asked: Sequence[Condition]) -> Sequence[ImageInfo]:
    start_ms, end_ms = time_window(asked)
    try:
        return dataset.images(bounds=_bounds(region_of(asked)), start_ms=start_ms, end_ms=end_ms)
    except ValueError as error:
        # The scenes of a whole planet are made up when asked for, and are too many to make up at once.
        raise EarthEngineError(f"{error}; when listing assets, give a region.") from error


def _named(info: ImageInfo) -> dict[str, Any]:
    return {"type": "IMAGE", "name": f"projects/earthengine-public/assets/{info.id}", "id": info.id}


def _bounds(region: shapely.Geometry | None) -> Bounds | None:
    return None if region is None else Geometry(region, geodesic=False).bounds_lonlat()


def _passes(info: ImageInfo, asked: Sequence[Condition]) -> bool:
    facts = {"startTime": info.start_ms, "endTime": info.start_ms if info.end_ms is None else info.end_ms}
    return all(condition.holds(info.properties, facts, info.footprint) for condition in asked)


def _list_folder(world: World, parent: str, query: Mapping[str, str]) -> dict[str, Any]:
    """What lies directly below a folder: datasets, and folders of datasets."""
    match = re.fullmatch(r"projects/([^/]+)(?:/assets/?)?", parent)
    if match and match.group(1) in ("earthengine-public", "earthengine-legacy"):
        prefix = ""
    else:
        prefix = f"projects/{match.group(1)}/assets/" if match else asset_id(parent) + "/"
    names = sorted({prefix + rest.split("/")[0] for rest in _below(world, prefix.removesuffix("/"))})
    if not names and not match:
        raise EarthEngineError(f"Collection '{asset_id(parent)}' does not exist.", 404, "NOT_FOUND")
    found, token = page(names, query, PER_PAGE)
    return {"assets": [_folder_entry(world, name) for name in found], **token}


def _below(world: World, folder: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return [known.removeprefix(prefix) for known in world.ids() if known.startswith(prefix)]


def _folder_entry(world: World, wanted: str) -> dict[str, Any]:
    dataset = world.dataset(wanted)
    kind = "FOLDER" if dataset is None else _KINDS[dataset.kind]
    name = (
        wanted if re.fullmatch("projects/[^/]+/assets/.+", wanted) else f"projects/earthengine-public/assets/{wanted}"
    )
    return {"type": kind, "name": name, "id": wanted}


def list_features(world: World, name: str, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of a table's rows as GeoJSON, those that meet `region` and pass `filter`."""
    wanted = asset_id(name)
    dataset = world.dataset(wanted)
    if dataset is None or dataset.kind != "table":
        raise _missing(wanted)
    asked = conditions(query.get("filter", ""))
    if query.get("region"):
        asked = [*asked, Condition.meets(query["region"])]
    features = Context(world).call("Collection.loadTable", tableId=wanted).elements
    found, token = page([f for f in features if _kept(f, asked)], query, PER_PAGE)
    return {"type": "FeatureCollection", "features": [planar_feature_json(f) for f in found], **token}


def _kept(feature: Feature, asked: Sequence[Condition]) -> bool:
    shape = None if feature.geometry is None else feature.geometry.lonlat
    return all(condition.holds(feature.properties, {}, shape) for condition in asked)
