"""A put is all or nothing, a killed writer's leftovers are swept, and one builder at a time holds the lease."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mmbuild.store.lease
import mmbuild.store.objects
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
    with pytest.raises(UserError, match="the disk is full; make room and run the same command again"):
        store.put("key", b"new")
    assert store.get("key") == b"old"
    assert store.list() == ["key"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_wrong_url_is_a_user_error() -> None:
    with pytest.raises(UserError, match="use s3://bucket/prefix"):
        open_store("nonsense://x/y")


def test_a_file_where_the_corpus_should_be_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something else")
    store = open_store(tmp_path / "file")
    with pytest.raises(UserError, match="is not a folder"), store.lease("runs/lease"):
        pass
    with pytest.raises(UserError, match="is not a folder"):
        store.put("key", b"x")
    with pytest.raises(UserError, match="cannot be read"):
        store.get("key")
    assert not store.exists("key")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that nobody can make folders in")
def test_a_place_that_cannot_be_made_is_a_user_error() -> None:
    store = open_store("/proc/corpus")
    with pytest.raises(UserError, match="name a folder that can be made"), store.lease("runs/lease"):
        pass


def test_a_refused_lease_leaves_no_open_file_behind(tmp_path: Path) -> None:
    with open_store(tmp_path).lease("runs/lease"):
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
        with pytest.raises(UserError, match="another build"), open_store(tmp_path).lease("runs/lease"):
            pass
        assert not before or len(os.listdir("/proc/self/fd")) == before


# -- object stores --------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmbuild.store.objects, "RETRY_S", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get("key"),
        lambda store: store.get_range("key", 0, 4),
        lambda store: store.put("key", b"x"),
        lambda store: store.exists("key"),
        lambda store: store.size("key"),
        lambda store: store.list(),
        lambda store: store.delete("key"),
        lambda store: store.lease("key").__enter__(),
    ],
)
def test_every_call_of_a_dead_endpoint_is_a_user_error(
    call: Callable[[Store], object], bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="check AWS_ENDPOINT_URL") as raised:
        call(open_store(bucket_url))
    assert raised.value.where == bucket_url
    assert "\n" not in str(raised.value)


def test_a_dead_endpoint_is_known_within_twenty_seconds() -> None:
    assert mmbuild.store.objects.RETRY_S + mmbuild.store.objects.CONNECT_S <= 20


@pytest.mark.usefixtures("bucket_url")
def test_a_bucket_that_does_not_exist_is_a_user_error() -> None:
    store = open_store("s3://no-such-bucket/corpus")
    with pytest.raises(UserError, match="there is no such bucket"), store.lease("runs/lease"):
        pass
    assert not store.exists("key")


def test_a_range_beyond_the_end_is_empty(store: Store) -> None:
    store.put("key", b"0123")
    assert store.get_range("key", 2, 10) == b"23"
    assert store.get_range("key", 20, 4) == b""


def _lease_of(pid: int, *, renewed: float) -> bytes:
    return json.dumps(json.loads(mmbuild.store.lease.holder()) | {"pid": pid, "renewed": renewed}).encode()


def _pid_that_is_gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(bucket_url: str) -> None:
    store = open_store(bucket_url)
    store.put("runs/lease", _lease_of(_pid_that_is_gone(), renewed=time.time()))
    with store.lease("runs/lease"):
        assert json.loads(store.get("runs/lease"))["pid"] == os.getpid()
    assert not store.exists("runs/lease")


def test_the_lease_of_another_machine_is_kept_until_it_was_silent_for_five_minutes(bucket_url: str) -> None:
    store = open_store(bucket_url)
    held = json.loads(_lease_of(_pid_that_is_gone(), renewed=time.time())) | {"machine": "another"}
    store.put("runs/lease", json.dumps(held).encode())
    with pytest.raises(UserError, match="another build is writing here"), store.lease("runs/lease"):
        pass
    store.put("runs/lease", json.dumps(held | {"renewed": time.time() - 301}).encode())
    with store.lease("runs/lease"):
        pass


def test_of_two_that_take_over_a_dead_lease_one_succeeds(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_store(bucket_url), open_store(bucket_url)
    first.put("runs/lease", _lease_of(_pid_that_is_gone(), renewed=time.time()))
    judge = mmbuild.store.lease.is_dead

    def late(text: str) -> bool:
        """The second takes over after the first has judged the lease and before the first takes it."""
        monkeypatch.setattr(mmbuild.store.lease, "is_dead", judge)
        winner.__enter__()
        return True

    winner = second.lease("runs/lease")
    monkeypatch.setattr(mmbuild.store.lease, "is_dead", late)
    with pytest.raises(UserError, match="another build is writing here"), first.lease("runs/lease"):
        pass
    winner.__exit__(None, None, None)


def test_a_holder_whose_lease_was_taken_cannot_put_and_is_told(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmbuild.store.lease, "RENEWAL_S", 0.01)
    store, other = open_store(bucket_url), open_store(bucket_url)
    with pytest.raises(UserError, match="another build took over"), store.lease("runs/lease"):  # noqa: PT012
        other.put("runs/lease", _lease_of(1, renewed=time.time()))
        _until(lambda: store._lost is not None)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="another build took over"):
            store.put("key", b"x")
    assert json.loads(other.get("runs/lease"))["pid"] == 1, "the new holder keeps it"
    assert not other.exists("key")


@pytest.mark.usefixtures("impatient")
def test_a_renewal_that_fails_once_is_repeated(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mmbuild.store.lease, "RENEWAL_S", 0.05)
    store = open_store(own_server.url)
    with store.lease("runs/lease"):
        own_server.stop()
        _until(lambda: "the lease was not renewed" in caplog.text)
        own_server.start()
        before = time.time()
        _until(lambda: json.loads(store.get("runs/lease"))["renewed"] > before)
    assert not store.exists("runs/lease")


@pytest.mark.usefixtures("impatient")
def test_a_holder_that_cannot_renew_for_too_long_is_stopped(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmbuild.store.lease, "RENEWAL_S", 0.05)
    monkeypatch.setattr(mmbuild.store.lease, "SILENCE_S", 0.1)
    store = open_store(own_server.url)
    with pytest.raises(UserError, match="could not be renewed"), store.lease("runs/lease"):  # noqa: PT012
        own_server.stop()
        _until(lambda: store._lost is not None)  # type: ignore[attr-defined]


def _until(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for another thread; fails rather than hangs."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class OwnServer:
    """An S3 server that a test may stop and start again at the same address."""

    url = "s3://own-bucket/corpus"
    port = 0

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnServer]:
    import boto3

    server = OwnServer()
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="own-bucket")
    yield server
    server.stop()
