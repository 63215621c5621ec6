"""The REST surface: discovery, errors in Google's shape, assets, and the same answers over HTTP as in the process."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ee
import numpy as np
import pytest

from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import Server, serve
from mmbuild.sandbox.transport import Transport
from tests.sandbox_worlds import connected, disconnect, grid, initialize, pixels, sentinel_world

LEFT, TOP = 600000.0, 5000040.0


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with the client of this process pointed at it."""
    with serve(Sandbox(sentinel_world())) as server:
        initialize(server.url)
        yield server
        disconnect()


def ask(sandbox: Sandbox, method: str, path: str, body: object = None) -> tuple[int, dict]:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, answer = sandbox.handle(method, path, "", {"host": "sandbox.invalid"}, data)
    return status, json.loads(answer)


def test_the_client_starts_with_three_requests() -> None:
    with connected(sentinel_world()) as sandbox:
        assert sandbox.requests == {"discovery": 2, "algorithms": 1}


def test_answers_over_http_equal_those_in_the_process(server: Server) -> None:
    image = ee.Image("C/S2/S003").select(["B4", "SCL"])
    size = ee.ImageCollection("C/S2").size().getInfo()
    over_http = pixels(image, grid(LEFT, TOP, size=16))
    with connected(sentinel_world()):
        assert ee.ImageCollection("C/S2").size().getInfo() == size
        np.testing.assert_array_equal(pixels(image, grid(LEFT, TOP, size=16)), over_http)


def test_many_threads_share_one_server(server: Server) -> None:
    def one(shift: int) -> bool:
        answer = pixels(ee.Image("C/S2/S000").select("B4"), grid(LEFT + 10 * shift, TOP, size=8))["B4"]
        return bool((answer == 1000 * np.arange(8)[:, None] + np.arange(8) + shift).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(32)))


def test_a_connection_is_kept_alive(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    for _ in range(3):
        connection.request("GET", "/world")
        answer = connection.getresponse()
        assert json.loads(answer.read()) == {"world": "formula-1", "synthetic": True}
        assert answer.version == 11
    sock = connection.sock
    connection.request("GET", "/world")
    connection.getresponse().read()
    assert connection.sock is sock
    connection.close()


def test_latency_is_added_to_every_answer() -> None:
    transport = Transport(Sandbox(sentinel_world()), latency_ms=30)
    start = time.perf_counter()
    transport.request("http://sandbox.invalid/world")
    assert time.perf_counter() - start >= 0.03


def test_the_server_ends_with_its_block() -> None:
    before = set(threading.enumerate())
    with serve(Sandbox(sentinel_world())) as server:
        port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/world")
    assert not [t for t in set(threading.enumerate()) - before if not t.daemon and t.is_alive()]


def test_every_method_of_the_discovery_document_is_answered() -> None:
    """By its endpoint, not by the 404 of an address that nobody knows."""
    sandbox = Sandbox(sentinel_world())
    _, document = ask(sandbox, "GET", "/$discovery/rest")

    def methods(resource: dict) -> Iterator[dict]:
        yield from resource.get("methods", {}).values()
        for inner in resource.get("resources", {}).values():
            yield from methods(inner)

    found = list(methods(document))
    assert len(found) == 38
    for method in found:
        kind, name = method["id"].split(".")[-2:]
        places = {
            "assets": "projects/earthengine-public/assets/C/S2", "thumbnails": "projects/p/thumbnails/t",
            "tables": "projects/p/tables/t", "operations": "projects/p/operations/o",
        }  # fmt: skip
        place = places.get(kind, "projects/p/config" if method["id"].endswith("Config") else "projects/p")
        if name in ("create", "list"):
            place = "projects/p"
        path = "/" + re.sub(r"\{\+\w+\}", place, method["path"])
        _, answer = ask(sandbox, method["httpMethod"], path)
        assert "Not found: " not in str(answer.get("error")), path


def test_a_failure_of_the_sandbox_itself_is_an_answer_that_nobody_retries() -> None:
    world = sentinel_world()
    world.dataset("C/S2").formulas = {}
    with (
        connected(world),
        pytest.raises(ee.EEException, match="The offline Earth Engine failed: KeyError: 'B4'") as caught,
    ):
        pixels(ee.Image("C/S2/S000").select("B4"), grid(LEFT, TOP))
    assert caught.value.__context__.resp.status == 400


# -- refusals ---------------------------------------------------------------------------------------------------------


def call(name: str, **arguments: object) -> dict:
    """A request body that calls one algorithm with constants."""
    given = {key: {"constantValue": value} for key, value in arguments.items()}
    node = {"functionInvocationValue": {"functionName": name, "arguments": given}}
    return {"expression": {"result": "0", "values": {"0": node}}}


COMPUTE = "/v1/projects/p/value:compute"


@pytest.mark.parametrize(
    ("path", "body", "code", "text"),
    [
        ("/v1/nothing", None, 404, "Not found: GET /v1/nothing"),
        ("/v1/projects/earthengine-public/assets/NO", None, 404, "Asset 'NO' does not exist"),
        (COMPUTE, {}, 400, "Expression is required."),
        (COMPUTE, b"{", 400, "Invalid JSON payload received"),
        (COMPUTE, b"[]", 400, "expected an object"),
        (COMPUTE, b" " * (10 * 2**20 + 1), 400, "exceeds the limit: 10485760 bytes"),
        (COMPUTE, call("No.such"), 400, "Algorithm 'No.such' not found."),
        (COMPUTE, call("Image.hsvToRgb", image=1), 400, "does not implement the algorithm 'Image.hsvToRgb'."),
        (COMPUTE, call("List.size", list=[], extra=1), 400, "List.size: Unrecognized arguments ['extra']."),
        (COMPUTE, {"expression": {"result": "9", "values": {}}}, 400, "no value '9'"),
        (
            COMPUTE,
            {"expression": {"result": "0", "values": {"0": {"argumentReference": "x"}}}},
            400,
            "Unbound function",
        ),
        (COMPUTE, {"expression": {"result": "0", "values": {"0": {"a": 1, "b": 2}}}}, 400, "exactly one field"),
    ],
)
def test_a_refusal_has_googles_shape(path: str, body: object, code: int, text: str) -> None:
    status, answer = ask(Sandbox(sentinel_world()), "GET" if body is None else "POST", path, body)
    assert status == code
    assert answer["error"]["code"] == code
    assert text in answer["error"]["message"]
    assert answer["error"]["status"] in ("INVALID_ARGUMENT", "NOT_FOUND")


def test_collections_of_more_than_5000_elements_are_not_listed() -> None:
    with connected(sentinel_world()):
        many = ee.FeatureCollection(ee.List.sequence(1, 5001).map(lambda i: ee.Feature(None, {"i": i})))
        assert many.size().getInfo() == 5001
        with pytest.raises(ee.EEException, match="Collection query aborted after accumulating over 5000 elements"):
            many.getInfo()


def test_a_long_chain_is_computed_and_an_endless_one_refused() -> None:
    def absolute(of: int) -> dict:
        arguments = {"input": {"valueReference": str(of)}}
        return {"functionInvocationValue": {"functionName": "Number.abs", "arguments": arguments}}

    sandbox = Sandbox(sentinel_world())
    chain = {"0": {"constantValue": 1}} | {str(i): absolute(i - 1) for i in range(1, 60)}
    assert ask(sandbox, "POST", COMPUTE, {"expression": {"result": "59", "values": chain}}) == (200, {"result": 1})
    status, answer = ask(sandbox, "POST", COMPUTE, {"expression": {"result": "0", "values": {"0": absolute(0)}}})
    assert (status, answer["error"]["message"]) == (400, "Expression is nested too deeply.")


# -- assets -----------------------------------------------------------------------------------------------------------


def test_assets_are_described(server: Server) -> None:
    image = ee.data.getAsset("C/S2/S001")
    assert (image["type"], image["id"], image["startTime"]) == ("IMAGE", "C/S2/S001", "2020-01-02T00:00:00.000000Z")
    assert image["bands"][0]["grid"]["affineTransform"]["translateX"] == LEFT
    assert ee.data.getAsset("C/S2")["type"] == "IMAGE_COLLECTION"
    assert ee.data.getAsset("C/REGIONS")["type"] == "TABLE"
    with pytest.raises(ee.EEException, match="Asset 'C/NO' does not exist"):
        ee.data.getAsset("C/NO")


def test_a_collection_is_listed_in_pages(server: Server) -> None:
    first = ee.data.listAssets({"parent": "projects/earthengine-public/assets/C/S2", "pageSize": 4})
    assert [a["id"] for a in first["assets"]] == [f"C/S2/S{i:03d}" for i in range(4)]
    token = first["nextPageToken"]
    second = ee.data.listAssets(
        {"parent": "projects/earthengine-public/assets/C/S2", "pageSize": 8, "pageToken": token}
    )
    assert len(second["assets"]) == 6
    window = 'startTime >= "2020-01-03T00:00:00Z" AND startTime < "2020-01-05T00:00:00Z"'
    found = ee.data.listAssets({"parent": "projects/earthengine-public/assets/C/S2", "filter": window})
    assert [a["id"] for a in found["assets"]] == ["C/S2/S002", "C/S2/S003"]
