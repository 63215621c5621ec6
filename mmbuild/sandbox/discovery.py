"""The discovery document from which the genuine client builds its methods: ours, with only what the handler answers."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

# resource: method -> verb, path below v1/, the parameter in the path, query parameters
_METHODS: dict[str, dict[str, tuple[str, str, str, tuple[str, ...]]]] = {
    "projects.algorithms": {"list": ("GET", "{+parent}/algorithms", "parent", ())},
    "projects.assets": {
        "get": ("GET", "{+name}", "name", ()),
        "getPixels": ("POST", "{+name}:getPixels", "name", ()),
        "listAssets": ("GET", "{+parent}:listAssets", "parent", ("pageSize", "pageToken", "filter", "view")),
    },
    "projects.image": {"computePixels": ("POST", "{+project}/image:computePixels", "project", ())},
    "projects.imageCollection": {
        "computeImages": ("POST", "{+project}/imageCollection:computeImages", "project", ())
    },
    "projects.table": {"computeFeatures": ("POST", "{+project}/table:computeFeatures", "project", ())},
    "projects.value": {"compute": ("POST", "{+project}/value:compute", "project", ())},
    "projects.operations": {"list": ("GET", "{+name}/operations", "name", ("filter", "pageSize", "pageToken"))},
}  # fmt: skip
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


def _method(resource: str, name: str, verb: str, path: str, parameter: str, query: tuple[str, ...]) -> dict[str, Any]:
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
    return {**method, "request": {"type": "any"}} if verb == "POST" else method


def _parameter(location: str) -> dict[str, Any]:
    return {"type": "string", "location": location, "description": ""}
