"""Which samples a loader sees: those of a split that pass a filter, straight from items.parquet, with nothing copied.

A filter is an expression such as ``biome == 4 and radar.delta_days < 3 and optic.present``; it is parsed here and
never run as Python.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmbuild.cube import Corpus
from mmbuild.errors import IntegrityError, UserError
from mmbuild.stream.index import Index, numbers

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal, ast.NotEq: pc.not_equal, ast.Lt: pc.less, ast.LtE: pc.less_equal, ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}  # fmt: skip
_FIX = "write e.g. biome == 4 and radar.present and abs(radar.delta_days) < 3 and lat > 0"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a split in catalogue order, one entry each; time: anchor in UTC seconds or NO_TIME."""

    ids: pa.Array
    slots: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.slots)

    def ids_at(self, positions: np.ndarray) -> list[str]:
        # An Arrow array made of numpy's would import pandas.
        at = pa.Array.from_buffers(pa.int64(), len(positions), [None, pa.py_buffer(np.ascontiguousarray(positions))])
        found: list[str] = self.ids.take(at).to_pylist()
        return found


def read_catalogue(corpus: Corpus) -> bytes:
    """What items.parquet holds; UserError without a catalogue."""
    try:
        return corpus.store.get("items.parquet")
    except FileNotFoundError:
        place = corpus.store.url
        raise UserError("there is no catalogue yet", place, f"make it: mmbuild catalog {place}") from None


def find_samples(data: bytes, index: Index, split: str | None, where: str | None, *, place: str) -> Samples:
    """The samples of a split that pass the filter ``where``, by slot. data: the catalogue; place: where it lies.

    Raises UserError for a split that is unknown or empty (listing those that are not), and for a filter that cannot be
    read or that nothing passes.
    """
    schema = pq.read_schema(pa.BufferReader(data))
    condition = None if where is None else _Filter(schema, index, where)
    columns = ["id", "split", "mmbuild:index", *(condition.columns if condition else ())]
    items = pq.ParquetFile(pa.BufferReader(data)).read(columns=list(dict.fromkeys(columns)))
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(items["split"]).to_pylist()}
    if split is not None:
        items = items.filter(pc.equal(items["split"], split))
    if len(items) == 0:
        known = ", ".join(f"{name or 'none'} {count}" for name, count in sorted(counts.items())) or "no samples"
        raise UserError(f"no sample in split {split!r}", place, f"the catalogue has: {known}")
    if condition is not None:
        before = len(items)
        items = items.filter(condition.mask(items))
        if len(items) == 0:
            raise UserError(f"where: no sample of {before} passes {where!r}", place, "loosen the filter")
    items = items.sort_by("mmbuild:index")
    slots = numbers(items["mmbuild:index"]).astype(np.int64)
    lost = np.flatnonzero((slots >= index.n_slots) | np.isnan(index.lon[np.minimum(slots, index.n_slots - 1)]))
    if len(lost):
        sample_id = items["id"][int(lost[0])].as_py()
        raise IntegrityError(
            f"{place}: sample {sample_id} is catalogued but has no commit record; run mmbuild catalog {place}"
        )
    return Samples(
        ids=items["id"].combine_chunks(), slots=slots, lon=index.lon[slots], lat=index.lat[slots],
        time=index.anchor_s[slots],
    )  # fmt: skip


class _Filter:
    """A parsed filter: columns of items.parquet, modalities' assets with what is known of them, and constants."""

    def __init__(self, schema: pa.Schema, index: Index, text: str) -> None:
        self._schema, self._index, self._text = schema, index, text
        self.columns: list[str] = []
        try:
            self._tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            raise UserError(f"where: {text!r} is not an expression ({error.msg})", fix=_FIX) from None
        self._visit(self._tree, None)

    def mask(self, items: pa.Table) -> pa.ChunkedArray:
        """True for the rows that pass; a row of which something asked is unknown does not."""
        found = self._visit(self._tree, items)
        if not pa.types.is_boolean(found.type):
            raise UserError(f"where: {self._text!r} is not true or false", fix=_FIX)
        return pc.fill_null(found, False)

    def _visit(self, node: ast.expr, items: pa.Table | None) -> Any:
        if isinstance(node, ast.BoolOp):
            combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            values = [self._visit(value, items) for value in node.values]
            return None if items is None else _fold(combine, values)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            value = self._visit(node.operand, items)
            return None if items is None else (pc.invert if isinstance(node.op, ast.Not) else pc.negate)(value)
        if isinstance(node, ast.Compare):
            return self._compare(node, items)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "abs"
            and len(node.args) == 1
        ):
            value = self._visit(node.args[0], items)
            return None if items is None else pc.abs(value)
        if isinstance(node, ast.Constant):
            return None if items is None else pa.scalar(node.value)
        if isinstance(node, ast.Name):
            return self._column(node.id, items)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return self._of_asset(node.value.id, node.attr, items)
        raise UserError(f"where: {ast.unparse(node)!r} cannot be asked", fix=_FIX)

    def _compare(self, node: ast.Compare, items: pa.Table | None) -> Any:
        left, answers = self._visit(node.left, items), []
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                try:
                    values = list(ast.literal_eval(right_node))
                except (ValueError, TypeError):
                    raise UserError(
                        f"where: in {ast.unparse(right_node)!r} is no list of constants", fix=_FIX
                    ) from None
                if items is not None:
                    found = pc.is_in(left, value_set=pa.array(values).cast(left.type))
                    answers.append(pc.invert(found) if isinstance(op, ast.NotIn) else found)
                continue
            if type(op) not in _COMPARE:
                raise UserError(f"where: {ast.unparse(node)!r} cannot be asked", fix=_FIX)
            right = self._visit(right_node, items)
            if items is not None:
                answers.append(self._ask(_COMPARE[type(op)], left, right))
            left = right
        return None if items is None else _fold(pc.and_kleene, answers)

    def _ask(self, compare: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
        try:
            return compare(*_dated(left, right))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, ValueError) as error:
            reason = f"where: {self._text!r} compares {left.type} with {right.type}"
            raise UserError(reason, fix=_FIX) from error

    def _column(self, name: str, items: pa.Table | None) -> Any:
        if name in ("lon", "lat"):
            if items is None:
                return None
            values = self._index.lon if name == "lon" else self._index.lat
            slots = np.minimum(numbers(items["mmbuild:index"]), self._index.n_slots - 1)
            return pa.array(values[slots])
        if name not in self._schema.names:
            plain = [n for n in self._schema.names if n.isidentifier() and n not in ("assets", "links", "geometry")]
            raise UserError(
                f"where: the catalogue has no column {name!r}", fix=f"choose from lon, lat, {', '.join(plain)}"
            )
        self.columns.append(name)
        return None if items is None else items[name]

    def _of_asset(self, modality: str, what: str, items: pa.Table | None) -> Any:
        assets = self._schema.field("assets").type if "assets" in self._schema.names else pa.struct([])
        names = [assets.field(i).name for i in range(assets.num_fields)]
        if modality not in names:
            raise UserError(f"where: no modality {modality!r} in this catalogue", fix=f"choose from {', '.join(names)}")
        kind = assets.field(names.index(modality)).type
        known = {kind.field(i).name for i in range(kind.num_fields)}
        field = next((name for name in (what, f"mmbuild:{what}") if name in known), None)
        if field is None and what != "present":
            plain = sorted(name.removeprefix("mmbuild:") for name in known)
            raise UserError(f"where: {modality} has no {what!r}", fix=f"choose from present, {', '.join(plain)}")
        self.columns.append(f"assets.{modality}.{field or 'href'}")
        if items is None:
            return None
        asset = pc.struct_field(items["assets"], modality)
        return pc.is_valid(pc.struct_field(asset, "href")) if field is None else pc.struct_field(asset, field)


def _fold(combine: Callable[[Any, Any], Any], values: list[Any]) -> Any:
    found = values[0]
    for value in values[1:]:
        found = combine(found, value)
    return found


def _dated(left: Any, right: Any) -> tuple[Any, Any]:
    """A text beside a time is a time: '2020-06-01'."""
    if pa.types.is_timestamp(left.type) and pa.types.is_string(right.type):
        return left, pa.scalar(_utc(right.as_py()), left.type)
    if pa.types.is_timestamp(right.type) and pa.types.is_string(left.type):
        return pa.scalar(_utc(left.as_py()), right.type), right
    return left, right


def _utc(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
