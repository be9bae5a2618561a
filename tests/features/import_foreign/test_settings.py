"""Each setting of another tool's file is taken, becomes a remark, or is listed as meaningless."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.features.import_foreign._foreign_pool import ForeignServer, Remark
from poolctl.features.import_foreign._settings import Settings, shown, text_of

LINES = {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("e",): 5}


def settings(server: ForeignServer, **values: Any) -> Settings:
    return Settings(server, values, lambda *path: LINES.get(path, 0))


def test_setting_that_is_not_taken_is_a_remark_with_its_value_at_its_line() -> None:
    server = ForeignServer("web", 1)
    table = settings(server, a=1, b={"c": [2, True], "d": 4}, e={"f": {"g": False}})
    assert table.take("a") == 1
    assert table.table("b").take("d") == 4
    assert repr(table) == "<Settings a, b, e; taken: a, b>"
    table.remark_unread({})
    assert server.remarks == [
        Remark(3, "b.c: 2, true: no equivalent"),
        Remark(5, "e: f: g: false: no equivalent"),
    ]


def test_setting_needs_no_remark_if_it_is_meaningless_empty_or_has_its_default() -> None:
    server = ForeignServer("web", 1)
    table = settings(server, a=1, b={"x-c": 2, "d": 4}, e=[], f="", g=None)
    table.table("b")
    table.remark_unread({"a": "a reason", "*.x-*": "an extension"}, defaults={"b.d": 4})
    assert server.remarks == []
    table.remark_unread({"a": "a reason"}, defaults={"b.d": 5}, advice={"b.d": "use e"})
    assert server.remarks == [Remark(0, "b.x-c: 2: no equivalent"), Remark(4, "b.d: 4: use e")]


def test_setting_of_another_type_is_not_taken() -> None:
    server = ForeignServer("web", 1)
    table = settings(server, a="text", b=5)
    assert (table.take("a", dict, list), table.take("b", int), table.take("c", int)) == (None, 5, None)
    assert list(table.table("a")) == []
    table.remark_unread({})
    assert server.remarks == [Remark(1, "a: text: a value of another type than expected")]
    assert table.take("a", str) == "text"


def test_settings_are_converted_one_by_one_unless_their_value_is_not_understood() -> None:
    server = ForeignServer("web", 1)
    table = settings(server, a="5", b="many", d=None, e=True)
    keys = {"a": ("limits.a", int), "b": ("b", int), "c": ("c", int), "d": ("d", str), "e": ("e", str)}
    table.carry(server, keys)
    assert (server.keys, server.lines) == ({"limits": {"a": 5}, "e": "true"}, {"limits": 1, "e": 5})
    table.remark("a", "a reason")
    table.remark_unread({})
    assert server.remarks == [Remark(1, "a: 5: a reason"), Remark(2, "b: many: no equivalent")]


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), ("True", "True"), ([1, {"a": False}], "1, a: false"), (1.5, "1.5")]
)
def test_value_is_shown_as_the_file_has_it(value: Any, text: str) -> None:
    assert shown(value) == text
    assert isinstance(value, list) or text_of(value) == text
