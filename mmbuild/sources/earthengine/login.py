"""Credentials for the live service: a service account's key, those of `earthengine authenticate`, or Google's default.

It reads what the person has set up and asks nobody; what is missing is an error with the command that makes it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import ee
import google.auth
from google.auth.exceptions import DefaultCredentialsError
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from mmbuild.errors import UserError

# Reading pixels needs the first; the second lets the request be charged to a project. Neither Drive nor buckets.
SCOPES = ("https://www.googleapis.com/auth/earthengine", "https://www.googleapis.com/auth/cloud-platform")
# Without types in google-auth.
_ServiceAccount: Any = service_account.Credentials
_User: Any = user_credentials.Credentials
_load: Any = google.auth.load_credentials_from_dict
REMEDIES = (
    "run `earthengine authenticate` once and name your project (source: {name: earthengine, project: ...}), "
    "or build from the offline Earth Engine with --source sandbox"
)
REFRESH = (
    "sign in again: `earthengine authenticate --force`, or `gcloud auth application-default login`; of a service "
    "account see that the key still exists: `gcloud iam service-accounts keys list --iam-account=ACCOUNT`"
)
TRUST = "a proxy signs with its own authority: add it to this machine's trusted ones (SSL_CERT_FILE)"


def sign_in(key: str | None, project: str | None) -> tuple[Any, str]:
    """Credentials and the project that requests are charged to; nothing is sent yet.

    key: a service account's key file, which goes before all else. project: the recipe's, which goes before the
    credentials' own. Raises UserError where there are none, or no project.
    """
    credentials, own = _from_key(key) if key else _stored() or _default()
    named = project or own
    if not named or ee.oauth.is_sdk_project(named):
        raise UserError("no Google Cloud project is named", "source.project", REMEDIES)
    # The client charges each request to the project itself, and would copy credentials that name one.
    if getattr(credentials, "quota_project_id", None):
        credentials = credentials.with_quota_project(None)
    # A token that is about to expire is renewed aside: forty threads need not wait for it at the same time.
    if hasattr(credentials, "with_non_blocking_refresh"):
        credentials.with_non_blocking_refresh()
    return credentials, named


def _from_key(key: str) -> tuple[Any, str | None]:
    """A service account, or whatever else a file of Google's credentials holds."""
    try:
        content = json.loads(Path(key).read_bytes())
        if content.get("type") == "service_account":
            return _ServiceAccount.from_service_account_info(content, scopes=SCOPES), content["project_id"]
        with warnings.catch_warnings():
            # Google warns of files from strangers; this one was named by the person who runs the build.
            warnings.simplefilter("ignore")
            credentials, own = _load(content, scopes=SCOPES)
        return credentials, getattr(credentials, "quota_project_id", None) or own
    except (OSError, ValueError, KeyError, AttributeError, google.auth.exceptions.GoogleAuthError) as error:
        raise UserError(
            f"is no key of a service account ({type(error).__name__}: {error})", key,
            "make one: `gcloud iam service-accounts keys create FILE --iam-account=ACCOUNT`",
        ) from error  # fmt: skip


def _stored() -> tuple[Any, str | None] | None:
    """What `earthengine authenticate` left behind; None where it was never run."""
    try:
        found = ee.oauth.get_credentials_arguments()
    except OSError:
        return None
    except ValueError as error:
        raise UserError(
            f"stored credentials cannot be read: {error}", "~/.config/earthengine/credentials", REMEDIES
        ) from error
    if not found.get("refresh_token"):
        return None
    return _User(None, **found), found.get("quota_project_id")


def _default() -> tuple[Any, str | None]:
    """Google's application default credentials: `gcloud auth application-default login`, or the machine's own."""
    try:
        credentials, project = google.auth.default(scopes=SCOPES)
    except DefaultCredentialsError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"there are no credentials for Earth Engine ({reason})", "source: earthengine", REMEDIES
        ) from error
    return credentials, getattr(credentials, "quota_project_id", None) or ee.oauth.get_appdefault_project() or project
