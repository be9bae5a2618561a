"""A pool as read from another tool's file, and its conversion to the text of a valid pool.toml."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from signal import Signals
from typing import Any, NamedTuple

from poolctl.config import load, relocated, required_variables, table_text, value_text
from poolctl.config.values.problems import Tree
from poolctl.errors import ServerError

# Stand for pool.toml's {port}, {host} and {fd} while a command is read, in which braces have the other tool's meaning.
PORT, HOST, FD = "\ue000port\ue001", "\ue000host\ue001", "\ue000fd\ue001"
REFERENCE = re.compile(r"\$\{[^}]*\}")
_invalid_characters = re.compile(r"[^A-Za-z0-9._-]+")


class Unreadable(Exception):
    """The file or command line does not have the expected format; `line` is 0 if unknown."""

    def __init__(self, message: str, hint: str, line: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line


class SourceLine(int):
    """A line number in `file`, which is "" for the source, or the name of another file, such as an included file."""

    file: str

    def __new__(cls, line: int, file: str) -> SourceLine:
        instance = super().__new__(cls, line)
        instance.file = file
        return instance


class Remarked:
    """The subject of remarks: a server or the whole file. `at` is the line being read.

    A remark is a line, 0 for a command line, and a text, such as a setting without an equivalent.
    """

    def __init__(self, line: int = 0) -> None:
        self.at = line
        self.remarks: list[tuple[int, str]] = []

    def remark(self, text: str, line: int | None = None) -> None:
        """Add a remark about `line`, by default the line being read."""
        self.remarks.append((self.at if line is None else line, text))


class ForeignServer(Remarked):
    """A server to be written: `keys` are its keys in pool.toml, with strings escaped (`$${` means a literal `${`)."""

    def __init__(self, name: str, line: int) -> None:
        super().__init__(line)
        self.name = _invalid_characters.sub("-", name).strip("-")[:200] or "server"
        self.line = line
        self.keys: dict[str, Tree] = {}
        self.lines: dict[str, int] = {}  # by key
        self.opens_own_socket = False  # a Unix socket, which `bind` cannot be
        self.unusable = ""  # the reason for writing it only as a comment

    def set(self, key: str, value: Tree) -> None:
        """Set the value of a key. A dot leads into a table: `http.keep_alive` sets keep_alive in the table http."""
        if key == "stop_group" and "command" not in self.keys:
            return  # the workers of an app shut down by themselves
        *tables, last = key.split(".")
        self.lines[key.partition(".")[0]] = self.at
        table = self.keys
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value

    def has(self, key: str) -> bool:
        """Whether a key is set. Its dots lead into tables."""
        table: Tree = self.keys
        for name in key.split("."):
            if not isinstance(table, dict) or name not in table:
                return False
            table = table[name]
        return True

    def set_env(self, env: Mapping[str, Tree]) -> None:
        """Set variables, in the notation of a pool.toml."""
        self.set("env", {**self.keys.get("env", {}), **env})

    def leave_out(self, why: str) -> None:
        """Mark the server to be written only as a comment, which shows the first reason given."""
        self.unusable = self.unusable or why


class ForeignPool(Remarked):
    """All servers of a file or command line, and remarks that concern no single server."""

    def __init__(self) -> None:
        super().__init__()
        self.servers: list[ForeignServer] = []
        self.env_file = ""  # path of the file that the other tool reads automatically; "" for none
        self.files: list[str] = []  # other files that were read

    def add(self, name: str, line: int) -> ForeignServer:
        """Add and return a server; a number is appended if the name is taken."""
        server = ForeignServer(name, line)
        taken = {other.name.lower() for other in self.servers}
        plain, number = server.name, 2
        while server.name.lower() in taken:
            server.name, number = f"{plain}-{number}", number + 1
        self.servers.append(server)
        return server


def in_seconds(text: str | float) -> str:
    """A number of seconds as a duration; any other text unchanged."""
    return f"{text}s" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(text)) else str(text)


def number(text: str) -> int | str:
    """The number; a reference to a variable stays one. Raises ValueError."""
    return text if REFERENCE.fullmatch(text) else int(text)


def user_and_group(user: str, group: str) -> str:
    """The value of the key `user`: `name[:group]`, or "" without a user. A number here becomes its name."""
    user, group = _name(user, pwd.getpwuid), _name(group, grp.getgrgid)
    return f"{user}:{group}" if user and group else user


def _name(text: str, account_of: Callable[[int], Sequence[Any]]) -> str:
    try:
        return str(account_of(int(text))[0]) if text.isdecimal() else text
    except (KeyError, OverflowError):
        return text


def bind_address(host: str, port: str) -> str:
    """The value of `bind` for this host and port. Without a host it is `:PORT`, which includes IPv6."""
    host = host.strip("[]")
    if host in ("", "*"):
        return f":{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def signal_name(text: str) -> str:
    """The name of a signal: `QUIT`, `SIGQUIT` and `3` become `SIGQUIT`."""
    if text.isdigit() and int(text) in {signal.value for signal in Signals}:
        return Signals(int(text)).name
    return f"SIG{text.upper().removeprefix('SIG')}"


# A server with a problem in one of these keys is written as a comment: without the key it would not be the same server.
ESSENTIAL = ("name", "bind", "app", "command")
ORDER = ("bind", "app", "command")
MAX_ROUNDS = 20

# Words in braces that would be placeholders; `${port}` is a variable, and `$${port}` is literal.
_WORD = r"(?<!\{)(?<!(?<!\$)\$)(\{+)(%s)(\}+)"
_word_of_command = re.compile(_WORD % "port|host|bind|name|fd")
_word_of_probe = re.compile(_WORD % "port|host|bind|name")
_word_of_env = re.compile(_WORD % "port|host|bind")
_place = re.compile(r"server\[(\d+)\](?:\.([\w.]+))?")


class RenderedPoolFile(NamedTuple):
    """The text of a pool.toml, the numbers of servers and remarks in it, and warnings for the user.

    `left_out` are servers written as comments.
    """

    text: str
    servers: int
    remarks: int
    left_out: list[str]
    warnings: list[str]


def pool_text(pool: ForeignPool, source: str, base_dir: str, target: str) -> RenderedPoolFile:
    """Return the imported pool as the text of the file `target`. Relative paths in the pool refer to `base_dir`.

    Invalid keys and servers are written as comments. Blocks on the disk.
    """
    directory = os.path.dirname(target)
    env_file = os.path.join(base_dir, pool.env_file)
    names_env_file = pool.env_file and os.path.abspath(base_dir) != directory and os.path.exists(env_file)
    for server in pool.servers:
        if names_env_file:
            server.keys.setdefault("env_file", env_file)
        bind = str(server.keys.get("bind", ""))
        if bind.startswith(":") and any(FD in word for word in server.keys.get("command", ())):
            server.keys["bind"] = f"0.0.0.0{bind}"  # the socket of IPv6 would be another descriptor
        placed = {key: _placed(value, _placeholders(key, server)) for key, value in server.keys.items()}
        server.keys = relocated(placed, base_dir, directory)
    for _ in range(MAX_ROUNDS):
        _drop_missing_dependencies(pool)
        text = _file_text(pool, source)
        unset = sorted({name for name in required_variables(text) if name not in os.environ})
        config = load(target, {**dict.fromkeys(unset, "1"), **os.environ}, {target: text})
        usable = [server for server in pool.servers if not server.unusable]
        if not (usable and config.problems):
            break
        _comment_out_invalid_keys(usable, config.problems)
    left_out = [
        f"{place_prefix(source, server.line)}{server.name}: {server.unusable}"
        for server in pool.servers
        if server.unusable
    ]
    warnings = [f"left out: {reason}" for reason in left_out]
    if unset:
        warnings.append(f"it refers to variables that are not set here: {', '.join(unset)}")
    else:  # what depends on such a variable is not known
        warnings += map(str, config.check_external())
    remarks = len(pool.remarks) + sum(len(set(server.remarks)) for server in pool.servers)
    return RenderedPoolFile(text, len(usable), remarks, left_out, warnings)


def _placeholders(key: str, server: ForeignServer) -> re.Pattern[str] | None:
    """Words in braces that would be placeholders in a key."""
    if key == "command":
        return _word_of_command
    if key == "env":
        return _word_of_env if "command" in server.keys else None
    return _word_of_probe if key in ("health", "hooks") else None


def _placed(value: Tree, word: re.Pattern[str] | None) -> Tree:
    """The value with the placeholders of a pool.toml; other words in braces that look like placeholders are escaped."""
    if isinstance(value, dict):
        return {key: _placed(inner, word) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, word) for inner in value]
    if not isinstance(value, str):
        return value

    def doubled(match: re.Match[str]) -> str:
        pairs = min(len(match[1]), len(match[3]))
        return f"{'{' * pairs}{match[0]}{'}' * pairs}"

    escaped_text = word.sub(doubled, value) if word else value
    return escaped_text.replace("\ue000", "{").replace("\ue001", "}")


def _comment_out_invalid_keys(servers: Sequence[ForeignServer], problems: Sequence[ServerError]) -> None:
    """Remove each key that has a problem, and add a remark with its value and the problem.

    In a table, such as `http`, only the key with the problem is removed. If the key is essential, such as `command`,
    the whole server is left out instead.
    """
    removed: set[tuple[str, str]] = set()
    for problem in problems:
        place = _place.match(getattr(problem, "key", ""))
        if place is None:
            continue
        server, path = servers[int(place[1])], (place[2] or "").split(".")
        if path[0] == "scale":
            path[0] = "workers"
        key = path[0]
        if key in ESSENTIAL or not (key in server.keys or (server.name, key) in removed):
            server.leave_out(f"{problem.message}; {problem.hint}" if problem.hint else problem.message)
        elif key in server.keys:
            removed.add((server.name, key))
            name, value = _pop(server.keys, path)
            server.remark(
                f"{name} = {value_text(value)}: {problem.message}", server.lines.get(key, server.line)
            )


def _pop(table: dict[str, Tree], path: Sequence[str]) -> tuple[str, Tree]:
    """Remove the value at the path, or at the part of it that exists; tables that become empty are removed, too."""
    first, *rest = path
    inner = table[first]
    if not (rest and isinstance(inner, dict) and rest[0] in inner):
        return first, table.pop(first)
    name, value = _pop(inner, rest)
    if not inner:
        del table[first]
    return f"{first}.{name}", value


def _drop_missing_dependencies(pool: ForeignPool) -> None:
    usable = {server.name for server in pool.servers if not server.unusable}
    for server in pool.servers:
        wanted = server.keys.get("depends_on", [])
        for dependency in wanted:
            if dependency["name"] not in usable:
                line = server.lines.get("depends_on", server.line)
                server.remark(f"depends_on {dependency['name']}: it is not among the servers", line)
        server.keys["depends_on"] = [dependency for dependency in wanted if dependency["name"] in usable]
        if not server.keys["depends_on"]:
            del server.keys["depends_on"]


def _file_text(pool: ForeignPool, source: str) -> str:
    head = f"# Made from {source} by `poolctl import`.\n"
    if pool.remarks:
        head += "\n" + "".join(_comment(source, *remark) for remark in pool.remarks)
    return "\n".join([head, *(_server_text(server, source) for server in pool.servers)])


def _server_text(server: ForeignServer, source: str) -> str:
    keys = {key: server.keys[key] for key in ORDER if key in server.keys} | server.keys
    if list(keys.get("restart", ())) == ["policy"]:
        keys["restart"] = keys["restart"]["policy"]
    if keys.get("workers") == 1:
        del keys["workers"]
    text = table_text("[[server]]", {"name": server.name, **keys})
    if server.unusable:
        text = _comment(source, server.line, f"left out: {server.unusable}") + _as_comment(text)
    return text + "".join(_comment(source, *remark) for remark in sorted(set(server.remarks)))


def _comment(source: str, line: int, text: str) -> str:
    return _as_comment(place_prefix(source, line) + " ".join(text.split()))


def _as_comment(text: str) -> str:
    return "".join(f"# {line}\n" if line else "#\n" for line in text.rstrip("\n").split("\n"))


def place_prefix(source: str, line: int) -> str:
    """`FILE:LINE: ` of a line of the source or of another file, "" for an unknown line."""
    file = (line.file if isinstance(line, SourceLine) else "") or source
    return f"{file}:{line}: " if line else ""
