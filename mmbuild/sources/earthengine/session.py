"""The one place that initialises the Earth Engine client, and that turns its errors into ours.

The client keeps its state in one process-wide global, so a process talks to one endpoint at a time.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import ee
import google.auth.exceptions
import requests

from mmbuild.errors import QuotaStop, SourceError, UserError
from mmbuild.sources import SANDBOX, SourceSpec

Answer = TypeVar("Answer")

# The client waits forever by default (its deadline is 0); a chip takes seconds, so two minutes means it is lost.
DEADLINE_MS = 120_000
OFFLINE_PROJECT = "mmbuild-offline"

_lock = threading.Lock()
_connected: SourceSpec | None = None
_transport: Any = None


def connect(spec: SourceSpec) -> None:
    """Point the client of this process at the spec's endpoint; does nothing when it already is.

    Raises UserError without credentials for the live service.
    """
    global _connected, _transport
    if spec.name == SANDBOX and spec.url:
        raise UserError(
            "the sandbox runs inside this process and has no url",
            "source.url",
            "use source.name=earthengine for a server",
        )
    with _lock:
        if _connected == spec:
            return
        ee.Reset()
        _connected = _transport = None  # until the new endpoint answers, this process talks to none
        # The client would otherwise fetch a list of deprecated assets with no time limit.
        ee.deprecation.deprecated_assets = {"-": None}  # type: ignore[dict-item]
        if spec.name == SANDBOX:
            _transport = _offline_transport(spec)
            ee.Initialize(
                credentials=None,
                url="http://sandbox.invalid",
                project=OFFLINE_PROJECT,
                http_transport=_transport,
            )
        elif spec.url and not _is_google(spec.url):
            _initialize_url(spec)
        else:
            _initialize_live(spec)
        # One retry policy, ours: the client's own would multiply with it.
        ee.data.setMaxRetries(0)
        _connected = spec


def identity(spec: SourceSpec) -> dict[str, Any]:
    """Where pixels come from, for the lock file and for `mmbuild:synthetic`."""
    if spec.name == SANDBOX:
        world = _transport.sandbox.world
        found = {
            "name": "earthengine",
            "endpoint": "sandbox",
            "world": world.version,
            "synthetic": world.synthetic,
        }
        if spec.archive:
            found["archive"] = hashlib.sha256(Path(spec.archive).read_bytes()).hexdigest()
        return found
    if spec.url and not _is_google(spec.url):
        about = _about(spec.url)
        return {"name": "earthengine", "endpoint": "url", **about}
    return {"name": "earthengine", "endpoint": "live", "synthetic": False}


def call(ask: Callable[[], Answer]) -> Answer:
    """Ask once; the client's errors become SourceError (transient or not), UserError or QuotaStop."""
    try:
        return ask()
    except ee.EEException as error:
        raise _translate(error) from error
    except (ConnectionError, TimeoutError, requests.RequestException) as error:
        raise SourceError(f"Earth Engine did not answer: {type(error).__name__}: {error}", transient=True) from error


def _translate(error: ee.EEException) -> Exception:
    text = str(error)
    status = getattr(getattr(error.__context__, "resp", None), "status", None)
    status = int(status) if status is not None else None
    if "quota" in text.lower() and "EECU" in text:
        return QuotaStop(f"Earth Engine's quota is used up: {text}")
    if status is not None and (status == 429 or status >= 500):
        return SourceError(f"Earth Engine answered {status}: {text}", transient=True)
    if "must be less than or equal to" in text:
        return SourceError(text, too_large=True)
    if "User memory limit exceeded" in text or "Computation timed out" in text:
        return SourceError(text, too_large=True)
    if status in (401, 403):
        return UserError(text, "Earth Engine", "check the project and your rights: earthengine authenticate")
    return SourceError(f"Earth Engine refused: {text}")


def _offline_transport(spec: SourceSpec) -> Any:
    from mmbuild.sandbox import offline_transport

    try:
        return offline_transport(archive=spec.archive, archive_root=spec.archive_root)
    except (OSError, ValueError) as error:
        raise UserError(
            str(error), spec.archive or "sandbox", "see recipes/archives/realdata.yaml for an archive"
        ) from error


def _initialize_url(spec: SourceSpec) -> None:
    try:
        ee.Initialize(credentials=None, url=spec.url, project=spec.project or OFFLINE_PROJECT)
        ee.data.setDeadline(DEADLINE_MS)
    except (ConnectionError, requests.RequestException, ee.EEException, OSError) as error:
        raise UserError(
            f"no Earth Engine answers: {error}", str(spec.url), "start `mmbuild sandbox` or correct the URL"
        ) from error


def _initialize_live(spec: SourceSpec) -> None:
    try:
        ee.Initialize(project=spec.project, url=spec.url)
        ee.data.setDeadline(DEADLINE_MS)
    except (ee.EEException, google.auth.exceptions.GoogleAuthError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"Earth Engine could not be reached with credentials ({reason})", "source: earthengine",
            "run `earthengine authenticate` once and name your project (source: {name: earthengine, project: ...}), "
            "or build from the offline Earth Engine with --source sandbox",
        ) from error  # fmt: skip


def _is_google(url: str) -> bool:
    return (urlparse(url).hostname or "").endswith("googleapis.com")


def _about(url: str) -> dict[str, Any]:
    """What an `mmbuild sandbox` server says of its world; another server is asked in vain and counts as real."""
    try:
        answer = requests.get(f"{url.rstrip('/')}/world", timeout=10)
    except requests.RequestException as error:
        raise UserError(f"no answer: {error}", url, "start `mmbuild sandbox` or correct the URL") from error
    return dict(answer.json()) if answer.ok else {"synthetic": False}
