"""Writes a `ForeignPool` as a pool.toml that validates."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from poolctl.config import load, referenced_variables, relocated, table_text, value_text
from poolctl.errors import ServerError
from poolctl.features.import_foreign._foreign_pool import ForeignPool, ForeignServer, Remark

# Without these a server is invalid, or a different server.
ESSENTIAL = ("name", "bind", "app", "command")
ORDER = ("bind", "app", "command")
MOST_ROUNDS = 20

_place = re.compile(r"server\[(\d+)\](?:\.(\w+))?")


@dataclass
class PoolText:
    """The text of the file, with remarks for its readers."""

    text: str
    servers: int = 0
    left_out: list[str] = field(default_factory=list)
    remarks: int = 0
    unset: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def pool_text(pool: ForeignPool, source: str, base_dir: str, target: str) -> PoolText:
    """The pool as the text of the file `target`; relative paths of the source refer to `base_dir`. Reads files.

    Invalid keys and servers are written as comments.
    """
    directory = os.path.dirname(target)
    env_file = os.path.join(base_dir, pool.env_file)
    if pool.env_file and os.path.abspath(base_dir) != os.path.abspath(directory) and os.path.exists(env_file):
        for server in pool.servers:
            server.keys.setdefault("env_file", env_file)
    for server in pool.servers:
        server.keys = relocated(server.keys, base_dir, directory)
    for _ in range(MOST_ROUNDS):
        _drop_dependencies(pool)
        text = _written(pool, source)
        unset = sorted({name for name in referenced_variables(text) if name not in os.environ})
        config = load(target, {**dict.fromkeys(unset, "1"), **os.environ}, {target: text})
        usable = [server for server in pool.servers if not server.unusable]
        problems = [problem for problem in config.problems if usable]
        if not problems:
            break
        _comment_out(usable, problems)
    return PoolText(
        text,
        servers=len(usable),
        left_out=[
            f"{_at(source, each.line)}{each.name}: {each.unusable}" for each in pool.servers if each.unusable
        ],
        remarks=len(pool.remarks) + sum(len(each.remarks) for each in pool.servers),
        unset=unset,
        missing=[] if unset else [str(problem) for problem in config.outside()],
    )


def _comment_out(servers: Sequence[ForeignServer], problems: Sequence[ServerError]) -> None:
    """Remove the keys with these problems from their servers."""
    for problem in problems:
        place = _place.match(getattr(problem, "key", ""))
        if place is None:
            continue
        server, key = servers[int(place[1])], place[2] or ""
        key = "workers" if key == "scale" else key
        if key in ESSENTIAL or key not in server.keys:
            server.leave_out(f"{problem.message}; {problem.hint}" if problem.hint else problem.message)
        else:
            value = value_text(server.keys.pop(key))
            server.remark(server.lines.get(key, server.line), f"{key} = {value}: {problem.message}")


def _drop_dependencies(pool: ForeignPool) -> None:
    """Remove dependencies on missing servers."""
    there = {server.name for server in pool.servers if not server.unusable}
    for server in pool.servers:
        wanted = server.keys.get("depends_on", [])
        for each in wanted:
            if each["name"] not in there:
                line = server.lines.get("depends_on", server.line)
                server.remark(line, f"depends_on {each['name']}: it is not among the servers")
        if wanted:
            server.keys["depends_on"] = [each for each in wanted if each["name"] in there]
            if not server.keys["depends_on"]:
                del server.keys["depends_on"]


def _written(pool: ForeignPool, source: str) -> str:
    head = f"# Made from {source} by `poolctl import`.\n"
    if pool.remarks:
        head += "\n" + "".join(_comment(source, remark) for remark in pool.remarks)
    return "\n".join([head, *(_table(server, source) for server in pool.servers)])


def _table(server: ForeignServer, source: str) -> str:
    keys = {key: server.keys[key] for key in ORDER if key in server.keys} | server.keys
    if list(keys.get("restart", ())) == ["policy"]:
        keys["restart"] = keys["restart"]["policy"]
    if keys.get("workers") == 1:
        del keys["workers"]
    text = table_text("[[server]]", {"name": server.name, **keys})
    if server.unusable:
        text = _comment(source, Remark(server.line, f"left out: {server.unusable}")) + _as_comment(text)
    return text + "".join(_comment(source, remark) for remark in sorted(set(server.remarks)))


def _comment(source: str, remark: Remark) -> str:
    return _as_comment(_at(source, remark.line) + " ".join(remark.text.split()))


def _as_comment(text: str) -> str:
    return "".join(f"# {line}\n" if line else "#\n" for line in text.rstrip("\n").split("\n"))


def _at(source: str, line: int) -> str:
    return f"{source}:{line}: " if line else ""
