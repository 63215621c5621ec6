"""Files of an export: each is whole or not there, and what is finished is known by its content.

A folder is claimed by ``export.json``; a folder of something else is refused. Files appear under their names by
rename, and ``.mmbuild/done.jsonl`` names every finished unit with what went into it and the length and CRC-32 of its
files, so that an interrupted export goes on where it was and a damaged file is written again.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from mmbuild.errors import UserError
from mmbuild.store import PARTIAL_SUFFIX, open_store

CLAIM = "export.json"
_PRIVATE = ".mmbuild"
_BLOCK = 2**20
In = TypeVar("In")
Out = TypeVar("Out")


def ordered(work: Callable[[In], Out], items: Iterable[In], threads: int, ahead: int | None = None) -> Iterator[Out]:
    """``work`` of every item on threads, results in the order of the items; few are under way at a time."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mmbuild-export")
    source = iter(items)
    try:
        waiting = [pool.submit(work, item) for item in islice(source, ahead or 2 * threads)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(work, item) for item in islice(source, 1)]
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def crc_of(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


class Files:
    """The files of one unit: written under a temporary name, renamed when whole."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written: list[tuple[str, int, int]] = []

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + PARTIAL_SUFFIX)
        with writing(path):
            temporary.write_bytes(data)
            temporary.replace(path)
        self.written.append((key, len(data), zlib.crc32(data)))

    @contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """A new binary file that may be read back; it takes its name when the block ends well."""
        with self.path(key) as temporary, temporary.open("w+b") as file:
            yield file

    @contextmanager
    def path(self, key: str) -> Iterator[Path]:
        """Where to write a file by its path; it takes its name when the block ends well."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + PARTIAL_SUFFIX)
        with writing(path):
            yield temporary
            size, crc = temporary.stat().st_size, crc_of(temporary)
            temporary.replace(path)
        self.written.append((key, size, crc))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses, as one line about the file."""
    try:
        yield
    except OSError as error:
        fix = "make room or name another place, and run the same command again; it goes on"
        raise UserError(f"cannot be written: {error.strerror or error}", str(path), fix) from error


class Folder:
    """A claimed folder of an export, while this process holds the right to write there."""

    def __init__(self, root: Path, about: Mapping[str, Any]) -> None:
        self.root, self.about = root, dict(about)
        self._journal = root / _PRIVATE / "done.jsonl"
        self._done: set[bytes] = set()
        self.bytes = self.files = self.reused = 0

    def load(self) -> None:
        """Read which units are finished: those whose files still have the length and CRC-32 on record."""
        if not self._journal.exists():
            return
        with self._journal.open("rb") as file:
            # A line that a kill cut short has no end and is no record.
            lines = (json.loads(line) for line in file if line.endswith(b"\n"))
            for entry, is_whole in ordered(lambda entry: (entry, self._is_whole(entry)), lines, threads=2):
                key = _key(entry["unit"], entry["source"])
                (self._done.add if is_whole else self._done.discard)(key)
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        data = self._journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._journal.write_bytes(whole)

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        for key, size, crc in entry["files"]:
            path = self.root / key
            if not path.is_file() or path.stat().st_size != size or crc_of(path) != crc:
                return False
        return True

    def has(self, unit: str, source: str) -> bool:
        """Whether a unit is finished with exactly this content."""
        return _key(unit, source) in self._done

    def add(self, unit: str, source: str, files: Files) -> None:
        """Record a finished unit."""
        line = json.dumps({"unit": unit, "source": source, "files": files.written}) + "\n"
        with writing(self._journal), self._journal.open("a") as file:
            file.write(line)
        self.count(files)

    def count(self, files: Files) -> None:
        self.files += len(files.written)
        self.bytes += sum(size for _, size, _ in files.written)

    def drop_others(self, units: set[str]) -> None:
        """Remove the files of units that are no longer part of the export (the corpus has changed)."""
        if not self._journal.exists():
            return
        kept: set[str] = set()
        gone: set[str] = set()
        with self._journal.open("rb") as file:
            for line in file:
                entry = json.loads(line)
                (kept if entry["unit"] in units else gone).update(key for key, _, _ in entry["files"])
        for key in gone - kept:
            (self.root / key).unlink(missing_ok=True)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Say that everything is there: written last."""
        self.about |= {**about, "complete": True}
        _write_claim(self.root, self.about)


def _key(unit: str, source: str) -> bytes:
    return hashlib.blake2b(f"{unit}\n{source}".encode(), digest_size=12).digest()


def _write_claim(root: Path, about: Mapping[str, Any]) -> None:
    open_store(root).put(CLAIM, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())


@contextmanager
def claimed(root: Path, same: Mapping[str, Any], more: Mapping[str, Any]) -> Iterator[Folder]:
    """The folder of an export: new, or begun by the same export of the same corpus.

    same: what must not differ from what is there. Raises UserError for a folder that holds anything else.
    """
    _check_free(root, same)
    store = open_store(root)
    with store.lease(f"{_PRIVATE}/lease"):
        store.sweep()
        folder = Folder(root, {**same, **more, "complete": False})
        _write_claim(root, folder.about)
        folder.load()
        yield folder


def _check_free(root: Path, same: Mapping[str, Any]) -> None:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    fix = "export into a new folder"
    if not root.is_dir():
        raise UserError("is a file", str(root), fix)
    claim = root / CLAIM
    if not claim.is_file():
        if [path.name for path in root.iterdir()] == [_PRIVATE]:
            return
        raise UserError("there is something else here already", str(root), fix)
    found = json.loads(claim.read_text())
    before, now = _flat(found), _flat(same)
    differs = [
        f"{key}: {_brief(before.get(key))}, now {_brief(now[key])}" for key in now if before.get(key) != now[key]
    ]
    if differs:
        raise UserError(f"holds another export ({'; '.join(differs)})", str(root), fix)


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """The options beside the rest, so that only what differs is named."""
    return {**about, **about.get("options", {})} | {"options": None}


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
