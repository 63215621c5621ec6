"""A web server on loopback: files by range, a STAC API over given items, and trouble by script."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import shapely

CONFORMS = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]


@dataclass
class Web:
    """What the server has and what it was asked. troubles: statuses that the next requests of a path get instead."""

    folder: Path
    items: list[dict[str, Any]] = field(default_factory=list)
    page: int = 2
    troubles: list[int] = field(default_factory=list)
    trouble_at: str = ""
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(web: Web) -> Iterator[Web]:
    handler = type("Handler", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        self._answer({k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()})

    def do_HEAD(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, asked: dict[str, Any]) -> None:
        path = urlsplit(self.path).path
        self.web.asked.append(f"{self.command} {self.path}")
        if self.web.troubles and path.startswith(self.web.trouble_at):
            self._send(self.web.troubles.pop(0), b"trouble", "text/plain")
        elif path == "/":
            links = [
                {"rel": "search", "href": f"{self.web.url}/search", "method": "POST", "type": "application/geo+json"}
            ]
            links += [{"rel": rel, "href": self.web.url, "type": "application/json"} for rel in ("self", "root")]
            self._json({
                "type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "items on loopback",
                "conformsTo": CONFORMS, "links": links,
            })  # fmt: skip
        elif path == "/search":
            self._json(self._search(asked))
        else:
            self._file(self.web.folder / path.lstrip("/"))

    def _search(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Item search as the STAC API has it: collections, ids, bbox, datetime, limit and pages by token."""
        found = [item for item in self.web.items if _fits(item, asked)]
        start, size = int(asked.get("token", 0)), min(int(asked.get("limit", 10)), self.web.page)
        links = []
        if start + size < len(found):
            body = {**asked, "token": start + size}
            links = [{"rel": "next", "href": f"{self.web.url}/search", "method": "POST", "body": body}]
        return {"type": "FeatureCollection", "features": found[start : start + size], "links": links}

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"no such file", "text/plain")
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        if asked is None:
            self._send(200, data, "application/octet-stream")
            return
        first, last = asked.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last or len(data)) + 1]
        content = {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"}
        self._send(206, part, "image/tiff", content)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _fits(item: dict[str, Any], asked: dict[str, Any]) -> bool:
    if asked.get("collections") and item["collection"] not in asked["collections"]:
        return False
    if asked.get("ids") and item["id"] not in asked["ids"]:
        return False
    if asked.get("bbox") and not shapely.box(*item["bbox"]).intersects(shapely.box(*asked["bbox"])):
        return False
    if asked.get("datetime"):
        first, last = (datetime.fromisoformat(t.replace("Z", "+00:00")) for t in asked["datetime"].split("/"))
        return bool(first <= datetime.fromisoformat(item["properties"]["datetime"].replace("Z", "+00:00")) <= last)
    return True
