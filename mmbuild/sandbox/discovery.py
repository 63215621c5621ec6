"""The discovery document from which the genuine client builds its methods: ours, with only what the handler answers."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

Spec = tuple[str, str, tuple[str, ...]]
_PAGED = ("pageSize", "pageToken")

# resource: method -> verb, path below v1/ with its parameter in braces, query parameters
_METHODS: dict[str, dict[str, Spec]] = {
    "projects": {
        "getConfig": ("GET", "{+name}", ()),
        "updateConfig": ("PATCH", "{+name}", ("updateMask",)),
        "listAssets": ("GET", "{+parent}:listAssets", (*_PAGED, "filter", "view")),
    },
    "projects.algorithms": {"list": ("GET", "{+parent}/algorithms", ())},
    "projects.assets": {
        "get": ("GET", "{+name}", ()),
        "getPixels": ("POST", "{+name}:getPixels", ()),
        "listAssets": ("GET", "{+parent}:listAssets", (*_PAGED, "filter", "view")),
        "listFeatures": ("GET", "{+asset}:listFeatures", (*_PAGED, "region", "filter")),
        "create": ("POST", "{+parent}/assets", ("assetId", "overwrite")),
        "copy": ("POST", "{+sourceName}:copy", ()),
        "move": ("POST", "{+sourceName}:move", ()),
        "patch": ("PATCH", "{+name}", ()),
        "delete": ("DELETE", "{+name}", ()),
        "getIamPolicy": ("POST", "{+resource}:getIamPolicy", ()),
        "setIamPolicy": ("POST", "{+resource}:setIamPolicy", ()),
    },
    "projects.image": {
        "computePixels": ("POST", "{+project}/image:computePixels", ()),
        "export": ("POST", "{+project}/image:export", ()),
        "import": ("POST", "{+project}/image:import", ()),
    },
    "projects.imageCollection": {"computeImages": ("POST", "{+project}/imageCollection:computeImages", ())},
    "projects.table": {
        "computeFeatures": ("POST", "{+project}/table:computeFeatures", ()),
        "export": ("POST", "{+project}/table:export", ()),
        "import": ("POST", "{+project}/table:import", ()),
    },
    "projects.video": {"export": ("POST", "{+project}/video:export", ())},
    "projects.videoMap": {"export": ("POST", "{+project}/videoMap:export", ())},
    "projects.map": {"export": ("POST", "{+project}/map:export", ())},
    "projects.classifier": {"export": ("POST", "{+project}/classifier:export", ())},
    "projects.value": {"compute": ("POST", "{+project}/value:compute", ())},
    "projects.thumbnails": {
        "create": ("POST", "{+parent}/thumbnails", ()),
        "getPixels": ("GET", "{+name}:getPixels", ()),
    },
    "projects.filmstripThumbnails": {"create": ("POST", "{+parent}/filmstripThumbnails", ())},
    "projects.videoThumbnails": {"create": ("POST", "{+parent}/videoThumbnails", ())},
    "projects.maps": {"create": ("POST", "{+parent}/maps", ())},
    "projects.featureView": {"create": ("POST", "{+parent}/featureView", ())},
    "projects.tables": {
        "create": ("POST", "{+parent}/tables", ()),
        "getFeatures": ("GET", "{+name}:getFeatures", ()),
    },
    "projects.operations": {
        "list": ("GET", "{+name}/operations", (*_PAGED, "filter")),
        "get": ("GET", "{+name}", ()),
        "cancel": ("POST", "{+name}:cancel", ()),
    },
}
_GLOBAL = ("alt", "fields", "key", "prettyPrint", "quotaUser", "callback", "access_token", "$.xgafv", "oauth_token")


@lru_cache(maxsize=8)
def discovery_document(root_url: str) -> bytes:
    """The document as JSON, with `root_url` (ending in a slash) as the service's address."""
    document: dict[str, Any] = {
        "kind": "discovery#restDescription", "discoveryVersion": "v1", "id": "earthengine:v1", "name": "earthengine",
        "canonicalName": "Earth Engine", "version": "v1", "revision": "1", "title": "Offline Earth Engine",
        "description": "", "protocol": "rest", "rootUrl": root_url, "baseUrl": root_url, "basePath": "",
        "servicePath": "", "batchPath": "batch", "fullyEncodeReservedExpansion": True, "version_module": True,
        "parameters": {name: _parameter("query") for name in _GLOBAL}, "schemas": {}, "resources": {},
    }  # fmt: skip
    for resource, methods in _METHODS.items():
        place = document
        for part in resource.split("."):
            place = place.setdefault("resources", {}).setdefault(part, {})
        place["methods"] = {name: _method(resource, name, *spec) for name, spec in methods.items()}
    return json.dumps(document).encode()


def _method(resource: str, name: str, verb: str, path: str, query: tuple[str, ...]) -> dict[str, Any]:
    parameter = path[path.index("{+") + 2 : path.index("}")]
    method: dict[str, Any] = {
        "id": f"earthengine.{resource}.{name}", "httpMethod": verb, "path": f"v1/{path}", "flatPath": f"v1/{path}",
        "description": "", "parameterOrder": [parameter],
        # The client pages through answers that say here that they have a next page.
        "response": {"type": "object", "properties": {"nextPageToken": {"type": "any"}}} if "pageToken" in query
        else {"type": "any"},
        "parameters": {
            parameter: {**_parameter("path"), "required": True, "pattern": "^projects/.*$"},
            **{extra: _parameter("query") for extra in query},
        },
    }  # fmt: skip
    return {**method, "request": {"type": "any"}} if verb in ("POST", "PATCH") else method


def _parameter(location: str) -> dict[str, Any]:
    return {"type": "string", "location": location, "description": ""}
