"""HTTP for the genuine client: a transport with a sized pool and time limits that hold also against a slow server.

It never asks twice, and refuses to work in a process that was forked off: two on one socket read each other's answers.
"""

from __future__ import annotations

import http.client
import io
import os
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import certifi
import httplib2
import urllib3
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from mmbuild.errors import UserError

# A project may have 40 requests under way; more connections than threads cost nothing, fewer cost a handshake each.
POOL_SIZE = 64
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Transport(Protocol):
    """What the client needs of an ``http_transport``: httplib2.Http's ``request``."""

    def request(
        self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **options: Any
    ) -> tuple[httplib2.Response, bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds until a connection must stand, between two pieces of an answer, and for the whole of it.

    Earth Engine ends an interactive computation after 5 minutes, so a longer wait is for an answer that was lost.
    """

    connect_s: float = 20.0
    read_s: float = 120.0
    total_s: float = 300.0


def forked() -> UserError:
    """What a process is told that was forked off after its parent had connected."""
    return UserError(
        "this process was forked off after its parent had connected to Earth Engine", "Earth Engine",
        "start workers with spawn or forkserver, or fork before anything is asked",
    )  # fmt: skip


class Wire:
    """httplib2-shaped HTTP over a pool of connections that threads share; one request has one deadline.

    Raises the builtin ConnectionError (also for a truncated body), TimeoutError and ssl.SSLError; never tries twice.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process = os.getpid()
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._opening = threading.Lock()

    def request(
        self, uri: str, method: str = "GET", body: Any = None, headers: Any = None, **_: Any
    ) -> tuple[httplib2.Response, bytes]:
        if os.getpid() != self._process:
            raise forked()
        _clock.deadline = time.monotonic() + self.limits.total_s
        try:
            answer = self._pool(uri).request(
                method, uri, body=body or None, headers=dict(headers or {}), retries=False, redirect=False,
                timeout=urllib3.Timeout(connect=self.limits.connect_s, read=self.limits.read_s),
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise _builtin(error) from error
        finally:
            _clock.deadline = None
        found = {key.lower(): value for key, value in answer.headers.items()}
        return httplib2.Response({**found, "status": str(answer.status)}), answer.data

    def _pool(self, uri: str) -> urllib3.PoolManager:
        """The pool towards an address: straight, or through the proxy that this machine's settings name for it."""
        host = urlsplit(uri)
        origin = f"{host.scheme}://{host.netloc}"
        with self._opening:
            if origin not in self._pools:
                proxies = {} if host.hostname in _LOOPBACK else get_environ_proxies(origin)
                self._pools[origin] = _open_pool(proxies.get(host.scheme) or proxies.get("all"))
            return self._pools[origin]

    def close(self) -> None:
        """Close every idle connection; the client calls it at its end."""
        with self._opening:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()


def _open_pool(proxy: str | None) -> urllib3.PoolManager:
    trusted = ssl.create_default_context(cafile=certifi.where())
    # Authorities that this machine trusts beyond the public ones: a company's proxy signs with its own.
    trusted.load_default_certs()
    options: dict[str, Any] = {"maxsize": POOL_SIZE, "ssl_context": trusted}
    pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pool


def _builtin(error: urllib3.exceptions.HTTPError) -> OSError:
    """The builtin error that an error of urllib3 stands for, as the client expects of a transport."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return cause
        if isinstance(cause, ConnectionError):
            return type(cause)(str(error))
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "reason", None)
    unreachable = isinstance(error, urllib3.exceptions.NewConnectionError)
    if isinstance(error, urllib3.exceptions.TimeoutError) and not unreachable:
        return TimeoutError(str(error))
    return ConnectionError(str(error))


# -- one deadline for a whole answer --------------------------------------------------------------------------------


class _Clock(threading.local):
    """When the answer that this thread waits for must be whole; None between requests."""

    deadline: float | None = None


_clock = _Clock()


class _Timed(io.RawIOBase):
    """Bytes of a socket until a deadline: each wait is as long as a read may take, and never past the end.

    A time limit on each read alone is renewed by every byte that a slow server lets drip.
    """

    def __init__(self, stream: Any, connection: Any, deadline: float) -> None:
        self._stream, self._connection, self._deadline = stream, connection, deadline
        self._read_s = connection.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took longer than it may as a whole")
        self._connection.settimeout(left if self._read_s is None else min(self._read_s, left))
        try:
            count: int | None = self._stream.readinto(buffer)
        finally:
            # The connection goes back to the pool: what is sent over it next has its full time.
            self._connection.settimeout(self._read_s)
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose status line, headers and body all come before the thread's deadline."""

    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        if _clock.deadline is not None:
            self.fp.close()
            self.fp = io.BufferedReader(_Timed(sock.makefile("rb", buffering=0), sock, _clock.deadline))


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection
