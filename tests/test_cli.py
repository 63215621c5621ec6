"""The command line as a user meets it: what it prints, its exit codes, and no traceback for wrong input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mmbuild import cli
from tests.corpora import SMALL, TINY

CALL = tuple[int, str, str]


class Command:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> CALL:
        self.monkeypatch.setattr(sys, "argv", ["mmbuild", *map(str, arguments)])
        self.capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err


@pytest.fixture
def mmbuild(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "corpus"


SETTINGS = [text for pair in SMALL for text in ("--set", pair)]


def test_build_status_show_and_the_finishing_commands(mmbuild: Command, out: Path, tmp_path: Path) -> None:
    code, printed, _ = mmbuild("build", TINY, out, *SETTINGS)
    assert code == 0
    assert "SYNTHETIC corpus tiny" in printed
    assert "16 of 16 samples stored" in " ".join(printed.split())

    code, printed, _ = mmbuild("status", out, "--json")
    found = json.loads(printed)
    assert code == 0
    assert found["stored"] == 16
    assert len(found["modalities"]) >= 7

    code, printed, _ = mmbuild("show", out, "000003", "-o", tmp_path / "sample.png")
    assert code == 0
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
    assert "sentinel1_asc" in printed

    for name in ("split", "stats", "catalog"):
        before = {p.name: p.read_bytes() for p in out.glob("*.json")}
        assert mmbuild(name, out)[0] == 0
        assert {p.name: p.read_bytes() for p in out.glob("*.json")} == before, "the same records, the same files"


def test_show_of_an_unknown_sample_says_which_ids_there_are(mmbuild: Command, out: Path) -> None:
    code, _, complaint = mmbuild("show", out, "nothing")
    assert code == 2
    assert "000000" in complaint


def test_plan_spends_nothing_and_counts(mmbuild: Command) -> None:
    code, printed, _ = mmbuild("plan", TINY, "--samples", "64", "--json")
    work = json.loads(printed)
    assert code == 0
    assert (work["samples"], work["shards"]) == (64, 8)
    assert work["pixel_requests"] == 64, "one lattice, one pixel request a sample"


def test_validate_says_so(mmbuild: Command) -> None:
    code, printed, _ = mmbuild("validate", TINY)
    assert code == 0
    assert "tiny: valid" in printed


def test_modalities_and_recipes_are_listed(mmbuild: Command) -> None:
    assert "sentinel2_l2a" in mmbuild("modalities")[1]
    assert "esa_worldcover" in json.loads(mmbuild("modalities", "--json")[1])
    assert "tiny" in json.loads(mmbuild("recipes", "--json")[1])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("validate", TINY, "--set", "grid.sise=64"), "did you mean size"),
        (("build", "no_such_recipe", "out"), "there is no such recipe"),
        (("status", "no/such/corpus"), "there is no corpus here"),
        (("build", TINY, "x", "--source", "earthengine"), "earthengine authenticate"),
        (("build", TINY, "x", "--source", "moon"), "there is no source 'moon'"),
        (("build", TINY, "x", "--archive", "none.yaml"), "none.yaml"),
        (("build", TINY, "x", "--scheduler", "tcp://127.0.0.1:9"), "start one with"),
    ],
)
def test_wrong_input_is_one_readable_line_and_exit_code_2(
    mmbuild: Command, arguments: tuple[object, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, printed = mmbuild(*arguments)
    assert code == 2
    assert complaint in printed
    assert "Traceback" not in printed


def test_the_live_service_without_credentials_names_both_remedies(
    mmbuild: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, printed = mmbuild("build", TINY, tmp_path / "corpus", "--source", "earthengine")
    assert code == 2
    assert "earthengine authenticate" in printed
    assert "--source sandbox" in printed
