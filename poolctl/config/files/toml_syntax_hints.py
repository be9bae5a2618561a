"""What tomllib could not read, as the author of the file would put it: what is wrong, where, and what to write.

tomllib says "Invalid value" where it got stuck, which may be lines behind the bracket that nobody closed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from poolctl.config.files.parse_error import ParseError
from poolctl.config.model.problems import SHOWN_CHARACTERS

# So far up at most is the beginning of an unclosed list looked for.
_LINES_UP = 1000
_name = re.compile(r"""\s*((?:[\w.-]|"[^"\n]*"|'[^'\n]*')+)\s*""")
_value_begins = re.compile(r"""\s*(?:[\w.-]|"[^"\n]*"|'[^'\n]*')+\s*=\s*[\[{]""")
_statement = re.compile(r"""\s*(?:\[|(?:[\w.-]|"[^"\n]*"|'[^'\n]*')+\s*=)""")
# Nothing here tries a text in more than one way: what is not closed reaches to the end.
_tokens = re.compile(
    r"""\"{3}.*?(?:\"{3}|\Z)|'{3}.*?(?:'{3}|\Z)|"(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?|\#[^\n]*+|[\[\]{}]""",
    re.DOTALL,
)
_word = re.compile(r"[^\s,\]}#\"']+")
_TRUTHS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
_NOTHING = frozenset({"none", "null", "nil"})
_QUOTE = "put a quote at its end"
_BACKSLASH = "write \\\\ for one, or put the string in single quotes: '…'"
_BEFORE = "put one before it"


class Stuck(NamedTuple):
    """Where tomllib stopped: the lines of the file, the number of one, and what is left of it."""

    lines: list[str]
    line: int
    column: int

    @property
    def text(self) -> str:
        """The line."""
        return self.lines[self.line - 1] if 0 < self.line <= len(self.lines) else ""

    @property
    def rest(self) -> str:
        """What is left of it from there on."""
        return self.text[self.column - 1 :]

    def told(self, message: str, hint: str, column: int = 0) -> ParseError:
        """The error of this place, or of another column of the line."""
        return ParseError(message, self.line, column or self.column, hint)


def toml_slip(text: str, error: ParseError) -> ParseError:
    """The same error in plain words, with its mend where one is known."""
    at = Stuck(text.split("\n"), error.line, error.column)
    message = error.message
    for begins, explain in _EXPLANATIONS:
        if message.startswith(begins):
            return explain(at, message) or error
    return error


def _invalid_value(at: Stuck, message: str) -> ParseError | None:
    opened = _opened(at)
    if opened and (not _content(at.rest) or _statement.match(at.rest)):
        return _unclosed(*opened)
    if not _content(at.rest):
        return at.told("there is no value behind the =", "write one, or take the key out")
    return _no_value(at, _bare(at.rest))


def _no_value(at: Stuck, word: str, column: int = 0) -> ParseError:
    if word.lower() in _TRUTHS:
        mend = f"write {_TRUTHS[word.lower()]}"
    elif word.lower() in _NOTHING:
        mend = "leave the key out"
    else:
        mend = f'put it in quotes: "{word}"'
    return at.told(f"{word!r} is no value", mend, column)


def _second_statement(at: Stuck, message: str) -> ParseError:
    key, equals, _ = at.text.partition("=")
    behind = at.text[len(key) + 1 :].lstrip()
    if (
        not equals
        or key.lstrip().startswith("[")
        or behind[:1] in "\"'[{"
        or not at.text[at.column - 2].strip()
    ):
        column = len(at.text) - len(at.rest.lstrip()) + 1
        return at.told("a second statement in one line", "give it a line of its own", column)
    return _no_value(at, _bare(behind), len(at.text) - len(behind) + 1)


def _unclosed_list(at: Stuck, message: str) -> ParseError | None:
    opened = _opened(at)
    if opened and (not _content(at.rest) or _statement.match(at.rest)):
        return _unclosed(*opened)
    return at.told("a comma is missing", _BEFORE)


def _unclosed_table(at: Stuck, message: str) -> ParseError | None:
    opened = _opened(at)
    if opened and not _content(at.rest):
        return _unclosed(*opened)
    return at.told("a comma is missing", _BEFORE)


def _no_key(at: Stuck, message: str) -> ParseError | None:
    opened = _opened(at)
    if not opened or opened[0] != "{":
        return at.told("there is no key here", "write key = value")
    if at.rest.lstrip().startswith("}"):
        return at.told("a comma before the }", "take it out")
    return _unclosed(*opened)


def _unclosed(bracket: str, line: int, column: int) -> ParseError:
    if bracket == "[":
        return ParseError(
            "the list that begins here is not closed", line, column, "put a ] behind its last value"
        )
    message = "the table that begins here is not closed in its line"
    return ParseError(message, line, column, "write it on one line, with a } at its end")


def _header(at: Stuck, message: str) -> ParseError:
    opening = "[[" if "']]'" in message else "["
    written = at.text.partition("#")[0].strip()
    name = written.strip("[] \t")
    if len(written) > SHOWN_CHARACTERS:
        return at.told("the name of a table is not closed", f"put {']' * len(opening)} behind it", 1)
    whole = f"{opening}{name}{']' * len(opening)}"
    return at.told(f"{written!r} is not closed", f"write {whole}", len(at.text) - len(at.text.lstrip()) + 1)


def _no_equals(at: Stuck, message: str) -> ParseError:
    rest = at.rest.lstrip()
    column = len(at.text) - len(rest) + 1
    if at.text.lstrip().startswith("- "):
        return _no_statement(at._replace(column=1), message)
    if rest.startswith(":"):
        key, value = at.text[: at.column - 1].strip()[:SHOWN_CHARACTERS], rest[1:].strip()[:SHOWN_CHARACTERS]
        return at.told("':' where '=' belongs", f"write {key} = {value or 'value'}", column)
    return at.told("'=' is missing", "write key = value", column)


def _twice(at: Stuck, message: str) -> ParseError | None:
    begins = at.text.lstrip()
    if begins.startswith("["):
        name = begins.strip("[] \t\r")
        return at.told(f"[{name}] is there already, as a value", "keep one of them", 1)
    # Only in a table of one line can it be another key than the line's first.
    found = _name.match(at.text)
    opened = _opened(at)
    if opened and opened[0] == "{":
        for inner in _inline_key.finditer(at.text, opened[2], max(at.column, opened[2])):
            found = inner
    if found is None:
        return None
    return at.told(f"the key {found[1]!r} is there twice", "keep one of them", found.start(1) + 1)


_inline_key = re.compile(r"[{,]\s*([\w.-]+)\s*=")


def _declared_twice(at: Stuck, message: str) -> ParseError:
    header = at.text.strip().partition("#")[0].strip() or "the table"
    return at.told(f"{header} is there twice", "put its keys together under one of them", 1)


def _no_statement(at: Stuck, message: str) -> ParseError:
    begins = at.text.lstrip()
    mend = "write key = value, [table] or # comment"
    if begins.startswith(("//", ";", "/*", "--")):
        mend = "a comment begins with #"
    elif begins.startswith("- "):
        mend = "is this YAML? then name the file pool.yaml"
    elif begins.startswith("{"):
        mend = "is this JSON? then name the file pool.json"
    return at.told("this is no statement of TOML", mend)


def _string(at: Stuck, message: str) -> ParseError:
    return at.told("the string is not closed", _QUOTE)


def _illegal(at: Stuck, message: str) -> ParseError:
    if "\\n" in message:
        return _string(at, message)
    return at.told(message[0].lower() + message[1:], "take it out")


def _backslash(at: Stuck, message: str) -> ParseError:
    return at.told("a backslash that means nothing in a string", _BACKSLASH)


def _date(at: Stuck, message: str) -> ParseError:
    return at.told("an invalid date or time", f'put it in quotes if it is none: "{_bare(at.rest)}"')


def _expected(at: Stuck, message: str) -> ParseError | None:
    return _string(at, message) if '"' in message.replace('"\'"', "'") or "'" in message else None


def _content(rest: str) -> str:
    """What is left of a line, without its comment."""
    rest = rest.strip()
    return "" if rest.startswith("#") else rest


def _bare(rest: str) -> str:
    """The word that somebody forgot to put in quotes."""
    found = _word.match(rest)
    return (found[0] if found else rest.strip())[:SHOWN_CHARACTERS]


def _opened(at: Stuck) -> tuple[str, int, int] | None:
    """The innermost bracket of a value that is open where it got stuck, with its line and column."""
    last = min(at.line, len(at.lines))
    for first in range(last, max(0, last - _LINES_UP), -1):
        begins = _value_begins.match(at.lines[first - 1])
        if begins is None:
            continue
        text = "\n".join([*at.lines[first - 1 : last - 1], at.lines[last - 1][: at.column - 1]])
        stack: list[int] = []
        for token in _tokens.finditer(text, begins.end() - 1):
            if token[0] in "[{":
                stack.append(token.start())
            elif token[0] in "]}" and stack:
                stack.pop()
        if not stack:
            return None
        where = stack[-1]
        return text[where], first + text.count("\n", 0, where), where - text.rfind("\n", 0, where)
    return None


_EXPLANATIONS = (
    ("Invalid value", _invalid_value),
    ("Expected newline or end of document", _second_statement),
    ("Unclosed array", _unclosed_list),
    ("Unclosed inline table", _unclosed_table),
    ("Invalid initial character for a key part", _no_key),
    ("Expected ']", _header),
    ("Expected '=' after a key", _no_equals),
    ("Cannot overwrite a value", _twice),
    ("Duplicate inline table key", _twice),
    ("Cannot declare", _declared_twice),
    ("Invalid statement", _no_statement),
    ("Unterminated string", _string),
    ("Illegal character", _illegal),
    ("Found invalid character", _illegal),
    ("Unescaped '\\'", _backslash),
    ("Invalid hex value", _backslash),
    ("Invalid date or datetime", _date),
    ("Expected ", _expected),
)
