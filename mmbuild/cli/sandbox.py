"""`mmbuild sandbox`: the offline Earth Engine as a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmbuild.cli.conformance import conformance
from mmbuild.cli.options import ArchiveOption, ArchiveRootOption, console, no_archive, text_of, user_errors

app = typer.Typer(invoke_without_command=True, help="Serve the offline Earth Engine on this machine until interrupted.")
app.command("conformance")(conformance)


@app.callback()
def serve(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8642,
    archive: ArchiveOption = None,
    archive_root: ArchiveRootOption = None,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to every answer.")] = 0.0,
    faults: Annotated[Path | None, typer.Option(help="YAML that says which requests go wrong, and how.")] = None,
    canned: Annotated[bool, typer.Option("--canned", help="Right form, made-up pixels: for load tests.")] = False,
    max_concurrent: Annotated[int, typer.Option(min=0, help="Requests side by side; 0: any.")] = 40,
    requests_per_second: Annotated[float, typer.Option(min=0, help="0: any.")] = 100.0,
    max_eecu_hours: Annotated[
        float, typer.Option(min=0, help="The month's compute time, then restricted mode; 0: any.")
    ] = 0.0,
    eecu_stop: Annotated[bool, typer.Option("--eecu-stop", help="Beyond --max-eecu-hours, refuse.")] = False,
) -> None:
    """Serve the offline Earth Engine on this machine until interrupted."""
    from mmbuild.sandbox import bind, open_world
    from mmbuild.sandbox.faults import read_faults
    from mmbuild.sandbox.limits import Limits

    if context.invoked_subcommand is not None:
        return
    if archive_root is not None and archive is None:
        raise no_archive()
    with user_errors(archive or "sandbox", "see recipes/archives/realdata.yaml for an archive", (OSError, ValueError)):
        world = open_world(text_of(archive), text_of(archive_root))
    limits = Limits(
        max_concurrent=max_concurrent, requests_per_second=requests_per_second, max_eecu_hours=max_eecu_hours,
        eecu_stop=eecu_stop,
    )  # fmt: skip
    with user_errors(
        faults or "--faults", "a rule looks like `- {fault: rate, probability: 0.05}`", (OSError, ValueError)
    ):
        script = read_faults(faults)
    with user_errors(f"port {port}", "choose another --port; 0 takes a free one"):
        server = bind(world, port=port, latency_ms=latency_ms, limits=limits, faults=script, canned=canned)
    server.run(ready=console.print)
