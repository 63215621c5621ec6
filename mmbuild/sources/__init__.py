"""Where pixels come from: one file is one source, and the file's name is its name in a recipe.

A source answers what it is asked; which scene is taken is decided in ``choose``. ``sandbox`` is the name of the
earthengine source over the offline Earth Engine that mmbuild carries.
"""

from __future__ import annotations

import pkgutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.errors import UserError
from mmbuild.modality import Modality
from mmbuild.throttle import Gate

if TYPE_CHECKING:
    import geopandas as gpd

# The earthengine source over the offline Earth Engine.
SANDBOX = "sandbox"

# Samples whose scenes are asked for in one metadata request, and pairs of a sample and a scene screened in one: the
# expression stays far below the 10 MB that a request may have, the answer below 5,000 elements a list. What
# turns out too much for the service is halved.
SAMPLES_PER_REQUEST = 64
PAIRS_PER_REQUEST = 128

# computePixels rejects answers above 48 MB, counted with one mask byte per value, and of more bands (Earth Engine REST
# reference).
RESPONSE_LIMIT_BYTES = 48 * 2**20
RESPONSE_LIMIT_BANDS = 1024

# west, south, east, north in degrees.
Box = tuple[float, float, float, float]

# Held while any Usage is added to: its counters are read, added and written. Outside Usage, which is sent by pickle.
_counting = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One modality of one sample to look for: the half-open time window, or None when it has no date."""

    modality: Modality
    window: tuple[datetime, datetime] | None
    max_cloud: float | None = None


@dataclass(kw_only=True)
class Usage:
    """What a source was asked: counts of requests that were answered, of retries, and what all of them cost.

    bytes: received, and sent_bytes: sent, as they went over the wire. eecu_seconds: Earth Engine compute units times
    seconds, as far as answers tell (the live service's do not). places: that scenes were looked for at, those rejected
    later and their alternates included. Threads share one, so it only ever grows through ``add``.
    """

    metadata_requests: int = 0
    pixel_requests: int = 0
    retries: int = 0
    bytes: int = 0
    sent_bytes: int = 0
    eecu_seconds: float = 0.0
    places: int = 0

    @property
    def requests(self) -> int:
        return self.metadata_requests + self.pixel_requests

    def since(self, before: Usage) -> Usage:
        """What was asked after ``before``, an earlier copy."""
        return Usage(**{name: value - getattr(before, name) for name, value in vars(self).items()})

    def add(self, other: Usage) -> None:
        """Add the counts of another one, exactly also when several threads do."""
        with _counting:
            for name in vars(self):
                setattr(self, name, getattr(self, name) + getattr(other, name))


class Source(Protocol):
    """Plain data in, plain data out; opened in the worker that uses it and safe to use from several threads."""

    usage: Usage

    def identity(self) -> dict[str, Any]:
        """What the pixels come from, for the lock file: the same source gives the same bytes. Has key ``synthetic``."""
        ...

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        """Candidate scenes of every sample for its asks (by slot); footprints contain the whole chip.

        A modality may be asked for in several windows.
        """
        ...

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        """Clear fraction (0..1) of each sample's ground in a scene; None where no pixel is valid."""
        ...

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        """Pixels of every choice on the sample's grid, (band, y, x) or (band,), with nodata where missing.

        Keys are the caller's own, one for each chip; which modality it is of, the choice says.
        """
        ...

    def regions(self, name: str) -> gpd.GeoDataFrame:
        """All polygons of a named table, EPSG:4326, with their properties as columns."""
        ...


@runtime_checkable
class DrawsPoints(Protocol):
    """A source that draws random points by itself, so that the seeds of a published corpus mean the same."""

    def random_points(self, table: str, column: str, value: str, count: int, seed: int) -> np.ndarray:
        """``count`` points (point, 2) lon, lat inside the rows of a table where ``column`` is ``value``."""
        ...


@runtime_checkable
class KnowsCoverage(Protocol):
    """A source that says where a modality has images before any place is chosen."""

    def coverage(
        self, modality: str, groups: Sequence[Sequence[Box]], window: tuple[datetime, datetime]
    ) -> gpd.GeoDataFrame:
        """Footprints, EPSG:4326, of the images in a half-open window that meet the boxes; one may come twice.

        Column time says when an image begins, in UTC. The boxes of a group lie near each other and are asked for
        together.
        """
        ...


@runtime_checkable
class TellsCompute(Protocol):
    """A source that knows whether its answers tell the compute time that they cost; another's never do."""

    def tells_compute(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """How to open a source, as plain data that travels to workers.

    others: the sources of the modalities that do not come from this one, by modality; one of a name is one source.
    key: a service account's key file. tag: what requests are labelled with in the project's bill. record: a folder that
    keeps every request and answer; replay: one that answers instead of a network.
    """

    name: str
    url: str | None = None
    project: str | None = None
    catalog: str | None = None
    archive: str | None = None
    archive_root: str | None = None
    key: str | None = None
    tag: str | None = None
    record: str | None = None
    replay: str | None = None
    others: Mapping[str, SourceSpec] = field(default_factory=dict)


def kinds() -> list[str]:
    """Names of the sources that can be opened: the files and folders here that have ``open``."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if hasattr(import_module(f"{__name__}.{name}"), "open"))


def open_source(
    spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float], gate: Gate | None = None
) -> Source:
    """Open a source for the given modalities; ``gsd`` is the pixel size at which each is stored, in metres.

    gate: asked before every request; None lets everything pass.
    Raises UserError for a source that does not exist.
    """
    own = _open_one(replace(spec, others={}), modalities, gsd, gate)
    if not spec.others:
        return own
    from mmbuild.sources.several import Several

    opened = {other.name: other for other in spec.others.values()}
    sources = {name: _open_one(other, modalities, gsd, gate) for name, other in opened.items()}
    return Several(own, {modality: sources[other.name] for modality, other in spec.others.items()})


def kind_of(spec: SourceSpec) -> str:
    """The file or folder here that answers for a source's name."""
    return "earthengine" if spec.name == SANDBOX else spec.name


def _open_one(
    spec: SourceSpec, modalities: Mapping[str, Modality], gsd: Mapping[str, float], gate: Gate | None
) -> Source:
    if kind_of(spec) not in kinds():
        raise UserError(f"there is no source {spec.name!r}", "source", f"use {', '.join([*kinds(), SANDBOX])}")
    source: Source = import_module(f"{__name__}.{kind_of(spec)}").open(spec, modalities, gsd, gate)
    return source
