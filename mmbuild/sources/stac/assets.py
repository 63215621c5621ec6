"""Cloud-optimised GeoTIFFs by window: one band of an asset as a raster, with what its numbers mean already applied.

Files are read by GDAL, a window at a time; what a server refuses for the moment is told apart from what it refuses for
good. Nothing is resampled here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import RasterioError
from rasterio.transform import from_gcps
from rasterio.windows import Window

from mmbuild.align import Pixels, Raster
from mmbuild.errors import MMBuildError, SourceError, UserError
from mmbuild.modality import Modality
from mmbuild.sources.stac.blocks import BandAsset, Entry
from mmbuild.sources.stac.catalogues import TRANSIENT_STATUS, Item

# Each of these is tested for what it does; GDAL ignores a misspelt one without a word.
GDAL_OPTIONS = {
    # No requests for files beside the asset (.aux.xml, .ovr, .msk), which no cloud-optimised GeoTIFF needs.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    # One retry policy, ours: GDAL's own would multiply with it.
    "GDAL_HTTP_MAX_RETRY": "0",
    # Seconds for a connection to stand, and for one range to come.
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "120",
    # A file's size comes with its first range; asking for it alone costs a request.
    "CPL_VSIL_CURL_USE_HEAD": "NO",
    # GDAL remembers a failure for as long as the process lives; a bucket's file is asked for again (see Asset.path).
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsigs/",
}
# Prefixes of hrefs that GDAL reads through a door of its own.
_DOORS = {"s3://": "/vsis3/", "gs://": "/vsigs/", "http://": "/vsicurl/http://", "https://": "/vsicurl/https://"}


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One band of one item's file, and how its numbers become those that are stored."""

    href: str
    band: int
    add: float
    minimum: float
    nodata: float | None
    decibel: bool
    classes: bool
    seen: list[int] = field(default_factory=list)  # bytes of the windows that were read, decoded
    failures: list[SourceError] = field(default_factory=list)

    @property
    def path(self) -> str:
        """What GDAL opens: after a failure another name of the same file, for the old one would fail from memory."""
        path = path_of(self.href)
        is_web = self.href.startswith(("http://", "https://"))
        return f"{path}#{len(self.failures)}" if self.failures and is_web else path

    @contextmanager
    def opened(self) -> Iterator[Raster | None]:
        """The band as a raster for as long as the block runs; None when the file has fewer bands.

        Raises SourceError or UserError when the file cannot be opened, and reading it does the same.
        """
        with rasterio.Env(**GDAL_OPTIONS), ExitStack() as files:
            with self._told():
                file = files.enter_context(rasterio.open(self.path))
            if self.band > file.count:
                yield None
                return
            crs, transform = _lattice(file, self.href)
            whole = np.dtype(file.dtypes[self.band - 1]).kind in "iu" and not self.decibel
            yield Raster(
                crs=crs, transform=transform, height=file.height, width=file.width, read=partial(self._read, file),
                classes=self.classes, whole=whole,
            )  # fmt: skip

    def _read(self, file: Any, row: int, col: int, height: int, width: int) -> Pixels:
        window = Window(col, row, width, height)
        with self._told():
            raw = file.read(self.band, window=window)
            # Where the file has a mask of its own (an alpha band, an internal mask), it says what is data.
            is_masked = rasterio.enums.MaskFlags.per_dataset in file.mask_flag_enums[self.band - 1]
            own = file.read_masks(self.band, window=window) > 0 if is_masked else None
        self.seen.append(raw.nbytes)
        return self._measured(raw.astype(np.float64), file.nodatavals[self.band - 1], own)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """GDAL's refusals as errors of ours."""
        try:
            yield
        except RasterioError as error:
            meant = _meaning(error, self.href)
            if isinstance(meant, SourceError):
                self.failures.append(meant)
            raise meant from error

    def _measured(self, raw: Any, declared: float | None, own: Any) -> Pixels:
        valid = np.isfinite(raw)
        for nodata in (self.nodata, declared):
            if nodata is not None and math.isfinite(nodata):
                valid &= raw != nodata
        if own is not None:
            valid &= own
        if self.decibel:
            valid &= raw > 0
            raw = 10 * np.log10(np.where(valid, raw, 1.0))
        if self.add:
            raw = np.maximum(raw + self.add, self.minimum)
        return np.where(valid, raw, 0.0), valid.astype(np.float64)


def assets_of(modality: Modality, entry: Entry, item: Item) -> dict[str, Asset | None]:
    """Our band -> its asset in an item; None where the item has none."""
    shift, harmonise = entry.shift(item), entry.harmonise
    found: dict[str, Asset | None] = {}
    for name in modality.band_names:
        place: BandAsset = entry.band(name)
        asset = item["assets"].get(place.asset)
        found[name] = None if asset is None else Asset(
            href=asset["href"], band=place.band, add=shift, minimum=harmonise.minimum if harmonise else 0.0,
            nodata=entry.nodata, decibel=entry.decibel, classes=modality.values == "categorical",
        )  # fmt: skip
    return found


def _lattice(file: Any, href: str) -> tuple[str, Affine]:
    """CRS and transform of a file; where it has control points alone, the affine that fits them best."""
    crs, transform = file.crs, file.transform
    if crs is None and file.gcps[0]:
        crs, transform = file.gcps[1], from_gcps(file.gcps[0])
    if crs is None:
        raise SourceError(f"{href} has no CRS")
    epsg = crs.to_epsg()
    return (crs.to_wkt() if epsg is None else f"EPSG:{epsg}"), transform


def path_of(href: str) -> str:
    """An href as GDAL opens it."""
    door = next((door for prefix, door in _DOORS.items() if href.startswith(prefix)), None)
    if door is None:
        return href.removeprefix("file://")
    return door + href.split("://", 1)[1]


def _meaning(error: RasterioError, href: str) -> MMBuildError:
    """What GDAL says of a file: the server's trouble, a missing account, or a file that is not as the item says."""
    text = " ".join(str(part) for part in (error, error.__cause__, error.__context__) if part)
    status = re.search(r"HTTP response code(?: on \S+)?: (\d+)|HTTP error code ?: (\d+)", text)
    code = int(status[1] or status[2]) if status else None
    brief = str(error).splitlines()[0][:300]
    if code in (401, 403, 409) or "AccessDenied" in text or "InvalidAccessKeyId" in text or "AWS_SECRET" in text:
        return UserError(
            f"the file wants credentials: {brief}", href,
            "use a catalogue whose assets are open, or set the credentials of its cloud (AWS_*, with "
            "AWS_REQUEST_PAYER=requester where the reader pays)",
        )  # fmt: skip
    is_remote = "://" in href and not href.startswith("file://")
    lost = code in TRANSIENT_STATUS or (is_remote and code is None and "404" not in text)
    return SourceError(f"{href} cannot be read: {brief}", transient=lost)
