"""Small worlds whose every pixel is known in closed form, and the genuine client pointed at them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ee
import numpy as np
import shapely
from pyproj import Transformer

from mmbuild.sandbox.assets import BandInfo, ImageInfo, Kind, World
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.transport import Transport

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class FormulaDataset:
    """Images whose band values are formulas of the native row and column; `calls` records every window asked for."""

    id: str
    kind: Kind
    scenes: Sequence[ImageInfo] = ()
    formulas: Mapping[str, Field] = field(default_factory=dict)
    masks: Mapping[str, Field] = field(default_factory=dict)
    rows: Sequence[tuple[Any, Mapping[str, Any]]] = ()
    calls: list[tuple[str, str, int, int, int, int]] = field(default_factory=list)
    listed: list[dict[str, Any]] = field(default_factory=list)

    def info(self) -> dict[str, Any]:
        return {"title": self.id}

    def images(self, *, bounds=None, start_ms=None, end_ms=None) -> Sequence[ImageInfo]:
        self.listed.append({"bounds": bounds, "start_ms": start_ms, "end_ms": end_ms})
        return [
            scene
            for scene in self.scenes
            if scene.start_ms is None
            or ((start_ms is None or scene.start_ms >= start_ms) and (end_ms is None or scene.start_ms < end_ms))
        ]

    def image(self, index: str) -> ImageInfo:
        return {scene.index: scene for scene in self.scenes}[index]

    def window(self, image, band, row0, col0, height, width):
        self.calls.append((image.index, band, row0, col0, height, width))
        rows, cols = np.mgrid[row0 : row0 + height, col0 : col0 + width]
        values = self.formulas[band](rows, cols) + dict(image.properties).get("offset", 0)
        info = next(b for b in image.bands if b.id == band)
        inside = np.ones(rows.shape, dtype=bool)
        if info.height is not None:
            inside &= (rows >= 0) & (rows < info.height) & (cols >= 0) & (cols < info.width)
        if band in self.masks:
            inside = inside & self.masks[band](rows, cols)
        return values, inside

    def features(self):
        return self.rows


@dataclass
class FormulaWorld:
    datasets: Sequence[FormulaDataset]
    version: str = "formula-1"
    synthetic: bool = True

    def dataset(self, asset_id: str):
        return next((d for d in self.datasets if d.id == asset_id), None)

    def ids(self):
        return sorted(d.id for d in self.datasets)


def band(name: str, *, dtype="uint16", crs="EPSG:32631", origin=(600000.0, 5000040.0), gsd=10.0, size=120, **more):
    """A north-up band of size x size pixels with its outer corner at `origin`."""
    transform = (gsd, 0.0, origin[0], 0.0, -gsd, origin[1])
    return BandInfo(id=name, dtype=dtype, crs=crs, transform=transform, width=size, height=size, **more)


DAY_MS = 86_400_000
START_MS = 1_577_836_800_000
"""2020-01-01T00:00:00Z."""


@contextmanager
def connected(world: World) -> Iterator[Sandbox]:
    """The genuine client, talking to a sandbox over this world through the in-process transport."""
    sandbox = Sandbox(world)
    initialize("http://sandbox.invalid", http_transport=Transport(sandbox))
    try:
        yield sandbox
    finally:
        disconnect()


def initialize(url: str, **options: Any) -> None:
    """Point the client of this process at a sandbox, without its unbounded look at Google's list of old assets."""
    ee.Reset()
    ee.deprecation.deprecated_assets = {"-": None}
    ee.Initialize(credentials=None, url=url, project="tests", **options)
    ee.data.setMaxRetries(0)


def disconnect() -> None:
    """Leave the client as new, and let the earthengine source know that it has to connect again."""
    ee.Reset()
    session = sys.modules.get("mmbuild.sources.earthengine.session")
    if session is not None:
        session._connected = None


def pixels(image: Any, grid: dict[str, Any], form: str = "NPY", **more: Any) -> np.ndarray:
    """computePixels through the client, as the structured array."""
    raw = ee.data.computePixels({"expression": image, "fileFormat": form, "grid": grid, **more})
    return np.load(io.BytesIO(raw), allow_pickle=False)


def grid(left: float, top: float, *, gsd: float = 10.0, size: int | tuple[int, int] = 8, crs: str = "EPSG:32631"):
    """The grid message of a north-up window; size: (height, width) or one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "dimensions": {"width": width, "height": height},
        "affineTransform": {
            "scaleX": gsd, "shearX": 0.0, "translateX": left, "shearY": 0.0, "scaleY": -gsd, "translateY": top,
        },
        "crsCode": crs,
    }  # fmt: skip


def lonlat_box(crs: str, left: float, bottom: float, right: float, top: float) -> shapely.Polygon:
    """The outline of a projected box in lon/lat, through pyproj."""
    transform = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    return shapely.Polygon([transform(x, y) for x, y in ((left, bottom), (right, bottom), (right, top), (left, top))])


def sentinel_world(days: int = 10) -> FormulaWorld:
    """C/S2: one scene a day over 1.2 km of UTM 31N; B4 (10 m) = 1000 row + column + day, B5 (20 m), SCL (20 m), MISS.

    C/DEM: an image in EPSG:4326, z = 2 row + 3 column. C/REGIONS: a table of two squares.
    """
    bands = (
        band("B4"),
        band("B5", gsd=20.0, size=60),
        band("SCL", dtype="uint8", gsd=20.0, size=60, pyramiding="MODE"),
    )
    footprint = lonlat_box("EPSG:32631", 600000.0, 4998840.0, 601200.0, 5000040.0)
    scenes = [
        ImageInfo(
            id=f"C/S2/S{i:03d}",
            index=f"S{i:03d}",
            bands=bands,
            start_ms=START_MS + i * DAY_MS,
            footprint=footprint,
            properties={
                "CLOUDY": float((i * 7) % days),
                "offset": i,
                "pass": "ASC" if i % 2 else "DESC",
                "pols": ["VV", "VH"],
            },
        )
        for i in range(days)
    ]
    s2 = FormulaDataset(
        "C/S2",
        "image_collection",
        scenes,
        {"B4": lambda r, c: 1000 * r + c, "B5": lambda r, c: 100 * r + c, "SCL": lambda r, c: (r + c) % 11},
    )
    dem_band = BandInfo(
        id="z",
        dtype="float32",
        crs="EPSG:4326",
        transform=(0.001, 0.0, 4.0, 0.0, -0.001, 46.0),
        width=1000,
        height=1000,
    )
    dem = FormulaDataset(
        "C/DEM", "image", [ImageInfo(id="C/DEM", index="", bands=(dem_band,))], {"z": lambda r, c: 2.0 * r + 3.0 * c}
    )
    rows = [
        (shapely.box(0, 0, 1, 1), {"ECO_ID": 1, "name": "one", "area": 1.5}),
        (shapely.box(2, 0, 3, 1), {"ECO_ID": 2, "name": "two", "area": 0.5}),
    ]
    return FormulaWorld([s2, dem, FormulaDataset("C/REGIONS", "table", rows=rows)])
