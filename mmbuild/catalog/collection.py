"""The STAC Collection of a corpus: what is really inside, under which licences, with which statistics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pystac

from mmbuild.catalog.items import PROJECTION, without_nulls
from mmbuild.modality import Band, Modality
from mmbuild.recipe import Recipe

if TYPE_CHECKING:
    from mmbuild.cube import Corpus

ITEMS, COLLECTION = "items.parquet", "collection.json"
PARQUET_TYPE = "application/vnd.apache.parquet"
# The versions that go with the common ``bands`` of STAC 1.1.
EXTENSIONS = [
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    PROJECTION,
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
]
_SPDX = re.compile(r"[\w\-.+]+")
_SYNTHETIC = "Synthetic values from an offline Earth, no observations."


def build_collection(corpus: Corpus, items: pa.Table, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The STAC Collection of what is stored: modalities without a chip are not in it, nor are their licences.

    items: of all stored samples; their assets are not needed.
    """
    recipe = corpus.recipe
    chips = _chips(corpus)
    inside = {name: m for name, m in corpus.modalities.items() if chips.get(name)}
    pages = licence_pages(recipe, inside, corpus.synthetic)
    splits = pc.value_counts(items["split"]).to_pylist()
    about = recipe.description or recipe.title
    return {
        "type": "Collection",
        "stac_version": pystac.get_stac_version(),
        "stac_extensions": EXTENSIONS,
        "id": recipe.name,
        "title": recipe.title,
        "description": f"{_SYNTHETIC} {about}" if corpus.synthetic else about,
        "keywords": [*(["synthetic"] if corpus.synthetic else []), *inside],
        "license": spdx_of(recipe),
        "providers": providers_of(inside, corpus.synthetic),
        "extent": {
            "spatial": {"bbox": [_bbox(items)]},
            "temporal": {"interval": [_interval(items, recipe.anchor.years)]},
        },
        "summaries": _summaries(items, [g for name in inside if (g := corpus.gsd(name)) is not None]),
        "links": [
            {"rel": "items", "href": f"./{ITEMS}", "type": PARQUET_TYPE, "title": "Items (stac-geoparquet)"},
            *({"rel": "license", "href": url, "title": text} for text, url in pages),
        ],
        "assets": _files(),
        "item_assets": {
            name: about_modality(m, corpus.gsd(name), chips[name], statistics["modalities"].get(name, {}))
            for name, m in inside.items()
        },
        "mmbuild:synthetic": corpus.synthetic,
        **({"mmbuild:unknown": unknown} if (unknown := corpus.lock["source"].get("unknown")) else {}),
        "mmbuild:digest": corpus.digest,
        "mmbuild:samples": {"slots": corpus.n_slots, "stored": len(items)},
        "mmbuild:splits": {s["values"] or "none": s["counts"] for s in sorted(splits, key=lambda s: s["values"])},
        "mmbuild:licence": recipe.licence,
        "mmbuild:licences": list(licences_of(corpus.recipe, inside, corpus.synthetic)),
        **_taster(corpus),
    }


def _taster(corpus: Corpus) -> dict[str, Any]:
    """What a taster was cut out of, and how far its shares are from its parent's."""
    about = corpus.lock.get("taster")
    return {} if about is None else {"mmbuild:taster": {key: about[key] for key in about if key != "asked"}}


def _chips(corpus: Corpus) -> Counter[str]:
    """Stored chips of each modality, over all its time steps."""
    counts: Counter[str] = Counter()
    for part in corpus.record_parts(["modality", "status", "sample_status"]):
        is_stored = pc.and_(pc.equal(part["status"], "stored"), pc.equal(part["sample_status"], "stored"))
        counts.update(part.filter(is_stored)["modality"].to_pylist())
    return counts


def _bbox(items: pa.Table) -> list[float]:
    """West, south, east, north of all items; west > east when the smallest box crosses the antimeridian."""
    if not len(items):
        return [-180.0, -90.0, 180.0, 90.0]
    boxes = items["bbox"].combine_chunks()
    west, south, east, north = (boxes.field(i).to_numpy() for i in range(4))
    lat = float(south.min()), float(north.max())
    if (west <= east).all():
        return [float(west.min()), lat[0], float(east.max()), lat[1]]
    # The widest gap between the items, going east, is outside.
    order = np.argsort(west)
    reach = np.maximum.accumulate(np.where(east < west, east + 360.0, east)[order])
    gaps = np.append(west[order][1:], west[order][0] + 360.0) - reach
    widest = int(np.argmax(gaps))
    start = west[order][(widest + 1) % len(order)]
    end = reach[widest] - 360.0 if reach[widest] > 180.0 else reach[widest]
    return [float(start), lat[0], round(float(end), 7), lat[1]]


def _interval(items: pa.Table, years: Sequence[int]) -> list[str | None]:
    """First and last time of any item; the recipe's years when there are no items."""
    names = [name for name in ("datetime", "start_datetime", "end_datetime") if name in items.column_names]
    times = [t for name in names for t in pc.min_max(items[name]).as_py().values() if t is not None]
    if not times:
        return [f"{min(years)}-01-01T00:00:00Z", f"{max(years) + 1}-01-01T00:00:00Z"] if years else [None, None]
    return [f"{t:%Y-%m-%dT%H:%M:%S}.{t.microsecond // 1000:03d}Z" for t in (min(times), max(times))]


def _summaries(items: pa.Table, gsds: Sequence[float]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "proj:code": sorted(set(items["proj:code"].to_pylist())),
        "gsd": sorted(set(gsds)),
        "split": sorted(set(items["split"].to_pylist())),
    }
    return {key: values for key, values in found.items() if values}


def _files() -> dict[str, Any]:
    """The other files of a corpus, as assets of the collection."""
    rows = (
        ("items", ITEMS, PARQUET_TYPE, "stac-items", "One STAC item per stored sample (stac-geoparquet)"),
        ("cube", "cube.zarr", pystac.MediaType.ZARR.value, "data", "All chips, one Zarr group per modality"),
        ("locations", "locations.parquet", PARQUET_TYPE, "metadata", "Candidate places of every slot (GeoParquet)"),
        ("statistics", "stats.json", "application/json", "metadata", "Statistics of the train split, stored units"),
        ("splits", "splits.json", "application/json", "metadata", "The split rule, counts and distances"),
        ("recipe", "recipe.yaml", "application/yaml", "metadata", "The recipe that determines this corpus"),
    )
    return {
        key: {"href": f"./{name}", "type": kind, "roles": [role], "title": title}
        for key, name, kind, role, title in rows
    }


def spdx_of(recipe: Recipe) -> str:
    """The corpus's own licence as STAC wants it."""
    return recipe.licence if _SPDX.fullmatch(recipe.licence) else "other"


def _is_imitation(modality: Modality, synthetic: bool | None) -> bool:
    """True for values of the offline Earth: the modality's makers and licence have no part in them."""
    return bool(synthetic) and not modality.is_derived


def licences_of(recipe: Recipe, inside: Mapping[str, Modality], synthetic: bool | None) -> Iterator[dict[str, Any]]:
    """Each licence with its attribution and the modalities under it; imitations are under the corpus's own."""
    groups: dict[tuple[str, str | None, str], list[str]] = {}
    for name, m in inside.items():
        own = (m.licence, m.licence_url, m.attribution)
        key = (recipe.licence, None, _SYNTHETIC) if _is_imitation(m, synthetic) else own
        groups.setdefault(key, []).append(name)
    for (licence, url, attribution), names in groups.items():
        entry = {"licence": licence, "url": url, "attribution": attribution, "modalities": names}
        yield without_nulls(entry)


def licence_pages(recipe: Recipe, inside: Mapping[str, Modality], synthetic: bool | None) -> list[tuple[str, str]]:
    """Names and addresses of the licences that have a page, each once."""
    pages = [(entry["licence"], entry["url"]) for entry in licences_of(recipe, inside, synthetic) if "url" in entry]
    return list(dict.fromkeys(pages))


def providers_of(inside: Mapping[str, Modality], synthetic: bool | None) -> list[dict[str, Any]]:
    """Makers and hosts of what is inside, each once with all its roles."""
    roles: dict[tuple[str, str | None], list[str]] = {}
    for m in inside.values():
        for provider in () if _is_imitation(m, synthetic) else m.providers:
            known = roles.setdefault((provider.name, provider.url), [])
            known += [role for role in provider.roles if role not in known]
    return [without_nulls({"name": name, "url": url, "roles": own}) for (name, url), own in roles.items()]


def about_modality(m: Modality, gsd: float | None, chips: int | None, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The item_assets entry of a modality."""
    bands = statistics.get("bands", {})
    entry = {
        "title": m.title,
        "description": m.description or None,
        "type": pystac.MediaType.ZARR.value,
        "roles": ["data"],
        "gsd": gsd,
        "bands": [_band(m, band, bands.get(band.name, {})) for band in m.bands],
        "classification:classes": _classes(m, bands) if m.classes else None,
        "mmbuild:level": m.level,
        "mmbuild:values": m.values,
        "mmbuild:time": m.time,
        "mmbuild:resampling": m.resampling,
        "mmbuild:alias": m.alias,
        "mmbuild:chips": chips,
    }
    return without_nulls(entry)


def _band(m: Modality, band: Band, found: Mapping[str, Any]) -> dict[str, Any]:
    """A band with STAC's own names; statistics are those of the stored values."""
    measured = {
        "minimum": found.get("min"),
        "maximum": found.get("max"),
        "mean": found.get("mean"),
        "stddev": found.get("std"),
        "count": found["count"] + found["nodata_count"] if found.get("count") else None,
        "valid_percent": found["valid_fraction"] * 100 if found.get("count") else None,
    }
    is_scaled = (band.scale, band.offset) != (1.0, 0.0)
    entry = {
        "name": band.name,
        "description": band.description or None,
        "gsd": band.gsd,
        "data_type": m.dtype,
        "nodata": _number(m.fill.item()),
        "unit": band.unit,
        "eo:center_wavelength": band.wavelength_um,
        "eo:full_width_half_max": band.fwhm_um,
        "raster:scale": band.scale if is_scaled else None,
        "raster:offset": band.offset if is_scaled else None,
        "mmbuild:valid_range": list(band.valid_range),
        "statistics": without_nulls(measured) or None,
    }
    return without_nulls(entry)


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity; STAC spells them."""
    if np.isfinite(value):
        return value
    return "nan" if value != value else "inf" if value > 0 else "-inf"


def _classes(m: Modality, bands: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes with how often the train split shows them, over all bands."""
    counts = [band["classes"] for band in bands.values() if "classes" in band]
    return [
        without_nulls(
            {
                "value": c.code,
                "name": re.sub(r"[^0-9A-Za-z]+", "-", c.name).strip("-") or f"class-{c.code}",
                "description": c.name,
                "color_hint": c.color and c.color.removeprefix("#").upper(),
                "count": sum(band.get(str(c.code), 0) for band in counts) if counts else None,
            }
        )
        for c in m.classes
    ]
