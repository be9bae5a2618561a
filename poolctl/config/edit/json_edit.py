"""Edits of a JSON file: only the servers that change are written, in the layout of the file."""

from __future__ import annotations

import json
import re
from typing import Any

from poolctl.config.edit.changes import Changes, assign, list_at
from poolctl.config.edit.sheet import in_layout_of, lines_of
from poolctl.config.files.document import Document
from poolctl.config.model.problems import Path

_indent = re.compile(r"[ \t]*")


def edited_in_parts(document: Document, text: str, servers: Path, changes: Changes) -> str | None:
    """The text with the changes made; None if it has no servers yet."""
    starts, positions = [0], document.positions()
    for line in lines_of(text):
        starts.append(starts[-1] + len(line))
    begins: list[int] = []
    while (place := positions.get((*servers, len(begins)))) is not None:
        begins.append(starts[place[0] - 1] + place[1] - 1)
    if not begins:
        return None
    ends = [json.JSONDecoder().raw_decode(text, begin)[1] for begin in begins]
    gaps = [text[end:begin] for end, begin in zip(ends, begins[1:], strict=False)]
    written = [text[begin:end] for begin, end in zip(begins, ends, strict=True)]
    margin = _indent.match(text, text.rfind("\n", 0, begins[-1]) + 1)
    last, around = written[-1], margin[0] if margin else ""
    for index, pairs in changes.pairs.items():
        table = json.loads(written[index])
        before = _written(table, written[index], around)
        assign(table, pairs)
        written[index] = in_layout_of(written[index], before, _written(table, written[index], around))
    gap = gaps[-1] if gaps else f",\n{around}" if text[: begins[0]].endswith(f"\n{around}") else ", "
    for index in sorted(changes.removed, reverse=True):
        del written[index], gaps[max(index - 1, 0) : max(index, 1)]
    for table in changes.added:
        gaps += [gap] if written else []
        written.append(_written(table, last, around))
    if not written:
        return text[: begins[0]].rstrip() + text[ends[-1] :].lstrip()
    inner = written[0] + "".join(map("".join, zip(gaps, written[1:], strict=True)))
    return text[: begins[0]] + inner + text[ends[-1] :]


def rewritten(text: str, servers: Path, changes: Changes) -> str:
    """The whole text written again, with the changes made."""
    data = json.loads(text)
    changes.apply(list_at(data, servers))
    return _written(data, text, "") + "\n" * text.endswith("\n")


def _written(value: Any, like: str, around: str) -> str:
    """The value on one line, or on several with the indentation of the text `like`."""
    lines = like.split("\n")
    if len(lines) == 1:
        return json.dumps(value, ensure_ascii=False)
    found = _indent.match(lines[1])
    indent = (found[0] if found else "").removeprefix(around) or "  "
    return json.dumps(value, ensure_ascii=False, indent=indent).replace("\n", f"\n{around}")
