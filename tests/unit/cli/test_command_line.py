from __future__ import annotations

import os
from typing import Any

import pytest

from poolctl.cli.command import GOALS, HEALTH, STATES
from poolctl.cli.command_line import CommandRequest, one_of
from poolctl.cli.outcome import UsageError
from poolctl.selection.selector import SelectorError
from poolctl.states import State, Status


def test_the_words_are_those_of_the_states() -> None:
    assert set(STATES) == {str(state) for state in State}
    assert set(HEALTH) == {str(status) for status in Status}
    assert {*STATES, "ready", "healthy"} == set(GOALS)


@pytest.mark.parametrize(
    ("values", "output"),
    [
        ({}, ""),
        ({"output": "wide"}, "wide"),
        ({"output": "name, bind"}, "name,bind"),
        ({"field": "tags"}, "tags"),
    ],
)
def test_the_form_of_the_output(values: dict[str, Any], output: str) -> None:
    assert CommandRequest("list", values).output == output


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"output": "jso"}, "did you mean 'json'?"),
        ({"output": "name,colour"}, "one of: table"),
        ({"output": "name,table"}, "one of: table"),
        ({"field": "bindd"}, "did you mean 'bind'?"),
        ({"field": "name", "output": "json"}, "-o name"),
        ({"output": "toml"}, "one of: table"),
    ],
)
def test_a_form_that_does_not_exist_is_a_usage_error(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        _ = CommandRequest("list", values).output
    assert caught.value.hint.startswith(hint)


def test_only_configuration_is_printed_as_toml() -> None:
    assert CommandRequest("config", {"output": "toml"}).output == "toml"


def test_durations_are_seconds_and_a_wrong_one_is_reported_with_its_option() -> None:
    assert CommandRequest("start", {"timeout": "1m30s"}).seconds("timeout") == 90
    assert CommandRequest("start", {"timeout": 0.25}).seconds("timeout") == 0.25
    assert CommandRequest("start", {}).seconds("timeout") is None
    for wrong in ("soon", "-1", "", "1e9999"):
        with pytest.raises(UsageError, match="--timeout"):
            CommandRequest("start", {"timeout": wrong}).seconds("timeout")


def test_the_supervisor_gets_the_options_of_the_command_line() -> None:
    request = CommandRequest("restart", {"timeout": "5s", "no_wait": True, "no_deps": False, "env": True})
    assert request.options() == {"timeout": 5, "wait": False, "deps": True, "env": dict(os.environ)}
    assert CommandRequest("wait", {"goal": "healthy"}).options() == {"timeout": None, "for": "healthy"}
    with pytest.raises(UsageError, match="--for"):
        CommandRequest("wait", {"goal": "christmas"}).options()


def test_the_selection_is_checked_before_anything_is_asked() -> None:
    selector = CommandRequest("list", {"targets": ["web"], "tag": ["a"], "invert": True}).selector()
    assert selector.to_dict()["targets"] == ["web"]
    assert selector.invert
    with pytest.raises(SelectorError):
        CommandRequest("list", {"name": ["("]}).selector()


def test_repr_of_a_request_shows_given_values() -> None:
    assert repr(CommandRequest("list", {"tag": ["a"], "quiet": False})) == "<Request list tag=['a']>"
    assert CommandRequest("list", {}) != CommandRequest("stop", {})


def test_near_words_are_suggested() -> None:
    assert one_of("--x", "bind", ("name", "bind")) == "bind"
    with pytest.raises(UsageError) as caught:
        one_of("--x", "nmae", ("name", "bind"))
    assert caught.value.hint == "did you mean 'name'?"
