"""What each address of the offline Earth Engine answers; rest.py finds the endpoint and turns errors into refusals.

Everything is a function of the world and the request, except downloads, which remember what was asked until fetched.
What needs Google's machines (batch tasks, uploads, pictures) is refused with what to use instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mmbuild.sandbox.algorithms  # noqa: F401  (registers every algorithm)
from mmbuild.sandbox import listing
from mmbuild.sandbox.assets import World
from mmbuild.sandbox.downloads import Downloads, check_image, check_table, image_download, table_download
from mmbuild.sandbox.encode import planar_feature_json, to_json
from mmbuild.sandbox.graph import Context, evaluate
from mmbuild.sandbox.images import Image
from mmbuild.sandbox.pixels import ANSWER, pixels_file
from mmbuild.sandbox.signatures import algorithms_json
from mmbuild.sandbox.values import Collection, EarthEngineError, Feature

FEATURES_PER_PAGE = 1000
NO_TASKS = "the offline Earth Engine runs no batch tasks; use computePixels or getDownloadURL"
NO_PICTURES = "the offline Earth Engine draws no pictures or map tiles; use computePixels or getDownloadURL"
READ_ONLY = "the offline Earth Engine is read-only; it serves the synthetic Earth or an archive"

Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Request:
    """One request, taken apart: path without the version, query of last values, JSON body."""

    path: str
    query: Mapping[str, str]
    body: Mapping[str, Any]


class Endpoints:
    """The answers over one world; threads may share it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.downloads = Downloads()

    # -- computing ----------------------------------------------------------------------------------------------------

    def algorithms(self, request: Request) -> Answer:
        return json_answer(algorithms_json())

    def compute_value(self, request: Request) -> Answer:
        return _encoded({"result": to_json(self._value(request.body)[1])})

    def compute_pixels(self, request: Request) -> Answer:
        context, value = self._value(request.body)
        return _file(*pixels_file(context, value, request.body, ANSWER, "pixels"))

    def get_pixels(self, request: Request) -> Answer:
        context = Context(self.world)
        image = listing.stored(context, request.path)
        return _file(*pixels_file(context, image, request.body, ANSWER, "pixels"))

    def compute_features(self, request: Request) -> Answer:
        _, value = self._value(request.body)
        page, token = listing.page(features_of(value), request.body, FEATURES_PER_PAGE)
        return _encoded({"type": "FeatureCollection", "features": [planar_feature_json(f) for f in page]} | token)

    def compute_images(self, request: Request) -> Answer:
        _, value = self._value(request.body)
        if not isinstance(value, Collection):
            raise EarthEngineError("Expected an ImageCollection.")
        page, token = listing.page(value.elements, request.body, FEATURES_PER_PAGE)
        return _encoded({"images": [to_json(image) for image in page]} | token)

    def _value(self, body: Mapping[str, Any]) -> tuple[Context, Any]:
        expression = body.get("expression")
        if not isinstance(expression, Mapping):
            raise EarthEngineError("Expression is required.")
        context = Context(self.world)
        return context, evaluate(context, expression)

    # -- downloads ----------------------------------------------------------------------------------------------------

    def create_thumbnail(self, request: Request) -> Answer:
        """Keep what getDownloadURL asks for; too large is refused now, as by the real service, not when fetched."""
        if str(request.body.get("fileFormat", "AUTO_JPEG_PNG")) in ("AUTO_JPEG_PNG", "PNG", "JPEG"):
            raise _not_here(NO_PICTURES)
        check_image(*self._value(request.body), request.body)
        return _encoded({"name": self.downloads.keep(request.path, request.body)})

    def get_thumbnail(self, request: Request) -> Answer:
        body = self.downloads.find(request.path)
        return _file(*image_download(*self._value(body), body), attached=True)

    def create_table(self, request: Request) -> Answer:
        features_of(self._value(request.body)[1])
        check_table(request.body)
        return _encoded({"name": self.downloads.keep(request.path, request.body)})

    def get_table(self, request: Request) -> Answer:
        body = self.downloads.find(request.path)
        return _file(*table_download(features_of(self._value(body)[1]), body), attached=True)

    # -- assets -------------------------------------------------------------------------------------------------------

    def get_asset(self, request: Request) -> Answer:
        return _encoded(listing.get_asset(self.world, request.path))

    def list_assets(self, request: Request) -> Answer:
        return _encoded(listing.list_assets(self.world, request.path, request.query))

    def list_features(self, request: Request) -> Answer:
        return _encoded(listing.list_features(self.world, request.path, request.query))

    # -- projects -----------------------------------------------------------------------------------------------------

    def get_config(self, request: Request) -> Answer:
        return _encoded({"name": f"{request.path}/config", "maxConcurrentExports": 0})

    def list_operations(self, request: Request) -> Answer:
        return _encoded({"operations": []})

    def get_operation(self, request: Request) -> Answer:
        raise EarthEngineError(f"Operation '{request.path}' not found: {NO_TASKS}.", 404, "NOT_FOUND")

    def refuse_task(self, request: Request) -> Answer:
        raise _not_here(NO_TASKS)

    def refuse_picture(self, request: Request) -> Answer:
        raise _not_here(NO_PICTURES)

    def refuse_change(self, request: Request) -> Answer:
        raise _not_here(READ_ONLY)


def features_of(value: Any) -> Any:
    """The features of a FeatureCollection, or of one Feature; EarthEngineError for anything else."""
    if isinstance(value, Feature):
        return [value]
    if not isinstance(value, Collection) or any(isinstance(e, Image) for e in value.elements[:1]):
        raise EarthEngineError("Expected a FeatureCollection.")
    return value.elements


def json_answer(data: bytes) -> Answer:
    """A JSON text with status 200."""
    return 200, {"content-type": "application/json; charset=UTF-8"}, data


def _encoded(value: Any) -> Answer:
    return json_answer(json.dumps(value).encode())


def _file(name: str, kind: str, data: bytes, *, attached: bool = False) -> Answer:
    headers = {"content-type": kind}
    if attached:
        # The client chose the name: nothing in it may end the quotes or the header.
        safe = re.sub(r"[^\w.+ -]", "_", name, flags=re.ASCII)
        headers["content-disposition"] = f'attachment; filename="{safe}"'
    return 200, headers, data


def _not_here(remedy: str) -> EarthEngineError:
    # 400, although 501 says the same: the client repeats everything from 500 up, for a minute.
    return EarthEngineError(f"Not here: {remedy}.", 400, "FAILED_PRECONDITION")


_PROJECT, _ASSET = r"/v1/(projects/[^/]+)", r"/v1/(projects/[^/]+/assets/.+?)"
Route = tuple[str, str, re.Pattern[str], Callable[[Endpoints, Request], Answer]]


def _route(name: str, verb: str, pattern: str, answer: Callable[[Endpoints, Request], Answer]) -> Route:
    return name, verb, re.compile(pattern), answer


# Name it is counted under, verb, address, answer; the first that fits is taken.
ROUTES: tuple[Route, ...] = (
    _route("algorithms", "GET", _PROJECT + "/algorithms", Endpoints.algorithms),
    _route("value:compute", "POST", _PROJECT + "/value:compute", Endpoints.compute_value),
    _route("image:computePixels", "POST", _PROJECT + "/image:computePixels", Endpoints.compute_pixels),
    _route("table:computeFeatures", "POST", _PROJECT + "/table:computeFeatures", Endpoints.compute_features),
    _route("imageCollection:computeImages", "POST", _PROJECT + "/imageCollection:computeImages",
           Endpoints.compute_images),
    _route("thumbnails:create", "POST", r"/v1/(projects/[^/]+/thumbnails)", Endpoints.create_thumbnail),
    _route("thumbnails:getPixels", "GET", r"/v1/(projects/[^/]+/thumbnails/[^/]+):getPixels", Endpoints.get_thumbnail),
    _route("tables:create", "POST", r"/v1/(projects/[^/]+/tables)", Endpoints.create_table),
    _route("tables:getFeatures", "GET", r"/v1/(projects/[^/]+/tables/[^/]+):getFeatures", Endpoints.get_table),
    _route("export", "POST", _PROJECT + r"/(?:image|table|video|map|videoMap|classifier|model):(?:export|import\w*)",
           Endpoints.refuse_task),
    _route("pictures", "POST", _PROJECT + "/(?:maps|filmstripThumbnails|videoThumbnails|featureView)",
           Endpoints.refuse_picture),
    _route("pictures", "GET", _PROJECT + r"/(?:maps/[^/]+/tiles/\d+/\d+/\d+|(?:filmstrip|video)Thumbnails/.+)",
           Endpoints.refuse_picture),
    _route("assets:getPixels", "POST", _ASSET + ":getPixels", Endpoints.get_pixels),
    _route("assets:listAssets", "GET", _ASSET + ":listAssets", Endpoints.list_assets),
    _route("assets:listAssets", "GET", _PROJECT + ":listAssets", Endpoints.list_assets),
    _route("assets:listFeatures", "GET", _ASSET + ":listFeatures", Endpoints.list_features),
    _route("assets:change", "POST", _PROJECT + r"/assets(?:/.+:(?:copy|move|\w+IamPolicy))?", Endpoints.refuse_change),
    _route("assets:change", "PATCH", _ASSET, Endpoints.refuse_change),
    _route("assets:change", "DELETE", _ASSET, Endpoints.refuse_change),
    _route("assets:get", "GET", _ASSET, Endpoints.get_asset),
    _route("getConfig", "GET", _PROJECT + "/config", Endpoints.get_config),
    _route("updateConfig", "PATCH", _PROJECT + "/config", Endpoints.refuse_change),
    _route("operations:list", "GET", _PROJECT + "/operations", Endpoints.list_operations),
    _route("operations:get", "GET", r"/v1/(projects/[^/]+/operations/.+)", Endpoints.get_operation),
    _route("operations:cancel", "POST", r"/v1/(projects/[^/]+/operations/.+):cancel", Endpoints.get_operation),
)  # fmt: skip
PIXELS = ("image:computePixels", "assets:getPixels", "thumbnails:getPixels")


def endpoint_of(method: str, path: str) -> str:
    """The name a request is counted under; empty for what is no endpoint of the service."""
    if path == "/$discovery/rest":
        return "discovery"
    return next((name for name, verb, pattern, _ in ROUTES if verb == method and pattern.fullmatch(path)), "")
