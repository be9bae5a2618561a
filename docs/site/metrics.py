"""The page of all metrics, from the declarations in the code: a row for each name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Groups of metrics by the beginnings of their names; the last one has all others.
GROUPS = {
    "The gateway": ("gateway_",),
    "Routes, streams and backends": ("route_", "stream_", "host_"),
    "Workers": ("worker",),
    "The pool": ("build", "servers", "process_"),
    "Servers": ("",),
}
KINDS = {"counter": "_total", "gauge": "", "histogram": "", "info": "_info"}


def metrics() -> str:
    """A page in Markdown: a table for each group."""
    rows = sorted(set(declared()))
    parts = ["# Metrics", "Generated from the declarations in the code. All names begin with `poolctl_`."]
    tables = {}
    for title, prefixes in GROUPS.items():
        tables[title] = [row for row in rows if row[0].startswith(prefixes)]
        rows = [row for row in rows if row not in tables[title]]
    for title in reversed(tables):
        parts.append(f"## {title}")
        parts.append(
            "\n".join(
                (
                    "| metric | type | |",
                    "|---|---|---|",
                    *(f"| `{n}` | {k} | {h} |" for n, k, h in tables[title]),
                )
            )
        )
    parts.append("[Metrics and access logs](../metrics.md) says how they are counted.")
    return "\n\n".join(parts) + "\n"


def declared() -> Iterator[tuple[str, str, str]]:
    """Name, type and help of each metric: a `Family`, or a row of a table of them."""
    for path in sorted((ROOT / "poolctl").rglob("*.py")):
        text = path.read_text()
        if '"poolctl_' not in text:
            continue
        named: dict[str, ast.expr] = {}  # of a help that is a variable, the last value before
        for node in _in_order(ast.parse(text)):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                named[node.targets[0].id] = node.value
            fields = node.args if isinstance(node, ast.Call) else getattr(node, "elts", ())
            fields = [named.get(each.id, each) if isinstance(each, ast.Name) else each for each in fields[:3]]
            values = [each.value for each in fields if isinstance(each, ast.Constant)]
            if len(values) == 3 and values[1] in KINDS and str(values[0]).startswith("poolctl_"):
                name, kind, help_ = map(str, values)
                yield name.removeprefix("poolctl_") + KINDS[kind], kind, help_


def _in_order(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        yield child
        yield from _in_order(child)
