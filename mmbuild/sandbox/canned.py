"""Pixel answers of the right form with made-up content, cheap enough that a load test measures the client.

Requests of one shape share one answer: their expressions differ only in numbers, dates, coordinates and scene ids, so
that names and types of the bands are the same. That holds whenever bands are cast to a type, as chips are; it does not
for a bare `ee.Image.constant`, whose type follows from the number. An expression is evaluated once per shape and grid
size, without reading a pixel; refusals are never kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict

import numpy as np

from mmbuild.sandbox.assets import World
from mmbuild.sandbox.graph import Context, evaluate
from mmbuild.sandbox.picking import Pair
from mmbuild.sandbox.pixels import compute_pixels
from mmbuild.sandbox.raster import Grid, Pixels, Reader

# Answers kept for reuse; a shape of a whole sample at 128 px is about 1 MB.
KEPT_BYTES = 128 * 2**20
# Texts remembered with what is left of them; scene ids come and go, words stay.
KEPT_TEXTS = 100_000
# Digits in a text's last part from which on it names a scene, a date or a zone ("EPSG:32631"), not a band or an asset.
SCENE_DIGITS = 5
LARGEST_VALUE = 100
_NUMERIC = b"0123456789.+-eE \n"
_SIZE = re.compile(rb'"dimensions":\s*\{[^}]*\}')


class Canned:
    """Keeps one answer per shape of request; threads share it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        self._texts: dict[bytes, bytes] = {}
        self._bytes, self._lock = 0, threading.Lock()

    def pixels(self, body: bytes) -> bytes:
        """The file that answers an `image:computePixels` request; EarthEngineError as the real answer would raise."""
        key = self._shape(body)
        answer = self._answers.get(key)
        if answer is None:
            # One at a time: all threads of a load test ask for the same shape at first.
            with self._lock:
                answer = self._answers.get(key) or self._keep(key, self._make(body))
        return answer

    def _make(self, body: bytes) -> bytes:
        message = json.loads(body)
        context = Context(self._world)
        image = evaluate(context, message["expression"])
        context.reader = MadeUp()
        return compute_pixels(context, image, message)

    def _keep(self, key: bytes, answer: bytes) -> bytes:
        self._answers[key] = answer
        self._bytes += len(answer)
        while self._bytes > KEPT_BYTES and len(self._answers) > 1:
            _, old = self._answers.popitem(last=False)
            self._bytes -= len(old)
        return answer

    def _shape(self, body: bytes) -> bytes:
        """A digest of the request without its numbers, dates, coordinates and scene ids, but with the grid's size."""
        parts = body.split(b'"')
        known = self._texts
        texts = [known.get(text) or self._learn(text) for text in parts[1::2]]
        # Punctuation says how long lists are, and so how many bands a constant has.
        marks = b"".join(parts[::2]).translate(None, _NUMERIC)
        digest = hashlib.blake2b(b'"'.join(texts), digest_size=16)
        digest.update(marks)
        for size in _SIZE.findall(body):
            digest.update(size)
        return digest.digest()

    def _learn(self, text: bytes) -> bytes:
        """What is left of a text: all of a word, the asset id of a scene, nothing of a date."""
        left = text
        folder, _, name = text.rpartition(b"/")
        if sum(48 <= byte <= 57 for byte in name) >= SCENE_DIGITS:
            left = folder + b"/#"
        if len(self._texts) >= KEPT_TEXTS:
            self._texts = {}
        self._texts[text] = left = left or b"#"
        return left


class MadeUp(Reader):
    """Reads no pixel: every band is a valid ramp of 1 to 100."""

    def read(self, node: Pixels, grid: Grid) -> Pair:
        ramp = np.arange(grid.height * grid.width, dtype=np.float64).reshape(grid.height, grid.width)
        return ramp % LARGEST_VALUE + 1.0, np.ones((grid.height, grid.width))
