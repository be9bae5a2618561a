"""One error family: codes, children, and what becomes of them on the way."""

from __future__ import annotations

import copy
import pickle

import pytest

from poolctl import errors
from poolctl.errors import ControlError, PoolError, PoolParamError, PoolStartError, ServerError

CODES = [
    ("PoolParamError", 1320, "ErrorParamEmpty"),
    ("PoolAddError", 1321, "ErrorPoolAdd"),
    ("PoolValidateError", 1322, "ErrorPoolValidate"),
    ("PoolStartError", 1323, "ErrorPoolStart"),
    ("PoolStopError", 1324, "ErrorPoolStop"),
    ("PoolRestartError", 1325, "ErrorPoolRestart"),
    ("PoolMonitorError", 1326, "ErrorPoolMonitor"),
]


@pytest.mark.parametrize(("name", "code", "error"), CODES)
def test_every_operation_has_its_code(name: str, code: int, error: str) -> None:
    kind = getattr(errors, name)
    raised = kind("two failed", [ServerError("a"), ServerError("b")])
    assert isinstance(raised, PoolError)
    assert isinstance(raised, ExceptionGroup)
    assert (kind.code, raised.code, raised.error) == (code, code, error)
    assert {(child.code, child.error) for child in raised.exceptions} == {(code, error)}


def test_a_child_keeps_the_code_that_it_has() -> None:
    child = ServerError("a", code=1322, error="ErrorPoolValidate")
    PoolStartError("failed", [child])
    assert (child.code, child.error) == (1322, "ErrorPoolValidate")


def test_an_error_without_children_is_its_own_child() -> None:
    error = PoolParamError("no regex", hint="give one")
    (child,) = error.exceptions
    assert (str(error), str(child)) == ("no regex", "no regex")
    assert error.to_list() == [
        {
            "code": 1320,
            "error": "ErrorParamEmpty",
            "name": "",
            "bind": "",
            "message": "no regex",
            "hint": "give one",
        }
    ]


def test_text_of_a_group_names_the_first_children() -> None:
    error = PoolStartError("5 servers failed", [ServerError("x", name=f"s{n}") for n in range(5)])
    assert str(error) == "5 servers failed: s0: x; s1: x; s2: x; and 2 more"
    assert str(ServerError("x", bind="127.0.0.1:80")) == "127.0.0.1:80: x"
    assert repr(ServerError("x", name="web")) == "<ServerError web: x>"


def test_splitting_and_selecting_keep_the_kind() -> None:
    error = PoolStartError("failed", [ServerError("a"), ServerError("b")])
    chosen, rest = error.split(lambda child: getattr(child, "message", "") == "a")
    assert isinstance(chosen, PoolStartError)
    assert isinstance(rest, PoolStartError)
    assert [len(part.exceptions) for part in (chosen, rest)] == [1, 1]


def test_except_star_takes_the_children() -> None:
    seen = []
    try:
        raise PoolStartError("failed", [ServerError("a", name="web")])
    except* ServerError as group:
        seen = [child.name for child in group.exceptions if isinstance(child, ServerError)]
    assert seen == ["web"]


@pytest.mark.parametrize("twin", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_copying_and_pickling(twin: object) -> None:
    error = PoolStartError("failed", [ServerError("a", name="web", hint="look")])
    made = twin(error)  # type: ignore[operator]
    assert isinstance(made, PoolStartError)
    assert made.to_list() == error.to_list()
    alone = twin(PoolParamError("empty"))  # type: ignore[operator]
    assert alone.to_list() == PoolParamError("empty").to_list()


def test_groups_within_groups_are_flattened() -> None:
    inner = PoolStartError("inner", [ServerError("a")])
    outer = PoolStartError("outer", [inner, ServerError("b")])  # type: ignore[list-item]
    assert [document["message"] for document in outer.to_list()] == ["a", "b"]


def test_a_command_that_cannot_be_carried_out_has_an_exit_code() -> None:
    error = ControlError("nothing runs", exit_code=6, hint="start it")
    assert (str(error), error.exit_code, error.hint) == ("nothing runs", 6, "start it")
