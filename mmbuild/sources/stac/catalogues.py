"""Items out of a catalogue, whatever its kind: a STAC API, a static catalogue, or a stac-geoparquet file.

Every kind answers the same two questions, with items as plain JSON and absolute asset hrefs: which items of these
collections may touch this box in this time, and which item has this id.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin

import pystac
import requests
from pystac.stac_io import DefaultStacIO

from mmbuild.errors import MMBuildError, SourceError, UserError

Item = dict[str, Any]
Bbox = tuple[float, float, float, float]
Window = tuple[datetime, datetime]
Answer = TypeVar("Answer")

# Seconds until a connection stands, and between two pieces of an answer.
TIMEOUT_S = (20.0, 120.0)
# Items of one page; both big public APIs allow it.
PAGE = 250
# Answers that another try may change: too many requests, and trouble on the server's side.
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_TABLES = (".parquet", ".geoparquet")
_FIX = "name a catalog.json, a stac-geoparquet file or the address of a STAC API"


class Catalogue(Protocol):
    """Where items come from; ``identity`` is for the lock file: the same identity gives the same items."""

    def search(self, collections: Sequence[str], bbox: Bbox, window: Window | None) -> list[Item]:
        """Items of the collections that may touch the box in the half-open window, each once, by id."""
        ...

    def item(self, collection: str, item_id: str) -> Item | None: ...
    def identity(self) -> dict[str, Any]: ...


def open_catalogue(location: str) -> Catalogue:
    """The catalogue at a path or URL. Raises UserError for one that cannot be read, SourceError for a silent server."""
    if location.lower().endswith(_TABLES) or "://" not in location:
        return _listed(location, _stamp(location))
    landing = asked(lambda: json.loads(get(location)), location)
    is_api = isinstance(landing, dict) and any("item-search" in str(c) for c in landing.get("conformsTo", ()))
    return Api(location) if is_api else _listed(location, 0)


def _stamp(location: str) -> int:
    """Changes with a local file, so that what was read of it is read again."""
    path = Path(location)
    if "://" in location:
        return 0
    if not path.is_file():
        raise UserError("there is no such catalogue", location, _FIX)
    return path.stat().st_mtime_ns


# -- asking --------------------------------------------------------------------------------------------------------


def get(location: str) -> bytes:
    """The bytes of a local file or of a URL; requests' errors as they are."""
    if "://" not in location:
        return Path(location).read_bytes()
    answer = requests.get(location, timeout=TIMEOUT_S)
    answer.raise_for_status()
    return answer.content


def asked(ask: Callable[[], Answer], where: str) -> Answer:
    """The answer; what went wrong becomes a SourceError (transient or not) or a UserError that names ``where``."""
    from pystac_client.exceptions import APIError

    try:
        return ask()
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        raise _refused(status, str(error), where) from error
    except APIError as error:
        raise _refused(error.status_code or 0, str(error), where) from error
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise SourceError(f"{where} did not answer: {type(error).__name__}: {error}", transient=True) from error
    except json.JSONDecodeError as error:
        if "://" in where:
            raise SourceError(f"{where} answered what is not whole JSON: {error}", transient=True) from error
        raise UserError(f"is not JSON: {error}", where, _FIX) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where, _FIX) from error
    except pystac.errors.STACTypeError as error:
        raise UserError(f"is no STAC catalogue: {error}", where, _FIX) from error


def _refused(status: int, text: str, where: str) -> MMBuildError:
    """What an HTTP status means: ask again, an account that is missing, or a wrong request."""
    brief = text.splitlines()[0][:300] if text else f"status {status}"
    if status in TRANSIENT_STATUS or status == 0:
        return SourceError(f"{where} answered {status}: {brief}", transient=True)
    if status in (401, 403):
        return UserError(f"answered {status}: {brief}", where, "it wants credentials; use a catalogue that is open")
    return UserError(f"answered {status}: {brief}", where, _FIX)


# -- a STAC API ----------------------------------------------------------------------------------------------------


class Api:
    """A STAC API with item search, through pystac-client; one client a thread."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._here = threading.local()

    def _client(self) -> Any:
        from pystac_client import Client
        from pystac_client.stac_api_io import StacApiIO

        if not hasattr(self._here, "client"):
            # One retry policy, ours: the client's own would multiply with it.
            io = StacApiIO(max_retries=None, timeout=TIMEOUT_S)
            self._here.client = Client.open(self.url, stac_io=io)
        return self._here.client

    def search(self, collections: Sequence[str], bbox: Bbox, window: Window | None) -> list[Item]:
        def ask() -> list[Item]:
            found = self._client().search(
                collections=list(collections), bbox=bbox, limit=PAGE,
                datetime=None if window is None else [t.astimezone(UTC) for t in window],
            )  # fmt: skip
            return list(found.items_as_dicts())

        return _once(_absolute(item, self.url) for item in asked(ask, self.url))

    def item(self, collection: str, item_id: str) -> Item | None:
        def ask() -> list[Item]:
            return list(self._client().search(collections=[collection], ids=[item_id]).items_as_dicts())

        found = asked(ask, self.url)
        return _absolute(found[0], self.url) if found else None

    def identity(self) -> dict[str, Any]:
        return {"catalog": self.url}


def _once(items: Iterable[Item]) -> list[Item]:
    """Each item once, in the order of collection and id: pages may overlap and come in any order."""
    found = {(str(item.get("collection")), str(item["id"])): item for item in items}
    return [found[key] for key in sorted(found)]


def _absolute(item: Item, base: str) -> Item:
    """The item with asset hrefs that need no base: relative ones start at the item's own address, else at ``base``."""
    own = next((link["href"] for link in item.get("links", ()) if link.get("rel") == "self"), base)
    assets = {key: asset | {"href": _joined(own, asset["href"])} for key, asset in item["assets"].items()}
    return item | {"assets": assets}


def _joined(base: str, href: str) -> str:
    if "://" in href or href.startswith("/"):
        return href
    return urljoin(base, href) if "://" in base else str((Path(base).parent / href).resolve())


# -- items that are all there --------------------------------------------------------------------------------------


class Listed:
    """All items of a static catalogue or a table, in memory."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = {(str(item.get("collection")), str(item["id"])): item for item in items}

    def search(self, collections: Sequence[str], bbox: Bbox, window: Window | None) -> list[Item]:
        wanted = set(collections)
        return [
            item
            for (collection, _), item in sorted(self.items.items())
            if collection in wanted and _may_touch(item, bbox) and _is_within(item, window)
        ]

    def item(self, collection: str, item_id: str) -> Item | None:
        return self.items.get((collection, item_id))

    def identity(self) -> dict[str, Any]:
        """The items without their hrefs: a catalogue that was moved is the same one."""
        told = [
            {**item, "links": [], "assets": {k: {**a, "href": ""} for k, a in item["assets"].items()}}
            for _, item in sorted(self.items.items())
        ]
        text = json.dumps(told, sort_keys=True, default=str)
        return {"catalog": hashlib.sha256(text.encode()).hexdigest()}


@lru_cache(maxsize=8)
def _listed(location: str, stamp: int) -> Listed:
    if location.lower().endswith(_TABLES):
        return Listed(_absolute(item, location) for item in _of_table(location))
    return Listed(_of_static(location))


def _of_table(location: str) -> list[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import stac_geoparquet.arrow as sga

    data = asked(lambda: get(location), location)
    try:
        table = pq.read_table(pa.BufferReader(data))
        return [_without_nulls(item) for item in sga.stac_table_to_items(table)]
    except (pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"is no stac-geoparquet file: {error}", location, _FIX) from error


def _without_nulls(item: Item) -> Item:
    """A table has a column for every asset and property of any item; an item has only its own."""
    properties = {k: v for k, v in item["properties"].items() if v is not None}
    return item | {"assets": {k: v for k, v in item["assets"].items() if v}, "properties": properties}


class _Reading(DefaultStacIO):
    """pystac reads local files and URLs alike, and its errors are those of ``get``."""

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        return get(str(source)).decode()


def _of_static(location: str) -> list[Item]:
    def ask() -> list[Item]:
        root = pystac.read_file(location, stac_io=_Reading())
        if isinstance(root, pystac.Item):
            raise UserError("is one item, not a catalogue", location, _FIX)
        assert isinstance(root, pystac.Catalog)
        items = list(root.get_items(recursive=True))
        for item in items:
            item.make_asset_hrefs_absolute()
        return [item.to_dict(transform_hrefs=False, include_self_link=False) for item in items]

    return asked(ask, location)


def _may_touch(item: Item, bbox: Bbox) -> bool:
    own = item.get("bbox")
    if not own:
        return True
    west, south, east, north = own if len(own) == 4 else (own[0], own[1], own[3], own[4])
    if south > bbox[3] or north < bbox[1]:
        return False
    return any(
        a <= d and c <= b for a, b in _spans(west, east) for c, d in _spans(bbox[0], bbox[2])
    )  # fmt: skip


def _spans(west: float, east: float) -> list[tuple[float, float]]:
    """West to east as one span, or as two where it crosses the antimeridian (west > east)."""
    return [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]


def _is_within(item: Item, window: Window | None) -> bool:
    when = time_of(item)
    return window is None or (when is not None and window[0] <= when < window[1])


def time_of(item: Item) -> datetime | None:
    """When an item was taken, or when its interval begins."""
    properties = item["properties"]
    for key in ("datetime", "start_datetime"):
        value = properties.get(key)
        if value is not None:
            when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
            return when if when.tzinfo else when.replace(tzinfo=UTC)
    return None
