"""Makes a pool with one server from a systemd unit of a service (systemd.service(5), systemd.exec(5))."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from poolctl.config import escaped, read_text
from poolctl.config.values.problems import Problem

from ._command_lines import apply_quoted_command
from ._foreign_pool import ForeignPool, ForeignServer, Keys, Unreadable, signal_name, user_and_group

_RESTART = {
    "no": "no", "always": "always", "on-failure": "on-failure", "on-abnormal": "on-failure",
    "on-abort": "on-failure", "on-watchdog": "on-failure", "on-success": "always",
}  # fmt: skip
# Settings that need no remark: poolctl always behaves that way, or has no use for them.
IMPLIED = (
    "Description", "Documentation", "WantedBy", "ExecReload", "NotifyAccess", "RemainAfterExit",
)  # fmt: skip
# With `mixed` the main process gets the signal, and the others are killed when it has ended (systemd.kill(5)): here
# they get the signal before that.
_STOP_GROUPS = {"control-group": "together", "process": "leader", "mixed": "after"}
_HOOKS = {"ExecStartPre": "before_start", "ExecStopPost": "after_stop"}
_PREFIXES = "-@:+!|"  # prefixes of a command
NETWORK = re.compile(r".*\.(target|socket|slice|mount)|systemd-.*|dbus\.service")
_entry = re.compile(r"([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*)", re.DOTALL)
_variable = re.compile(r"(?<!\$)\$[A-Za-z_{]")
_time = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_UNITS = {
    "": "s", "s": "s", "sec": "s", "second": "s", "seconds": "s", "ms": "ms", "msec": "ms", "m": "m", "min": "m",
    "minute": "m", "minutes": "m", "h": "h", "hr": "h", "hour": "h", "hours": "h",
}  # fmt: skip
_size = re.compile(r"(\d+)([KMGT]?)")


class Setting(NamedTuple):
    """`Name=value` with its section and line."""

    section: str
    name: str
    value: str
    line: int


def pool_of_unit(text: str, name: str) -> ForeignPool:
    """The pool of one unit; the server is named after the unit. Raises Unreadable."""
    pool = ForeignPool()
    settings = list(_parse_settings(text))
    starts: list[Setting] = []
    for each in settings:
        if each.name == "ExecStart":
            starts = [*starts, each] if each.value else []  # as systemd does
    if not starts:
        raise Unreadable("there is no ExecStart in it", "is this the unit of a service?", 1)
    stem = os.path.basename(name).removesuffix(".service").rstrip("@")
    server = pool.add(stem, starts[0].line)
    server.set("cwd", "/")
    of_type = next((each.value for each in settings if each.name == "Type"), "simple")
    if of_type == "oneshot":
        server.set("job", True)
    if len(starts) > 1:
        server.remark(f"ExecStart={starts[1].value}: a server has one command", starts[1].line)
    _set_start(server, starts[0].value, stem)
    user = group = ""
    for each in settings:
        server.at = each.line
        if each.name == "User":
            user = each.value
        elif each.name == "Group":
            group = each.value
        elif each.name != "ExecStart":
            _apply_setting(server, each, stem, os.path.dirname(name))
    if user or group:
        server.set("user", _expand_specifiers(user_and_group(user or "root", group), stem))
    return pool


def _parse_settings(text: str) -> Iterator[Setting]:
    """The settings in order; a line that ends with a backslash continues on the next line. Raises Unreadable."""
    section, whole, start = "", "", 0
    for line, row in enumerate(text.splitlines(), 1):
        if not whole:
            start = line
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


def _set_start(server: ForeignServer, start: str, stem: str) -> None:
    line = start.lstrip(_PREFIXES)
    if "@" in start[: len(start) - len(line)]:
        server.remark("ExecStart=@…: the program has its own name as its first argument")
    if _variable.search(line):
        # systemd expands variables of the unit's environment; here a shell does that.
        server.set("command", ["sh", "-c", f"exec {_for_shell(line, stem)}"])
        return
    apply_quoted_command(server, _expand_specifiers(line.replace("$$", "$"), stem))


def _apply_setting(server: ForeignServer, setting: Setting, stem: str, directory: str) -> None:
    name, value = setting.name, _expand_specifiers(setting.value, stem)
    try:
        words = shlex.split(value) if name == "Environment" or name in _HOOKS else []
    except ValueError as problem:
        server.remark(f"{name}={value}: it cannot be read ({problem})")
        return
    if name in _KEYS and (converted := _KEYS[name][1](value)):
        server.set(_KEYS[name][0], converted)
    elif name == "TimeoutSec" and (limit := _duration(value)):
        server.set("stop_timeout", limit)
        server.set("start_timeout", limit)
    elif name == "Environment":
        for assignment in words:
            variable, _, text = assignment.partition("=")
            server.keys.setdefault("env", {})[variable] = text
    elif name == "EnvironmentFile":
        files = server.keys.setdefault("env_file", [])
        path = value.removeprefix("-")
        if value.startswith("-") and not os.path.exists(path):
            server.remark(f"EnvironmentFile={value}: the file does not exist here")
        else:
            files.append({"path": path, "expand": False})
        if not files:
            del server.keys["env_file"]
    elif name in _HOOKS:
        _apply_hook(server, setting, stem)
    elif name == "Type":
        _apply_type(server, value)
    elif name == "KillMode" and value in _STOP_GROUPS:
        server.set_stop_group(_STOP_GROUPS[value])
    elif name in ("After", "Requires", "Wants", "BindsTo", "PartOf"):
        others = [each for each in value.split() if not NETWORK.fullmatch(each)]
        sockets = [each for each in value.split() if each.endswith(".socket")]
        for unit in sockets:
            listening = _read_socket_unit(os.path.join(directory, unit))
            for key, found in listening.items():
                server.set(key, found)
            if not listening:
                server.remark(f"{name}={unit}: write its ListenStream as bind")
        if others:
            server.remark(f"{name}={' '.join(others)}: depends_on, once it is a server of this file")
    elif name not in IMPLIED and setting.section in ("Service", "Unit"):
        server.remark(f"{name}={value}: no equivalent")


def _apply_hook(server: ForeignServer, setting: Setting, stem: str) -> None:
    """Set a hook from ExecStartPre or ExecStopPost. If the hook is already set, only add a remark to `server`."""
    hook, line = _HOOKS[setting.name], setting.value.lstrip(_PREFIXES)
    prefixes = setting.value[: len(setting.value) - len(line)]
    what = f"{setting.name}={_expand_specifiers(setting.value, stem)}"
    if not line:
        server.keys.get("hooks", {}).pop(hook, None)  # as systemd does
        if not server.keys.get("hooks", True):
            del server.keys["hooks"]
    elif hook in server.keys.get("hooks", {}):
        server.remark(f"{what}: hooks.{hook} is one command; put all of them into a script")
    elif set(prefixes) & set("@+!|"):
        server.remark(f"{what}: no equivalent of {prefixes}")
    elif "-" in prefixes:
        server.set(f"hooks.{hook}", ["sh", "-c", f"{_for_shell(line, stem)} || true"])
    elif _variable.search(line) and ":" not in prefixes:
        server.set(f"hooks.{hook}", ["sh", "-c", f"exec {_for_shell(line, stem)}"])
    else:
        server.set(f"hooks.{hook}", shlex.split(_expand_specifiers(line.replace("$$", "$"), stem)))


def _apply_type(server: ForeignServer, value: str) -> None:
    if value in ("notify", "notify-reload"):
        if "command" in server.keys:
            server.set("notify", True)
    elif value == "forking":
        server.remark("Type=forking: have the program stay in the foreground")
    elif value not in ("simple", "exec", "oneshot", "idle"):
        server.remark(f"Type={value}: no equivalent")


def _read_socket_unit(path: str) -> dict[str, str]:
    """The address of a socket unit as keys of a server; {} if the file cannot be read or has no ListenStream."""
    try:
        found = {each.name: each.value for each in _parse_settings(read_text(path)) if each.value}
    except Problem:
        return {}
    listen = found.get("ListenStream", "")
    if not listen.startswith("/"):
        return {"bind": f":{listen}" if listen.isdigit() else listen} if listen else {}
    keys = {"bind": f"unix:{listen}"}
    if "SocketMode" in found:
        keys["socket_mode"] = found["SocketMode"]
    if found.keys() & {"SocketMode", "SocketUser", "SocketGroup"}:
        keys["socket_owner"] = user_and_group(found.get("SocketUser", "root"), found.get("SocketGroup", ""))
    return keys


def _duration(text: str) -> str:
    """A time span (systemd.time(7)) as a duration; "" for `infinity` and any other text."""
    parts = _time.findall(text)
    if not parts or _time.sub("", text) or any(unit not in _UNITS for _, unit in parts):
        return ""
    return "".join(f"{number}{_UNITS[unit]}" for number, unit in parts)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _memory(text: str) -> str:
    size = _size.fullmatch(text)
    return size[1] + (f"{size[2]}iB" if size[2] else "B") if size else ""


# A setting whose value is not understood (converted to "" or None) becomes a remark.
_KEYS: Keys = {
    "WorkingDirectory": ("cwd", lambda value: value.removeprefix("-")),
    "Restart": ("restart.policy", lambda value: _RESTART.get(value, "on-failure")),
    "RestartSec": ("restart.backoff.initial", _duration),
    "StartLimitBurst": ("restart.limit", _number),
    "StartLimitIntervalSec": ("restart.window", _duration),
    "StartLimitInterval": ("restart.window", _duration),
    "TimeoutStopSec": ("stop_timeout", _duration),
    "TimeoutStartSec": ("start_timeout", _duration),
    "KillSignal": ("stop_signal", signal_name),
    "UMask": ("umask", str),
    "LimitNOFILE": ("limits.open_files", _number),
    "MemoryMax": ("limits.memory", _memory),
    "MemoryLimit": ("limits.memory", _memory),
    "MemoryHigh": ("limits.memory", _memory),
}


def _for_shell(line: str, stem: str) -> str:
    """The command line for `sh -c`: `$$`, a dollar sign in systemd but the process id in a shell, is escaped."""
    return _expand_specifiers(line.replace("$$", r"\$"), stem)


def _expand_specifiers(text: str, stem: str) -> str:
    """The text escaped for pool.toml; replaces specifiers whose values are known, such as %n (systemd.unit(5))."""
    known = {
        "%": "%",
        "n": f"{stem}.service",
        "N": stem,
        "p": stem,
        "h": "${HOME}",
        "t": "${XDG_RUNTIME_DIR:-/run}",
    }
    return re.sub("%([%nNpht])", lambda match: known[match[1]], escaped(text))
