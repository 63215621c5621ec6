"""A put is all or nothing, a killed writer's leftovers are swept, and one builder at a time holds the lease."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmbuild.errors import UserError
from mmbuild.store import Store, open_store


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path / "corpus" if request.param == "folder" else request.getfixturevalue("bucket_url"))


def test_what_is_put_comes_back_whole_and_by_range(store: Store) -> None:
    store.put("a/b.bin", b"0123456789")
    assert store.get("a/b.bin") == b"0123456789"
    assert store.get_range("a/b.bin", 3, 4) == b"3456"
    assert store.size("a/b.bin") == 10


def test_put_replaces(store: Store) -> None:
    store.put("key", b"old")
    store.put("key", b"new")
    assert store.get("key") == b"new"


def test_list_is_sorted_and_relative_to_the_root(store: Store) -> None:
    for key in ("b/2", "a/1", "b/1"):
        store.put(key, b"x")
    assert store.list() == ["a/1", "b/1", "b/2"]
    assert store.list("b") == ["b/1", "b/2"]
    assert store.list("nothing") == []


def test_a_missing_key_is_file_not_found(store: Store) -> None:
    assert not store.exists("nothing")
    with pytest.raises(FileNotFoundError):
        store.get("nothing")


def test_deleting_twice_is_fine(store: Store) -> None:
    store.put("key", b"x")
    store.delete("key")
    store.delete("key")
    assert not store.exists("key")


def test_a_second_builder_is_refused_and_told_who_holds_the_lease(store: Store) -> None:
    with (
        store.lease("runs/lease"),
        pytest.raises(UserError, match=f"another build is writing here .process {os.getpid()} on"),
        open_store(store.url).lease("runs/lease"),
    ):
        pass


def test_the_lease_is_free_again_after_a_build(store: Store) -> None:
    with store.lease("runs/lease"):
        pass
    with store.lease("runs/lease"):
        pass


def test_leftovers_of_killed_writers_are_swept_and_never_listed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("cube/kept", b"x")
    (tmp_path / "cube" / "c0.123-456.partial").write_bytes(b"half")
    assert store.list() == ["cube/kept"]
    assert store.sweep() == 1
    assert [path.name for path in (tmp_path / "cube").iterdir()] == ["kept"]


def test_a_full_disk_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.put("key", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.put("key", b"new")
    assert store.get("key") == b"old"
    assert store.list() == ["key"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_wrong_url_is_a_user_error() -> None:
    with pytest.raises(UserError, match="use s3://bucket/prefix"):
        open_store("nonsense://x/y")
