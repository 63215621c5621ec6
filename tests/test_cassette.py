"""Records of a build: what is kept of it, what a request is found by, and the same bytes again without a network."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httplib2
import pytest

from mmbuild import cli
from mmbuild.errors import UserError
from mmbuild.sources import SourceSpec
from mmbuild.sources.earthengine import cassette, session
from mmbuild.sources.earthengine.cassette import Player, Recorder
from tests.corpora import SMALL, TINY, snapshot
from tests.sandbox_worlds import disconnect

EE = "http://ee.invalid"
COMPUTE = f"{EE}/v1/projects/p/value:compute?prettyPrint=false&alt=json"


class Service:
    """A transport that counts its answers and gives each its number, with the status the test wants."""

    def __init__(self, status: int = 200, content: bytes = b"") -> None:
        self.status, self.content, self.asked = status, content, 0

    def request(self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **_: Any) -> Any:
        self.asked += 1
        content = self.content or f"answer {self.asked}\nof two lines".encode()
        return httplib2.Response({"status": str(self.status), "content-type": "text/odd"}), content

    def close(self) -> None:
        """Nothing to close."""


def record(folder: Path, service: Service, body: str = "{}", uri: str = COMPUTE) -> None:
    Recorder(service, str(folder), EE).request(uri, "POST", body=body)


def replayed(folder: Path, body: str | bytes = "{}", uri: str = COMPUTE) -> tuple[int, bytes]:
    response, content = Player(str(folder)).request(uri, "POST", body=body)
    assert int(response["content-length"]) == len(content)
    return response.status, content


# -- one request --------------------------------------------------------------------------------------------------


def test_an_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    binary = bytes(range(256)) * 3
    record(tmp_path, Service(content=binary))
    assert replayed(tmp_path) == (200, binary)


def test_a_request_is_found_whatever_its_tag_order_of_keys_host_and_order_of_the_query(tmp_path: Path) -> None:
    record(tmp_path, Service(), '{"workloadTag": "one", "expression": {"a": 1, "b": [2, 3]}}')
    same = b'{"expression":{"b":[2,3],"a":1}}'
    assert replayed(tmp_path, same)[0] == 200
    assert (
        replayed(tmp_path, same, "https://else.where/v1/projects/p/value:compute?alt=json&prettyPrint=false")[0] == 200
    )


@pytest.mark.parametrize(
    ("body", "uri"),
    [
        ('{"expression": {"a": 1, "b": [3, 2]}}', COMPUTE),
        ('{"expression": {"a": 1, "b": [2, 3]}, "pageToken": "x"}', COMPUTE),
        ('{"expression": {"a": 1, "b": [2, 3]}}', COMPUTE.replace("value:", "image:")),
        ('{"expression": {"a": 1, "b": [2, 3]}}', COMPUTE + "&pageSize=1"),
    ],
)
def test_another_request_is_not_there_and_is_told(tmp_path: Path, body: str, uri: str) -> None:
    record(tmp_path, Service(), '{"expression": {"a": 1, "b": [2, 3]}}')
    with pytest.raises(UserError, match=r"not on the cassette: POST /v1/projects/p/.*expression.*record again"):
        replayed(tmp_path, body, uri)


def test_a_refusal_that_would_come_again_is_kept(tmp_path: Path) -> None:
    record(tmp_path, Service(404, b'{"error": {}}'))
    assert replayed(tmp_path) == (404, b'{"error": {}}')


@pytest.mark.parametrize(
    ("status", "content"),
    [(500, b"x"), (503, b"x"), (429, b"x"), (408, b"x"), (499, b"x"), (401, b"x"),
     (403, b'{"error": {"errors": [{"reason": "rateLimitExceeded"}]}}')],
)  # fmt: skip
def test_trouble_that_passes_is_not_kept(tmp_path: Path, status: int, content: bytes) -> None:
    record(tmp_path, Service(status, content))
    assert list(tmp_path.iterdir()) == []


def test_the_last_answer_is_the_one_that_stays(tmp_path: Path) -> None:
    """An answer may be whole for HTTP and broken inside; the try after it is the good one."""
    service = Service()
    for _ in range(3):
        record(tmp_path, service)
    assert replayed(tmp_path)[1].startswith(b"answer 3")


def test_access_tokens_are_not_kept(tmp_path: Path) -> None:
    record(tmp_path, Service(), uri="https://oauth2.googleapis.com/token")
    assert list(tmp_path.iterdir()) == []


def test_many_threads_record_one_request_and_leave_one_whole_entry(tmp_path: Path) -> None:
    service = Service(content=b"z" * 200_000)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: record(tmp_path, service), range(40)))
        assert replayed(tmp_path) == (200, b"z" * 200_000)
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    record(tmp_path, Service())
    (entry,) = (file for file in tmp_path.rglob("*") if file.is_file())
    entry.write_bytes(b"{\n")
    with pytest.raises(UserError, match="a record is damaged"):
        replayed(tmp_path)


def test_a_folder_that_cannot_be_written_stops_the_recording(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="record into a folder that can be written"):
        record(tmp_path / "taken", Service())


# -- what was recorded --------------------------------------------------------------------------------------------


def test_a_folder_holds_the_records_of_one_source_and_project(tmp_path: Path) -> None:
    folder, here = str(tmp_path), {"name": "earthengine", "synthetic": True}
    for _ in range(2):
        cassette.describe(folder, "p", here)
    assert cassette.described(folder)["source"] == here
    for project, other in (("q", here), ("p", here | {"synthetic": False})):
        with pytest.raises(UserError, match="records of another source or project; record into an empty folder"):
            cassette.describe(folder, project, other)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no records of a build; make them with `mmbuild build --record DIR`"):
        session.connect(SourceSpec(name="sandbox", replay=str(tmp_path)))
    (tmp_path / "cassette.json").write_text('{"format": "mmbuild-cassette-99"}')
    with pytest.raises(UserError, match="another format than mmbuild-cassette-1"):
        session.connect(SourceSpec(name="sandbox", replay=str(tmp_path)))


def test_a_build_is_not_recorded_and_replayed_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recorded or replayed, not both"):
        session.connect(SourceSpec(name="sandbox", record=str(tmp_path), replay=str(tmp_path)))


# -- a build ------------------------------------------------------------------------------------------------------


def build(out: Path, *options: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command `mmbuild build` for a small corpus of one shard; its exit code."""
    settings = [text for pair in (*SMALL, "samples=3", "name=taped") for text in ("--set", pair)]
    monkeypatch.setattr(sys, "argv", ["mmbuild", "build", *map(str, (TINY, out, *settings, *options))])
    disconnect()
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        disconnect()
    return 0


def nobody(**_: Any) -> Any:
    raise AssertionError("a replay asks nobody")


def requests_of(out: Path) -> Mapping[str, Any]:
    (ledger,) = (out / "runs").glob("2*.json")
    counts: Mapping[str, Any] = json.loads(ledger.read_bytes())["requests"]
    return counts


def test_a_replayed_build_has_the_same_bytes_and_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, tape = tmp_path / "first", tmp_path / "again", tmp_path / "tape"
    assert build(first, "--record", tape, monkeypatch=monkeypatch) == 0
    with pytest.MonkeyPatch.context() as patch:
        # Neither the offline Earth Engine nor a socket: `earthengine` would be the live service.
        patch.setattr("mmbuild.sandbox.offline_transport", nobody)
        patch.setattr("mmbuild.sources.earthengine.session.Wire", nobody)
        patch.setattr("mmbuild.sources.earthengine.login.sign_in", nobody)
        assert build(again, "--replay", tape, "--source", "earthengine", monkeypatch=monkeypatch) == 0
    assert snapshot(first) == snapshot(again)
    assert (first / "recipe.lock.json").read_bytes() == (again / "recipe.lock.json").read_bytes()
    assert json.loads((again / "recipe.lock.json").read_bytes())["source"]["synthetic"] is True
    for kind in ("metadata_requests", "pixel_requests", "retries"):
        assert requests_of(first)[kind] == requests_of(again)[kind]

    capsys.readouterr()
    pixels = next(
        file for file in tape.rglob("*") if file.is_file() and b":computePixels" in file.read_bytes()[:99_999]
    )
    pixels.unlink()
    shutil.rmtree(again)
    assert build(again, "--replay", tape, monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert "this request is not on the cassette: POST /v1/projects/mmbuild-offline/image:computePixels" in told
