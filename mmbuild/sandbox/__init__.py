"""An offline Earth Engine: the REST surface of the real one over a synthetic Earth or an archive of GeoTIFFs.

It imports nothing of the rest of mmbuild: the only way in is the genuine client, through a transport or over HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmbuild.sandbox.assets import World
    from mmbuild.sandbox.faults import Faults
    from mmbuild.sandbox.limits import Limits
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
    *,
    archive: str | None = None,
    archive_root: str | None = None,
    latency_ms: float = 0.0,
    limits: Limits | None = None,
    faults: Faults | None = None,
    canned: bool = False,
) -> Transport:
    """A transport for `ee.Initialize(credentials=None, url=..., http_transport=...)`; `.sandbox` has the counters.

    It has no limits and no faults unless they are given; ValueError says what is wrong with a fault script.
    """
    from mmbuild.sandbox.rest import Sandbox
    from mmbuild.sandbox.transport import Transport

    sandbox = Sandbox(open_world(archive, archive_root), canned=canned)
    return Transport(sandbox, latency_ms=latency_ms, limits=limits, faults=faults)


def bind(
    world: World,
    *,
    port: int,
    latency_ms: float = 0.0,
    limits: Limits | None = None,
    faults: Faults | None = None,
    canned: bool = False,
) -> Server:
    """A server of this world, bound to a port of this machine (0: a free one) and not yet answering.

    Raises OSError when the port is taken. `.run(ready=...)` serves until interrupted.
    """
    from mmbuild.sandbox.rest import Sandbox
    from mmbuild.sandbox.server import Server

    sandbox = Sandbox(world, canned=canned)
    return Server(sandbox, port=port, latency_ms=latency_ms, limits=limits, faults=faults)
