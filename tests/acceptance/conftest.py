"""What acceptance tests share: real data, one tiny corpus, and the rule that a skipped test has failed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SHARED = REPO.parent / "shared"

Mmbuild = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None]:
    """A skipped acceptance test has shown nothing, so it counts as failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped; an acceptance test has to run: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None]:
    """The same for a whole file that skips itself."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped; an acceptance test has to run: {report.longrepr}"


@pytest.fixture
def OUT(tmp_path: Path) -> Path:
    """Any folder; it does not exist yet."""
    return tmp_path / "out"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared folder beside the repository."""
    assert SHARED.is_dir(), f"acceptance tests need the shared folder beside the repository: {SHARED} is not there"
    return SHARED


@pytest.fixture(scope="session")
def mmbuild() -> Mmbuild:
    """Run ``mmbuild`` in its own process, from the repository's root, as a user does; its text is captured."""

    def run(*arguments: object, expect: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("mmbuild")), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=REPO, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ | environment
        )
        told = f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert expect is None or done.returncode == expect, told
        return done

    return run


@pytest.fixture(scope="session")
def tiny64(mmbuild: Mmbuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of ``mmbuild build recipes/tiny.yaml OUT --samples 64``: shared, so read it and leave it as it is."""
    out = tmp_path_factory.mktemp("tiny64") / "out"
    mmbuild("build", "recipes/tiny.yaml", out, "--samples", 64)
    return out
