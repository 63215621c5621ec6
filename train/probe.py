"""What frozen features know: ``python -m train.probe CHECKPOINT DATA [--label NAME] [--methods ...] [--json]``.

DATA is a built corpus, a .npz file of labelled images or features, or a folder of GEO-Bench. The encoder is never
trained here. Classifiers learn on the train split and are scored on test, always beside three floors: statistics of the
image, random convolutions, and the same encoder with untrained weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mmbuild.cube import Corpus, open_corpus
from mmbuild.errors import MMBuildError, UserError
from mmbuild.stream.loader import Loader
from train.arrays import Labelled, is_labelled, read_labelled
from train.checkpoint import Checkpoint, open_checkpoint
from train.config import model_file, read_dumped
from train.features import image_statistics, random_convolutions
from train.labels import Label, can_measure, default_labels, make_label, measure, modality_of
from train.multilabel import MEASURES, score_multilabel
from train.scoring import DEFAULT_METHODS, METHODS, score_label
from train.views import SCALINGS, Viewer

BATCH = 32
# The methods whose gains are printed; --json has those of all.
COMPARED = ("logistic", *MEASURES)
# The untrained encoder and the random filters draw from another seed than any training run is likely to use.
UNTRAINED_SEED = 2**31 - 1
STATISTICS, CONVOLUTIONS = "image statistics", "random convolutions"
UNTRAINED, PRETRAINED = "untrained encoder", "pretrained encoder"


def probe(
    path: Path, corpus: Corpus, labels: Sequence[str] = (), methods: Sequence[str] = DEFAULT_METHODS
) -> dict[str, Any]:
    """Score a checkpoint on a corpus; plain values, as ``--json`` prints them.

    labels: as in train.labels; by default the first pixel-level and the first image-level classes of the corpus.
    Raises UserError for a label or input that the corpus does not have.
    """
    found = open_checkpoint(path)
    names = list(labels) or default_labels(corpus.modalities)
    if not names:
        raise UserError("no categorical modality to take labels from", corpus.store.url, "name a tag: --label KEY")
    loader = _loader(found, corpus, names)
    splits, tags = _catalogue(corpus)
    features, measured, ids = _collect(found, loader, names)
    part = np.array([splits.get(sample, "") for sample in ids])
    made = [make_label(corpus, name, measured, [tags.get(sample, {}) for sample in ids], part) for name in names]
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
        "normalisation": f"{SCALINGS[_config(found).view.scaling]}, from the train split of {corpus.recipe.name}; "
        "masked pixels 0",
        "feature_scaling": "each feature standardised on the train split",
        "dimensions": {name: int(x.shape[1]) for name, x in features.items()},
        "labels": [asdict(score_label(label, features, part, methods)) for label in made],
    }


# -- features and labels of every sample


def _loader(found: Checkpoint, corpus: Corpus, labels: Sequence[str]) -> Loader:
    """Whole chips where the patch divides them, else the centre window the model was trained on."""
    sources = found.about["inputs"]
    wanted = dict.fromkeys(map(modality_of, labels))
    names = [*(one["name"] for one in sources), *(name for name in wanted if name in corpus.modalities)]
    config = read_dumped(found.config)
    options: dict[str, Any] = {"split": None, "modalities": names, "batch_size": BATCH, "shuffle": False}
    options["time"] = config.view.still_time
    loader = Loader(corpus, **options)
    for field, source in zip(loader.fields, sources, strict=False):
        if list(field.bands) != source["bands"]:
            reason = f"the model was trained on {source['name']} with bands {', '.join(source['bands'])}"
            fix = "use a matching corpus"
            raise UserError(f"{reason}, here they are {', '.join(field.bands)}", corpus.store.url, fix)
    if all(field.shape[-1] % source["patch"] == 0 for field, source in zip(loader.fields, sources, strict=False)):
        return loader
    return Loader(corpus, **options, crop=config.model.crop)


def _catalogue(corpus: Corpus) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Split and tags of every catalogued sample, by id."""
    items = pq.read_table(pa.BufferReader(corpus.store.get("items.parquet")), columns=["id", "split"]).to_pylist()
    rows = corpus.records().select(["sample_id", "tags"]).group_by("sample_id").aggregate([("tags", "min")]).to_pylist()
    tags = {row["sample_id"]: json.loads(row["tags_min"] or "{}") for row in rows}
    return {item["id"]: item["split"] or "" for item in items}, tags


def _config(found: Checkpoint) -> Any:
    return read_dumped(found.config)


@torch.no_grad()
def _collect(
    found: Checkpoint, loader: Loader, labels: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Features by kind (n, d), what labels are made from by categorical label (n,), and sample ids."""
    models = _models(found)
    view = Viewer(_config(found).view, loader.fields, side=_config(found).model.crop, seed=0, still=True)
    sources = [source["name"] for source in found.about["inputs"]]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (STATISTICS, CONVOLUTIONS, *models)}
    maps = {field.name: field for field in view.fields if field.is_categorical}
    fields = {name: maps[modality_of(name)] for name in labels if can_measure(name, maps.get(modality_of(name)))}
    measured: dict[str, list[np.ndarray]] = {name: [] for name in fields}
    ids: list[str] = []
    for batch in loader:
        seen = view(batch)
        ids += seen["id"]
        _add(parts, _floors({source: (seen[source], seen[f"{source}_mask"]) for source in sources}))
        entry = {key: seen[key] for source in sources for key in (source, f"{source}_mask")}
        _add(parts, _encoded(models, entry))
        for name, field in fields.items():
            measured[name].append(measure(name, seen[field.name], field.n_classes))
    return _joined(parts), {name: np.concatenate(arrays) for name, arrays in measured.items()}, ids


def _models(found: Checkpoint) -> dict[str, Any]:
    """The encoder with untrained and with pretrained weights, on the device there is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file, arguments = model_file(found.about["model"]), found.about["arguments"]
    untrained, trained = (file.build(arguments, torch.Generator().manual_seed(s)) for s in (UNTRAINED_SEED, 0))
    found.load_weights(trained)
    return {UNTRAINED: untrained.to(device).eval(), PRETRAINED: trained.to(device).eval()}


def _floors(images: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, np.ndarray]:
    """What needs no encoder."""
    statistics = [image_statistics(*pair) for pair in images.values()]
    convolved = [random_convolutions(*pair, seed=UNTRAINED_SEED) for pair in images.values()]
    return {STATISTICS: np.concatenate(statistics, axis=1), CONVOLUTIONS: np.concatenate(convolved, axis=1)}


def _encoded(models: Mapping[str, Any], entry: Mapping[str, Tensor], alone: str | None = None) -> dict[str, np.ndarray]:
    """Features of every model; alone: the one input that there is, of a model that encodes each by itself."""
    made = {}
    for name, model in models.items():
        moved = {key: value.to(next(model.parameters()).device) for key, value in entry.items()}
        if alone is None or not hasattr(model, "sensors"):
            features = model.features(moved)
        else:
            role = next(role for role, sensor in model.sensors.items() if sensor.name == alone)
            features = model.encode(moved)[f"pooled_{role}"]
        made[name] = features.float().cpu().numpy()
    return made


def _add(parts: Mapping[str, list[np.ndarray]], found: Mapping[str, np.ndarray]) -> None:
    for name, features in found.items():
        parts[name].append(features)


def _joined(parts: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(arrays).astype(np.float64) for name, arrays in parts.items()}


# -- images and features that a user brings


def probe_labelled(
    path: Path, given: Labelled, *, input: str | None, bands: Sequence[str] = (), methods: Sequence[str]
) -> dict[str, Any]:
    """Score a checkpoint on labelled images, or features as they came; plain values, as ``--json`` prints them.

    input: which of the model's inputs the images are, the first when left out. bands: the model's names of the images'
    bands, in the images' order; their own names when left out. Raises UserError where a band of the model is missing.
    """
    found = open_checkpoint(path)
    inputs, told = [], given.normalisation
    if given.is_images:
        source = _source(found, input)
        features = _encode_images(found, given, source, list(bands) or list(given.bands))
        side = _fitting(given.x.shape[-1], source["patch"])
        inputs = [{"name": source["name"], "side": side}]
        told += "; missing pixels 0" + ("" if side == given.x.shape[-1] else f"; resized from {given.x.shape[-1]} px")
        if _config(found).view.scaling != "standard":
            told += f"; then {SCALINGS[_config(found).view.scaling]}"
    else:
        features = {"features": given.x.astype(np.float64)}
    if given.labels.ndim == 2:
        report = asdict(score_multilabel("y", given.labels, features, given.split, methods))
    else:
        names = tuple(map(str, range(int(given.labels.max()) + 1)))
        label = Label(name="y", about="given", codes=given.labels, names=names)
        report = asdict(score_label(label, features, given.split, methods))
    if not given.is_images:
        report["notes"].append("features came without their images: there are no baselines to compare with")
    return {
        "checkpoint": str(found.path), "step": found.about["step"],
        "corpus": {"url": str(path), "name": given.name, "synthetic": False},
        "pretraining_corpus": found.about["corpus"], "same_corpus": False, "inputs": inputs, "normalisation": told,
        "feature_scaling": "each feature standardised on the train split",
        "dimensions": {name: int(x.shape[1]) for name, x in features.items()}, "labels": [report],
    }  # fmt: skip


def _source(found: Checkpoint, name: str | None) -> dict[str, Any]:
    known = {source["name"]: source for source in found.about["inputs"]}
    if name is not None and name not in known:
        raise UserError(f"--input: the model has no input {name!r}", fix=f"choose from {', '.join(known)}")
    found_source: dict[str, Any] = known[name or next(iter(known))]
    return found_source


def _fitting(side: int, patch: int) -> int:
    """The side itself, or the nearest that patches divide."""
    return max(1, round(side / patch)) * patch


@torch.no_grad()
def _encode_images(
    found: Checkpoint, given: Labelled, source: Mapping[str, Any], bands: Sequence[str]
) -> dict[str, np.ndarray]:
    """Features by kind; the model's other inputs are missing."""
    if len(bands) != given.x.shape[1]:
        raise UserError(
            f"--bands: {len(bands)} names for {given.x.shape[1]} bands", fix="name every band of the images"
        )
    missing = [band for band in source["bands"] if band not in bands]
    if missing:
        reason = f"the images have no band {', '.join(missing)} of {source['name']}; they have {', '.join(bands)}"
        raise UserError(reason, fix="say with --bands which of the model's bands they are, in the images' order")
    models, satmae = _models(found), _config(found).view.scaling == "satmae"
    places, side = [bands.index(band) for band in source["bands"]], _fitting(given.x.shape[-1], source["patch"])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (STATISTICS, CONVOLUTIONS, *models)}
    for start in range(0, len(given.x), BATCH):
        values = torch.from_numpy(given.x[start : start + BATCH])
        valid = values.isfinite()
        values = torch.where(valid, values, 0.0)
        _add(parts, _floors({"images": (values, valid)}))
        values, valid = values[:, places], valid[:, places]
        if side != values.shape[-1]:
            values = F.interpolate(values, (side, side), mode="bilinear", antialias=True)
            valid = F.interpolate(valid.float(), (side, side)) > 0
        values = torch.where(valid, ((values + 2) / 4).clamp(0, 1) if satmae else values, 0.0)
        _add(parts, _encoded(models, _with_absent(found, source, values, valid), source["name"]))
    return _joined(parts)


def _with_absent(found: Checkpoint, source: Mapping[str, Any], values: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """A batch with one input, and with every other one missing."""
    entry = {source["name"]: values, f"{source['name']}_mask": valid}
    for other in found.about["inputs"]:
        if other["name"] != source["name"]:
            side = _fitting(round(values.shape[-1] * source["gsd"] / other["gsd"]), other["patch"])
            blank = torch.zeros(len(values), len(other["bands"]), side, side)
            entry |= {other["name"]: blank, f"{other['name']}_mask": blank > 0}
    return entry


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
        for line in _gains(report):
            console.print(escape(line), highlight=False, soft_wrap=True)
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
    table = Table(caption=f"{report['measure']} on test in % (95 % bootstrap interval)")
    table.add_column("")
    kinds = list(dict.fromkeys(score["features"] for score in report["scores"]))
    for kind in kinds:
        table.add_column(kind, justify="right")
    for method in dict.fromkeys(score["method"] for score in report["scores"]):
        own = {s["features"]: s for s in report["scores"] if s["method"] == method}
        table.add_row(method, *(_cell(own[kind]) for kind in kinds))
    return table


def _gains(report: dict[str, Any]) -> Iterator[str]:
    """What the trained encoder gains over every floor."""
    for one in report["differences"]:
        if one["method"] in COMPARED:
            interval = f"{100 * one['low']:+.0f} to {100 * one['high']:+.0f}"
            gain = f"{100 * one['gain']:+.1f} points ({interval}, paired bootstrap)"
            yield f"{one['method']}, gain over {one['over']}: {gain}"


def _cell(score: dict[str, Any]) -> str:
    return f"{100 * score['accuracy']:.1f} ({100 * score['low']:.0f}-{100 * score['high']:.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 2 wrong input, 1 other errors."""
    parser = argparse.ArgumentParser(prog="python -m train.probe", description="Score the frozen features of a model.")
    parser.add_argument("checkpoint", type=Path, help="a training run's `out`, or one of its checkpoints")
    parser.add_argument("data", help="a built corpus, a .npz with x, y and split, or a folder of GEO-Bench")
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        help="modality of classes, NAME:grain, or tag",
    )
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--input", help="which input of the model images are, for .npz and GEO-Bench")
    parser.add_argument("--bands", default="", help="the model's names of the images' bands, as B1,B2,...")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    try:
        result = _run(options)
    except MMBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result, Console())
    return 0


def _run(options: argparse.Namespace) -> dict[str, Any]:
    methods = options.methods.split(",")
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--methods: there is no {method!r}", fix=f"choose from {', '.join(METHODS)}")
    path = Path(options.data)
    if not is_labelled(path):
        return probe(options.checkpoint, open_corpus(options.data), options.label, methods)
    bands = [band for band in options.bands.split(",") if band]
    return probe_labelled(options.checkpoint, read_labelled(path), input=options.input, bands=bands, methods=methods)


if __name__ == "__main__":
    sys.exit(main())
