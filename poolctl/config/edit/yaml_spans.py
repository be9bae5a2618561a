"""The values of a YAML text with their places."""

from __future__ import annotations

from typing import Any

import yaml

from poolctl.config.edit.spans import Item, Node, line_end, line_start
from poolctl.config.files.yaml_file import MERGE, plain

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(text: str) -> Node | None:
    """The root; None for a text without a document. A key that is merged in is none of its table's items."""
    # Open collections; the keys that wait for their values, with where they begin.
    stack: list[Node] = []
    keys: list[tuple[str, int] | None] = []
    root: Node | None = None
    events: Any = yaml.parse(text, Loader=_LOADER)
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            node = stack.pop()
            keys.pop()
            mark: Any = event.end_mark
            node.end = mark.index if node.flow else _last(node)
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        mark = event.start_mark
        start = mark.index
        if stack and stack[-1].kind == "table" and keys[-1] is None:
            keys[-1] = (str(getattr(event, "value", "")), start)
            continue
        node = _node(text, event)
        if stack:
            around = stack[-1]
            if around.kind == "list":
                at = start if around.flow else _dash(text, around, start)
                around.items.append(Item(len(around.items), at, node))
            else:
                key, begin = keys[-1] or ("", start)
                keys[-1] = None
                around.items.append(Item(MERGE if key == MERGE else key, begin, node))
        else:
            root = root or node
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(node)
            keys.append(None)
    return root


def _node(text: str, event: Any) -> Node:
    start, end = event.start_mark.index, event.end_mark.index
    if isinstance(event, yaml.AliasEvent):
        return Node("alias", start, end)
    if isinstance(event, yaml.ScalarEvent):
        if event.style in ("|", ">"):
            end = start + len(text[start:end].rstrip())
        empty = not event.style and event.tag is None and plain(event.value, event) is None
        return Node("null" if empty else "plain", start, end)
    kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "table"
    return Node(kind, start, end, flow=bool(event.flow_style))


def _last(node: Node) -> int:
    """Where the last value within a block ends."""
    return node.items[-1].node.end if node.items else node.end


def _dash(text: str, block: Node, at: int) -> int:
    """Where the `-` of an element is that begins at a place: in the column of the block's first."""
    column = block.start - line_start(text, block.start)
    begin = line_start(text, at)
    while begin > block.start:
        line = text[begin : line_end(text, begin)]
        if (
            line[column : column + 1] == "-"
            and not line[:column].strip()
            and not line[column + 1 : column + 2].strip()
        ):
            return begin + column
        begin = line_start(text, begin - 1)
    return block.start
