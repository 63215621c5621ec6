"""Pixels from cloud-optimised GeoTIFFs that a STAC catalogue lists: an API, static files, or a stac-geoparquet table.

It searches items, reads windows of their assets and puts them on the sample's grid by the rules of ``align``; which
scene is taken is not its business. Products that no item holds as pixels (monthly climate, yearly composites) are
refused where a modality file claims otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from mmbuild.align import FULLY_VALID, layered, outline
from mmbuild.choose import Choice, Sample, Scene, scene_index
from mmbuild.errors import SourceError, UserError
from mmbuild.modality import Clear, Modality
from mmbuild.sources import Ask, SourceSpec, Usage
from mmbuild.sources.stac.assets import Asset, assets_of
from mmbuild.sources.stac.blocks import Block, Entry, block_of
from mmbuild.sources.stac.catalogues import Bbox, Catalogue, Item, open_catalogue, time_of
from mmbuild.throttle import Gate, RetryBudget, Spent, with_retries

if TYPE_CHECKING:
    import geopandas as gpd

Answer = TypeVar("Answer")
# One band on a grid and where it is valid, both (y, x).
Layer = tuple[np.ndarray, np.ndarray]


def open(
    spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float], gate: Gate | None = None
) -> Stac:
    """Open the catalogue that the spec names; UserError when it names none or one that cannot be read."""
    return Stac(spec, modalities, gsd, gate)


class Stac:
    """The Source over a STAC catalogue; ``gsd`` says at which pixel size each modality is stored."""

    def __init__(
        self, spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float], gate: Gate | None = None
    ) -> None:
        self.usage, self.gsd, self.gate = Usage(), dict(gsd), gate
        self.modalities = {name: m for name, m in modalities.items() if "stac" in m.sources}
        self.blocks: dict[str, Block] = {name: block_of(m) for name, m in self.modalities.items()}
        self._retries = RetryBudget()
        self._items: dict[str, Item] = {}
        location = spec.catalog or spec.url
        if location is None:
            raise UserError(
                "needs to know the catalogue",
                "source",
                "add source.catalog: a path or URL, or source.url of a STAC API",
            )
        self.catalogue: Catalogue = self._asked(lambda: open_catalogue(location))

    def identity(self) -> dict[str, Any]:
        return {"name": "stac", "synthetic": False, **self.catalogue.identity()}

    # -- items ----------------------------------------------------------------------------------------------------

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        return [scene for sample in samples for scene in self._search(sample, asks[sample.slot])]

    def _search(self, sample: Sample, asks: Sequence[Ask]) -> Iterator[Scene]:
        """One request per time window: modalities that look in the same one share it."""
        ground, bbox = footprint(sample.grid())
        windows: dict[tuple[datetime, datetime] | None, list[Ask]] = {}
        for ask in asks:
            self._check(ask.modality.name)
            windows.setdefault(ask.window, []).append(ask)
        for window, own in windows.items():
            collections = sorted({name for ask in own for name in self.blocks[ask.modality.name].collections})
            items = self._asked(partial(self.catalogue.search, collections, bbox, window), counts="metadata")
            for ask in own:
                found = (self._scene(sample, ground, ask, item) for item in items)
                yield from (scene for scene in found if scene is not None)

    def _check(self, name: str) -> None:
        if name not in self.blocks:
            raise UserError(
                f"{name} is not kept by source 'stac'", f"modalities.{name}",
                "leave it out, take it from another source, or say in its modality file where a catalogue keeps it",
            )  # fmt: skip

    def _scene(self, sample: Sample, ground: Any, ask: Ask, item: Item) -> Scene | None:
        """The item as a candidate of an ask; scenes must contain the whole chip, products only touch it."""
        modality = self.modalities[ask.modality.name]
        entry, when = self.blocks[modality.name].entry(item, modality), time_of(item)
        if entry is None or not _covers(item, ground, whole=modality.time == "scene"):
            return None
        if ask.window is not None and not (when is not None and ask.window[0] <= when < ask.window[1]):
            return None
        cloud = _cloud(entry, item)
        if ask.max_cloud is not None and cloud is not None and cloud > ask.max_cloud:
            return None
        scene_id = f"{entry.collection}/{item['id']}"
        self._items[scene_id] = item
        return Scene(
            slot=sample.slot, modality=modality.name, scene_id=scene_id, cloud=cloud, epsg=_epsg(item),
            time=None if modality.time == "static" else when,
        )  # fmt: skip

    def _item(self, scene_id: str) -> Item | None:
        if scene_id not in self._items:
            collection, item_id = scene_id.split("/", 1)
            found = self._asked(lambda: self.catalogue.item(collection, item_id), counts="metadata")
            if found is None:
                return None
            self._items[scene_id] = found
        return self._items[scene_id]

    # -- pixels ---------------------------------------------------------------------------------------------------

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        return [self._clear_fraction(sample, scene) for sample, scene in pairs]

    def _clear_fraction(self, sample: Sample, scene: Scene) -> float | None:
        """Share of the chip's pixels that are clear ground; None where nothing of that scene tells."""
        rule = self.modalities[scene.modality].clear
        if rule is None:
            raise UserError(f"{scene.modality} has no clear rule", "anchor.min_clear", "remove it or add a clear rule")
        clear = self._clear(rule, scene, sample.grid())
        return None if clear is None else float(clear.mean())

    def _clear(self, rule: Clear, scene: Scene, grid: GeoBox) -> np.ndarray | None:
        """Where a scene shows clear ground on a grid; None where nothing tells."""
        judge = self.modalities.get(rule.modality)
        item = None if judge is None else self._of_judge(judge, scene)
        chip = None if judge is None or item is None else self._chip(judge, grid, [item])
        return None if judge is None or chip is None else rule.is_clear(chip, judge)

    def _of_judge(self, judge: Modality, scene: Scene) -> Item | None:
        """The item of the judge's product that belongs to a scene: the scene's own, or one of the same id."""
        own = self._item(scene.scene_id)
        if own is not None and self.blocks[judge.name].entry(own, judge) is not None:
            return own
        names = (f"{name}/{scene_index(scene)}" for name in self.blocks[judge.name].collections)
        items = (self._item(name) for name in names if name != scene.scene_id)
        return next((item for item in items if item is not None and self.blocks[judge.name].entry(item, judge)), None)

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        chips: dict[str, np.ndarray] = {}
        for key, choice in choices.items():
            if choice.modality in self.modalities and choice.scenes:
                modality, grid = self.modalities[choice.modality], sample.grid(self.gsd[choice.modality])
                if choice.reduce is None:
                    items = [item for scene in choice.scenes if (item := self._item(scene.scene_id)) is not None]
                    chip = self._chip(modality, grid, items)
                else:
                    chip = self._composite(modality, grid, choice)
                if chip is not None:
                    chips[key] = chip
        return chips

    def _composite(self, modality: Modality, grid: GeoBox, choice: Choice) -> np.ndarray | None:
        """The median or mean of all clear observations of each pixel, or how many there are; None without an item."""
        layers = []
        for scene in choice.scenes:
            item = self._item(scene.scene_id)
            entry = None if item is None else self.blocks[modality.name].entry(item, modality)
            if item is None or entry is None:
                continue
            seen = self._bands(modality, grid, [assets_of(modality, entry, item)])
            clear = True if modality.clear is None else self._clear(modality.clear, scene, grid)
            layers.append([(values, valid & (clear is not None and clear)) for values, valid in seen])
        bands = [_reduced(modality, choice.reduce, own) for own in zip(*layers, strict=True)]
        return np.stack(bands) if bands else None

    def _chip(self, modality: Modality, grid: GeoBox, items: Sequence[Item]) -> np.ndarray | None:
        """A modality as it is stored, (band, y, x); None when no item has anything of it."""
        found = [(entry, item) for item in items if (entry := self.blocks[modality.name].entry(item, modality))]
        if not found:
            return None
        if found[0][0].composite == "first":
            found = found[:1]
        bands = self._bands(modality, grid, [assets_of(modality, entry, item) for entry, item in found])
        return np.stack([_stored(modality, values, valid) for values, valid in bands])

    def _bands(self, modality: Modality, grid: GeoBox, assets: Sequence[Mapping[str, Asset | None]]) -> list[Layer]:
        """Values and validity of every band on a grid; ``assets``: those of each item, the lowest first."""
        bands = []
        for name in modality.band_names:
            own = [asset for layer in assets if (asset := layer[name]) is not None]
            seen = [asset.seen for asset in own]
            bands.append(self._asked(partial(_band, modality, own, grid), counts="pixel", seen=seen))
        return bands

    def regions(self, name: str) -> gpd.GeoDataFrame:
        raise UserError(
            "a STAC catalogue has no tables of polygons", name, "name a file of polygons in the recipe's sampler"
        )

    # -- asking ---------------------------------------------------------------------------------------------------

    def _asked(self, ask: Callable[[], Answer], *, counts: str = "", seen: Sequence[list[int]] = ()) -> Answer:
        """The answer, asked for again while that can help; what it cost is counted.

        Bytes are those of the pixels that were read, decoded: GDAL does not say what went over the wire.
        """

        def once() -> Answer:
            with nullcontext() if self.gate is None else self.gate.request():
                size = 0
                try:
                    answer = ask()
                    size = max(1, sum(sum(sizes) for sizes in seen))
                    return answer
                finally:
                    if self.gate is not None:
                        self.gate.report(Spent(received_bytes=size))
                    self.usage.add(Usage(bytes=size))

        answer = with_retries(once, sleep=time.sleep, on_retry=self._count_retry, budget=self._retries)
        if counts:
            self.usage.add(Usage(**{f"{counts}_requests": 1}))
        return answer

    def _count_retry(self, error: SourceError) -> None:
        self.usage.add(Usage(retries=1))


def _band(modality: Modality, assets: Sequence[Asset], grid: GeoBox) -> Layer:
    """One band on a grid, and where it is fully valid."""
    with ExitStack() as files:
        opened = (files.enter_context(asset.opened()) for asset in assets)
        rasters = [raster for raster in opened if raster is not None]
        if not rasters:
            return np.zeros(grid.shape), np.zeros(grid.shape, bool)
        values, share = layered(rasters, grid, bilinear=modality.resampling == "bilinear")
    return values, share >= FULLY_VALID


def _reduced(modality: Modality, how: str | None, observations: Sequence[Layer]) -> np.ndarray:
    """One band of a composite in the stored type."""
    valid = np.stack([valid for _, valid in observations])
    count: np.ndarray = valid.sum(axis=0)
    if how == "count":
        return count.astype(modality.np_dtype)
    # Where nothing is valid any number will do: it is not stored.
    values = np.where(valid | (count == 0), np.stack([values for values, _ in observations]), np.nan)
    whole = np.nanmedian(values, axis=0) if how == "median" else np.nanmean(values, axis=0)
    return _stored(modality, whole, count > 0)


def _stored(modality: Modality, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Values in the stored type, rounded where that is a whole number, nodata where they are not valid."""
    out = np.full(values.shape, modality.fill)
    if modality.np_dtype.kind in "iu" and modality.values == "continuous":
        values = np.floor(values + 0.5)
    out[valid] = values[valid].astype(modality.np_dtype)
    return out


# -- where items lie -----------------------------------------------------------------------------------------------


def footprint(grid: GeoBox) -> tuple[Any, Bbox]:
    """The ground of a grid in degrees: its outline in one piece, and its bbox (west > east across the antimeridian)."""
    lon, lat = outline(grid)
    lon = lon[0] + (lon - lon[0] + 180.0) % 360.0 - 180.0
    west, east = lon.min(), lon.max()
    bbox = float(west), float(lat.min()), float(east), float(lat.max())
    if west < -180.0:
        bbox = float(west + 360.0), bbox[1], bbox[2], bbox[3]
    elif east > 180.0:
        bbox = bbox[0], bbox[1], float(east - 360.0), bbox[3]
    return shapely.polygons(np.column_stack([lon, lat])), bbox


def _covers(item: Item, ground: Any, *, whole: bool) -> bool:
    """Whether an item's outline contains the ground, or touches it, in any of three turns of the Earth."""
    shape = shapely.geometry.shape(item["geometry"]) if item.get("geometry") else None
    if shape is None:
        return True
    turns = (shapely.transform(ground, lambda xy, t=t: xy + np.array([t, 0.0])) for t in (0.0, -360.0, 360.0))
    return any(shape.covers(turn) if whole else shape.intersects(turn) for turn in turns)


def _cloud(entry: Entry, item: Item) -> float | None:
    value = item["properties"].get(entry.cloud_property) if entry.cloud_property else None
    return None if value is None else float(value)


def _epsg(item: Item) -> int | None:
    """The CRS of an item's pixels where it is one with an EPSG code."""
    for place in (item["properties"], *item["assets"].values()):
        code = place.get("proj:code") or place.get("proj:epsg")
        if code is not None:
            text = str(code).removeprefix("EPSG:")
            return int(text) if text.isdigit() else None
    return None
