"""The model shared by readers and writer: servers with the keys of a pool.toml, and remarks with line numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from poolctl.config import escaped
from poolctl.config.values.problems import Tree

_invalid_characters = re.compile(r"[^A-Za-z0-9._-]+")


class Unreadable(Exception):
    """The file or command line does not have the expected format; `line` is 0 if unknown."""

    def __init__(self, message: str, hint: str, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line


class Remark(NamedTuple):
    """A setting that was not taken over, and its line, 0 in a command line."""

    line: int
    text: str


class ForeignServer:
    """A server of the other tool. Strings in `keys` use poolctl's notation: `$${` is `${`."""

    def __init__(self, name: str, line: int) -> None:
        self.name = _invalid_characters.sub("-", name).strip("-")[:200] or "server"
        self.line = line
        self.at = line  # the line being read
        self.keys: dict[str, Tree] = {}
        self.lines: dict[str, int] = {}  # by key
        self.remarks: list[Remark] = []
        self.unusable = ""  # the reason for writing it only as a comment

    def __repr__(self) -> str:
        return f"<ForeignServer {self.name} of line {self.line}>"

    def set(self, key: str, value: Tree) -> None:
        """Set the value of a key; `http.keep_alive` is a key in a table."""
        *tables, last = key.split(".")
        self.lines[key.partition(".")[0]] = self.at
        table = self.keys
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value

    def add_env(self, name: str, text: str) -> None:
        """Add a variable with the value that the program should see."""
        self.set("env", {**self.keys.get("env", {}), name: escaped(text)})

    def remark(self, line: int, text: str) -> None:
        """Add a remark about a setting that was not taken over."""
        self.remarks.append(Remark(line, text))

    def leave_out(self, why: str) -> None:
        """Write the server only as a comment, with the first reason given."""
        self.unusable = self.unusable or why


class ForeignPool:
    """All servers of a file or command line, and remarks that concern no single server."""

    def __init__(self) -> None:
        self.servers: list[ForeignServer] = []
        self.remarks: list[Remark] = []
        self.env_file = ""  # the other tool reads it automatically

    def add(self, name: str, line: int) -> ForeignServer:
        """A new server, renamed if the name is taken."""
        server = ForeignServer(name, line)
        taken = {each.name.lower() for each in self.servers}
        plain, number = server.name, 2
        while server.name.lower() in taken:
            server.name, number = f"{plain}-{number}", number + 1
        self.servers.append(server)
        return server

    def remark(self, line: int, text: str) -> None:
        """Add a remark about a setting that was not taken over."""
        self.remarks.append(Remark(line, text))


def of_their_types(
    server: ForeignServer,
    table: Mapping[str, Tree],
    types: Mapping[str, tuple[type, ...]],
    line: Callable[[str], int],
) -> dict[str, Tree]:
    """The table without null values and values of the wrong type; the latter become remarks."""
    found = {}
    for key, value in table.items():
        if isinstance(value, types.get(key, (object,))):
            found[key] = value
        elif value is not None:
            server.remark(line(key), f"{key}: a value of another type than expected")
    return found


def in_seconds(text: str | float) -> str:
    """A number of seconds as a duration; any other text unchanged."""
    return f"{text}s" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(text)) else str(text)


def user_and_group(user: str, group: str) -> str:
    """The value of the key `user`: `name[:group]`, or "" without a user."""
    return f"{user}:{group}" if user and group else user


def signal_name(text: str) -> str:
    """The name of a signal: `QUIT`, `SIGQUIT` and `3` become `SIGQUIT`."""
    from signal import Signals

    if text.isdigit() and int(text) in {each.value for each in Signals}:
        return Signals(int(text)).name
    return f"SIG{text.upper().removeprefix('SIG')}"
