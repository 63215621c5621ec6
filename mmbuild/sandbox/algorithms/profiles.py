"""Computation profiles: what requests cost, read back from their ids. The costs are the sandbox's synthetic ones."""

from __future__ import annotations

from mmbuild.sandbox.graph import Context, algorithm
from mmbuild.sandbox.limits import profile_cost_s
from mmbuild.sandbox.values import EarthEngineError


@algorithm("Profile.getProfiles")
def get_profiles(context: Context, ids: list[str], format: str, maxEntries: int | None) -> str:
    """The table that `ee.profilePrinting` prints, with one line for all requests: their cost is not split further."""
    if format != "text":
        raise EarthEngineError(f"The offline Earth Engine writes profiles as 'text', not as '{format}'.")
    costs = [profile_cost_s(profile) for profile in ids]
    lines = [" EECU·s PeakMem  Count  Description"]
    if costs:
        lines.append(f"{sum(costs):7.3f}       - {len(costs):6,}  (synthetic) requests")
    return "\n".join(lines) + "\n"
