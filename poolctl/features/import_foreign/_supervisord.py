"""Makes a pool from a supervisord.conf, and servers from its programs (http://supervisord.org/configuration.html)."""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from poolctl.config import escaped, read_text
from poolctl.config.values.problems import Problem

from ._command_lines import apply_quoted_command
from ._foreign_pool import (
    REFERENCE,
    ForeignPool,
    ForeignServer,
    Keys,
    Remarked,
    SourceLine,
    Unreadable,
    number,
    signal_name,
    user_and_group,
)
from ._settings import NO_EQUIVALENT, Meaningless, Settings, is_meaningless

PROGRAM = "program:"
GROUP = "group:"
DEFAULT_PRIORITY = 999
MEANINGLESS_SECTIONS: Meaningless = {
    "unix_http_server": "of supervisorctl: poolctl has a socket of its own",
    "supervisorctl": "of supervisorctl: poolctl has a socket of its own",
    "rpcinterface:*": "of supervisorctl: poolctl has a socket of its own",
}
_OF_ITS_PROCESS = "of the process supervisord"
MEANINGLESS_IN_SUPERVISORD: Meaningless = {
    "nodaemon": "poolctl start and poolctl run are two commands",
    "childlogdir": "poolctl keeps the logs of its servers in one directory, too",
    **dict.fromkeys(("logfile", "logfile_maxbytes", "logfile_backups", "loglevel"), _OF_ITS_PROCESS),
    **dict.fromkeys(("pidfile", "identifier", "silent", "nocleanup"), _OF_ITS_PROCESS),
}
MEANINGLESS: Meaningless = {
    "process_name": "poolctl numbers the processes of a server",
    "numprocs_start": "poolctl numbers the processes of a server",
    "redirect_stderr": "a server has one log, of both streams",
    "killasgroup": "what is left of a process group after stop_timeout is killed",
    "stderr_logfile_*": "of stderr_logfile",
}
DEFAULTS = {  # values that change nothing
    "stdout_events_enabled": "false", "stderr_events_enabled": "false", "stdout_syslog": "false",
    "stderr_syslog": "false", "exitcodes": "0", "serverurl": "AUTO", "startsecs": "1", "startretries": "3",
    "stdout_capture_maxbytes": "0", "stderr_capture_maxbytes": "0",
    "priority": str(DEFAULT_PRIORITY), "minfds": "1024", "minprocs": "200", "strip_ansi": "false",
}  # fmt: skip
ADVICE = {
    "startretries": "a server that was never ready is given up after 8 restarts in 5m, one that was ready never;"
    " restart.limit would count each of its ends",
    "priority": "servers start at once; depends_on lets one wait for another",
    "minfds": "limits = { open_files } of a server",
}
INHERITED = ("directory", "user", "umask", "environment")
_LOG_SIZE = {"max_size": "50MiB", "keep": 10}  # the defaults
_NEVER_ROTATED = "1TiB"
_TO_TERMINAL = ("/dev/stdout", "/dev/fd/1", "/dev/stderr", "/dev/fd/2")
_DEFAULT_LOGS = ("", "AUTO", "NONE", *_TO_TERMINAL)  # poolctl run and poolctl logs show them
_RESTART = {
    **dict.fromkeys(("true", "1", "yes", "on"), "always"), "unexpected": "on-failure",
    **dict.fromkeys(("false", "0", "no", "off"), "no"),
}  # fmt: skip
_BOOLEAN = {
    **dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False),
}  # fmt: skip
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
    sections = _sections(text, directory)
    for values in [values for name, _, values in sections if name == "include"]:
        for file, line in _included(values, directory):
            _include(pool, sections, file, line, directory)
    sections = _merged(sections)
    if not any(name.startswith(PROGRAM) for name, _, _ in sections):
        patterns = [
            values["files"].text for name, _, values in sections if name == "include" and "files" in values
        ]
        hint = f"there is none in {', '.join(patterns)} either" if patterns else "is this a supervisord.conf?"
        raise Unreadable("there is no [program:NAME] in it", hint, 1)
    inherited = Section()
    for name, _, values in sections:
        if name == "supervisord":
            inherited = {key: values[key] for key in INHERITED if key in values}
            others = {key: value for key, value in values.items() if key not in inherited}
            _settings(pool, others).remark_unread(
                MEANINGLESS_IN_SUPERVISORD, defaults=DEFAULTS, advice=ADVICE
            )
    # supervisord starts them in this order.
    programs = [section for section in sections if section[0].startswith(PROGRAM)]
    for name, line, values in sorted(programs, key=lambda section: _priority(section[2])):
        _add_program(pool, name.removeprefix(PROGRAM).strip(), line, values, inherited)
    for name, line, values in sections:
        if name.startswith(GROUP):
            _tag(pool, name.removeprefix(GROUP).strip(), values)
        elif name.startswith("eventlistener:"):
            pool.remark(
                f"[{name}]: [[notify]] runs a command for events, mandatory ends the pool with a server", line
            )
        elif name.startswith("fcgi-program:"):
            pool.remark(f"[{name}]: {NO_EQUIVALENT}", line)
        elif name == "inet_http_server":
            pool.remark(f"[{name}]: [dashboard] has an address for browsers", line)
        elif name == "include":
            others = {key: value for key, value in values.items() if key != "files"}
            _settings(pool, others).remark_unread({})
        elif not (
            name == "supervisord" or name.startswith(PROGRAM) or is_meaningless(name, MEANINGLESS_SECTIONS)
        ):
            pool.remark(f"[{name}]: not a section of supervisord", line)
    return pool


def _settings(about: Remarked, values: Section) -> Settings:
    table = {key: value.text for key, value in values.items()}
    return Settings(about, table, lambda key: values[key].line, sign="=")


def _included(values: Section, directory: str) -> Iterator[tuple[str, int]]:
    """The files of an [include], in the order of supervisord; a pattern without files stands for itself."""
    text, line = values.get("files", NOT_SET)
    for pattern in text.split():
        for file in sorted(glob.glob(os.path.join(directory, pattern))) or [pattern]:
            yield file, line


def _include(pool: ForeignPool, sections: list[NamedSection], file: str, line: int, directory: str) -> None:
    """Add the sections of an included file; a remark names one that cannot be read. Raises Unreadable."""
    path = os.path.join(directory, file)
    try:
        text = read_text(path)
    except Problem as problem:
        pool.remark(f"{file}: {problem.message}", line)
        return
    pool.files.append(path)
    sections += _sections(text, os.path.dirname(path), os.path.relpath(path, directory))


def _merged(sections: Iterable[NamedSection]) -> list[NamedSection]:
    """Merge sections of the same name; the last value of a key wins, as in supervisord."""
    merged: dict[str, NamedSection] = {}
    for section in sections:
        if earlier := merged.get(section.name):
            section = earlier._replace(values=earlier.values | section.values)
        merged[section.name] = section
    return list(merged.values())


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
        else:
            key, sign, value = (
                re.split(r"([=:])", content, maxsplit=1) if re.search("[=:]", content) else ("", "", "")
            )
            if not sign:
                raise Unreadable(f"{content.strip()!r} is not KEY=VALUE", "is this a supervisord.conf?", line)
            key = key.strip().lower()
            values[key] = ValueWithLine(value.strip(), line)
    return sections


def _add_program(pool: ForeignPool, program: str, line: int, values: Section, inherited: Section) -> None:
    """Add the program's server, or a server for each process if a setting contains the process number."""
    values = {**inherited, **values}
    if "environment" in inherited and values["environment"] != inherited["environment"]:
        text, at = values["environment"]
        values["environment"] = ValueWithLine(f"{inherited['environment'].text},{text}", at)
    count, first = values.get("numprocs", NOT_SET).text, values.get("numprocs_start", NOT_SET).text
    processes = int(count) if count.isdigit() else 1
    numbered = any("%(process_num)" in value.text for key, value in values.items() if key != "process_name")
    separate = processes > 1 and numbered
    for index in range(processes if separate else 1):
        process = index + (int(first) if first.isdigit() else 0)
        variables: dict[str, object] = {
            "program_name": program, "process_num": process, "numprocs": processes,
            "group_name": program, "host_node_name": socket.gethostname(),
        }  # fmt: skip
        server = pool.add(f"{program}-{process}" if separate else program, line)
        settings = _settings(server, _expanded_values(server, values, variables))
        if separate:
            server.set("tags", [program])
            settings.take("numprocs")
        else:
            settings.carry(server, {"numprocs": ("workers", number)})
        _apply_settings(server, settings)


def _priority(values: Section) -> int:
    text = values.get("priority", NOT_SET).text
    return int(text) if re.fullmatch(r"-?\d+", text) else DEFAULT_PRIORITY


def _expanded_values(server: ForeignServer, values: Section, variables: Mapping[str, object]) -> Section:
    """The values with `%(here)s` and similar expressions replaced; unknown ones become remarks."""
    expanded = Section()
    for key, (raw, line) in values.items():
        try:
            expanded[key] = ValueWithLine(_expanded(raw, variables), line)
        except (KeyError, ValueError, TypeError):
            server.remark(f"{key}={raw}: an expression that is not understood", line)
    return expanded


def _expanded(raw: str, variables: Mapping[str, object]) -> str:
    """The text with `%(here)s` and similar references replaced; `%(ENV_HOME)s` becomes `${HOME}`."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[1]:
            return f"${{{match[2]}}}"
        return str(escaped(match[0] % variables))

    return _expression.sub(replaced, str(escaped(raw)))


def _apply_settings(server: ForeignServer, settings: Settings) -> None:
    settings.carry(server, _KEYS)
    _environment(server, settings.take("environment") or "")
    if command := settings.take("command"):
        apply_quoted_command(server, command)
    else:
        server.leave_out("it has no command")
    _restart(server, settings)
    if _boolean(settings, "autostart") is False:
        server.set("on_demand", True)
    if _boolean(settings, "stopasgroup"):
        server.set_stop_group("together")
    _log(server, settings)
    settings.remark_unread(MEANINGLESS, defaults=DEFAULTS, advice=ADVICE)


def _environment(server: ForeignServer, text: str) -> None:
    for name, value in _pair.findall(text):
        server.set("env", {**server.keys.get("env", {}), name: value.strip().strip("\"'")})
    if rest := _pair.sub("", text).strip(" ,\n"):
        server.remark(f"environment: {rest}: not NAME=VALUE")


def _restart(server: ForeignServer, settings: Settings) -> None:
    settings.carry(server, {"autorestart": ("restart.policy", lambda text: _RESTART.get(text.lower()))})
    settings.carry(server, {"startsecs": ("ready_after", _start_seconds)})
    if "bind" in server.keys or "restart" in server.keys:
        server.set("restart", {"policy": "on-failure", **server.keys.get("restart", {})})
    ends = not _foreground.search(settings.peek("command") or "")
    if (
        ends
        and server.keys.get("restart", {}).get("policy") == "no"
        and server.keys.get("ready_after") == "0s"
    ):
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
    if path not in _TO_TERMINAL:
        settings.carry(server, _SIZES)
    else:
        for key in _SIZES:
            settings.take(key)  # a stream is not rotated
    errors = settings.take("stderr_logfile") or ""
    if errors == "syslog" or errors not in (path, *_DEFAULT_LOGS):
        settings.remark("stderr_logfile", "a server has one log, of both streams")


def _tag(pool: ForeignPool, group: str, values: Section) -> None:
    settings = _settings(pool, values)
    members = [name.strip() for name in (settings.take("programs") or "").split(",")]
    for server in pool.servers:
        if server.name in members or set(server.keys.get("tags", ())) & set(members):
            server.set("tags", [*server.keys.get("tags", ()), re.sub(r"[\s,]+", "-", group)])
    settings.remark_unread({}, defaults=DEFAULTS, advice=ADVICE)


def _boolean(settings: Settings, key: str) -> bool | None:
    """Take a setting that is true or false; None if it is missing or has another value, such as a reference."""
    value = _BOOLEAN.get(str(settings.peek(key)).lower())
    if value is not None:
        settings.take(key)
    return value


def _seconds(text: str) -> str | None:
    return f"{text}s" if text.isdigit() or REFERENCE.fullmatch(text) else None


def _start_seconds(text: str) -> str | None:
    return None if text == "1" else _seconds(text)


def _size(text: str) -> str:
    return _NEVER_ROTATED if text == "0" else re.sub(r"(?i)([KMG])B$", r"\1iB", text)


_KEYS: Keys = {
    "directory": ("cwd", lambda text: os.path.expanduser(text) if re.match("~[^/]", text) else text),
    "user": ("user", lambda text: user_and_group(text, "")),
    "umask": ("umask", lambda text: text.zfill(3)),
    "stopwaitsecs": ("stop_timeout", lambda text: _seconds(text) or text),
    "stopsignal": ("stop_signal", signal_name),
}
_SIZES: Keys = {
    "stdout_logfile_maxbytes": ("log.max_size", _size),
    "stdout_logfile_backups": ("log.keep", number),
}
