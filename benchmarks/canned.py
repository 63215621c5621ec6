"""How many canned chips `mmbuild sandbox --canned` answers in a second: to bare sockets, and to the genuine client.

    python benchmarks/canned.py [--chips 3000] [--threads 32]

A chip is 128 x 128 pixels of two uint16 bands, 64 KiB. The server is a process of its own; all limits are off.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SCENE = "COPERNICUS/S2_HARMONIZED/20200101T103638_20200101T104817_T31TFK"
SIZE = 128
OPTIONS = ("--canned", "--max-concurrent", "0", "--requests-per-second", "0")


@contextmanager
def server(*options: str) -> Iterator[str]:
    """The URL of `mmbuild sandbox` in a process of its own."""
    command = [str(Path(sys.executable).with_name("mmbuild")), "sandbox", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        try:
            assert found, "the server did not start"
            yield found.group(0)
        finally:
            process.terminate()


def grid(number: int) -> dict[str, object]:
    """A different place for every chip."""
    affine = {"scaleX": 10, "shearX": 0, "translateX": 600000 + 60 * number, "shearY": 0, "scaleY": -10}
    dimensions = {"width": SIZE, "height": SIZE}
    return {"dimensions": dimensions, "affineTransform": affine | {"translateY": 5000040}, "crsCode": "EPSG:32631"}


def client_rate(url: str, chips: int, threads: int) -> tuple[float, float]:
    """Chips a second and CPU seconds a chip of the genuine client on many threads."""
    import ee

    ee.deprecation.deprecated_assets = {"-": None}
    ee.Initialize(credentials=None, url=url, project="benchmark")

    def one(number: int) -> int:
        image = ee.Image(SCENE).select(["B4", "B8"]).rename(["m0_0", "m0_1"]).unmask(65535, False).toUint16()
        return len(ee.data.computePixels({"expression": image, "fileFormat": "NPY", "grid": grid(number)}))

    assert one(0) > 2 * 2 * SIZE**2
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        assert len(set(pool.map(one, range(chips)))) == 1
    return chips / (time.perf_counter() - start), (time.process_time() - cpu) / chips


def request_bytes() -> bytes:
    """The same request as the client's, ready for a socket."""
    load = {"functionName": "Image.load", "arguments": {"id": {"constantValue": SCENE}}}
    bands = {"input": {"functionInvocationValue": load}, "bandSelectors": {"constantValue": ["B4", "B8"]}}
    select = {"functionName": "Image.select", "arguments": bands}
    cast = {"functionName": "Image.toUint16", "arguments": {"value": {"functionInvocationValue": select}}}
    expression = {"result": "0", "values": {"0": {"functionInvocationValue": cast}}}
    body = json.dumps({"expression": expression, "fileFormat": "NPY", "grid": grid(0)}).encode()
    head = f"POST /v1/projects/p/image:computePixels HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def socket_rate(url: str, chips: int, connections: int) -> float:
    """Chips a second over bare sockets, each asking for one after the other."""
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
    request = request_bytes()

    def many(count: int) -> None:
        with socket.create_connection(address) as connection:
            for _ in range(count):
                connection.sendall(request)
                read_answer(connection)

    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(many, [chips // connections] * connections))
    return chips // connections * connections / (time.perf_counter() - start)


def read_answer(connection: socket.socket) -> None:
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(2**17)
    head, _, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length, head
    assert head.startswith(b"HTTP/1.1 200"), head
    missing = int(length.group(1)) - len(body)
    while missing > 0:
        missing -= len(connection.recv(2**17))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=32)
    given = parser.parse_args()
    with server(*OPTIONS) as url:
        for connections in (1, 8, 64):
            print(
                f"bare sockets, {connections:2} connections: {socket_rate(url, given.chips, connections):6.0f} chips/s"
            )
        rate, cpu_s = client_rate(url, given.chips, given.threads)
        print(f"genuine client, {given.threads} threads:  {rate:6.0f} chips/s, {1000 * cpu_s:.1f} ms of its CPU a chip")
        with urllib.request.urlopen(f"{url}/counters") as answer:
            counters = json.load(answer)
        print(f"the server counted {counters['requests']}, {counters['bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
