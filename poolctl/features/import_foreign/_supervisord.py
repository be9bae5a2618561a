"""A supervisord.conf with the files that it includes (http://supervisord.org/configuration.html)."""

from __future__ import annotations

import glob
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from poolctl.config import escaped, read_text
from poolctl.config.values.problems import Problem

from ._command_lines import apply_command_words
from ._foreign_pool import (
    REFERENCE,
    ForeignPool,
    ForeignServer,
    Remarked,
    SourceLine,
    Unreadable,
    number,
    signal_name,
    user_and_group,
)
from ._settings import AS_USUAL, NO_EQUIVALENT, ONE_LOG, Becomes, Settings, Table, row_of

PROGRAM = "program:"
GROUP = "group:"
DEFAULT_PRIORITY = 999
_LOG_SIZE = {"max_size": "50MiB", "keep": 10}  # the defaults
_TO_TERMINAL = ("/dev/stdout", "/dev/fd/1", "/dev/stderr", "/dev/fd/2")
_DEFAULT_LOGS = ("", "AUTO", "NONE", *_TO_TERMINAL)  # poolctl run and poolctl logs show them
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_RESTART = {**dict.fromkeys(_TRUE, "always"), "unexpected": "on-failure", **dict.fromkeys(_FALSE, "no")}
_section = re.compile(r"\[([^\]]+)\]")
_here = re.compile(r"(?<!%)%\(here\)s")  # the directory of the file, also of an included one
# What says that a program runs on, such as `nginx -g "daemon off;"` and `php-fpm -F`.
_foreground = re.compile(r"daemon off|no-?daemon|(?i:foreground)|\s-F(\s|$)")
_expression = re.compile(r"%\((ENV_)?([^)]+)\)[0-9]*[a-z]|%%")
_pair = re.compile(r"""\s*([^=,\s]+)\s*=\s*("[^"]*"|'[^']*'|[^,]*)(?:,|$)""")


class ValueWithLine(NamedTuple):
    """A value, and the line of its key."""

    text: str
    line: int


Section = dict[str, ValueWithLine]
NOT_SET = ValueWithLine("", 0)


class NamedSection(NamedTuple):
    """The values of a section, the line of its header, and its name."""

    name: str
    line: int
    values: Section


def pool_of_supervisord(text: str, directory: str) -> ForeignPool:
    """The pool of a supervisord.conf in `directory` with the files that it includes. Raises Unreadable."""
    pool = ForeignPool()
    read = _sections(text, directory)
    patterns = [values["files"] for name, _, values in read if name == "include" and "files" in values]
    for pattern in patterns:
        read += _included(pool, pattern, directory)
    sections: dict[str, NamedSection] = {}
    for section in read:  # the last value of a key wins, as in supervisord
        earlier = sections.get(section.name, section)
        sections[section.name] = earlier._replace(values=earlier.values | section.values)
    programs = [section for name, section in sections.items() if name.startswith(PROGRAM)]
    if not programs:
        files = ", ".join(pattern.text for pattern in patterns)
        hint = f"there is none in {files} either" if files else "is this a supervisord.conf?"
        raise Unreadable("there is no [program:NAME] in it", hint, 1)
    daemon = sections["supervisord"].values if "supervisord" in sections else {}
    inherited = {key: daemon[key] for key in INHERITED if key in daemon}
    others = {key: value for key, value in daemon.items() if key not in INHERITED}
    _settings(pool, others, SUPERVISORD).remark_unread()
    # supervisord starts them in this order.
    for name, line, values in sorted(programs, key=lambda section: _priority(section.values)):
        _add_program(pool, name.removeprefix(PROGRAM).strip(), line, values, inherited)
    for name, line, values in sections.values():
        if name.startswith(GROUP):
            _tag(pool, name.removeprefix(GROUP).strip(), values)
        elif name == "include":
            _settings(pool, values, {"files": _USED}).remark_unread()
        elif not name.startswith(PROGRAM):
            row = row_of(name, SECTIONS)
            if not row.meaningless:
                pool.remark(f"[{name}]: {row.advice or 'not a section of supervisord'}", line)
    return pool


def _settings(about: Remarked, values: Section, rows: Table) -> Settings:
    table = {key: value.text for key, value in values.items()}
    return Settings(about, table, lambda key: values[key].line, rows, lambda key, text: f"{key}={text}")


def _included(pool: ForeignPool, files: ValueWithLine, directory: str) -> Iterator[NamedSection]:
    """The sections of included files, in the order of supervisord; a remark names one that cannot be read."""
    for pattern in files.text.split():
        for file in sorted(glob.glob(os.path.join(directory, pattern))) or [pattern]:
            path = os.path.join(directory, file)
            try:
                text = read_text(path)
            except Problem as problem:
                pool.remark(f"{file}: {problem.message}", files.line)
                continue
            pool.files.append(path)
            yield from _sections(text, os.path.dirname(path), os.path.relpath(path, directory))


def _sections(text: str, directory: str, file: str = "") -> list[NamedSection]:
    """The sections of a file in `directory`; `file` is the name of an included file. Raises Unreadable."""
    sections: list[NamedSection] = []
    here, key = directory.replace("%", "%%"), ""
    for index, row in enumerate(text.splitlines(), 1):
        line = SourceLine(index, file)
        content = _here.sub(lambda _: here, re.sub(r"(?:^|\s)[;#].*", "", row).rstrip())
        values = sections[-1].values if sections else Section()
        if not content.strip():
            continue
        if content[0].isspace() and key:
            values[key] = values[key]._replace(text=f"{values[key].text}\n{content.strip()}".strip())
        elif header := _section.match(content):
            sections.append(NamedSection(header[1].strip(), line, Section()))
            key = ""
        elif setting := re.fullmatch(r"([^=:]*)[=:](.*)", content):
            key = setting[1].strip().lower()
            values[key] = ValueWithLine(setting[2].strip(), line)
        else:
            raise Unreadable(f"{content.strip()!r} is not KEY=VALUE", "is this a supervisord.conf?", line)
    return sections


def _add_program(pool: ForeignPool, program: str, line: int, values: Section, inherited: Section) -> None:
    """Add the program's server, or a server for each process if a setting contains the process number."""
    values = {**inherited, **values}
    if "environment" in inherited and values["environment"] != inherited["environment"]:
        text, at = values["environment"]
        values["environment"] = ValueWithLine(f"{inherited['environment'].text},{text}", at)
    count, first = values.get("numprocs", NOT_SET).text, values.get("numprocs_start", NOT_SET).text
    processes = int(count) if count.isdigit() else 1
    separate = processes > 1 and any(
        "%(process_num)" in value.text for key, value in values.items() if key != "process_name"
    )
    if separate:
        del values["numprocs"]
    for index in range(processes if separate else 1):
        process = index + (int(first) if first.isdigit() else 0)
        variables: dict[str, object] = {
            "program_name": program, "process_num": process, "numprocs": processes,
            "group_name": program, "host_node_name": socket.gethostname(),
        }  # fmt: skip
        server = pool.add(f"{program}-{process}" if separate else program, line)
        if separate:
            server.set("tags", [program])
        settings = _settings(server, _expanded_values(server, values, variables), SETTINGS)
        settings.apply(server)
        settings.remark_unread()


def _priority(values: Section) -> int:
    text = values.get("priority", NOT_SET).text
    return int(text) if re.fullmatch(r"-?\d+", text) else DEFAULT_PRIORITY


def _expanded_values(server: ForeignServer, values: Section, variables: Mapping[str, object]) -> Section:
    """The values with `%(here)s` and similar expressions replaced; unknown ones become remarks.

    `%(ENV_HOME)s` becomes `${HOME}`.
    """

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        return f"${{{match[2]}}}" if match[1] else str(escaped(match[0] % variables))

    expanded = Section()
    for key, (raw, line) in values.items():
        try:
            expanded[key] = ValueWithLine(_expression.sub(replaced, str(escaped(raw))), line)
        except (KeyError, ValueError, TypeError):
            server.remark(f"{key}={raw}: an expression that is not understood", line)
    return expanded


def _environment(server: ForeignServer, settings: Settings) -> None:
    text = settings.take("environment") or ""
    for name, value in _pair.findall(text):
        server.set_env({name: value.strip().strip("\"'")})
    if rest := _pair.sub("", text).strip(" ,\n"):
        server.remark(f"environment: {rest}: not NAME=VALUE")


def _command(server: ForeignServer, settings: Settings) -> None:
    command = settings.take("command")
    if not command:
        server.leave_out("it has no command")
        return
    try:
        apply_command_words(server, shlex.split(command))
    except ValueError as problem:
        server.set("command", ["sh", "-c", command])
        server.leave_out(f"its command cannot be read ({problem})")


def _restart(server: ForeignServer, settings: Settings) -> None:
    """Set what is supervisord's default, and whether the server is a job."""
    restart = server.keys.get("restart", {})
    if "bind" in server.keys or restart:
        server.set("restart", {"policy": "on-failure", **restart})
    ends = restart.get("policy") == "no" and server.keys.get("ready_after") == "0s"
    if ends and not _foreground.search(settings.peek("command") or ""):
        del server.keys["ready_after"]
        server.set("job", True)
        server.remark(
            'startsecs=0: a job, as it may end at once; for a program that runs on, ready_after = "0s"'
        )


def _log(server: ForeignServer, settings: Settings) -> None:
    path = settings.take("stdout_logfile") or ""
    if path == "syslog":
        settings.remark("stdout_logfile", NO_EQUIVALENT)
    elif path not in _DEFAULT_LOGS:
        server.set("log", {"path": path, **_LOG_SIZE})
    for name, key, convert in (
        ("stdout_logfile_maxbytes", "log.max_size", _size), ("stdout_logfile_backups", "log.keep", number),
    ):  # fmt: skip
        if path in _TO_TERMINAL:
            settings.take(name)  # a stream is not rotated
        else:
            settings.carry(server, name, Becomes(key, convert))
    errors = settings.take("stderr_logfile") or ""
    if errors == "syslog" or errors not in (path, *_DEFAULT_LOGS):
        settings.remark("stderr_logfile", ONE_LOG)


def _tag(pool: ForeignPool, group: str, values: Section) -> None:
    settings = _settings(pool, values, {"programs": _USED, "priority": SETTINGS["priority"]})
    members = {name.strip() for name in values.get("programs", NOT_SET).text.split(",")}
    for server in pool.servers:
        tags = server.keys.get("tags", [])
        if members & {server.name, *tags}:
            server.set("tags", [*tags, re.sub(r"[\s,]+", "-", group)])
    settings.remark_unread()


def _seconds(text: str) -> str | None:
    return f"{text}s" if text.isdigit() or REFERENCE.fullmatch(text) else None


def _size(text: str) -> str:
    return "1TiB" if text == "0" else re.sub(r"(?i)([KMG])B$", r"\1iB", text)  # 0: never rotated


def _boolean(if_true: object, if_false: object) -> Callable[[str], object]:
    values = {**dict.fromkeys(_TRUE, if_true), **dict.fromkeys(_FALSE, if_false)}
    return lambda text: values.get(text.lower())


_USED = Becomes(meaningless="it is read elsewhere")
SETTINGS: Table = {
    "numprocs": Becomes("workers", number),
    "directory": Becomes("cwd", lambda text: os.path.expanduser(text) if re.match("~[^/]", text) else text),
    "user": Becomes("user", lambda text: user_and_group(text, "")),
    "umask": Becomes("umask", lambda text: text.zfill(3)),
    "stopwaitsecs": Becomes("stop_timeout", lambda text: _seconds(text) or text),
    "stopsignal": Becomes("stop_signal", signal_name),
    "environment": _environment,
    "command": _command,
    "autorestart": Becomes("restart.policy", lambda text: _RESTART.get(text.lower())),
    "startsecs": Becomes("ready_after", lambda text: AS_USUAL if text == "1" else _seconds(text)),
    "restart": _restart,
    "autostart": Becomes("on_demand", _boolean(AS_USUAL, True)),
    "stopasgroup": Becomes("stop_group", _boolean("together", AS_USUAL)),
    "stdout_logfile": _log,
    "startretries": Becomes(
        default="3",
        advice="a server that was never ready is given up after 8 restarts in 5m, one that was ready never;"
        " restart.limit would count each of its ends",
    ),
    "priority": Becomes(
        default=str(DEFAULT_PRIORITY), advice="servers start at once; depends_on lets one wait for another"
    ),
    **Becomes.unless(
        stdout_events_enabled="false", stderr_events_enabled="false", stdout_syslog="false", stderr_syslog="false",
        exitcodes="0", serverurl="AUTO", stdout_capture_maxbytes="0", stderr_capture_maxbytes="0",
    ),
    **Becomes.nothing("poolctl numbers the processes of a server", "process_name", "numprocs_start"),
    **Becomes.nothing("a server has one log, of both streams", "redirect_stderr", "stderr_logfile_*"),
    **Becomes.nothing("what is left of a process group after stop_timeout is killed", "killasgroup"),
}  # fmt: skip
INHERITED = ("directory", "user", "umask", "environment")
SUPERVISORD: Table = {
    "minfds": Becomes(default="1024", advice="limits = { open_files } of a server"),
    **Becomes.unless(minprocs="200", strip_ansi="false"),
    **Becomes.nothing("poolctl start and poolctl run are two commands", "nodaemon"),
    **Becomes.nothing("poolctl keeps the logs of its servers in one directory, too", "childlogdir"),
    **Becomes.nothing(
        "of the process supervisord", "logfile", "logfile_maxbytes", "logfile_backups", "loglevel", "pidfile",
        "identifier", "silent", "nocleanup",
    ),
}  # fmt: skip
SECTIONS: Table = {
    "supervisord": _USED,
    **Becomes.nothing(
        "of supervisorctl: poolctl has a socket of its own",
        "unix_http_server",
        "supervisorctl",
        "rpcinterface:*",
    ),
    **Becomes.advised(
        "[[notify]] runs a command for events, mandatory ends the pool with a server", "eventlistener:*"
    ),
    **Becomes.advised(NO_EQUIVALENT, "fcgi-program:*"),
    **Becomes.advised("[dashboard] has an address for browsers", "inet_http_server"),
}
