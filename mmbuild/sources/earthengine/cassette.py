"""Records of a build: every request to Earth Engine with its answer, kept in a folder and answered from there.

An entry is found by what was asked (method, path, query, body without the workload tag), so any number of processes
may record into one folder. Only answers that would come again are kept; a request that is not there is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httplib2

from mmbuild.errors import UserError
from mmbuild.sources.earthengine.meter import says_rate_limit
from mmbuild.sources.earthengine.refusals import PATIENCE
from mmbuild.sources.earthengine.wire import Transport

FORMAT = "mmbuild-cassette-1"
_ABOUT = "cassette.json"
Answer = tuple[httplib2.Response, bytes]


class Recorder:
    """A transport that keeps every final answer of another one; the last answer to a request is the one that stays."""

    def __init__(self, inner: Transport, folder: str, endpoint: str) -> None:
        self.inner, self.folder, self.endpoint = inner, Path(folder), endpoint

    def request(self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **options: Any) -> Answer:
        response, content = self.inner.request(uri, method, body=body, headers=headers, **options)
        # Access tokens come from elsewhere, and are nobody's business.
        if uri.startswith(self.endpoint) and _is_final(int(response.status), content):
            asked = _asked(uri, method, body)
            head = asked | {"status": int(response.status), "content-type": response.get("content-type", "")}
            _put(_entry(self.folder, asked), json.dumps(head, sort_keys=True).encode() + b"\n" + content)
        return response, content

    def close(self) -> None:
        self.inner.close()


class Player:
    """A transport that answers from a folder of records and never from a network."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def request(self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **_: Any) -> Answer:
        asked = _asked(uri, method, body)
        try:
            head, content = _entry(self.folder, asked).read_bytes().split(b"\n", 1)
            about = json.loads(head)
        except FileNotFoundError:
            raise UserError(
                f"this request is not on the cassette: {method} {asked['path']} {_brief(asked['body'])}",
                str(self.folder), "replay the recipe it was recorded with, or record again with --record",
            ) from None  # fmt: skip
        except ValueError as error:
            raise UserError(f"a record is damaged: {error}", str(self.folder), "record again with --record") from error
        length = str(len(content))
        answered = {"status": about["status"], "content-type": about["content-type"], "content-length": length}
        return httplib2.Response(answered), content

    def close(self) -> None:
        """Nothing to close; the client calls it."""


def _is_final(status: int, content: bytes) -> bool:
    """True for an answer that would come again: neither trouble on their side nor a request for patience or a login."""
    passing = status >= 500 or status in PATIENCE or status == 401 or (status == 403 and says_rate_limit(content))
    return not passing


def _asked(uri: str, method: str, body: Any) -> dict[str, Any]:
    """A request in the one form it has whoever asks: no host, query sorted, JSON with sorted keys and no tag."""
    parts = urlsplit(uri)
    text = body.decode() if isinstance(body, bytes) else body or ""
    if text.startswith("{"):
        members = {key: value for key, value in json.loads(text).items() if key != "workloadTag"}
        text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return {"method": method, "path": parts.path, "query": urlencode(sorted(parse_qsl(parts.query))), "body": text}


def _entry(folder: Path, asked: Mapping[str, Any]) -> Path:
    whole = "\n".join(str(asked[key]) for key in ("method", "path", "query", "body"))
    name = hashlib.sha256(whole.encode()).hexdigest()
    return folder / name[:2] / name


def _brief(body: str) -> str:
    return body if len(body) <= 160 else f"{body[:80]}...{body[-80:]}"


def _put(path: Path, content: bytes) -> None:
    """Write a file that other processes see whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(str(error), str(path), "record into a folder that can be written") from error


# -- what was recorded --------------------------------------------------------------------------------------------


def describe(folder: str, project: str, identity: Mapping[str, Any]) -> None:
    """Say what the folder's records come from; UserError when it holds those of another source or project."""
    about = {"format": FORMAT, "project": project, "source": dict(identity)}
    path = Path(folder) / _ABOUT
    if path.exists():
        if described(folder) != about:
            raise UserError("holds records of another source or project", folder, "record into an empty folder")
        return
    _put(path, json.dumps(about, indent=1).encode())


def described(folder: str) -> dict[str, Any]:
    """What ``describe`` wrote: the project that was asked with, and the source's identity."""
    try:
        about: dict[str, Any] = json.loads((Path(folder) / _ABOUT).read_bytes())
    except FileNotFoundError:
        raise UserError("holds no records of a build", folder, "make them with `mmbuild build --record DIR`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{_ABOUT} cannot be read: {error}", folder, "record again with --record") from error
    if about.get("format") != FORMAT:
        raise UserError(f"{_ABOUT} has another format than {FORMAT}", folder, "record again with --record")
    return about
