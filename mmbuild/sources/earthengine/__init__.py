"""Pixels and metadata from Earth Engine through its own client: live, at any URL, or offline in this process.

The only package that imports ``ee``. It asks for many samples' metadata in one request and for all modalities of a
sample's lattice in one pixel request, always with an explicit validity, and never decides which scene is taken.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

import ee
import numpy as np

from mmbuild.choose import Choice, Sample, Scene, scene_index
from mmbuild.errors import SourceError, UserError
from mmbuild.grid import to_earthengine
from mmbuild.modality import Modality
from mmbuild.sources import Ask, SourceSpec, Usage
from mmbuild.sources.earthengine.blocks import BandSource, Block, block_of
from mmbuild.sources.earthengine.session import call, connect, identity
from mmbuild.throttle import with_retries

if TYPE_CHECKING:
    import geopandas as gpd

# computePixels rejects answers above 48 MB, counted with one mask byte per value (Earth Engine REST reference).
RESPONSE_LIMIT_BYTES = 48 * 2**20
# Samples asked for in one metadata request: the graph stays far below the 10 MB payload limit.
SAMPLES_PER_SEARCH = 32
# A resampled or averaged pixel counts as valid only when all its inputs are; the slack is for float masks.
FULLY_VALID = 0.999
UNKNOWN_CLOUD = -1
_PROPERTIES = {"index": "system:index", "time": "system:time_start"}
_AFFINE_KEYS = ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")
_CASTS = {
    "uint8": "toUint8", "int8": "toInt8", "uint16": "toUint16", "int16": "toInt16",
    "uint32": "toUint32", "int32": "toInt32", "float32": "toFloat", "float64": "toDouble",
}  # fmt: skip


class EarthEngine:
    """The Source over Earth Engine; ``gsd`` says at which pixel size each modality is stored."""

    def __init__(self, spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float]) -> None:
        self.spec, self.gsd, self.usage = spec, dict(gsd), Usage()
        self.modalities = {name: m for name, m in modalities.items() if "earthengine" in m.sources}
        self.blocks = {name: block_of(modality) for name, modality in self.modalities.items()}
        connect(spec)

    def identity(self) -> dict[str, Any]:
        return identity(self.spec)

    # -- metadata -------------------------------------------------------------------------------------------------

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        scenes: list[Scene] = []
        for first in range(0, len(samples), SAMPLES_PER_SEARCH):
            part = samples[first : first + SAMPLES_PER_SEARCH]
            queries = [ee.Dictionary(self._queries(sample, asks[sample.slot])) for sample in part]
            answers = self._compute(ee.List(queries))
            for sample, answer in zip(part, answers, strict=True):
                scenes += self._scenes(sample, asks[sample.slot], answer)
        return scenes

    def _queries(self, sample: Sample, asks: Sequence[Ask]) -> dict[str, Any]:
        """One server-side list per ask that needs one, keyed by the modality."""
        region = _region(sample)
        queries: dict[str, Any] = {}
        for ask in asks:
            block = self.blocks[ask.modality.name]
            if block.collection is None:
                continue
            images = _candidates(block, region, ask)
            if ask.modality.time == "months":
                bands = list(block.source_bands(ask.modality))
                point = ee.Geometry.Point([sample.lon, sample.lat])
                queries[ask.modality.name] = (
                    images.select(bands).toBands().reduceRegion(reducer=ee.Reducer.first(), geometry=point)
                )
            else:
                queries[ask.modality.name] = _table(images, block, ask.modality)
        return queries

    def _scenes(self, sample: Sample, asks: Sequence[Ask], answer: Mapping[str, Any]) -> list[Scene]:
        scenes: list[Scene] = []
        for ask in asks:
            block, name = self.blocks[ask.modality.name], ask.modality.name
            if block.collection is None:
                images = sorted(block.images(ask.modality))
                scenes += [Scene(slot=sample.slot, modality=name, scene_id=image, time=None) for image in images]
            elif ask.modality.time == "months":
                scenes += _month_scenes(sample.slot, name, block.collection, answer[name])
            else:
                columns = block.columns(ask.modality)
                scenes += [
                    _scene(sample.slot, name, block.collection, dict(zip(columns, row, strict=True)))
                    for row in answer[name]
                ]
        return scenes

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        fractions: list[float | None] = []
        for first in range(0, len(pairs), SAMPLES_PER_SEARCH):
            part = pairs[first : first + SAMPLES_PER_SEARCH]
            answers = self._compute(ee.List([self._clear(sample, scene) for sample, scene in part]))
            # -1 stands for "there is no such image" (see _clear_ground), which screens as unknown.
            fractions += [None if value is None or value < 0 else float(value) for value in answers]
        return fractions

    def _clear(self, sample: Sample, scene: Scene) -> Any:
        """Share of the chip's pixels that are clear ground; a masked pixel is not clear."""
        rule = self.modalities[scene.modality].clear
        if rule is None:
            raise UserError(f"{scene.modality} has no clear rule", "anchor.min_clear", "remove it or add a clear rule")
        judge, region = self.modalities[rule.modality], _region(sample)
        block = self.blocks[rule.modality]
        clear = _clear_ground(_of_scene(block, scene, region), next(iter(block.source_bands(judge))), rule.codes)
        grid = to_earthengine(sample.grid())
        affine = grid["affineTransform"]
        return clear.reduceRegion(
            reducer=ee.Reducer.mean(),
            geometry=region,
            crs=grid["crsCode"],
            crsTransform=[affine[key] for key in _AFFINE_KEYS],
        ).get("clear")

    def _compute(self, expression: Any) -> Any:
        self.usage.metadata_requests += 1
        return self._retrying(lambda: call(expression.getInfo))

    # -- pixels ---------------------------------------------------------------------------------------------------

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        chips: dict[str, np.ndarray] = {}
        wanted: dict[float, list[str]] = {}
        for name, choice in choices.items():
            if name not in self.modalities or not choice.scenes:
                continue
            if self.modalities[name].level == "image":
                chips[name] = _reduce_months(self.modalities[name], self.blocks[name], choice)
            else:
                wanted.setdefault(self.gsd[name], []).append(name)
        for gsd, names in wanted.items():
            for group in self._groups(sample, gsd, names):
                chips |= self._read_lattice(sample, gsd, group, choices)
        return {name: chips[name] for name in choices if name in chips}

    def _groups(self, sample: Sample, gsd: float, names: Sequence[str]) -> list[list[str]]:
        """Split the modalities of one lattice so that each answer stays below the response limit."""
        height, width = sample.grid(gsd).shape
        groups: list[list[str]] = [[]]
        room = RESPONSE_LIMIT_BYTES
        for name in names:
            modality = self.modalities[name]
            need = height * width * len(modality.bands) * (modality.np_dtype.itemsize + 1)
            if need > RESPONSE_LIMIT_BYTES:
                raise UserError(
                    f"one {name} chip is {need / 2**20:.0f} MiB, Earth Engine answers at most 48 MiB", "grid",
                    "use a smaller size or fewer bands",
                )  # fmt: skip
            if need > room:
                groups.append([])
                room = RESPONSE_LIMIT_BYTES
            groups[-1].append(name)
            room -= need
        return groups

    def _read_lattice(
        self, sample: Sample, gsd: float, names: Sequence[str], choices: Mapping[str, Choice]
    ) -> dict[str, np.ndarray]:
        """One pixel request: all bands of ``names`` on one grid, named by position so that no name can collide."""
        images = [
            _stored(self.modalities[name], self.blocks[name], choices[name], _region(sample)).rename(
                [f"m{position}_{band}" for band in range(len(self.modalities[name].bands))]
            )
            for position, name in enumerate(names)
        ]
        grid = to_earthengine(sample.grid(gsd))
        pixels = self._retrying(lambda: self._pixels(ee.Image.cat(images), grid, names))
        self.usage.pixel_requests += 1
        self.usage.bytes += pixels.nbytes
        chips = {}
        for position, name in enumerate(names):
            bands = [f"m{position}_{band}" for band in range(len(self.modalities[name].bands))]
            chips[name] = np.stack([pixels[band] for band in bands]).astype(self.modalities[name].np_dtype, copy=False)
        return chips

    def _pixels(self, image: Any, grid: dict[str, Any], names: Sequence[str]) -> np.ndarray:
        """The structured array of a pixel request; anything but the whole answer is a transient error."""
        raw = call(lambda: ee.data.computePixels({"expression": image, "fileFormat": "NPY", "grid": grid}))
        try:
            pixels: np.ndarray = np.load(io.BytesIO(raw), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise SourceError(f"a pixel answer of {len(raw)} bytes is not a whole NPY file", transient=True) from error
        shape = (grid["dimensions"]["height"], grid["dimensions"]["width"])
        expected = {
            f"m{position}_{band}": self.modalities[name].np_dtype
            for position, name in enumerate(names)
            for band in range(len(self.modalities[name].bands))
        }
        given = {key: pixels.dtype[key] for key in pixels.dtype.names or ()}
        if pixels.shape != shape or set(given) != set(expected):
            raise SourceError(f"a pixel answer has shape {pixels.shape}, asked was {shape}", transient=True)
        return pixels

    # -- tables ---------------------------------------------------------------------------------------------------

    def regions(self, name: str) -> gpd.GeoDataFrame:
        import geopandas as gpd

        features: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            request: dict[str, Any] = {"expression": ee.FeatureCollection(name), "pageSize": 1000}
            if token:
                request["pageToken"] = token
            page = self._retrying(lambda request=request: call(lambda: ee.data.computeFeatures(request)))
            self.usage.metadata_requests += 1
            features += page.get("features", [])
            token = page.get("nextPageToken")
            if not token:
                break
        return gpd.GeoDataFrame.from_features(features, crs="EPSG:4326")

    def _retrying(self, ask: Any) -> Any:
        def count(error: SourceError) -> None:
            self.usage.retries += 1

        return with_retries(ask, sleep=time.sleep, on_retry=count)


def _region(sample: Sample) -> Any:
    """The sample's ground as a planar rectangle in its own CRS."""
    box = sample.grid().boundingbox
    return ee.Geometry.Rectangle([box.left, box.bottom, box.right, box.top], f"EPSG:{sample.epsg}", False)


def _candidates(block: Block, region: Any, ask: Ask) -> Any:
    """The images of a collection that may serve an ask; scenes must contain the whole chip, products only touch it."""
    images = ee.ImageCollection(block.collection)
    for key, value in block.where.items():
        images = images.filter(ee.Filter.eq(key, value))
    if ask.window is not None:
        images = images.filterDate(_millis(ask.window[0]), _millis(ask.window[1]))
    if block.cloud_property and ask.max_cloud is not None:
        images = images.filter(ee.Filter.lte(block.cloud_property, ask.max_cloud))
    if ask.modality.time == "months":
        return images
    images = images.filterBounds(region)
    return images.filter(ee.Filter.contains(".geo", region)) if ask.modality.time == "scene" else images


def _table(images: Any, block: Block, modality: Modality) -> Any:
    """Rows of the block's columns, one per image."""

    def describe(image: Any) -> Any:
        described = image
        if "crs" in block.columns(modality):
            described = described.set("crs", image.select([0]).projection().crs())
        if "bands" in block.columns(modality):
            described = described.set("bands", image.bandNames())
        if block.cloud_property:
            # A row with a null in it would be dropped, and with it an image whose cloudiness nobody wrote down.
            known = ee.List([image.get(block.cloud_property), UNKNOWN_CLOUD]).reduce(ee.Reducer.firstNonNull())
            described = described.set("cloud", known)
        return described

    selectors = [_PROPERTIES.get(column, column) for column in block.columns(modality)]
    rows = images.map(describe).reduceColumns(ee.Reducer.toList(len(selectors)), selectors)
    return rows.get("list")


def _scene(slot: int, name: str, collection: str, row: Mapping[str, Any]) -> Scene:
    crs = row.get("crs")
    return Scene(
        slot=slot,
        modality=name,
        scene_id=f"{collection}/{row['index']}",
        time=_datetime(row["time"]) if row.get("time") is not None else None,
        epsg=int(crs.split(":")[1]) if crs and crs.startswith("EPSG:") else None,
        cloud=None if row.get("cloud", UNKNOWN_CLOUD) == UNKNOWN_CLOUD else float(row["cloud"]),
        bands=tuple(row["bands"]) if "bands" in row else None,
    )


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


def _of_scene(block: Block, scene: Scene, region: Any) -> Any:
    """The images of a collection that belong to a scene: one, or none where the product lacks it."""
    assert scene.time is not None
    day = timedelta(days=1)
    images = ee.ImageCollection(block.collection).filterBounds(region)
    images = images.filterDate(_millis(scene.time - day), _millis(scene.time + day))
    return images.filter(ee.Filter.eq("system:index", scene_index(scene)))


def _clear_ground(images: Any, band: str, codes: Sequence[int]) -> Any:
    """1 on clear ground, 0 elsewhere and where masked; -1 everywhere when ``images`` is empty."""

    def flag(image: Any) -> Any:
        clear = image.select([band]).remap(list(codes), [1] * len(codes), 0)
        return clear.unmask(0, False).rename(["clear"]).toInt8()

    absent = ee.Image.constant(-1).rename(["clear"]).toInt8()
    return ee.ImageCollection([absent]).merge(images.map(flag)).mosaic()


def _stored(modality: Modality, block: Block, choice: Choice, region: Any) -> Any:
    """The image of one modality as it is stored: resampled, scaled, cast, with nodata wherever it is not fully valid."""
    present = choice.scenes[0].bands

    def kind(band: str) -> tuple[Any, ...]:
        source = block.band(band)
        return (present is None or source.band in present, source.image, source.terrain, source.multiply)

    return ee.Image.cat(
        [
            _stored_bands(
                modality, [block.band(band) for band in bands], _input(modality, block, choice, region, image)
            )
            if exists
            else _cast(ee.Image.constant([modality.nodata] * len(list(bands))), modality)
            for (exists, image, _, _), group in groupby(modality.band_names, key=kind)
            for bands in [list(group)]
        ]
    )


def _stored_bands(modality: Modality, sources: Sequence[BandSource], image: Any) -> Any:
    """Bands that are treated alike, as they are stored."""
    image = image.select([source.band for source in sources])
    if sources[0].terrain == "slope":
        image = ee.Terrain.slope(image)
    if modality.resampling == "bilinear" and modality.time != "year":
        image = image.resample("bilinear")
    if sources[0].multiply != 1:
        image = image.multiply(sources[0].multiply)
    if modality.values == "continuous" and np.issubdtype(modality.np_dtype, np.integer):
        image = image.round()
    valid = image.updateMask(image.mask().gte(FULLY_VALID))
    return _cast(valid.unmask(modality.nodata, False), modality)


def _cast(image: Any, modality: Modality) -> Any:
    return getattr(image, _CASTS[modality.dtype])()


def _input(modality: Modality, block: Block, choice: Choice, region: Any, image: str | None) -> Any:
    """The image that a band is cut from: a named asset, the chosen scene, or a composite of the chosen images."""
    if image or block.image:
        return ee.Image(image or block.image)
    if block.composite is None:
        return ee.Image(choice.scenes[0].scene_id)
    if modality.time == "static" and block.composite == "first":
        return ee.Image(choice.scenes[0].scene_id)
    if modality.time == "static":
        parts = ee.ImageCollection([ee.Image(scene.scene_id) for scene in choice.scenes])
        return parts.mosaic().setDefaultProjection(ee.Image(choice.scenes[0].scene_id).select([0]).projection())
    assert choice.window is not None
    images = ee.ImageCollection(block.collection).filterBounds(region)
    images = images.filterDate(_millis(choice.window[0]), _millis(choice.window[1]))
    bands = [block.band(name).band for name in modality.band_names]
    return getattr(images.select(bands), block.composite)()


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


def _millis(when: datetime) -> int:
    return int(when.timestamp() * 1000)


def _datetime(millis: float) -> datetime:
    return datetime.fromtimestamp(millis / 1000, tz=UTC)
