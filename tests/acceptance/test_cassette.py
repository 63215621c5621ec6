"""Several processes record into one folder, over sockets, and several processes replay it: the same corpus again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmbuild.sandbox import open_world
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import serve
from mmbuild.sources import SourceSpec
from tests.corpora import build_small, snapshot
from tests.sandbox_worlds import disconnect


def test_processes_record_into_one_folder_and_replay_from_it_without_a_server(tmp_path: Path) -> None:
    disconnect()
    tape = str(tmp_path / "tape")
    with serve(Sandbox(open_world()), faults=[{"fault": "unavailable", "probability": 0.1}]) as server:
        spec = SourceSpec(name="earthengine", url=server.url)
        build_small(tmp_path / "recorded", source=replace(spec, record=tape), workers=2)
        asked = sum(server.service.quota.requests.values())
    # The server is gone; the address stays in the spec and is not used.
    for workers in (2, 0):
        build_small(tmp_path / f"replayed{workers}", source=replace(spec, replay=tape), workers=workers)
    disconnect()
    assert asked > 16
    recorded = snapshot(tmp_path / "recorded")
    assert snapshot(tmp_path / "replayed2") == recorded
    assert snapshot(tmp_path / "replayed0") == recorded
    assert not list((tmp_path / "tape").rglob("*.partial"))
