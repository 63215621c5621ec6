"""What frozen features know: ``python -m train.probe CHECKPOINT OUT [--label NAME] [--json]``.

The encoder is never trained here. Nearest neighbours and logistic regression learn on the train split and are scored
on test, always beside two floors: statistics of the image, and the same encoder with untrained weights.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import MMBuildError, UserError
from mmbuild.modality import Modality
from mmbuild.stream.loader import Loader
from train import metrics
from train.checkpoint import Checkpoint, open_checkpoint
from train.config import model_file, read_dumped
from train.features import dominant_class, image_statistics

SPLITS = ("train", "val", "test")
NEIGHBOURS = (5, 20)
BATCH = 32
# Below this many test samples an accuracy is a rough guess: the 95 % interval is wider than 20 points.
FEW = 100
# The untrained encoder draws its weights from another seed than any training run is likely to use.
UNTRAINED_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """One classifier on one kind of features: accuracy on test with its 95 % bootstrap interval."""

    features: str
    method: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """All scores for one label. majority: accuracy of always saying train's most frequent class."""

    label: str
    about: str
    classes: int
    counts: dict[str, int]
    majority: float | None
    scores: list[Score]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Label:
    """One label: ``codes`` (n,) int, -1 where a sample has none; ``names`` by code."""

    name: str
    about: str
    codes: np.ndarray
    names: tuple[str, ...]


def probe(path: Path, corpus: Corpus, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Score a checkpoint on a corpus; plain values, as ``--json`` prints them.

    labels: modalities or tags; by default the first pixel-level and the first image-level classes of the corpus.
    Raises UserError for a label or input that the corpus does not have.
    """
    found = open_checkpoint(path)
    names = list(labels) or default_labels(corpus.modalities)
    if not names:
        raise UserError("no categorical modality to take labels from", corpus.store.url, "name a tag: --label KEY")
    loader = _loader(found, corpus, names)
    splits, tags = _catalogue(corpus)
    features, codes, ids = _collect(found, loader, names)
    part = np.array([splits.get(sample, "") for sample in ids])
    made = [_label(corpus, name, codes, [tags.get(sample, {}) for sample in ids]) for name in names]
    return {
        "checkpoint": str(found.path),
        "step": found.about["step"],
        "corpus": {"url": corpus.store.url, "name": corpus.recipe.name, "synthetic": corpus.synthetic},
        "pretraining_corpus": found.about["corpus"],
        "same_corpus": found.about["corpus"]["digest"] == corpus.digest,
        "inputs": [
            {"name": source["name"], "side": int(field.shape[-1])}
            for source, field in zip(found.about["inputs"], loader.fields, strict=False)
        ],
        "normalisation": f"(value - mean) / std by band, from the train split of {corpus.recipe.name}; masked pixels 0",
        "feature_scaling": "each feature standardised on the train split",
        "dimensions": {name: int(x.shape[1]) for name, x in features.items()},
        "labels": [asdict(score_label(label, features, part)) for label in made],
    }


def default_labels(modalities: Mapping[str, Modality]) -> list[str]:
    """The first categorical modality of either level; one that only judges another's quality is passed over."""
    judges = {m.clear.modality for m in modalities.values() if m.clear}
    judges |= {m.name for m in modalities.values() if m.same_scene_as}
    classes = [m for m in modalities.values() if m.values == "categorical" and m.name not in judges]
    first = (next((m.name for m in classes if m.level == level), None) for level in ("pixel", "image"))
    return [name for name in first if name]


# -- features and labels of every sample


def _loader(found: Checkpoint, corpus: Corpus, labels: Sequence[str]) -> Loader:
    """Whole chips where the patch divides them, else the centre window the model was trained on."""
    sources = found.about["inputs"]
    names = [*(one["name"] for one in sources), *(name for name in labels if name in corpus.modalities)]
    options: dict[str, Any] = {"split": None, "modalities": names, "batch_size": BATCH, "shuffle": False}
    loader = Loader(corpus, **options)
    for field, source in zip(loader.fields, sources, strict=False):
        if list(field.bands) != source["bands"]:
            reason = f"the model was trained on {source['name']} with bands {', '.join(source['bands'])}"
            fix = "use a matching corpus"
            raise UserError(f"{reason}, here they are {', '.join(field.bands)}", corpus.store.url, fix)
    if all(field.shape[-1] % source["patch"] == 0 for field, source in zip(loader.fields, sources, strict=False)):
        return loader
    return Loader(corpus, **options, crop=read_dumped(found.config).model.crop)


def _catalogue(corpus: Corpus) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Split and tags of every catalogued sample, by id."""
    items = pq.read_table(io.BytesIO(corpus.store.get("items.parquet")), columns=["id", "split"]).to_pylist()
    rows = corpus.records().select(["sample_id", "tags"]).group_by("sample_id").aggregate([("tags", "min")]).to_pylist()
    tags = {row["sample_id"]: json.loads(row["tags_min"] or "{}") for row in rows}
    return {item["id"]: item["split"] or "" for item in items}, tags


@torch.inference_mode()
def _collect(
    found: Checkpoint, loader: Loader, labels: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Features by kind (n, d), class codes by categorical label (n,), and sample ids."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file, arguments = model_file(found.about["model"]), found.about["arguments"]
    trained = file.build(arguments, torch.Generator().manual_seed(0))
    found.load_weights(trained)
    untrained = file.build(arguments, torch.Generator().manual_seed(UNTRAINED_SEED))
    models = {"untrained encoder": untrained.to(device).eval(), "pretrained encoder": trained.to(device).eval()}
    sources = [source["name"] for source in found.about["inputs"]]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("image statistics", *models)}
    fields = {f.name: f for f in loader.fields if f.name in labels and f.is_categorical}
    codes: dict[str, list[np.ndarray]] = {name: [] for name in fields}
    ids: list[str] = []
    for batch in loader:
        ids += batch["id"]
        statistics = [image_statistics(batch[source], batch[f"{source}_mask"]) for source in sources]
        parts["image statistics"].append(np.concatenate(statistics, axis=1))
        entry = {key: batch[key].to(device) for source in sources for key in (source, f"{source}_mask")}
        for name, model in models.items():
            parts[name].append(model.features(entry).float().cpu().numpy())
        for name, field in fields.items():
            codes[name].append(dominant_class(batch[name], field.n_classes))
    features = {name: np.concatenate(arrays).astype(np.float64) for name, arrays in parts.items()}
    return features, {name: np.concatenate(arrays) for name, arrays in codes.items()}, ids


def _label(corpus: Corpus, name: str, codes: dict[str, np.ndarray], tags: list[dict[str, Any]]) -> Label:
    """The label ``name`` of every sample, from a modality or from the samples' tags."""
    if name in codes:
        modality = corpus.modalities[name]
        by_code = {item.code: item.name for item in modality.classes}
        about = "dominant class" if modality.level == "pixel" else "class of the sample"
        return Label(name=name, about=about, codes=codes[name], names=tuple(by_code[c] for c in modality.class_codes))
    values = [tag.get(name) for tag in tags]
    if not any(value is not None for value in values):
        known = [m.name for m in corpus.modalities.values() if m.values == "categorical"]
        known += sorted({key for tag in tags for key in tag} - set(known))
        raise UserError(f"--label: no class label {name!r}", corpus.store.url, f"choose from {', '.join(known)}")
    names = sorted({str(value) for value in values if value is not None})
    places = [-1 if value is None else names.index(str(value)) for value in values]
    return Label(name=name, about="tag", codes=np.array(places), names=tuple(names))


# -- scoring


def score_label(label: Label, features: dict[str, np.ndarray], part: np.ndarray) -> LabelReport:
    """Every classifier on every kind of features; a split that is too small is said, not raised."""
    rows = {split: np.flatnonzero((part == split) & (label.codes >= 0)) for split in SPLITS}
    counts = {split: len(index) for split, index in rows.items()}
    truth = {split: label.codes[index] for split, index in rows.items()}
    scores: list[Score] = []
    majority = None
    if counts["train"] and counts["test"]:
        majority = float((truth["test"] == metrics.most_frequent(truth["train"])).mean())
        for name, x in features.items():
            scores += _scores(name, {split: x[index] for split, index in rows.items()}, truth)
    return LabelReport(
        label=label.name, about=label.about, classes=len(np.unique(label.codes[label.codes >= 0])), counts=counts,
        majority=majority, scores=scores, notes=_notes(counts, truth),
    )  # fmt: skip


def _scores(name: str, x: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> Iterable[Score]:
    train, val, test = metrics.standardise(x["train"], x["val"], x["test"])
    classes = int(truth["train"].max()) + 1
    for k in NEIGHBOURS:
        for weighted in (True, False):
            said = metrics.knn_predict(train, truth["train"], test, k=k, weighted=weighted, classes=classes)
            yield _score(name, f"kNN {k} {'cosine' if weighted else 'plain'}", said == truth["test"])
    said, _ = metrics.logistic_predict(train, truth["train"], (val, truth["val"]), test)
    yield _score(name, "logistic", said == truth["test"])


def _score(features: str, method: str, hits: np.ndarray) -> Score:
    low, high = metrics.bootstrap_interval(hits, seed=0)
    return Score(features=features, method=method, accuracy=float(hits.mean()), low=low, high=high)


def _notes(counts: dict[str, int], truth: dict[str, np.ndarray]) -> list[str]:
    """What a reader must know about splits that are too small to trust."""
    empty = [split for split in ("train", "test") if not counts[split]]
    if empty:
        return [f"not scored: split {' and '.join(empty)} has no labelled sample"]
    notes = []
    if counts["test"] < FEW:
        notes.append(f"only {counts['test']} test samples: the intervals are wide, small differences mean nothing")
    if not counts["val"]:
        notes.append("no val samples: logistic regression uses C = 1 instead of choosing it")
    if counts["train"] < max(NEIGHBOURS):
        notes.append(f"only {counts['train']} train samples: kNN {max(NEIGHBOURS)} takes them all")
    unseen = np.setdiff1d(truth["test"], truth["train"])
    if len(unseen):
        missed = int(np.isin(truth["test"], unseen).sum())
        notes.append(f"{missed} test samples have a class that train does not have; they count as errors")
    return notes


# -- printing


def _print(result: dict[str, Any], console: Console) -> None:
    synthetic = " (synthetic data)" if result["corpus"]["synthetic"] else ""
    name = result["corpus"]["name"]
    text = f"frozen features of {result['checkpoint']} on {name}{synthetic}"
    console.print(escape(text), highlight=False, soft_wrap=True)
    for report in result["labels"]:
        console.print(f"\n[bold]{escape(_heading(report))}[/]", highlight=False, soft_wrap=True)
        if report["scores"]:
            console.print(_table(report))
        for note in report["notes"]:
            console.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)
    seen = ", ".join(f"{source['name']}, {source['side']} px" for source in result["inputs"])
    text = f"\ninput {seen}; {result['normalisation']}"
    console.print(escape(text), highlight=False, soft_wrap=True)


def _heading(report: dict[str, Any]) -> str:
    counts = ", ".join(f"{split} {n}" for split, n in report["counts"].items())
    majority = "" if report["majority"] is None else f"; most frequent class {report['majority']:.1%}"
    return f"{report['label']} ({report['about']}): {report['classes']} classes; {counts}{majority}"


def _table(report: dict[str, Any]) -> Table:
    table = Table(caption="accuracy on test in % (95 % bootstrap interval)")
    table.add_column("")
    kinds = list(dict.fromkeys(score["features"] for score in report["scores"]))
    for kind in kinds:
        table.add_column(kind, justify="right")
    for method in dict.fromkeys(score["method"] for score in report["scores"]):
        own = {s["features"]: s for s in report["scores"] if s["method"] == method}
        table.add_row(method, *(_cell(own[kind]) for kind in kinds))
    return table


def _cell(score: dict[str, Any]) -> str:
    return f"{100 * score['accuracy']:.1f} ({100 * score['low']:.0f}-{100 * score['high']:.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 2 wrong input, 1 other errors."""
    parser = argparse.ArgumentParser(prog="python -m train.probe", description="Score the frozen features of a model.")
    parser.add_argument("checkpoint", type=Path, help="a training run's `out`, or one of its checkpoints")
    parser.add_argument("corpus", help="a built corpus")
    parser.add_argument("--label", action="append", default=[], help="categorical modality or tag; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    try:
        result = probe(options.checkpoint, open_corpus(options.corpus), options.label)
    except MMBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
