"""`poolctl backends`: the table of backends, and what is done to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from poolctl.control.client import Client
from poolctl.control.pool_client import PoolClient
from poolctl.errors import PoolParamError
from tests.stand_in import always
from tests.unit.cli.conftest import Command, Supervised
from tests.unit.cli.test_completion import complete

UNTIL = datetime.fromisoformat("2026-01-31T12:00:30+00:00").astimezone()
USERS: dict[str, Any] = {
    "host": "users", "routes": ["web", "api"], "state": "disabled", "since": "2026-01-31T12:00:00.000000Z",
    "until": "2026-01-31T12:00:30.000000Z", "available": False, "health": "unknown", "why": "disabled by request",
    "breaker": "closed", "connections": 3, "in_flight": 2, "waiting": 0, "requests": 900, "errors": 7,
}  # fmt: skip
REMOTE: dict[str, Any] = {
    "host": "http://10.0.0.7:9000",
    "routes": ["web"],
    "state": "active",
    "available": True,
    "health": "healthy",
}
DISABLED = (
    f"users: disabled until {UNTIL:%Y-%m-%d %H:%M:%S}, then active again by itself; --for 0 disables it until "
    "`poolctl backends enable users`\n"
)
UNKNOWN = {
    "code": 4,
    "error": "ErrorNothingMatched",
    "message": "no backend is called 'user'",
    "hint": "did you mean users?",
}


def test_table_shows_each_backend_with_its_state(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(USERS, REMOTE)) as requests:
        head, users, remote = poolctl("backends").out.splitlines()
    assert head.split("  ")[0] == "BACKEND"
    assert "CONN  IN FLIGHT  ERRORS  WHY" in head
    assert "web,api  disabled  unknown" in users
    assert f"{UNTIL:%Y-%m-%d %H:%M:%S}" in users
    assert users.split()[-7:] == ["closed", "3", "2", "7", "disabled", "by", "request"]
    assert remote.split() == [
        "http://10.0.0.7:9000",
        "web",
        "active",
        "healthy",
        "-",
        "-",
        "-",
        "0",
        "0",
        "0",
        "-",
    ]
    assert [verb for verb, _ in requests if verb != "ping"] == ["hosts"]


def test_forms_for_scripts_print_json_names_and_fields(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(USERS, REMOTE)):
        assert poolctl("backends", "-o", "json").json["items"][0] == USERS
        assert poolctl("backends", "-o", "host").out == "users\nhttp://10.0.0.7:9000\n"
        assert poolctl("backends", "-o", "name").out == "users\nhttp://10.0.0.7:9000\n"
        assert poolctl("backends", "drain", "users", "-o", "name").out == "users\nhttp://10.0.0.7:9000\n"
        assert poolctl("backends", "-o", "backend,in_flight").out == "users\t2\nhttp://10.0.0.7:9000\t0\n"
        wrong = poolctl("backends", "-o", "pids")
        assert (wrong.code, "unknown value 'pids'" in wrong.err) == (2, True)


def test_without_backends_the_table_has_its_header(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always()):
        (head,) = poolctl("backends").out.splitlines()
        assert head.startswith("BACKEND  ROUTES  STATE")
        assert poolctl("backends", "-o", "name").out == ""


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["disable", "users"], {"op": "disable", "hosts": ["users"], "for": None}),
        (["disable", "users", "b", "--for", "1m"], {"op": "disable", "hosts": ["users", "b"], "for": 60.0}),
        (["disable", "--for=0", "users"], {"op": "disable", "hosts": ["users"], "for": 0.0}),
        (["enable", "users"], {"op": "enable", "hosts": ["users"], "for": None}),
        (["drain", "users"], {"op": "drain", "hosts": ["users"], "for": None}),
    ],
)
def test_actions_are_orders_to_the_supervisor(
    poolctl: Command, supervised: Supervised, words: list[str], options: dict[str, Any]
) -> None:
    with supervised(always(USERS)) as requests:
        said = poolctl("backends", *words)
    assert (said.code, said.out) == (0, DISABLED)
    (body,) = [body for verb, body in requests if verb == "host"]
    assert {key: body["options"][key] for key in options} == options


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("disabled", "users: disabled until `poolctl backends enable users`"),
        ("draining", "users: draining until `poolctl backends enable users`"),
        ("active", "users: active"),
    ],
)
def test_action_without_an_end_names_the_command_that_ends_it(
    poolctl: Command, supervised: Supervised, state: str, line: str
) -> None:
    with supervised(always({**USERS, "state": state, "until": ""})):
        assert poolctl("backends", "disable", "users", "--for", "0").out == f"{line}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dissable", "users"], "did you mean 'disable'?"),
        (["disable"], "backends disable: which backends?"),
        (["enable", "users", "--for", "3s"], "it says how long a backend is disabled"),
        (["enable", "users", "--for", "3s"], "--for does not belong to `backends enable`"),
        (["--for", "3s"], "--for belongs to `backends disable`"),
        (["--for", "3s"], "poolctl backends disable NAME --for 30s"),
        (["disable", "users", "--for", "soon"], "--for: "),
    ],
)
def test_wrong_words_are_usage_errors(poolctl: Command, words: list[str], message: str) -> None:
    said = poolctl("backends", *words)
    assert (said.code, message in said.err) == (2, True), said.err


def test_unknown_backend_is_4_with_near_names(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(errors=[UNKNOWN], exit_code=4)):
        said = poolctl("backends", "disable", "user")
    assert said.code == 4
    assert "no backend is called 'user'" in said.err
    assert "did you mean users?" in said.err


def test_without_a_supervisor_it_is_6(poolctl: Command) -> None:
    assert poolctl("backends").code == poolctl("backends", "disable", "users").code == 6


def test_python_client_sends_the_same_orders(supervised: Supervised, poolctl: Command) -> None:
    with supervised(always(USERS)) as requests:
        poolctl("backends")
        from poolctl.cli.place import Place
        from poolctl.cli.pool_ref import find_pool

        pool = PoolClient(Client(find_pool(Place()).socket))
        assert pool.hosts()["items"] == [USERS]
        pool.disable_host("users", for_seconds="1m")
        pool.disable_host("users")
        pool.enable_host("users", "b")
        pool.drain_host("users")
    sent = [body["options"] for verb, body in requests if verb == "host"]
    assert sent == [
        {"op": "disable", "hosts": ["users"], "for": 60.0},
        {"op": "disable", "hosts": ["users"], "for": None},
        {"op": "enable", "hosts": ["users", "b"], "for": None},
        {"op": "drain", "hosts": ["users"], "for": None},
    ]
    with (
        supervised(always(errors=[UNKNOWN], exit_code=4)),
        pytest.raises(PoolParamError, match="no backend is called"),
    ):
        pool.enable_host("user")


def test_backends_are_completed_behind_what_can_be_done_to_them(supervised: Supervised) -> None:
    assert complete("fish", "poolctl backends ") == {"disable", "enable", "drain"}
    with supervised(always({"host": "users"}, {"host": "far"})):
        assert complete("fish", "poolctl backends drain ") == {"users", "far"}
