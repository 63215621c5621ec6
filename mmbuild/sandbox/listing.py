"""Assets as metadata: one asset, the images of a collection in pages, and the page tokens that all listings share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from mmbuild.sandbox.assets import Dataset, ImageInfo, World, find_image
from mmbuild.sandbox.coerce import parse_date
from mmbuild.sandbox.encode import to_json
from mmbuild.sandbox.images import stored_image
from mmbuild.sandbox.values import EarthEngineError

Item = TypeVar("Item")
_KINDS = {"image": "IMAGE", "image_collection": "IMAGE_COLLECTION", "table": "TABLE"}


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
    if found is None:
        raise EarthEngineError(f"Asset '{wanted}' does not exist or doesn't allow this operation.", 404, "NOT_FOUND")
    return _image_asset(*found, name=name)


def _image_asset(dataset: Dataset, info: ImageInfo, *, name: str | None = None) -> dict[str, Any]:
    image = stored_image(dataset, info)
    asset: dict[str, Any] = {
        "type": "IMAGE",
        "name": name or f"projects/earthengine-public/assets/{info.id}",
        "id": info.id,
        "bands": [_band(band) for band in to_json(image)["bands"]],
        "properties": to_json({k: v for k, v in image.properties.items() if not k.startswith("system:")}),
    }
    for key, ms in (("startTime", info.start_ms), ("endTime", info.end_ms)):
        if ms is not None:
            asset[key] = datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if image.footprint is not None:
        asset["geometry"] = image.footprint.to_json()
    return asset


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


_TIME = re.compile(r'(startTime|endTime)\s*(>=|<)\s*"([^"]+)"')


def list_assets(world: World, parent: str, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of a collection's images; the filter may only name startTime and endTime."""
    wanted = asset_id(parent)
    dataset = world.dataset(wanted)
    if dataset is None or dataset.kind != "image_collection":
        raise EarthEngineError(f"Collection '{wanted}' does not exist.", 404, "NOT_FOUND")
    window = _window(query.get("filter", ""))
    listed = dataset.images(start_ms=window.get("start_ms"), end_ms=window.get("end_ms"))
    images = [i for i in listed if _inside(i.start_ms, window)]
    found, token = page(images, query, 1000)
    return {"assets": [_image_asset(dataset, info) for info in found], **token}


def _window(text: str) -> dict[str, int]:
    window: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(" AND "))):
        match = _TIME.fullmatch(part)
        if match is None:
            raise EarthEngineError(f"The offline Earth Engine does not read the filter '{part}', only times.")
        window["start_ms" if match.group(2) == ">=" else "end_ms"] = int(parse_date(match.group(3)).ms)
    return window


def _inside(ms: int | None, window: Mapping[str, int]) -> bool:
    if not window:
        return True
    return ms is not None and window.get("start_ms", ms) <= ms < window.get("end_ms", ms + 1)
