"""What the JSON parser could not read, as the author of the file would put it, with what to write instead."""

from __future__ import annotations

import re

from poolctl.config.files.parse_error import ParseError
from poolctl.config.model.problems import SHOWN_CHARACTERS

# A string that is not closed reaches to the end: no text is tried in more than one way.
_tokens = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_constants = re.compile(r'"(?:[^"\\]|\\.)*+"?|(NaN|-?Infinity)', re.DOTALL)
_word = re.compile(rf"[^\s,:\]}}\"'#/]{{1,{SHOWN_CHARACTERS}}}")
_VALUES = {
    **dict.fromkeys(("true", "yes", "on"), "true"),
    **dict.fromkeys(("false", "no", "off"), "false"),
    **dict.fromkeys(("none", "nil", "undefined"), "null"),
}
_CLOSING = {"[": "]", "{": "}"}
_BEFORE = "put one before it"


def json_slip(text: str, error: ParseError) -> ParseError:
    """The same error in plain words, with its mend where one is known."""
    message = error.message
    if message.endswith("is not a number of JSON"):
        found = next((match for match in _constants.finditer(text) if match[1]), None)
        return _at(text, found.start() if found else 0, message, "write a number, or leave the key out")
    lines = text.split("\n")
    start = sum(map(len, lines[: error.line - 1])) + error.line - 1 + error.column - 1
    for begins, explain in _EXPLANATIONS:
        if message.startswith(begins):
            return explain(text, start)
    return error


def _at(text: str, start: int, message: str, hint: str) -> ParseError:
    return ParseError(message, text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start), hint)


def _unexpected(text: str, start: int) -> ParseError:
    """Something that is neither a value nor a key."""
    rest = text[start : start + 100]
    before = text[:start].rstrip()
    if not text.strip():
        return ParseError("the file is empty", 1, 1, 'write { "server": [ … ] }')
    if not rest.strip():
        return _ends(text)
    if rest[0] in "]}":
        if before.endswith(","):
            return _at(text, len(before) - 1, f"a comma before the {rest[0]}", "take it out")
        return _at(text, start, "a value is missing", _BEFORE)
    if rest[0] == "'":
        inner = rest[1:].partition("'")[0]
        return _at(text, start, "text in ' and '", f'JSON has double quotes: "{inner}"')
    if rest[0] == "#" or rest.startswith(("//", "/*")):
        return _comment(text, start)
    word = _word.match(rest)
    if word is None:
        return _at(text, start, f"{rest[0]!r} is no value", "take it out")
    value = _VALUES.get(word[0].lower())
    is_key = before.endswith(("{", ",")) and rest[word.end() :].lstrip().startswith(":")
    mend = f"write {value}" if value and not is_key else f'put it in double quotes: "{word[0]}"'
    return _at(text, start, f"{word[0]!r} is no value" if not is_key else f"{word[0]!r} is no key", mend)


def _missing_comma(text: str, start: int) -> ParseError:
    rest = text[start : start + 2]
    if not rest.strip() and not text[start:].strip():
        return _ends(text)
    if rest[:1] == "#" or rest in ("//", "/*"):
        return _comment(text, start)
    return _at(text, start, "a comma is missing", _BEFORE)


def _comment(text: str, start: int) -> ParseError:
    return _at(text, start, "JSON has no comments", "take it out, or write TOML or YAML")


def _ends(text: str) -> ParseError:
    stack: list[str] = []
    for token in _tokens.finditer(text):
        if token[0] in _CLOSING:
            stack.append(_CLOSING[token[0]])
        elif token[0] in "]}" and stack:
            stack.pop()
    end = len(text.rstrip())
    closing = "".join(reversed(stack[-20:]))
    return _at(
        text, end, "the file ends before all is closed", f"write {closing} at its end" if closing else ""
    )


def _missing_colon(text: str, start: int) -> ParseError:
    return _at(text, start, "':' is missing", _BEFORE)


def _extra(text: str, start: int) -> ParseError:
    return _at(text, start, "something behind the end of the document", "take it out")


def _string(text: str, start: int) -> ParseError:
    return _at(text, start, "the string is not closed", "put a quote at its end")


def _control(text: str, start: int) -> ParseError:
    if text[start : start + 1] == "\n":
        return _at(text, start, "the string is not closed in its line", "put a quote at its end")
    return _at(text, start, "a control character in a string", "take it out")


def _backslash(text: str, start: int) -> ParseError:
    return _at(text, start, "a backslash that means nothing in a string", "write \\\\ for one")


_EXPLANATIONS = (
    ("Expecting property name", _unexpected),
    ("Illegal trailing comma", lambda text, start: _at(text, start, "a comma too many", "take it out")),
    ("Expecting value", _unexpected),
    ("Expecting ','", _missing_comma),
    ("Expecting ':'", _missing_colon),
    ("Extra data", _extra),
    ("Unterminated string", _string),
    ("Invalid control character", _control),
    ("Invalid \\", _backslash),
)
