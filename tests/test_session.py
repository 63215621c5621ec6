"""Sessions of the earthengine source: what every fault means, who signs in how, and one endpoint in a process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import ee
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mmbuild import throttle
from mmbuild.choose import Choice, Sample, Scene
from mmbuild.errors import QuotaStop, SourceError, UserError
from mmbuild.grid import utm_epsg, utm_grid
from mmbuild.registry import load_modalities
from mmbuild.sandbox.earth import Earth
from mmbuild.sandbox.fault_kinds import KINDS
from mmbuild.sandbox.faults import read_faults
from mmbuild.sandbox.rest import Sandbox
from mmbuild.sandbox.server import Handler, Server, serve
from mmbuild.sandbox.service import Service
from mmbuild.sandbox.transport import Transport
from mmbuild.sources import Ask, SourceSpec, Usage
from mmbuild.sources.earthengine import EarthEngine, login, session
from mmbuild.sources.earthengine.refusals import about, meaning, read_refusal
from mmbuild.sources.earthengine.wire import Limits
from tests.corpora import build_small
from tests.gates import Turnstile, in_a_fork
from tests.sandbox_worlds import disconnect

MODALITIES = load_modalities()
OFFLINE = SourceSpec(name="sandbox")
DEM, OTHER = "copernicus_dem", "aster_gdem"
DEM_ASSET = str(MODALITIES[DEM].sources["earthengine"]["collection"])
Faults = Sequence[Mapping[str, Any]]


def sample_at(lon: float, lat: float, size: int = 8) -> Sample:
    box = utm_grid(lon, lat, gsd=10, size=size)
    return Sample(
        slot=0, alternate=0, sample_id="000000", lon=lon, lat=lat, epsg=utm_epsg(lon, lat), x0=box.affine.c,
        y0=box.affine.f, gsd=10.0, size=size, date=None, anchor_year=2020,
    )  # fmt: skip


PLACE = sample_at(9.3, 47.2)
ASKS = {0: [Ask(modality=MODALITIES[name], window=None) for name in (DEM, OTHER)]}


def open_at(spec: SourceSpec, gate: Turnstile | None = None) -> EarthEngine:
    names = (DEM, OTHER)
    return EarthEngine(spec, {name: MODALITIES[name] for name in names}, dict.fromkeys(names, 10.0), gate)


def choices_of(source: EarthEngine) -> dict[str, Choice]:
    found = sorted(source.search([PLACE], ASKS), key=lambda scene: scene.scene_id)
    return {
        name: Choice(modality=name, scenes=tuple(s for s in found if s.modality == name)) for name in (DEM, OTHER)
    }  # fmt: skip


@pytest.fixture(scope="module")
def earth() -> Sandbox:
    return Sandbox(Earth().world)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pause before another try, a fresh budget of retries, and a client that is left as new."""
    monkeypatch.setattr(throttle, "delay_s", lambda attempt, jitter: 0.0)
    monkeypatch.setattr(session, "retries", throttle.RetryBudget())
    monkeypatch.setattr("mmbuild.sources.earthengine.retries", session.retries)
    yield
    disconnect()


# -- every row of the fault matrix --------------------------------------------------------------------------------

AGAIN, SMALLER, WRONG, ACCOUNT, QUOTA, FAILED, GOOD = "again", "smaller", "wrong", "account", "quota", "failed", "good"
MEANINGS = {
    "rate": AGAIN, "aggregations": AGAIN, "quota_per_minute": AGAIN, "rate_403": AGAIN, "eecu_quota": QUOTA,
    "internal": AGAIN, "internal_empty": AGAIN, "bad_gateway": AGAIN, "unavailable": AGAIN,
    "unauthenticated": ACCOUNT, "permission": ACCOUNT, "project": ACCOUNT, "not_found": WRONG,
    "memory": SMALLER, "timeout": SMALLER, "size": SMALLER, "payload": SMALLER, "elements": SMALLER,
    "reset": AGAIN, "truncated": AGAIN, "trickle": AGAIN, "hang": AGAIN,
    "short": AGAIN, "wrong_dtype": FAILED, "wrong_shape": AGAIN, "duplicate_bands": AGAIN, "out_of_order": GOOD,
    "error_in_ok": AGAIN, "restricted": GOOD,
}  # fmt: skip


def test_every_fault_that_can_be_scripted_has_a_meaning() -> None:
    assert set(MEANINGS) == set(KINDS)


class Faulty:
    """A source over one service whose fault script the test sets, with what the service said without faults."""

    def __init__(self, service: Service, spec: SourceSpec) -> None:
        self.service, self.spec = service, spec
        service.faults = read_faults(None)
        self.source = open_at(spec)
        self.choices = choices_of(self.source)
        self.chips = self.source.read(PLACE, self.choices)

    def begin(self, *faults: Mapping[str, Any]) -> EarthEngine:
        """A new source, connected, whose requests meet these faults."""
        self.service.faults = read_faults(None)
        source = open_at(self.spec)
        self.service.faults = read_faults(list(faults))
        self.before = self.asked
        return source

    @property
    def asked(self) -> int:
        return sum(self.service.quota.requests.values())


@pytest.fixture(scope="module", params=["in process", "over sockets"])
def faulty(request: pytest.FixtureRequest, earth: Sandbox) -> Iterator[Faulty]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "LIMITS", Limits(connect_s=5.0, read_s=0.25, total_s=0.5))
        if request.param == "in process":
            transport = Transport(earth)
            patch.setattr("mmbuild.sandbox.offline_transport", lambda **_: transport)
            yield Faulty(transport.service, OFFLINE)
        else:
            with serve(earth) as server:
                # Times are for answers that never come: the first of a world takes longer to compute than a test waits.
                patch.setattr(session, "LIMITS", Limits())
                ready = Faulty(server.service, SourceSpec(name="earthengine", url=server.url))
                patch.setattr(session, "LIMITS", Limits(connect_s=5.0, read_s=1.5, total_s=2.0))
                yield ready


def only_first(kind: str) -> dict[str, Any]:
    return {"fault": kind, "requests": [1], "endpoint": "image:computePixels"}


@pytest.mark.parametrize("kind", [kind for kind, means in MEANINGS.items() if means in (AGAIN, GOOD)])
def test_what_passes_is_asked_again_once_and_gives_the_same_chips(faulty: Faulty, kind: str) -> None:
    source = faulty.begin(only_first(kind))
    chips = source.read(PLACE, faulty.choices)
    tries = 2 if MEANINGS[kind] == AGAIN else 1
    assert (source.usage.pixel_requests, source.usage.retries, faulty.asked - faulty.before) == (1, tries - 1, tries)
    assert all(np.array_equal(chips[name], faulty.chips[name]) for name in (DEM, OTHER))


@pytest.mark.parametrize("kind", [kind for kind, means in MEANINGS.items() if means == SMALLER])
def test_what_is_too_much_is_asked_for_in_parts_and_gives_the_same_chips(faulty: Faulty, kind: str) -> None:
    source = faulty.begin(only_first(kind))
    chips = source.read(PLACE, faulty.choices)
    assert (source.usage.pixel_requests, source.usage.retries, faulty.asked - faulty.before) == (2, 0, 3)
    assert all(np.array_equal(chips[name], faulty.chips[name]) for name in (DEM, OTHER))


FIXES = {
    "unauthenticated": "sign in again: `earthengine authenticate --force`",
    "permission": "ask the asset's owner to share it with your account: `earthengine acl ch -u YOU:R ASSET`",
    "project": "--role=roles/serviceusage.serviceUsageConsumer`",
    "not_found": "correct the asset's id in the modality file, or ask its owner for access: `earthengine acl get",
}


@pytest.mark.parametrize("kind", [kind for kind, means in MEANINGS.items() if means in (WRONG, ACCOUNT)])
def test_what_can_never_succeed_is_asked_once_and_says_how_to_put_it_right(faulty: Faulty, kind: str) -> None:
    source = faulty.begin({"fault": kind, "match": DEM_ASSET})
    with pytest.raises(UserError) as error:
        source.read(PLACE, faulty.choices)
    assert error.value.exit_code == 2
    assert FIXES[kind] in str(error.value)
    assert faulty.asked - faulty.before == 1
    if kind in ("permission", "not_found"):
        assert error.value.where == f"modality {DEM} ({DEM_ASSET})"


def test_a_used_up_quota_ends_the_build_and_is_asked_once(faulty: Faulty) -> None:
    source = faulty.begin(only_first("eecu_quota"))
    with pytest.raises(QuotaStop, match=r"quota is used up: .*run the same command again") as error:
        source.read(PLACE, faulty.choices)
    assert error.value.exit_code == 3
    assert faulty.asked - faulty.before == 1


def test_another_dtype_fails_the_sample_for_good(faulty: Faulty) -> None:
    source = faulty.begin(only_first("wrong_dtype"))
    with pytest.raises(SourceError, match=f"band DEM of {DEM} came as float64") as error:
        source.read(PLACE, faulty.choices)
    assert not error.value.transient
    assert faulty.asked - faulty.before == 1


@pytest.mark.parametrize("kind", ["rate", "bad_gateway", "internal_empty", "error_in_ok", "reset", "truncated"])
def test_metadata_that_does_not_come_is_asked_for_again(faulty: Faulty, kind: str) -> None:
    source = faulty.begin({"fault": kind, "requests": [1], "endpoint": "value:compute"})
    assert choices_of(source) == faulty.choices
    assert (source.usage.metadata_requests, source.usage.retries) == (1, 1)


def test_a_refusal_of_one_asset_among_many_modalities_names_that_one(faulty: Faulty) -> None:
    """The metadata of all modalities comes in one request; the service's text says which asset it is about."""
    source = faulty.begin({"fault": "permission", "match": DEM_ASSET})
    with pytest.raises(UserError, match=rf"^modality {DEM} \({DEM_ASSET}\): Earth Engine answered 403: .*{DEM_ASSET}"):
        source.search([PLACE], ASKS)


def test_a_service_that_stays_down_ends_the_build(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbuild.sources.earthengine.retries", throttle.RetryBudget(reserve=3))
    source = faulty.begin({"fault": "unavailable"})
    with pytest.raises(QuotaStop, match=r"does not answer: .*503.*; run the same command again later"):
        source.read(PLACE, faulty.choices)
    assert faulty.asked - faulty.before == 4


def test_every_try_passes_the_gate_and_is_counted(faulty: Faulty) -> None:
    gate = Turnstile()
    faulty.begin()
    source = open_at(faulty.spec, gate)
    faulty.service.faults = read_faults([only_first("rate"), {"fault": "restricted", "endpoint": "value:compute"}])
    source.read(PLACE, choices_of(source))
    assert gate.came == len(gate.reports) == 3
    assert [(spent.throttled, spent.restricted) for spent in gate.reports] == [
        (False, True), (True, False), (False, False)
    ]  # fmt: skip
    assert source.usage.bytes == sum(spent.received_bytes for spent in gate.reports) > 0
    assert source.usage.sent_bytes == sum(spent.sent_bytes for spent in gate.reports) > 0
    assert source.usage.eecu_seconds == pytest.approx(sum(spent.eecu_s or 0.0 for spent in gate.reports))
    assert source.usage.eecu_seconds > 0


def test_a_permission_error_stops_a_build_with_the_modality_and_the_asset(
    earth: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = str(MODALITIES["era5"].sources["earthengine"]["collection"])
    transport = Transport(earth, faults=[{"fault": "permission", "match": asset}])
    monkeypatch.setattr("mmbuild.sandbox.offline_transport", lambda **_: transport)
    with pytest.raises(UserError, match=rf"^modality era5 \({asset}\): .*earthengine acl"):
        build_small(tmp_path / "corpus", source=OFFLINE)
    # One search for each of two shards, never again.
    assert 1 <= transport.service.quota.requests["value:compute"] <= 2
    assert transport.service.quota.requests["image:computePixels"] == 0


# -- what the live service says, word for word ---------------------------------------------------------------------


def refused(status: int, message: str, reason: str = "") -> Exception:
    """What a refusal of the live service means, for a project called mine."""
    error: dict[str, Any] = {"code": status, "message": message}
    if reason:
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]
    return meaning(read_refusal(status, json.dumps({"error": error}).encode(), "Ok"), where="here", project="mine")


@pytest.mark.parametrize(
    ("status", "message", "reason", "where", "fix"),
    [
        # colabtools issue 4228
        (403, "Google Earth Engine API has not been used in project 522309567947 before or it is disabled. "
         "Enable it by visiting https://console.developers.google.com/apis/api/earthengine.googleapis.com/overview", "",
         "project mine", "gcloud services enable earthengine.googleapis.com --project=mine"),
        (403, "Disabled.", "SERVICE_DISABLED", "project mine", "gcloud services enable earthengine.googleapis.com"),
        # street2sat pull request 51
        (403, "Caller does not have required permission to use project p. Grant the caller the "
         "roles/serviceusage.serviceUsageConsumer role", "USER_PROJECT_DENIED", "project mine",
         "add-iam-policy-binding mine --member=user:YOU --role=roles/serviceusage.serviceUsageConsumer"),
        # global-indicators issue 547
        (403, "Project p is not registered to use Earth Engine. Visit https://code.earthengine.google.com/register", "",
         "project mine", "https://console.cloud.google.com/earth-engine/configuration?project=mine"),
        # earthengine-api issue 163
        (403, "Not signed up for Earth Engine. Visit https://earthengine.google.com/signup/", "", "project mine",
         "https://console.cloud.google.com/earth-engine/configuration?project=mine"),
        (403, "Permission 'earthengine.computations.create' denied on resource 'projects/p' (or it may not exist).",
         "IAM_PERMISSION_DENIED", "project mine", "--role=roles/earthengine.viewer"),
        (403, "Permission 'earthengine.assets.get' denied on resource 'projects/p/assets/a' (or it may not exist).",
         "IAM_PERMISSION_DENIED", "here", "ask the asset's owner to share it"),
        (403, "Request had insufficient authentication scopes.", "ACCESS_TOKEN_SCOPE_INSUFFICIENT", "credentials",
         "sign in again with every scope: `earthengine authenticate --force`"),
        (403, "This method requires billing to be enabled.", "BILLING_DISABLED", "project mine",
         "gcloud billing projects link mine"),
        (400, "Project 'no-such' not found or deleted.", "CONSUMER_INVALID", "project mine", "gcloud projects list"),
        (404, "Project 'no-such' not found.", "", "project mine", "gcloud projects list"),
        (401, "Request had invalid authentication credentials. Expected OAuth 2 access token.", "", "credentials",
         "earthengine authenticate --force"),
        (403, "Something new is forbidden.", "", "here", "earthengine authenticate --force"),
        (400, "Image.load: Image asset 'projects/a/b' not found (does not exist or caller does not have access).", "",
         "here", "correct the asset's id in the modality file, or ask its owner for access"),
    ],
)  # fmt: skip
def test_what_is_not_set_up_is_named_with_the_command_that_does_it(
    status: int, message: str, reason: str, where: str, fix: str
) -> None:
    error = refused(status, message, reason)
    assert isinstance(error, UserError)
    assert error.where == where
    assert message in str(error)
    assert fix in error.fix


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "Quota exceeded for quota metric 'Earth Engine compute time (EECU-time) per day in seconds' and limit"),
        (429, "Quota exceeded for quota metric 'Requests' and limit 'Requests per day' of service 'earthengine'"),
        (400, "Your project has used up its monthly EECU quota."),
    ],
)
def test_a_quota_that_only_time_refills_stops_cleanly(status: int, message: str) -> None:
    assert isinstance(refused(status, message), QuotaStop)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "Too many concurrent aggregations."),
        (
            429,
            "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute per user'",
        ),
        (400, "Earth Engine capacity exceeded."),
        (499, "The operation was cancelled."),
        (503, "The service is currently unavailable."),
    ],
)
def test_trouble_that_passes_is_transient_whatever_its_status(status: int, message: str) -> None:
    error = refused(status, message)
    assert isinstance(error, SourceError)
    assert (error.transient, error.too_large) == (True, False)


@pytest.mark.parametrize(
    "message",
    ["Pixel grid dimensions (40000x8) must be less than or equal to 32768.", "Too many pixels in the region."],
)
def test_a_limit_that_asking_for_less_does_not_meet_is_a_wrong_request(message: str) -> None:
    error = refused(400, message)
    assert isinstance(error, UserError)
    assert "correct the modality file or the recipe" in error.fix


def test_a_page_that_describes_no_api_is_said_of_the_address(earth: Sandbox) -> None:
    class Page(Sandbox):
        def handle(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Any:
            return (404, {}, b"nothing") if path != "/odd/$discovery/rest" else (200, {}, b"<html>")

    with serve(Page(earth.world)) as server:
        for path, said in (("", "answered 404"), ("/odd", "does not say what it can do")):
            with pytest.raises(UserError, match=rf"{server.url}{path}: .*{said}.*start `mmbuild sandbox` or correct"):
                session.connect(SourceSpec(name="earthengine", url=server.url + path))


def test_an_asset_whose_id_begins_like_another_is_not_blamed_for_it() -> None:
    names = ["sentinel2_l1c", "sentinel2_l2a", DEM]
    source_blocks = {name: open_blocks(name) for name in names}
    assets = {name: str(MODALITIES[name].sources["earthengine"]["collection"]) for name in names}

    def whose(text: str) -> str:
        return about(names, MODALITIES, source_blocks, text)

    for name in names:
        assert whose(f"Asset '{assets[name]}' not found") == f"modality {name} ({assets[name]})"
        assert whose(f"no access to {assets[name]}/20200101T000000.") == f"modality {name} ({assets[name]})"
        assert whose(f"Asset '{assets[name]}_OTHER' not found").startswith("one of the modalities sentinel2_l1c (")
    assert whose("Band pattern 'B10' did not match any bands.") == f"modality sentinel2_l1c ({assets['sentinel2_l1c']})"
    assert whose("something").count("(") == 3


def open_blocks(name: str) -> Any:
    from mmbuild.sources.earthengine.blocks import block_of

    return block_of(MODALITIES[name])


def test_an_expression_that_the_client_refuses_to_build_is_a_wrong_request_of_its_modality() -> None:
    """The client checks some arguments itself, before anything is sent."""
    source = open_at(OFFLINE)
    nothing: Any = object()
    bands = {name: source.blocks[DEM].band(name) for name in source.modalities[DEM].band_names}
    wrong = {name: band.model_copy(update={"band": nothing}) for name, band in bands.items()}
    source.blocks[DEM] = source.blocks[DEM].model_copy(update={"bands": wrong})
    scene = Scene(slot=0, modality=DEM, scene_id=DEM_ASSET, time=None)
    with pytest.raises(UserError, match=rf"^modality {DEM} \({DEM_ASSET}\): Earth Engine's client refused: "):
        source.read(PLACE, {DEM: Choice(modality=DEM, scenes=(scene,))})
    assert source.usage == Usage()


# -- signing in ---------------------------------------------------------------------------------------------------


class Google(Handler):
    """A sandbox behind access tokens: /token grants them as Google does, everything else needs one."""

    def do_POST(self) -> None:
        if self.path != "/token":
            return self._checked()
        server: Any = self.server
        asked = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        server.grants.append(asked)
        answer = server.token_answer or (200, {"access_token": f"t{len(server.grants)}", "expires_in": 3600})
        self._say(*answer)
        return None

    def do_GET(self) -> None:
        self._checked()

    def _checked(self) -> None:
        server: Any = self.server
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        server.seen.append((self.path, token, self.headers.get("x-goog-user-project")))
        refusal = server.refusal if token and token not in server.expired else (401, {"error": {"message": "no token"}})
        if refusal is None:
            return self._serve()
        self.rfile.read(int(self.headers.get("content-length") or 0))
        return self._say(*refusal)

    def _say(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class GoogleServer(Server):
    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.RequestHandlerClass = Google
        self.grants: list[dict[str, list[str]]] = []
        self.seen: list[tuple[str, str, str | None]] = []
        self.expired: set[str] = set()
        self.token_answer: tuple[int, dict[str, Any]] | None = None
        self.refusal: tuple[int, dict[str, Any]] | None = None


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def google(earth: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleServer]:
    """A live service on this machine, and a home in which nobody has signed in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    # Google's library would look for a virtual machine of theirs around us.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    server = GoogleServer(earth)
    with running(server):
        monkeypatch.setattr(session, "HIGH_VOLUME_URL", server.url)
        monkeypatch.setattr(ee.oauth, "TOKEN_URI", f"{server.url}/token")
        yield server


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def write_key(folder: Path, google: GoogleServer, private_key: str) -> str:
    """A service account's key file whose tokens come from this machine."""
    account = {
        "type": "service_account", "project_id": "of-the-key", "private_key_id": "1", "private_key": private_key,
        "client_email": "robot@of-the-key.iam.gserviceaccount.com", "token_uri": f"{google.url}/token",
    }  # fmt: skip
    (folder / "key.json").write_text(json.dumps(account))
    return str(folder / "key.json")


def write_login(home: Path, **more: str) -> None:
    """What `earthengine authenticate` leaves behind."""
    folder = home / ".config" / "earthengine"
    folder.mkdir(parents=True)
    (folder / "credentials").write_text(json.dumps({"refresh_token": "mine", "client_id": "1-x", **more}))


LIVE = SourceSpec(name="earthengine")


def ask_once() -> Any:
    return session.call(ee.Number(1).add(1).getInfo)


def test_a_service_account_key_signs_in_and_its_project_pays(
    google: GoogleServer, tmp_path: Path, private_key: str
) -> None:
    session.connect(replace(LIVE, key=write_key(tmp_path, google, private_key)))
    assert ask_once() == 2
    assert google.grants[0]["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    assert len(google.grants) == 1
    assert {(token, project) for _, token, project in google.seen[1:]} == {("t1", "of-the-key")}
    assert "/projects/of-the-key/value:compute" in google.seen[-1][0]


def test_stored_credentials_sign_in_and_the_recipe_names_the_project(google: GoogleServer, tmp_path: Path) -> None:
    write_login(tmp_path, project="stored-one")
    session.connect(replace(LIVE, project="of-the-recipe"))
    assert ask_once() == 2
    assert google.grants[0]["refresh_token"] == ["mine"]
    assert "/projects/of-the-recipe/" in google.seen[-1][0]
    session.connect(LIVE)
    ask_once()
    assert "/projects/stored-one/" in google.seen[-1][0]


def test_googles_default_credentials_sign_in(
    google: GoogleServer, tmp_path: Path, private_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", write_key(tmp_path, google, private_key))
    session.connect(LIVE)
    assert ask_once() == 2
    assert "/projects/of-the-key/" in google.seen[-1][0]


def test_an_expired_token_is_renewed_and_the_request_goes_out_again(google: GoogleServer, tmp_path: Path) -> None:
    write_login(tmp_path, project="mine")
    session.connect(LIVE)
    google.expired.add("t1")
    assert ask_once() == 2
    assert len(google.grants) == 2
    assert google.seen[-1][1] == "t2"


def test_without_credentials_both_remedies_are_named(google: GoogleServer) -> None:
    with pytest.raises(UserError, match=r"no credentials.*earthengine authenticate.*--source sandbox"):
        session.connect(LIVE)


@pytest.mark.parametrize("project", [None, "764086051850"])
def test_without_a_project_of_ones_own_nothing_is_asked(
    google: GoogleServer, tmp_path: Path, project: str | None
) -> None:
    write_login(tmp_path, **({"project": project} if project else {}))
    with pytest.raises(UserError, match=r"source\.project: no Google Cloud project is named; .*project: \.\.\."):
        session.connect(LIVE)
    assert google.seen == []


def test_credentials_that_were_withdrawn_say_how_to_sign_in_again(google: GoogleServer, tmp_path: Path) -> None:
    write_login(tmp_path, project="mine")
    google.token_answer = (400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."})
    with pytest.raises(UserError, match=r"no access token: .*revoked.*`earthengine authenticate --force`"):
        session.connect(LIVE)


@pytest.mark.parametrize("content", ["{", "[]", '{"type": "service_account"}', '{"type": "odd"}'])
def test_a_file_that_is_no_key_is_named(google: GoogleServer, tmp_path: Path, content: str) -> None:
    (tmp_path / "key.json").write_text(content)
    with pytest.raises(UserError, match=r"key\.json: is no key of a service account .*gcloud iam service-accounts"):
        session.connect(replace(LIVE, key=str(tmp_path / "key.json")))


def test_a_project_that_is_not_set_up_is_told_the_command_at_once(google: GoogleServer, tmp_path: Path) -> None:
    write_login(tmp_path, project="mine")
    message = "Google Earth Engine API has not been used in project 1 before or it is disabled."
    google.refusal = (403, {"error": {"code": 403, "message": message}})
    with pytest.raises(UserError, match=r"gcloud services enable earthengine\.googleapis\.com --project=mine"):
        session.connect(LIVE)
    assert len(google.seen) == 1


def test_the_algorithm_list_is_fetched_once_for_this_machine(google: GoogleServer, tmp_path: Path) -> None:
    write_login(tmp_path, project="mine")
    for _ in range(2):
        session.connect(LIVE)
        assert ask_once() == 2
        disconnect()
    asked = [path.split("?")[0] for path, _, _ in google.seen]
    assert asked == ["/$discovery/rest", "/v1/projects/mine/algorithms", *["/v1/projects/mine/value:compute"] * 2]
    assert len(list((tmp_path / ".cache" / "mmbuild" / "earthengine").iterdir())) == 2


def test_the_live_service_is_asked_at_its_high_volume_address() -> None:
    assert session.HIGH_VOLUME_URL == ee.data.HIGH_VOLUME_API_BASE_URL
    assert tuple(ee.oauth.SCOPES[:2]) == login.SCOPES


# -- one endpoint in a process ------------------------------------------------------------------------------------


def served(earth: Sandbox) -> Any:
    return serve(Sandbox(earth.world))


def test_threads_that_connect_at_the_same_time_initialise_the_client_once(earth: Sandbox) -> None:
    with served(earth) as server, ThreadPoolExecutor(8) as threads:
        spec = SourceSpec(name="earthengine", url=f"{server.url}/")
        list(threads.map(session.connect, [spec] * 8))
        assert ask_once() == 2
        assert server.sandbox.requests["algorithms"] == 1


def test_a_source_of_an_endpoint_that_was_left_does_not_ask_the_new_one(earth: Sandbox) -> None:
    first = open_at(OFFLINE)
    with served(earth) as server:
        open_at(SourceSpec(name="earthengine", url=server.url))
        with pytest.raises(UserError, match=r"opened at the sandbox is used, and .* connected to http://127"):
            first.search([PLACE], ASKS)
        assert server.sandbox.requests["value:compute"] == 0
    disconnect()
    with pytest.raises(UserError, match="connected to none; open the source again"):
        first.search([PLACE], ASKS)


def test_another_tag_is_no_other_endpoint(earth: Sandbox) -> None:
    with served(earth) as server:
        spec = SourceSpec(name="earthengine", url=server.url)
        sources = [open_at(replace(spec, tag=tag)) for tag in ("one", "Two!", None)]
        for source in sources:
            source.search([PLACE], ASKS)
        assert server.sandbox.requests["algorithms"] == 1


def test_every_kind_of_request_carries_the_recipes_tag(earth: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str | None]] = []

    class Listening(Sandbox):
        def handle(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Any:
            if body:
                sent.append((path.rpartition("/")[2], json.loads(body).get("workloadTag")))
            return super().handle(method, path, query, headers, body)

    transport = Transport(Listening(earth.world))
    monkeypatch.setattr("mmbuild.sandbox.offline_transport", lambda **_: transport)
    source = open_at(replace(OFFLINE, tag="My Recipe"))
    source.read(PLACE, choices_of(source))
    source.regions("RESOLVE/ECOREGIONS/2017")
    kinds = ("value:compute", "image:computePixels", "table:computeFeatures")
    assert set(sent) == {(kind, "my-recipe") for kind in kinds}
    assert ee.data.getWorkloadTag() == ""


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_that_was_forked_off_a_connected_one_is_told_to_spawn(earth: Sandbox) -> None:
    source = open_at(OFFLINE)
    for ask in (lambda: session.connect(OFFLINE), lambda: source.search([PLACE], ASKS), lambda: open_at(LIVE)):
        assert in_a_fork(ask).startswith("UserError: Earth Engine: this process was forked off"), ask
    assert choices_of(source)
    disconnect()
    assert in_a_fork(lambda: session.connect(OFFLINE)) == "nothing"


def test_a_server_that_is_down_says_so_and_that_the_process_is_connected_to_none(earth: Sandbox) -> None:
    with served(earth) as server:
        url = server.url
    with pytest.raises(UserError, match="start `mmbuild sandbox` or correct the URL"):
        session.connect(SourceSpec(name="earthengine", url=url))
    open_at(OFFLINE)
    assert ask_once() == 2


def test_a_server_that_stumbles_at_the_start_is_asked_again(earth: Sandbox) -> None:
    with served(earth) as server:
        server.service.faults = read_faults([{"fault": "unavailable", "requests": [1], "endpoint": "algorithms"}])
        session.connect(SourceSpec(name="earthengine", url=server.url))
        assert ask_once() == 2


def test_usage_adds_up(earth: Sandbox) -> None:
    usage = Usage(bytes=1, eecu_seconds=0.5)
    usage.add(Usage(bytes=2, sent_bytes=3, eecu_seconds=0.25))
    assert usage == Usage(bytes=3, sent_bytes=3, eecu_seconds=0.75)
