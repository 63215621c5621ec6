"""Issue 2: every leaf of the recipe schema, wrong in every way, ends with exit 2 and one readable line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recipe_faults import (
    NOT_A_RECIPE,
    SCHEMA,
    Fault,
    Validate,
    api,
    check_fault,
    check_file,
    faults,
    leaves,
    schema_paths,
    walked_paths,
)

FAULTS = faults()


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Validate:
    """``mmbuild validate`` in this process."""
    from mmbuild.cli import main

    def validate(path: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmbuild", "validate", str(path)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        assert told.out == ""
        return int(stopped.value.code or 0), told.err.strip().removeprefix("error: ")

    return validate


@pytest.fixture(params=["api", "command line"])
def validate(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Validate:
    return api if request.param == "api" else command_line(capsys, monkeypatch)


def test_the_sweep_reaches_every_key_of_the_schema() -> None:
    assert walked_paths() == schema_paths()


def test_every_number_of_the_schema_has_a_lowest_and_a_highest_value() -> None:
    open_ended = [
        leaf.name
        for leaf in leaves()
        if leaf.schema.get("type") in ("integer", "number")
        and not ({"minimum", "exclusiveMinimum"} & leaf.schema.keys() and "maximum" in leaf.schema)
    ]
    assert open_ended == []


def test_every_key_of_the_schema_says_what_it_is() -> None:
    bodies: dict[str, dict[str, Any]] = {"Recipe": SCHEMA, **SCHEMA["$defs"]}
    silent = [
        f"{model}.{name}"
        for model, body in bodies.items()
        for name, field in body["properties"].items()
        if name != "kind" and not field.get("description")
    ]
    assert silent == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_wrong_key_is_one_readable_line(fault: Fault, tmp_path: Path, validate: Validate) -> None:
    check_fault(fault, tmp_path, validate)


@pytest.mark.parametrize("name", NOT_A_RECIPE)
def test_a_file_that_is_no_recipe_is_one_readable_line(name: str, tmp_path: Path, validate: Validate) -> None:
    raw, word = NOT_A_RECIPE[name]
    check_file(raw, word, tmp_path, validate)


def test_the_installed_command_ends_with_exit_code_two(tmp_path: Path, mmbuild: Any) -> None:
    fault = next(fault for fault in FAULTS if fault.name.startswith("range:grid.size"))

    def validate(path: Path) -> tuple[int, str]:
        done = mmbuild("validate", path, expect=2)
        assert done.stdout == ""
        return done.returncode, done.stderr.strip().removeprefix("error: ")

    check_fault(fault, tmp_path, validate)
