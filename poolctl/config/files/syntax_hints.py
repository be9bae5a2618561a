"""The six commonest mistakes in TOML, YAML and JSON in plain words, each with its place and its fix.

They are: a value without quotes, a list or table that is not closed, a string that is not closed, a comma missing or
too many, a key that is there twice, and a colon in place of TOML's equals sign. Of everything else the parser's own
message is given, with a reminder of the format's rules.
"""

from __future__ import annotations

import re
from typing import Any

from poolctl.config.files.positions import Lines, ParseError, Scanner
from poolctl.config.model.problems import SHOWN_CHARACTERS

RULES = {
    "toml": "write key = value, [table] or # comment, each on a line of its own",
    "yaml": "indent entries of one level alike, with spaces only, and close every quote and bracket",
    "json": "JSON has double quotes, no comments, and no comma before a closing bracket",
}
CLOSE_STRING = ("the string is not closed", "put a quote at its end")
COMMA = ("a comma is missing", "put one before it")
UNCLOSED_STRING = (
    *("Unterminated string", "Illegal character '\\n'", "Found invalid character '\\n'"),
    *("Expected '\"", "Expected \"'"),
)
TRUTHS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
NOTHING = ("none", "null", "nil", "undefined")

_statement = re.compile(r"""\s*(?:\[|(?:[\w.-]|"[^"\n]*"|'[^'\n]*')+\s*=)""")
_key = re.compile(r"""\s*((?:[\w.-]|"[^"\n]*"|'[^'\n]*')+)""")
_word = re.compile(rf"[^\s,\]}}#\"']{{1,{SHOWN_CHARACTERS}}}")


Found = tuple[int, str, str] | None


def explained(text: str, kind: str, error: ParseError) -> ParseError:
    """The same error with its fix, in plain words if it is one of the six."""
    found = None
    if error.line:
        lines = text.split("\n")
        start = sum(map(len, lines[: error.line - 1])) + error.line - 1 + error.column - 1
        found = _toml(text, error.message, start) if kind == "toml" else _json(text, error.message, start)
    if found is None:
        return ParseError(error.message, error.line, error.column, RULES[kind])
    at, message, hint = found
    return ParseError(message, *Lines(text).place(at), hint)


def _toml(text: str, message: str, start: int) -> Found:
    begin = text.rfind("\n", 0, start) + 1
    before, rest = text[begin:start], text[start:].partition("\n")[0]
    if message.startswith(UNCLOSED_STRING):
        return start, *CLOSE_STRING
    if message.startswith("Expected '=' after a key") and rest.lstrip().startswith(":"):
        value = rest.lstrip()[1:].strip()[:SHOWN_CHARACTERS] or "value"
        return start, "':' where '=' belongs", f"write {before.strip()[:SHOWN_CHARACTERS]} = {value}"
    if message.startswith(("Cannot overwrite a value", "Duplicate inline table key")):
        inline = re.search(r"key '([^']*)'$", message)
        key = _key.match(text, begin)
        name = inline[1] if inline else key[1] if key else ""
        return text.rfind(name, begin, start), f"the key {name!r} is there twice", "keep one of them"
    if message.startswith("Expected newline or end of document"):
        value = before.partition("=")[2].lstrip()
        unquoted = value[:1] not in ("", '"', "'", "[", "{") and not value[-1].isspace()
        return _unquoted(text, start - len(value)) if unquoted else None
    if message.startswith("Invalid value"):
        return _no_value(text, start, rest)
    if message.startswith(("Unclosed", "Invalid initial character for a key part")):
        return _in_brackets(text, message, start, rest)
    return None


def _no_value(text: str, start: int, rest: str) -> Found:
    bracket = _opened(text, start)
    if bracket is not None and (_ended(rest) or _statement.match(rest)):
        return _not_closed(text, bracket)
    if _ended(rest):
        return start, "there is no value behind the =", "write one, or take the key out"
    return _unquoted(text, start)


def _in_brackets(text: str, message: str, start: int, rest: str) -> Found:
    bracket = _opened(text, start)
    if message.startswith("Invalid initial"):
        if bracket is None or text[bracket] != "{":
            return None
        closing = rest.lstrip().startswith("}")
        return (start, "a comma before the }", "take it out") if closing else _not_closed(text, bracket)
    next_statement = message.startswith("Unclosed array") and _statement.match(rest)
    if bracket is not None and (_ended(rest) or next_statement):
        return _not_closed(text, bracket)
    return start, *COMMA


def _ended(rest: str) -> bool:
    """Whether nothing but a comment is left of a line."""
    return rest.lstrip()[:1] in ("", "#")


def _json(text: str, message: str, start: int) -> Found:
    rest = text[start : start + 2]
    before = text[:start].rstrip()
    if message.startswith(("Unterminated string", "Invalid control character")):
        return start, *CLOSE_STRING
    if not text.strip():
        return 0, "the file is empty", 'write { "server": [ … ] }'
    if not text[start:].strip():
        opened = "".join(text[at] for at in reversed(_open_brackets(text, "json")[-20:]))
        closing = opened.replace("[", "]").replace("{", "}")
        return len(before), "the file ends before all is closed", f"write {closing} at its end"
    if message.startswith(("Expecting value", "Expecting property name", "Illegal trailing comma")):
        comma = len(before) - 1 if before.endswith(",") else start
        after = text[comma + 1 :].lstrip()[:1]
        if text[comma] == "," and after in ("]", "}"):
            return comma, f"a comma before the {after}", "take it out"
        return None if rest[0] in "#/'" else _unquoted(text, start, json=True)
    if message.startswith("Expecting ','") and rest[0] not in "#/":
        return start, *COMMA
    return None


def yaml_error(text: str, error: Any) -> ParseError:
    """A yaml.MarkedYAMLError with its fix, in plain words if it is one of the six."""
    start, context, problem = error.context_mark, error.context or "", error.problem or ""
    mark = error.problem_mark or start
    message, hint = " ".join(part for part in (context, problem) if part) or "no YAML", RULES["yaml"]
    if "flow sequence" in context or "flow mapping" in context:
        what, sign = ("list", "]") if "sequence" in context else ("table", "}")
        mark, message = start, f"the {what} that begins here is not closed, or lacks a comma"
        hint = f"put a {sign} at its end"
    elif "quoted scalar" in context and "escape" not in problem and "hexdecimal" not in problem:
        mark, (message, hint) = start, CLOSE_STRING
    elif "mapping values are not allowed" in problem:
        message, hint = "a second ':' in one line", f'put the text in quotes: "…", or {hint}'
    elif "cannot start any token" in problem:
        sign = text.split("\n")[mark.line][mark.column : mark.column + 1]
        message = f"a text cannot begin with {sign!r}"
        if sign != "\t":
            hint = 'put it in quotes: "…"'
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    return ParseError(message, line, column, hint)


def _unquoted(text: str, start: int, *, json: bool = False) -> Found:
    """A word that is no value, or in JSON no key."""
    match = _word.match(text, start)
    if match is None:
        return None
    word = match[0].partition(":")[0] if json else match[0]
    if json and text[start + len(word) :].lstrip().startswith(":"):
        return start, f"{word!r} is no key", f'put it in double quotes: "{word}"'
    hint = f'put it in quotes: "{word}"'
    if word.lower() in TRUTHS:
        hint = f"write {TRUTHS[word.lower()]}"
    elif word.lower() in NOTHING:
        hint = "write null" if json else "leave the key out"
    return start, f"{word!r} is no value", hint


def _not_closed(text: str, bracket: int) -> Found:
    if text[bracket] == "[":
        return bracket, "the list that begins here is not closed", "put a ] behind its last value"
    message = "the table that begins here is not closed in its line"
    return bracket, message, "write it on one line, with a } at its end"


def _opened(text: str, start: int) -> int | None:
    """The innermost bracket of a TOML text that is open at `start`."""
    return next(reversed(_open_brackets(text[:start], "toml")), None)


def _open_brackets(text: str, kind: str) -> list[int]:
    """The offsets of the brackets that are not closed in this beginning of a text."""
    scanner = Scanner(text)
    scanner.scan(kind)
    return scanner.open
