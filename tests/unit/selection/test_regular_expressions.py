"""Regular expressions of users: the place and the fix of an invalid one."""

from __future__ import annotations

import pytest

from poolctl.selection.regular_expressions import BadExpression, compiled, is_plain


@pytest.mark.parametrize(
    ("expression", "message", "hint", "fix"),
    [
        ("a(", "missing ), unterminated subpattern at position 1", "a(\n ^", ""),
        ("*", "nothing to repeat at position 0", "*\n^", ""),
        ("a(\n", "missing ), unterminated subpattern at position 1", "", ""),
        ("[[:alpha:]]", "[:alpha:] is not known at position 1", "[[:alpha:]]\n ^\n{}",
         "in Python [[:alpha:]] is [A-Za-z]"),
        ("a[[:^digit:]]", "[:^digit:] is not known at position 2", "a[[:^digit:]]\n  ^\n{}",
         "in Python [[:^digit:]] is [^0-9]"),
        (r"a\Q.\E", r"bad escape \Q at position 1", "a\\Q.\\E\n ^\n{}",
         r"Python has no \Q…\E: write a backslash before each special character"),
        ("(?<x>a)", "unknown extension ?<x at position 1", "(?<x>a)\n ^\n{}", "in Python a named group is (?P<name>…)"),
    ],
)  # fmt: skip
def test_invalid_expression_has_its_place_and_the_fix(
    expression: str, message: str, hint: str, fix: str
) -> None:
    with pytest.raises(BadExpression) as caught:
        compiled(expression)
    assert str(caught.value) == f"invalid regular expression {expression!r}: {message}"
    assert (caught.value.fix, caught.value.hint) == (fix, hint.format(fix))


def test_expression_that_is_too_deep_is_shown_by_its_beginning() -> None:
    with pytest.raises(BadExpression) as caught:
        compiled("(" * 50_000 + ")" * 50_000)
    assert str(caught.value) == f"invalid regular expression {'(' * 60!r}: too complicated"
    assert caught.value.hint == "use a shorter one"


@pytest.mark.parametrize("expression", [r"\[:alpha:]", "[:alpa:]", "[[a]", "[a||b]", "^a+$"])
def test_valid_expression_is_compiled_as_it_is(expression: str) -> None:
    assert compiled(expression).pattern == expression


def test_plain_expression_has_no_special_characters() -> None:
    assert [is_plain(each) for each in ("users-1", "", "a.b", "a|b", "^a")] == [
        True,
        True,
        False,
        False,
        False,
    ]
