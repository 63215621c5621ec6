"""The fault script: a YAML list of rules that say which requests go wrong, and how.

    - {fault: unavailable, probability: 0.05}                    # one request in twenty, seed 0
    - {fault: truncated, probability: 0.01, endpoint: "image:computePixels", seed: 7}
    - {fault: reset, requests: [3, 7]}                           # the third and the seventh that the rule applies to
    - {fault: rate, from_request: 200, to_request: 260}          # both ends included
    - {fault: bad_gateway, from_s: 10, to_s: 40}                 # seconds since the first request; 40 is out
    - {fault: permission, match: COPERNICUS/S1_GRD}              # every request that names the asset

A rule applies to requests of its `endpoint` (a glob) whose path or body holds `match`, and counts those from 1, each
try of a client for itself. It strikes when all of its other conditions hold. Of several that strike, the first wins.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from mmbuild.sandbox.endpoints import ROUTES
from mmbuild.sandbox.fault_kinds import KINDS, Reply


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a fault script; `position` is its place in the list and part of what its draws depend on."""

    fault: str
    position: int = 0
    endpoint: str = ""
    match: str = ""
    probability: float | None = None
    requests: tuple[int, ...] = ()
    from_request: int | None = None
    to_request: int | None = None
    from_s: float | None = None
    to_s: float | None = None
    seed: int = 0
    interval_s: float = 1.0

    def applies(self, endpoint: str, path: str, body: bytes) -> bool:
        glob = self.endpoint or KINDS[self.fault].endpoint
        return fnmatchcase(endpoint, glob) and (self.match in path or self.match.encode() in body)

    def strikes(self, number: int, elapsed_s: float) -> bool:
        """Whether the number-th request that the rule applies to goes wrong."""
        if self.requests and number not in self.requests:
            return False
        if number < (self.from_request or 1) or (self.to_request is not None and number > self.to_request):
            return False
        if elapsed_s < (self.from_s or 0.0) or (self.to_s is not None and elapsed_s >= self.to_s):
            return False
        return self.probability is None or self._draw(number) < self.probability

    def _draw(self, number: int) -> float:
        """A number in [0, 1) that depends on the seed, the rule's position and the request's number alone."""
        digest = hashlib.blake2b(f"{self.seed}:{self.position}:{number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2.0**64

    def instead(self) -> Reply | None:
        """The fault's own answer; None when the real one is needed."""
        answer = KINDS[self.fault].instead
        return None if answer is None else answer(self.match)

    def changed(self, reply: Reply) -> Reply:
        change = KINDS[self.fault].change
        return reply if change is None else replace(change(reply), interval_s=self.interval_s)


class FaultScript:
    """The rules and how many requests each has seen; threads share it."""

    def __init__(self, rules: Sequence[Rule] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rules = tuple(rules)
        self._seen = [0] * len(self.rules)
        self._clock, self._lock = clock, threading.Lock()
        self._start: float | None = None

    def choose(self, endpoint: str, path: str, body: bytes) -> Rule | None:
        """The rule that strikes this request, if any; call it once per request, in the order they arrive."""
        if not self.rules:
            return None
        applying = [index for index, rule in enumerate(self.rules) if rule.applies(endpoint, path, body)]
        with self._lock:
            now = self._clock()
            self._start = now if self._start is None else self._start
            for index in applying:
                self._seen[index] += 1
            numbers = [(self.rules[index], self._seen[index]) for index in applying]
            elapsed_s = now - self._start
        return next((rule for rule, number in numbers if rule.strikes(number, elapsed_s)), None)


Faults = FaultScript | str | Path | Sequence[Mapping[str, Any]]
"""A fault script, the name of its file, or its rules as plain data."""


def read_faults(faults: Faults | None, *, clock: Callable[[], float] = time.monotonic) -> FaultScript:
    """The script of a file or a list of rules; ValueError names the rule and key that are not understood."""
    if isinstance(faults, FaultScript):
        return faults
    if faults is None or not isinstance(faults, str | Path):
        return FaultScript(_rules(faults or [], "faults", []), clock=clock)
    try:
        text = Path(faults).read_text(encoding="utf-8")
        content, lines = yaml.safe_load(text), _lines(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{faults}: no valid YAML: {error}") from error
    return FaultScript(_rules(content, str(faults), lines), clock=clock)


def _lines(text: str) -> list[int]:
    """The line each entry of a YAML list begins on."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return [entry.start_mark.line + 1 for entry in node.value] if isinstance(node, yaml.SequenceNode) else []


def _rules(content: Any, where: str, lines: Sequence[int]) -> list[Rule]:
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise ValueError(f"{where}: must be a list of rules such as `- {{fault: rate, probability: 0.05}}`")
    places = [f"{where}:{line}" for line in lines] or [where] * len(content)
    return [
        _rule(rule, position, f"{place}: rule {position + 1}")
        for position, (rule, place) in enumerate(zip(content, places, strict=True))
    ]


ENDPOINTS = ("discovery", *sorted({route[0] for route in ROUTES}))
_KEYS = tuple(field.name for field in fields(Rule) if field.name != "position")


def _rule(content: Any, position: int, where: str) -> Rule:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: {content!r} must be a mapping such as {{fault: rate, probability: 0.05}}")
    for key in content:
        if key not in _KEYS:
            raise ValueError(f"{where}: {key}: unknown key; known are {', '.join(_KEYS)}")
    if content.get("fault") not in KINDS:
        raise ValueError(f"{where}: fault: {content.get('fault')!r} is not known; known are {', '.join(sorted(KINDS))}")
    for key, value in content.items():
        holds, wanted = _CHECKS[key]
        if not holds(value):
            raise ValueError(f"{where}: {key}: {value!r} must be {wanted}")
    glob = content.get("endpoint", "*")
    if not any(fnmatchcase(name, glob) for name in ENDPOINTS):
        raise ValueError(f"{where}: endpoint: {glob!r} matches none of {', '.join(ENDPOINTS)}")
    for low, high in (("from_request", "to_request"), ("from_s", "to_s")):
        if low in content and high in content and content[low] > content[high]:
            raise ValueError(f"{where}: {high}: {content[high]} is before {low} ({content[low]})")
    return Rule(**{**content, "position": position, "requests": tuple(content.get("requests", ()))})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_COUNT = (_is_count, "a whole number from 1")
_SECONDS = (_is_seconds, "a number of seconds, at least 0")
_TEXT = (_is_text, "a text that is not empty")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fault": _TEXT,
    "endpoint": _TEXT,
    "match": _TEXT,
    "probability": (lambda v: _is_seconds(v) and v <= 1, "a number from 0 to 1"),
    "requests": (lambda v: isinstance(v, list | tuple) and bool(v) and all(map(_is_count, v)),
                 "a list of whole numbers from 1, such as [3, 7]"),
    "from_request": _COUNT, "to_request": _COUNT, "from_s": _SECONDS, "to_s": _SECONDS,
    "seed": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "interval_s": _SECONDS,
}  # fmt: skip
