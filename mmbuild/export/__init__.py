"""A corpus in the layouts that other people's readers know: one file here is one layout, its name is the format's.

Which modality goes where is data beside the code. A layout that needs what the corpus lacks is refused before anything
is written; pixels that are missing are written as the layout says, never as plausible values.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.explain import suggest
from mmbuild.foreign.chips import Sample, SampleReader
from mmbuild.foreign.files import Files, Folder, claimed, ordered
from mmbuild.records import committed_shards, record_key

Progress = Callable[[int, int, int], None]
# Whether the pixels are made up, in the words that every layout's notes use.
SYNTHETIC: dict[bool | None, str] = {True: "yes", False: "no", None: "unknown"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may choose; every format takes some of these (its ``OPTIONS``). None: the format's own choice.

    name: stem of files. split: only these samples. modalities: only these. size: centre crop in pixels of the finest.
    version: of the layout. samples_per_file: for layouts that pack several. faithful: with the quirks as published,
    None as the corpus's recipe says.
    allow_missing: what the corpus lacks is written as the layout's no-data instead of being refused.
    """

    name: str | None = None
    split: str | None = None
    modalities: tuple[str, ...] | None = None
    size: int | None = None
    version: str | None = None
    samples_per_file: int | None = None
    faithful: bool | None = None
    allow_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """One export under way: where from, where to, and how."""

    reader: SampleReader
    folder: Folder
    options: Options
    threads: int
    progress: Progress

    @property
    def corpus(self) -> Corpus:
        return self.reader.corpus

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are exported, in the order of the corpus."""
        return tuple(name for name in self.corpus.modalities if name in (self.options.modalities or (name,)))


class Format(Protocol):
    """What a file of this folder offers.

    ``prepare`` refuses a corpus that lacks what the layout needs, before anything is written; what it answers is given
    to ``export``, which answers what the layout could not carry, in sentences.
    """

    OPTIONS: frozenset[str]

    def prepare(self, reader: SampleReader, options: Options) -> Any: ...

    def export(self, job: Job, prepared: Any) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did: bytes and files are those written in this run, reused is the number of finished units.

    faithful: whether quirks as published were written; None for a layout that has none.
    """

    format: str
    dest: str
    samples: int
    files: int
    bytes: int
    reused: int
    faithful: bool | None
    lost: list[str]


def formats() -> list[str]:
    """The layouts there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def export_corpus(
    corpus: Corpus,
    dest: str | os.PathLike[str],
    *,
    format: str,
    options: Options | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a corpus in a foreign layout into the folder ``dest``, or finish what an interrupted export left.

    Quirks as published are written when the corpus's recipe has ``mode: faithful``, unless the options say otherwise.
    progress: called with (units done, units, bytes written). Raises UserError for a format or option that does not
    exist, a corpus that lacks what the layout needs, and a folder that holds something else.
    """
    chosen = options or Options()
    module = _format(format)
    _check_options(format, module.OPTIONS, chosen)
    if "://" in os.fspath(dest):
        raise UserError("exports are written to a folder", os.fspath(dest), "export to a local folder and copy it")
    has_quirks = "faithful" in module.OPTIONS
    faithful = corpus.recipe.mode == "faithful" if has_quirks and chosen.faithful is None else bool(chosen.faithful)
    chosen = replace(chosen, modalities=_modalities(corpus, chosen.modalities), faithful=faithful)
    reader = SampleReader(corpus).narrowed(chosen.split)
    root = Path(dest)
    prepared = module.prepare(reader, chosen)
    with claimed(root, _same(corpus, format, chosen), _about(corpus)) as folder:
        job = Job(
            reader=reader, folder=folder, options=chosen, threads=threads or min(8, os.cpu_count() or 1),
            progress=progress or (lambda done, total, size: None),
        )  # fmt: skip
        lost = module.export(job, prepared)
        folder.finish({"samples": len(reader), "not carried": lost})
    return Exported(
        format=format, dest=str(root), samples=len(reader), files=folder.files, bytes=folder.bytes,
        reused=folder.reused, faithful=faithful if has_quirks else None, lost=lost,
    )  # fmt: skip


def _format(name: str) -> Format:
    if name not in formats():
        raise UserError(f"there is no format {name!r}", "--format", suggest(name, formats()))
    module: Any = importlib.import_module(f"{__name__}.{name}")
    return module  # type: ignore[no-any-return]


def _check_options(format: str, known: frozenset[str], options: Options) -> None:
    standard = Options()
    for field in fields(options):
        if getattr(options, field.name) != getattr(standard, field.name) and field.name not in known:
            flags = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in known))
            raise UserError(
                f"means nothing for the format {format}", f"--{field.name.replace('_', '-')}", f"it takes {flags}"
            )


def _modalities(corpus: Corpus, names: Sequence[str] | None) -> tuple[str, ...] | None:
    for name in names or ():
        if name not in corpus.modalities:
            raise UserError(
                f"no modality {name!r} in {corpus.store.url}", "--modalities", suggest(name, list(corpus.modalities))
            )
    return None if names is None else tuple(names)


def _same(corpus: Corpus, format: str, options: Options) -> dict[str, Any]:
    """What makes two exports the same one; a corpus that has grown since is still the same corpus."""
    chosen = {field.name: getattr(options, field.name) for field in fields(options)}
    chosen["modalities"] = None if options.modalities is None else list(options.modalities)
    return {"format": format, "corpus": corpus.recipe.name, "digest": corpus.digest, "options": chosen}


def _about(corpus: Corpus) -> dict[str, Any]:
    inside = corpus.modalities.values()
    return {
        "mmbuild:synthetic": corpus.synthetic,
        "licence": corpus.recipe.licence,
        "attributions": sorted({modality.attribution for modality in inside}),
    }


def records_digest(corpus: Corpus) -> str:
    """A digest of all that is stored and how it is split: what a layout of few files is made from."""
    total = hashlib.sha256()
    for shard in committed_shards(corpus.store):
        total.update(corpus.store.get(record_key(shard)))
    total.update(corpus.store.get("items.parquet"))
    return total.hexdigest()


# -- many files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is written, recorded and resumed together: the files of some samples."""

    name: str
    slots: tuple[int, ...]


def write_units(
    job: Job, units: Sequence[Unit], write: Callable[[Unit, Sequence[Sample], Files], None], *, version: str
) -> None:
    """Write every unit that is not finished yet, on threads, and record it when its files are whole.

    version: changes when the code writes other bytes for the same samples.
    """

    def work(unit: Unit) -> tuple[Unit, str, Files | None]:
        samples = [job.reader.sample(slot) for slot in unit.slots]
        source = hashlib.sha256(":".join([version, *(sample.digest for sample in samples)]).encode()).hexdigest()
        if job.folder.has(unit.name, source):
            return unit, source, None
        files = Files(job.folder.root)
        write(unit, samples, files)
        return unit, source, files

    for done, (unit, source, files) in enumerate(ordered(work, units, job.threads), start=1):
        if files is None:
            job.folder.reused += 1
        else:
            job.folder.add(unit.name, source, files)
        job.progress(done, len(units), job.folder.bytes)
    job.folder.drop_others({unit.name for unit in units})


def in_groups(slots: Iterable[int], size: int) -> list[tuple[int, ...]]:
    """Slots in their order, ``size`` at a time."""
    found = [int(slot) for slot in slots]
    return [tuple(found[first : first + size]) for first in range(0, len(found), size)]
