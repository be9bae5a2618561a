"""The fields of a request that is known: heads like it are recognised by a comparison."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable

from .message_head import DECISIVE, MOST_FIELDS, TEXT, TOKEN

_is_other_field = re.compile(rb"(?!" + DECISIVE + rb":)" + TOKEN + rb":" + TEXT).fullmatch
_length_line = re.compile(rb"(?i:content-length):[ \t]*+([0-9]{1,15}+)").fullmatch
_LINE_END = b"\r\n"
_END_LINES = 2  # empty ones, between and behind the last two line ends of a head
# Lines that were found to decide nothing.
_others: set[bytes] = set()
_MOST_OTHERS = 512
_LONGEST_OTHER = 256  # in bytes


class KnownFields:
    """The fields of a canonical head: recognises heads that differ from it only in fields that decide nothing.

    The requests of a client mostly differ in a few lines that stand together. So the bytes before and after them are
    compared as a whole, and only the lines between are parsed, at a fraction of the cost of a RequestHead.
    """

    __slots__ = ("_between", "_body", "_count", "_decisive", "_end", "_length", "_length_differs", "_start")

    def __init__(self, fields: bytes, body: int = 0) -> None:
        """`fields` is the end of a canonical head, from its version on; `body` the length of its body, or CHUNKED."""
        lines = fields.split(_LINE_END)
        decisive = [line for line in lines if line not in _others and not _is_other(line)]
        self._start = self._end = fields  # both are narrowed by the first head
        self._count = len(lines)
        self._body = body
        self._length = next(filter(_length_line, decisive), None)
        self._decisive = [line for line in decisive if line != self._length]
        # The decisive lines that are neither in the start nor in the end; None before these are narrowed.
        self._between: list[bytes] | None = None
        self._length_differs = False  # it is between them

    def body_like(self, fields: bytes) -> int | None:
        """The length of the body, or CHUNKED, if these are the end of a whole canonical head that decides the same.

        Its version and decisive fields are the same, except for the length of the body.
        """
        start, end = self._start, self._end
        if (
            self._between is None
            or len(fields) < len(start) + len(end)
            or not (fields.startswith(start) and fields.endswith(end))
        ):
            if not self._narrow(fields):
                return None
            start, end = self._start, self._end
        lines = fields[len(start) : len(fields) - len(end)].split(_LINE_END)
        if lines.pop() or len(lines) > MOST_FIELDS:  # the end begins within a line
            return None
        decisive = [line for line in lines if line not in _others]
        body = self._body
        if self._length_differs:
            lengths = [found for line in decisive if (found := _length_line(line))]
            if len(lengths) != 1:
                return None
            decisive.remove(lengths[0][0])
            body = int(lengths[0][1])
        if decisive != self._between:
            decisive = [line for line in decisive if not _is_other(line)]
        return body if decisive == self._between else None

    def _narrow(self, fields: bytes) -> bool:
        """Keep what these fields have of the start and of the end; False if they decide otherwise."""
        lines = fields.split(_LINE_END)
        if not all(line in lines for line in self._decisive):
            return False
        first = _number_of_same(filter(None, self._start.split(_LINE_END)), lines)
        last = _number_of_same(self._end.split(_LINE_END)[::-1], lines[first:][::-1])
        last = min(last, self._count - first)
        if not first or last < _END_LINES:
            return False
        start, end = lines[:first], lines[len(lines) - last :]
        before, behind = (sum(line in self._decisive for line in part) for part in (start, end))
        self._between = self._decisive[before : len(self._decisive) - behind]
        self._length_differs = self._length is not None and self._length not in (*start, *end)
        self._start = b"".join([line + _LINE_END for line in start])
        self._end = _LINE_END.join(end)
        return True


def _number_of_same(some: Iterable[bytes], others: Iterable[bytes]) -> int:
    """How many of them are the same before the first that differ."""
    differ = [*map(operator.ne, some, others)]
    return differ.index(True) if True in differ else len(differ)


def _is_other(line: bytes) -> bool:
    """Whether the line is a field that decides nothing."""
    if not _is_other_field(line):
        return False
    if len(line) <= _LONGEST_OTHER:
        if len(_others) >= _MOST_OTHERS:
            _others.clear()
        _others.add(line)
    return True
