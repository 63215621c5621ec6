"""The one place that initialises the Earth Engine client, and that turns its errors into ours.

The client keeps its state in one process-wide global, so a process talks to one endpoint at a time.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import ee
import google.auth.exceptions
import googleapiclient.errors

from mmbuild.errors import MMBuildError, SourceError, UserError
from mmbuild.sources import SANDBOX, SourceSpec
from mmbuild.sources.earthengine import cassette, login
from mmbuild.sources.earthengine.kept import Kept, default_folder
from mmbuild.sources.earthengine.meter import Metered, asking, forget, last_exchange
from mmbuild.sources.earthengine.refusals import PATIENCE, is_broken_body, meaning, read_refusal
from mmbuild.sources.earthengine.wire import Limits, Transport, Wire, forked
from mmbuild.throttle import Gate, RetryBudget, with_retries

Answer = TypeVar("Answer")
Blame = Callable[[str], str]
"""What a request was about, given the text it was refused with."""

# Many small requests are what this endpoint is for. Source: Earth Engine's guide to its processing environments.
HIGH_VOLUME_URL = "https://earthengine-highvolume.googleapis.com"
SANDBOX_URL, CASSETTE_URL = "http://sandbox.invalid", "http://cassette.invalid"
OFFLINE_PROJECT = "mmbuild-offline"
LIMITS = Limits()
# How often a server is asked when a process starts: some seconds with the pauses between.
ABOUT_TRIES, ABOUT_LIMITS = 4, Limits(connect_s=10.0, read_s=10.0, total_s=10.0)
_START_SERVER = "start `mmbuild sandbox` or correct the URL"

# What all sources of this process share, so that a service that is down is not asked again by each for itself.
retries = RetryBudget()

_lock = threading.Lock()
_connected: SourceSpec | None = None
_project: str | None = None
_process = 0
_sandbox: Any = None


@dataclass(frozen=True, kw_only=True)
class _Endpoint:
    """What the client is initialised with; ``identity`` is what the lock file says of the pixels."""

    url: str
    project: str
    transport: Transport
    identity: dict[str, Any]
    credentials: Any = None
    free: bool = False


def connect(spec: SourceSpec) -> None:
    """Point the client of this process at the spec's endpoint; does nothing when it already is.

    Raises UserError without credentials for the live service, and in a process that was forked off a connected one.
    """
    global _connected, _process, _project
    _check(spec)
    with _lock:
        if _connected is not None and _is_forked():
            raise forked()
        if _connected is not None and _same(_connected, spec):
            return
        _connected = None  # until the new endpoint answers, this process talks to none
        endpoint = _endpoint(spec)
        _project = endpoint.project
        try:
            with_retries(partial(_initialize, endpoint, _told(spec)), sleep=time.sleep, tries=ABOUT_TRIES)
        except SourceError as error:
            raise _no_answer(spec, endpoint, error) from error
        if spec.record:
            cassette.describe(spec.record, endpoint.project, endpoint.identity)
        _connected, _process = spec, os.getpid()


def require(spec: SourceSpec) -> None:
    """Raise UserError when this process has left the spec's endpoint: its questions would go elsewhere."""
    if _connected is not None and _is_forked():
        raise forked()
    if _connected is None or not _same(_connected, spec):
        now = "to none" if _connected is None else f"to {_told(_connected)}"
        raise UserError(
            f"a source that was opened at {_told(spec)} is used, and this process is connected {now}",
            "Earth Engine", "open the source again; a process talks to one endpoint at a time",
        )  # fmt: skip


def identity(spec: SourceSpec) -> dict[str, Any]:
    """Where pixels come from, for the lock file and for `mmbuild:synthetic`; of a replay, what was recorded."""
    if spec.replay:
        found: dict[str, Any] = cassette.described(spec.replay)["source"]
        return found
    if spec.name == SANDBOX:
        world = _sandbox.world
        found = {"name": "earthengine", "endpoint": "sandbox", "world": world.version, "synthetic": world.synthetic}
        if spec.archive:
            found["archive"] = hashlib.sha256(Path(spec.archive).read_bytes()).hexdigest()
        return found
    if spec.url and not _is_google(spec.url):
        return {"name": "earthengine", "endpoint": "url", **_about(spec.url)}
    return {"name": "earthengine", "endpoint": "live", "synthetic": False}


def _is_forked() -> bool:
    return _process not in (0, os.getpid())


# -- the endpoints ------------------------------------------------------------------------------------------------


def _check(spec: SourceSpec) -> None:
    if spec.name == SANDBOX and spec.url:
        raise UserError(
            "the sandbox runs inside this process and has no url", "source.url",
            "use source.name=earthengine for a server",
        )  # fmt: skip
    if spec.record and spec.replay:
        raise UserError("a build is recorded or replayed, not both", "--record", "leave one of the two out")


def _same(one: SourceSpec, other: SourceSpec) -> bool:
    """True for specs of one endpoint: what requests are tagged with makes no other."""
    return replace(one, tag=None) == replace(other, tag=None)


def _told(spec: SourceSpec) -> str:
    return spec.replay or spec.url or ("the sandbox" if spec.name == SANDBOX else "the live service")


def _endpoint(spec: SourceSpec) -> _Endpoint:
    """Transport, credentials and address of a spec; nothing is sent yet, except to ask a server what it is."""
    if spec.replay:
        project = cassette.described(spec.replay)["project"]
        player = cassette.Player(spec.replay)
        return _Endpoint(
            url=CASSETTE_URL, project=project, transport=player, identity=identity(spec), free=True
        )  # fmt: skip
    if spec.name == SANDBOX:
        found = _Endpoint(
            url=SANDBOX_URL, project=OFFLINE_PROJECT, transport=_open_sandbox(spec), identity=identity(spec)
        )
    elif spec.url and not _is_google(spec.url):
        project = spec.project or OFFLINE_PROJECT
        found = _Endpoint(url=spec.url.rstrip("/"), project=project, transport=Wire(LIMITS), identity=identity(spec))
    else:
        credentials, project = login.sign_in(spec.key, spec.project)
        transport = Kept(Wire(LIMITS), default_folder(), ee.__version__)
        url = (spec.url or HIGH_VOLUME_URL).rstrip("/")
        found = _Endpoint(
            url=url, project=project, transport=transport, identity=identity(spec), credentials=credentials
        )
    if spec.record:
        return replace(found, transport=cassette.Recorder(found.transport, spec.record, found.url))
    return found


def _open_sandbox(spec: SourceSpec) -> Any:
    global _sandbox
    from mmbuild.sandbox import offline_transport

    try:
        transport = offline_transport(archive=spec.archive, archive_root=spec.archive_root)
    except (OSError, ValueError) as error:
        raise UserError(
            str(error), spec.archive or "sandbox", "see recipes/archives/realdata.yaml for an archive"
        ) from error
    _sandbox = transport.sandbox
    return transport


def _initialize(endpoint: _Endpoint, where: str) -> None:
    """Initialise the client; nothing is kept of a try that failed."""
    ee.Reset()
    # One retry policy, ours: the client's own would multiply with it.
    ee.data.setMaxRetries(0)
    # The client would otherwise fetch a list of deprecated assets with no time limit.
    ee.deprecation.deprecated_assets = {"-": None}  # type: ignore[dict-item]
    meter = Metered(endpoint.transport, endpoint.url, free=endpoint.free)

    def start() -> None:
        ee.Initialize(
            credentials=endpoint.credentials, url=endpoint.url, project=endpoint.project, http_transport=meter
        )  # fmt: skip

    call(start, blame=lambda text: where, fix=_START_SERVER)


def _no_answer(spec: SourceSpec, endpoint: _Endpoint, error: SourceError) -> UserError:
    fix = _START_SERVER if endpoint.credentials is None else "see that this machine reaches the network (HTTPS_PROXY)"
    return UserError(f"no Earth Engine answers: {error}", _told(spec), fix)


def _anything(text: str) -> str:
    return "Earth Engine"


# -- asking -------------------------------------------------------------------------------------------------------


def call(
    ask: Callable[[], Answer],
    *,
    gate: Gate | None = None,
    tag: str | None = None,
    blame: Blame = _anything,
    fix: str | None = None,
) -> Answer:
    """Ask once; the client's errors become SourceError (transient or too large), UserError or QuotaStop.

    gate: lets each HTTP request pass. tag: the workload tag it carries. blame: says what a wrong request was about;
    fix: what would put it right.
    """
    forget()
    try:
        with asking(gate, tag):
            return ask()
    except (ee.EEException, googleapiclient.errors.Error) as error:
        raise _translate(error, blame, fix) from error
    except google.auth.exceptions.GoogleAuthError as error:
        if isinstance(error, google.auth.exceptions.TransportError) or error.retryable:
            raise SourceError(f"no access token yet: {error}", transient=True) from error
        raise UserError(f"no access token: {error}", "credentials", login.REFRESH) from error
    except ssl.SSLCertVerificationError as error:
        raise UserError(f"the server's certificate is not trusted: {error}", "Earth Engine", login.TRUST) from error
    except (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
        raise SourceError(f"Earth Engine did not answer: {type(error).__name__}: {error}", transient=True) from error
    except (TypeError, KeyError, UnicodeDecodeError) as error:
        if not is_broken_body(error):
            raise
        raise _broken_body(error, blame) from error


def compute_pixels(body: str) -> bytes:
    """What ``ee.data.computePixels`` asks and answers, for a body that is text already.

    The client prepares address and headers anew for every request, in half a millisecond; here they are copied.
    """
    request = copy(_pixel_request(ee.data._get_state().cloud_api_resource_raw))
    request.body, request.body_size, request.headers = body, len(body), dict(request.headers)
    try:
        answer: bytes = request.execute(num_retries=0)
    except googleapiclient.errors.HttpError as error:
        raise ee.EEException(error.reason) from error
    return answer


@lru_cache(maxsize=1)
def _pixel_request(service: Any) -> Any:
    """The request for pixels, without a body, as the client makes it for the service that it was initialised with."""
    return service.projects().image().computePixels(project=ee.data._get_projects_path(), body={})


@contextmanager
def building(spec: SourceSpec, blame: Blame) -> Iterator[None]:
    """Build an expression for the spec's endpoint; one that the client refuses to build is a wrong request."""
    require(spec)
    forget()
    try:
        yield
    except ee.EEException as error:
        raise _translate(error, blame, None) from error


def _translate(error: Exception, blame: Blame, fix: str | None) -> MMBuildError:
    """What an error of the client means; its status is that of the exchange, which the client itself does not tell."""
    if isinstance(error, googleapiclient.errors.InvalidJsonError):
        return SourceError(f"Earth Engine does not say what it can do: {error}", transient=True)
    last, answer = last_exchange(), error.__context__
    status, content = int(getattr(getattr(answer, "resp", None), "status", 0)), getattr(answer, "content", b"")
    if last is not None and last.status >= 300:
        status, content = last.status, last.refusal
    refusal = read_refusal(status, content, str(error))
    return meaning(refusal, where=blame(refusal.text), project=_project, fix=fix)


def _broken_body(error: Exception, blame: Blame) -> MMBuildError:
    """A body that is no JSON object, or that holds an error although its status is 200."""
    last = last_exchange()
    if last is None or last.status < 300:
        return SourceError("Earth Engine's answer is not a whole JSON object", transient=True)
    refusal = read_refusal(last.status, last.refusal, str(error))
    return meaning(refusal, where=blame(refusal.text), project=_project)


def _is_google(url: str) -> bool:
    return (urlparse(url).hostname or "").endswith(".googleapis.com")


# -- what a server is -----------------------------------------------------------------------------------------------


def _about(url: str, *, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """What an `mmbuild sandbox` server says of its world; a server without such a page (404) counts as real.

    Raises UserError when it cannot be told: a synthetic world is never recorded as real.
    """
    try:
        return with_retries(lambda: _ask_about(url), sleep=sleep, tries=ABOUT_TRIES)
    except SourceError as error:
        raise UserError(str(error), url, _START_SERVER) from error


def _ask_about(url: str) -> dict[str, Any]:
    page = f"{url.rstrip('/')}/world"
    try:
        answer, content = Wire(ABOUT_LIMITS).request(page)
    except OSError as error:
        raise SourceError(f"no answer: {error}", transient=True) from error
    status = int(answer.status)
    if status == 404:
        return {"synthetic": False}
    if status != 200:
        raise SourceError(f"{page} answered {status}", transient=status in PATIENCE or status >= 500)
    try:
        about = json.loads(content)
    except ValueError as error:
        raise SourceError(f"{page} does not say whether its world is synthetic: {error}", transient=True) from error
    if not isinstance(about, dict) or not isinstance(about.get("synthetic"), bool):
        raise SourceError(f"{page} does not say whether its world is synthetic")
    return about
