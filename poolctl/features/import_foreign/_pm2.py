"""An ecosystem file of pm2 as JSON or YAML (https://pm2.keymetrics.io/docs/usage/application-declaration/)."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

from poolctl.config import Document, escaped

from ._command_lines import apply_command_words
from ._foreign_pool import (
    PORT,
    ForeignPool,
    ForeignServer,
    Unreadable,
    drop_mistyped_values,
    in_seconds,
    user_and_group,
)

_INTERPRETERS = {
    ".js": "node", ".cjs": "node", ".mjs": "node", ".py": "python3", ".rb": "ruby", ".sh": "bash",
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "script": (str,), "args": (str, list), "env": (dict,), "interpreter": (str,), "interpreter_args": (str, list),
    "node_args": (str, list),
}  # fmt: skip
# Keys that need no remark: they are read together with others, or poolctl always behaves that way.
READ = (
    "name", "script", "args", "interpreter", "interpreter_args", "node_args", "cwd", "env", "uid", "gid", "exec_mode",
    "error_file", "err_file", "merge_logs", "combine_logs", "time", "log_date_format", "source_map_support",
    "instance_var", "vizion", "autorestart", "max_restarts", "min_uptime", "restart_delay", "listen_timeout", "pmx",
    "automation", "exec_interpreter", "instances",
)  # fmt: skip


def pool_of_pm2(document: Document) -> ForeignPool:
    """The pool of an ecosystem file. Raises Unreadable."""
    data = document.data
    pool = ForeignPool()
    for index, app in enumerate(data["apps"]):
        if isinstance(app, dict):
            path = ("apps", index)
            script = str(app.get("script", ""))
            stem = os.path.splitext(os.path.basename(script))[0]
            server = pool.add(str(app.get("name") or stem), document.place(path).line)
            reader = _AppReader(server, document, path)
            reader.read(drop_mistyped_values(server, app, TYPES, reader.line))
    for key in data:
        if key != "apps":
            pool.remark(f"{key}: no equivalent", document.place((key,)).line)
    if not pool.servers:
        raise Unreadable("there is no app in it", "is this an ecosystem file of pm2?", 1)
    return pool


class _AppReader:
    def __init__(self, server: ForeignServer, document: Document, path: tuple[str | int, ...]) -> None:
        self.server = server
        self.document = document
        self.path = path

    def line(self, key: str) -> int:
        return self.document.place((*self.path, key)).line

    def read(self, app: dict[str, Any]) -> None:
        server = self.server
        self._apply_app_settings(app)
        for key, value in app.items():
            server.at = self.line(key)
            if re.fullmatch("env_(?!file$).+", key):
                server.remark(f"{key}: a second file with these, given by another -c, wins over this one")
            elif key not in READ:
                self._key(key, value)
        self._apply_restart_policy(app)
        if user := user_and_group(str(app.get("uid", "")), str(app.get("gid", ""))):
            server.set("user", user)

    def _apply_app_settings(self, app: dict[str, Any]) -> None:
        server, script = self.server, str(app.get("script", ""))
        server.at = self.line("script")
        if not script.strip():
            server.leave_out("it has no script")
            return
        interpreter = app.get("interpreter") or app.get("exec_interpreter")
        words = _as_words(script)
        if interpreter is None:
            interpreter = _INTERPRETERS.get(os.path.splitext(words[0])[1], "none")
        if interpreter != "none":
            words = [
                str(interpreter),
                *_as_words(app.get("interpreter_args") or app.get("node_args")),
                *words,
            ]
        words = [escaped(word) for word in [*words, *_as_words(app.get("args"))]]
        env = {str(name): _variable(text) for name, text in (app.get("env") or {}).items()}
        port = env.pop("PORT", "")
        if env:
            server.set("env", {name: escaped(text) for name, text in env.items()})
        if app.get("cwd"):
            server.set("cwd", escaped(str(app["cwd"])))
        apply_command_words(server, words)
        if port.isdigit() and "bind" not in server.keys:
            # The program reads PORT and binds the port itself.
            server.add_env("PORT", PORT)
            server.set("bind", f":{port}")
        elif port:
            server.add_env("PORT", port)
        self._instances(app)

    def _instances(self, app: dict[str, Any]) -> None:
        server = self.server
        server.at = self.line("instances")
        count = app.get("instances", 1)
        number = int(count) if re.fullmatch(r"\d+", str(count)) else 0
        if "bind" in server.keys and "app" not in server.keys:
            if number != 1:
                server.remark(f"instances: {count}: workers, once the program takes the socket ({{fd}})")
        elif number:
            server.set("workers", number)
        else:
            server.set("workers", os.cpu_count() or 1)
            server.remark(f"instances: {count}: as many as this machine has processors")

    def _key(self, key: str, value: Any) -> None:
        server = self.server
        if key == "max_memory_restart":
            text = str(value)
            server.set(
                "limits.memory", re.sub(r"(?i)([KMG])B?$", r"\1iB", text) if not text.isdigit() else int(text)
            )
        elif key == "kill_timeout":
            server.set("stop_timeout", _milliseconds(value))
        elif key == "treekill":
            server.set_stop_group("leader" if value is False else "together")
        elif key in ("out_file", "log_file", "output", "out", "log"):
            if "log" not in server.keys and str(value) not in ("/dev/null", "NULL"):
                server.set("log.path", escaped(str(value)))
        elif key == "env_file":
            server.set("env_file", escaped(str(value)))
        elif key == "wait_ready":
            server.remark(
                "wait_ready: notify = true waits for READY=1 on NOTIFY_SOCKET, not for process.send",
            )
        elif key == "cron_restart":
            if value:
                server.remark(f"cron_restart: {value}: `poolctl restart {server.name}` in a crontab")
        elif key == "watch":
            if value:
                server.remark("watch: poolctl run --watch")
        elif key == "autostart":
            if value is False:
                server.set("on_demand", True)
        elif value not in (False, None, "", [], {}):
            server.remark(f"{key}: {value}: no equivalent")

    def _apply_restart_policy(self, app: dict[str, Any]) -> None:
        server = self.server
        restart: dict[str, Any] = {"policy": "always" if app.get("autorestart", True) else "no"}
        if isinstance(app.get("max_restarts"), int):
            restart["limit"] = app["max_restarts"]
        if app.get("restart_delay"):
            restart["backoff"] = {"initial": _milliseconds(app["restart_delay"])}
        key = "autorestart" if "autorestart" in app else "name"
        server.at = self.line(key)
        server.set("restart", restart)


def _as_words(value: Any) -> list[str]:
    if not isinstance(value, str):
        return [str(each) for each in value or []]
    try:
        return shlex.split(value)
    except ValueError:
        return [value]


def _variable(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _milliseconds(value: Any) -> str:
    return f"{value}ms" if str(value).isdigit() else in_seconds(str(value))
