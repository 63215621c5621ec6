"""A sandbox as a service: latency, limits, faults and counters around the answers, the same behind every transport.

The sandbox says what is true; this says how it is to talk to it. Faults strike after the limits let a request in, and
only what the rule names; a fault with an answer of its own computes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import unquote

from mmbuild.sandbox.endpoints import endpoint_of
from mmbuild.sandbox.fault_kinds import Reply
from mmbuild.sandbox.faults import Faults, read_faults
from mmbuild.sandbox.limits import (
    EECU_HEADER,
    PROFILE_ASKED,
    PROFILE_HEADER,
    QUOTA_STATUS,
    UNLIMITED,
    Limits,
    Quota,
    eecu_seconds,
    profile_id,
    refusal,
)
from mmbuild.sandbox.rest import Headers, Sandbox
from mmbuild.sandbox.values import EarthEngineError

# Endpoints that say what the service is; asking them costs no quota.
_FREE = ("", "discovery")
# Endpoints that compute, and so cost compute time.
_COMPUTING = (
    "value:compute", "image:computePixels", "table:computeFeatures", "imageCollection:computeImages",
    "assets:getPixels", "thumbnails:getPixels", "tables:getFeatures",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One HTTP request."""

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes


class Service:
    """Answers requests to one sandbox; `quota.counters()` says what came in. Threads share it."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        latency_ms: float = 0.0,
        limits: Limits | None = None,
        faults: Faults | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sandbox, self.latency_ms = sandbox, latency_ms
        self.quota = Quota(limits or UNLIMITED, clock=clock)
        self.faults = read_faults(faults, clock=clock)
        self._sleep = sleep

    def exchange(self, method: str, path: str, query: str, headers: Headers, body: bytes) -> Reply:
        """Answer one HTTP request; never raises on what a client sends."""
        asked = Asked(method, path, query, headers, body)
        endpoint = endpoint_of(method.upper(), unquote(path))
        if endpoint in _FREE:
            return self._about(asked)
        try:
            with self.quota.slot(endpoint):
                reply = self._reply(endpoint, asked)
        except EarthEngineError as error:
            reply = Reply(*refusal(error))
        return replace(reply, headers=reply.headers | QUOTA_STATUS) if self.quota.is_restricted else reply

    def _about(self, asked: Asked) -> Reply:
        if asked.path == "/counters":
            return _json(self.quota.counters())
        self._wait()
        return self._true(asked)

    def _true(self, asked: Asked) -> Reply:
        return Reply(*self.sandbox.handle(asked.method, asked.path, asked.query, asked.headers, asked.body))

    def _reply(self, endpoint: str, asked: Asked) -> Reply:
        """The answer after its latency: the sandbox's, or what a fault makes of it."""
        rule = self.faults.choose(endpoint, unquote(asked.path), asked.body)
        self._wait()
        if rule is not None:
            self.quota.note_fault(rule.fault)
            instead = rule.instead()
            if instead is not None:
                return instead
        reply = self._charged(endpoint, asked, self._true(asked))
        return reply if rule is None else rule.changed(reply)

    def _charged(self, endpoint: str, asked: Asked, reply: Reply) -> Reply:
        """The answer with its compute time in a header, and both noted; a refusal costs nothing."""
        if reply.status != 200 or endpoint not in _COMPUTING:
            return reply
        eecu_s = eecu_seconds(asked.body, reply.headers, reply.body)
        self.quota.spend(len(reply.body), eecu_s)
        costs = {EECU_HEADER: f"{eecu_s:.6f}"}
        if any(name.lower() == PROFILE_ASKED for name in asked.headers):
            costs[PROFILE_HEADER] = profile_id(eecu_s)
        return replace(reply, headers=reply.headers | costs)

    def _wait(self) -> None:
        if self.latency_ms:
            self._sleep(self.latency_ms / 1000.0)


def _json(content: object) -> Reply:
    return Reply(200, {"content-type": "application/json; charset=UTF-8"}, json.dumps(content).encode())
