"""The REST surface of the offline Earth Engine: one function from a request to an answer, behind every transport.

It finds the endpoint (endpoints.py), takes the request apart and gives refusals Google's error JSON. Its only state is
counters.
"""

from __future__ import annotations

import gc
import json
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

from shapely.errors import ShapelyError

from mmbuild.sandbox.assets import World
from mmbuild.sandbox.canned import Canned
from mmbuild.sandbox.discovery import discovery_document
from mmbuild.sandbox.endpoints import PIXELS, ROUTES, Answer, Endpoints, Request, json_answer
from mmbuild.sandbox.limits import PAYLOAD_LIMIT_BYTES, refusal
from mmbuild.sandbox.values import EarthEngineError

# What a world or an algorithm may raise on a request it cannot answer (PROJ's and Shapely's errors among them).
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, OSError, RuntimeError, ShapelyError)

Headers = Mapping[str, str]


# A search makes a hundred thousand objects that live until it is answered. At Python's own threshold of 700 the
# garbage collector walks over them again and again: a quarter of a search's time.
OBJECTS_PER_COLLECTION = 50_000


def _collect_seldom() -> None:
    """Raise the threshold of this process's garbage collector, unless it is off or higher already."""
    young, *older = gc.get_threshold()
    if 0 < young < OBJECTS_PER_COLLECTION:
        gc.set_threshold(OBJECTS_PER_COLLECTION, *older)


class Sandbox:
    """An offline Earth Engine over one world.

    requests: how often each endpoint was asked. pixel_bytes: bytes of all pixel answers. Threads may share it.
    canned: pixel answers have the right form and made-up content, for load tests.
    """

    def __init__(self, world: World, *, canned: bool = False) -> None:
        _collect_seldom()
        self.world = world
        self._endpoints = Endpoints(world)
        self._canned = Canned(world) if canned else None
        self.requests: Counter[str] = Counter()
        self.pixel_bytes = 0
        self._lock = threading.Lock()

    @property
    def about(self) -> dict[str, Any]:
        """What the world is called and whether it is synthetic; made-up pixels never pass for those of an archive."""
        if self._canned is not None:
            return {"world": f"{self.world.version}-canned", "synthetic": True}
        return {"world": self.world.version, "synthetic": self.world.synthetic}

    def handle(self, method: str, path: str, query: str, headers: Headers, body: bytes) -> Answer:
        """Answer one HTTP request: (status, headers, body). Never raises on what a client sends."""
        try:
            return self._answer(method.upper(), unquote(path), query, headers, body)
        except EarthEngineError as error:
            return refusal(error)
        except RecursionError:
            return refusal(EarthEngineError("Expression is nested too deeply."))
        except _FAILURES as error:
            # A value no algorithm expected, or a file that went away: refused like any other, and never retried.
            return refusal(EarthEngineError(f"The offline Earth Engine failed: {type(error).__name__}: {error}"))

    def _answer(self, method: str, path: str, query: str, headers: Headers, body: bytes) -> Answer:
        if len(body) > PAYLOAD_LIMIT_BYTES:
            raise EarthEngineError(f"Request payload size exceeds the limit: {PAYLOAD_LIMIT_BYTES} bytes.")
        if path == "/$discovery/rest":
            self._count("discovery")
            return json_answer(discovery_document(_root_url(headers)))
        if path == "/world":
            return json_answer(json.dumps(self.about).encode())
        for name, verb, pattern, answer in ROUTES:
            match = pattern.fullmatch(path)
            if match and verb == method:
                self._count(name)
                if self._canned is not None and name == "image:computePixels":
                    return self._counted((200, {"content-type": "application/octet-stream"}, self._canned.pixels(body)))
                answered = answer(self._endpoints, Request(match.group(1), _query(query), _body(body)))
                return self._counted(answered) if name in PIXELS else answered
        raise EarthEngineError(f"Not found: {method} {path}", 404, "NOT_FOUND")

    def _counted(self, answer: Answer) -> Answer:
        with self._lock:
            self.pixel_bytes += len(answer[2])
        return answer

    def _count(self, endpoint: str) -> None:
        with self._lock:
            self.requests[endpoint] += 1


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


def _root_url(headers: Headers) -> str:
    host = {key.lower(): value for key, value in headers.items()}.get("host", "sandbox.invalid")
    return f"http://{host}/"
