"""An offline Earth Engine: the REST surface of the real one over a synthetic Earth or an archive of GeoTIFFs.

It imports nothing of the rest of mmbuild: the only way in is the genuine client, through a transport or over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmbuild.sandbox.assets import World
    from mmbuild.sandbox.transport import Transport


def open_world(archive: str | None = None, archive_root: str | None = None) -> World:
    """The synthetic Earth, or only what an archive file maps; ValueError and OSError say what is wrong with it."""
    if archive is None:
        from mmbuild.sandbox.earth import SyntheticWorld

        return SyntheticWorld()
    from mmbuild.sandbox.archive import open_archive

    return open_archive(archive, archive_root)


def offline_transport(
    *, archive: str | None = None, archive_root: str | None = None, latency_ms: float = 0.0
) -> Transport:
    """A transport for `ee.Initialize(credentials=None, url=..., http_transport=...)`; `.sandbox` has the counters."""
    from mmbuild.sandbox.rest import Sandbox
    from mmbuild.sandbox.transport import Transport

    return Transport(Sandbox(open_world(archive, archive_root)), latency_ms=latency_ms)


def serve_forever(
    *,
    port: int,
    archive: str | None = None,
    archive_root: str | None = None,
    latency_ms: float = 0.0,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve over HTTP on this machine until interrupted."""
    from mmbuild.sandbox.rest import Sandbox
    from mmbuild.sandbox.server import run

    run(Sandbox(open_world(archive, archive_root)), port, latency_ms=latency_ms, ready=ready)
