"""The REST surface of the offline Earth Engine: one function from a request to an answer, behind every transport.

It knows what the genuine client asks for: discovery, the algorithm list, values, pixels, features, assets. Refusals
carry Google's error JSON. The only state is counters; every answer is a function of the world and the request.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

from shapely.errors import ShapelyError

import mmbuild.sandbox.algorithms  # noqa: F401  (registers every algorithm)
from mmbuild.sandbox import listing
from mmbuild.sandbox.assets import World
from mmbuild.sandbox.discovery import discovery_document
from mmbuild.sandbox.encode import planar_feature_json, to_json
from mmbuild.sandbox.graph import Context, evaluate
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.pixels import compute_pixels
from mmbuild.sandbox.signatures import algorithms_json
from mmbuild.sandbox.values import Collection, EarthEngineError, Feature

# A request body above this is refused (geemap issue 1092 quotes the real text).
PAYLOAD_LIMIT_BYTES = 10 * 2**20
FEATURES_PER_PAGE = 1000

# What a world or an algorithm may raise on a request it cannot answer (PROJ's and Shapely's errors among them).
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, OSError, RuntimeError, ShapelyError)

Headers = Mapping[str, str]
Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Request:
    """One request, taken apart: path without the version, query of last values, JSON body."""

    path: str
    query: Mapping[str, str]
    body: Mapping[str, Any]


class Sandbox:
    """An offline Earth Engine over one world.

    requests: how often each endpoint was asked. pixel_bytes: bytes of all pixel answers. Threads may share it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.requests: Counter[str] = Counter()
        self.pixel_bytes = 0
        self._lock = threading.Lock()

    def handle(self, method: str, path: str, query: str, headers: Headers, body: bytes) -> Answer:
        """Answer one HTTP request: (status, headers, body). Never raises on what a client sends."""
        try:
            return self._answer(method.upper(), unquote(path), query, headers, body)
        except EarthEngineError as error:
            return _refusal(error)
        except _FAILURES as error:
            # A value no algorithm expected, or a file that went away: refused like any other, and never retried.
            return _refusal(EarthEngineError(f"The offline Earth Engine failed: {type(error).__name__}: {error}"))

    def _answer(self, method: str, path: str, query: str, headers: Headers, body: bytes) -> Answer:
        if len(body) > PAYLOAD_LIMIT_BYTES:
            raise EarthEngineError(f"Request payload size exceeds the limit: {PAYLOAD_LIMIT_BYTES} bytes.")
        if path == "/$discovery/rest":
            self._count("discovery")
            return _json(discovery_document(_root_url(headers)))
        if path == "/world":
            return _json(json.dumps({"world": self.world.version, "synthetic": self.world.synthetic}).encode())
        for name, verb, pattern, handler in _ROUTES:
            match = pattern.fullmatch(path)
            if match and verb == method:
                self._count(name)
                return handler(self, Request(match.group(1), _query(query), _body(body)))
        raise EarthEngineError(f"Not found: {method} {path}", 404, "NOT_FOUND")

    def _count(self, endpoint: str, pixel_bytes: int = 0) -> None:
        with self._lock:
            self.requests[endpoint] += 1 if not pixel_bytes else 0
            self.pixel_bytes += pixel_bytes

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def algorithms(self, request: Request) -> Answer:
        return _json(algorithms_json())

    def compute_value(self, request: Request) -> Answer:
        value = evaluate(Context(self.world), _expression(request.body))
        return _json(json.dumps({"result": to_json(value)}).encode())

    def compute_pixels(self, request: Request) -> Answer:
        context = Context(self.world)
        return self._pixels(context, evaluate(context, _expression(request.body)), request.body)

    def get_pixels(self, request: Request) -> Answer:
        context = Context(self.world)
        image = context.call("Image.load", id=listing.asset_id(request.path))
        return self._pixels(context, image, request.body)

    def _pixels(self, context: Context, image: Any, body: Mapping[str, Any]) -> Answer:
        data = compute_pixels(context, image, body)
        self._count("pixels", len(data))
        kind = "image/tiff" if body.get("fileFormat") == "GEO_TIFF" else "application/octet-stream"
        return 200, {"content-type": kind}, data

    def compute_features(self, request: Request) -> Answer:
        value = evaluate(Context(self.world), _expression(request.body))
        if isinstance(value, Feature):
            value = Collection("feature", lambda: [value])
        if not isinstance(value, Collection) or any(isinstance(e, Image) for e in value.elements[:1]):
            raise EarthEngineError("Expected a FeatureCollection.")
        page, token = listing.page(value.elements, request.body, FEATURES_PER_PAGE)
        answer = {"type": "FeatureCollection", "features": [planar_feature_json(feature) for feature in page]}
        return _json(json.dumps(answer | token).encode())

    def compute_images(self, request: Request) -> Answer:
        value = evaluate(Context(self.world), _expression(request.body))
        if not isinstance(value, Collection):
            raise EarthEngineError("Expected an ImageCollection.")
        page, token = listing.page(value.elements, request.body, FEATURES_PER_PAGE)
        return _json(json.dumps({"images": [to_json(image) for image in page]} | token).encode())

    def list_assets(self, request: Request) -> Answer:
        return _json(json.dumps(listing.list_assets(self.world, request.path, request.query)).encode())

    def get_asset(self, request: Request) -> Answer:
        return _json(json.dumps(listing.get_asset(self.world, request.path)).encode())

    def list_operations(self, request: Request) -> Answer:
        return _json(b'{"operations": []}')


_PROJECT = r"/v1/(projects/[^/]+)"
_ASSET = r"/v1/(projects/[^/]+/assets/.+?)"
_ROUTES: tuple[tuple[str, str, re.Pattern[str], Callable[[Sandbox, Request], Answer]], ...] = (
    ("algorithms", "GET", re.compile(_PROJECT + "/algorithms"), Sandbox.algorithms),
    ("value:compute", "POST", re.compile(_PROJECT + "/value:compute"), Sandbox.compute_value),
    ("image:computePixels", "POST", re.compile(_PROJECT + "/image:computePixels"), Sandbox.compute_pixels),
    ("table:computeFeatures", "POST", re.compile(_PROJECT + "/table:computeFeatures"), Sandbox.compute_features),
    ("imageCollection:computeImages", "POST", re.compile(_PROJECT + "/imageCollection:computeImages"),
     Sandbox.compute_images),
    ("assets:getPixels", "POST", re.compile(_ASSET + ":getPixels"), Sandbox.get_pixels),
    ("assets:listAssets", "GET", re.compile(_ASSET + ":listAssets"), Sandbox.list_assets),
    ("assets:get", "GET", re.compile(_ASSET), Sandbox.get_asset),
    ("operations:list", "GET", re.compile(_PROJECT + "/operations"), Sandbox.list_operations),
)  # fmt: skip


def _query(query: str) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(query).items()}


def _body(body: bytes) -> Mapping[str, Any]:
    if not body:
        return {}
    try:
        decoded = json.loads(body)
    except ValueError as error:
        raise EarthEngineError(f"Invalid JSON payload received: {error}") from error
    if not isinstance(decoded, Mapping):
        raise EarthEngineError("Invalid JSON payload received: expected an object.")
    return decoded


def _expression(body: Mapping[str, Any]) -> Mapping[str, Any]:
    expression = body.get("expression")
    if not isinstance(expression, Mapping):
        raise EarthEngineError("Expression is required.")
    return expression


def _root_url(headers: Headers) -> str:
    host = {key.lower(): value for key, value in headers.items()}.get("host", "sandbox.invalid")
    return f"http://{host}/"


def _json(data: bytes) -> Answer:
    return 200, {"content-type": "application/json; charset=UTF-8"}, data


def _refusal(error: EarthEngineError) -> Answer:
    message = {"error": {"code": error.code, "message": error.message, "status": error.status}}
    return error.code, {"content-type": "application/json; charset=UTF-8"}, json.dumps(message).encode()
