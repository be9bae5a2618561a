"""What is published: its version, the workflows that test and publish it, and the interpreters that are declared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import poolctl

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.skipif(not WORKFLOWS, reason="needs the repository"),
]


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def commands(name: str) -> list[str]:
    jobs = workflow(name)["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_each_command_of_a_workflow_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    run = [line for path in WORKFLOWS for line in commands(path.stem)]
    assert "bash .ci/run" in run
    for line in run:
        for target in re.findall(r"^make (\w+)", line):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        for path in re.findall(r"\.ci/\w+", line):
            assert (ROOT / path).exists(), line


def test_each_declared_interpreter_is_tested_by_the_matrix() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [name for each in project["classifiers"] for name in re.findall(r"Python :: (3\.\d+)", each)]
    tested = workflow("matrix")["jobs"]["portable"]["strategy"]["matrix"]["python"]
    assert tested == declared
    assert project["requires-python"] == f">={declared[0]}"


def test_the_version_is_written_in_one_place_and_the_changelog_begins_with_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    head = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert head is not None
    assert head[1] == poolctl.__version__


def test_nothing_but_trusted_publishing_can_publish() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS)
    assert re.findall(r"secrets\.\w+", text) == []
    assert workflow("release")["jobs"]["publish"]["permissions"]["id-token"] == "write"
    assert all(workflow(path.stem)["permissions"] == {"contents": "read"} for path in WORKFLOWS)
