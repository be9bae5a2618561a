"""Regular expressions of users: a limit of time, and the place and the fix of an invalid one."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings

import pytest

from poolctl.selection.regular_expressions import (
    LIMIT_SECONDS,
    SLOW,
    BadExpression,
    Expression,
    SlowExpression,
    check,
    is_plain,
    matching_texts,
    run_in_turn,
)
from tests.slow_expression import HOSTILE_TEXT, SLOW_EXPRESSION


@pytest.mark.parametrize(
    ("expression", "message", "hint", "fix"),
    [
        ("a(", "missing ), unterminated subpattern at position 1", "a(\n ^", ""),
        ("*", "nothing to repeat at position 0", "*\n^", ""),
        ("[[:foo:]]", "[:foo:] is not known at position 1", "[[:foo:]]\n ^", ""),
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
        check(expression)
    assert str(caught.value) == f"invalid regular expression {expression!r}: {message}"
    assert (caught.value.fix, caught.value.hint) == (fix, hint.format(fix))


def test_expression_that_is_too_deep_is_shown_by_its_beginning() -> None:
    with pytest.raises(BadExpression) as caught:
        check("(" * 50_000 + ")" * 50_000)
    assert str(caught.value) == f"invalid regular expression {'(' * 60!r}: too complicated"
    assert caught.value.hint == "use a shorter one"


@pytest.mark.parametrize(
    ("expression", "text"),
    [(r"\[:alpha:]", "[:alpha:]"), ("[:alpa:]", "l"), ("[[a]", "["), ("[a||b]", "|"), ("[a&&b]", "&")],
)
def test_brackets_that_are_no_posix_class_are_valid_and_give_no_warning(expression: str, text: str) -> None:
    check(expression)
    assert Expression(expression).is_found(text)


TEXTS = (
    "", "a", "b", "ab", "aab", "AB", "abcd", "a{e}", "a{", "a{}", "{1}", "a{1,2", "a{1,2,3}", "\n", "a\n", "\n\n",
    "x\ny", "a b", "a 2", "aa2", "a2", "1", "\\", "_", "-", "[", "]", ":", "[:", "x:]", "a|b", "&", "--", "~",
    "\0", "\x01", "@", "é", "e\u0301", "\u0301", "²", "½", "ſ", "s", "\u212a", "k", "İ", "ß", "ss", "SS", "ﬁ", "fi",
    "ẞ", "\x1c", "\x85", "\u200d", "\u2028", "\ud800", "😀", "Σ", "ς", "σ", "unix:/run/web.sock", "web-1",
    "http://127.0.0.1:8080",
)  # fmt: skip


@pytest.mark.parametrize(
    "expression",
    [
        # Fuzzy matches of `regex`, and other braces.
        "a{e}", "a{e<=1}", "(?:ab){i}", "a{1i<2}", "a{e:[a-z]}", "a{", "a{}", "a{1,2", "a{1,2,3}", "a{,2}b", "a{0}b",
        # Sets.
        "[[:]", "[[a]", "[a||b]", "[a&&b]", "[+--b]", "[a~~b]", "[]a]", "[^]a]", "[^^]", "[!--]",
        "[a-c-e]", r"[a\-c]", r"[\100]", r"[\b]", r"[\]\\]", "[😀-😂]",
        "[^\ud800]",
        # Classes and places.
        r"\d", r"\D", "(?a)\\w", r"(?a)\W\b", r"(?a)a(?u:\w)", "^b", "(?m)^y", "a$", r"a\Z", r"\Aa", r"\N{DIGIT ONE}",
        r"\x41|\u00e9|\U0001f600|\0|\01|\100|\a\f\v",
        # Upper and lower case.
        "(?i)é", "(?i)ß", "(?i)ss", "(?i)ﬁ", "(?i)fi", "(?i)[k-l]", "(?i)[^k]", "(?i)Σ", "(?i:a)B", "(?i)(?-i:a)B",
        r"(?i)(s)\1",
        # Verbose, groups, and repetitions.
        "(?x)a b #c", "(?x)a {2}", "(?x)a{ 2}", "(?x)[a b]", r"(?x)a\ b", "(?x:a b) b", "(?s).", "(?s:.)b", "(?#x)a",
        "(?P<é>a)(?P=é)b", r"(a)?(?(1)b|c)", "(?>a+)b", "a++b", "a*+a", "a{1,2}+b", "a??b", "(?:a|ab)(?:c|bcd)(d*)",
        "(|a)", "(?<=a)b", "(?<!a)b", "(?=ab)a", "(?!a)", "(?!)", "(a*)*", r"(a)(b)?\1", "",
    ],
)  # fmt: skip
def test_expression_finds_what_re_finds(expression: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expected = [bool(re.search(expression, text)) for text in TEXTS]
    assert [Expression(expression).is_found(text) for text in TEXTS] == expected


@pytest.mark.parametrize(
    "expression",
    [
        "a{1000000}", "(?:(?:a{1000}){1000}){1000}", "(" * 30 + "a" + ")+" * 30, "(?:[abc]{99}){99,}", "a" * 1_000_000,
        "(" * 4_000 + ")" * 4_000, "a{" + "1" * 5_000 + "}", "(?=a" * 300 + ")" * 300,
    ],
    ids=lambda expression: expression[:20],
)  # fmt: skip
def test_expression_that_would_need_much_memory_is_refused(expression: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadExpression, match="too complicated"):
            Expression(expression)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_repetitions_that_are_not_required_need_no_memory() -> None:
    assert Expression("(?:(?:a{0,65535}){0,65535}){0,65535}b").is_found("aab")
    assert Expression("[0-9a-f]{64}").is_found("0" * 64)


def test_plain_expression_has_no_special_characters() -> None:
    assert [is_plain(each) for each in ("users-1", "", "a.b", "a|b", "^a")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_texts_in_which_one_of_the_expressions_is_found_match() -> None:
    texts = ["web-1", "WEB", "\ud800", "ü\n", ""]
    assert matching_texts(["^web", "ü"], texts) == {"web-1", "ü\n"}
    assert matching_texts([], texts) == frozenset()
    with pytest.raises(BadExpression):
        matching_texts(["ok", "("], [])


@pytest.mark.slow
def test_expression_that_takes_too_long_is_given_up() -> None:
    began = time.thread_time()
    with pytest.raises(SlowExpression) as caught:
        Expression(SLOW_EXPRESSION).is_found(HOSTILE_TEXT)
    assert (str(caught.value), caught.value.fix) == (SLOW, caught.value.hint)
    assert LIMIT_SECONDS <= time.thread_time() - began < 10 * LIMIT_SECONDS


@pytest.mark.slow
def test_limit_is_that_of_all_texts_together() -> None:
    texts = [HOSTILE_TEXT[:24] + f"{number}!" for number in range(100)]
    assert not Expression(SLOW_EXPRESSION).is_found(texts[0])
    with pytest.raises(SlowExpression):
        matching_texts([SLOW_EXPRESSION], texts)
    with pytest.raises(SlowExpression):
        Expression(SLOW_EXPRESSION).is_found(HOSTILE_TEXT, seconds=-1.0)


@pytest.mark.slow
def test_time_that_other_threads_use_does_not_count() -> None:
    expression, text = Expression(SLOW_EXPRESSION), HOSTILE_TEXT[:24] + "!"
    began = time.thread_time()
    assert not expression.is_found(text)
    needed = time.thread_time() - began
    over = threading.Event()

    def calculate() -> None:
        while not over.is_set():
            hashlib.sha256(data)

    data = bytes(1 << 20)
    threads = [threading.Thread(target=calculate) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert not expression.is_found(text, seconds=3 * needed)
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
async def test_slow_expressions_of_many_clients_take_one_thread_and_the_loop_goes_on() -> None:
    asked = [
        asyncio.ensure_future(run_in_turn(matching_texts, [SLOW_EXPRESSION], [HOSTILE_TEXT]))
        for _ in range(40)
    ]
    innocent = asyncio.ensure_future(run_in_turn(matching_texts, ["^a"], ["a"]))
    await asyncio.sleep(0)
    for each in asked[3:]:
        each.cancel()  # which frees no thread
    for _ in range(5):
        await asyncio.to_thread(threading.get_ident)
    assert not asked[0].done()
    await asyncio.wait(asked[:1])
    assert not any(each.done() for each in asked[1:3])
    assert [type(each) for each in await asyncio.gather(*asked[:3], return_exceptions=True)] == [
        SlowExpression
    ] * 3
    assert not innocent.done()
    innocent.cancel()


def test_only_expressions_import_the_library() -> None:
    script = (
        "import sys; from poolctl.selection.selector import Selector; from types import SimpleNamespace;"
        "from poolctl.selection.selector import select; Selector(name=['^a']); assert 'regex' not in sys.modules;"
        "select([SimpleNamespace(name='a', bind='b')], Selector(name=['^a'])); assert 'regex' in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", script], timeout=60, check=True)
