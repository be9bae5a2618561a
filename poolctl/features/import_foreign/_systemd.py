"""Units of services (systemd.service(5), systemd.exec(5)) with their drop-ins and sockets."""

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
from ._foreign_pool import ForeignPool, ForeignServer, SourceLine, Unreadable, signal_name, user_and_group
from ._settings import NO_EQUIVALENT, ONE_LOG, Becomes, Settings, Table, row_of, shown

_RESTART = {"no": "no", "always": "always", "on-failure": "on-failure"}
# Values for which poolctl restarts after more kinds of exits than systemd.
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
_WITH_THE_POOL = ("Requires", "Wants")  # the servers of a pool start together
_TO_JOURNAL = (
    "", "inherit", "journal", "journal+console", "syslog", "syslog+console", "kmsg", "kmsg+console",
)  # fmt: skip
_output_file = re.compile("(?:append|file|truncate):(.+)")
_PREFIXES = "-@:+!|"  # prefixes of a command
_network = re.compile(r".*\.(target|socket|slice|mount)|systemd-.*|dbus\.service")
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
    units: list[_Unit] = []
    for path in paths:
        server = pool.add(os.path.basename(path).removesuffix(".service").rstrip("@"), 0)
        try:
            units.append(_Unit(pool, server, path, paths[0]))
        except Unreadable as problem:
            if len(paths) == 1:
                raise
            server.line = problem.line
            server.leave_out(problem.message)
    by_name = {unit.name: unit for unit in units}
    for unit in units:
        unit.apply(by_name)
    for unit in units:
        if unit.waits_for:
            unit.server.at = next(iter(unit.waits_for.values()))
            unit.server.set("depends_on", [by_name[name].as_dependency() for name in unit.waits_for])
    return pool


def _drop_ins(path: str) -> list[str]:
    """The drop-in files of a unit and of its template."""
    directory, name = os.path.split(path)
    files = {
        os.path.basename(file): file
        for unit in (re.sub("@.+", "@.service", name), name)
        for file in glob.glob(os.path.join(glob.escape(directory), f"{glob.escape(unit)}.d", "*.conf"))
    }
    return [file for _, file in sorted(files.items())]


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


class _Section(Settings):
    """The settings of a section. A setting can be assigned several times; an empty value clears earlier ones."""

    def __init__(
        self, server: ForeignServer, settings: Iterable[Setting], rows: Table, prefix: str = ""
    ) -> None:
        assigned: dict[str, list[Setting]] = {}
        for setting in settings:
            assigned[setting.name] = [*assigned.get(setting.name, ()), setting] if setting.value else []
        values = {
            name: entries[-1].value
            if name in _OF_ONE_VALUE or len(entries) == 1
            else [entry.value for entry in entries]
            for name, entries in assigned.items()
            if entries
        }
        self._server, self._assigned = server, assigned
        super().__init__(
            server,
            values,
            lambda name: assigned[name][-1].line,
            rows,
            lambda name, value: f"{prefix}{name}={shown(value)}",
        )

    def each(self, name: str) -> Iterator[Setting]:
        """Take the assignments of a setting one by one."""
        self.take(name)
        for setting in self._assigned.get(name, ()):
            self._server.at = setting.line
            yield setting

    def last(self, name: str) -> str:
        """Take the last value of a setting; "" if there is none."""
        return next((setting.value for setting in reversed([*self.each(name)])), "")


class _Unit:
    """A unit, and its server. Lines of the unit `first` are shown without a file name, others relative to it."""

    def __init__(self, pool: ForeignPool, server: ForeignServer, path: str, first: str) -> None:
        self.server = server
        self.directory, self.name = os.path.split(path)
        sections: dict[str, list[Setting]] = {}
        drop_ins = _drop_ins(path)
        pool.files += drop_ins
        for file in (path, *drop_ins):
            relative = os.path.relpath(file, os.path.dirname(first)) if file != first else ""
            for setting in _parse_settings(read_text(file), relative):
                sections.setdefault(setting.section, []).append(setting)
        self.unit = _Section(server, sections.get("Unit", ()), _COMMON)
        self.service = _Section(server, sections.get("Service", ()), SERVICE)
        self.starts = [*self.service.each("ExecStart")]
        if not self.starts:
            file = os.path.relpath(path, os.path.dirname(first)) if path != first else ""
            raise Unreadable(
                "there is no ExecStart in it", "is this the unit of a service?", SourceLine(1, file)
            )
        for section, settings in sections.items():
            if section not in ("Unit", "Service") and not row_of(section, SECTIONS).meaningless:
                pool.remark(f"[{section}]: not a section of a service", settings[0].line)
        instance = _Section(server, sections.get("Install", ()), {}).last("DefaultInstance")
        self.specifiers = _specifiers(self.name.removesuffix(".service"), instance, self.directory)
        server.line = server.at = self.starts[0].line
        self.others: Mapping[str, _Unit] = {}
        self.sockets: list[str] = []
        self.is_listening = False
        self.waits_for: dict[str, int] = {}  # other units, and the lines that say so

    def apply(self, units: Mapping[str, _Unit]) -> None:
        """Set the keys of the server. `units` become servers of the same pool."""
        server, self.others = self.server, units
        self.service.apply(server, self)
        for section in (self.unit, self.service):
            self._dependencies(section)
            section.remark_unread()
        server.at = self.starts[0].line
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
        assignments = [*self.service.each(name)]
        return self._expanded(assignments[-1], assignments[-1].value) if assignments else ""

    def _user_and_directory(self, service: _Section) -> None:
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

    def _environment(self, service: _Section) -> None:
        server, env, files = self.server, {}, []
        for setting in service.each("Environment"):
            try:
                words = [_unquoted(word) for word in _quoted_words(setting.value)]
            except ValueError as problem:
                server.remark(f"Environment={setting.value}: it cannot be read ({problem})")
                continue
            for assignment in words:
                variable, sign, text = assignment.partition("=")
                if sign:
                    env[variable] = self._expanded(setting, text)
                else:
                    server.remark(f"Environment={setting.value}: {variable} is not NAME=VALUE")
        for setting in service.each("EnvironmentFile"):
            pattern = self._expanded(setting, setting.value.removeprefix("-"))
            paths = sorted(glob.glob(pattern)) or [pattern]
            if setting.value.startswith("-") and not os.path.exists(paths[0]):
                server.remark(f"EnvironmentFile={setting.value}: the file does not exist here")
                continue
            for path in paths:
                files.append({"path": path, "expand": False})
                # In systemd the file takes precedence, here `env`.
                try:
                    for variable in read_env_file(path, os.environ, for_another_user=False)[0]:
                        env.pop(variable, None)
                except EnvFileError:
                    if env:
                        why = "it takes precedence over Environment=: take out of env what it sets"
                        server.remark(f"EnvironmentFile={setting.value}: {why}")
        for name, key, value in (("Environment", "env", env), ("EnvironmentFile", "env_file", files)):
            if value:
                server.at = service.line(name)
                server.set(key, value)

    def _start(self, service: _Section) -> None:
        """Set the command. The commands of a oneshot run one after the other."""
        server = self.server
        server.at = self.starts[0].line
        try:
            commands = [command for setting in self.starts for command in _commands(setting)]
        except ValueError as problem:
            server.set("command", ["sh", "-c", "; ".join(escaped(setting.value) for setting in self.starts)])
            server.leave_out(f"its command cannot be read ({problem})")
            return
        if service.last("Type") == "oneshot" and len(commands) > 1:
            self._remark_prefixes(commands, "+!|@")
        else:
            for other in commands[1:]:
                server.remark(
                    f"ExecStart={shlex.join(other.words)}: a server has one command", other.setting.line
                )
            del commands[1:]
            self._remark_prefixes(commands, "-+!|@")
            commands = [commands[0]._replace(prefixes=commands[0].prefixes.replace("-", ""))]
        server.at = self.starts[0].line
        apply_command_words(server, self._words(commands))

    def _remark_prefixes(self, commands: Iterable[Command], without: str) -> None:
        """Add a remark for each prefix of a command that has no equivalent (`without`)."""
        for command in commands:
            what = f"{command.setting.name}={command.prefixes}{command.words[0]}"
            for prefix in set(command.prefixes) & set(without):
                why = "the program is called by its path" if prefix == "@" else f"{NO_EQUIVALENT} of {prefix}"
                self.server.remark(f"{what}: {why}", command.setting.line)

    def _words(self, commands: Sequence[Command]) -> list[str]:
        """The words that run the commands in turn until one fails, by a shell if necessary."""
        command, *others = commands
        if not others and "-" not in command.prefixes:
            if command.is_literal:
                return [self._expanded(command.setting, word) for word in command.literal_words]
            # systemd expands variables of the unit's environment; here a shell does that.
            return ["sh", "-c", f"exec {self._shell_line(command)}"]
        lines = [self._shell_line(command) for command in commands]
        if not others:
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

    def _type(self, service: _Section) -> None:
        server, value = self.server, service.last("Type")
        if value == "oneshot":
            server.set("job", True)
        elif value in ("notify", "notify-reload"):
            if "command" in server.keys:
                server.set("notify", True)
                server.set("start_timeout", _START_TIMEOUT)
        elif value == "forking":
            server.remark("Type=forking: have the program stay in the foreground")
        elif value not in ("", "simple", "exec", "idle"):
            service.remark("Type", NO_EQUIVALENT)
        if "stop_timeout" not in server.keys:  # an option of the program may have set it
            server.set("stop_timeout", _STOP_TIMEOUT)

    def _kill_mode(self, service: _Section) -> None:
        mode = service.last("KillMode") or "control-group"
        if mode in _STOP_GROUPS:
            self.server.set("stop_group", _STOP_GROUPS[mode])
        else:
            service.remark("KillMode", NO_EQUIVALENT)

    def _restart(self, service: _Section) -> None:
        value = service.last("Restart") or "no"
        self.server.set("restart.policy", _RESTART.get(value, _WIDER_RESTART.get(value, "no")))
        if value not in _RESTART:
            is_wider = value in _WIDER_RESTART
            service.remark(
                "Restart", "poolctl restarts it after other exits, too" if is_wider else NO_EQUIVALENT
            )
        service.carry(self.server, "RestartSec", _RESTART_DELAY)
        sections = (service, self.unit)
        is_off = "0" in (section.peek(name) for section in sections for name in _START_LIMIT_INTERVALS)
        for section in sections:
            if is_off:
                section.remark("StartLimitBurst", "an interval of 0 switches it off")
            else:
                section.apply(self.server, rows=_START_LIMITS)
        restart = self.server.keys["restart"]
        if restart.keys() & _START_LIMIT.keys():
            self.server.set("restart", {**_START_LIMIT, **restart})

    def _output(self, service: _Section) -> None:
        for name in ("StandardOutput", "StandardError"):
            value = self._last(name)
            file = _output_file.fullmatch(value)
            log = self.server.keys.get("log", {})
            if file and log.get("path", file[1]) == file[1]:
                self.server.set("log.path", file[1])
            elif value not in _TO_JOURNAL:
                service.remark(name, ONE_LOG)

    def _hooks(self, service: _Section) -> None:
        for name, hook in (("ExecStartPre", "before_start"), ("ExecStopPost", "after_stop")):
            commands = []
            for setting in service.each(name):
                try:
                    parsed = _commands(setting)
                except ValueError as problem:
                    self.server.remark(f"{name}={setting.value}: it cannot be read ({problem})")
                    continue
                self._remark_prefixes(parsed, "@+!|")
                commands += [command for command in parsed if not set(command.prefixes) & set("@+!|")]
            if commands:
                self.server.at = commands[0].setting.line
                self.server.set(f"hooks.{hook}", self._words(commands))

    def _stop(self, service: _Section) -> None:
        if sends := _kill.search(str(service.peek("ExecStop"))):
            service.remark("ExecStop", f'stop_signal = "{signal_name(sends[1] or "TERM")}" is for this')

    def as_dependency(self) -> dict[str, Tree]:
        """The entry of `depends_on` by which a server waits for this server, as in systemd."""
        keys = self.server.keys
        condition = "completed" if keys.get("job") else "ready" if keys.get("notify") else "started"
        return {"name": self.server.name, "condition": condition}

    def _dependencies(self, section: _Section) -> None:
        for name in ("After", "Before", "Requires", "Wants", "BindsTo", "PartOf", "Sockets"):
            for setting in section.each(name):
                missing = [unit for unit in setting.value.split() if self._is_missing(setting, unit)]
                if missing:
                    self.server.remark(
                        f"{name}={' '.join(missing)}: depends_on, once it is a server of this file"
                    )

    def _is_missing(self, setting: Setting, name: str) -> bool:
        """Take a dependency on a unit. Returns whether it should have been one of the pool."""
        if name.endswith(".socket"):
            self._socket(name, f"{setting.name}={name}")
        if other := self.others.get(name):
            if setting.name in ("After", "Before"):
                waiting, awaited = (self, other) if setting.name == "After" else (other, self)
                waiting.waits_for.setdefault(awaited.name, setting.line)
                return False
            return setting.name not in _WITH_THE_POOL
        return not _network.fullmatch(name)

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
        of_socket = (setting for setting in settings if setting.section == "Socket")
        section = _Section(server, of_socket, SOCKET, prefix=f"{unit}: ")
        listening = [*section.each("ListenStream")]
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
        section.remark_unread()


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


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) else None


def _memory(text: str) -> str:
    size = _size.fullmatch(text)
    return size[1] + (f"{size[2]}iB" if size[2] else "B") if size else ""


_START_LIMIT_INTERVALS = ("StartLimitIntervalSec", "StartLimitInterval")
_START_LIMITS: Table = {
    "StartLimitBurst": Becomes("restart.limit", _number),
    **dict.fromkeys(
        _START_LIMIT_INTERVALS, Becomes("restart.window", lambda text: "" if text == "0" else _duration(text))
    ),
}
_RESTART_DELAY = Becomes("restart.backoff.initial restart.backoff.max", _duration)
_COMMON: Table = {
    "ExecReload": Becomes(advice="poolctl restart replaces the process, poolctl reload applies this file"),
    "WatchdogSec": Becomes(advice="health.liveness asks a program whether it works"),
    **Becomes.unless(StandardInput="null", SendSIGKILL="yes"),
    **Becomes.unless(StartLimitIntervalSec="0", StartLimitInterval="0", StartLimitBurst="0"),
    **Becomes.nothing("systemd ignores it as well", "X-*"),
    **Becomes.nothing("of systemctl's pages: a server is called by its name", "Description", "Documentation"),
    **Becomes.nothing("each process of a server may notify", "NotifyAccess"),
    **Becomes.nothing(
        "a job stays completed, and so is done for the servers that wait for it", "RemainAfterExit"
    ),
    **Becomes.nothing("poolctl logs names the server of each line", "SyslogIdentifier"),
}
SERVICE: Table = {
    "User": _Unit._user_and_directory,
    "Environment": _Unit._environment,
    "ExecStart": _Unit._start,
    "Type": _Unit._type,
    "TimeoutSec": Becomes("stop_timeout start_timeout", _timeout),
    "TimeoutStopSec": Becomes("stop_timeout", _timeout),
    "TimeoutStartSec": Becomes("start_timeout", _timeout),
    "KillMode": _Unit._kill_mode,
    "Restart": _Unit._restart,
    "KillSignal": Becomes("stop_signal", signal_name),
    "UMask": Becomes("umask"),
    "LimitNOFILE": Becomes("limits.open_files", _number),
    "MemoryMax": Becomes("limits.memory", _memory, default="infinity"),
    "MemoryLimit": Becomes("limits.memory", _memory, unless_set=True),
    "MemoryHigh": Becomes("limits.memory", _memory, unless_set=True, default="infinity"),
    "StandardOutput": _Unit._output,
    "ExecStartPre": _Unit._hooks,
    "ExecStop": _Unit._stop,
    **_COMMON,
}
SOCKET: Table = {
    **Becomes.unless(Accept="no"),
    **Becomes.nothing("systemd ignores it as well", "X-*"),
    **Becomes.nothing("the unit that was imported", "Service"),
}
SECTIONS: Table = {
    **Becomes.nothing("systemd ignores it as well", "X-*"),
    **Becomes.nothing(
        "a server starts with its pool, of which `poolctl export systemd` makes a unit", "Install"
    ),
}
_OF_ONE_VALUE = {*_START_LIMITS, "RestartSec"} | {
    name for name, row in SERVICE.items() if isinstance(row, Becomes) and row.key
}
