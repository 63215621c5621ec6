"""The fault script: every fault as the genuine client meets it, in-process and over sockets, and when it strikes."""

from __future__ import annotations

import http.client
import io
import struct
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ee
import numpy as np
import pytest
from typer.testing import CliRunner

from mmbuild.cli import app
from mmbuild.sandbox import offline_transport
from mmbuild.sandbox.fault_kinds import KINDS
from mmbuild.sandbox.faults import FaultScript, read_faults
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import serve
from mmbuild.sandbox.transport import Transport
from tests.sandbox_worlds import disconnect, grid, initialize, sentinel_world

LEFT, TOP = 600000.0, 5000040.0
DEADLINE_MS = 400


@dataclass(frozen=True)
class Outcome:
    """What a faulty request ends in on the client's side."""

    error: type[Exception] | None
    status: int | None = None
    text: str = ""


REFUSED = {
    "rate": (429, "Too Many Requests: Request was rejected because the request rate or concurrency limit"),
    "aggregations": (429, "Too many concurrent aggregations."),
    "quota_per_minute": (429, "limit 'Number of read requests per minute per user'"),
    "eecu_quota": (429, "limit 'EECU-seconds per day'"),
    "rate_403": (403, "Rate Limit Exceeded"),
    "internal": (500, "An internal error has occurred."),
    # The client replaces a body that is no JSON by the reason phrase of a good answer.
    "internal_empty": (500, "Ok"),
    "bad_gateway": (502, "Ok"),
    "unavailable": (503, "The service is currently unavailable."),
    "unauthenticated": (401, "invalid authentication credentials"),
    "permission": (403, "Permission 'earthengine.assets.get' denied on resource 'x-permission-x'"),
    "project": (403, "Caller does not have required permission to use project"),
    "not_found": (404, "Asset 'x-not_found-x' not found"),
    "memory": (400, "User memory limit exceeded."),
    "timeout": (400, "Computation timed out."),
    "size": (400, "Total request size (56623104 bytes) must be less than or equal to 50331648 bytes."),
    "payload": (400, "Request payload size exceeds the limit: 10485760 bytes."),
    "elements": (400, "Collection query aborted after accumulating over 5000 elements."),
}
OUTCOMES = {name: Outcome(ee.EEException, *refused) for name, refused in REFUSED.items()} | {
    "reset": Outcome(ConnectionError, text="Connection reset by peer"),
    "truncated": Outcome(ConnectionError, text="IncompleteRead(88 bytes read, 88 more expected)"),
    "hang": Outcome(TimeoutError, text="timed out"),
    "short": Outcome(ValueError, text="EOF: reading array header"),
    "duplicate_bands": Outcome(ValueError, text="already used as a name"),
    "error_in_ok": Outcome(ValueError, text="pickled"),
    "wrong_dtype": Outcome(None),
    "wrong_shape": Outcome(None),
    "out_of_order": Outcome(None),
    "restricted": Outcome(None),
}

# Every fault at once: a rule strikes the requests whose workload tag names it.
SCRIPT = [{"fault": name, "match": f"x-{name}-x", "interval_s": 0.005} for name in KINDS]


@pytest.fixture(scope="module", params=["in the process", "over sockets"])
def client(request: pytest.FixtureRequest) -> Iterator[str]:
    """The genuine client, pointed at a sandbox where every request may name its fault."""
    with serve(Sandbox(sentinel_world()), faults=SCRIPT) as server:
        if request.param == "over sockets":
            initialize(server.url)
        else:
            initialize("http://sandbox.invalid", http_transport=Transport(Sandbox(sentinel_world()), faults=SCRIPT))
        ee.data.setDeadline(DEADLINE_MS)
        ee.data.setMaxRetries(0)
        yield request.param
        disconnect()


def ask(fault: str = "none") -> np.ndarray:
    """Pixels of a known scene: B4 = 1000 row + column, SCL = (row + column) mod 11 on 20 m."""
    image = ee.Image("C/S2/S000").select(["B4", "SCL"])
    request = {"expression": image, "fileFormat": "NPY", "grid": grid(LEFT, TOP, size=4)}
    raw = ee.data.computePixels(request | {"workloadTag": f"x-{fault}-x"})
    return np.load(io.BytesIO(raw), allow_pickle=False)


def test_every_fault_has_its_outcome_here() -> None:
    assert set(OUTCOMES) | {"trickle"} == set(KINDS)


@pytest.mark.parametrize("fault", sorted(name for name, outcome in OUTCOMES.items() if outcome.error))
def test_a_fault_ends_as_the_genuine_client_has_it(client: str, fault: str) -> None:
    expected = OUTCOMES[fault]
    assert expected.error is not None
    with pytest.raises(expected.error) as caught:
        ask(fault)
    assert expected.text in str(caught.value)
    if expected.status:
        assert caught.value.__context__.resp.status == expected.status
    assert ask()["B4"][1, 2] == 1002  # and the next request is well


def test_a_fault_of_values_leaves_the_rest_of_the_answer_right(client: str) -> None:
    good = ask()
    assert good.dtype == [("B4", "<u2"), ("SCL", "u1")]
    assert good.shape == (4, 4)
    other = ask("wrong_dtype")
    assert other.dtype == [("B4", "<f8"), ("SCL", "u1")]
    np.testing.assert_array_equal(other["B4"], good["B4"])
    np.testing.assert_array_equal(ask("wrong_shape"), good[:-1])
    reordered = ask("out_of_order")
    assert reordered.dtype.names == ("SCL", "B4")
    np.testing.assert_array_equal(reordered["B4"], good["B4"])


def test_restricted_mode_is_announced_by_the_client(client: str) -> None:
    with pytest.warns(UserWarning, match="now in restricted mode"):
        assert ask("restricted")["B4"][1, 2] == 1002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask()


def test_a_trickle_defeats_the_clients_deadline_over_sockets_and_is_a_timeout_in_the_process(client: str) -> None:
    start = time.perf_counter()
    if client == "over sockets":
        assert ask("trickle")["B4"][1, 2] == 1002
        assert time.perf_counter() - start > DEADLINE_MS / 1000
    else:
        with pytest.raises(TimeoutError, match="did not arrive in time"):
            ask("trickle")


def test_values_fail_like_pixels(client: str) -> None:
    try:
        ee.data.setWorkloadTag("x-unavailable-x")
        with pytest.raises(ee.EEException, match="currently unavailable"):
            ee.Number(1).getInfo()
        ee.data.setWorkloadTag("x-error_in_ok-x")
        with pytest.raises(KeyError, match="result"):
            ee.Number(1).getInfo()
        ee.data.setWorkloadTag("x-wrong_dtype-x")
        assert ee.Number(1).getInfo() == 1  # a fault of pixels leaves values alone
    finally:
        ee.data.resetWorkloadTag()


# -- on the wire ------------------------------------------------------------------------------------------------------


def test_a_truncated_answer_announces_all_of_its_bytes() -> None:
    with serve(Sandbox(sentinel_world()), faults=[{"fault": "truncated", "endpoint": "algorithms"}]) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
        connection.request("GET", "/v1/projects/p/algorithms")
        answer = connection.getresponse()
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
        assert len(caught.value.partial) == int(answer.headers["content-length"]) // 2
        connection.close()


def test_a_reset_is_a_reset() -> None:
    with serve(Sandbox(sentinel_world()), faults=[{"fault": "reset", "endpoint": "algorithms"}]) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
        connection.request("GET", "/v1/projects/p/algorithms")
        with pytest.raises(ConnectionResetError):
            connection.getresponse()
        connection.close()


def test_a_server_with_hanging_requests_can_be_stopped() -> None:
    with serve(Sandbox(sentinel_world()), faults=[{"fault": "hang", "endpoint": "algorithms"}]) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
        connection.request("GET", "/v1/projects/p/algorithms")
        start = time.perf_counter()
    assert time.perf_counter() - start < 2
    connection.close()


def test_a_band_that_comes_twice_is_in_the_header_twice_and_its_pixels_too() -> None:
    transport = Transport(Sandbox(sentinel_world()), faults=[{"fault": "duplicate_bands"}])
    initialize("http://sandbox.invalid", http_transport=transport)
    image = ee.Image("C/S2/S000").select(["B4", "SCL"])
    raw = ee.data.computePixels({"expression": image, "fileFormat": "NPY", "grid": grid(LEFT, TOP, size=4)})
    disconnect()
    start = 12 + struct.unpack("<I", raw[8:12])[0]
    assert start % 64 == 0
    assert raw[12:start].decode().count("'B4'") == 2
    pixels = np.frombuffer(raw[start:], dtype=[("a", "<u2"), ("b", "<u2"), ("c", "u1")]).reshape(4, 4)
    np.testing.assert_array_equal(pixels["a"], pixels["b"])
    np.testing.assert_array_equal(pixels["a"], 1000 * np.arange(4)[:, None] + np.arange(4))


# -- when -------------------------------------------------------------------------------------------------------------


def struck(script: FaultScript, count: int, *, endpoint: str = "value:compute", body: bytes = b"") -> list[int]:
    """Which of the next requests go wrong, counted from 1."""
    return [n for n in range(1, count + 1) if script.choose(endpoint, "/v1/path", body) is not None]


def test_requests_strike_by_number() -> None:
    assert struck(read_faults([{"fault": "rate", "requests": [3, 7]}]), 20) == [3, 7]
    assert struck(read_faults([{"fault": "rate", "from_request": 4, "to_request": 6}]), 20) == [4, 5, 6]
    assert struck(read_faults([{"fault": "rate", "from_request": 18}]), 20) == [18, 19, 20]


def test_draws_depend_on_seed_position_and_number_alone() -> None:
    rules = [{"fault": "rate", "probability": 0.05, "seed": 7}]
    first = struck(read_faults(rules), 4000)
    assert first == struck(read_faults(rules), 4000)
    # Binomial(4000, 0.05): 200 expected, standard deviation 14.
    assert 130 < len(first) < 270
    assert first != struck(read_faults([{**rules[0], "seed": 8}]), 4000)
    never = {"fault": "rate", "probability": 0}
    assert first != struck(read_faults([never, *rules]), 4000)


def test_an_outage_is_a_window_since_the_first_request() -> None:
    now = [1000.0]
    script = read_faults([{"fault": "bad_gateway", "from_s": 10, "to_s": 40}], clock=lambda: now[0])

    def at(seconds: float) -> bool:
        now[0] = 1000.0 + seconds
        return script.choose("value:compute", "", b"") is not None

    assert [at(s) for s in (0, 9.9, 10, 39.9, 40, 100)] == [False, False, True, True, False, False]


def test_a_rule_counts_only_what_it_applies_to() -> None:
    script = read_faults([{"fault": "rate", "endpoint": "image:*", "match": "C/S1", "requests": [2]}])
    assert struck(script, 5, endpoint="image:computePixels", body=b'"C/S2"') == []
    assert struck(script, 5, endpoint="value:compute", body=b'"C/S1"') == []
    assert struck(script, 5, endpoint="image:computePixels", body=b'"C/S1"') == [2]


def test_all_conditions_must_hold_and_the_first_rule_wins() -> None:
    script = read_faults(
        [
            {"fault": "rate", "requests": [2, 3], "from_request": 3},
            {"fault": "reset", "requests": [3, 4]},
        ]
    )
    chosen = [script.choose("value:compute", "", b"") for _ in range(5)]
    assert [rule and rule.fault for rule in chosen] == [None, None, "rate", "reset", None]


def test_starting_the_client_is_spared_unless_a_rule_names_it() -> None:
    everything = read_faults([{"fault": "internal"}])
    assert struck(everything, 3, endpoint="algorithms") == struck(everything, 3, endpoint="discovery") == []
    assert struck(read_faults([{"fault": "internal", "endpoint": "algorithms"}]), 2, endpoint="algorithms") == [1, 2]


def test_an_asset_in_the_path_matches_too() -> None:
    script = read_faults([{"fault": "permission", "match": "C/S2"}])
    rule = script.choose("assets:get", "/v1/projects/earthengine-public/assets/C/S2", b"")
    assert rule is not None
    answer = rule.instead()
    assert answer is not None
    assert b"denied on resource 'C/S2'" in answer.body


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text("- {fault: unavailable, requests: [1]}\n- {fault: trickle, interval_s: 0.5, seed: 3}\n")
    transport = offline_transport(faults=str(file))
    assert [rule.fault for rule in transport.service.faults.rules] == ["unavailable", "trickle"]
    assert transport.service.faults.rules[1].interval_s == 0.5


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"fault": "rat"}, "rule 2: fault: 'rat' is not known; known are aggregations, bad_gateway"),
        ({"probability": 0.5}, "rule 2: fault: None is not known"),
        ({"fault": "rate", "prob": 0.5}, "rule 2: prob: unknown key; known are fault, endpoint, match, probability"),
        ({"fault": "rate", "probability": 1.4}, "rule 2: probability: 1.4 must be a number from 0 to 1"),
        ({"fault": "rate", "probability": True}, "rule 2: probability: True must be a number"),
        ({"fault": "rate", "requests": [0]}, r"rule 2: requests: \[0\] must be a list of whole numbers from 1"),
        ({"fault": "rate", "requests": 3}, "rule 2: requests: 3 must be a list"),
        ({"fault": "rate", "from_request": 9, "to_request": 3}, r"rule 2: to_request: 3 is before from_request \(9\)"),
        ({"fault": "rate", "from_s": -1}, "rule 2: from_s: -1 must be a number of seconds, at least 0"),
        ({"fault": "rate", "match": ""}, "rule 2: match: '' must be a text that is not empty"),
        (
            {"fault": "rate", "endpoint": "computePixels"},
            "rule 2: endpoint: 'computePixels' matches none of discovery, ",
        ),
        ("rate", "rule 2: 'rate' must be a mapping"),
    ],
)
def test_a_wrong_rule_is_refused_by_name(rule: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_faults([{"fault": "rate"}, rule])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("fault: rate", "must be a list of rules"),
        ("- {fault: rate", "no valid YAML"),
        (
            "# why\n- {fault: rate}\n\n- {fault: rate, seed: x}",
            "faults.yaml:4: rule 2: seed: 'x' must be a whole number",
        ),
    ],
)
def test_the_command_names_the_file_and_the_rule(content: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text(content)
    result = CliRunner().invoke(app, ["sandbox", "--port", "0", "--faults", str(file)])
    assert result.exit_code != 0
    text = str(result.exception) + result.output
    assert "faults.yaml" in text
    assert reason in text


def test_a_transport_refuses_a_wrong_script_at_once() -> None:
    with pytest.raises(ValueError, match="faults: rule 1: fault: 'nope' is not known"):
        offline_transport(faults=[{"fault": "nope"}])
