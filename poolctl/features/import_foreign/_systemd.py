"""Makes a pool with a server for each unit of a service (systemd.service(5), systemd.exec(5))."""

from __future__ import annotations

import glob
import os
import pwd
import re
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from poolctl.config import escaped, read_text
from poolctl.config.files.read_file import EnvFileError, read_env_file
from poolctl.config.values.problems import Problem, Tree

from ._command_lines import apply_command_words
from ._foreign_pool import (
    ForeignPool,
    ForeignServer,
    Keys,
    SourceLine,
    Unreadable,
    signal_name,
    user_and_group,
)
from ._settings import NO_EQUIVALENT, Meaningless, Settings, is_meaningless, shown

MEANINGLESS: Meaningless = {
    "X-*": "systemd ignores it as well",
    "Description": "of systemctl's pages: a server is called by its name",
    "Documentation": "of systemctl's pages: a server is called by its name",
    "NotifyAccess": "each process of a server may notify",
    "RemainAfterExit": "a job stays completed, and so is done for the servers that wait for it",
    "SyslogIdentifier": "poolctl logs names the server of each line",
}
MEANINGLESS_SECTIONS: Meaningless = {
    "X-*": "systemd ignores it as well",
    "Install": "a server starts with its pool, of which `poolctl export systemd` makes a unit",
}
MEANINGLESS_OF_SOCKET: Meaningless = {
    "X-*": "systemd ignores it as well",
    "Service": "the unit that was imported",
}
DEFAULTS_OF_SOCKET = {"Accept": "no"}
DEFAULTS = {  # values that change nothing
    "StandardInput": "null", "SendSIGKILL": "yes", "MemoryMax": "infinity", "MemoryHigh": "infinity",
    "StartLimitIntervalSec": "0", "StartLimitInterval": "0", "StartLimitBurst": "0",
}  # fmt: skip
ADVICE = {
    "ExecReload": "poolctl restart replaces the process, poolctl reload applies this file",
    "WatchdogSec": "health.liveness asks a program whether it works",
}
_RESTART = {"no": "no", "always": "always", "on-failure": "on-failure"}
# poolctl restarts after more exits than these name.
_WIDER_RESTART = {
    "on-success": "always", "on-abnormal": "on-failure", "on-abort": "on-failure", "on-watchdog": "on-failure",
}  # fmt: skip
_STOP_TIMEOUT = "90s"  # DefaultTimeoutStopSec
_START_TIMEOUT = "90s"  # DefaultTimeoutStartSec, until READY=1
_START_LIMIT = {"limit": 5, "window": "10s"}  # DefaultStartLimitBurst, DefaultStartLimitIntervalSec
_NO_LIMIT = "24h"  # stands for infinity
_INSTANCE = "${INSTANCE}"  # of a template
# With `mixed` the main process gets the signal, and the others are killed when it has ended (systemd.kill(5)): here
# they get the signal before that.
_STOP_GROUPS = {"control-group": "together", "process": "leader", "mixed": "after"}
_HOOKS = {"ExecStartPre": "before_start", "ExecStopPost": "after_stop"}
_DEPENDENCIES = ("After", "Before", "Requires", "Wants", "BindsTo", "PartOf", "Sockets")
_WITH_THE_POOL = ("Requires", "Wants")  # the servers of a pool start together
_TO_JOURNAL = (
    "", "inherit", "journal", "journal+console", "syslog", "syslog+console", "kmsg", "kmsg+console",
)  # fmt: skip
_output_file = re.compile("(?:append|file|truncate):(.+)")
_PREFIXES = "-@:+!|"  # prefixes of a command
NETWORK = re.compile(r".*\.(target|socket|slice|mount)|systemd-.*|dbus\.service")
_entry = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*=\s*(.*)", re.DOTALL)
_word_of_variable = re.compile(r"\$[A-Za-z_]\w*")
_variable_in_word = re.compile(r"(?<!\$)(\$\{\w+\})")
_kill = re.compile(r"\bkill\s+(?:-s\s+|-)?(?:([A-Z]+\d?|\d+)\s+)?\$\{?MAINPID")
_quoted_word = re.compile(
    r"""\s*((?:[^\s\\'"]|\\.|\\$|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')+)\s*""", re.DOTALL
)
_part_of_word = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|((?:[^\\'"]|\\.|\\$)+)""", re.DOTALL)
_escape = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3][0-7]{2}|.)", re.DOTALL)
_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " ",
    "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_time = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_UNITS = {
    "": "s", "s": "s", "sec": "s", "second": "s", "seconds": "s", "ms": "ms", "msec": "ms", "m": "m", "min": "m",
    "minute": "m", "minutes": "m", "h": "h", "hr": "h", "hour": "h", "hours": "h", "d": "d", "day": "d", "days": "d",
}  # fmt: skip
_size = re.compile(r"(\d+)([KMGT]?)")


class Setting(NamedTuple):
    """`Name=value` with its section and line."""

    section: str
    name: str
    value: str
    line: int


class Command(NamedTuple):
    """A command of `ExecStart=` and similar: its prefixes, such as `-`, and its words without quotes."""

    setting: Setting
    prefixes: str
    words: list[str]

    @property
    def is_literal(self) -> bool:
        """Whether systemd finds no variable to expand in its words."""
        return ":" in self.prefixes or not any(
            _word_of_variable.fullmatch(word) or _variable_in_word.search(word) for word in self.words
        )

    @property
    def literal_words(self) -> list[str]:
        """The words of a command without variables."""
        return self.words if ":" in self.prefixes else [word.replace("$$", "$") for word in self.words]


def pool_of_units(paths: Sequence[str]) -> ForeignPool:
    """The pool of these units; each server is named after its unit. Raises Problem, Unreadable.

    A unit that is no service's is left out if there are others.
    """
    pool = ForeignPool()
    readers: list[_UnitReader] = []
    for path in paths:
        try:
            readers.append(_reader_of_unit(pool, path, paths[0]))
        except Unreadable as problem:
            if len(paths) == 1:
                raise
            pool.add(_server_name(os.path.basename(path)), problem.line).leave_out(problem.message)
    units = {reader.unit_name: reader for reader in readers}
    for reader in readers:
        reader.read(units)
    for reader in readers:
        if reader.waits_for:
            reader.server.at = next(iter(reader.waits_for.values()))
            waits_for = [units[unit].as_dependency() for unit in reader.waits_for]
            reader.server.set("depends_on", waits_for)
    return pool


def _reader_of_unit(pool: ForeignPool, path: str, first: str) -> _UnitReader:
    """Add a server to the pool; the reader sets its keys. Lines of the unit `first` are shown without a file name."""
    sections: dict[str, list[Setting]] = {}
    beside = os.path.dirname(first)
    file = os.path.relpath(path, beside) if path != first else ""
    for setting in [*_parse_settings(read_text(path), file), *_drop_ins(pool, path, beside)]:
        sections.setdefault(setting.section, []).append(setting)
    starts = _assigned(sections.get("Service", ())).get("ExecStart", [])
    if not starts:
        raise Unreadable("there is no ExecStart in it", "is this the unit of a service?", SourceLine(1, file))
    for section, settings in sections.items():
        if section not in ("Unit", "Service") and not is_meaningless(section, MEANINGLESS_SECTIONS):
            pool.remark(f"[{section}]: not a section of a service", settings[0].line)
    unit = os.path.basename(path)
    return _UnitReader(pool.add(_server_name(unit), starts[0].line), sections, path)


def _server_name(unit: str) -> str:
    return unit.removesuffix(".service").rstrip("@")


def _drop_ins(pool: ForeignPool, path: str, beside: str) -> Iterator[Setting]:
    """Yield the settings in the drop-in files of a unit and of its template. Raises Unreadable.

    Lines show the file relative to the directory `beside`.
    """
    directory, name = os.path.split(path)
    template = re.sub("@.+", "@.service", name)
    files = {
        os.path.basename(file): file
        for unit in (template, name)
        for file in glob.glob(os.path.join(glob.escape(directory), f"{glob.escape(unit)}.d", "*.conf"))
    }
    for _, file in sorted(files.items()):
        pool.files.append(file)
        yield from _parse_settings(read_text(file), os.path.relpath(file, beside))


def _assigned(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """The assignments of each setting, in order; an empty value clears earlier ones, as in systemd."""
    assignments: dict[str, list[Setting]] = {}
    for setting in settings:
        assignments[setting.name] = [*assignments.get(setting.name, ()), setting] if setting.value else []
    return assignments


def _parse_settings(text: str, file: str = "") -> Iterator[Setting]:
    """The settings in order; a line that ends with a backslash continues on the next line. Raises Unreadable.

    `file` is the name of the file if it is not the source.
    """
    section, whole, start = "", "", 0
    for line, row in enumerate(text.splitlines(), 1):
        if not whole:
            start = SourceLine(line, file)
        if row.lstrip().startswith(("#", ";")) or not (row.strip() or whole):
            continue
        if row.endswith("\\"):
            whole += row[:-1] + " "
            continue
        content, whole = (whole + row).strip(), ""
        if content.startswith("["):
            section = content.strip("[]")
        elif entry := _entry.fullmatch(content):
            yield Setting(section, entry[1], entry[2].strip(), start)
        elif content:
            raise Unreadable(f"{content!r} is not NAME=VALUE", "is this a systemd unit?", start)


class _Section:
    """The settings of a section. A setting can be assigned several times."""

    def __init__(self, server: ForeignServer, settings: Iterable[Setting]) -> None:
        self._server = server
        self._assigned = {name: entries for name, entries in _assigned(settings).items() if entries}
        values = {
            name: entries[-1].value
            if name in _OF_ONE_VALUE or len(entries) == 1
            else [entry.value for entry in entries]
            for name, entries in self._assigned.items()
        }
        self.settings = Settings(server, values, lambda name: self._assigned[name][-1].line, sign="=")

    def each(self, name: str) -> Iterator[Setting]:
        """Take the assignments of a setting one by one."""
        self.settings.take(name)
        for setting in self._assigned.get(name, ()):
            self._server.at = setting.line
            yield setting

    def last(self, name: str) -> str:
        """Take the last value of a setting; "" if there is none."""
        self.settings.take(name)
        return self._assigned[name][-1].value if name in self._assigned else ""


class _UnitReader:
    def __init__(self, server: ForeignServer, sections: Mapping[str, list[Setting]], path: str) -> None:
        self.server = server
        self.unit = _Section(server, sections.get("Unit", ()))
        self.service = _Section(server, sections.get("Service", ()))
        self.directory, self.unit_name = os.path.split(path)
        default_instance = _Section(server, sections.get("Install", ())).last("DefaultInstance")
        self.specifiers = _specifiers(
            self.unit_name.removesuffix(".service"), default_instance, self.directory
        )
        self.sockets: list[str] = []
        self.is_listening = False
        self.waits_for: dict[str, int] = {}  # other units, and the lines that say so

    def read(self, units: Mapping[str, _UnitReader]) -> None:
        """Set the keys of the server. `units` become servers of the same pool."""
        server, service = self.server, self.service
        self._user_and_directory()
        self._environment()
        starts = list(service.each("ExecStart"))
        self._start(starts)
        self._type()
        self._stop()
        self._restart()
        service.settings.carry(server, _KEYS)
        for name in ("MemoryMax", "MemoryLimit", "MemoryHigh"):
            if "memory" not in server.keys.get("limits", {}):
                service.settings.carry(server, {name: ("limits.memory", _memory)})
        self._output()
        for name in _HOOKS:
            self._hook(name, list(service.each(name)))
        advice = dict(ADVICE)
        if sends := _kill.search(str(service.settings.peek("ExecStop"))):
            advice["ExecStop"] = f'stop_signal = "{signal_name(sends[1] or "TERM")}" is for this'
        for section in (self.unit, service):
            for name in _DEPENDENCIES:
                for setting in section.each(name):
                    self._dependency(setting, units)
            section.settings.remark_unread(MEANINGLESS, defaults=DEFAULTS, advice=advice)
        server.at = starts[0].line
        socket_unit, timer = (f"{self.specifiers['N']}.{kind}" for kind in ("socket", "timer"))
        if socket_unit not in self.sockets and os.path.exists(os.path.join(self.directory, socket_unit)):
            self._socket(socket_unit, socket_unit)
        if os.path.exists(os.path.join(self.directory, timer)):
            server.remark(f"{timer}: write its OnCalendar as every, of a job")

    def _expanded(self, setting: Setting, text: str) -> str:
        """The text escaped for pool.toml, with specifiers replaced; unknown ones become remarks."""

        def replaced(match: re.Match[str]) -> str:
            value = self.specifiers.get(match[1])
            if value is None or value == _INSTANCE:
                why = NO_EQUIVALENT if value is None else "INSTANCE has to be set, or written here"
                self.server.remark(f"{setting.name}={setting.value}: {match[0]}: {why}", setting.line)
            return match[0] if value is None else value

        return re.sub("%(.)", replaced, str(escaped(text)))

    def _last(self, name: str) -> str:
        """The last value of a setting of the service, with its specifiers replaced; "" if there is none."""
        assignments = list(self.service.each(name))
        return self._expanded(assignments[-1], assignments[-1].value) if assignments else ""

    def _user_and_directory(self) -> None:
        server, user, group = self.server, self._last("User"), self._last("Group")
        if user or group:
            server.set("user", user_and_group(user or "root", group))
        server.set("cwd", self._last("WorkingDirectory").removeprefix("-") or "/")
        if server.keys["cwd"] == "~" and user:
            try:
                server.set("cwd", pwd.getpwnam(user).pw_dir)
            except KeyError:
                server.set("cwd", f"/home/{user}")
                server.remark(f"WorkingDirectory=~: there is no user {user} here whose home it is")

    def _environment(self) -> None:
        server, env = self.server, {}
        for setting in self.service.each("Environment"):
            try:
                words = split_words(setting.value)
            except ValueError as problem:
                server.remark(f"Environment={setting.value}: it cannot be read ({problem})")
                continue
            for assignment in words:
                variable, sign, text = assignment.partition("=")
                if sign:
                    env[variable] = self._expanded(setting, text)
                else:
                    server.remark(f"Environment={setting.value}: {variable} is not NAME=VALUE")
        files = []
        for setting in self.service.each("EnvironmentFile"):
            pattern = self._expanded(setting, setting.value.removeprefix("-"))
            paths = sorted(glob.glob(pattern)) or [pattern]
            if setting.value.startswith("-") and not os.path.exists(paths[0]):
                server.remark(f"EnvironmentFile={setting.value}: the file does not exist here")
                continue
            for path in paths:
                files.append({"path": path, "expand": False})
                self._leave_to_file(setting, path, env)
        if env:
            server.at = self.service.settings.line("Environment")
            server.set("env", env)
        if files:
            server.at = self.service.settings.line("EnvironmentFile")
            server.set("env_file", files)

    def _leave_to_file(self, setting: Setting, path: str, env: dict[str, str]) -> None:
        """Remove from `env` the variables that the file sets: in systemd the file takes precedence, here `env`."""
        try:
            variables, _ = read_env_file(path, os.environ, for_another_user=False)
        except EnvFileError:
            if env:
                why = "it takes precedence over Environment=: take out of env what it sets"
                self.server.remark(f"EnvironmentFile={setting.value}: {why}")
            return
        for variable in variables:
            env.pop(variable, None)

    def _start(self, settings: Sequence[Setting]) -> None:
        """Set the command. The commands of a oneshot run one after the other."""
        server = self.server
        try:
            commands = [command for setting in settings for command in _commands(setting)]
        except ValueError as problem:
            server.at = settings[0].line
            server.set("command", ["sh", "-c", "; ".join(escaped(setting.value) for setting in settings)])
            server.leave_out(f"its command cannot be read ({problem})")
            return
        server.at = settings[0].line
        if self.service.last("Type") == "oneshot" and len(commands) > 1:
            self._remark_prefixes(commands, "+!|@")
            apply_command_words(server, self._words(commands))
            return
        self._remark_prefixes(commands[:1], "-+!|@")
        apply_command_words(
            server, self._words([commands[0]._replace(prefixes=commands[0].prefixes.replace("-", ""))])
        )
        for other in commands[1:]:
            server.remark(
                f"ExecStart={shlex.join(other.words)}: a server has one command", other.setting.line
            )

    def _remark_prefixes(self, commands: Iterable[Command], without: str) -> None:
        """Add a remark for each prefix of a command that has no equivalent (`without`)."""
        for command in commands:
            what = f"{command.setting.name}={command.prefixes}{command.words[0]}"
            for prefix in command.prefixes:
                if prefix in without:
                    why = (
                        "the program is called by its path"
                        if prefix == "@"
                        else f"{NO_EQUIVALENT} of {prefix}"
                    )
                    self.server.remark(f"{what}: {why}", command.setting.line)

    def _words(self, commands: Sequence[Command]) -> list[str]:
        """The words that run the commands in turn until one fails, by a shell if necessary."""
        if len(commands) == 1 and "-" not in commands[0].prefixes:
            (command,) = commands
            if command.is_literal:
                return [self._expanded(command.setting, word) for word in command.literal_words]
            # systemd expands variables of the unit's environment; here a shell does that.
            return ["sh", "-c", f"exec {self._shell_line(command)}"]
        lines = [self._shell_line(command) for command in commands]
        if len(commands) == 1:
            return ["sh", "-c", f"{lines[0]} || true"]
        steps = [
            f"{{ {line} || true; }}" if "-" in command.prefixes else line
            for command, line in zip(commands, lines, strict=True)
        ]
        return ["sh", "-c", " && ".join(steps)]

    def _shell_line(self, command: Command) -> str:
        """The command for a shell that only expands its variables."""
        words = (
            map(shlex.quote, command.literal_words) if command.is_literal else map(_shell_word, command.words)
        )
        return self._expanded(command.setting, " ".join(words))

    def _type(self) -> None:
        server, value = self.server, self.service.last("Type")
        if value == "oneshot":
            server.set("job", True)
        elif value in ("notify", "notify-reload"):
            if "command" in server.keys:
                server.set("notify", True)
                server.set("start_timeout", _START_TIMEOUT)
        elif value == "forking":
            server.remark("Type=forking: have the program stay in the foreground")
        elif value not in ("", "simple", "exec", "idle"):
            self.service.settings.remark("Type", NO_EQUIVALENT)

    def _stop(self) -> None:
        server, settings = self.server, self.service.settings
        if "stop_timeout" not in server.keys:  # an option of the program may have set it
            server.set("stop_timeout", _STOP_TIMEOUT)
        for name, key in (
            ("TimeoutSec", "stop_timeout"),
            ("TimeoutSec", "start_timeout"),
            ("TimeoutStopSec", "stop_timeout"),
            ("TimeoutStartSec", "start_timeout"),
        ):
            settings.carry(server, {name: (key, _timeout)})
        mode = self.service.last("KillMode") or "control-group"
        if mode in _STOP_GROUPS:
            server.set_stop_group(_STOP_GROUPS[mode])
        else:
            settings.remark("KillMode", NO_EQUIVALENT)

    def _restart(self) -> None:
        server = self.server
        value = self.service.last("Restart") or "no"
        server.set("restart.policy", _RESTART.get(value, _WIDER_RESTART.get(value, "no")))
        if value not in _RESTART:
            why = "poolctl restarts it after other exits, too" if value in _WIDER_RESTART else NO_EQUIVALENT
            self.service.settings.remark("Restart", why)
        for key in ("restart.backoff.initial", "restart.backoff.max"):
            self.service.settings.carry(server, {"RestartSec": (key, _duration)})
        sections = (self.service.settings, self.unit.settings)
        is_off = "0" in (section.peek(name) for section in sections for name in _START_LIMIT_INTERVALS)
        for section in sections:
            if is_off:
                section.remark("StartLimitBurst", "an interval of 0 switches it off")
            else:
                section.carry(server, _START_LIMITS)
        restart = server.keys["restart"]
        if restart.keys() & _START_LIMIT.keys():
            server.set("restart", {**_START_LIMIT, **restart})

    def _output(self) -> None:
        for name in ("StandardOutput", "StandardError"):
            value = self._last(name)
            file = _output_file.fullmatch(value)
            log = self.server.keys.get("log", {})
            if file and log.get("path", file[1]) == file[1]:
                self.server.set("log.path", file[1])
            elif value not in _TO_JOURNAL:
                self.service.settings.remark(name, "a server has one log, of both streams")

    def _hook(self, name: str, settings: Iterable[Setting]) -> None:
        """Set a hook from the commands of ExecStartPre or ExecStopPost."""
        commands = []
        for setting in settings:
            try:
                parsed = _commands(setting)
            except ValueError as problem:
                self.server.remark(f"{name}={setting.value}: it cannot be read ({problem})", setting.line)
                continue
            self._remark_prefixes(parsed, "@+!|")
            commands += [command for command in parsed if not set(command.prefixes) & set("@+!|")]
        if commands:
            self.server.at = commands[0].setting.line
            self.server.set(f"hooks.{_HOOKS[name]}", self._words(commands))

    def as_dependency(self) -> dict[str, Tree]:
        """The entry of `depends_on` by which a server waits for this server, as in systemd."""
        keys = self.server.keys
        condition = "completed" if keys.get("job") else "ready" if keys.get("notify") else "started"
        return {"name": self.server.name, "condition": condition}

    def _dependency(self, setting: Setting, units: Mapping[str, _UnitReader]) -> None:
        others = []
        for unit in setting.value.split():
            if unit.endswith(".socket"):
                self._socket(unit, f"{setting.name}={unit}")
            if unit in units and setting.name in ("After", "Before"):
                waiting, awaited = (self, unit) if setting.name == "After" else (units[unit], self.unit_name)
                waiting.waits_for.setdefault(awaited, setting.line)
            elif not NETWORK.fullmatch(unit) and not (unit in units and setting.name in _WITH_THE_POOL):
                others.append(unit)
        if others:
            what = f"{setting.name}={' '.join(others)}"
            self.server.remark(f"{what}: depends_on, once it is a server of this file")

    def _socket(self, unit: str, what: str) -> None:
        """Set the address from a socket unit beside the service unit, once."""
        server = self.server
        if unit in self.sockets:
            return
        self.sockets.append(unit)
        try:
            text = read_text(os.path.join(self.directory, unit))
            settings = [setting._replace(line=server.at) for setting in _parse_settings(text)]
        except (Problem, Unreadable):
            settings = []
        section = _Section(server, (setting for setting in settings if setting.section == "Socket"))
        listening = list(section.each("ListenStream"))
        if not listening:
            server.remark(f"{what}: write its ListenStream as bind")
            return
        if self.is_listening:
            server.remark(f"{what}: a server has one address")
            return
        if server.keys.get("socket") == "program":
            server.remark(f"{what}: the program opens an address of its own")
            return
        self.is_listening = True
        address, *others = (self._expanded(setting, setting.value) for setting in listening)
        for other in others:
            server.remark(f"{unit}: ListenStream={other}: a server has one address")
        if address.startswith(("/", "${")):
            server.set("bind", f"unix:{address}")
            mode, user, group = (section.last(f"Socket{suffix}") for suffix in ("Mode", "User", "Group"))
            if mode:
                server.set("socket_mode", mode)
            if mode or user or group:
                server.set("socket_owner", user_and_group(user or "root", group))
        else:
            server.set("bind", f":{address}" if address.isdigit() else address)
        for name, value, _, why in section.settings.unread(MEANINGLESS_OF_SOCKET, DEFAULTS_OF_SOCKET):
            server.remark(f"{unit}: {name}={shown(value)}: {why}")


def _specifiers(name: str, default_instance: str, directory: str) -> dict[str, str]:
    """What `%n` and similar stand for in the unit `name` (systemd.unit(5)), by letter."""
    prefix, at, instance = name.partition("@")
    if at:
        instance = instance or default_instance or _INSTANCE
    full, host = f"{prefix}{at}{instance}", socket.gethostname()
    last = prefix.rpartition("-")[2]
    return {
        "%": "%", "n": f"{full}.service", "N": full, "p": prefix, "P": _unescaped(prefix), "j": last,
        "J": _unescaped(last), "i": instance, "I": _unescaped(instance), "H": host, "l": host.partition(".")[0],
        "Y": directory, "h": "${HOME}", "u": "${USER}", "s": "${SHELL:-/bin/sh}", "t": "${XDG_RUNTIME_DIR:-/run}",
        "S": "${XDG_STATE_HOME:-/var/lib}", "C": "${XDG_CACHE_HOME:-/var/cache}", "L": "/var/log",
        "E": "${XDG_CONFIG_HOME:-/etc}", "T": "${TMPDIR:-/tmp}", "V": "${TMPDIR:-/var/tmp}",
    }  # fmt: skip


def _unescaped(name: str) -> str:
    """The name without the escapes of systemd-escape(1)."""
    if name == _INSTANCE:
        return name
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name.replace("-", "/"))


def split_words(text: str) -> list[str]:
    """The words of a line with the quotes and escapes of systemd (systemd.syntax(7)). Raises ValueError."""
    return [_unquoted(word) for word in _quoted_words(text)]


def _quoted_words(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _quoted_word.match(text, at)
        if match is None:
            raise ValueError("No closing quotation")
        yield match[1]
        at = match.end()


def _unquoted(word: str) -> str:
    """The word without quotes and escapes. Escapes mean the same in both kinds of quotes; unknown ones stay."""
    inner = (match[1] or match[2] or match[3] or "" for match in _part_of_word.finditer(word))
    return "".join(_escape.sub(_escaped_character, part) for part in inner)


def _escaped_character(match: re.Match[str]) -> str:
    text = match[1]
    if len(text) == 1:
        return _ESCAPES.get(text, match[0])
    code = int(text, 8) if text.isdigit() else int(text[1:], 16)
    return chr(code) if code else match[0]


def _commands(setting: Setting) -> list[Command]:
    """The commands of `ExecStart=` and similar, which a word `;` separates. Raises ValueError."""
    commands: list[list[str]] = [[]]
    for word in _quoted_words(setting.value):
        if word == ";":
            commands.append([])
        else:
            commands[-1].append(";" if word == r"\;" else _unquoted(word))
    parsed = []
    for first, *others in filter(None, commands):
        path = first.lstrip(_PREFIXES)
        prefixes = first[: len(first) - len(path)]
        parsed.append(Command(setting, prefixes, [path, *others["@" in prefixes :]]))
    if not parsed:
        raise ValueError("it is empty")
    return parsed


def _shell_word(word: str) -> str:
    """The word for a shell: `$NAME` is split at spaces, `${NAME}` is not, and all else is literal."""
    if _word_of_variable.fullmatch(word):
        return word
    parts = _variable_in_word.split(word)
    quoted = (
        f'"{part}"' if index % 2 else shlex.quote(part.replace("$$", "$"))
        for index, part in enumerate(parts)
        if part
    )
    return "".join(quoted) or "''"


def _duration(text: str) -> str:
    """A time span (systemd.time(7)) as a duration; "" for any other text."""
    if text == "infinity":
        return _NO_LIMIT
    parts = _time.findall(text)
    if not parts or _time.sub("", text) or any(unit not in _UNITS for _, unit in parts):
        return ""
    return "".join(f"{number}{_UNITS[unit]}" for number, unit in parts)


def _timeout(text: str) -> str:
    """The duration of a timeout; 0 means none."""
    duration = _duration(text)
    return duration if not duration or re.search("[1-9]", duration) else _NO_LIMIT


def _window(text: str) -> str:
    return "" if text == "0" else _duration(text)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) else None


def _memory(text: str) -> str:
    size = _size.fullmatch(text)
    return size[1] + (f"{size[2]}iB" if size[2] else "B") if size else ""


# A value that is not understood (converted to "" or None) becomes a remark.
_KEYS: Keys = {
    "KillSignal": ("stop_signal", signal_name),
    "UMask": ("umask", str),
    "LimitNOFILE": ("limits.open_files", _number),
}
_START_LIMIT_INTERVALS = ("StartLimitIntervalSec", "StartLimitInterval")
_START_LIMITS: Keys = {
    "StartLimitBurst": ("restart.limit", _number),
    **dict.fromkeys(_START_LIMIT_INTERVALS, ("restart.window", _window)),
}
_OF_ONE_VALUE = (
    *(*_KEYS, *_START_LIMITS, "MemoryMax", "MemoryLimit", "MemoryHigh", "RestartSec"),
    *("TimeoutSec", "TimeoutStopSec", "TimeoutStartSec"),
)
