"""What Earth Engine's refusals mean: the status decides before the text, and the text says what would put it right.

Five kinds: ask again, ask for less, a wrong request, an account or project that is not set up, a quota that is used up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmbuild.errors import MMBuildError, QuotaStop, SourceError, UserError
from mmbuild.modality import Modality
from mmbuild.sources.earthengine.blocks import Block

# 408 and 429 ask for patience, 499 is a request that was cancelled on the way.
PATIENCE = (408, 429, 499)
# Trouble on their side that comes with a status of ours. Source: Earth Engine's debugging guide.
_TROUBLE = re.compile(r"capacity exceeded|internal error", re.I)
# Refusals that mean "ask for less", whatever their status. Source: Earth Engine's debugging guide; the texts of
# computePixels' limit and of the payload limit are those of the live service (Xee issue 50, geemap issue 1092).
_TOO_LARGE = re.compile(
    r"User memory limit exceeded|Computation timed out|bytes\) must be less than or equal to|payload size exceeds"
    r"|aborted after accumulating over|Computed value is too large",
    re.I,
)
# A quota that only the next day, the next month or a larger allowance refills; one per minute is no such quota.
# Source: the developers' guide to quotas (daily_eecu_usage_time) and that to the tiers for noncommercial use.
_USED_UP = re.compile(r"(?=.*quota)(?=.*(EECU|per day|daily|per month|monthly))", re.I | re.S)

# What puts an account, a project or a right to an asset in order, and which of them it is; the first line that fits
# counts. {project} is the one that was asked with.
_PROJECT, _CREDENTIALS, _ASSET = "project {project}", "credentials", "{where}"
_ACCOUNT = (
    (r"ACCESS_TOKEN_SCOPE_INSUFFICIENT|insufficient authentication scopes", _CREDENTIALS,
     "sign in again with every scope: `earthengine authenticate --force`"),
    (r"SERVICE_DISABLED|has not been used in project|API .*is disabled", _PROJECT,
     "enable the API: `gcloud services enable earthengine.googleapis.com --project={project}`, then wait some minutes"),
    (r"not registered to use Earth Engine|not signed up for Earth Engine", _PROJECT,
     "register the project: https://console.cloud.google.com/earth-engine/configuration?project={project}"),
    (r"USER_PROJECT_DENIED|serviceusage\.services\.use|permission to use project", _PROJECT,
     "let the account use the project: `gcloud projects add-iam-policy-binding {project} --member=user:YOU "
     "--role=roles/serviceusage.serviceUsageConsumer`, or name your own (source: {{name: earthengine, project: ID}})"),
    (r"BILLING_DISABLED|billing (account|to be enabled)", _PROJECT,
     "link a billing account: `gcloud billing projects link {project} --billing-account=ID`"),
    (r"CONSUMER_INVALID|project '?[\w:.-]+'? (was |is |has been )?(not found|deleted|invalid)", _PROJECT,
     "name a project that exists (source: {{name: earthengine, project: ID}}): `gcloud projects list`"),
    (r"earthengine\.(assets|thumbnails|tables)\.", _ASSET,
     "ask the asset's owner to share it with your account: `earthengine acl ch -u YOU:R ASSET`"),
    (r"Permission 'earthengine\.|IAM_PERMISSION_DENIED", _PROJECT,
     "give the account the role: `gcloud projects add-iam-policy-binding {project} --member=user:YOU "
     "--role=roles/earthengine.viewer`"),
)  # fmt: skip
# Of the statuses alone, where no line fits.
_RIGHTS = {
    401: (_CREDENTIALS, "sign in again: `earthengine authenticate --force`"),
    403: (_ASSET, "check what the account may use: `earthengine authenticate --force`, or ask the owner for access"),
}
_CORRECT = "correct the modality file or the recipe that asks for this"
_ABSENT = "correct the asset's id in the modality file, or ask its owner for access: `earthengine acl get ASSET`"
_LATER = "run the same command again when it is refilled; what is stored stays stored"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What a request got instead of an answer: status (0: the client itself refused), text, reasons for machines."""

    status: int
    text: str
    reasons: str = ""


def read_refusal(status: int, content: bytes, said: str) -> Refusal:
    """Take Google's error JSON apart; a body that is none leaves ``said``, the client's text."""
    try:
        error = json.loads(content)["error"]
        text, reasons = str(error["message"]), json.dumps([error.get("details"), error.get("errors")])
    except (ValueError, TypeError, KeyError, AttributeError):
        # The client makes `Ok` of a page in HTML and of an empty body.
        return Refusal(status=status, text="no reason given" if said == "Ok" else said)
    return Refusal(status=status, text=text or said, reasons=reasons)


def meaning(refusal: Refusal, *, where: str, project: str | None, fix: str | None = None) -> MMBuildError:
    """The error of ours that a refusal is; one that fits nothing else is a wrong request.

    where: what the request was about, in case it can never succeed, and fix: what would put it right. project: the one
    it was charged to.
    """
    status, text = refusal.status, refusal.text
    said = f"Earth Engine answered {status}: {text}" if status else f"Earth Engine's client refused: {text}"
    if _USED_UP.search(text):
        return QuotaStop(f"Earth Engine's quota is used up: {text}; {_LATER}")
    if status == 413 or _TOO_LARGE.search(text):
        return SourceError(f"Earth Engine refused: {text}", too_large=True)
    if is_passing(status, refusal):
        return SourceError(said, transient=True)
    rights = _missing_rights(refusal)
    if rights is not None:
        known = {"project": project or "PROJECT", "where": where}
        return UserError(said, *(part.format(**known) for part in rights))
    return UserError(said, where, fix or (_ABSENT if status == 404 or "not found" in text else _CORRECT))


def _missing_rights(refusal: Refusal) -> tuple[str, str] | None:
    """Whose rights are missing and what gives them; None for a refusal that is about something else."""
    for pattern, whose, cure in _ACCOUNT:
        if re.search(pattern, f"{refusal.text} {refusal.reasons}", re.I):
            return whose, cure
    return _RIGHTS.get(refusal.status)


def is_passing(status: int, refusal: Refusal) -> bool:
    """True for what may be answered well when asked again."""
    limited = status == 403 and "ratelimitexceeded" in refusal.reasons.replace("_", "").lower()
    return status in PATIENCE or status >= 500 or limited or bool(_TROUBLE.search(refusal.text))


# -- whose fault --------------------------------------------------------------------------------------------------


def about(names: Iterable[str], modalities: Mapping[str, Modality], blocks: Mapping[str, Block], text: str) -> str:
    """Which modality, and which of its assets, a refusal of a request for several modalities is about.

    The asset that the text names tells, or a band that it quotes; where neither does, all of them are named.
    """
    assets = {name: sorted(blocks[name].assets(modalities[name])) for name in dict.fromkeys(names) if name in blocks}
    named = {name: [asset for asset in own if _names(text, asset)] for name, own in assets.items()}
    found = {name: own for name, own in named.items() if own}
    sure = bool(found)
    if not found:
        quoted = set(re.findall(r"'([^']+)'", text))
        bands = {name: set(blocks[name].source_bands(modalities[name])) for name in assets}
        found = {name: assets[name] for name in assets if bands[name] & quoted} or assets
    told = ", ".join(f"{name} ({', '.join(own)})" for name, own in found.items())
    if len(found) == 1:
        return f"modality {told}"
    return (f"modalities {told}" if sure else f"one of the modalities {told}") if found else "Earth Engine"


def _names(text: str, asset: str) -> bool:
    """True when a text names an asset or an image in it, and not just one whose id begins alike."""
    return re.search(rf"(?<![\w/-]){re.escape(asset)}(?![\w-])", text) is not None


def is_broken_body(error: Exception) -> bool:
    """True for what ee.data.computeValue does with a body that is no JSON object: it looks up `result` in its text."""
    wrong: Any = error.args
    return isinstance(error, UnicodeDecodeError) or wrong == ("result",) or "indices must be" in str(error)
