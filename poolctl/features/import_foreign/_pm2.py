"""An ecosystem file of pm2 as JSON or YAML (https://pm2.keymetrics.io/docs/usage/application-declaration/)."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from typing import Any

from poolctl.config import Document, escaped, needs_shell, read_text
from poolctl.config.values.problems import Problem
from poolctl.features.gateway.program import program_path, program_problem

from ._command_lines import apply_command_words
from ._foreign_pool import PORT, ForeignPool, ForeignServer, Keys, Unreadable, in_seconds, user_and_group
from ._settings import OF_ANOTHER_TYPE, Meaningless, Settings, shown, text_of

_INTERPRETERS = {  # lib/API/interpreter.json
    ".js": "node", ".cjs": "node", ".mjs": "node", ".py": "python3", ".rb": "ruby", ".sh": "bash", ".php": "php",
    ".pl": "perl", ".coffee": "coffee", ".ls": "lsc", ".ts": "bun", ".tsx": "bun",
}  # fmt: skip
_OF_MONITORING = (
    "pmx", "automation", "io", "trace", "disable_trace", "deep_monitoring", "v8", "event_loop_inspector",
)  # fmt: skip
MEANINGLESS: Meaningless = {
    **dict.fromkeys(("merge_logs", "combine_logs"), "a server has one log, of all its processes"),
    **dict.fromkeys(_OF_MONITORING, "of pm2's monitoring"),
    "vizion": "it reads the version of the source for pm2's own pages",
    "windowsHide": "of Windows",
    "force": "of the command pm2 start",
    "exec_mode": "of several processes",
}
DEFAULTS = {  # values that change nothing
    "watch": False, "wait_ready": False, "source_map_support": False, "disable_source_map_support": True,
    "time": False, "disable_logs": False, "shutdown_with_message": False, "append_env_to_name": False,
    "filter_env": False, "cron_restart": 0, "restart_delay": 0, "exp_backoff_restart_delay": 0,
}  # fmt: skip
_OUTPUTS = ("out_file", "out", "output", "out_log", "log_file", "log")
_ERRORS = ("error_file", "error", "err", "err_file", "err_log")
ADVICE = {
    "wait_ready": "notify = true waits for READY=1 on NOTIFY_SOCKET, not for process.send",
    "watch": "poolctl run --watch",
    "ignore_watch": "watch = { exclude } of poolctl run --watch",
    "instance_var": "POOLCTL_INDEX has the number of the process",
    "increment_var": "POOLCTL_INDEX has the number of the process",
    "listen_timeout": "start_timeout limits how long a start takes",
    **dict.fromkeys(("time", "log_date_format"), "poolctl logs shows when a line was written"),
    "source_map_support": "node --enable-source-maps does this",
    **dict.fromkeys(("pid_file", "pid"), "poolctl list -o name,pids shows the pids"),
    **dict.fromkeys((*_OUTPUTS, *_ERRORS), "a server has one log, of both streams"),
}
_SCRIPTS = ("script", "exec", "cmd", "command")
_OPTIONS = ("node_args", "interpreter_args", "interpreterArgs")
# Matches a string; its groups are a comment, a string in single quotes, and a key without quotes. A string or comment
# that is not closed is also matched as a whole: otherwise the time would grow with the square of its length.
_literal = re.compile(
    r""""(?:[^"\\\n]|\\.)*+"?|(//[^\n]*|/\*.*?(?:\*/|\Z))|'((?:[^'\\\n]|\\.)*+)'|'(?:[^'\\\n]|\\.)*+"""
    r"""|(?<![\w$.])([A-Za-z_$][\w$]*+)(?=\s*:)""",
    re.DOTALL,
)
_comma_at_end = re.compile(r'("(?:[^"\\\n]|\\.)*+"?)|,(?=\s*[\]}])')
_NO_LOG = ("/dev/null", "NULL")
# The defaults; the whole tree of processes gets the signal (treekill).
_STOP = {"stop_signal": "SIGINT", "stop_timeout": "1600ms", "stop_group": "together"}
_BACKOFF = {"max": "15s", "factor": 1.5}  # of exp_backoff_restart_delay


def document_of_pm2(path: str) -> Document:
    """The JSON file, which for pm2 may be an object literal of JavaScript, as `pm2 ecosystem` wrote. Raises Problem."""
    try:
        return Document(path)
    except Problem as problem:
        text = read_text(path)
        strict = _json_of_literal(text)
        if strict == text.rstrip():
            raise
        try:
            return Document(path, strict)
        except Problem as other:
            name = os.path.basename(path)
            stem = shlex.quote(name.removesuffix(".json"))
            script = f'JSON.stringify(eval("(" + fs.readFileSync("{name}") + ")"), null, 2)'
            hint = f"print it as JSON, `node -p {shlex.quote(script)} > {stem}-plain.json`, and import that"
            raise Problem(other.message, place=other.place, hint=hint) from problem


def _json_of_literal(text: str) -> str:
    """An object literal of JavaScript as JSON with the same lines; expressions stay, which JSON has not."""

    def replaced(match: re.Match[str]) -> str:
        comment, single, key = match.groups()
        if comment is not None:
            return "\n" * comment.count("\n") or " "
        if single is not None:
            return f'"{_quotes_of_json(single)}"'
        return f'"{key}"' if key else match[0]

    plain = _literal.sub(replaced, text)
    return _comma_at_end.sub(lambda match: match[1] or "", plain).rstrip().removesuffix(";")


def _quotes_of_json(inner: str) -> str:
    """The inner text of a string in single quotes, for double quotes."""
    return re.sub(
        r"""\\.|\"""", lambda match: {"\\'": "'", '"': '\\"'}.get(match[0], match[0]), inner, flags=re.DOTALL
    )


def pool_of_pm2(document: Document) -> ForeignPool:
    """The pool of an ecosystem file. Raises Unreadable."""
    pool, data = ForeignPool(), document.data
    key = next((name for name in ("apps", "pm2") if isinstance(data, dict) and name in data), None)
    file = Settings(pool, {} if key is None else data, lambda *path: document.place(path).line)
    apps = data if key is None else file.take(key)
    root: tuple[str | int, ...] = () if key is None else (key,)
    entries = (
        [((*root, index), app) for index, app in enumerate(apps)]
        if isinstance(apps, list)
        else [(root, apps)]
    )
    for path, values in entries:
        if isinstance(values, dict):
            script = str(next((values[name] for name in _SCRIPTS if values.get(name)), ""))
            stem = os.path.splitext(os.path.basename(script))[0]
            server = pool.add(str(values.get("name") or stem), document.place(path).line)
            app = Settings(server, values, lambda *inner, path=path: document.place((*path, *inner)).line)
            _apply_app(server, app, document.base_dir)
        else:
            pool.remark(f"apps: {shown(values)}: {OF_ANOTHER_TYPE}", document.place(path).line)
    file.remark_unread({})
    if not pool.servers:
        raise Unreadable("there is no app in it", "is this an ecosystem file of pm2?", 1)
    return pool


def _apply_app(server: ForeignServer, app: Settings, directory: str) -> None:
    app.take("name")
    _apply_script(server, app, directory)
    if "command" in server.keys:
        for key, default in _STOP.items():
            server.set(key, default)
    app.carry(server, _KEYS)
    if app.take("treekill", bool) is False:
        server.set_stop_group("leader")
    cwd = str(server.keys.get("cwd", ""))
    for key in _OUTPUTS:
        if "log" not in server.keys:
            app.carry(server, {key: ("log.path", functools.partial(_log_path, cwd))})
    if app.take("autostart", bool) is False:
        server.set("on_demand", True)
    _apply_restart_policy(server, app)
    user, group = text_of(_first(app, ("uid", "user"))), text_of(_first(app, ("gid",)))
    if user or group:
        server.set("user", user_and_group(user or "root", group))
    for key in app:
        if re.fullmatch("env_(?!file$).+", key):
            app.remark(key, "a second file with these, given by another -c, wins over this one")
    cron = f"`poolctl restart {server.name}` in a crontab"
    app.remark_unread(MEANINGLESS, defaults=DEFAULTS, advice={**ADVICE, "cron_restart": cron, "cron": cron})


def _first(app: Settings, names: Iterable[str], *types: type) -> Any:
    """The value of the first of the names that the app has; "" if it has none."""
    return next((value for name in names if (value := app.take(name, *types)) is not None), "")


def _apply_script(server: ForeignServer, app: Settings, directory: str) -> None:
    """Set the app or command; `directory` contains the file."""
    if cwd := app.take("cwd", str):
        server.set("cwd", escaped(cwd))
    env = {str(name): _variable(value) for name, value in (app.take("env", dict) or {}).items()}
    port = env.pop("PORT", "") or text_of(_first(app, ("port",)))
    if env:
        server.set("env", {name: escaped(text) for name, text in env.items()})
    key = next((name for name in _SCRIPTS if name in app), "script")
    script = app.take(key, str) or ""
    if not script.strip():
        server.leave_out("it has no script")
        return
    if script == "serve" and "PM2_SERVE_PATH" in env:
        files = ["python3", "-m", "http.server", "{port}", "--directory", env["PM2_SERVE_PATH"]]
        server.set("command", [script])
        server.leave_out(f"pm2 serves these files itself: write command = {json.dumps(files)}")
        return
    interpreter = _first(app, ("interpreter", "exec_interpreter"), str)
    words, arguments = _as_words(script), _as_words(app.take("args", str, list))
    if needs_shell(script) and " " in script:
        app.remark("args", "pm2 passes none to a line for bash")
        interpreter, words, arguments = "none", ["bash", "-c", script], []
    file = os.path.join(directory, cwd or "", words[0])
    if not interpreter:
        interpreter = _INTERPRETERS.get(os.path.splitext(words[0])[1]) or _interpreter_of_file(file, words[0])
        if interpreter == "bun":
            app.remark(key, "run by bun, as in pm2 6; ts-node and tsx are others")
    elif interpreter.startswith("node@"):
        server.remark(f"interpreter: {interpreter}: write the path of that version of node")
        interpreter = "node"
    elif interpreter != "none" and not os.path.exists(file):
        words[0] = shutil.which(words[0]) or words[0]
    if interpreter != "none":
        options = _first(app, _OPTIONS, str, list)
        words = [interpreter, *_as_words(options), *words]
    server.at = app.line(key)
    apply_command_words(server, [escaped(word) for word in [*words, *arguments]])
    reads_port = port.isdigit() and "bind" not in server.keys
    if reads_port:
        # The program reads PORT and binds the port itself.
        server.add_env("PORT", PORT)
        server.set("bind", f":{port}")
    elif port:
        server.add_env("PORT", port)
    is_node = os.path.basename(interpreter).startswith("node")
    _set_processes(server, app, is_node=is_node, reads_port=reads_port)


def _interpreter_of_file(file: str, script: str) -> str:
    """Return `node`, by which pm2 runs a file of another extension, such as bin/www; `none` for a binary or command."""
    try:
        with open(file, "rb") as opened:
            return "none" if b"\0" in opened.read(1024) else "node"
    except OSError:
        return "node" if "/" in script and not os.path.isabs(script) else "none"


def _set_processes(server: ForeignServer, app: Settings, *, is_node: bool, reads_port: bool) -> None:
    """Set `workers`. The processes of a cluster share a port.

    The processes of a command get a port each behind HAProxy. Without HAProxy, or if the program does not read PORT,
    there is one process.
    """
    mode = (
        app.take("exec_mode", str) or ("cluster" if is_node and "instances" in app else "fork")
    ).removesuffix("_mode")
    instances = app.take("instances")
    server.at = app.line("instances")
    count = "1" if instances is None else text_of(instances)
    processors = os.cpu_count() or 1
    if count in ("max", "0"):
        number = processors
    elif re.fullmatch(r"-?\d+", count):
        number = int(count) if int(count) > 0 else max(processors + int(count), 1)
    else:
        app.remark("instances", "not a number of processes")
        return
    shares_port = number > 1 and "app" not in server.keys and (mode == "cluster" or "bind" in server.keys)
    if shares_port and reads_port and program_problem(program_path(None)) is None:
        server.set("socket", "proxied")
    elif shares_port:
        server.remark(
            f"instances: {count}: one process, as several cannot share its port; workers if it has none"
        )
        return
    server.set("workers", number)
    if count != str(number):
        server.remark(f"instances: {count}: by the number of processors of this machine")


def _apply_restart_policy(server: ForeignServer, app: Settings) -> None:
    server.at = app.line("name")
    server.set("restart.policy", "no" if app.take("autorestart", bool) is False else "always")
    app.carry(server, {"max_restarts": ("restart.limit", int)})
    for key in ("restart.backoff.initial", "restart.backoff.max"):
        app.carry(server, {"restart_delay": (key, _pause)})
    if "backoff" not in server.keys["restart"]:
        app.carry(server, {"exp_backoff_restart_delay": ("restart.backoff.initial", _pause)})
        if backoff := server.keys["restart"].get("backoff"):
            server.set("restart.backoff", {**backoff, **_BACKOFF})


def _variable(value: Any) -> str:
    """The text of a variable; a list or table is JSON, as for pm2."""
    if value is None or isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text_of(value)


def _as_words(value: Any) -> list[str]:
    if not isinstance(value, str):
        return [str(word) for word in value or []]
    try:
        return shlex.split(value)
    except ValueError:
        return [value]


def _milliseconds(text: str) -> str:
    return f"{text}ms" if text.isdigit() else in_seconds(text)


def _log_path(cwd: str, text: str) -> str:
    return "" if text in _NO_LOG else text if text.startswith("~") else os.path.join(cwd, str(escaped(text)))


def _pause(text: str) -> str:
    return _milliseconds(text) if re.fullmatch(r"[1-9][0-9]*(ms|s|m|h)?", text) else ""


def _memory(text: str) -> str | int:
    return int(text) if text.isdigit() else re.sub(r"(?i)([KMG])B?$", r"\1iB", text)


_KEYS: Keys = {
    "max_memory_restart": ("limits.memory", _memory),
    "kill_timeout": ("stop_timeout", _milliseconds),
    "env_file": ("env_file", escaped),
}
