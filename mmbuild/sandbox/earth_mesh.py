"""Coarse nodes around fine pixels: what is smooth at the scale of the nodes is worked out at them and interpolated.

Nodes lie at whole multiples of a step from the origin of a coordinate system, so that what a pixel gets depends on the
system and its place alone, never on the window, and all lattices of a system share the nodes. Six nodes per axis decide
a value (quintic Lagrange), by the same operations in the same order for a lattice and for scattered places.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from mmbuild.sandbox.earth_noise import Floats, Ints, Points, points
from mmbuild.sandbox.mgrs import to_lonlat

# Metres between nodes, and nodes per degree where the system is in degrees (37 m along a meridian).
STEP_M, PER_DEGREE = 40.0, 3000.0
# Pixels up to this size are read from nodes. Larger ones are fewer than the nodes, and so are those of 60 m, but what
# these belong to has finer bands that share the nodes.
LARGEST_M, LARGEST_DEG = 60.0, 1.0 / 5000.0
# Nodes before and after the one at or before a pixel.
BEFORE, STENCIL = 2, 6
# Blocks grow by this many nodes and end on whole multiples of it: lattices of other origins find theirs in them.
ROUNDED = 4
BLOCKS_KEPT = 64

Make = Callable[[Points], tuple[Floats, ...]]


def has_nodes(epsg: int, step: float) -> bool:
    """Whether pixels of this size of this system (metres or degrees) are interpolated between nodes."""
    return step <= (LARGEST_DEG if epsg == 4326 else LARGEST_M)


def weights(t: Floats) -> list[Floats]:
    """Weights of the six nodes for fractions t of the way from the third to the fourth."""
    away = [t - float(k - BEFORE) for k in range(STENCIL)]
    found = []
    for k in range(STENCIL):
        product = np.full_like(t, 1.0 / float(np.prod([k - m for m in range(STENCIL) if m != k])))
        for m in range(STENCIL):
            if m != k:
                product *= away[m]
        found.append(product)
    return found


def _in_steps(epsg: int, x: Floats, step_m: float = STEP_M) -> tuple[Ints, list[Floats]]:
    """The first of the six nodes of each coordinate, and their weights."""
    steps = x * PER_DEGREE if epsg == 4326 else x / step_m
    whole = np.floor(steps)
    return whole.astype(np.int64) - BEFORE, weights(steps - whole)


def _spreading(first: Ints, parts: Sequence[Floats], nodes: int) -> Any:
    """The matrix that spreads nodes to the places whose six nodes start at `first`.

    Compiled and sparse, so that a place's value is the sum of six products, first to last, however many are asked for;
    dense products add in an order that depends on their shape.
    """
    places = first[:, None] + np.arange(STENCIL)
    ends = np.arange(0, places.size + 1, STENCIL)
    return csr_array((np.stack(parts, axis=1).ravel(), places.ravel(), ends), shape=(first.size, nodes))


def _node_points(epsg: int, column: Ints, row: Ints, step_m: float = STEP_M) -> Points:
    if epsg == 4326:
        return points(column / PER_DEGREE, row / PER_DEGREE)
    return points(*to_lonlat(epsg, column * step_m, row * step_m))


class Block:
    """A rectangle of nodes and the fields already known at them; rows and columns count upwards with y and x."""

    def __init__(self, epsg: int, row: int, column: int, height: int, width: int) -> None:
        self.epsg, self.row, self.column, self.height, self.width = epsg, row, column, height, width
        self._fields: dict[Hashable, Floats] = {}
        self._lock = threading.Lock()

    @cached_property
    def points(self) -> Points:
        column, row = np.meshgrid(self.column + np.arange(self.width), self.row + np.arange(self.height))
        return _node_points(self.epsg, column.ravel(), row.ravel())

    def holds(self, epsg: int, row: int, column: int, height: int, width: int) -> bool:
        down = self.row <= row and row + height <= self.row + self.height
        return epsg == self.epsg and down and self.column <= column and column + width <= self.column + self.width

    def fields(self, key: Hashable, make: Make) -> Floats:
        """The fields under a key, (column, field, row), made at most once."""
        with self._lock:
            if key not in self._fields:
                parts = np.stack([part.reshape(self.height, self.width) for part in make(self.points)])
                self._fields[key] = np.ascontiguousarray(parts.transpose(2, 0, 1))
            return self._fields[key]


class Blocks:
    """The last blocks of nodes; safe to share between threads. It only saves time: a node's values are its place's."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.Lock()

    def around(self, epsg: int, row: int, column: int, height: int, width: int) -> Block:
        """A block that holds these nodes."""
        with self._lock:
            for name, block in reversed(self._kept.items()):
                if block.holds(epsg, row, column, height, width):
                    self._kept.move_to_end(name)
                    return block
            top, left = ((first - 1) // ROUNDED * ROUNDED for first in (row, column))
            down, right = (-(-(last + 1) // ROUNDED) * ROUNDED for last in (row + height, column + width))
            block = Block(epsg, top, left, down - top, right - left)
            self._kept[id(block)] = block
            while len(self._kept) > BLOCKS_KEPT:
                self._kept.popitem(last=False)
            return block


@dataclass(frozen=True, eq=False)
class Lattice:
    """The pixels of a window, row by row: coordinates of its columns and of its rows."""

    epsg: int
    x: Floats
    y: Floats
    blocks: Blocks

    def take(self, index: Ints) -> Picked:
        return Picked(self, index)

    @cached_property
    def _spread(self) -> tuple[Block, slice, Any, Any]:
        """The nodes, which of their rows are needed, and what spreads them to the columns and rows of pixels."""
        columns, across = _in_steps(self.epsg, self.x)
        rows, down = _in_steps(self.epsg, self.y)
        top, left = int(rows.min()), int(columns.min())
        height, width = (int(np.ptp(first)) + STENCIL for first in (rows, columns))
        block = self.blocks.around(self.epsg, top, left, height, width)
        needed = slice(top - block.row, top - block.row + height)
        return (
            block,
            needed,
            _spreading(columns - block.column, across, block.width),
            _spreading(rows - top, down, height),
        )

    def fields(self, key: Hashable, make: Make) -> list[Floats]:
        """Fields interpolated to the pixels, each an array of its own."""
        block, needed, across, down = self._spread
        nodes = block.fields(key, make)[:, :, needed]
        width, count, height = nodes.shape
        lines = (across @ nodes.reshape(width, count * height)).reshape(-1, count, height)
        return [(down @ field).ravel() for field in np.ascontiguousarray(lines.transpose(1, 2, 0))]


@dataclass(frozen=True, eq=False)
class Picked:
    """Some pixels of a lattice."""

    lattice: Lattice
    index: Ints

    def take(self, index: Ints) -> Picked:
        return Picked(self.lattice, self.index[index])

    def fields(self, key: Hashable, make: Make) -> list[Floats]:
        """Fields interpolated to the pixels, each an array of its own."""
        return [field[self.index] for field in self.lattice.fields(key, make)]


@dataclass(frozen=True, eq=False)
class Scattered:
    """Places in no order, by their coordinates; nothing is kept. step_m: metres between nodes of a projected system."""

    epsg: int
    x: Floats
    y: Floats
    step_m: float = STEP_M

    def take(self, index: Ints) -> Scattered:
        return Scattered(self.epsg, self.x[index], self.y[index], self.step_m)

    @property
    def nodes(self) -> Points:
        """The nodes that are needed."""
        return self._spread[0]

    @cached_property
    def _spread(self) -> tuple[Points, Any, Any]:
        """The nodes, and what spreads them across to six per place and down to the places."""
        columns, across = _in_steps(self.epsg, self.x, self.step_m)
        rows, down = _in_steps(self.epsg, self.y, self.step_m)
        steps = np.arange(STENCIL)
        keys, top, left, width = self._keys(rows[:, None, None] + steps[:, None], columns[:, None, None] + steps)
        found, places = keys
        ends = np.arange(0, places.size + 1, STENCIL)
        lines = csr_array(
            (np.repeat(np.stack(across, axis=1), STENCIL, axis=0).ravel(), places.ravel(), ends),
            shape=(rows.size * STENCIL, found.size),
        )
        return (
            _node_points(self.epsg, found % width + left, found // width + top, self.step_m),
            lines,
            _spreading(STENCIL * np.arange(rows.size), down, rows.size * STENCIL),
        )

    @staticmethod
    def _keys(row: Ints, column: Ints) -> tuple[tuple[Ints, Ints], int, int, int]:
        """Numbers of the nodes, and which of them each place takes; first row and column, and nodes in a row."""
        if not row.size:
            return (np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64)), 0, 0, 1
        top, left, height, width = int(row.min()), int(column.min()), int(np.ptp(row)) + 1, int(np.ptp(column)) + 1
        keys = (row - top) * width + (column - left)
        # Places that fill a rectangle need all nodes of it, which are quicker told than sorted out.
        if height * width <= keys.size:
            return (np.arange(height * width), keys), top, left, width
        return np.unique(keys, return_inverse=True), top, left, width

    def spread(self, fields: Floats) -> Floats:
        """Fields at the nodes (field, node) interpolated to the places (field, place)."""
        _, across, down = self._spread
        return np.ascontiguousarray((down @ (across @ np.ascontiguousarray(fields.T))).T)

    def fields(self, key: Hashable, make: Make) -> list[Floats]:
        """Fields interpolated to the places, each an array of its own."""
        return list(self.spread(np.stack(make(self.nodes))))


def points_on(mesh: Lattice | Scattered) -> Points:
    """The points of a mesh. In a projected system they are interpolated too: to a billionth of a metre there."""
    if mesh.epsg == 4326:
        x, y = (mesh.x, mesh.y) if isinstance(mesh, Scattered) else _crossed(mesh)
        vectors = mesh.fields("vector", lambda p: (p.x, p.y, p.z))
        return Points(_wrapped(x), y, vectors[0], vectors[1], vectors[2], mesh)
    meridian = 6.0 * (mesh.epsg % 100) - 183.0
    lon, lat, *vector = mesh.fields("place", lambda p: (_wrapped(p.lon - meridian), p.lat, p.x, p.y, p.z))
    return Points(_wrapped(lon + meridian), lat, vector[0], vector[1], vector[2], mesh)


def _crossed(mesh: Lattice) -> tuple[Floats, Floats]:
    """x and y of every pixel, row by row."""
    x, y = np.meshgrid(mesh.x, mesh.y)
    return x.ravel(), y.ravel()


def _wrapped(lon: Floats) -> Floats:
    return lon - 360.0 * np.rint(lon / 360.0)
