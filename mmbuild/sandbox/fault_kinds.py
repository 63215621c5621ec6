"""What each fault of the fault script does to an answer: a refusal instead of it, another body, or a broken connection.

One entry per row of the matrix of things that go wrong between a client and Earth Engine; nothing here decides when.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from mmbuild.sandbox.limits import (
    MAX_ELEMENTS,
    PAYLOAD_LIMIT_BYTES,
    QUOTA_EECU_DAY,
    QUOTA_PER_MINUTE,
    QUOTA_STATUS,
    RESPONSE_LIMIT_BYTES,
    TOO_MANY_REQUESTS,
)


class Wire(Enum):
    """How an answer travels: whole, or in one of the ways a connection breaks."""

    WHOLE = "whole"
    RESET = "reset"
    TRUNCATED = "truncated"
    TRICKLE = "trickle"
    HANG = "hang"


@dataclass(frozen=True)
class Reply:
    """An answer and how it travels; interval_s is the pause between two bytes of a trickle."""

    status: int
    headers: dict[str, str]
    body: bytes
    wire: Wire = Wire.WHOLE
    interval_s: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault: an answer of its own (`instead`, given what the rule matches on), or a change of the real one.

    endpoint: where it strikes unless the rule says otherwise. "*:*" is every endpoint that computes or reads.
    """

    about: str
    instead: Callable[[str], Reply] | None = None
    change: Callable[[Reply], Reply] | None = None
    endpoint: str = "*:*"


JSON_TYPE = {"content-type": "application/json; charset=UTF-8"}
PIXELS = "*Pixels"
# numpy is wary of headers above 10,000 bytes, which some four hundred bands have; these are our own.
MAX_HEADER_BYTES = 2**20


def _google(code: int, status: str, message: str, reason: str = "") -> Kind:
    """A refusal in Google's error JSON; {asset} in the message is what the rule matches on."""

    def instead(match: str) -> Reply:
        text = message.format(asset=match or "projects/tests/assets/none")
        error = {"code": code, "message": text, "status": status}
        more = {"errors": [{"message": text, "domain": "usageLimits", "reason": reason}]} if reason else {}
        return Reply(code, dict(JSON_TYPE), json.dumps({"error": error | more}).encode())

    return Kind(about=f"{code} {message}", instead=instead)


def _raw(code: int, body: bytes, content_type: str, about: str) -> Kind:
    return Kind(about=about, instead=lambda _: Reply(code, {"content-type": content_type}, body))


def _broken(wire: Wire, about: str) -> Kind:
    return Kind(about=about, change=lambda reply: replace(reply, wire=wire))


# -- changed pixels ---------------------------------------------------------------------------------------------------


def _on_npy(change: Callable[[NDArray[np.void]], bytes]) -> Callable[[Reply], Reply]:
    """The change applied to an NPY answer; any other answer stays as it is."""

    def apply(reply: Reply) -> Reply:
        if not reply.body.startswith(b"\x93NUMPY"):
            return reply
        return replace(reply, body=change(np.load(io.BytesIO(reply.body), max_header_size=MAX_HEADER_BYTES)))

    return apply


def _npy(pixels: NDArray[np.void]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()


def _cut(reply: Reply) -> Reply:
    """Half of the answer, with a length that says it is all: broken before anybody counted the bytes."""
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def _other_dtype(pixels: NDArray[np.void]) -> bytes:
    """The first band as another type: float64, or float32 where it was that already."""
    names = pixels.dtype.names or ()
    first = pixels.dtype[names[0]]
    other = np.dtype("<f4") if first == np.dtype("<f8") else np.dtype("<f8")
    kinds = [(name, other if name == names[0] else pixels.dtype[name]) for name in names]
    changed = np.zeros(pixels.shape, dtype=kinds)
    for name in names:
        changed[name] = pixels[name]
    return _npy(changed)


def _reordered(pixels: NDArray[np.void]) -> bytes:
    names = (pixels.dtype.names or ())[::-1]
    changed = np.zeros(pixels.shape, dtype=[(name, pixels.dtype[name]) for name in names])
    for name in names:
        changed[name] = pixels[name]
    return _npy(changed)


def _duplicated(pixels: NDArray[np.void]) -> bytes:
    """The first band twice under one name, which numpy itself would not write."""
    first = (pixels.dtype.names or ())[0]
    descr = [(name, pixels.dtype[name].str) for name in (first, *(pixels.dtype.names or ()))]
    unique = np.zeros(pixels.shape, dtype=[(f"f{position}", kind) for position, (_, kind) in enumerate(descr)])
    for position, (name, _) in enumerate(descr):
        unique[f"f{position}"] = pixels[name]
    header = repr({"descr": descr, "fortran_order": False, "shape": pixels.shape})
    # NPY format 2.0: magic, version, length of the header, which is padded so that data start at a multiple of 64.
    padded = header + " " * (-(len(header) + 13) % 64) + "\n"
    return b"\x93NUMPY\x02\x00" + len(padded).to_bytes(4, "little") + padded.encode() + unique.tobytes()


_ERROR_IN_OK = json.dumps({"error": {"code": 500, "message": "Internal error.", "status": "INTERNAL"}}).encode()

KINDS: dict[str, Kind] = {
    # asked too much: come back later
    "rate": _google(429, "RESOURCE_EXHAUSTED", TOO_MANY_REQUESTS),
    "aggregations": _google(429, "RESOURCE_EXHAUSTED", "Too many concurrent aggregations."),
    "quota_per_minute": _google(429, "RESOURCE_EXHAUSTED", QUOTA_PER_MINUTE),
    "rate_403": _google(403, "PERMISSION_DENIED", "Rate Limit Exceeded", "rateLimitExceeded"),
    "eecu_quota": _google(429, "RESOURCE_EXHAUSTED", QUOTA_EECU_DAY),
    # trouble on their side
    "internal": _google(500, "INTERNAL", "An internal error has occurred."),
    "internal_empty": _raw(500, b"", "text/html", "500 with an empty body"),
    "bad_gateway": _raw(
        502, b"<!DOCTYPE html><html><title>Error 502 (Server Error)!!1</title></html>", "text/html", "502 in HTML"
    ),
    "unavailable": _google(503, "UNAVAILABLE", "The service is currently unavailable."),
    # not allowed, not there
    "unauthenticated": _google(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
    "permission": _google(
        403, "PERMISSION_DENIED",
        "Permission 'earthengine.assets.get' denied on resource '{asset}' (or it may not exist).",
    ),
    "project": _google(403, "PERMISSION_DENIED", "Caller does not have required permission to use project tests."),
    "not_found": _google(404, "NOT_FOUND", "Asset '{asset}' not found (no such asset, or no access to it)."),
    # asked too much at once: ask for less
    "memory": _google(400, "INVALID_ARGUMENT", "User memory limit exceeded."),
    "timeout": _google(400, "INVALID_ARGUMENT", "Computation timed out."),
    "size": _google(
        400, "INVALID_ARGUMENT",
        f"Total request size (56623104 bytes) must be less than or equal to {RESPONSE_LIMIT_BYTES} bytes.",
    ),
    "payload": _google(
        400, "INVALID_ARGUMENT", f"Request payload size exceeds the limit: {PAYLOAD_LIMIT_BYTES} bytes."
    ),
    "elements": _google(
        400, "INVALID_ARGUMENT", f"Collection query aborted after accumulating over {MAX_ELEMENTS} elements."
    ),
    # the connection
    "reset": _broken(Wire.RESET, "the connection is reset before the answer"),
    "truncated": _broken(Wire.TRUNCATED, "the connection ends in the middle of the answer"),
    "trickle": _broken(Wire.TRICKLE, "one byte of the answer per interval_s"),
    "hang": _broken(Wire.HANG, "no answer, and the connection stays open"),
    # answers that are complete and wrong
    "short": Kind(about="half an NPY with a length to match", change=_cut, endpoint=PIXELS),
    "wrong_dtype": Kind(about="the first band has another dtype", change=_on_npy(_other_dtype), endpoint=PIXELS),
    "wrong_shape": Kind(about="the last row is missing", change=_on_npy(lambda p: _npy(p[:-1])), endpoint=PIXELS),
    "duplicate_bands": Kind(about="the first band comes twice", change=_on_npy(_duplicated), endpoint=PIXELS),
    "out_of_order": Kind(about="the bands come in reverse order", change=_on_npy(_reordered), endpoint=PIXELS),
    "error_in_ok": _raw(200, _ERROR_IN_OK, JSON_TYPE["content-type"], "200 with an error JSON"),
    "restricted": Kind(
        about="a good answer that says the project is in restricted mode",
        change=lambda reply: replace(reply, headers=reply.headers | QUOTA_STATUS),
    ),
}  # fmt: skip
