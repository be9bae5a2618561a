"""Only the core changes an entry or a worker; others call the core's methods."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import poolctl
from poolctl.core.server_entry import (
    DesiredState,
    Entry,
    HookState,
    ObservedState,
    ScheduleState,
    ServerListener,
    Worker,
)

PACKAGE = Path(poolctl.__file__).parent
VALUES = {
    "desired": DesiredState,
    "observed": ObservedState,
    "listener": ServerListener,
    "schedule": ScheduleState,
    "hooks": HookState,
}
OWNED = {each.name for kind in (Entry, Worker) for each in fields(kind)} - {"config"}
MUTATORS = {"append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}


def changes(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each change of an attribute that an entry or a worker has, of another object than `self`."""
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, (ast.Assign, ast.Delete)):
            targets = [each for target in node.targets for each in getattr(target, "elts", [target])]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in MUTATORS:
                targets = [node.func.value]
            elif node.func.attr in ("become", "next_generation"):
                yield node.lineno, ast.unparse(node.func)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            yield node.lineno, ast.unparse(node)
        for target in targets:
            while isinstance(target, ast.Subscript):
                target = target.value
            if isinstance(target, ast.Attribute) and is_owned(ast.unparse(target.value), target.attr):
                yield node.lineno, ast.unparse(target)


def is_owned(owner: str, name: str) -> bool:
    """Whether the core owns this attribute of the expression `owner`."""
    value = VALUES.get(owner.rpartition(".")[2])
    return (name in OWNED and owner != "self") or (
        value is not None and name in {each.name for each in fields(value)}
    )


def test_only_the_core_changes_an_entry_or_a_worker() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line} changes {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "core" and "poolctl.core" in (source := path.read_text())
        for line, what in changes(source)
    ]
    assert found == []


def test_the_check_sees_every_kind_of_change() -> None:
    source = (
        "entry.observed.restarts += 1\nentry.desired, other = 1, 2\nentry.observed.workers['a'] = 1\n"
        "del entry.observed.workers['a']\nentry.observed.warnings.append('x')\nentry.become(1)\n"
        "setattr(entry, 'files', {})\nself.restarts = 1\nprint(entry.observed.restarts)\n"
    )
    assert [line for line, _ in changes(source)] == [1, 2, 3, 4, 5, 6, 7]
