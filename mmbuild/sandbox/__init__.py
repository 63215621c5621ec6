"""An offline Earth Engine: the REST surface of the real one over a synthetic Earth or an archive of GeoTIFFs.

It imports nothing of the rest of mmbuild: the only way in is the genuine client, through a transport or over HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmbuild.sandbox.assets import World
    from mmbuild.sandbox.server import Server
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


def bind(world: World, *, port: int, latency_ms: float = 0.0) -> Server:
    """A server of this world, bound to a port of this machine (0: a free one) and not yet answering.

    Raises OSError when the port is taken. `.run(ready=...)` serves until interrupted.
    """
    from mmbuild.sandbox.rest import Sandbox
    from mmbuild.sandbox.server import Server

    return Server(Sandbox(world), port=port, latency_ms=latency_ms)
