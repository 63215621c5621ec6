"""Weights to give away: ``python -m train.export CHECKPOINT DEST``: safetensors, the model as JSON, and a model card.

The card says what the weights are of, what they were trained on, how values have to be scaled, and whose data it was.
Averaged weights are taken where a run has them. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from mmbuild.errors import MMBuildError, UserError
from train.checkpoint import Checkpoint, open_checkpoint

WEIGHTS, ABOUT, CARD = "model.safetensors", "model.json", "README.md"


def export(path: Path, dest: Path) -> Path:
    """Write the folder ``dest`` from a run or one of its checkpoints; UserError when there is something already."""
    found = open_checkpoint(path)
    if dest.exists() and any(dest.iterdir()):
        raise UserError("the folder is not empty", str(dest), "name a new one")
    dest.mkdir(parents=True, exist_ok=True)
    weights = found.weights(averaged=found.is_averaged)
    told = {"format": "pt", "model": found.about["model"], "corpus_digest": found.about["corpus"]["digest"]}
    save_file(weights, dest / WEIGHTS, metadata=told)
    (dest / ABOUT).write_text(json.dumps(found.about, indent=1) + "\n")
    (dest / CARD).write_text(card(found, sum(value.numel() for value in weights.values())))
    return dest


def card(found: Checkpoint, numbers: int) -> str:
    """The model card, in Markdown with the usual head."""
    about = found.about
    corpus = about["corpus"]
    head = {"library_name": "mmbuild", "tags": ["earth-observation", "self-supervised", about["model"]]}
    synthetic = " Its pixels are synthetic: no satellite saw them." if corpus["synthetic"] else ""
    lines = [
        "---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "",
        f"# {about['model']} trained on {corpus['name']}", "",
        f"{numbers:,} numbers{', averaged over steps' if found.is_averaged else ''}, after step {about['step']}.", "",
        "## Trained on", "",
        f"The corpus {corpus['name']}, digest `{corpus['digest']}`, {about['samples']} samples.{synthetic}", "",
        "## Inputs", "", *_inputs(about), "",
        "## Normalisation", "", f"{about['normalisation']['method']}; missing pixels are 0.", "",
        *_statistics(about["normalisation"]["statistics"]), "",
        "## Licences of the data", "",
        *(f"- {one['modality']}: {one['licence']}. {one['attribution']}" for one in about["licences"]), "",
        "## Settings", "", "```yaml", found.config.strip(), "```", "",
        "## In Python", "", "```python", *_code(about["model"]), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _inputs(about: Mapping[str, Any]) -> list[str]:
    return [
        f"- {one['name']}: {', '.join(one['bands'])}; {one['gsd']:g} m, {one['side']} px in patches of {one['patch']}"
        for one in about["inputs"]
    ]


def _statistics(statistics: Mapping[str, Mapping[str, Sequence[float | None]]]) -> list[str]:
    lines = ["| modality | mean by band | std by band |", "|---|---|---|"]
    for name, one in statistics.items():
        lines.append(f"| {name} | {_numbers(one['mean'])} | {_numbers(one['std'])} |")
    return lines


def _numbers(values: Sequence[float | None]) -> str:
    return ", ".join("never observed" if value is None else f"{value:.6g}" for value in values)


def _code(model: str) -> list[str]:
    return [
        "import json, torch",
        "from safetensors.torch import load_file",
        f"from train.models.{model} import build",
        f'about = json.load(open("{ABOUT}"))',
        'model = build(about["arguments"], torch.Generator())',
        f'model.load_state_dict(load_file("{WEIGHTS}"))',
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 2 wrong input, 1 other errors."""
    parser = argparse.ArgumentParser(prog="python -m train.export", description="Write weights with a model card.")
    parser.add_argument("checkpoint", type=Path, help="a training run's `out`, or one of its checkpoints")
    parser.add_argument("dest", type=Path, help="a new folder")
    options = parser.parse_args(arguments)
    try:
        dest = export(options.checkpoint, options.dest)
    except MMBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"weights     {dest / WEIGHTS}\nmodel card  {dest / CARD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
