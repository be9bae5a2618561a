"""The outcome of a command: its JSON document, and the outcome of each exception."""

from __future__ import annotations

import pytest

from poolctl.cli.outcome import Failure, Outcome, UsageError, as_json, error, outcome_of
from poolctl.config import ConfigNotFound
from poolctl.control.answers import ErrorEntry, Item, ReloadResult, Result, StatusResult
from poolctl.control.client import NoSupervisor
from poolctl.errors import ControlError, PoolStartError, PoolValidateError, ServerError
from poolctl.json_form import from_json
from poolctl.selection.selector import SelectorError
from tests.stand_in import item, server


def test_document_has_what_the_answer_adds_before_items_and_errors_and_warnings_if_there_are_any() -> None:
    outcome = Outcome([server("a")], errors=[error(1, "no")], extra={"pool": {"name": "shop"}})
    document = outcome.document()
    assert list(document) == ["schema", "pool", "items", "errors"]
    assert (document["schema"], document["pool"], document["items"]) == (1, {"name": "shop"}, [item("a")])
    assert document["errors"][0]["message"] == "no"
    assert Outcome(warnings=["late"]).document()["warnings"] == ["late"]
    assert repr(outcome) == "<Outcome 0: 1 items, 1 errors>"


def test_outcome_of_an_answer_has_all_of_it() -> None:
    found = from_json(
        ReloadResult,
        {
            "items": [item("a")], "exit_code": 3, "warnings": ["w"], "errors": [{"code": 1, "message": "no"}],
            "changes": [{"name": "a", "change": "restart"}],
        },
    )  # fmt: skip
    outcome = Outcome.of(found, "a message", form="name", text="a text")
    assert (outcome.items, outcome.exit_code, outcome.warnings) == ([server("a")], 3, ["w"])
    assert ([each.message for each in outcome.errors], outcome.message) == (["no"], "a message")
    assert (outcome.form, outcome.text, outcome.changed) == ("name", "a text", None)
    assert [each["name"] for each in outcome.extra["changes"]] == ["a"]
    assert (Outcome.of(Result()).extra, Outcome.of(Result()).text) == ({}, None)
    changed = {"files": ["/p/pool.toml"]}
    assert Outcome.of(from_json(Result, {"changed": changed})).changed is not None
    assert list(Outcome.of(from_json(StatusResult, {"summary": {}})).extra) == ["summary"]


def test_outcome_of_a_stream_has_been_printed() -> None:
    assert (Outcome.of_stream().exit_code, Outcome.of_stream(3).exit_code) == (0, 3)
    assert Outcome.of_stream().streamed
    assert not Outcome().streamed


def test_json_form_has_the_fields_that_are_named() -> None:
    assert as_json(from_json(Item, item("a")), "name", "bind") == {"name": "a", "bind": "127.0.0.1:8081"}


@pytest.mark.parametrize(
    ("exit_code", "code", "name"),
    [(1, 1, "ErrorUnexpected"), (2, 2, "ErrorUsage"), (4, 1320, "ErrorParamEmpty"),
     (5, 1322, "ErrorPoolValidate"), (99, 99, "ErrorUnexpected")],
)  # fmt: skip
def test_error_of_the_command_has_the_code_and_the_name_of_its_exit_code(
    exit_code: int, code: int, name: str
) -> None:
    found = error(exit_code, "why", "fix", name="web", bind=":1")
    assert (found.code, found.error) == (code, name)
    assert (found.message, found.hint, found.name, found.bind) == ("why", "fix", "web", ":1")


INVALID = PoolValidateError("two problems", [ServerError("one", name="a"), ServerError("two", hint="fix")])


@pytest.mark.parametrize(
    ("failure", "exit_code", "errors"),
    [
        (Failure(Outcome.failed(7, "not yours")), 7, [("not yours", "")]),
        (UsageError("what?", hint="this"), 2, [("what?", "this")]),
        (KeyboardInterrupt(), 130, [("interrupted", "")]),
        (ControlError("busy", exit_code=8, hint="later"), 8, [("busy", "later")]),
        (NoSupervisor("gone", hint="start it"), 6, [("gone", "start it")]),
        (INVALID, 5, [("one", ""), ("two", "fix")]),
        (PoolStartError("one failed", [ServerError("no")]), 1, [("no", "")]),
        (ServerError("no port", hint="another"), 1, [("no port", "another")]),
        (SelectorError("no such state", hint="one of"), 2, [("no such state", "one of")]),
    ],
)
def test_exception_of_poolctl_has_its_exit_code_and_its_errors(
    failure: BaseException, exit_code: int, errors: list[tuple[str, str]]
) -> None:
    outcome = outcome_of(failure)
    assert outcome is not None
    assert outcome.exit_code == exit_code
    assert [(each.message, each.hint) for each in outcome.errors] == errors
    assert all(isinstance(each, ErrorEntry) for each in outcome.errors)


def test_missing_file_is_an_invalid_configuration() -> None:
    outcome = outcome_of(ConfigNotFound("no file", "poolctl init"))
    assert outcome is not None
    (found,) = outcome.errors
    assert (outcome.exit_code, found.code, found.message, found.hint) == (5, 1322, "no file", "poolctl init")


@pytest.mark.parametrize("failure", [RuntimeError("x"), ValueError("y"), SystemExit(3)])
def test_unexpected_exception_has_no_outcome(failure: BaseException) -> None:
    assert outcome_of(failure) is None


def test_failure_says_its_first_error() -> None:
    assert str(Failure(Outcome.failed(1, "the reason"))) == "the reason"
    assert str(Failure(Outcome(exit_code=1))) == ""
