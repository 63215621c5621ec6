"""Faults of a recipe that lie between its keys, its modalities and its files; each names the key to change.

It reads no more than the files a recipe names, for their checksums, and asks no source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from mmbuild.explain import Problem, suggest
from mmbuild.grid import LATTICE_M, at_gsd, box_from_corner
from mmbuild.modality import Modality
from mmbuild.recipe.models import FILE_KEYS, Recipe, WebmercatorGrid
from mmbuild.recipe.places import CITY_LISTS, CitiesSampler, XyzSampler
from mmbuild.recipe.quirks import known_quirks
from mmbuild.yamlfile import Document, Key

# A shard is held in memory by one task and is one object on disk (design rule 1).
SHARD_LIMIT_BYTES = 256 * 2**20
SMALLEST_SHARD = 8
# Beyond this a UTM chip is no longer "local": scale and north differ visibly across it.
LARGEST_CHIP_M = 100_000.0
VECTOR_FILES = (".geojson", ".json", ".gpkg", ".shp", ".parquet", ".fgb", ".zip")
TABLE_FILES = (".csv", ".tsv", ".txt")
# Keys whose value is a file when it ends like one, and otherwise the name of something known.
NAME_OR_FILE = {"ecoregions": VECTOR_FILES, "cities": TABLE_FILES}
SHAPEFILE_PARTS = (".shp", ".shx", ".dbf", ".prj", ".cpg")
# ``sandbox`` is the earthengine source over the offline Earth Engine, so modalities keep one block for both.
SOURCE_BLOCKS = {"sandbox": "earthengine"}


def check_modalities(recipe: Recipe) -> Iterator[Problem]:
    """Names that nothing defines: modalities, bands, anchors, sources."""
    known = recipe.known_modalities
    key: Key
    for name, use in recipe.modalities.items():
        if name not in known:
            close = suggest(name, list(known))
            named = close if close.startswith("did") else "see `mmbuild modalities`"
            fix = f"{named}, or define it in a folder modalities/ beside the recipe"
            yield Problem(key=("modalities", name), reason="is no known modality", fix=fix)
            continue
        if use.variant is not None and use.variant not in known:
            fix = f"{suggest(use.variant, list(known))}, or define it in a folder modalities/ beside the recipe"
            key = ("modalities", name, "variant")
            yield Problem(key=key, value=use.variant, reason="is no known modality", fix=fix)
            continue
        names = known[use.variant or name].band_names
        for index, band in enumerate(use.bands or ()):
            key = ("modalities", name, "bands", index)
            if band not in names:
                yield Problem(key=key, value=band, reason=f"is no band of {name}", fix=suggest(band, names))
            elif use.bands and band in use.bands[:index]:
                yield Problem(key=key, value=band, reason="is named twice", fix="name each band once")
        yield from _source_problems(recipe, name, known[use.variant or name])
    for key, name in _named(recipe):
        if name not in recipe.modalities:
            fix = f"add it to modalities, or {suggest(name, list(recipe.modalities))}"
            yield Problem(key=key, value=name, reason="is not among this recipe's modalities", fix=fix)


def _anchor_names(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    if recipe.anchor.modality is not None:
        yield ("anchor", "modality"), recipe.anchor.modality
    for index, name in enumerate(recipe.anchor.one_of or ()):
        yield ("anchor", "one_of", index), name


def _named(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """Every place outside ``modalities`` that names one of them."""
    yield from _anchor_names(recipe)
    if isinstance(recipe.sampler, XyzSampler) and recipe.sampler.covered_by is not None:
        yield ("sampler", "covered_by"), recipe.sampler.covered_by


def _source_problems(recipe: Recipe, name: str, modality: Modality) -> Iterator[Problem]:
    asked = recipe.modalities[name].source
    source = asked or recipe.source.name
    if modality.is_derived or SOURCE_BLOCKS.get(source, source) in modality.sources:
        return
    blocks = {block for m in recipe.known_modalities.values() for block in m.sources} - {"derived"}
    if SOURCE_BLOCKS.get(source, source) in blocks or asked is not None:
        key: Key = ("modalities", name, *(["source"] if asked else []))
        fix = f"use one of {', '.join(sorted(modality.sources))}, or say in its modality file where {source} keeps it"
        yield Problem(key=key, reason=f"{name} is not kept by source {source!r}", fix=fix)
    else:
        names = sorted(blocks | set(SOURCE_BLOCKS))
        yield Problem(key=("source", "name"), value=source, reason="is no known source", fix=suggest(source, names))


def check_together(recipe: Recipe) -> list[Problem]:
    """Faults between keys, once every name is known."""
    checks = (_quirks, _samples, _tiles, _cities, _chip, _anchor, _uses, _lattice)
    found = [problem for check in checks for problem in check(recipe)]
    return found or list(_shard(recipe))


def _quirks(recipe: Recipe) -> Iterator[Problem]:
    known = list(known_quirks())
    for index, name in enumerate(recipe.quirks):
        if name not in known:
            yield Problem(key=("quirks", index), value=name, reason="is no known quirk", fix=suggest(name, known))


def _samples(recipe: Recipe) -> Iterator[Problem]:
    if recipe.samples is None and recipe.sampler.kind != "points":
        reason = f"is missing: a sampler of kind {recipe.sampler.kind} has no end of its own"
        yield Problem(key=("samples",), reason=reason, fix="add it, such as samples: 64")


def _tiles(recipe: Recipe) -> Iterator[Problem]:
    if not isinstance(recipe.sampler, XyzSampler):
        return
    if not isinstance(recipe.grid, WebmercatorGrid):
        fix = "use a grid of kind webmercator, or a sampler of kind area"
        yield Problem(
            key=("grid", "kind"), value=recipe.grid.kind, reason="has no tiles, which the sampler xyz draws", fix=fix
        )
        return
    for index, tile in enumerate(recipe.sampler.tiles or ()):
        if int(tile.split("/")[0]) > recipe.grid.zoom:
            reason = f"is smaller than the tiles of the grid, whose zoom is {recipe.grid.zoom}"
            fix = "name a tile of a lower zoom, or raise grid.zoom"
            yield Problem(key=("sampler", "tiles", index), value=tile, reason=reason, fix=fix)


def _cities(recipe: Recipe) -> Iterator[Problem]:
    if not isinstance(recipe.sampler, CitiesSampler):
        return
    name = recipe.sampler.cities
    if name not in CITY_LISTS and not name.lower().endswith(TABLE_FILES):
        fix = f"use {' or '.join(CITY_LISTS)}, or a file that ends in {', '.join(TABLE_FILES)}"
        yield Problem(key=("sampler", "cities"), value=name, reason="is no known list of cities", fix=fix)
    if recipe.sampler.keep is not None and name == "geonames":
        reason, fix = "the list geonames has no columns to choose by", "remove it, or name another list"
        yield Problem(key=("sampler", "keep"), value=recipe.sampler.keep, reason=reason, fix=fix)


def _chip(recipe: Recipe) -> Iterator[Problem]:
    if recipe.grid.kind != "utm":
        return
    side = recipe.grid.gsd * recipe.grid.size
    reason = f"a chip of {recipe.grid.size} px at {recipe.grid.gsd:g} m is {side:g} m wide"
    fix = f"keep size x gsd between {LATTICE_M:g} m, the lattice it is snapped to, and {LARGEST_CHIP_M:g} m"
    if not LATTICE_M <= side <= LARGEST_CHIP_M:
        yield Problem(key=("grid", "size"), value=recipe.grid.size, reason=reason, fix=fix)


def _anchor(recipe: Recipe) -> Iterator[Problem]:
    anchor, defs = recipe.anchor, recipe.modality_defs
    for key, name in _anchor_names(recipe):
        if defs[name].time != "scene" or defs[name].same_scene_as is not None:
            fits = [n for n, m in defs.items() if m.time == "scene" and m.same_scene_as is None]
            fix = f"choose from {', '.join(fits)}" if fits else "add a modality with time: scene"
            yield Problem(key=key, value=name, reason="has no scenes of its own that could date a sample", fix=fix)
        elif anchor.min_clear is not None and defs[name].clear is None:
            reason = f"{name} has no rule for clear ground"
            fix = "remove min_clear, or add clear: to its modality file"
            yield Problem(key=("anchor", "min_clear"), value=anchor.min_clear, reason=reason, fix=fix)
    if anchor.clear_by is not None:
        yield from _clear_by(recipe, anchor.clear_by)
    yield from _published_draws(recipe)
    dated = recipe.sampler.kind == "points" and recipe.sampler.date_column is not None
    fix = "use a points sampler and name its date_column"
    if recipe.times is not None:
        yield from _several(recipe, dated)
        if recipe.times.kind == "seasons":
            return
    # A tile has the date of an image that covers it.
    dated |= isinstance(recipe.sampler, XyzSampler) and recipe.sampler.covered_by is not None
    if not anchor.years and not dated:
        reason = "is missing: places have no dates of their own"
        yield Problem(key=("anchor", "years"), reason=reason, fix=f"list years, such as [2019, 2020], or {fix}")
    if anchor.pick == "nearest" and not (dated or recipe.times):
        reason = "places have no dates to be near to"
        yield Problem(key=("anchor", "pick"), value=anchor.pick, reason=reason, fix=f"{fix}, or pick random")
    if anchor.max_days is not None and not dated:
        reason = "places have no dates to count from"
        yield Problem(key=("anchor", "max_days"), value=anchor.max_days, reason=reason, fix=f"{fix}, or remove it")


def _several(recipe: Recipe, dated: bool) -> Iterator[Problem]:
    """Faults of a recipe with several time steps, which has dates of its own."""
    anchor, times = recipe.anchor, recipe.times
    assert times is not None, "asked only of recipes that have them"
    if dated:
        reason = "places that have dates of their own cannot have several"
        yield Problem(key=("times",), reason=reason, fix="remove times, or sampler.date_column")
    if times.kind == "seasons" and anchor.years:
        reason = "the dates of times say which years"
        yield Problem(key=("anchor", "years"), value=anchor.years, reason=reason, fix="remove it")
    if times.kind == "seasons" and anchor.max_days is not None:
        fix = "remove it and set times.max_days"
        reason = "the reach around each date is that of times"
        yield Problem(key=("anchor", "max_days"), value=anchor.max_days, reason=reason, fix=fix)
    if times.at_least is not None and times.at_least > times.count:
        reason = f"there are {times.count} steps"
        yield Problem(key=("times", "at_least"), value=times.at_least, reason=reason, fix="lower it or remove it")


def _published_draws(recipe: Recipe) -> Iterator[Problem]:
    """Draws by MMEarth's seeds are a year of several in a row, one of two products, and one of all scenes."""
    anchor = recipe.anchor
    if anchor.windows is not None and len(anchor.windows) != len(anchor.years):
        reason = f"has {len(anchor.windows)} windows for {len(anchor.years)} years"
        yield Problem(key=("anchor", "windows"), reason=reason, fix="give one for each of anchor.years, in their order")
    if anchor.draws == "counter":
        return
    if len(anchor.one_of or ()) != 2 or anchor.pick != "random" or anchor.min_clear is not None or recipe.times:
        reason = "draws one of two products and one of its scenes, once"
        fix = "set anchor.one_of to two modalities, pick: random, min_clear: null and no times, or draws: counter"
        yield Problem(key=("anchor", "draws"), value=anchor.draws, reason=reason, fix=fix)
    if anchor.years != list(range(anchor.years[0], anchor.years[-1] + 1) if anchor.years else []):
        fix = "list every year from the first to the last, or set draws: counter"
        yield Problem(key=("anchor", "years"), value=anchor.years, reason="has a gap", fix=fix)


def _clear_by(recipe: Recipe, name: str) -> Iterator[Problem]:
    key = ("anchor", "clear_by")
    for product in recipe.anchor.products:
        modality = recipe.modality_defs[product]
        rules = [rule.modality for rule in (modality.clear, *modality.clear_others) if rule is not None]
        if name not in rules:
            fix = suggest(name, rules) if rules else "remove it"
            yield Problem(key=key, value=name, reason=f"tells nothing of clear ground of {product}", fix=fix)


def _uses(recipe: Recipe) -> Iterator[Problem]:
    yield from _composites(recipe)
    for name, modality in recipe.modality_defs.items():
        use, host = recipe.modalities[name], modality.same_scene_as
        if use.gsd is not None and use.finer is not None:
            reason = "says the same as finer, in metres"
            yield Problem(key=("modalities", name, "gsd"), value=use.gsd, reason=reason, fix="remove one of them")
        if host is not None and not recipe.hosts(host):
            reason = f"comes with the scene of {host}, which is not among this recipe's modalities"
            yield Problem(key=("modalities", name), reason=reason, fix=f"add {host} or remove {name}")
        is_led = modality.time != "scene" or host is not None
        if use.max_cloud is not None and (is_led or name in recipe.anchor.products):
            reason, fix = f"{name} has no scenes of its own to leave out", "remove it, or set anchor.max_cloud"
            yield Problem(key=("modalities", name, "max_cloud"), value=use.max_cloud, reason=reason, fix=fix)
        if use.max_days is not None and (modality.time != "scene" or host is not None):
            reason = f"{name} has no scene of its own to limit"
            yield Problem(key=("modalities", name, "max_days"), value=use.max_days, reason=reason, fix="remove it")
        if use.gsd is not None and modality.gsd is None:
            reason = f"{name} is one vector per chip and has no pixels"
            yield Problem(key=("modalities", name, "gsd"), value=use.gsd, reason=reason, fix="remove it")


def _composites(recipe: Recipe) -> Iterator[Problem]:
    """A composite needs windows to be made of, and a count needs a composite to count."""
    defs = recipe.modality_defs
    for name, use in recipe.modalities.items():
        place: Key = ("modalities", name)
        modality, kind = defs[name], use.composite
        scenes = modality.time == "scene" and modality.same_scene_as is None and modality.count_of is None
        if kind is not None and not scenes:
            reason = f"{name} has no scenes of its own to make one of"
            yield Problem(key=(*place, "composite"), value=kind, reason=reason, fix="remove it")
        if kind is not None and recipe.times is None:
            fix = "add times: {kind: months, count: 12}"
            yield Problem(key=(*place, "composite"), value=kind, reason="needs the time steps to make it of", fix=fix)
        if kind is not None and recipe.anchor.one_of and name in recipe.anchor.one_of:
            reason = "is drawn from several and cannot be a composite"
            yield Problem(key=(*place, "composite"), value=kind, reason=reason, fix="name it under anchor.modality")
        if use.max_scenes is not None and kind is None:
            reason = "limits a composite, and there is none"
            yield Problem(key=(*place, "max_scenes"), value=use.max_scenes, reason=reason, fix="add composite: median")
        host = modality.count_of
        if host is not None and (host not in recipe.modalities or recipe.modalities[host].composite is None):
            reason = f"counts the observations behind composites of {host}, of which there are none"
            yield Problem(key=place, reason=reason, fix=f"add modalities.{host}.composite: median, or remove {name}")


def _lattice(recipe: Recipe) -> Iterator[Problem]:
    """Every chip of a sample covers the same ground with whole pixels that nest (design rule 4)."""
    base, size = recipe.gsd_of_grid, recipe.grid.size
    box = box_from_corner(3857, 0.0, 0.0, gsd=base, size=size)
    sizes = {name: gsd for name in recipe.modalities if (gsd := recipe.gsd(name)) is not None}
    finest = min([*sizes.values(), base])
    for name, gsd in sizes.items():
        try:
            at_gsd(at_gsd(box, finest), gsd)
        except ValueError as error:
            fits = [f"{base * k:g}" for k in range(1, size + 1) if size % k == 0]
            fix = f"set modalities.{name}.gsd to {' or '.join(fits[:4])}, or change grid.size"
            yield Problem(key=("modalities", name, "gsd"), value=gsd, reason=str(error), fix=fix)


def _shard(recipe: Recipe) -> Iterator[Problem]:
    one = sum(prod(recipe.shape(name)) * m.np_dtype.itemsize for name, m in recipe.modality_defs.items())
    asked, fit = recipe.store.samples_per_shard, SHARD_LIMIT_BYTES // one
    if asked * one <= SHARD_LIMIT_BYTES:
        return
    reason = f"shards of {asked} samples hold {asked * one / 2**20:.0f} MiB; at most 256 MiB are allowed"
    if fit >= SMALLEST_SHARD:
        fix = f"at most {fit} samples fit"
    else:
        fix = f"only {fit} fit and {SMALLEST_SHARD} are the least; make grid.size smaller or store fewer modalities"
    yield Problem(key=("store", "samples_per_shard"), value=asked, reason=reason, fix=fix)


# -- files a recipe names


def named_files(data: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Keys of a recipe whose values are files, with the path as written."""
    for section, name in FILE_KEYS:
        written = (data.get(section) or {}).get(name)
        if written is not None and str(written).lower().endswith(NAME_OR_FILE.get(name, "")):
            yield (section, name), written


def locate(document: Document, key: Key, written: str) -> Path:
    """Absolute path of a file: relative to the recipe that names it, or to the working folder after ``--set``."""
    place = document.place(key)
    folder = Path() if place.startswith("--") else Path(place.rpartition(":")[0]).parent
    return (folder / written).resolve()


def checksum(path: Path) -> str:
    """sha256 of a file; of a Shapefile, of all its parts."""
    names = SHAPEFILE_PARTS if path.suffix.lower() == ".shp" else (path.suffix,)
    parts = [part for name in names if (part := path.with_suffix(name)).is_file()]
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def check_files(document: Document, sums: Mapping[str, str]) -> tuple[dict[str, Path], dict[str, str], list[Problem]]:
    """Paths and checksums of the files a recipe names, by the name as written, and what is wrong with them.

    sums: checksums the recipe already states; a file that has changed since is a fault.
    """
    paths: dict[str, Path] = {}
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for key, written in named_files(document.data):
        path = paths[written] = locate(document, key, written)
        if not path.is_file():
            fix = "check the path; it is relative to the file that names it"
            problems.append(Problem(key=key, value=written, reason="there is no such file", fix=fix))
            continue
        found[written] = checksum(path)
        if sums.get(written, found[written]) != found[written]:
            fix = "restore the file, or remove its line under files: to accept it"
            problems.append(Problem(key=("files", written), reason="the file has changed since", fix=fix))
    for written in sums.keys() - paths.keys():
        fix = "remove this line; mmbuild writes them itself"
        problems.append(Problem(key=("files", written), reason="the recipe names no such file", fix=fix))
    for name, kind in (("archive_root", "folder"), ("catalog", "file")):
        place = (document.data.get("source") or {}).get(name)
        if not isinstance(place, str) or "://" in place:
            continue
        paths[place] = locate(document, ("source", name), place)
        if not (paths[place].is_dir() if kind == "folder" else paths[place].is_file()):
            fix = "check the path; it is relative to the file that names it"
            problems.append(Problem(key=("source", name), value=place, reason=f"there is no such {kind}", fix=fix))
    return paths, found, problems
