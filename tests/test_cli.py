"""The command line as a user meets it: what it prints, its exit codes, and no traceback for wrong input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shapely.errors import ShapelyError

from mmbuild import cli
from mmbuild.recipe import load_recipe
from mmbuild.sandbox import open_world
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.values import EarthEngineError
from mmbuild.store import objects
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


def test_plan_says_how_the_sampler_spreads_its_places(mmbuild: Command) -> None:
    code, printed, _ = mmbuild("plan", TINY, "--samples", "64")
    assert code == 0
    assert "places by biome: 64" in printed
    assert "5 Boreal Forests/Taiga" in printed
    assert "ecoregions: 0 to 2 places each" in printed


def test_plan_asks_a_live_service_for_polygons_only_when_told(mmbuild: Command) -> None:
    code, printed, _ = mmbuild("plan", TINY, "--samples", "64", "--source", "earthengine")
    assert code == 0
    assert "places by biome: not counted, the source would have to be asked; add --places" in printed


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
        (("build", TINY, "x", "--archive-root", "."), "add --archive FILE"),
        (("build", TINY, "a_file"), "is not a folder"),
        (("build", TINY, "a_file/below"), "is not a folder"),
        (("split", "a_file"), "there is no corpus here"),
        (("sandbox", "--archive", "nope.yaml"), "nope.yaml"),
        (("sandbox", "--archive", "a_file"), "the archive: must be a mapping"),
        (("sandbox", "--archive-root", "."), "add --archive FILE"),
    ],
)
def test_wrong_input_is_one_readable_line_and_exit_code_2(
    mmbuild: Command, arguments: tuple[object, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("something else")
    code, _, printed = mmbuild(*arguments)
    assert code == 2
    assert complaint in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) == 1


def test_the_live_service_without_credentials_names_both_remedies(
    mmbuild: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, printed = mmbuild("build", TINY, tmp_path / "corpus", "--source", "earthengine")
    assert code == 2
    assert "earthengine authenticate" in printed
    assert "--source sandbox" in printed


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that nobody can make folders in")
def test_a_corpus_where_none_can_be_made_is_one_readable_line(mmbuild: Command) -> None:
    code, _, printed = mmbuild("build", TINY, "/proc/corpus")
    assert code == 2
    assert "name a folder that can be made" in printed


@pytest.mark.parametrize("command", ["split", "stats", "catalog", "status"])
def test_a_mistyped_corpus_is_not_made(mmbuild: Command, command: str, tmp_path: Path) -> None:
    code, _, printed = mmbuild(command, tmp_path / "typo")
    assert code == 2
    assert "there is no corpus here" in printed
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("command", [("build", TINY), ("status",), ("split",)])
def test_a_dead_object_store_is_one_readable_line(
    mmbuild: Command, command: tuple[object, ...], bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY_S", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, _, printed = mmbuild(*command, bucket_url)
    assert code == 2
    assert f"{bucket_url}: the object store did not do it" in printed
    assert len(printed.splitlines()) == 1


def test_a_port_that_is_taken_is_one_readable_line(mmbuild: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, printed = mmbuild("sandbox", "--port", port)
    assert code == 2
    assert f"port {port}: Address already in use; choose another --port" in printed


def test_a_full_disk_is_one_readable_line(mmbuild: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, printed = mmbuild("build", TINY, tmp_path / "corpus", *SETTINGS)
    assert code == 2
    assert "the disk is full; make room and run the same command again" in printed
    assert len(printed.splitlines()) == 1


def test_a_picture_that_cannot_be_written_is_one_readable_line(mmbuild: Command, out: Path, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    code, _, printed = mmbuild("show", out, "000003", "-o", tmp_path / "a_file" / "picture.png")
    assert code == 2
    assert "choose another place with -o" in printed


def test_samples_that_are_not_built_yet_are_counted(mmbuild: Command, out: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(out, part)
    (part / "shards" / "000001.parquet").unlink()
    printed = mmbuild("status", part)[1]
    assert "8 samples not built yet; run the same build to go on" in printed
    assert "not built yet" not in mmbuild("status", out)[1]

    (part / "shards" / "000000.parquet").unlink()
    assert "16 samples not built yet" in mmbuild("status", part)[1]
    code, _, complaint = mmbuild("show", part, "000000")
    assert code == 2
    assert "no sample is built yet" in complaint


def test_the_archive_root_applies_to_the_recipes_own_archive(tmp_path: Path) -> None:
    recipe = load_recipe("real_mini", ())
    spec = cli._source(recipe, None, None, tmp_path)
    assert spec.name == "sandbox"
    assert Path(str(spec.archive)).name == "realdata.yaml"
    assert spec.archive_root == str(tmp_path)


def test_another_archive_takes_its_own_folder_unless_a_root_is_named(tmp_path: Path) -> None:
    recipe = load_recipe("real_mini", ())
    assert cli._source(recipe, None, tmp_path / "a.yaml", None).archive_root is None
    assert cli._source(recipe, None, tmp_path / "a.yaml", tmp_path).archive_root == str(tmp_path)


def test_what_a_world_cannot_answer_is_a_refusal_with_its_text() -> None:
    scenes = {"functionName": "ImageCollection.load", "arguments": {"id": {"constantValue": "COPERNICUS/S1_GRD"}}}
    size = {"functionName": "Collection.size", "arguments": {"collection": {"functionInvocationValue": scenes}}}
    body = {"expression": {"result": "0", "values": {"0": {"functionInvocationValue": size}}}}
    path = "/v1/projects/offline/value:compute"
    status, _, answer = Sandbox(open_world()).handle("POST", path, "", {}, json.dumps(body).encode())
    assert status == 400
    assert "a scene search needs a region; add filterBounds(region)" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("failure", [RuntimeError, ShapelyError, ValueError, OSError, EarthEngineError])
def test_the_sandbox_never_raises(failure: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise failure("readable text")

    monkeypatch.setattr("mmbuild.sandbox.endpoints.evaluate", fail)
    body = json.dumps({"expression": {}}).encode()
    status, _, answer = Sandbox(open_world()).handle("POST", "/v1/projects/offline/value:compute", "", {}, body)
    assert status == 400
    assert "readable text" in json.loads(answer)["error"]["message"]


def test_ctrl_c_with_worker_processes_is_one_friendly_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from mmbuild.cli import main; main()", "build", str(TINY), str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--samples", "512", "--set", "grid.size=16", "--set", "store.samples_per_shard=8", "--workers", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (tmp_path / "out" / "shards" / "000000.parquet").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "no shard was built"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; finished shards are kept, run the same command again to go on" in printed
    assert "Traceback" not in printed
    assert "KeyboardInterrupt" not in printed
