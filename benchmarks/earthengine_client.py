"""What the Earth Engine client makes of the quota: requests a sample, share of the ideal rate, CPU, beside a naive one.

Everything is asked of `mmbuild sandbox` servers in processes of their own, with the limits of the real service on.
Run it on a machine that does nothing else: python benchmarks/earthengine_client.py [--quick]
"""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ee
import numpy as np
from distributed import Client

from mmbuild.build import build_corpus
from mmbuild.recipe import load_recipe

RECIPES = Path(__file__).parent / "recipes"
# Recipe -> the most requests a stored sample may cost on average, without those of rejected places.
MOST = {"mmearth_like": 1.1, "ssl4eo_date_like": 1.1, "scale_alibi_like": 2.1}
LATENCIES_MS = (50, 300, 1000)
# How shards are built -> worker processes of a local cluster, or of a scheduler that is started by hand.
CREWS = {"threads": 0, "2 processes": 2, "scheduler, 3 workers": 3}
# Seconds left out at both ends: while the window opens (about five at 1 s latency), and while the last shards end.
RAMP_S, TAIL_S = 6.0, 3.0


@contextmanager
def sandbox(*options: str) -> Iterator[str]:
    """The address of a server in its own process."""
    command = [str(Path(sys.executable).with_name("mmbuild")), "sandbox", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://[\d.:]+", server.stdout.readline())
        assert found, "the server did not start"
        yield found.group(0)
    finally:
        server.kill()
        server.wait()


@contextmanager
def scheduler(workers: int) -> Iterator[str]:
    """The address of a `dask scheduler` and its `dask worker` processes, all started by hand."""
    dask = str(Path(sys.executable).with_name("dask"))
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "scheduler.json"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        begun = [
            subprocess.Popen([dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", told], **quiet)
        ]
        try:
            worker = [dask, "worker", "--scheduler-file", told, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
            begun += [subprocess.Popen(worker, **quiet) for _ in range(workers)]
            with Client(scheduler_file=str(told), timeout=60) as client:
                client.wait_for_workers(workers, timeout=60)
                address: str = client.scheduler.address
            yield address
        finally:
            for process in reversed(begun):
                process.terminate()
                process.wait()


def counters(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/counters") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


class Watch:
    """Counts pixel requests of a server every quarter second, in a thread."""

    def __init__(self, url: str) -> None:
        self.url, self.seen = url, [(time.monotonic(), 0)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self.seen.append((time.monotonic(), sum(counters(self.url)["requests"].values())))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def rate(self, total: int) -> float:
        """Requests a second between the ramp and the tail."""
        first = next(when for when, count in self.seen if count >= 20)
        last = next(when for when, count in self.seen if count >= total)
        inside = [(when, count) for when, count in self.seen if first + RAMP_S <= when <= last - TAIL_S]
        if len(inside) < 8:
            return float("nan")
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def cpu_s() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def ledger(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(max((out / "runs").glob("*.json")).read_text())
    return found


def build(recipe: str, url: str, samples: int, **options: Any) -> tuple[dict[str, Any], float]:
    """The ledger of a build, and the CPU seconds of the client with its worker processes."""
    asked = load_recipe(RECIPES / f"{recipe}.yaml", [f"source={{name: earthengine, url: '{url}'}}"])
    began = cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(asked, Path(folder) / "corpus", samples=samples, **options)
        return ledger(Path(folder) / "corpus"), cpu_s() - began


def requests_per_sample(recipe: str, samples: int) -> tuple[float, float]:
    """Requests a stored sample, without the rejected places' share of the searches and with it.

    A search asks for many places at once, so a rejected one has its part of it; pixels asked for in vain count in both.
    """
    with sandbox("--canned") as url:
        found, _ = build(recipe, url, samples)
    asked, stored = found["requests"], found["samples"]["stored"]
    searches, pixels = asked["metadata_requests"], asked["pixel_requests"]
    return (searches * stored / asked["places"] + pixels) / stored, (searches + pixels) / stored


def throughput(latency_ms: float, crew: str, samples: int) -> dict[str, float]:
    """The steady rate with 64 KB chips, its share of the ideal, what was refused, and CPU a sample.

    CPU is that of all processes of the client, from their start to their end.
    """
    with sandbox("--canned", "--latency-ms", str(latency_ms)) as url:
        began = cpu_s()
        with Watch(url) as watch:
            if "scheduler" in crew:
                with scheduler(CREWS[crew]) as address:
                    found, _ = build("chips64k", url, samples, scheduler=address)
            else:
                found, _ = build("chips64k", url, samples, workers=CREWS[crew])
        cpu, server = cpu_s() - began, counters(url)
    total = found["requests"]["metadata_requests"] + found["requests"]["pixel_requests"]
    ideal = min(40_000 / latency_ms, 100.0)
    rate = watch.rate(total)
    return {
        "rate": rate, "share": rate / ideal, "refused": float(sum(server["refused"].values())),
        "peak": float(server["peak_in_flight"]), "cpu_ms": 1000 * cpu / samples,
    }  # fmt: skip


# -- a naive client: one question at a time, one download for every product ------------------------------------------


def naive_sample(lon: float, lat: float) -> int:
    """Ask as a first script would; the number of requests it took."""
    place = ee.Geometry.Point([lon, lat])
    asked = 0
    for collection in ("COPERNICUS/S2_SR_HARMONIZED", "COPERNICUS/S1_GRD"):
        images = ee.ImageCollection(collection).filterBounds(place).filterDate("2019-06-01", "2019-09-01")
        if images.size().getInfo() == 0:
            asked += 1
            continue
        image = images.first()
        name, crs = image.get("system:index").getInfo(), image.select(0).projection().getInfo()["crs"]
        image.bandNames().getInfo()
        asked += 5 + bool(name and crs)
        download(image.select([0, 1]), place)
    for image in (
        ee.Image("projects/sat-io/open-datasets/ASTER/GDEM"),
        ee.ImageCollection("ESA/WorldCover/v100").first(),
    ):
        download(image.select([0]), place)
        asked += 1
    return asked


def download(image: Any, place: Any) -> np.ndarray:
    lon, lat = place.toGeoJSON()["coordinates"]
    step = 10 / 111_320
    grid = {
        "dimensions": {"width": 128, "height": 128}, "crsCode": "EPSG:4326",
        "affineTransform": {
            "scaleX": step, "shearX": 0, "translateX": lon, "shearY": 0, "scaleY": -step, "translateY": lat
        },
    }  # fmt: skip
    raw = ee.data.computePixels({"expression": image, "fileFormat": "NPY", "grid": grid})
    pixels: np.ndarray = np.load(io.BytesIO(raw))
    return pixels


def naive(latency_ms: float, samples: int) -> Mapping[str, float]:
    """Requests, samples a second and CPU of the naive client with as many threads as the service allows."""
    with sandbox("--canned", "--latency-ms", str(latency_ms)) as url:
        ee.Reset()
        ee.deprecation.deprecated_assets = {"-": None}  # type: ignore[dict-item]
        ee.Initialize(credentials=None, url=url, project="naive")
        places = [(10 + 0.1 * (i % 20), 47 + 0.1 * (i // 20)) for i in range(samples)]
        began, cpu = time.monotonic(), cpu_s()
        with ThreadPoolExecutor(40) as pool:
            list(pool.map(lambda place: naive_sample(*place), places))
        seconds, asked = time.monotonic() - began, sum(counters(url)["requests"].values()) - 1
        cpu = cpu_s() - cpu
        refused = sum(counters(url)["refused"].values())
    return {"requests": asked / samples, "rate": samples / seconds, "cpu_ms": 1000 * cpu / samples, "refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples: a look, not a measurement")
    quick = parser.parse_args().quick
    print("requests a sample (metadata and screening included; in brackets with rejected places)")
    for recipe, most in MOST.items():
        without, together = requests_per_sample(recipe, 64 if quick else 256)
        print(f"  {recipe:18} {without:5.2f} [{together:5.2f}]  at most {most}")
    print("share of the ideal rate min(40 / latency, 100/s), chips of 64 KB")
    for latency in LATENCIES_MS:
        for crew in CREWS:
            found = throughput(latency, crew, 2048 if quick else 3072)
            print(
                f"  {latency:5} ms {crew:20} {found['rate']:6.1f}/s = {found['share']:4.0%}, refused "
                f"{found['refused']:.0f}, peak {found['peak']:.0f} under way, CPU {found['cpu_ms']:.1f} ms a sample"
            )
    found = naive(300, 40)
    print(
        f"naive client at 300 ms: {found['requests']:.1f} requests a sample, {found['rate']:.2f} samples/s, "
        f"CPU {found['cpu_ms']:.0f} ms a sample, refused {found['refused']:.0f}"
    )
    began = time.monotonic()
    with sandbox() as url:
        _, cpu = build("mmearth_like", url, 64)
    wall = time.monotonic() - began
    print(
        f"full samples, computed for real by the server: {64 / wall:.2f}/s; the client uses "
        f"{1000 * cpu / 64:.0f} ms of CPU for each, {cpu / wall:.0%} of one core: the rest is waiting for the server"
    )


if __name__ == "__main__":
    main()
