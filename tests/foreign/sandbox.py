"""`mmbuild sandbox --port 0` as a process, and client programs run against it, each in a process of its own.

The Earth Engine client keeps one global state; a process of its own keeps a foreign client's away from the tests'.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
LOOPBACK = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@contextmanager
def running_sandbox(*options: str) -> Iterator[str]:
    """The address of a sandbox process that runs for as long as the block."""
    command = [str(Path(sys.executable).with_name("mmbuild")), "sandbox", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"no address in {line!r}"
        try:
            yield found.group()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=10)


def run_client(name: str, url: str, folder: Path) -> dict[str, Any]:
    """Run tests/foreign/NAME.py with the address and a folder for its files; answers the report it leaves there."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.foreign.{name}", url, str(folder)],
        cwd=ROOT, env={**os.environ, **LOOPBACK}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def request_counts(url: str) -> dict[str, int]:
    """How often each endpoint was asked so far."""
    with urlopen(f"{url}/counters", timeout=10) as answer:
        counts: dict[str, int] = json.load(answer)["requests"]
    return counts


def started(argv: list[str]) -> Path:
    """What every client program does first: start the genuine client; answers the folder for its files."""
    import ee

    # The client would look up Google's list of old assets, without a timeout.
    ee.deprecation.deprecated_assets = {"-": None}
    ee.Initialize(credentials=None, url=argv[1], project="foreign")
    return Path(argv[2])


def report(folder: Path, **facts: Any) -> None:
    """Leave what the test wants to know."""
    (folder / "report.json").write_text(json.dumps(facts))
