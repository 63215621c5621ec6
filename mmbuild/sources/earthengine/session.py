"""The one place that initialises the Earth Engine client, and that turns its errors into ours.

The client keeps its state in one process-wide global, so a process talks to one endpoint at a time.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import ee
import google.auth.exceptions
import requests

from mmbuild.errors import QuotaStop, SourceError, UserError
from mmbuild.sources import SANDBOX, SourceSpec
from mmbuild.throttle import with_retries

Answer = TypeVar("Answer")

# The client waits forever by default (its deadline is 0); a chip takes seconds, so two minutes means it is lost.
DEADLINE_MS = 120_000
OFFLINE_PROJECT = "mmbuild-offline"

# Refusals that mean "ask for less", whatever their status. Source: Earth Engine's debugging guide; the texts of
# computePixels' limits and of the payload limit are those of the live service (quoted in geemap issues).
TOO_LARGE = (
    "User memory limit exceeded",
    "Computation timed out",
    "must be less than or equal to",
    "payload size exceeds",
)
# 408 and 429 ask for patience, 499 is a request that was cancelled on the way.
TRANSIENT = (408, 429, 499)
# How often a server is asked what it is: some five seconds with the pauses between.
ABOUT_TRIES, ABOUT_DEADLINE_S = 4, 10.0

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
    """Ask once; the client's errors become SourceError (transient or too large), UserError or QuotaStop."""
    try:
        return ask()
    except ee.EEException as error:
        raise _translate(error) from error
    except google.auth.exceptions.GoogleAuthError as error:
        if isinstance(error, google.auth.exceptions.TransportError) or error.retryable:
            raise SourceError(f"no access token yet: {error}", transient=True) from error
        raise UserError(str(error), "Earth Engine", "run `earthengine authenticate`") from error
    except (ConnectionError, TimeoutError, ssl.SSLError, requests.RequestException, http.client.HTTPException) as error:
        raise SourceError(f"Earth Engine did not answer: {type(error).__name__}: {error}", transient=True) from error
    except (TypeError, KeyError, UnicodeDecodeError) as error:
        if not _is_broken_body(error):
            raise
        raise SourceError("Earth Engine's answer is not a whole JSON object", transient=True) from error


def _is_broken_body(error: Exception) -> bool:
    """True for what ee.data.computeValue does with a body that is no JSON object: it looks up `result` in its text."""
    return isinstance(error, UnicodeDecodeError) or error.args == ("result",) or "indices must be" in str(error)


def _translate(error: ee.EEException) -> Exception:
    """What an error of the client means; one that is neither transient nor too large is a wrong argument.

    The status decides before the text: a server error without Google's JSON reads just `Ok`.
    """
    text = str(error)
    answer = error.__context__  # the HttpError; none when the client itself refused
    status = int(getattr(getattr(answer, "resp", None), "status", 0))
    if "quota" in text.lower() and "EECU" in text:
        return QuotaStop(f"Earth Engine's quota is used up: {text}")
    if status == 413 or any(limit in text for limit in TOO_LARGE):
        return SourceError(f"Earth Engine refused: {text}", too_large=True)
    if status in TRANSIENT or status >= 500 or (status == 403 and _is_rate_limit(answer)):
        return SourceError(f"Earth Engine answered {status}: {text}", transient=True)
    if status in (401, 403):
        return UserError(text, "Earth Engine", "check the project and your rights: earthengine authenticate")
    said = f"Earth Engine answered {status}" if status else "Earth Engine's client refused"
    return UserError(f"{said}: {text}", "Earth Engine", "correct the modality file or the recipe that asks for this")


def _is_rate_limit(answer: BaseException | None) -> bool:
    """True for 403 rateLimitExceeded and userRateLimitExceeded, and RATE_LIMIT_EXCEEDED as newer answers spell it."""
    content = getattr(answer, "content", b"")
    return b"ratelimitexceeded" in content.replace(b"_", b"").lower()


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


def _about(url: str, *, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """What an `mmbuild sandbox` server says of its world; a server without such a page (404) counts as real.

    Raises UserError when it cannot be told: a synthetic world is never recorded as real.
    """
    try:
        return with_retries(lambda: _ask_about(url), sleep=sleep, tries=ABOUT_TRIES)
    except SourceError as error:
        raise UserError(str(error), url, "start `mmbuild sandbox` or correct the URL") from error


def _ask_about(url: str) -> dict[str, Any]:
    page = f"{url.rstrip('/')}/world"
    try:
        answer = requests.get(page, timeout=ABOUT_DEADLINE_S)
        if answer.status_code == 404:
            return {"synthetic": False}
        about = answer.json() if answer.ok else None
    except requests.JSONDecodeError as error:
        raise SourceError(f"{page} does not say whether its world is synthetic: {error}", transient=True) from error
    except requests.RequestException as error:
        raise SourceError(f"no answer: {error}", transient=True) from error
    if not answer.ok:
        again = answer.status_code in TRANSIENT or answer.status_code >= 500
        raise SourceError(f"{page} answered {answer.status_code}", transient=again)
    if not isinstance(about, dict) or not isinstance(about.get("synthetic"), bool):
        raise SourceError(f"{page} does not say whether its world is synthetic")
    return about
