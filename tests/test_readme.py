"""The README is true: its file map is the folder, its commands run, its Python runs.

Commands run in order in one folder of their own. Exempt are `make ...` (this test runs inside `make test`;
tests/acceptance/test_house.py runs both on a fresh clone) and lines that say they need credentials.
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text("utf-8")
NEEDS_CREDENTIALS = "# needs Earth Engine credentials"
MAPPED = ("mmbuild", "train")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands() -> Iterator[str]:
    """Every command line shown, comments off; those of make and those that need credentials left out."""
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+# .*$", "", line).strip()
            if command and not command.startswith(("#", "make ")) and NEEDS_CREDENTIALS not in line:
                yield command


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's files in it and an empty out/."""
    folder = tmp_path_factory.mktemp("readme")
    for path in listed(REPO):
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def results(workplace: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command in the order of the page: later ones use what earlier ones made."""
    return {command: run(command, workplace) for command in COMMANDS}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def listed(folder: Path) -> list[Path]:
    """What a folder holds in a fresh clone: no file that git ignores, no folder without files."""
    ignored = [".git", *(line.strip("/") for line in (REPO / ".gitignore").read_text().split())]
    kept = [p for p in sorted(folder.iterdir()) if not any(fnmatch.fnmatch(p.name, x) for x in ignored)]
    return [p for p in kept if p.is_file() or any(inner.is_file() for inner in p.rglob("*"))]


def file_map() -> dict[str, list[str]]:
    """Folder ("" for the top) to the names that the map gives it."""
    (text,) = (block for block in blocks("text") if "Makefile" in block)
    found: dict[str, list[str]] = {"": []}
    for line in text.splitlines():
        name = re.match(r"\s*(\S+)  +\S", line)
        assert name, f"a line of the file map says nothing about its file: {line!r}"
        if not line.startswith(" "):
            parent = name[1].rstrip("/")
            found[""].append(name[1])
        else:
            found.setdefault(parent, []).append(name[1])
    return found


@pytest.mark.parametrize("folder", ["", *MAPPED])
def test_the_file_map_equals_the_folder(folder: str) -> None:
    there = {path.name + "/" * path.is_dir() for path in listed(REPO / folder)}
    mapped = file_map()[folder]
    assert len(mapped) == len(set(mapped)), "a name stands twice in the file map"
    assert set(mapped) == there


def test_only_these_folders_are_opened_in_the_file_map() -> None:
    assert set(file_map()) == {"", *MAPPED}


def test_the_page_shows_commands() -> None:
    assert len(COMMANDS) >= 6
    assert {"make demo", "make test"} <= {line.split("  ")[0] for b in blocks("bash") for line in b.splitlines()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shown_runs(command: str, results: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = results[command]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_python_shown_runs(results: object, workplace: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "the Python shown prints nothing"


def test_every_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert [link for link in links if not (REPO / link).exists()] == []


def test_the_page_has_no_marks_of_an_unfinished_merge() -> None:
    assert re.findall(r"^(?:<{7}|={7}|>{7}).*$", README, flags=re.M) == []
