"""Filters of servers by one field, as a pool and a client of a running pool apply them."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.errors import PoolParamError, ServerError
from poolctl.selection.field_filter import Field, matching, member_values, parse_field


class Row:
    """A server, of which a filter needs only these attributes."""

    def __init__(self, name: str, expose: str) -> None:
        self._name = name
        self._expose = expose


MEMBERS = {
    "127.0.0.1:8081": Row("Users", "http://127.0.0.1:8081"),
    "0.0.0.0:80": Row("orders", "https://Orders.example"),
    "unix:/run/a.sock": Row("docs", "unix:/run/a.sock"),
}


@pytest.mark.parametrize(
    ("field", "pattern", "regex", "names"),
    [
        ("name", "users", "", "Users"),
        ("name", "user", "", ""),
        ("name", "USERS", "^d", "Users docs"),
        ("name", "", "^U|s$", "Users orders docs"),
        ("name", "", "^u", ""),
        ("name", "", "", ""),
        ("bind", "127.0.0.1:8081", "", "Users"),
        ("bind", "http://127.0.0.1:8081", "", "Users"),
        ("bind", ":80", "", "orders"),
        ("bind", "no address:", "sock$", "docs"),
        ("bind", "", r":80\d*$", "Users orders"),
        ("expose", "HTTPS://orders.EXAMPLE", "", "orders"),
        ("expose", "orders.example", "", "orders"),
        ("expose", "http://orders.example", "", ""),
        ("expose", "", "^https?:", "Users orders"),
        ("expose", "", "", ""),
        ("name", "orders.example", "", ""),
        (Field.NAME, "docs", "", "docs"),
    ],
)
def test_members_that_equal_the_pattern_or_contain_the_expression_match_in_their_order(
    field: Field | str, pattern: str, regex: str, names: str
) -> None:
    found = matching(MEMBERS, field, pattern, regex)
    assert [row._name for row in found.values()] == names.split()
    assert all(MEMBERS[key] is row for key, row in found.items())


def test_values_are_those_of_the_field_in_the_order_of_the_members() -> None:
    assert [*member_values(MEMBERS, Field.BIND)] == [*MEMBERS]
    assert [*member_values(MEMBERS, Field.NAME)] == ["Users", "orders", "docs"]
    assert [*member_values(MEMBERS, Field.EXPOSE)][1] == "https://Orders.example"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("colour", "red", ""), "'colour' is no field of a server; one of: name, bind, expose", ""),
        (("name", 3, ""), "a pattern is a string, and this is 3", ""),
        (("bind", None, ""), "a pattern is a string, and this is None", ""),
        (("name", "", b"a"), "a regular expression is a string, and this is b'a'", ""),
        (("name", "", "ab(c"), ("invalid regular expression 'ab(c': missing ), "
         "unterminated subpattern at position 2"), "ab(c\n  ^"),
    ],
)  # fmt: skip
def test_wrong_argument_is_reported(arguments: Any, message: str, hint: str) -> None:
    with pytest.raises(PoolParamError) as caught:
        matching(MEMBERS, *arguments)
    (error,) = caught.value.exceptions
    assert isinstance(error, ServerError)
    assert (error.message, error.hint) == (message, hint)


def test_field_may_be_given_by_its_name() -> None:
    assert [parse_field(name) for name in ("name", "bind", Field.EXPOSE)] == [
        Field.NAME,
        Field.BIND,
        Field.EXPOSE,
    ]
