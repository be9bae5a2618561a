"""Explains the failure of a `run -- CMD…`: the servers that died, and the last lines of their output."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from poolctl.cli.log_rendering import JsonLines, log_paths, terminal_text
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.render import printable
from poolctl.control import pool_paths
from poolctl.control.client import Client
from poolctl.control.show_answers import ShowResult
from poolctl.errors import ControlError
from poolctl.logs.log_line import LogLine

_LINES = 20
_MOST_SERVERS = 10


def deaths_of(died: Mapping[str, Sequence[str]], command: str) -> Iterator[str]:
    """One line for each server that died, with the reason for its last exit."""
    for name, reasons in died.items():
        times = f" {len(reasons)} times" if len(reasons) > 1 else ""
        yield printable(f"{name} died{times} while {command} ran: {reasons[-1]}")


class LastLines(NamedTuple):
    """The log files of the relevant servers, and the start time."""

    paths: dict[str, str]
    since: str

    @classmethod
    def of(cls, client: Client, pool: PoolRef, names: Iterable[str], since: str) -> LastLines:
        """The logs of the servers with these names."""
        chosen = list(dict.fromkeys(names))[:_MOST_SERVERS]
        try:
            items = client.ask(ShowResult, "show").items
            paths = log_paths([item for item in items if item.log_files is not False], pool)
        except ControlError:  # the pool has already ended
            logs = f"{pool_paths.state_dir(os.environ, pool.key)}/logs"
            paths = {name: f"{logs}/{name}.log" for name in chosen}
        return cls({name: paths[name] for name in chosen if name in paths}, since)

    def text(self, env: Mapping[str, str] = os.environ, *, objects: bool = False) -> str:
        """The lines of each server under a heading that GitHub and GitLab can fold."""
        from poolctl.logs.log_tail import tail

        texts: list[str] = []
        for name, path in self.paths.items():
            lines = list(tail(path, _LINES, since=self.since, name=name))
            if lines:
                texts += map(JsonLines().line, lines) if objects else _group(name, lines, env)
        return "".join(texts)


def _group(name: str, lines: Sequence[LogLine], env: Mapping[str, str]) -> Iterator[str]:
    count = len(lines)
    head = f"last {count} lines of {name}" if count > 1 else f"last line of {name}"
    before, after = f"{head}:\n", ""
    if _is_set(env, "GITHUB_ACTIONS"):
        before, after = f"::group::{head}\n", "::endgroup::\n"
    elif _is_set(env, "GITLAB_CI"):
        moment, section = int(time.time()), f"poolctl_{name}"
        before = f"\x1b[0Ksection_start:{moment}:{section}[collapsed=true]\r\x1b[0K{head}\n"
        after = f"\x1b[0Ksection_end:{moment}:{section}\r\x1b[0K\n"
    yield before
    # The name at the beginning of each line also prevents output from being taken as GitHub workflow commands.
    yield from (f"{name} | {terminal_text(line.text, colours=False)}\n" for line in lines)
    yield after


def _is_set(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() not in ("", "false", "0")
