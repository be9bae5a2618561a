"""An expression means the same to `regex` as to `re`."""

from __future__ import annotations

import re
import sys
import tracemalloc
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from poolctl.selection.regular_expressions import BadExpression, Expression, check
from tests.examples import examples

TEXTS = (
    "", "a", "b", "ab", "aab", "AB", "abcd", "a{e}", "a{", "a{}", "{1}", "a{1,2", "a{1,2,3}", "\n", "a\n", "\n\n",
    "x\ny", "a b", "a 2", "aa2", "a2", "1", "\\", "_", "-", "[", "]", ":", "[:", "x:]", "a|b", "&", "--", "~",
    "\0", "\x01", "@", "é", "e\u0301", "\u0301", "²", "½", "ſ", "s", "\u212a", "k", "İ", "ß", "ss", "SS", "ﬁ", "fi",
    "ẞ", "\x1c", "\x85", "\u200d", "\u2028", "\ud800", "😀", "Σ", "ς", "σ", "unix:/run/web.sock", "web-1",
    "http://127.0.0.1:8080",
)  # fmt: skip


def agree(expression: str, *texts: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pattern = re.compile(expression)
    matched = Expression(expression)
    for text in texts:
        assert matched.is_found(text) is bool(pattern.search(text)), (expression, text)


@pytest.mark.parametrize(
    "expression",
    [
        # Fuzzy matches of `regex`, and other braces.
        "a{e}", "a{e<=1}", "(?:ab){i}", "a{1i<2}", "a{e:[a-z]}", "a{", "a{}", "a{1,2", "a{1,2,3}", "a{,2}b", "a{0}b",
        # Sets.
        "[[:foo:]]", "[[:]", "[[a]", "[a||b]", "[a&&b]", "[+--b]", "[a~~b]", "[]a]", "[^]a]", "[^^]", "[!--]",
        "[a-c-e]", r"[a\-c]", r"[\w-]", r"[^\W\d_]", r"[\W\d]", r"[^\s\S]", r"[\100]", r"[\b]", r"[\]\\]", "[😀-😂]",
        "[^\ud800]",
        # Classes and places.
        r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r"\bb", r"b\b", r".\B", "(?a)\\w", r"(?a)\W\b", r"(?a:\w)\W",
        r"(?a)a(?u:\w)", "^b", "(?m)^y", "a$", r"a\Z", r"\Aa", r"\N{DIGIT ONE}",
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
def test_expression_means_what_it_means_to_re(expression: str) -> None:
    agree(expression, *TEXTS)


def test_character_is_of_the_same_classes_and_cases_as_in_re() -> None:
    for expression in (r"\w", r"\s", "[^\\W\\d_]", "(?i)[a-h]", "(?i)ǆ"):
        agree(expression, *map(chr, range(0x530)))


letters = st.sampled_from("aAbB1_- .é²\u0301\nßſ{}").map(re.escape)
atoms = st.one_of(
    letters,
    st.sampled_from(
        [
            ".",
            r"\w",
            r"\W",
            r"\d",
            r"\s",
            r"\S",
            r"\b",
            r"\B",
            "^",
            "$",
            r"\A",
            r"\Z",
            "{e}",
            "{s<=1}",
            r"\1",
            "[^a]",
        ]
    ),
    st.lists(
        st.sampled_from(["a", "b-é", "_", r"\w", r"\W", r"\d", r"\S", "1", "["]), min_size=1, max_size=3
    ).map(lambda members: f"[{''.join(members)}]"),
)
repetitions = st.sampled_from(["", "?", "*", "+", "{2}", "{1,2}", "{,2}", "*?", "+?", "++", "?+"])
groups = st.sampled_from(
    ["({})", "(?:{})", "(?i:{})", "(?a:{})", "(?s:{})", "(?={})", "(?!{})", "(?>{})", "(?<=a){}", "b|{}"]
)
expressions = st.recursive(
    st.tuples(atoms, repetitions).map("".join),
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=4).map("".join),
        st.tuples(groups, parts, repetitions).map(lambda each: each[0].replace("{}", each[1]) + each[2]),
    ),
    max_leaves=8,
)
flags = st.sampled_from(["", "", "(?i)", "(?m)", "(?s)", "(?a)", "(?x)"])
texts = st.text("aAbB1_- .é²\u0301\nßſs{}e", min_size=1, max_size=10)


@pytest.mark.slow
@examples(500)
@given(flags, expressions, st.lists(texts, min_size=1, max_size=5))
def test_any_expression_finds_what_re_finds(flag: str, expression: str, found: list[str]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(flag + expression)
    except re.error:
        assume(False)
    agree(flag + expression, *found)


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


@pytest.mark.parametrize("expression", ["(?<=a*)b", "(?<!a|bc)d"])
def test_look_behind_of_unknown_width_is_refused_as_by_re(expression: str) -> None:
    with pytest.raises(re.error) as refused:
        re.compile(expression)
    with pytest.raises(BadExpression, match=refused.value.msg):
        check(expression)


def test_end_of_text_in_a_newer_python_is_that_of_this_python() -> None:
    if sys.version_info >= (3, 14):
        agree(r"a\z", "a", "a\n")
    else:
        with pytest.raises(BadExpression, match=r"bad escape \\z"):
            check(r"a\z")
