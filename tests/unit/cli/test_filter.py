"""`poolctl filter`: servers by one field, compared with a pattern or a regular expression."""

from __future__ import annotations

import pytest

from tests.stand_in import always, item

from .conftest import Command, Supervised


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["name", "USERS"], "users"),
        (["bind", "http://127.0.0.1:8081"], "users"),
        (["bind", "nonsense:", "--regex", "8082"], "orders"),
        (["expose", "orders.example"], "orders"),
        (["expose", "--regex", "^https"], "orders"),
        (["name", "users", "--not"], "orders"),
        (["name", "--regex", ".", "--tag", "api"], "users"),
        (["name", "--regex", ".", "--state", "disabled", "--state", "stopped"], "users orders"),
        (["name", "nobody", "--allow-empty"], ""),
    ],
)
def test_filter_matches_a_field(poolctl: Command, args: list[str], names: str) -> None:
    said = poolctl("filter", *args, "-o", "name")
    assert said.code == 0, said.err
    assert said.out.split() == names.split()


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["name"], 2, "--regex"),
        (["name", "xyz"], 4, "--allow-empty"),
        (["name", "usres"], 4, "did you mean 'users'?"),
        (["name", "users*"], 4, "needs --regex RE, and wildcards work in poolctl list 'users*'"),
        (["bind", "127*"], 4, "needs --regex RE: poolctl filter bind --regex RE"),
        (["nmae", "x"], 2, "did you mean 'name'?"),
        (["name", "--regex", "("], 2, "^"),
        (["name", "x", "--target", "colour"], 2, "one of: name"),
        (["name", "x", "--target", "bind", "-o", "json"], 2, "-o bind"),
        (["name", "users", "--state", "flying"], 2, "one of"),
    ],
)
def test_filter_reports_wrong_arguments(poolctl: Command, args: list[str], code: int, hint: str) -> None:
    said = poolctl("filter", *args)
    assert said.code == code
    assert hint in said.err


def test_filter_prints_another_field(poolctl: Command) -> None:
    assert (
        poolctl("filter", "name", "--regex", "u|o", "--target", "bind").out
        == "127.0.0.1:8081\n127.0.0.1:8082\n"
    )


def test_filter_by_expose_skips_programs_without_a_port(poolctl: Command, supervised: Supervised) -> None:
    program = {**item("worker"), "bind": "process:worker", "expose": None}
    with supervised(always(program, item("users"))):
        assert poolctl("filter", "name", "users", "--expose", "127", "-o", "name").out == "users\n"
