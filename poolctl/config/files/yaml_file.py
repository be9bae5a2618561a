"""YAML text into plain values, and where each of its keys and elements is.

The events of libyaml are put together here, not by PyYAML's composer and constructors: those recurse in C as
deep as the file wants them to, take the last of two equal keys without a word, and read `1:30` as 90.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from poolctl.config.files.parse_error import DEEPEST, MOST_VALUES, ParseError
from poolctl.config.model.problems import Path

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
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MERGE = "<<"


class Frame:
    """A collection that is being read."""

    __slots__ = ("anchor", "key", "merges", "merging", "size", "start", "values", "waiting")

    def __init__(self, values: Any, anchor: str | None, start: int) -> None:
        self.values = values
        self.anchor = anchor
        self.start = start
        self.key: Any = None
        self.waiting = self.merging = False
        self.merges: list[Any] | None = None


def parse_yaml(text: str) -> Any:
    """What the one document of the text says. Raises ParseError."""
    try:
        return _Builder().build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        from poolctl.config.files.syntax_hints import yaml_error

        raise yaml_error(text, error) from error
    except yaml.YAMLError as error:
        raise ParseError(str(error).partition("\n")[0]) from error


class _Builder:
    def __init__(self) -> None:
        self.stack: list[Frame] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.count = 0
        self.root: Any = None
        self.documents = 0

    def build(self, events: Iterator[Any]) -> Any:
        scalar, alias = yaml.ScalarEvent, yaml.AliasEvent
        for event in events:
            kind = type(event)
            if kind is scalar:
                value = event.value
                stack = self.stack
                if stack and not stack[-1].waiting and type(stack[-1].values) is dict:
                    # A key is its text: a variable may be called NO.
                    pass
                elif not event.style and event.tag is None:
                    value = plain(value, event)
                elif event.tag not in _PLAIN_TAGS:
                    raise _refused(event, f"the tag {event.tag!r} is not allowed", "take it out")
                if event.anchor:
                    self.anchors[event.anchor] = (value, 1)
                self.put(value, event)
            elif kind is alias:
                self.alias(event)
            elif kind is yaml.MappingStartEvent:
                self.open({}, event)
            elif kind is yaml.SequenceStartEvent:
                self.open([], event)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self.close(event)
            elif kind is yaml.DocumentStartEvent:
                self.documents += 1
                if self.documents > 1:
                    raise _refused(
                        event, "a second document", "keep one document in a file: take out the ---"
                    )
        return self.root

    def open(self, values: Any, event: Any) -> None:
        if event.tag not in _PLAIN_TAGS:
            raise _refused(event, f"the tag {event.tag!r} is not allowed", "take it out")
        if len(self.stack) >= DEEPEST:
            raise _refused(event, f"nested more than {DEEPEST} levels deep", "a configuration needs five")
        if event.anchor:
            self.anchors.pop(event.anchor, None)
        self.stack.append(Frame(values, event.anchor, self.count))

    def close(self, event: Any) -> None:
        frame = self.stack.pop()
        if frame.merges:
            for merged in frame.merges:
                frame.values = {**merged, **frame.values}
        if frame.anchor:
            self.anchors[frame.anchor] = (frame.values, self.count - frame.start + 1)
        self.put(frame.values, event)

    def alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            message = f"the alias *{event.anchor} has no anchor before it, or is within what it names"
            raise _refused(event, message, f"put &{event.anchor} where its value is")
        value, size = self.anchors[event.anchor]
        # What the alias stands for counts as often as it is repeated: that is what a bomb is made of.
        self.count += size
        self.put(value, event)

    def put(self, value: Any, event: Any) -> None:
        self.count += 1
        if self.count > MOST_VALUES:
            raise _refused(
                event, f"more than {MOST_VALUES:,} values, aliases counted as what they repeat", "split it"
            )
        if not self.stack:
            self.root = value
            return
        frame = self.stack[-1]
        if type(frame.values) is list:
            frame.values.append(value)
        elif not frame.waiting:
            if isinstance(value, (dict, list)):
                raise _refused(event, "a table or a list cannot be a key", "write a word")
            if value in frame.values:
                raise _refused(event, f"the key {value!r} is there twice", "keep one of them")
            frame.key, frame.waiting = value, True
            frame.merging = merges(event)
        else:
            frame.waiting = False
            if frame.merging:
                self.merge(frame, value, event)
            else:
                frame.values[frame.key] = value

    def merge(self, frame: Frame, value: Any, event: Any) -> None:
        tables = value if isinstance(value, list) else [value]
        if not all(isinstance(table, dict) for table in tables):
            raise _refused(event, "<< merges tables, and this is none", "write << : *NAME")
        frame.merges = (frame.merges or []) + tables


def merges(event: Any) -> bool:
    """Whether the event of a key says that a table is merged in here; in quotes it is a word like any other."""
    return getattr(event, "value", None) == MERGE and not event.style


def plain(text: str, event: Any = None) -> Any:
    """What a scalar without quotes says: null, a truth value, a number, or its text."""
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


def _refused(event: Any, message: str, hint: str) -> ParseError:
    mark = event.start_mark
    return ParseError(message, mark.line + 1, mark.column + 1, hint)


def positions(text: str) -> dict[Path, tuple[int, int]]:
    """Line and column of every key and element of a valid text; what an alias repeats is where the alias is."""
    found: dict[Path, tuple[int, int]] = {}
    # Open collections: the path to each, a list's next index, and a table's key that waits for its value.
    stack: list[list[Any]] = []
    events: Any = yaml.parse(text, Loader=_LOADER)
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        path: Path = ()
        if stack:
            frame = stack[-1]
            if frame[1] is None and frame[2] is None:
                key = _key(event)
                frame[2] = (key, merges(event))
                if not merges(event):
                    found.setdefault((*frame[0], key), _place(event))
                continue
            path = _next(frame)
            if frame[1] is not None:
                found.setdefault(path, _place(event))
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append([path, 0 if isinstance(event, yaml.SequenceStartEvent) else None, None])
    return found


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _key(event: Any) -> str:
    return str(getattr(event, "value", ""))


def _next(frame: list[Any]) -> Path:
    """The path of the value that comes now; of what is merged in, the table itself."""
    if frame[1] is not None:
        frame[1] += 1
        return (*frame[0], frame[1] - 1)
    (key, merged), frame[2] = frame[2], None
    return tuple(frame[0]) if merged else (*frame[0], key)
