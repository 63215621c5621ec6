"""What a cube says of itself: its groups, the metadata of its arrays and its coordinates, never a chip.

The same records give the same bytes, and objects that would not change are not written.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmbuild.cube import CUBE, ArrayLayout, put_if_changed
from mmbuild.records import TIMESTAMP
from mmbuild.store import Store

if TYPE_CHECKING:
    from mmbuild.cube import Corpus


def write_tree(
    store: Store,
    arrays: Mapping[str, ArrayLayout],
    slots: int,
    root: pa.Table | None,
    attributes: Mapping[str, Any],
) -> None:
    """Write the cube's groups, array metadata and coordinates (never chip data).

    root: one row per slot with the per-sample coordinates, None before any sample is known; datetimes come from its
    columns ``datetime:<modality>``, lists of one per time step.
    """
    for key, data in sorted(_tree(arrays, slots, root, attributes).items()):
        put_if_changed(store, f"{CUBE}/{key}", data)


def _tree(
    arrays: Mapping[str, ArrayLayout], slots: int, root: pa.Table | None, attributes: Mapping[str, Any]
) -> dict[str, bytes]:
    import zarr

    objects: dict[str, Any] = {}
    memory = zarr.storage.MemoryStore(objects)
    group = zarr.create_group(memory, zarr_format=3, attributes=dict(attributes))
    for name in [] if root is None else root.column_names:
        if root is not None and not name.startswith("datetime:"):
            values = _values(root[name])
            _coordinate(group, name, values, ("sample", "affine")[: values.ndim])
    for layout in arrays.values():
        _array_group(group, layout, slots, root)
    with warnings.catch_warnings():
        # Not in the Zarr 3 specification yet, and ignored by readers that do not know it; on an object store it
        # saves a reader one request for every array.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=zarr.errors.ZarrUserWarning)
        for path in (*arrays, ""):
            zarr.consolidate_metadata(memory, path=path)
    return {key: buffer.to_bytes() for key, buffer in objects.items() if "/data/c/" not in key}


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """A column as an array: (row,), or (row, width) of a list of fixed width; texts as numpy's own."""
    if pa.types.is_fixed_size_list(column.type):
        flat: np.ndarray = column.combine_chunks().flatten().to_numpy()
        return flat.reshape(len(column), column.type.list_size)
    values: np.ndarray = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _array_group(root_group: Any, layout: ArrayLayout, slots: int, root: pa.Table | None) -> None:
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

    modality = layout.modality
    group = root_group.create_group(modality.name, attributes=_about(layout))
    # Shuffling values of one byte does nothing but cost time.
    shuffle: Any = "shuffle" if modality.np_dtype.itemsize > 1 else "noshuffle"
    cname: Any = layout.codec
    group.create_array(
        "data",
        shape=(slots, layout.times, *layout.chip),
        chunks=(1, 1, *layout.chip),
        shards=(layout.samples_per_shard, layout.times, *layout.chip),
        dtype=modality.np_dtype,
        fill_value=modality.fill.item(),
        serializer=BytesCodec(endian="little"),
        compressors=[
            BloscCodec(cname=cname, clevel=layout.level, shuffle=shuffle, typesize=modality.np_dtype.itemsize),
            Crc32cCodec(),
        ],
        dimension_names=layout.dims,
        # xarray masks by missing_value; the coordinates are found by the CF attribute.
        attributes={
            "missing_value": modality.fill.item(),
            "coordinates": "datetime" if root is not None else "",
        },
    )
    _coordinate(group, "band", np.array(modality.band_names, dtype=str), ("band",))
    column = f"datetime:{modality.name}"
    if root is not None and column in root.column_names:
        flat = root[column].combine_chunks().flatten()
        millis = flat.cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
        units = {"units": "milliseconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian"}
        _coordinate(group, "datetime", millis.reshape(slots, layout.times), ("sample", "time"), units)


def _about(layout: ArrayLayout) -> dict[str, Any]:
    modality = layout.modality
    return {
        "title": modality.title, "level": modality.level, "values": modality.values, "gsd": layout.gsd,
        "nodata": modality.fill.item(), "licence": modality.licence, "attribution": modality.attribution,
        "bands": [band.model_dump(mode="json", exclude_none=True) for band in modality.bands],
        "classes": {str(item.code): item.name for item in modality.classes},
    }  # fmt: skip


def _coordinate(
    group: Any,
    name: str,
    values: np.ndarray,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """A small uncompressed array in one chunk: coordinates are read whole."""
    dtype: Any = "str" if values.dtype.kind == "U" else values.dtype
    array = group.create_array(
        name, shape=values.shape, chunks=tuple(max(1, n) for n in values.shape), dtype=dtype, compressors=None,
        dimension_names=dims, attributes=dict(attributes or {}),
    )  # fmt: skip
    array[...] = values


def root_table(corpus: Corpus, splits: Mapping[int, str]) -> pa.Table:
    """The per-sample coordinates of the cube's root, and each modality's datetimes, one row per slot.

    splits: slot -> split; a slot that is not stored has none. transform: affine (a, b, c, d, e, f) of the sample grid.
    A slot that is not built yet has an id and nothing else.
    """
    records = corpus.samples(["sample_id", "sample_status", "lon", "lat", "epsg", "x0", "y0", "tags"])
    slots = np.arange(corpus.n_slots)
    known = records["slot"].to_numpy()
    row = np.full(corpus.n_slots, -1)
    row[known] = np.arange(len(known))
    samples = records.take(pa.array(row, mask=row < 0))
    gsd = corpus.recipe.gsd_of_grid
    x0, y0 = (samples[name].to_numpy(zero_copy_only=False) for name in ("x0", "y0"))
    transform = np.full((len(slots), 6), np.nan)
    transform[known] = np.stack([np.broadcast_to(v, len(slots)) for v in (gsd, 0.0, x0, 0.0, -gsd, y0)], axis=1)[known]
    ids = pc.utf8_lpad(pa.array(slots).cast(pa.string()), 6, "0")
    columns = {
        "id": pc.fill_null(samples["sample_id"], ids),
        "lon": pc.fill_null(samples["lon"], np.nan), "lat": pc.fill_null(samples["lat"], np.nan),
        "crs": pc.fill_null(pc.binary_join_element_wise("EPSG:", samples["epsg"].cast(pa.string()), ""), ""),
        "transform": pa.FixedSizeListArray.from_arrays(pa.array(transform.ravel()), 6),
        "status": pc.fill_null(samples["sample_status"], ""),
        "split": pa.array([splits.get(slot, "") for slot in slots.tolist()], pa.string()),
        "tags": pc.fill_null(samples["tags"], "{}"),
    }  # fmt: skip
    return pa.table(columns | {f"datetime:{name}": times for name, times in _times(corpus).items()})


def _times(corpus: Corpus) -> dict[str, pa.Array]:
    """The dates of every modality at every slot, a list of one per time step, null where there is none."""
    nothing = np.datetime64("NaT")
    dates = {
        name: np.full((corpus.n_slots, corpus.shape(name)[0]), nothing, "datetime64[ms]") for name in corpus.modalities
    }
    for part in corpus.record_parts(["slot", "modality", "time", "datetime"]):
        for name, own in dates.items():
            rows = part.filter(pc.equal(part["modality"], name))
            place = rows["slot"].to_numpy(), rows["time"].to_numpy()
            own[place] = rows["datetime"].to_numpy().astype("datetime64[ms]")
    return {
        name: pa.FixedSizeListArray.from_arrays(pa.array(own.ravel()).cast(TIMESTAMP), own.shape[1])
        for name, own in dates.items()
    }


def root_attributes(corpus: Corpus) -> dict[str, Any]:
    """What the cube says of itself to people who open it alone."""
    return {
        "title": corpus.recipe.title,
        "name": corpus.recipe.name,
        "licence": corpus.recipe.licence,
        "mmbuild:digest": corpus.digest,
        "mmbuild:synthetic": corpus.synthetic,
    }
