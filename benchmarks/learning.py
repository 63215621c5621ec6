"""Whether each method learns: its losses beside the best constants, its features beside those that need no training.

    python benchmarks/learning.py OUT [--method mpmae|croma|scale_alibi] [--samples 512] [--minutes M] [--real FOLDER]

For each method: a corpus of its recipe from the offline Earth Engine, a run of its small config for a CPU, and in OUT
a table, a JSON file and the learning curves. Of a paper's recipes it takes the smaller, mmearth64 for mmearth and
scale_alibi_small for scale_alibi. Everything is done by the commands a user has, and goes on where it was left: with
--minutes it stops in time (exit code 3), and the same command continues.

The floor of a loss is that of the best constant: for squared errors the mean of each number that a head predicts,
under the same normalisation and masks; for classes their frequencies; for a contrast the logarithm of the number of
candidates. Constants come from the train split; both are scored on val, with the same masks. The goal is 0.9 of it.
Where a loss is a sum over samples, a bootstrap over those of val says how sure the share is (95 % interval).
Where the val of so few samples cannot tell 0.85 from 0.95, the same recipe is built on after the training, to several
times as many samples, and val and test of those are scored: a place's split depends on the place alone, so that nothing
of them was trained on. The lowest is the best of the looks at the first val while training: where it is far below the
end, the model has learnt by heart since. The configs below were chosen by these looks; test decided nothing.
Forest is what random forests leave of the constant's error that see statistics of the whole image, nothing hidden:
grown on train, scored on val, with the 95 % interval of a bootstrap over its samples. Where all of that interval is
above the goal, so many samples do not teach the task, and a model is asked only to be better than the constant.

The label of the probe was chosen before any result was seen: the grain of ESA WorldCover (train/labels.py), which
depends on where classes lie and not on which they are or how much of each there is. CROMA and Scale-ALiBi never see
WorldCover: it is added to their recipes for the label. It is one of MP-MAE's twelve tasks. What counts is logistic
regression on test, as a gain over image statistics and over random convolutions with a paired bootstrap; where a corpus
was built on, all of its samples are labels.

With --real the same runs take the few real files of a folder that recipes/archives/realdata.yaml describes. They show
that the way is open and no more: three samples to train on, and for want of real aerial photographs with radar at the
same place the high resolution of Scale-ALiBi is L1C at that of L2A.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Run as a file, this folder comes first on the path and would hide packages of the same names.
REPO = Path(__file__).parents[1]
sys.path[:] = [str(REPO), *(one for one in sys.path if Path(one) != Path(__file__).parent)]

import train  # noqa: E402, F401, I001  (says how idle threads wait, which is read when torch is first imported)
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lightning_fabric import Fabric  # noqa: E402

from benchmarks.floors import Constants, Forest, forests, interval  # noqa: E402
from mmbuild.cube import LOCK, Corpus, open_corpus  # noqa: E402
from train import log  # noqa: E402
from train.checkpoint import Checkpoint, find, open_checkpoint  # noqa: E402
from train.config import model_file, read_dumped  # noqa: E402
from train.pretrain import anchor_name  # noqa: E402
from train.probe import CONVOLUTIONS, STATISTICS, probe  # noqa: E402
from train.validate import Validation, summed_losses  # noqa: E402

GOAL = 0.9
HEADLINE = "logistic"
# What a report calls the numbers of a forest.
FOREST = {"forest": "val", "forest_low": "low", "forest_high": "high"}
STOPPED = 3
# More is held out than the recipes say, so that a few hundred samples leave some to measure with.
SPLITS = ("splits.val=0.15", "splits.test=0.25")
# AdamW's weights are an average over the last 1 / (rate x decay) steps, which should be as many epochs whatever the
# number of samples (Wang and Aitchison 2024). MMEarth's 2.4e-3 and 0.05 make it 8,333 steps or 28 epochs; 28 epochs are
# 512 steps here. With 0.05 the weights would shrink by 4 % in them, which is as good as not at all.
MPMAE_DECAY = 1.2


@dataclass(frozen=True, kw_only=True)
class Method:
    """recipe, config: by name, and what is changed of them. label: of the probe.

    held_out: the corpus that is scored has so many times the samples of the one that is trained on.
    """

    recipe: str
    recipe_changes: tuple[str, ...]
    config: str
    config_changes: tuple[str, ...]
    label: str = "esa_worldcover:grain"
    held_out: int = 1


METHODS = {
    "mpmae": Method(
        recipe="mmearth64",
        recipe_changes=("store.samples_per_shard=16", *SPLITS),
        config="tiny",
        config_changes=(
            "model.crop=56", "model.patch=8", "model.decoder_dim=256", "model.mask_ratio=0.55", "model.weighting=equal",
            "batch_size=16", "steps=2000", "optim.lr=1.6e-3", f"optim.weight_decay={MPMAE_DECAY}",
            "optim.warmup_steps=150", "ema=0.98", "drop_last=true",
            "tasks=[sentinel2, sentinel1_asc, sentinel1_desc, aster_gdem, era5, dynamic_world, canopy_height, "
            "geolocation, biome, month, esa_worldcover]",
        ),
        held_out=4,
    ),
    "croma": Method(
        recipe="ssl4eo_s12",
        recipe_changes=("modalities.esa_worldcover={}", "store.samples_per_shard=8", *SPLITS),
        config="croma_tiny",
        config_changes=(
            "model.radar.modality=sentinel1", "model.optical.modality=sentinel2_l2a", "model.crop=64",
            "view.window=[48,128]", "view.time=random", "batch_size=32", "steps=400",
        ),
    ),
    "scale_alibi": Method(
        recipe="scale_alibi_small",
        recipe_changes=("modalities.esa_worldcover={}", "store.samples_per_shard=8", *SPLITS),
        config="scale_alibi_tiny",
        config_changes=(
            "model.crop=256", "model.decoder_dim=128", "optim.lr=1.0e-3", "batch_size=32", "steps=500",
        ),
    ),
}  # fmt: skip
_FEW = ("batch_size=2", "drop_last=false", "steps=60")
REAL = {
    "mpmae": ("model.crop=112", *_FEW),
    "croma": ("model.radar.modality=terramesh_s1rtc", "model.optical.modality=sentinel2_l2a", *_FEW),
    "scale_alibi": (
        "model.radar.modality=terramesh_s1rtc", "model.lores={modality: sentinel2_l2a, bands: [B4, B3, B2]}",
        "model.hires={modality: sentinel2_l1c, bands: [B4, B3, B2]}", *_FEW,
    ),
}  # fmt: skip


def on_real_files(name: str) -> Method:
    """The same method on the corpus of real files."""
    config, changes = METHODS[name].config, REAL[name]
    return Method(
        recipe="real_mini", recipe_changes=(), config=config, config_changes=changes, label="terramesh_lulc:grain"
    )


# -- the commands


class OutOfTime(Exception):
    """The minutes are over; the same command goes on."""


def build(method: Method, out: Path, *, source: Sequence[str], deadline: float) -> None:
    """Build what is missing of the corpus. source: options that say where from, and how much."""
    changes = [text for change in method.recipe_changes for text in ("--set", change)]
    minutes = max(0.1, (deadline - time.monotonic()) / 60)
    budget = [] if minutes == float("inf") else ["--max-minutes", f"{minutes:.2f}"]
    mmbuild = str(Path(sys.executable).with_name("mmbuild"))
    code = subprocess.run([mmbuild, "build", method.recipe, str(out), *source, *changes, *budget], cwd=REPO).returncode
    if code == STOPPED:
        raise OutOfTime
    if code:
        raise SystemExit(f"the build ended with exit code {code}")


def is_finished(corpus: Path, source: Sequence[str]) -> bool:
    """It holds what is asked for and has a catalogue; then it stays, also when the offline Earth has changed since."""
    if not (corpus / "items.parquet").exists():
        return False
    samples = json.loads((corpus / LOCK).read_text())["samples"]
    return "--samples" not in source or str(samples) == source[source.index("--samples") + 1]


def build_on(method: Method, folder: Path, *, source: Sequence[str], deadline: float) -> None:
    """The corpus that is scored, where it is not the one that is trained on: the same samples, and more after them."""
    first, more = folder / "corpus", folder / "held_out"
    number = source.index("--samples") + 1
    source = [*source[:number], str(method.held_out * int(source[number])), *source[number + 1 :]]
    if not more.exists():
        begun = folder / "held_out.partial"
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(first, begun)
        (begun / "items.parquet").unlink()  # it is finished when there is one again
        begun.rename(more)
    if not is_finished(more, source):
        build(method, more, source=source, deadline=deadline)
    # A model expects values normalised as those it was trained on.
    shutil.copy(first / "stats.json", more / "stats.json")


def pretrain(method: Method, corpus: Path, out: Path, *, deadline: float) -> None:
    """Train what is missing; a signal makes it keep what it has."""
    own = (f"corpus={corpus}", f"out={out}", "log_every=20", "validate_every=100", "checkpoint_every=100")
    changes = [text for change in (*method.config_changes, *own) for text in ("--set", change)]
    config = REPO / "train" / "configs" / f"{method.config}.yaml"
    process = subprocess.Popen([sys.executable, "-m", "train.pretrain", str(config), *changes, "--resume"], cwd=REPO)
    try:
        left = deadline - time.monotonic()
        process.wait(timeout=None if left == float("inf") else max(1.0, left))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode == 128 + signal.SIGTERM:
        raise OutOfTime
    if process.returncode:
        raise SystemExit(f"the training ended with exit code {process.returncode}")


# -- the scores


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One task's mean losses by split: of the model, and of the best constants of train (not on train itself).

    looked: the val of the corpus that was trained on, of which there are looks while training; val and test are scored.
    interval: the 95 % bootstrap interval of val over samples, NaN where samples cannot be scored one at a time.
    forest: what random forests on image statistics leave of the constants' error, None where none was grown.
    """

    task: str
    model: Mapping[str, float]
    constant: Mapping[str, float]
    interval: tuple[float, float]
    forest: Forest | None

    def ratio(self, split: str) -> float:
        """NaN where nothing is scored, or nothing is to be predicted."""
        return self.model[split] / self.constant[split] if self.constant[split] else float("nan")

    def plain(self) -> dict[str, Any]:
        """JSON values, None where there is no number; reached: None where nothing was scored."""
        ratio = self.ratio("val")
        numbers = {"train": self.model["train"], "val": self.model["val"], "constant": self.constant["val"]}
        numbers |= dict(zip(("low", "high"), self.interval, strict=True))
        numbers |= {"ratio": ratio, "test_ratio": self.ratio("test"), "looked_constant": self.constant["looked"]}
        numbers |= {name: getattr(self.forest, of, float("nan")) for name, of in FOREST.items()}
        known: dict[str, float | None] = {key: None if x != x else x for key, x in numbers.items()}
        return {"task": self.task, **known, "reached": None if ratio != ratio else ratio < GOAL}


def score_tasks(found: Checkpoint, corpus: Corpus, held_out: Corpus) -> list[TaskScore]:
    """Every task of a finished run on ``corpus``; val and test are those of ``held_out``."""
    config, file = read_dumped(found.config), model_file(found.about["model"])
    module = file.build(found.about["arguments"], torch.Generator().manual_seed(0))
    found.load_weights(module)
    names = file.modalities(config.model, anchor=anchor_name(corpus), tasks=config.tasks)
    fabric = Fabric(accelerator="cpu", devices=1)
    # A contrast is one of many candidates; every other loss is a sum over samples, and is scored one at a time.
    alone = "contrastive" not in module.loss_names
    batch = 1 if alone else config.batch_size
    seen = {
        split: Validation(where, config, names, batch=batch, fabric=fabric, split=own)
        for split, own, where in (
            ("train", "train", corpus), ("looked", "val", corpus), ("val", "val", held_out), ("test", "test", held_out),
        )
    }  # fmt: skip
    constants, floors = Constants(), {}
    with constants.standing_in():
        losses = {"train": _summed(module, constants.each(seen["train"].batches()))}
        constants.noting = False
        for split in ("looked", "val", "test"):
            floors[split] = _summed(module, constants.each(seen[split].batches()))
    for split in ("val", "test"):
        losses[split] = _summed(module, seen[split].batches())
    grown = forests(module, {split: seen[split].batches() for split in ("train", "val")})
    unknown = (float("nan"), float("nan"))
    return [
        TaskScore(
            task=task,
            model=_means(losses, at),
            constant=_means(floors, at),
            interval=interval(np.stack([own["val"][:, 0, at] for own in (losses, floors)])) if alone else unknown,
            forest=grown.get(task),
        )
        for at, task in enumerate(module.loss_names)
    ]


def _summed(module: Any, batches: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """(n, 2, T) of n batches: the sum of each of T tasks' losses, and the number of its scored values."""
    return np.stack([one.numpy() for one in summed_losses(module, batches)])


def _means(by_split: Mapping[str, np.ndarray], at: int) -> dict[str, float]:
    """The mean loss of one task in each split, NaN where nothing is scored."""
    totals = {split: own[..., at].sum(axis=0) for split, own in by_split.items()}
    return {split: float(total / count) if count else float("nan") for split, (total, count) in totals.items()}


# -- what is reported


def report(name: str, method: Method, folder: Path) -> dict[str, Any]:
    """Score the run in ``folder``; plain values."""
    corpus, found = open_corpus(folder / "corpus"), open_checkpoint(folder / "run")
    held_out = corpus if method.held_out == 1 else open_corpus(folder / "held_out")
    lock, rows = corpus.lock, log.read_rows(folder / "run" / "log.csv")
    tasks = [one.plain() for one in score_tasks(found, corpus, held_out)]
    for one in tasks:
        looks = _looks(rows, log.VALIDATION + one["task"]).values()
        one["lowest"] = one["ratio"] and min(looks) / one["looked_constant"]
    probed = probe(folder / "run", held_out, [method.label])
    return {
        "method": name, "recipe": method.recipe, "samples": lock["samples"], "source": lock["source"],
        "synthetic": corpus.synthetic, "steps": found.step, "counts": counts(corpus, held_out),
        "tasks": tasks,
        "probe": probed["labels"][0], "normalisation": probed["normalisation"], "inputs": probed["inputs"],
    }  # fmt: skip


def counts(corpus: Corpus, held_out: Corpus) -> dict[str, int]:
    """Samples by split, as they are trained on or scored."""
    splits = {"train": corpus, "val": held_out, "test": held_out}
    return {
        split: json.loads(where.store.get("collection.json"))["mmbuild:splits"].get(split, 0)
        for split, where in splits.items()
    }


def _looks(rows: Sequence[Mapping[str, float]], column: str) -> dict[float, float]:
    """Loss by step, where it was looked at."""
    return {row["step"]: row[column] for row in rows if row[column] == row[column]}


def as_text(found: Mapping[str, Any]) -> str:
    """The report as a table for people."""
    kind = "synthetic" if found["synthetic"] else "real"
    world = found["source"].get("world")
    about = f"{found['samples']} {kind} samples of {found['recipe']}{f' ({world})' if world else ''}"
    rows = [("task", "train", "val", "constant", "val / constant", "95 %", f"below {GOAL}", "lowest", "test", "forest")]
    for one in found["tasks"]:
        means = ("-" if one[key] is None else f"{one[key]:.4g}" for key in ("train", "val", "constant"))
        ratio, *others = (_share(one[key]) for key in ("ratio", "lowest", "test_ratio"))
        sure = _between(one["low"], one["high"])
        forest = _share(one["forest"])
        if one["forest"] is not None:
            forest += f" ({_between(one['forest_low'], one['forest_high'])})"
        reached = {None: "-", True: "yes", False: "no"}[one["reached"]]
        rows.append((one["task"], *means, ratio, sure, reached, *others, forest))
    name, *widths = (max(len(row[column]) for row in rows) for column in range(len(rows[0])))
    lines = [
        f"| {task:{name}} | " + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"
        for task, *cells in rows
    ]
    lines.insert(1, "|".join(["", "-" * (name + 2), *("-" * (width + 1) + ":" for width in widths), ""]))
    samples = ", ".join(f"{split} {n}" for split, n in found["counts"].items())
    lines = [f"{found['method']} on {about}, {found['steps']} steps; {samples}", "", *lines]
    return "\n".join([*lines, "", *_probe_lines(found["probe"])]) + "\n"


def _share(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"


def _between(low: float | None, high: float | None) -> str:
    return "-" if low is None else f"{low:.3f} to {high:.3f}"


def _probe_lines(told: Mapping[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{split} {n}" for split, n in told["counts"].items())
    majority = "" if told["majority"] is None else f"; most frequent class {told['majority']:.1%}"
    yield f"probe of {told['label']} ({told['about']}): {counts}{majority}"
    for score in told["scores"]:
        if score["method"] == HEADLINE:
            interval = f"{score['low']:.1%} to {score['high']:.1%}"
            yield f"  {HEADLINE}, {score['features']}: {score['accuracy']:.1%} ({interval})"
    for one in told["differences"]:
        if one["method"] == HEADLINE and one["over"] in (STATISTICS, CONVOLUTIONS):
            interval = f"{100 * one['low']:+.1f} to {100 * one['high']:+.1f}"
            verdict = "won" if one["low"] > 0 else "lost" if one["high"] < 0 else "undecided"
            yield f"  gain over {one['over']}: {100 * one['gain']:+.1f} points ({interval}), {verdict}"
    yield from (f"  note: {note}" for note in told["notes"])


def draw(found: Mapping[str, Any], rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Each task's loss over steps on train and the val beside it, with its best constant and the goal, as a PNG."""
    from matplotlib.figure import Figure

    tasks = found["tasks"]
    columns = min(4, len(tasks))
    high = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * high), layout="constrained")
    axes = figure.subplots(high, columns, squeeze=False).flatten()
    for axis, one in zip(axes, tasks, strict=False):
        for prefix, style in (
            (log.TASK, {"color": "tab:gray"}),
            (log.VALIDATION, {"color": "tab:blue", "marker": "."}),
        ):
            points = _looks(rows, prefix + one["task"])
            axis.plot(list(points), list(points.values()), label="train" if prefix == log.TASK else "val", **style)
        if one["ratio"] is not None:
            axis.axhline(one["looked_constant"], color="tab:red", label="best constant")
            axis.axhline(GOAL * one["looked_constant"], color="tab:red", linestyle=":", label=f"{GOAL} x")
        ratio = "nothing to score" if one["ratio"] is None else f"{one['ratio']:.2f}"
        axis.set_title(f"{one['task']}: {ratio}", fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[len(tasks) :]:
        axis.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    kind = "synthetic" if found["synthetic"] else "real"
    figure.suptitle(
        f"{found['method']}: loss over steps, {found['samples']} {kind} samples of {found['recipe']}; "
        f"ratios are of the {found['counts']['val']} val samples that are scored"
    )
    figure.savefig(path, dpi=110)


def run(name: str, method: Method, folder: Path, *, source: Sequence[str], deadline: float) -> None:
    """Build, train, score, and write what came out."""
    before = find(folder / "run")
    if not (before or is_finished(folder / "corpus", source)):
        build(method, folder / "corpus", source=source, deadline=deadline)
    if before is None or not before.about["finished"]:
        pretrain(method, folder / "corpus", folder / "run", deadline=deadline)
    if method.held_out > 1:
        build_on(method, folder, source=source, deadline=deadline)
    found = report(name, method, folder)
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "report.md").write_text(as_text(found))
    draw(found, log.read_rows(folder / "run" / "log.csv"), folder / "curves.png")
    print("\n" + as_text(found))
    print("\n".join(f"wrote {folder / file}" for file in ("report.json", "report.md", "curves.png")), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for corpora, runs and reports")
    parser.add_argument("--method", choices=METHODS, action="append", help="all when left out; may be repeated")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the method's own number")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; the same command goes on")
    parser.add_argument("--real", type=Path, help="take the real files of this folder instead")
    given = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * given.minutes
    source = ["--source", "sandbox", "--samples", str(given.samples)]
    if given.real:
        source = ["--archive-root", str(given.real)]
    for name in given.method or METHODS:
        method = on_real_files(name) if given.real else METHODS[name]
        if given.steps:
            method = replace(method, config_changes=(*method.config_changes, f"steps={given.steps}"))
        try:
            run(name, method, given.out / name, source=source, deadline=deadline)
        except OutOfTime:
            print(f"{name}: the {given.minutes:g} minutes are over; the same command goes on")
            return STOPPED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
