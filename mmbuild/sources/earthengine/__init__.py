"""Pixels and metadata from Earth Engine through its own client: live, at any URL, or offline in this process.

The only package that imports ``ee``. It asks for many samples' metadata in one request and for all modalities of a
sample's lattice in one pixel request, always with an explicit validity, and never decides which scene is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import ee
import numpy as np

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.errors import QuotaStop, SourceError, UserError
from mmbuild.grid import to_earthengine
from mmbuild.modality import Clear, Modality
from mmbuild.sources import (
    PAIRS_PER_REQUEST,
    SAMPLES_PER_REQUEST,
    Ask,
    Box,
    SourceSpec,
    Usage,
)
from mmbuild.sources.earthengine import expressions, pixels, tables
from mmbuild.sources.earthengine.blocks import Block, block_of
from mmbuild.sources.earthengine.meter import last_exchange, workload_tag
from mmbuild.sources.earthengine.refusals import about
from mmbuild.sources.earthengine.session import Blame, building, call, compute_pixels, connect, identity, retries
from mmbuild.sources.earthengine.templates import Templates
from mmbuild.throttle import Gate, with_retries

if TYPE_CHECKING:
    import geopandas as gpd

_AFFINE_KEYS = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")


def open(
    spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float], gate: Gate | None = None
) -> EarthEngine:
    """Connect this process to Earth Engine, live or offline; UserError without credentials for the live service."""
    return EarthEngine(spec, modalities, gsd, gate)


class EarthEngine:
    """The Source over Earth Engine; ``gsd`` says at which pixel size each modality is stored."""

    def __init__(
        self, spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float], gate: Gate | None = None
    ) -> None:
        self.spec, self.gsd, self.usage, self.gate = spec, dict(gsd), Usage(), gate
        self.tag = workload_tag(spec.tag)
        self.modalities = {name: m for name, m in modalities.items() if "earthengine" in m.sources}
        self.blocks = {name: block_of(modality) for name, modality in self.modalities.items()}
        self._templates = Templates(self._drawn)
        connect(spec)

    def identity(self) -> dict[str, Any]:
        return identity(self.spec)

    def tells_compute(self) -> bool:
        """False for the live service, which bills compute time and says nothing of it in its answers.

        Other servers may; their first answer shows it.
        """
        return bool(self.identity()["endpoint"] != "live")

    # -- metadata -------------------------------------------------------------------------------------------------

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        scenes: list[Scene] = []
        for first in range(0, len(samples), SAMPLES_PER_REQUEST):
            part = samples[first : first + SAMPLES_PER_REQUEST]
            blame = self._blame([ask.modality.name for sample in part for ask in asks[sample.slot]])
            with building(self.spec, blame):
                questions = self._questions(part, asks)
            answers = chain.from_iterable(self._compute(questions, blame))
            for sample, answer in zip(part, answers, strict=True):
                scenes += self._scenes(sample, asks[sample.slot], answer)
        return scenes

    def _questions(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> Any:
        """Lists of one dictionary per sample: for each ask that needs one, a server-side list, keyed by its position.

        What is asked is written once for neighbours that ask the same; only places and dates are sent for each.
        """
        groups = groupby(samples, key=lambda sample: [_kind(ask) for ask in asks[sample.slot]])
        return ee.List([self._asked_alike(list(alike), asks) for _, alike in groups])

    def _asked_alike(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> Any:
        places = ee.List([expressions.place(sample, asks[sample.slot]) for sample in samples])
        return places.map(lambda place: self._question(asks[samples[0].slot], place))

    def _question(self, asks: Sequence[Ask], place: Any) -> Any:
        place = ee.Dictionary(place)
        region = expressions.region_of(place)
        queries: dict[str, Any] = {}
        for number, ask in enumerate(asks):
            block = self.blocks[ask.modality.name]
            if block.collection is None or self._told_by(ask, asks):
                continue
            images = expressions.candidates(block, region, ask, place, number)
            if ask.modality.time == "months":
                bands = list(block.source_bands(ask.modality))
                point = ee.Geometry.Point(ee.List(place.get("point")))
                queries[str(number)] = (
                    images.select(bands).toBands().reduceRegion(reducer=ee.Reducer.first(), geometry=point)
                )
            else:
                queries[str(number)] = expressions.table(images, block, ask.modality)
        return ee.Dictionary(queries)

    def _told_by(self, ask: Ask, asks: Sequence[Ask]) -> set[str]:
        """The modalities whose answer tells the images of this one too: part of the same images, which they choose."""
        name, own = ask.modality.same_scene_as, self.blocks[ask.modality.name]
        hosts = [other.modality for other in asks if name and name in (other.modality.name, other.modality.alias)]
        is_told = all(own.is_part_of(self.blocks[m.name]) and m.same_scene_as is None for m in hosts)
        return {modality.name for modality in hosts} if is_told else set()

    def _scenes(self, sample: Sample, asks: Sequence[Ask], answer: Mapping[str, Any]) -> list[Scene]:
        scenes: list[Scene] = []
        for position, ask in sorted(enumerate(asks), key=lambda numbered: bool(numbered[1].modality.same_scene_as)):
            block, name = self.blocks[ask.modality.name], ask.modality.name
            if told_by := self._told_by(ask, asks):
                scenes += [_of_host(scene, ask.modality, block) for scene in scenes if scene.modality in told_by]
            elif block.collection is None:
                images = sorted(block.images(ask.modality))
                scenes += [Scene(slot=sample.slot, modality=name, scene_id=image, time=None) for image in images]
            elif ask.modality.time == "months":
                scenes += _month_scenes(sample.slot, name, block.collection, answer[str(position)])
            else:
                columns = block.columns(ask.modality)
                scenes += [
                    _scene(sample.slot, name, block.collection, dict(zip(columns, row, strict=True)))
                    for row in answer[str(position)]
                ]
        return scenes

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        fractions: list[float | None] = []
        for first in range(0, len(pairs), PAIRS_PER_REQUEST):
            fractions += self._screen(pairs[first : first + PAIRS_PER_REQUEST])
        return fractions

    def _screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        """One metadata request; one that is too large is halved until it fits."""
        rules = [self.modalities[scene.modality].clear for _, scene in pairs]
        blame = self._blame([rule.modality for rule in rules if rule is not None])
        try:
            with building(self.spec, blame):
                clear = ee.List([self._clear(sample, scene) for sample, scene in pairs])
            answers = self._compute(clear, blame)
        except SourceError as error:
            if not error.too_large or len(pairs) == 1:
                raise
            middle = len(pairs) // 2
            return self._screen(pairs[:middle]) + self._screen(pairs[middle:])
        # -1 stands for "there is no such image" (see expressions.clear_ground), which screens as unknown.
        return [None if value is None or value < 0 else float(value) for value in answers]

    def _clear(self, sample: Sample, scene: Scene) -> Any:
        """Share of the chip's pixels that are clear ground; a masked pixel is not clear."""
        rule = self.modalities[scene.modality].clear
        if rule is None:
            raise UserError(f"{scene.modality} has no clear rule", "anchor.min_clear", "remove it or add a clear rule")
        region = expressions.region(sample)
        clear = self._clear_ground(rule, scene, region)
        grid = to_earthengine(sample.grid())
        affine = grid["affineTransform"]
        return clear.reduceRegion(
            reducer=ee.Reducer.mean(),
            geometry=region,
            crs=grid["crsCode"],
            crsTransform=[affine[key] for key in _AFFINE_KEYS],
        ).get("clear")

    def _clear_ground(self, rule: Clear, scene: Scene, region: Any) -> Any:
        """The clear ground of a scene as an image, told by the image of another modality that belongs to it."""
        judge, block = self.modalities[rule.modality], self.blocks[rule.modality]
        images = expressions.of_scene(block, scene, region)
        band = block.band(rule.band or judge.band_names[0]).band
        return expressions.clear_ground(images, band, rule, optional=block.optional_bands)

    def _compute(self, expression: Any, blame: Blame) -> Any:
        answer = self._asked(expression.getInfo, blame)
        self.usage.add(Usage(metadata_requests=1))
        return answer

    # -- pixels ---------------------------------------------------------------------------------------------------

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        chips: dict[str, np.ndarray] = {}
        wanted: dict[float, list[str]] = {}
        for key, choice in choices.items():
            name = choice.modality
            if name not in self.modalities or not choice.scenes:
                continue
            if self.modalities[name].level == "image":
                chips[key] = _reduce_months(self.modalities[name], self.blocks[name], choice)
            else:
                wanted.setdefault(self.gsd[name], []).append(key)
        for gsd, keys in wanted.items():
            sizes = {key: self.modalities[choices[key].modality] for key in keys}
            grid = sample.grid(gsd)
            for group in pixels.groups(sizes, (grid.height, grid.width)):
                chips |= self._read_lattice(sample, gsd, {key: choices[key] for key in group})
        return {key: chips[key] for key in choices if key in chips}

    def _read_lattice(self, sample: Sample, gsd: float, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        """Chips on one grid, from one pixel request; one that is too large is halved until it fits."""
        try:
            return self._read_together(sample, gsd, choices)
        except SourceError as error:
            if not error.too_large or len(choices) == 1:
                raise
            parts = list(choices.items())
            middle = len(parts) // 2
            first, second = dict(parts[:middle]), dict(parts[middle:])
            return self._read_lattice(sample, gsd, first) | self._read_lattice(sample, gsd, second)

    def _read_together(self, sample: Sample, gsd: float, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        """One pixel request: all bands on one grid, named by position so that no name can collide."""
        names, grid = [choice.modality for choice in choices.values()], sample.grid(gsd)
        blame = self._blame(names)
        with building(self.spec, blame):
            body = self._templates.request(sample, list(choices.values()), to_earthengine(grid))
        asked, shape = [self.modalities[name] for name in names], (grid.height, grid.width)
        chips = self._asked(lambda: pixels.chips(compute_pixels(body), asked, shape), blame)
        self.usage.add(Usage(pixel_requests=1))
        return dict(zip(choices, chips, strict=True))

    def _drawn(self, choice: Choice, name: str, corners: Sequence[float], crs: str) -> Any:
        """One chip's image as it is stored; its bands are called ``name`` and their position."""
        modality, region = self.modalities[choice.modality], expressions.rectangle(corners, crs)
        rule = modality.clear if choice.reduce is not None else None
        clear = None if rule is None else lambda scene: self._clear_ground(rule, scene, region)
        image = expressions.stored(modality, self.blocks[choice.modality], choice, region, clear)
        return image.rename([f"{name}_{band}" for band in range(len(modality.bands))])

    # -- tables ---------------------------------------------------------------------------------------------------

    def regions(self, name: str) -> gpd.GeoDataFrame:
        blame = partial(tables.name_of, name)
        with building(self.spec, blame):
            table = ee.FeatureCollection(name)
        return self._features(table, blame)

    def random_points(self, table: str, column: str, value: str, count: int, seed: int) -> np.ndarray:
        blame = partial(tables.name_of, table)
        with building(self.spec, blame):
            points = tables.random_points(table, column, value, count, seed)
        found = self._features(points, blame)
        if len(found) != count:
            raise SourceError(f"{count} random points were asked in {value!r} of table {table}, {len(found)} came")
        return np.stack([found.geometry.x, found.geometry.y], axis=1)

    def coverage(
        self, modality: str, groups: Sequence[Sequence[Box]], window: tuple[datetime, datetime]
    ) -> gpd.GeoDataFrame:
        import geopandas as gpd
        import pandas as pd

        blame, block = self._blame([modality]), self.blocks[modality]
        found = [gpd.GeoDataFrame({"time": []}, geometry=[], crs="EPSG:4326")]
        for boxes in groups:
            with building(self.spec, blame):
                images = tables.footprints(str(block.collection), boxes, window)
            found.append(self._features(images, blame))
        table = gpd.GeoDataFrame(pd.concat(found, ignore_index=True), crs="EPSG:4326")
        return table.assign(time=pd.to_datetime(table["time"], unit="ms"))

    def _features(self, table: Any, blame: Blame) -> gpd.GeoDataFrame:
        """All rows of a table, page by page."""
        import geopandas as gpd

        features: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            request: dict[str, Any] = {"expression": table, "pageSize": 1000}
            if token:
                request["pageToken"] = token
            page = self._asked(partial(tables.page, request), blame)
            self.usage.add(Usage(metadata_requests=1))
            features += page.get("features", [])
            token = page.get("nextPageToken")
            if not token:
                break
        columns = None if features else ["geometry"]
        return gpd.GeoDataFrame.from_features(features, crs="EPSG:4326", columns=columns)

    # -- asking ---------------------------------------------------------------------------------------------------

    def _asked(self, ask: Callable[[], Any], blame: Blame) -> Any:
        """The answer, asked for again while that can help; every try is counted with what it cost."""

        def once() -> Any:
            try:
                return call(ask, gate=self.gate, tag=self.tag, blame=blame)
            finally:
                cost = last_exchange()
                if cost is not None:
                    sent, received = cost.sent_bytes, cost.received_bytes
                    self.usage.add(Usage(bytes=received, sent_bytes=sent, eecu_seconds=cost.eecu_s or 0.0))

        def again(error: SourceError) -> None:
            self.usage.add(Usage(retries=1))

        try:
            return with_retries(once, sleep=self.gate.rest if self.gate else time.sleep, on_retry=again, budget=retries)
        except SourceError as error:
            if error.transient and retries.left < 1:
                # Going on would fail every sample of a long build in its turn while the service is down.
                raise QuotaStop(f"Earth Engine does not answer: {error}; run the same command again later") from error
            raise

    def _blame(self, names: Iterable[str]) -> Blame:
        """Says which of these modalities a refusal is about."""
        return partial(about, list(dict.fromkeys(names)), self.modalities, self.blocks)


def _kind(ask: Ask) -> tuple[str, float | None, bool]:
    """What two asks have in common that differ in their dates only."""
    return ask.modality.name, ask.max_cloud, ask.window is None


def _scene(slot: int, name: str, collection: str, row: Mapping[str, Any]) -> Scene:
    crs = row.get("crs")
    return Scene(
        slot=slot,
        modality=name,
        scene_id=f"{collection}/{row['index']}",
        time=_datetime(row["time"]) if row.get("time") is not None else None,
        epsg=int(crs.split(":")[1]) if crs and crs.startswith("EPSG:") else None,
        cloud=None if row.get("cloud", expressions.UNKNOWN_CLOUD) == expressions.UNKNOWN_CLOUD else float(row["cloud"]),
        bands=tuple(row["bands"]) if "bands" in row else None,
    )


def _of_host(scene: Scene, modality: Modality, block: Block) -> Scene:
    """An image that another modality was found in, as one of this modality."""
    return replace(scene, modality=modality.name, cloud=None, bands=scene.bands if block.optional_bands else None)


def _month_scenes(slot: int, name: str, collection: str, values: Mapping[str, float | None]) -> list[Scene]:
    """Monthly images with their value at the sample: keys are ``YYYYMM_band`` as toBands names them."""
    months: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        index, band = key.split("_", 1)
        if value is not None:
            months.setdefault(index, {})[band] = float(value)
        else:
            months.setdefault(index, {})
    return [
        Scene(
            slot=slot, modality=name, scene_id=f"{collection}/{index}", values=bands,
            time=datetime(int(index[:4]), int(index[4:6]), 1, tzinfo=UTC),
        )
        for index, bands in sorted(months.items())
    ]  # fmt: skip


def _reduce_months(modality: Modality, block: Block, choice: Choice) -> np.ndarray:
    """Image-level values from monthly ones, (band,): a band with any of its months missing is nodata."""
    values = np.full(len(modality.bands), modality.fill, dtype=modality.np_dtype)
    for position, name in enumerate(modality.band_names):
        source = block.band(name)
        months = block.months_of(source, modality, choice)
        found = [
            s.values[source.band] for s in choice.scenes if s.time in months and s.values and source.band in s.values
        ]
        if len(found) == len(months):
            values[position] = _REDUCERS[source.reduce](found)
    return values


_REDUCERS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda x: sum(x) / len(x),
    "min": min,
    "max": max,
    "sum": sum,
}


def _datetime(millis: float) -> datetime:
    return datetime.fromtimestamp(millis / 1000, tz=UTC)
