"""Parses YAML text into plain values, and finds the place of each key and element.

Values are built from libyaml's events. PyYAML's composer and constructors would recurse in C as deep as the file is
nested, silently take the last of two equal keys, and read `1:30` as 90.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from poolctl.config.values.problems import MAX_DEPTH, MAX_VALUES, KeyPath, ParseError, Tree

_BOOLEANS = {
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_integer = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+", re.ASCII)
_float = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)", re.ASCII
)
_PLAIN_TAGS = {None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
_NUMBER_STARTS = frozenset("0123456789+-.")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# An event of PyYAML; its attributes depend on its class.
Event = Any
_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep", "a configuration needs five"
MERGE = "<<"


@dataclass(slots=True)
class Frame:
    """A table or list of a YAML document while it is being parsed.

    `waiting` is true between a `key` and its value; `merging` is true if that key is `<<`. `merges` are the tables
    to merge. `start` is the number of values in the document before this one.
    """

    values: Tree
    anchor: str | None
    start: int
    path: KeyPath
    key: Tree = None
    waiting: bool = False
    merging: bool = False
    merges: list[Tree] = field(default_factory=list)


def parse_yaml(text: str, truth_values: Container[str] = _BOOLEANS) -> Tree:
    """The value of the only document of the text. Raises ParseError.

    Words for true and false stay text unless `truth_values` contains them in lower case.
    """
    try:
        return _Builder(truth_values).build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        raise _explained(text, error) from error
    except yaml.YAMLError as error:
        raise ParseError(str(error).partition("\n")[0]) from error


def _explained(text: str, error: yaml.MarkedYAMLError) -> ParseError:
    """The error with its fix, in plain words if it is one of the commonest mistakes."""
    start, context, problem = error.context_mark, error.context or "", error.problem or ""
    mark = error.problem_mark or start
    message, hint = " ".join(part for part in (context, problem) if part) or "no YAML", ""
    if "flow sequence" in context or "flow mapping" in context:
        collection, sign = ("list", "]") if "sequence" in context else ("table", "}")
        mark, message = start, f"the {collection} that begins here is not closed, or lacks a comma"
        hint = f"put a {sign} at its end"
    elif "quoted scalar" in context and "escape" not in problem and "hexdecimal" not in problem:
        mark, message, hint = start, "the string is not closed", "put a quote at its end"
    elif "nesting depth" in problem:  # the parser's own limit, from PyYAML 6.0.4 on
        message, hint = _TOO_DEEP
    elif "mapping values are not allowed" in problem:
        message, hint = (
            "a second ':' in one line",
            'put the text in quotes: "…", or indent what follows the first one',
        )
    elif "cannot start any token" in problem and mark:
        sign = text.split("\n")[mark.line][mark.column : mark.column + 1]
        message, hint = f"a text cannot begin with {sign!r}", "" if sign == "\t" else 'put it in quotes: "…"'
    return ParseError(message, *((mark.line + 1, mark.column + 1) if mark else (0, 0)), hint)


def yaml_positions(text: str) -> dict[KeyPath, tuple[int, int]]:
    """Line and column of every key and list item of a valid text.

    A list item that is an alias has its own position; the keys and items inside it have none.
    """
    builder = _Builder()
    builder.build(yaml.parse(text, Loader=_LOADER))
    return builder.positions


class _Builder:
    """Builds the value of a document, and records the position of each key and list item."""

    def __init__(self, truth_values: Container[str] = _BOOLEANS) -> None:
        self.truth_values = truth_values
        self.positions: dict[KeyPath, tuple[int, int]] = {}
        self.stack: list[Frame] = []
        self.anchors: dict[str, tuple[Tree, int]] = {}
        self.count = 0
        self.root: Tree = None
        self.documents = 0

    def build(self, events: Iterator[Event]) -> Tree:
        scalar, alias, end = yaml.ScalarEvent, yaml.AliasEvent, yaml.CollectionEndEvent
        for event in events:
            kind = type(event)
            if kind is scalar:
                self.add_scalar(event)
            elif kind is alias:
                self.add_alias(event)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                self.open({} if kind is yaml.MappingStartEvent else [], event)
            elif issubclass(kind, end):
                self.close(event)
            elif kind is yaml.DocumentStartEvent:
                self.documents += 1
                if self.documents > 1:
                    raise _refused(
                        event, "a second document", "keep one document in a file: take out the ---"
                    )
        return self.root

    def add_scalar(self, event: Event) -> None:
        value, stack = event.value, self.stack
        if stack and not stack[-1].waiting and type(stack[-1].values) is dict:
            pass  # a key is always text: a variable may be called NO
        elif not event.style and event.tag is None:
            text, value = value, _plain_scalar_value(value, event)
            if type(value) is bool and text.lower() not in self.truth_values:
                value = text
        elif event.tag not in _PLAIN_TAGS:
            raise _refused(event, f"the tag {event.tag!r} is not allowed", "take it out")
        if event.anchor:
            self.anchors[event.anchor] = (value, 1)
        self.put(value, event)

    def open(self, values: Tree, event: Event) -> None:
        if event.tag not in _PLAIN_TAGS:
            raise _refused(event, f"the tag {event.tag!r} is not allowed", "take it out")
        if len(self.stack) >= MAX_DEPTH:
            raise _refused(event, *_TOO_DEEP)
        if event.anchor:
            self.anchors.pop(event.anchor, None)
        self.stack.append(Frame(values, event.anchor, self.count, self.record_position(event, None)))

    def close(self, event: Event) -> None:
        frame = self.stack.pop()
        for merged in frame.merges:
            frame.values = {**merged, **frame.values}
        if frame.anchor:
            self.anchors[frame.anchor] = (frame.values, self.count - frame.start + 1)
        self.put(frame.values, event)

    def add_alias(self, event: Event) -> None:
        if event.anchor not in self.anchors:
            message = f"the alias *{event.anchor} has no anchor before it, or is within what it names"
            raise _refused(event, message, f"put &{event.anchor} where its value is")
        value, size = self.anchors[event.anchor]
        # Count the value of an alias at each use: nested aliases grow exponentially.
        self.count += size
        self.put(value, event)

    def put(self, value: Tree, event: Event) -> None:
        self.count += 1
        if self.count > MAX_VALUES:
            message = f"more than {MAX_VALUES:,} values, aliases counted as what they repeat"
            raise _refused(event, message, "split it")
        if not self.stack:
            self.root = value
            return
        if not isinstance(event, yaml.CollectionEndEvent):
            self.record_position(event, value)
        frame = self.stack[-1]
        if type(frame.values) is list:
            frame.values.append(value)
        elif not frame.waiting:
            if isinstance(value, (dict, list)):
                raise _refused(event, "a table or a list cannot be a key", "write a word")
            if value in frame.values:
                raise _refused(event, f"the key {value!r} is there twice", "keep one of them")
            frame.key, frame.waiting = value, True
            frame.merging = _merges(event)
        else:
            frame.waiting = False
            if not frame.merging:
                frame.values[frame.key] = value
                return
            tables = value if isinstance(value, list) else [value]
            if not all(isinstance(table, dict) for table in tables):
                raise _refused(event, "<< merges tables, and this is none", "write << : *NAME")
            frame.merges += tables

    def record_position(self, event: Event, value: Tree) -> KeyPath:
        """Record the line and column of a key or list item in `positions`, and return the path of the key or item.

        `value` is the key's text if the event is a key. A key's value has the path of the key, the document the path
        (), and a table merged by `<<` the path of the table around it; no position is recorded for these, nor for `<<`.
        """
        if not self.stack:
            return ()
        frame = self.stack[-1]
        if frame.waiting:
            return frame.path if frame.merging else (*frame.path, frame.key)
        path = (*frame.path, len(frame.values) if type(frame.values) is list else value)
        if type(frame.values) is list or not _merges(event):
            self.positions.setdefault(path, (event.start_mark.line + 1, event.start_mark.column + 1))
        return path


def _merges(event: Event) -> bool:
    """Whether the event is the merge key `<<`; in quotes, it would be an ordinary key."""
    return getattr(event, "value", None) == MERGE and not event.style


def _plain_scalar_value(text: str, event: Event) -> Tree:
    """The value of a scalar without quotes: null, a truth value, a number, or its text."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] not in _NUMBER_STARTS:
        return text
    if _integer.fullmatch(text):
        if len(text) > 300:
            raise _refused(event, "a number of too many digits", "write a smaller one")
        return int(text, 0)
    if _float.fullmatch(text):
        return float(text)
    return {".inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}.get(text.lower(), text)


def _refused(event: Event, message: str, hint: str) -> ParseError:
    mark = event.start_mark
    return ParseError(message, mark.line + 1, mark.column + 1, hint)
