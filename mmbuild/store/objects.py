"""An object-store prefix as a store, through obstore: a put is one request and therefore atomic.

Its lease is an object that the holder renews; one who lost it cannot put any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from mmbuild.errors import UserError
from mmbuild.store import lease

# How long a request to an object store is repeated before its failure is told; obstore's own three minutes look like a
# hang. A connection is given up after CONNECT_S, so a dead endpoint is known after their sum.
RETRY_S = 15.0
CONNECT_S = 5.0
# One request may carry a whole shard (256 MiB at most); obstore's 30 s would ask for 9 MB/s.
REQUEST_S = 120.0

_log = logging.getLogger(__name__)


class ObjectStore:
    """A bucket prefix through obstore; a put is one request and therefore atomic, so there is nothing to sweep."""

    is_local = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._inner = _open_obstore(self.url)
        # Why the lease that this store holds is no longer its own; nothing is put from then on.
        self._lost: UserError | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStore, (self.url,))

    def get(self, key: str) -> bytes:
        with _answering(self.url):
            return bytes(self._inner.get(key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(self.view_range(key, start, length))

    def view_range(self, key: str, start: int, length: int) -> memoryview:
        """The same in the memory that the answer came in: a copy of a megabyte costs as much as receiving it."""
        from obstore.exceptions import BaseError

        with _answering(self.url):
            try:
                return memoryview(self._inner.get_range(key, start=start, length=length))
            except BaseError as error:
                # Beyond the end there are no bytes, as in a folder; an object cut short is noticed by who reads it.
                if "416 Range Not Satisfiable" in str(error):
                    return memoryview(b"")
                raise
        raise AssertionError

    def put(self, key: str, data: bytes) -> None:
        if self._lost is not None:
            raise self._lost
        self._put(key, data)

    def _put(self, key: str, data: bytes, mode: Any = "overwrite") -> dict[str, str]:
        """Put, and return the version that ``mode`` of a later put can insist on."""
        with _answering(self.url):
            try:
                result = self._inner.put(key, data, mode=mode, use_multipart=False)
            except FileNotFoundError:
                raise UserError(
                    "there is no such bucket", self.url, "create it, or check the name and AWS_ENDPOINT_URL"
                ) from None
        return _version(result)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        with _answering(self.url):
            return int(self._inner.head(key)["size"])

    def list(self, prefix: str = "") -> list[str]:
        with _answering(self.url):
            return sorted(str(meta["path"]) for batch in self._inner.list(prefix or None) for meta in batch)

    def delete(self, key: str) -> None:
        with _answering(self.url), contextlib.suppress(FileNotFoundError):
            self._inner.delete(key)

    def sweep(self) -> int:
        return 0

    @contextmanager
    def lease(self, key: str) -> Iterator[None]:
        """Hold the only right to write here, renewed while held; a holder silent for five minutes is taken for dead.

        A holder that lost it (it could not renew, or another took over) cannot put any more, and UserError says so.
        """
        version, self._lost = self._take(key), None
        stop = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(key, version, stop), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            stop.set()
            renewal.join()
            if self._lost is None:
                self.delete(key)
        if self._lost is not None:
            raise self._lost

    def _take(self, key: str) -> dict[str, str]:
        """Create the lease, or take over that of a dead holder; of several who try, one succeeds."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with contextlib.suppress(AlreadyExistsError):
            return self._put(key, lease.holder().encode(), "create")
        found = self._read_lease(key)
        if found is None:  # given back between the two requests
            return self._take(key)
        text, version = found
        if not lease.is_dead(text):
            raise lease.held(self.url, text)
        try:
            return self._put(key, lease.holder().encode(), version or "overwrite")
        except PreconditionError:
            raise lease.held(self.url, self.get(key).decode()) from None

    def _read_lease(self, key: str) -> tuple[str, dict[str, str]] | None:
        """Who holds the lease, and its version; None when nobody does."""
        try:
            with _answering(self.url):
                found = self._inner.get(key)
                return bytes(found.bytes()).decode(), _version(found.meta)
        except FileNotFoundError:
            return None

    def _renew(self, key: str, version: dict[str, str], stop: threading.Event) -> None:
        """Say every minute that the holder lives; a failed time is repeated at the next, but not for ever."""
        heard = time.monotonic()
        while self._lost is None and not stop.wait(lease.RENEWAL_S):
            try:
                version = self._renewed(key, version)
                heard = time.monotonic()
            except UserError as error:
                _log.warning("the lease was not renewed, the next try is in %.0f s: %s", lease.RENEWAL_S, error)
                if time.monotonic() - heard > lease.SILENCE_S:
                    self._lose("the right to write here could not be renewed, so another build may have taken over")

    def _renewed(self, key: str, version: dict[str, str]) -> dict[str, str]:
        from obstore.exceptions import PreconditionError

        try:
            return self._put(key, lease.holder().encode(), version or "overwrite")
        except PreconditionError:
            found = self._read_lease(key)
        # A renewal that arrived although its answer was lost has changed the version too.
        if found is not None and lease.is_own(found[0]):
            return found[1]
        self._lose("another build took over writing here")
        return version

    def _lose(self, why: str) -> None:
        self._lost = UserError(why, self.url, "run the same build again when no other is writing; it goes on")
        _log.error("%s", self._lost)

    def handle(self, key: str) -> Any:
        """What other libraries open: an obstore store rooted at ``key``."""
        return _open_obstore(f"{self.url}/{key}")


def _version(meta: Any) -> dict[str, str]:
    """What names one version of an object: its ETag on S3 and Azure, its generation on Google Cloud."""
    return {key: meta[key] for key in ("e_tag", "version") if meta.get(key)}


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turn what an object store refuses into a UserError; a missing key stays FileNotFoundError.

    The two answers that settle a race (AlreadyExistsError, PreconditionError) pass: the lease acts on them.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except NotFoundError as error:
        raise FileNotFoundError(str(error).splitlines()[0]) from error
    except (BaseError, NotImplementedError) as error:
        raise UserError(
            f"the object store did not do it: {str(error).splitlines()[0]}", url,
            "check AWS_ENDPOINT_URL, the credentials and the bucket, then run the same command again",
        ) from error  # fmt: skip


def _open_obstore(url: str) -> Any:
    import obstore.store

    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_S), "timeout": timedelta(seconds=REQUEST_S),
    }  # fmt: skip
    if url.startswith("http://") or (
        url.startswith("s3://") and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    ):
        # obstore refuses plain http unless told so; a plain-http endpoint was named by the user.
        client["allow_http"] = True
    # More tries than fit into the time: the time decides.
    retry: Any = {
        "max_retries": 100, "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {"max_backoff": timedelta(seconds=3)},
    }  # fmt: skip
    options: dict[str, Any] = {"client_options": client, "retry_config": retry}
    try:
        return obstore.store.from_url(url, **options)
    except Exception as error:
        if type(error).__module__.startswith("obstore"):
            raise UserError(str(error).splitlines()[0], url, "use s3://bucket/prefix, gs://... or a folder") from error
        raise
