"""Parses text into plain values (tables, lists, strings, numbers) and finds the place of each key and element.

Duplicate keys are an error in every format. The six commonest mistakes are reported in plain words with place and fix:
a value without quotes, an unclosed list or table, an unclosed string, a missing or extra comma, a duplicate key, and a
colon instead of TOML's equals sign. Other mistakes are reported with the parser's own message and a reminder of the
format's rules.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right

from poolctl.config.values.problems import MAX_DEPTH, MAX_VALUES, SHOWN_CHARACTERS, KeyPath, ParseError, Tree

_blank = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_space = re.compile(r"[ \t]*")
_string = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\]|\\.)*"|\'[^\']*\'', re.DOTALL
)
_bare = re.compile(r"[^,\]}\n#]+")
_key = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+')
_PART = r"""(?:"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|[\w-]++)[ \t]*+"""
_LONG_KEY = rf"(?a)(?:^|[\[{{,])[ \t]*+(?:{_PART}\.[ \t]*+){{{MAX_DEPTH}}}"
# Used for errors only, and compiled then.
_TOML_PLACE = r" \(at (?:line (\d+), column (\d+)|end of document)\)$"
_JSON_CONSTANT = r'(?s)"(?:[^"\\]|\\.)*+"?|(NaN|-?Infinity)'
_NAME = r"""\s*((?:[\w.-]|"[^"\n]*"|'[^'\n]*')+)"""
_HEADER = r"[ \t]*\[\[?([^\]\n]+)\]"
_LIKE_HEADER = r"([\s\[({<]*)([\w.-]+)(?::([\w.-]*))?([\s\]){}>]*)(?:#.*)?"
_TEXT_BEHIND_HEADER = r"[ \t]*(\[[^\[\]]+\]|\[\[[^\[\]]+\]\])[ \t]*[^\s#\]]"
_STATEMENT = rf"\s*\[|{_NAME}\s*="
_WORD = rf"[^\s,\]}}#\"']{{1,{SHOWN_CHARACTERS}}}"

RULES = {
    "toml": "write key = value, [table] or # comment, each on a line of its own",
    "yaml": "indent entries of one level alike, with spaces only, and close every quote and bracket",
    "json": "JSON has double quotes, no comments, and no comma before a closing bracket",
}
UNCLOSED_STRING = ("the string is not closed", "put a quote at its end")
COMMA = ("a comma is missing", "put one before it")
# Beginnings of the parsers' messages about an unclosed string.
_UNCLOSED_STRING_MESSAGES = (
    *("Unterminated string", "Illegal character '\\n'", "Found invalid character '\\n'"),
    *("Expected '\"", "Expected \"'", "Invalid control character"),
)
_TRUTHS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
_NOTHING = ("none", "null", "nil", "undefined")

# Offset, message and fix of one of the commonest mistakes; None for any other.
Explained = tuple[int, str, str] | None


def parse(text: str, kind: str) -> Tree:
    """The value of a text of that kind (`toml`, `yaml`, `json`). Raises ParseError."""
    if text.count("\n") + text.count(",") > MAX_VALUES:
        raise ParseError(
            f"more than {MAX_VALUES:,} lines and values", hint="split it: a directory is one pool"
        )
    try:
        try:
            if kind == "toml":
                return parse_toml(text)
            if kind == "json":
                return parse_json(text)
            from poolctl.config.files.yaml_parser import parse_yaml

            return parse_yaml(text)
        except ParseError as error:
            if error.hint:
                raise
            raise _explained(text, kind, error) from None
    except RecursionError:  # `_explained` may raise it, too: Python 3.13 reads JSON to any depth
        raise ParseError("nested too deeply", hint="a configuration needs five levels") from None


def positions(text: str, kind: str) -> dict[KeyPath, tuple[int, int]]:
    """Line and column of every key and element of a valid text: a second pass over it."""
    if kind == "yaml":
        from poolctl.config.files.yaml_parser import yaml_positions

        return yaml_positions(text)
    scanner = Scanner(text)
    try:
        return scanner.scan(kind)
    except RecursionError:  # JSON that is deeper than any configuration
        return scanner.found


def parse_toml(text: str) -> Tree:
    """The value of a TOML text. Raises ParseError."""
    import tomllib

    for number, row in enumerate(text.split("\n"), 1):
        # tomllib takes quadratic time and memory for a key of many parts: a.a.a.a.…
        if row.count(".") >= MAX_DEPTH and (key := re.search(_LONG_KEY, row)):
            raise ParseError(f"a key of more than {MAX_DEPTH} parts", number, key.start() + 1)
    try:
        return tomllib.loads(text)
    except ValueError as error:
        message = str(error)
        digits = re.search(r"[0-9_]{4000,}", text) if "integer string conversion" in message else None
        if digits:
            raise ParseError(
                "a number of too many digits", *OffsetLocator(text).place(digits.start())
            ) from None
        place = re.search(_TOML_PLACE, message)
        message = message[: place.start()] if place else message.partition(";")[0]
        if place and place[1]:
            raise ParseError(message, int(place[1]), int(place[2])) from None
        raise ParseError(message, *(OffsetLocator(text).place(len(text)) if place else (0, 0))) from None


def parse_json(text: str) -> Tree:
    """The value of a JSON text. Raises ParseError."""
    try:
        return json.loads(text, object_pairs_hook=_table, parse_constant=_refused)
    except json.JSONDecodeError as error:
        raise ParseError(error.msg, error.lineno, error.colno) from None
    except _RepeatedKey:
        scanner = Scanner(text)
        scanner.scan("json")
        key, offset = scanner.repeated or ("", 0)
        place = scanner.lines.place(offset)
        raise ParseError(f"the key {key!r} is there twice", *place, "keep one of them") from None
    except ValueError as error:
        constant = next((match for match in re.finditer(_JSON_CONSTANT, text) if match[1]), None)
        if constant is None:
            raise ParseError("a number of too many digits") from None
        place = OffsetLocator(text).place(constant.start(1))
        raise ParseError(str(error), *place, "write a number, or leave the key out") from None


class _RepeatedKey(Exception):
    pass


def _table(pairs: list[tuple[str, Tree]]) -> dict[str, Tree]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _RepeatedKey
    return table


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


class OffsetLocator:
    """Finds the line of an offset in a text, in logarithmic time."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of the offset, both counted from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1


class Scanner:
    """A scanner that records the positions of keys and elements in a TOML or JSON text. The text may be incomplete.

    The private methods parse one element at the offset `here`, and return the offset after it. JSON is parsed like a
    TOML value, with a colon in place of the equals sign.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = OffsetLocator(text)
        self.found: dict[KeyPath, tuple[int, int]] = {}
        # The offsets of brackets that are not closed, and the first key that its table already has, with its offset.
        self.open: list[int] = []
        self.repeated: tuple[str, int] | None = None
        # The number of tables in each array of tables so far.
        self._counts: dict[KeyPath, int] = {}

    def scan(self, kind: str) -> dict[KeyPath, tuple[int, int]]:
        """Line and column of every key, header and element; for a repeated one, of its first occurrence."""
        table: KeyPath = ()
        offset = self._skip(_blank, 0)
        if kind == "json" and offset < len(self.text):
            self._scan_value(offset, ())
            return self.found
        while offset < len(self.text):
            if self.text[offset] == "[":
                table, offset = self._scan_header(offset)
            else:
                offset = self._scan_pair(offset, table)
            offset = self._skip(_blank, offset)
        return self.found

    def _skip(self, pattern: re.Pattern[str], here: int) -> int:
        match = pattern.match(self.text, here)
        return match.end() if match else here

    def _note(self, path: KeyPath, offset: int) -> None:
        self.found.setdefault(path, self.lines.place(offset))

    def _scan_dotted_key(self, here: int) -> tuple[list[tuple[str, int]], int]:
        parts: list[tuple[str, int]] = []
        while True:
            here = self._skip(_space, here)
            match = _key.match(self.text, here)
            if match is None:
                return parts, here + 1
            parts.append((_unquoted(match[0]), here))
            here = self._skip(_space, match.end())
            if self.text[here : here + 1] != ".":
                return parts, here
            here += 1

    def _scan_header(self, here: int) -> tuple[KeyPath, int]:
        start = here
        array = self.text.startswith("[[", here)
        parts, here = self._scan_dotted_key(here + 1 + array)
        path: KeyPath = ()
        for number, (part, _) in enumerate(parts, 1):
            path = (*path, part)
            if path in self._counts and not (array and number == len(parts)):
                path = (*path, self._counts[path] - 1)
            elif number < len(parts):
                self._note(path, start)
        if array:
            self._note(path, start)
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            path = (*path, index)
        self._note(path, start)
        return path, here + 1 + array

    def _scan_pair(self, here: int, table: KeyPath) -> int:
        parts, after = self._scan_dotted_key(here)
        path = table
        for number, (part, offset) in enumerate(parts, 1):
            path = (*path, part)
            if number == len(parts) and path in self.found and self.repeated is None:
                self.repeated = part, offset
            self._note(path, offset)
        # Skip the equals sign or colon.
        return self._scan_value(self._skip(_blank, self._skip(_blank, after) + 1), path)

    def _scan_value(self, here: int, path: KeyPath) -> int:
        sign = self.text[here : here + 1]
        if sign in ("[", "{"):
            return self._scan_collection(here, path, "]" if sign == "[" else "}")
        match = (_string if sign in ('"', "'") else _bare).match(self.text, here)
        return match.end() if match else here + 1

    def _scan_collection(self, here: int, path: KeyPath, end: str) -> int:
        self.open.append(here)
        index = 0
        here = self._skip(_blank, here + 1)
        while here < len(self.text) and self.text[here] != end:
            if self.text[here] == ",":
                here += 1
            elif end == "}":
                here = self._scan_pair(here, path)
            else:
                self._note((*path, index), here)
                here = self._scan_value(here, (*path, index))
                index += 1
            here = self._skip(_blank, here)
        if here < len(self.text):
            self.open.pop()
        return here + 1


def _unquoted(key: str) -> str:
    if key[0] not in "\"'":
        return key
    if key[0] == "'" or "\\" not in key:
        return key[1:-1]
    try:
        return str(json.loads(key))
    except ValueError:
        import tomllib  # TOML has more escapes than JSON

        return next(iter(tomllib.loads(f"{key} = 0")))


def _explained(text: str, kind: str, error: ParseError) -> ParseError:
    """The parser's error with a fix, in plain words for the six commonest mistakes."""
    explained = None
    if error.line and kind != "yaml":
        start = sum(len(line) + 1 for line in text.split("\n")[: error.line - 1]) + error.column - 1
        if error.message.startswith(_UNCLOSED_STRING_MESSAGES):
            explained = (start, *UNCLOSED_STRING)
        else:
            explained = (_explained_toml if kind == "toml" else _explained_json)(text, error.message, start)
    if explained is None:
        return ParseError(error.message, error.line, error.column, RULES[kind])
    at, message, hint = explained
    return ParseError(message, *OffsetLocator(text).place(at), hint)


def _explained_toml(text: str, message: str, start: int) -> Explained:
    line_start = text.rfind("\n", 0, start) + 1
    text_before, text_after = text[line_start:start], text[start:].partition("\n")[0].lstrip()
    bracket = next(reversed(_open_brackets(text[:start], "toml")), None)
    at_line_end = text_after[:1] in ("", "#")
    next_statement = bool(re.match(_STATEMENT, text_after))
    if message.startswith("Cannot ") and (header := re.match(_HEADER, text[line_start:])):
        return line_start, *_repeated_table_error(text, header[1].strip())
    if not _open_brackets(text[:line_start], "toml") and (
        wrong := _wrong_header(text[line_start:].partition("\n")[0])
    ):
        return line_start, *wrong
    if message.startswith("Expected '=' after a key") and text_after.startswith(":"):
        value = text_after[1:].strip()[:SHOWN_CHARACTERS] or "value"
        return start, "':' where '=' belongs", f"write {text_before.strip()[:SHOWN_CHARACTERS]} = {value}"
    if message.startswith(("Cannot overwrite a value", "Duplicate inline table key")):
        key = re.search(r"key '([^']*)'$", message) or re.match(_NAME, text[line_start:])
        name = key[1] if key else ""
        return text.rfind(name, line_start, start), f"the key {name!r} is there twice", "keep one of them"
    if message.startswith("Expected newline or end of document"):
        value = text_before.partition("=")[2].lstrip()
        unquoted = value[:1] not in ("", '"', "'", "[", "{") and not value[-1].isspace()
        return _unquoted_word_error(text, start - len(value)) if unquoted else None
    if message.startswith("Invalid value"):
        if bracket is not None and (at_line_end or next_statement):
            return _unclosed_bracket_error(text, bracket)
        no_value = (start, "there is no value behind the =", "write one, or take the key out")
        return no_value if at_line_end else _unquoted_word_error(text, start)
    if message.startswith("Invalid initial character for a key part"):
        if bracket is None or text[bracket] != "{":
            return None
        return (
            (start, "a comma before the }", "take it out")
            if text_after[:1] == "}"
            else _unclosed_bracket_error(text, bracket)
        )
    if message.startswith("Unclosed"):
        closing = at_line_end or (next_statement and message.startswith("Unclosed array"))
        return _unclosed_bracket_error(text, bracket) if bracket is not None and closing else (start, *COMMA)
    return None


def _wrong_header(line: str) -> tuple[str, str] | None:
    """The problem and the fix of a line that was meant as the header of a table; None if it was not."""
    from poolctl.config.model.pool_tables import file_tables, header, meant_table

    if trailing := re.match(_TEXT_BEHIND_HEADER, line):
        return f"text behind the header {trailing[1][:SHOWN_CHARACTERS]}", "write it on the next line"
    match = re.fullmatch(_LIKE_HEADER, line)
    if match is None or len(line) > SHOWN_CHARACTERS:
        return None
    before, name, label, after = match.groups()
    parts = tuple(name.split("."))
    prefix = parts[:2] if parts[:2] == ("tool", "poolctl") else ()
    first, *inner = parts[len(prefix) :] or ("",)
    table = first if first in file_tables() else meant_table(first)
    if not before and not after and (not table or inner or not line.rstrip().endswith(":")):
        return None
    if table and not inner:
        fix = header(table, prefix)
    else:
        is_list = max(before.count("["), after.count("]")) > 1
        fix = f"{'[' * (1 + is_list)}{name}{']' * (1 + is_list)}"
    named = f', and name = "{label}"' if label else ""
    return f"{line.strip()!r} is no header of a table", f"write {fix}{named}"


def _repeated_table_error(text: str, name: str) -> tuple[str, str]:
    from poolctl.config.model.pool_tables import model_of_table

    listed = re.search(rf"(?m)^[ \t]*\[\[[ \t]*{re.escape(name)}[ \t]*\]\]", text)
    model = model_of_table(name)
    if not (listed or name == "server" or (model and model.listed)):
        return f"[{name}] is there twice", "write its keys under one of them"
    message = f"[{name}] and [[{name}]] are both there" if listed else f"[{name}] is there twice"
    return message, f"write [[{name}]], with two brackets, each time"


def _explained_json(text: str, message: str, start: int) -> Explained:
    before = text[:start].rstrip()
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
        return None if text[start] in "#/'" else _unquoted_word_error(text, start, json=True)
    return (start, *COMMA) if message.startswith("Expecting ','") and text[start] not in "#/" else None


def _unquoted_word_error(text: str, start: int, *, json: bool = False) -> Explained:
    """Return the error for a word at `start` that lacks its quotes; None if there is no word at `start`.

    In TOML the word is a value. In JSON it is a key if a colon follows, else a value.
    """
    match = re.compile(_WORD).match(text, start)
    if match is None:
        return None
    word = match[0].partition(":")[0] if json else match[0]
    if json and text[start + len(word) :].lstrip().startswith(":"):
        return start, f"{word!r} is no key", f'put it in double quotes: "{word}"'
    hint = f'put it in quotes: "{word}"'
    if word.lower() in _TRUTHS:
        hint = f"write {_TRUTHS[word.lower()]}"
    elif word.lower() in _NOTHING:
        hint = "write null" if json else "leave the key out"
    return start, f"{word!r} is no value", hint


def _unclosed_bracket_error(text: str, bracket: int) -> Explained:
    if text[bracket] == "[":
        return bracket, "the list that begins here is not closed", "put a ] behind its last value"
    message = "the table that begins here is not closed in its line"
    return bracket, message, "write it on one line, with a } at its end"


def _open_brackets(text: str, kind: str) -> list[int]:
    scanner = Scanner(text)
    scanner.scan(kind)
    return scanner.open
