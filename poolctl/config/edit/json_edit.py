"""Edits of a JSON text; what is put in is indented as the rest is."""

from __future__ import annotations

import json
import re
from typing import Any

from poolctl.config.edit import flow_edit
from poolctl.config.edit.spans import Item, Node, Path, Splice, Uneditable, indentation

_blank = re.compile(r"[ \t\r\n]*")
_scalar = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,\]}]+', re.DOTALL)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


STYLE = flow_edit.Style(_value, lambda key, value: f"{_value(key)}: {_value(value)}", comments=False)


class JsonText:
    """A text that can be parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root = _Reader(text).node(0)

    def set(self, path: Path, value: Any) -> list[Splice]:
        """Give a key a value."""
        return flow_edit.set_within(self.text, self.root, path, value, STYLE)

    def unset(self, path: Path) -> list[Splice]:
        """Take a key out."""
        return flow_edit.unset_within(self.text, self.root, path, STYLE)

    def append(self, path: Path, table: dict[str, Any]) -> list[Splice]:
        """Put a table at the end of a list, which may not be there yet."""
        node = self.root.find(path)
        if node is None:
            return self.set(path, [table])
        if node.kind != "list":
            raise Uneditable("this is no list")
        written = _value(table)
        if node.items and "\n" in self.text[node.items[-1].node.start : node.items[-1].node.end]:
            last = node.items[-1]
            within = indentation(self.text, last.node.items[-1].start) if last.node.items else "  "
            around = indentation(self.text, last.start)
            written = "\n".join(
                [
                    "{",
                    ",\n".join(f"{within}{STYLE.pair(key, value)}" for key, value in table.items()),
                    f"{around}}}",
                ]
            )
        elif not node.items and "\n" in self.text.strip():
            around = indentation(self.text, node.start)
            unit = around if path and around else "  "
            return [Splice(node.start + 1, node.end - 1, f"\n{around}{unit}{written}\n{around}")]
        return flow_edit.insert(self.text, node, written, STYLE)

    def remove(self, path: Path, index: int) -> list[Splice]:
        """Take an element out of a list."""
        node = self.root.find(path)
        if node is None or index >= len(node.items):
            raise Uneditable("there is no such element")
        return flow_edit.remove(self.text, node, index, STYLE)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text

    def node(self, here: int) -> Node:
        here = self._skip(here)
        sign = self.text[here]
        if sign not in "{[":
            match = _scalar.match(self.text, here)
            return Node("plain", here, match.end() if match else here + 1)
        found = Node("table" if sign == "{" else "list", here)
        here = self._skip(here + 1)
        while self.text[here] not in "}]":
            start = here
            key: str | int = len(found.items)
            if found.kind == "table":
                match = _scalar.match(self.text, here)
                if match is None:
                    raise Uneditable("a key is expected")
                key = json.loads(match[0])
                here = self._skip(match.end()) + 1
            child = self.node(here)
            found.items.append(Item(key, start, child))
            here = self._skip(child.end)
            if self.text[here] == ",":
                here = self._skip(here + 1)
        found.end = here + 1
        return found

    def _skip(self, here: int) -> int:
        match = _blank.match(self.text, here)
        return match.end() if match else here
