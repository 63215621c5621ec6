"""Tar files of samples for WebDataset and everything else that streams tars.

``<name>-<split>-000000.tar`` holds samples of one split in the order of their slots; a sample is ``<id>.json`` and, for
each stored modality, ``<id>.<modality>.npy`` with the values as stored: (band, y, x) or (band,), and a time axis in
front where there are several steps. A modality without a chip has no file; the JSON says why.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from mmbuild.export import Job, Options, Unit, in_groups, write_units
from mmbuild.foreign.chips import Sample, SampleReader
from mmbuild.foreign.files import Files

OPTIONS = frozenset({"name", "split", "modalities", "samples_per_file"})
# Some 200 MB of 128 px chips of all modalities: big enough to stream, small enough to shuffle.
SAMPLES_PER_FILE = 200


def prepare(reader: SampleReader, options: Options) -> None:
    """Any corpus will do."""


def export(job: Job, prepared: None) -> list[str]:
    """Write one tar per split and ``samples_per_file`` samples."""
    name = job.options.name or job.corpus.recipe.name
    size = job.options.samples_per_file or SAMPLES_PER_FILE
    units = [
        Unit(name=f"{name}-{split or 'none'}-{number:06d}.tar", slots=slots)
        for split in sorted(set(job.reader.splits.tolist()))
        for number, slots in enumerate(in_groups(job.reader.slots[job.reader.splits == split], size))
    ]
    write_units(job, units, lambda unit, samples, files: _write_tar(job, unit, samples, files), version="webdataset 1")
    return []


def _write_tar(job: Job, unit: Unit, samples: Sequence[Sample], files: Files) -> None:
    with files.open(unit.name) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            _add(tar, f"{sample.sample_id}.json", json.dumps(_about(job, sample)).encode())
            for name in job.modalities:
                values = _values(job, sample, name)
                if values is not None:
                    _add(tar, f"{sample.sample_id}.{name}.npy", _npy(values))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without owner and time, so that the same samples give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _npy(values: np.ndarray) -> bytes:
    sink: IO[bytes] = io.BytesIO()
    np.lib.format.write_array(sink, values, allow_pickle=False)
    sink.seek(0)
    return sink.read()


def _values(job: Job, sample: Sample, name: str) -> np.ndarray | None:
    """The chips of all time steps, nodata where one is not stored; None where none is."""
    layout = job.corpus.layouts[name]
    chips = [job.reader.chip(sample, name, time) for time in range(layout.times)]
    if all(chip is None for chip in chips):
        return None
    whole = [np.full(layout.chip, layout.modality.fill) if chip is None else chip for chip in chips]
    return whole[0] if layout.times == 1 else np.stack(whole)


def _about(job: Job, sample: Sample) -> dict[str, Any]:
    about = sample.about
    corner = None if about["x0"] is None else [about["x0"], about["y0"]]
    return {
        "id": sample.sample_id, "split": sample.split, "lon": about["lon"], "lat": about["lat"],
        "epsg": about["epsg"], "corner": corner, "anchor": _iso(about["anchor_time"]),
        "tags": json.loads(about["tags"]), "synthetic": job.corpus.synthetic,
        "modalities": {name: _chip(job, sample, name) for name in job.modalities},
    }  # fmt: skip


def _chip(job: Job, sample: Sample, name: str) -> dict[str, Any]:
    layout = job.corpus.layouts[name]
    rows = [row for time in range(layout.times) if (row := sample.rows.get((name, time))) is not None]
    return {
        "bands": list(layout.modality.band_names), "nodata": layout.modality.fill.item(), "gsd": layout.gsd,
        "status": [row["status"] for row in rows], "reason": [row["reason"] for row in rows],
        "datetime": [_iso(row["datetime"]) for row in rows], "scenes": [row["scene_ids"] for row in rows],
    }  # fmt: skip


def _iso(time: Any) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")
