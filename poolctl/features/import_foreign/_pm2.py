"""An ecosystem file of pm2 as JSON or YAML (https://pm2.keymetrics.io/docs/usage/application-declaration/)."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

from poolctl.config import Document, escaped

from ._command_lines import apply_command_words
from ._foreign_pool import PORT, ForeignPool, ForeignServer, Keys, Unreadable, in_seconds, user_and_group
from ._settings import Meaningless, Settings, text_of

_INTERPRETERS = {  # pm2's interpreter.json
    ".js": "node", ".cjs": "node", ".mjs": "node", ".py": "python3", ".rb": "ruby", ".sh": "bash", ".php": "php",
    ".pl": "perl", ".coffee": "coffee", ".ls": "lsc", ".ts": "bun", ".tsx": "bun",
}  # fmt: skip
MEANINGLESS: Meaningless = {
    "merge_logs": "a server has one log, of all its processes",
    "combine_logs": "a server has one log, of all its processes",
    "vizion": "it reads the version of the source for pm2's own pages",
    "pmx": "of pm2's own monitoring",
    "automation": "of pm2's own monitoring",
}
DEFAULTS = {  # values that change nothing
    "watch": False, "exec_mode": "fork", "autostart": True, "wait_ready": False, "source_map_support": False,
    "time": False, "disable_logs": False, "force": False, "ignore_watch": [], "cron_restart": 0, "restart_delay": 0,
}  # fmt: skip
_LOGS = ("out_file", "output", "out", "log_file", "log")
_NO_LOG = ("/dev/null", "NULL")
ADVICE = {
    "wait_ready": "notify = true waits for READY=1 on NOTIFY_SOCKET, not for process.send",
    "watch": "poolctl run --watch",
    "ignore_watch": "watch = { exclude } of poolctl run --watch",
    "instance_var": "POOLCTL_INDEX has the number of the process",
    "listen_timeout": "start_timeout limits how long a start takes",
    "time": "poolctl logs shows when a line was written",
    "log_date_format": "poolctl logs shows when a line was written",
    "source_map_support": "node --enable-source-maps does this",
    **dict.fromkeys((*_LOGS, "error_file", "err_file"), "a server has one log, of both streams"),
}


def pool_of_pm2(document: Document) -> ForeignPool:
    """The pool of an ecosystem file. Raises Unreadable."""
    pool = ForeignPool()
    file = Settings(pool, document.data, lambda *path: document.place(path).line)
    for index, values in enumerate(file.take("apps", list)):
        if isinstance(values, dict):
            path = ("apps", index)
            stem = os.path.splitext(os.path.basename(str(values.get("script", ""))))[0]
            server = pool.add(str(values.get("name") or stem), document.place(path).line)
            app = Settings(server, values, lambda *inner, path=path: document.place((*path, *inner)).line)
            _apply_app(server, app, document.base_dir)
    file.remark_unread({})
    if not pool.servers:
        raise Unreadable("there is no app in it", "is this an ecosystem file of pm2?", 1)
    return pool


def _apply_app(server: ForeignServer, app: Settings, directory: str) -> None:
    app.take("name")
    _apply_script(server, app, directory)
    app.carry(server, _KEYS)
    for key in _LOGS:
        if "log" not in server.keys:
            app.carry(server, {key: ("log.path", lambda path: "" if path in _NO_LOG else escaped(path))})
    if (treekill := app.take("treekill", bool)) is not None:
        server.set_stop_group("together" if treekill else "leader")
    if app.take("autostart", bool) is False:
        server.set("on_demand", True)
    _apply_restart_policy(server, app)
    if user := user_and_group(text_of(app.take("uid") or ""), text_of(app.take("gid") or "")):
        server.set("user", user)
    for key in app:
        if re.fullmatch("env_(?!file$).+", key):
            app.remark(key, "a second file with these, given by another -c, wins over this one")
    advice = {**ADVICE, "cron_restart": f"`poolctl restart {server.name}` in a crontab"}
    app.remark_unread(MEANINGLESS, defaults=DEFAULTS, advice=advice)


def _apply_script(server: ForeignServer, app: Settings, directory: str) -> None:
    """Set the app or command; `directory` is that of the file."""
    interpreter = app.take("interpreter", str) or app.take("exec_interpreter", str)
    options = app.take("interpreter_args", str, list) or app.take("node_args", str, list)
    arguments = app.take("args", str, list)
    if cwd := app.take("cwd", str):
        server.set("cwd", escaped(cwd))
    env = {str(name): text_of(text) for name, text in (app.take("env", dict) or {}).items()}
    port = env.pop("PORT", "")
    if env:
        server.set("env", {name: escaped(text) for name, text in env.items()})
    script = app.take("script", str) or ""
    if not script.strip():
        server.leave_out("it has no script")
        return
    words = _as_words(script)
    if interpreter is None:
        file = os.path.join(directory, cwd or "", words[0])
        interpreter = _INTERPRETERS.get(os.path.splitext(words[0])[1]) or _interpreter_of_file(file, words[0])
        if interpreter == "bun":
            server.remark(f"script: {script}: run by bun, as in pm2 6; ts-node and tsx are others")
    if interpreter != "none":
        words = [interpreter, *_as_words(options), *words]
    elif options:
        server.remark(f"interpreter_args: {' '.join(_as_words(options))}: {script} has no interpreter")
    apply_command_words(server, [escaped(word) for word in [*words, *_as_words(arguments)]])
    if port.isdigit() and "bind" not in server.keys:
        # The program reads PORT and binds the port itself.
        server.add_env("PORT", PORT)
        server.set("bind", f":{port}")
    elif port:
        server.add_env("PORT", port)
    _instances(server, app)


def _interpreter_of_file(file: str, script: str) -> str:
    """Return `node`, by which pm2 runs a file of another extension, such as bin/www; `none` for a binary or command."""
    try:
        with open(file, "rb") as opened:
            return "none" if b"\0" in opened.read(1024) else "node"
    except OSError:
        return "node" if "/" in script and not os.path.isabs(script) else "none"


def _instances(server: ForeignServer, app: Settings) -> None:
    app.take("exec_mode")
    instances = app.take("instances")
    count = "1" if instances is None else text_of(instances)
    number = int(count) if count.isdigit() else 0
    if "bind" in server.keys and "app" not in server.keys:
        if number != 1:
            server.remark(f"instances: {count}: workers, once the program takes the socket ({{fd}})")
    elif number:
        server.set("workers", number)
    else:
        server.set("workers", os.cpu_count() or 1)
        server.remark(f"instances: {count}: as many as this machine has processors")


def _apply_restart_policy(server: ForeignServer, app: Settings) -> None:
    server.at = app.line("name")
    server.set("restart.policy", "no" if app.take("autorestart", bool) is False else "always")
    app.carry(
        server, {"max_restarts": ("restart.limit", int), "restart_delay": ("restart.backoff.initial", _pause)}
    )


def _as_words(value: Any) -> list[str]:
    if not isinstance(value, str):
        return [str(each) for each in value or []]
    try:
        return shlex.split(value)
    except ValueError:
        return [value]


def _milliseconds(text: str) -> str:
    return f"{text}ms" if text.isdigit() else in_seconds(text)


def _pause(text: str) -> str:
    return "" if text == "0" else _milliseconds(text)


def _memory(text: str) -> str | int:
    return int(text) if text.isdigit() else re.sub(r"(?i)([KMG])B?$", r"\1iB", text)


_KEYS: Keys = {
    "max_memory_restart": ("limits.memory", _memory),
    "kill_timeout": ("stop_timeout", _milliseconds),
    "env_file": ("env_file", escaped),
}
