"""`mmbuild sandbox` limits, breaks and counts as its options say, and outruns the client when canned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ONE = json.dumps({"expression": {"result": "0", "values": {"0": {"constantValue": 1}}}}).encode()


@contextmanager
def sandbox(*options: str) -> Iterator[str]:
    """The URL of `mmbuild sandbox`, running as a process of its own."""
    command = [str(Path(sys.executable).with_name("mmbuild")), "sandbox", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line[line.index("http://") :].strip()
        finally:
            process.terminate()


def compute(url: str) -> int:
    """Ask for a value; the status."""
    try:
        with urllib.request.urlopen(f"{url}/v1/projects/p/value:compute", data=ONE, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def counters(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/counters", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_the_canned_sandbox_outruns_the_client() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/canned.py", "--chips", "2000"], capture_output=True, text=True, check=True
    )
    rates = {connections: float(rate) for connections, rate in re.findall(r"(\d+) connections: +(\d+)", done.stdout)}
    assert rates.keys() == {"1", "8", "64"}
    assert min(rates.values()) >= 400, done.stdout
    client = re.search(r"32 threads: +(\d+) chips/s", done.stdout)
    assert client, done.stdout
    # Faster than the client by far: what is measured with it is the client.
    assert max(rates.values()) > 2 * float(client.group(1)), done.stdout


def test_the_41st_request_and_the_101st_of_a_second_are_refused_unless_told_otherwise() -> None:
    with sandbox("--latency-ms", "1500") as url, ThreadPoolExecutor(80) as pool:
        statuses = list(pool.map(lambda _: compute(url), range(80)))
        assert set(statuses) == {200, 429}
        assert counters(url)["peak_in_flight"] == 40
    with sandbox("--max-concurrent", "0", "--requests-per-second", "5") as url:
        # The bucket holds five; thirty at once cannot all find one.
        statuses = [compute(url) for _ in range(30)]
        assert statuses[:5] == [200] * 5
        assert 429 in statuses
        assert counters(url)["refused"].keys() == {"rate"}


def test_faults_and_the_compute_cap_come_from_the_command_line(tmp_path: Path) -> None:
    script = tmp_path / "faults.yaml"
    script.write_text("- {fault: unavailable, requests: [2]}\n")
    with sandbox("--faults", str(script), "--max-eecu-hours", "0.000005", "--eecu-stop") as url:
        # One value costs 0.010002 EECU-s; the cap is 0.018.
        assert [compute(url) for _ in range(4)] == [200, 503, 200, 429]
        assert counters(url)["refused"] == {"eecu": 1}
        assert counters(url)["faults"] == {"unavailable": 1}
