"""What docs/rollout.md says about conditions is what the supervisor reads."""

from __future__ import annotations

import re
from pathlib import Path

from poolctl.features.rollout._verdict import DEFAULT_CONDITIONS, FIGURES, parse_condition
from poolctl.features.rollout.command import COMMAND

TEXT = (Path(__file__).parents[2] / "docs" / "rollout.md").read_text()


def test_conditions_can_be_written_so() -> None:
    found = [parse_condition(text) for text in re.findall(r"[`']([a-z\d]+ > [^`']+)[`']", TEXT)]
    assert {each.figure for each in found} == set(FIGURES)


def test_default_conditions_are_those_of_the_supervisor_and_of_the_help() -> None:
    assert ", ".join(f"`{each}`" for each in DEFAULT_CONDITIONS) in TEXT
    assert ", ".join(DEFAULT_CONDITIONS) in " ".join(COMMAND.notes)
