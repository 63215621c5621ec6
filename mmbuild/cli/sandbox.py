"""`mmbuild sandbox`: the offline Earth Engine as a server."""

from __future__ import annotations

from typing import Annotated

import typer

from mmbuild.cli.options import ArchiveOption, ArchiveRootOption, console, no_archive, text_of, user_errors

app = typer.Typer(invoke_without_command=True, help="Serve the offline Earth Engine on this machine until interrupted.")


@app.callback()
def serve(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8642,
    archive: ArchiveOption = None,
    archive_root: ArchiveRootOption = None,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to every answer.")] = 0.0,
) -> None:
    """Serve the offline Earth Engine on this machine until interrupted."""
    from mmbuild.sandbox import bind, open_world

    if context.invoked_subcommand is not None:
        return
    if archive_root is not None and archive is None:
        raise no_archive()
    with user_errors(archive or "sandbox", "see recipes/archives/realdata.yaml for an archive", (OSError, ValueError)):
        world = open_world(text_of(archive), text_of(archive_root))
    with user_errors(f"port {port}", "choose another --port; 0 takes a free one"):
        server = bind(world, port=port, latency_ms=latency_ms)
    server.run(ready=console.print)
