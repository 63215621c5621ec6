"""What every exchange with Earth Engine costs: each waits at the asker's gate, carries its tag and is noted.

It refuses to pass anything on in a process that was forked off after its parent had connected.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import httplib2

from mmbuild.sources.earthengine.wire import Transport, forked
from mmbuild.throttle import Gate, Spent

# How much of a refusal is kept: its JSON is far shorter, and an error page needs no more.
REFUSAL_BYTES = 16_384
_QUOTA_HEADER = "x-earth-engine-quota-status"
# What the offline Earth Engine says a request has cost; the live service has no such header.
_EECU_HEADER = "x-mmbuild-eecu-seconds"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request to the endpoint and what came of it; status 0 means that no whole answer came.

    status: that of a refusal also where it came in an answer with status 200. refusal: the beginning of such an answer,
    empty for a good one. eecu_s: None where the answer does not tell.
    """

    status: int
    sent_bytes: int
    received_bytes: int
    seconds: float
    restricted: bool = False
    eecu_s: float | None = None
    refusal: bytes = b""

    @property
    def throttled(self) -> bool:
        """True when the service said that too much was asked: 429, or 403 with one of the rate-limit reasons."""
        return self.status == 429 or (self.status == 403 and says_rate_limit(self.refusal))


def says_rate_limit(refusal: bytes) -> bool:
    """True for rateLimitExceeded and userRateLimitExceeded, and RATE_LIMIT_EXCEEDED as newer answers spell it."""
    return b"ratelimitexceeded" in refusal.replace(b"_", b"").lower()


# -- who asks -----------------------------------------------------------------------------------------------------


class _Here(threading.local):
    """What this thread asks with, and its last exchange."""

    gate: Gate | None = None
    tag: str | None = None
    last: Exchange | None = None


_here = _Here()


@contextmanager
def asking(gate: Gate | None, tag: str | None) -> Iterator[None]:
    """Requests of this thread wait at ``gate`` and carry ``tag`` for as long as the block runs."""
    before = _here.gate, _here.tag
    _here.gate, _here.tag = gate, tag
    try:
        yield
    finally:
        _here.gate, _here.tag = before


def last_exchange() -> Exchange | None:
    """This thread's last exchange since it was forgotten; None when there was none."""
    return _here.last


def forget() -> None:
    """Begin anew: what was asked before is not what an error from here on is about."""
    _here.last = None


class Metered:
    """A transport whose exchanges with ``endpoint`` are let pass by the gate, tagged and noted.

    Other addresses, such as the one access tokens come from, cost no quota and are passed on as they are.
    """

    def __init__(self, inner: Transport, endpoint: str, *, free: bool = False) -> None:
        self.inner, self.endpoint, self.free = inner, endpoint, free
        self._process = os.getpid()

    def request(
        self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **options: Any
    ) -> tuple[httplib2.Response, bytes]:
        if os.getpid() != self._process:
            raise forked()
        if not uri.startswith(self.endpoint):
            return self.inner.request(uri, method, body=body, headers=headers, **options)
        data = body.encode() if isinstance(body, str) else body or b""
        if _here.tag and method == "POST":
            data = _tagged(data, _here.tag)
            headers = {key: value for key, value in (headers or {}).items() if key.lower() != "content-length"}
            headers["content-length"] = str(len(data))
        gate = None if self.free else _here.gate
        with gate.request() if gate else nullcontext():
            return self._exchange(gate, partial(self.inner.request, uri, method, body=data, headers=headers), len(data))

    def _exchange(
        self, gate: Gate | None, ask: Callable[[], tuple[httplib2.Response, bytes]], sent: int
    ) -> tuple[httplib2.Response, bytes]:
        """Ask, note what came of it for this thread and report it to the gate, whatever it was."""
        began = time.monotonic()
        response: httplib2.Response | None = None
        content = b""
        try:
            response, content = ask()
            return response, content
        finally:
            last = _noted(response, content, sent, time.monotonic() - began)
            _here.last = last
            if gate is not None:
                gate.report(
                    Spent(
                        sent_bytes=last.sent_bytes,
                        received_bytes=last.received_bytes,
                        eecu_s=last.eecu_s,
                        throttled=last.throttled,
                        restricted=last.restricted,
                        refused=not 0 < last.status < 300,
                    )
                )

    def close(self) -> None:
        self.inner.close()


def workload_tag(name: str | None) -> str | None:
    """A name as Earth Engine takes it for a tag: at most 63 of a-z, 0-9, - and _, with none of the last two at an end.

    None when there is nothing left of it.
    """
    plain = re.sub("[^a-z0-9_-]+", "-", (name or "").lower()).strip("-_")[:63].strip("-_")
    return plain or None


def _tagged(body: bytes, tag: str) -> bytes:
    """A JSON object with the tag as its first member: the client's own tag is one for the whole process."""
    if not body.startswith(b"{") or b'"workloadTag"' in body[:64]:
        return body
    rest = body[1:].lstrip()
    return b'{"workloadTag": "' + tag.encode() + (b'"' if rest.startswith(b"}") else b'", ') + rest


def _noted(response: httplib2.Response | None, content: bytes, sent: int, seconds: float) -> Exchange:
    if response is None:
        return Exchange(status=0, sent_bytes=sent, received_bytes=0, seconds=seconds)
    status, eecu = _code_inside(content) or int(response.status), response.get(_EECU_HEADER)
    return Exchange(
        status=status,
        sent_bytes=sent,
        received_bytes=len(content),
        seconds=seconds,
        restricted="parallelism_restricted=true" in response.get(_QUOTA_HEADER, ""),
        eecu_s=None if eecu is None else float(eecu),
        refusal=content[:REFUSAL_BYTES] if status >= 300 else b"",
    )


def _code_inside(content: bytes) -> int | None:
    """The status that an error JSON carries itself, whatever the one it was sent with."""
    if not content.startswith(b'{"error"') or len(content) > REFUSAL_BYTES:
        return None
    try:
        return int(json.loads(content)["error"]["code"])
    except (ValueError, TypeError, KeyError):
        return None
