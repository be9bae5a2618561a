"""Makes a pool from a supervisord.conf, and servers from its programs (http://supervisord.org/configuration.html)."""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from poolctl.config import escaped

from ._command_lines import apply_quoted_command
from ._foreign_pool import ForeignPool, ForeignServer, Keys, Unreadable, in_seconds, signal_name

PROGRAM = "program:"
DEFAULT_PRIORITY = 999
# Sections about supervisord itself.
OWN_SECTIONS = (
    "supervisord",
    "supervisorctl",
    "unix_http_server",
    "inet_http_server",
    "rpcinterface:supervisor",
)
# Keys that need no remark: they are read together with others, or poolctl always behaves that way (the rest of a
# process group is killed, a log has both streams).
IMPLIED = (
    "stopasgroup", "killasgroup", "redirect_stderr", "process_name", "numprocs", "numprocs_start", "priority",
    "stdout_capture_maxbytes", "stderr_capture_maxbytes",
)  # fmt: skip
DEFAULTS = {  # values that change nothing
    "stdout_events_enabled": "false", "stderr_events_enabled": "false", "stdout_syslog": "false",
    "stderr_syslog": "false", "exitcodes": "0", "serverurl": "AUTO", "stdout_logfile": "AUTO",
    "stderr_logfile": "AUTO", "stdout_logfile_maxbytes": "", "stdout_logfile_backups": "",
}  # fmt: skip
TO_TERMINAL = ("/dev/stdout", "/dev/fd/1", "/dev/stderr", "/dev/fd/2", "NONE")
_RESTART = {"true": "always", "1": "always", "yes": "always", "on": "always", "unexpected": "on-failure"}
_TRUE = ("true", "1", "yes", "on")
_section = re.compile(r"\[([^\]]+)\]")
_expression = re.compile(r"%\((ENV_)?([^)]+)\)[0-9]*[a-z]|%%")
_pair = re.compile(r"""\s*([^=,\s]+)\s*=\s*("[^"]*"|'[^']*'|[^,]*)(?:,|$)""")


class ValueWithLine(NamedTuple):
    """A value, and the line of its key."""

    text: str
    line: int


Section = dict[str, ValueWithLine]


def pool_of_supervisord(text: str, directory: str) -> ForeignPool:
    """Return the pool of a supervisord.conf in `directory`. Remarks name the included files. Raises Unreadable."""
    pool = ForeignPool()
    sections = list(_sections(text))
    included = [values for name, _, values in sections if name == "include"]
    for file in (
        file for values in included if (files := values.get("files")) for file in files.text.split()
    ):
        pattern = os.path.join(directory, file.replace("%(here)s", directory))
        line = included[0]["files"].line
        for path in sorted(glob.glob(pattern)):
            pool.remark(f"{path} is included: its programs need an import of their own", line)
    of_all = next((values for name, _, values in sections if name == "supervisord"), Section())
    inherited: Section = {key: of_all[key] for key in ("environment", "directory", "umask") if key in of_all}
    priorities: dict[str, int] = {}
    for name, line, values in sections:
        if name.startswith(PROGRAM):
            program = name.removeprefix(PROGRAM).strip()
            priority = values.get("priority", ValueWithLine(str(DEFAULT_PRIORITY), 0)).text
            for server in _add_program_servers(pool, program, line, values, inherited, directory):
                priorities[server.name] = (
                    int(priority) if re.fullmatch(r"-?\d+", priority) else DEFAULT_PRIORITY
                )
        elif name.startswith(("eventlistener:", "fcgi-program:")):
            pool.remark(f"[{name}]: no equivalent", line)
        elif name.startswith("group:"):
            _tag(pool, name.removeprefix("group:").strip(), values)
        elif name not in (*OWN_SECTIONS, "include"):
            pool.remark(f"[{name}]: not a section of supervisord", line)
    if not pool.servers:
        raise Unreadable("there is no [program:NAME] in it", "is this a supervisord.conf?", 1)
    _add_dependencies(pool, priorities)
    return pool


def _sections(text: str) -> Iterator[tuple[str, int, Section]]:
    """Name, line and values of each section; a key's last value counts, as in supervisord. Raises Unreadable."""
    name, start, values, key = "", 0, Section(), ""
    for line, row in enumerate(text.splitlines(), 1):
        content = re.sub(r"(?:^|\s)[;#].*", "", row).rstrip()
        if not content.strip():
            continue
        if content[0].isspace() and key:
            values[key] = values[key]._replace(text=f"{values[key].text}\n{content.strip()}".strip())
        elif header := _section.match(content):
            if name:
                yield name, start, values
            name, start, values, key = header[1].strip(), line, {}, ""
        else:
            key, sign, value = (
                re.split(r"([=:])", content, maxsplit=1) if re.search("[=:]", content) else ("", "", "")
            )
            if not sign:
                raise Unreadable(f"{content.strip()!r} is not KEY=VALUE", "is this a supervisord.conf?", line)
            key = key.strip().lower()
            values[key] = ValueWithLine(value.strip(), line)
    if name:
        yield name, start, values


def _add_program_servers(
    pool: ForeignPool, program: str, line: int, values: Section, inherited: Section, directory: str
) -> Iterator[ForeignServer]:
    """Add and yield the program's server, or one server per process if the command contains the process number."""
    count = values.get("numprocs", ValueWithLine("1", line)).text
    number = int(count) if count.isdigit() else 1
    command = values.get("command", ValueWithLine("", line)).text
    first = values.get("numprocs_start", ValueWithLine("0", line)).text
    separate = number > 1 and "%(process_num)" in command
    for index in range(number if separate else 1):
        process = index + (int(first) if first.isdigit() else 0)
        known: dict[str, object] = {
            "here": directory, "program_name": program, "process_num": process, "numprocs": number,
            "group_name": program, "host_node_name": socket.gethostname(),
        }  # fmt: skip
        server = pool.add(f"{program}-{process}" if separate else program, line)
        if number > 1 and not separate:
            server.set("workers", number)
        if separate:
            server.set("tags", [program])
        _apply_settings(server, values, inherited, known)
        yield server


def _apply_settings(
    server: ForeignServer, values: Section, inherited: Section, known: Mapping[str, object]
) -> None:
    """Set the server's keys, first from the settings `inherited` from [supervisord], then from the program's own.

    `known` are the values of expressions such as `%(here)s`.
    """
    if "command" not in values:
        server.leave_out("it has no command")
        return
    for key, (raw, line) in (*inherited.items(), *values.items()):
        server.at = line
        try:
            text = _expanded(raw, known)
        except (KeyError, ValueError, TypeError):
            server.remark(f"{key}={raw}: an expression that is not understood")
            continue
        if key == "command":
            apply_quoted_command(server, text)
        elif key == "environment":
            for name, value in _pair.findall(text):
                server.keys.setdefault("env", {})[name] = value.strip().strip("\"'")
        else:
            _apply_key(server, key, text)
    if values.get("stopasgroup", ValueWithLine("", 0)).text.lower() in _TRUE:
        server.at = values["stopasgroup"].line
        server.set_stop_group("together")
    size = values.get("stdout_logfile_maxbytes")
    log = server.keys.get("log", {})
    if "path" in log:
        if size:
            log["max_size"] = re.sub(r"(?i)([KMG])B$", r"\1iB", size.text)
        if backups := values.get("stdout_logfile_backups"):
            log["keep"] = int(backups.text) if backups.text.isdigit() else 10
        if log.get("max_size") == "0":
            del log["max_size"]  # never rotated there


_KEYS: Keys = {
    "directory": ("cwd", str),
    "user": ("user", str),
    "umask": ("umask", str),
    "stopwaitsecs": ("stop_timeout", in_seconds),
}


def _apply_key(server: ForeignServer, key: str, text: str) -> None:
    if key in _KEYS:
        name, convert = _KEYS[key]
        server.set(name, convert(text))
    elif key == "autostart":
        if text.lower() not in _TRUE:
            server.set("on_demand", True)
    elif key == "autorestart":
        server.set("restart.policy", _RESTART.get(text.lower(), "no"))
    elif key == "startretries":
        if text.isdigit():
            server.set("restart.limit", int(text))
            server.keys["restart"].setdefault("policy", "on-failure")
    elif key == "stopsignal":
        if signal_name(text) != "SIGTERM":
            server.set("stop_signal", signal_name(text))
    elif key == "stdout_logfile" and text not in (*TO_TERMINAL, "AUTO", "syslog"):
        server.set("log.path", text)
    elif key in ("stderr_logfile", "stdout_logfile") and text in TO_TERMINAL:
        pass  # `poolctl run` and `poolctl logs` show it
    elif key == "startsecs":
        if text.isdigit() and text not in ("0", "1"):
            server.set("ready_after", f"{text}s")
    elif key.startswith(("stdout_logfile_", "stderr_logfile_")):
        pass  # read with the log
    elif key == "stderr_logfile" and text not in ("AUTO", "syslog"):
        server.remark(f"stderr_logfile={text}: a server has one log, of both streams")
    elif key not in IMPLIED and text != DEFAULTS.get(key):
        server.remark(f"{key}={text}: no equivalent")


def _expanded(raw: str, known: Mapping[str, object]) -> str:
    """The text with `%(here)s` and similar references replaced; `%(ENV_HOME)s` becomes `${HOME}`."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[1]:
            return f"${{{match[2]}}}"
        return str(escaped(match[0] % known))

    return _expression.sub(replaced, str(escaped(raw)))


def _tag(pool: ForeignPool, group: str, values: Section) -> None:
    members = [name.strip() for name in values.get("programs", ValueWithLine("", 0)).text.split(",")]
    for server in pool.servers:
        if server.name in members or set(server.keys.get("tags", ())) & set(members):
            server.set("tags", [*server.keys.get("tags", ()), re.sub(r"[\s,]+", "-", group)])


def _add_dependencies(pool: ForeignPool, priorities: Mapping[str, int]) -> None:
    """Let servers wait for the servers of the next lower priority, which supervisord starts first.

    Servers that start on demand are left out: they would start with those that wait for them.
    """
    started = [server for server in pool.servers if "on_demand" not in server.keys]
    levels = sorted({priorities[server.name] for server in started})
    for server in started:
        level = levels.index(priorities[server.name])
        before = [each.name for each in started if level and priorities[each.name] == levels[level - 1]]
        if before:
            server.set("depends_on", [{"name": name, "condition": "started"} for name in before])
