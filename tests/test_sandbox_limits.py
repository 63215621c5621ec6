"""What the sandbox limits, seen through HTTP: concurrency, rate, compute time; its counters; and canned answers."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ee
import numpy as np
import pytest

from mmbuild.sandbox import bind
from mmbuild.sandbox.limits import (
    EECU_HEADER,
    EECU_PER_CALL_S,
    EECU_PER_REQUEST_S,
    EECU_PER_VALUE_S,
    RESTRICTED_CONCURRENT,
    Limits,
    eecu_seconds,
)
from mmbuild.sandbox.rest import Answer, Sandbox
from mmbuild.sandbox.server import Server, serve
from mmbuild.sandbox.service import Service
from tests.sandbox_worlds import connected, disconnect, grid, initialize, pixels, sentinel_world

LEFT, TOP = 600000.0, 5000040.0
COMPUTE = "/v1/projects/p/value:compute"
ONE = json.dumps({"expression": {"result": "0", "values": {"0": {"constantValue": 1}}}}).encode()
WAIT_S = 20.0


class Gated(Sandbox):
    """Answers nothing until `open` is set; `waiting` counts who waits."""

    def __init__(self) -> None:
        super().__init__(sentinel_world())
        self.open, self.arrived = threading.Event(), threading.Semaphore(0)

    def handle(self, *request: Any) -> Answer:
        self.arrived.release()
        assert self.open.wait(WAIT_S)
        return super().handle(*request)

    def wait_for(self, count: int) -> None:
        assert all(self.arrived.acquire(timeout=WAIT_S) for _ in range(count))


def ask(server: Server, path: str = COMPUTE) -> tuple[int, dict[str, str], Any]:
    """One request over a connection of its own: status, headers in lower case, decoded JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=WAIT_S)
    try:
        connection.request(*(("POST", path, ONE) if path == COMPUTE else ("GET", path)))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


# -- one request ------------------------------------------------------------------------------------------------------


def chip(height: int, width: int, bands: int = 1) -> np.ndarray:
    """Constant bytes: each counts 2, one for its mask."""
    image = ee.Image.constant([1] * bands).toUint8()
    place = grid(LEFT, TOP, size=(height, width))
    raw = ee.data.computePixels({"expression": image, "fileFormat": "NPY", "grid": place})
    # numpy is wary of headers as long as those of a thousand bands.
    return np.load(io.BytesIO(raw), max_header_size=100_000)


def test_the_limits_of_one_request_hold_over_http() -> None:
    with serve(Sandbox(sentinel_world())) as server:
        initialize(server.url)
        assert chip(4096, 6144).shape == (4096, 6144)  # 2 * 4096 * 6144 = 48 MiB exactly
        with pytest.raises(ee.EEException, match=r"\(50339840 bytes\) must be less than or equal to 50331648 bytes"):
            chip(4096, 6145)
        assert chip(1, 32768).shape == (1, 32768)
        with pytest.raises(ee.EEException, match=r"\(32769x1\) must be less than or equal to 32768"):
            chip(1, 32769)
        assert len(chip(1, 1, 1024).dtype.names) == 1024
        with pytest.raises(ee.EEException, match="1025; at most 1024"):
            chip(1, 1, 1025)
        with pytest.raises(ee.EEException, match="payload size exceeds the limit: 10485760 bytes"):
            ee.String("x" * (10 * 2**20)).getInfo()
        features = ee.List.sequence(1, 5001).map(lambda i: ee.Feature(None, {"i": i}))
        assert len(ee.FeatureCollection(features.slice(0, 5000)).getInfo()["features"]) == 5000
        with pytest.raises(ee.EEException, match="aborted after accumulating over 5000 elements"):
            ee.FeatureCollection(features).getInfo()
        disconnect()


# -- concurrency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 40])
def test_one_request_too_many_is_refused_and_the_others_are_answered(limit: int) -> None:
    gated = Gated()
    with serve(gated, limits=Limits(max_concurrent=limit)) as server, ThreadPoolExecutor(limit) as pool:
        asked = [pool.submit(ask, server) for _ in range(limit)]
        gated.wait_for(limit)
        status, _, answer = ask(server)
        assert status == 429
        assert answer["error"] == {
            "code": 429,
            "message": "Too Many Requests: Request was rejected because the request rate or concurrency limit was "
            "exceeded.",
            "status": "RESOURCE_EXHAUSTED",
        }
        gated.open.set()
        assert [future.result()[0] for future in asked] == [200] * limit
        assert ask(server)[0] == 200
        _, _, counters = ask(server, "/counters")
    assert counters["refused"] == {"concurrency": 1}
    assert counters["requests"] == {"value:compute": limit + 2}
    assert (counters["peak_in_flight"], counters["in_flight"]) == (limit, 0)


def test_a_request_holds_its_place_while_its_latency_lasts() -> None:
    seen: list[int] = []

    def meanwhile(seconds: float) -> None:
        assert seconds == 0.3
        seen.append(service.exchange("POST", COMPUTE, "", {}, ONE).status)

    service = Service(Sandbox(sentinel_world()), latency_ms=300, limits=Limits(max_concurrent=1), sleep=meanwhile)
    assert service.exchange("POST", COMPUTE, "", {}, ONE).status == 200
    assert seen == [429]
    assert service.quota.in_flight == 0


def test_a_fault_gives_its_place_back() -> None:
    service = Service(Sandbox(sentinel_world()), limits=Limits(max_concurrent=1), faults=[{"fault": "internal"}])
    assert [service.exchange("POST", COMPUTE, "", {}, ONE).status for _ in range(3)] == [500] * 3
    assert service.quota.counters()["faults"] == {"internal": 3}


def test_a_hundred_connections_are_served_side_by_side() -> None:
    gated = Gated()
    with serve(gated) as server, ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(ask, server) for _ in range(100)]
        gated.wait_for(100)
        gated.open.set()
        assert {future.result()[0] for future in asked} == {200}
        assert server.service.quota.peak_in_flight == 100


def test_a_body_beyond_the_payload_limit_is_refused_and_the_connection_lives_on() -> None:
    with serve(Sandbox(sentinel_world())) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=WAIT_S)
        connection.request("POST", COMPUTE, b" " * (12 * 2**20))
        answer = connection.getresponse()
        assert answer.status == 400
        assert b"Request payload size exceeds the limit: 10485760 bytes." in answer.read()
        connection.request("POST", COMPUTE, ONE)
        assert json.loads(connection.getresponse().read()) == {"result": 1}
        connection.close()


# -- rate -------------------------------------------------------------------------------------------------------------


def test_the_bucket_holds_a_second_and_fills_at_the_rate() -> None:
    now = [0.0]
    service = Service(Sandbox(sentinel_world()), limits=Limits(max_concurrent=0), clock=lambda: now[0])

    def statuses(count: int) -> list[int]:
        return [service.exchange("POST", COMPUTE, "", {}, ONE).status for _ in range(count)]

    assert statuses(100) == [200] * 100
    assert statuses(1) == [429]
    now[0] = 0.0101
    assert statuses(2) == [200, 429]
    now[0] = 0.5101
    assert statuses(51) == [200] * 50 + [429]
    now[0] = 10.0
    assert statuses(101) == [200] * 100 + [429]
    counters = service.quota.counters()
    assert counters["refused"] == {"rate": 4}
    assert counters["peak_per_second"] == 154  # 100 + 1 + 2 + 51 in the first second, refused ones too
    assert counters["peak_in_flight"] == 1


def test_the_client_reads_the_real_text_of_the_rate_limit() -> None:
    with serve(Sandbox(sentinel_world()), limits=Limits(requests_per_second=0.001)) as server:
        initialize(server.url)  # the algorithm list takes the only token
        with pytest.raises(ee.EEException, match="limit 'Number of read requests per minute per user'") as caught:
            ee.Number(1).getInfo()
        disconnect()
        assert caught.value.__context__.resp.status == 429
        assert ask(server, "/world")[2] == {"world": "formula-1", "synthetic": True}  # costs no quota
        assert ask(server, "/counters")[2]["refused"] == {"rate": 1}


def test_limits_are_off_unless_asked_for() -> None:
    with connected(sentinel_world()):
        assert [ee.Number(n).getInfo() for n in range(150)] == list(range(150))


@pytest.mark.parametrize("wrong", [{"max_concurrent": -1}, {"requests_per_second": -0.5}, {"max_eecu_hours": -1.0}])
def test_a_negative_limit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not be negative; 0 means none"):
        Limits(**wrong)


# -- compute time -----------------------------------------------------------------------------------------------------


def chip_request(size: int = 4) -> bytes:
    """computePixels of two bands: Image.select(Image.load(...)), two algorithms."""
    load = {"functionName": "Image.load", "arguments": {"id": {"constantValue": "C/S2/S000"}}}
    arguments = {"input": {"functionInvocationValue": load}, "bandSelectors": {"constantValue": ["B4", "SCL"]}}
    select = {"functionInvocationValue": {"functionName": "Image.select", "arguments": arguments}}
    body = {"expression": {"result": "0", "values": {"0": select}}, "fileFormat": "NPY", "grid": grid(LEFT, TOP)}
    body["grid"]["dimensions"] = {"width": size, "height": size}
    return json.dumps(body).encode()


CHIP = "/v1/projects/p/image:computePixels"


def test_compute_time_is_a_formula_of_the_request_and_its_answer() -> None:
    service = Service(Sandbox(sentinel_world()))
    chip = service.exchange("POST", CHIP, "", {}, chip_request())
    expected = EECU_PER_REQUEST_S + 2 * EECU_PER_CALL_S + 4 * 4 * 2 * EECU_PER_VALUE_S
    assert float(chip.headers[EECU_HEADER]) == pytest.approx(expected, abs=1e-6)
    listed = json.dumps({"expression": {"result": "0", "values": {"0": {"constantValue": [1, 2, 3]}}}}).encode()
    value = service.exchange("POST", COMPUTE, "", {}, listed)
    assert float(value.headers[EECU_HEADER]) == pytest.approx(EECU_PER_REQUEST_S + 3 * EECU_PER_VALUE_S, abs=1e-6)
    assert service.quota.eecu_s == pytest.approx(
        float(chip.headers[EECU_HEADER]) + float(value.headers[EECU_HEADER]), abs=1e-5
    )
    refused = service.exchange("POST", COMPUTE, "", {}, b"{}")
    assert (refused.status, EECU_HEADER in refused.headers) == (400, False)


@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
def test_compute_time_counts_every_band_of_a_long_header() -> None:
    names = [f"band_{number:04d}_{'x' * 50}" for number in range(1000)]
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 3), dtype=[(name, "u1") for name in names]))
    assert buffer.getvalue()[6] == 2  # the header does not fit format 1.0
    cost = eecu_seconds(b"", {}, buffer.getvalue())
    assert cost == pytest.approx(EECU_PER_REQUEST_S + 6000 * EECU_PER_VALUE_S)


def test_compute_time_is_the_same_canned_as_computed() -> None:
    costs = [
        Service(Sandbox(sentinel_world(), canned=canned)).exchange("POST", CHIP, "", {}, chip_request()).headers
        for canned in (False, True)
    ]
    assert costs[0][EECU_HEADER] == costs[1][EECU_HEADER]


def test_the_client_prints_what_its_requests_cost() -> None:
    with serve(Sandbox(sentinel_world())) as server:
        initialize(server.url)
        printed = io.StringIO()
        with ee.profilePrinting(destination=printed):
            for _ in range(3):
                pixels(ee.Image("C/S2/S000").select("B4"), grid(LEFT, TOP, size=4))
        spent = ask(server, "/counters")[2]["eecu_s"]
        with pytest.raises(ee.EEException, match="Profile 'another' not found"):
            ee.ApiFunction.lookup("Profile.getProfiles").call(ids=["another"]).getInfo()
        disconnect()
    cost, _, count, description = printed.getvalue().splitlines()[1].split(None, 3)
    chips = 3 * (EECU_PER_REQUEST_S + 2 * EECU_PER_CALL_S + 16 * EECU_PER_VALUE_S)
    assert float(cost) == pytest.approx(chips, abs=1e-3)
    assert spent > float(cost)  # reading the profile costs too
    assert (count, description) == ("3", "(synthetic) requests")


def test_beyond_the_month_the_project_is_restricted() -> None:
    limits = Limits(max_eecu_hours=0.015 / 3600)
    with serve(Sandbox(sentinel_world()), limits=limits) as server:
        initialize(server.url)
        assert ee.Number(1).getInfo() == 1
        with pytest.warns(UserWarning, match="exceeded its noncommercial compute quota"):
            assert ee.Number(2).getInfo() == 2
        disconnect()
        assert ask(server, "/counters")[2]["restricted"] is True


def test_restricted_projects_have_few_places() -> None:
    gated = Gated()
    with serve(gated, limits=Limits(restricted=True)) as server, ThreadPoolExecutor(RESTRICTED_CONCURRENT) as pool:
        asked = [pool.submit(ask, server) for _ in range(RESTRICTED_CONCURRENT)]
        gated.wait_for(RESTRICTED_CONCURRENT)
        status, headers, _ = ask(server)
        assert (status, headers["x-earth-engine-quota-status"]) == (429, "parallelism_restricted=true")
        gated.open.set()
        assert {future.result()[0] for future in asked} == {200}


def test_a_hard_cap_refuses_with_the_compute_quota() -> None:
    with serve(Sandbox(sentinel_world()), limits=Limits(max_eecu_hours=0.015 / 3600, eecu_stop=True)) as server:
        assert [ask(server)[0] for _ in range(2)] == [200, 200]
        status, _, answer = ask(server)
        assert status == 429
        assert "limit 'Noncommercial EECU-seconds per month'" in answer["error"]["message"]
        assert ask(server, "/counters")[2]["refused"] == {"eecu": 1}


# -- canned answers ---------------------------------------------------------------------------------------------------


@contextmanager
def canned() -> Iterator[Sandbox]:
    """The genuine client over a sandbox with canned pixels, through HTTP."""
    sandbox = Sandbox(sentinel_world(), canned=True)
    with serve(sandbox) as server:
        initialize(server.url)
        yield sandbox
        disconnect()


EXPRESSIONS = {
    "one scene": lambda: ee.Image("C/S2/S000").select(["B4", "SCL"]),
    "renamed and cast": lambda: ee.Image("C/S2/S001").select(["B4", "B5"]).rename(["m0_0", "m0_1"]).toUint8(),
    "a cast to floats": lambda: ee.Image("C/S2/S001").select(["B4"]).divide(10000).toFloat().rename(["m0_0"]),
    "a composite": lambda: ee.ImageCollection("C/S2").select(["B4"]).median().toInt16().unmask(-1, False),
    "a constant": lambda: ee.Image.constant([1, 2]).rename(["a", "b"]).toUint16(),
    "stacked": lambda: ee.Image.cat(
        ee.Image("C/S2/S002").select(["B4"]).rename(["m0_0"]).toUint16(),
        ee.Image("C/DEM").rename(["m1_0"]).toInt16(),
    ),
}


def test_canned_answers_have_the_form_of_real_ones() -> None:
    wanted = {name: (make, grid(LEFT, TOP, size=(6, 9))) for name, make in EXPRESSIONS.items()}
    with connected(sentinel_world()):
        real = {name: pixels(make(), place) for name, (make, place) in wanted.items()}
    with canned():
        for name, (make, place) in wanted.items():
            for _ in range(2):
                made = pixels(make(), place)
                assert (made.dtype, made.shape) == (real[name].dtype, real[name].shape), name
                assert all(made[band].all() for band in made.dtype.names)


def test_an_expression_is_computed_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    make = "mmbuild.sandbox.canned.Canned._make"
    monkeypatch.setattr(make, counting(computed))

    def chip(day: int, shift: int, size: int = 8, cast: str = "toUint16") -> np.ndarray:
        day_ms = 1_577_836_800_000 + 86_400_000 * day
        image = ee.ImageCollection("C/S2").filterDate(day_ms, day_ms + 86_400_000).select(["B4"]).mosaic().rename(["m"])
        return pixels(getattr(image, cast)(), grid(LEFT + 60 * shift, TOP - 60 * shift, size=size))

    with canned() as sandbox:
        for number in range(20):
            chip(number % 10, number)
        assert len(computed) == 1
        assert chip(0, 0, size=4).shape == (4, 4)
        assert chip(0, 0, cast="toUint8").dtype["m"] == np.uint8
        assert len(computed) == 3
        assert sandbox.requests["image:computePixels"] == 22


def counting(computed: list[int]) -> Any:
    from mmbuild.sandbox.canned import Canned

    real = Canned._make

    def make(self: Canned, body: bytes) -> bytes:
        computed.append(len(body))
        return real(self, body)

    return make


def test_canned_metadata_are_real_and_refusals_too() -> None:
    with canned():
        assert ee.ImageCollection("C/S2").size().getInfo() == 10
        assert ee.Image("C/S2/S000").select("B4").reduceRegion(
            "max", ee.Geometry.Point([4.2747, 45.1492]), 10
        ).getInfo().keys() == {"B4"}
        for _ in range(2):
            with pytest.raises(ee.EEException, match="must be less than or equal to 50331648 bytes"):
                pixels(ee.Image("C/S2/S000").select("B4"), grid(LEFT, TOP, size=5000))


def test_a_canned_world_is_never_taken_for_a_real_one() -> None:
    world = sentinel_world()
    world.synthetic = False
    with serve(Sandbox(world)) as server:
        assert ask(server, "/world")[2] == {"world": "formula-1", "synthetic": False}
    with serve(Sandbox(world, canned=True)) as server:
        assert ask(server, "/world")[2] == {"world": "formula-1-canned", "synthetic": True}


def test_a_canned_chip_costs_well_under_a_millisecond() -> None:
    service = Service(Sandbox(sentinel_world(), canned=True))
    body = chip_request(128)
    answer = service.exchange("POST", CHIP, "", {}, body)
    assert np.load(io.BytesIO(answer.body)).shape == (128, 128)

    def batch() -> float:
        start = time.perf_counter()
        for _ in range(20):
            service.exchange("POST", CHIP, "", {}, body)
        return (time.perf_counter() - start) / 20

    # The best of many batches: the machine's other work is not the sandbox's. Measured: 0.05 ms.
    assert min(batch() for _ in range(20)) < 1e-3


def test_a_bound_server_has_what_the_command_asks_for() -> None:
    faults = [{"fault": "rate", "requests": [1]}]
    server = bind(sentinel_world(), port=0, latency_ms=5, limits=Limits(), faults=faults, canned=True)
    server.server_close()
    assert (server.service.latency_ms, server.service.quota.limits) == (5, Limits())
    assert [rule.fault for rule in server.service.faults.rules] == ["rate"]
    assert server.sandbox._canned is not None
