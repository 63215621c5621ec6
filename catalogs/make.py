"""Write the static STAC catalogues beside this file: `python catalogs/make.py`, or `make catalogs`.

The reference corpora as collections, made of their recipes and modality files; and one taster, really built and cut
here out of the offline Earth (synthetic), with its items. Pixels are not kept: the commands are in its description.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pystac

from mmbuild.build import build_corpus
from mmbuild.catalog import item_dict, read_items
from mmbuild.catalog.reference import describe
from mmbuild.cube import Corpus
from mmbuild.recipe import load_recipe
from mmbuild.taster import cut_taster

HERE = Path(__file__).parent
REFERENCES = ("mmearth", "ssl4eo_s12", "scale_alibi", "multitemporal")
# The taster: 8 of 24 samples of the tiny recipe with chips of 16 px.
SETTINGS, SAMPLES, TASTER = ("samples=24", "grid.size=16", "store.samples_per_shard=8"), 24, 8
COMMANDS = f"mmbuild build tiny OUT --samples {SAMPLES} --set grid.size=16; mmbuild taster OUT DEST --samples {TASTER}"


def references() -> dict[str, Any]:
    """Relative path -> content of every file but those of the taster."""
    files: dict[str, Any] = {}
    for name in REFERENCES:
        about = describe(load_recipe(name), f"../../recipes/{name}.yaml")
        files[f"{name}/collection.json"] = about | {"links": [*_up(), *about["links"]]}
    return files


def root(children: list[str]) -> dict[str, Any]:
    links = [_link("root", "./catalog.json"), *(_link("child", f"./{name}/collection.json") for name in children)]
    return {
        "type": "Catalog", "stac_version": pystac.get_stac_version(), "id": "mmbuild", "title": "Corpora of mmbuild",
        "description": "Reference corpora as their recipes describe them, and one synthetic taster that was built.",
        "links": links,
    }  # fmt: skip


def taster(work: Path) -> dict[str, Any]:
    """The files of the taster, built and cut in ``work``."""
    parent = build_corpus(load_recipe("tiny", SETTINGS), work / "parent")
    corpus = cut_taster(parent, work / "taster", samples=TASTER)
    return dict(_taster_files(corpus))


def _taster_files(corpus: Corpus) -> Iterator[tuple[str, Any]]:
    items, name = read_items(corpus), corpus.recipe.name
    about = json.loads(corpus.store.get("collection.json"))
    # Digests name the bytes of pixels that are not here, which another processor may round otherwise.
    for digest in ("mmbuild:digest", "mmbuild:records"):
        del about[digest]
    del about["mmbuild:taster"]["parent"]["digest"]
    ids = items["id"].to_pylist()
    links = [_link("item", f"./{one}.json") for one in ids]
    licences = [link for link in about["links"] if link["rel"] == "license"]
    yield f"{name}/collection.json", about | {
        "description": f"{about['description']} The pixels are not kept here; they come from: {COMMANDS}",
        "links": [*_up(), *links, *licences], "assets": {},
    }  # fmt: skip
    for position, one in enumerate(ids):
        item = item_dict(items.slice(position, 1))
        links = [_link(rel, "./collection.json") for rel in ("parent", "collection")]
        yield f"{name}/{one}.json", item | {"links": [_link("root", "../catalog.json"), *links]}


def _up() -> list[dict[str, str]]:
    return [_link(rel, "../catalog.json") for rel in ("root", "parent")]


def _link(rel: str, href: str) -> dict[str, str]:
    return {"rel": rel, "href": href, "type": "application/geo+json" if rel == "item" else "application/json"}


def text_of(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        files = references() | taster(Path(folder))
    children = [name.split("/")[0] for name in files if name.endswith("collection.json")]
    files["catalog.json"] = root(children)
    for old in HERE.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    for name, content in files.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text_of(content), "utf-8")
    print(f"{HERE}: {len(files)} files, {sum(len(text_of(c)) for c in files.values()) / 1e3:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
