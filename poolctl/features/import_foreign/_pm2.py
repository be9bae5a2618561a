"""An ecosystem file of pm2 as JSON or YAML (https://pm2.keymetrics.io/docs/usage/application-declaration/)."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from typing import Any

from poolctl.config import Document, escaped, needs_shell, read_text
from poolctl.config.values.problems import Problem
from poolctl.features.gateway.program import program_path, program_problem

from ._command_lines import apply_command_words
from ._foreign_pool import PORT, ForeignPool, ForeignServer, Unreadable, in_seconds, user_and_group
from ._settings import OF_ANOTHER_TYPE, ONE_LOG, Becomes, Settings, Table, shown, text_of

_INTERPRETERS = {  # lib/API/interpreter.json
    ".js": "node", ".cjs": "node", ".mjs": "node", ".py": "python3", ".rb": "ruby", ".sh": "bash", ".php": "php",
    ".pl": "perl", ".coffee": "coffee", ".ls": "lsc", ".ts": "bun", ".tsx": "bun",
}  # fmt: skip
_OUTPUTS = ("out_file", "out", "output", "out_log", "log_file", "log")
_LOGS = "poolctl logs shows when a line was written"
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
    file = Settings(pool, {} if key is None else data, lambda *path: document.place(path).line, {})
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
            app = Settings(
                server, values, lambda *inner, path=path: document.place((*path, *inner)).line, APP
            )
            _apply_app(server, app, document.base_dir)
        else:
            pool.remark(f"apps: {shown(values)}: {OF_ANOTHER_TYPE}", document.place(path).line)
    file.remark_unread()
    if not pool.servers:
        raise Unreadable("there is no app in it", "is this an ecosystem file of pm2?", 1)
    return pool


def _apply_app(server: ForeignServer, app: Settings, directory: str) -> None:
    """Set the keys of the server; `directory` contains the file."""
    _apply_script(server, app, directory)
    if "command" in server.keys:
        for key, default in _STOP.items():
            server.set(key, default)
    app.apply(server)
    if (log := server.keys.get("log")) and not log["path"].startswith("~"):
        log["path"] = os.path.join(str(server.keys.get("cwd", "")), log["path"])
    if (backoff := server.keys["restart"].get("backoff")) and "max" not in backoff:
        backoff |= _BACKOFF
    user, group = text_of(_first(app, ("uid", "user"))), text_of(_first(app, ("gid",)))
    if user or group:
        server.set("user", user_and_group(user or "root", group))
    for key in app:
        if re.fullmatch("env_(?!file$).+", key):
            app.remark(key, "a second file with these, given by another -c, wins over this one")
    for key in ("cron_restart", "cron"):
        if app.peek(key) != 0:
            app.remark(key, f"`poolctl restart {server.name}` in a crontab")
    app.remark_unread()


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
        server.set_env({"PORT": PORT})
        server.set("bind", f":{port}")
    elif port:
        server.set_env({"PORT": escaped(port)})
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


def _log_path(text: str) -> str:
    return "" if text in ("/dev/null", "NULL") else str(escaped(text))


def _pause(text: str) -> str:
    return _milliseconds(text) if re.fullmatch(r"[1-9][0-9]*(ms|s|m|h)?", text) else ""


def _memory(text: str) -> str | int:
    return int(text) if text.isdigit() else re.sub(r"(?i)([KMG])B?$", r"\1iB", text)


def _if_false(name: str, key: str, value: object) -> Callable[[ForeignServer, Settings], None]:
    return lambda server, app: server.set(key, value) if app.take(name, bool) is False else None


def _restart(server: ForeignServer, app: Settings) -> None:
    server.at = app.line("name")
    server.set("restart.policy", "no" if app.take("autorestart", bool) is False else "always")


APP: Table = {
    "max_memory_restart": Becomes("limits.memory", _memory),
    "kill_timeout": Becomes("stop_timeout", _milliseconds),
    "env_file": Becomes("env_file", escaped),
    "treekill": _if_false("treekill", "stop_group", "leader"),
    **dict.fromkeys(_OUTPUTS, Becomes("log.path", _log_path, unless_set=True, advice=ONE_LOG)),
    "autostart": _if_false("autostart", "on_demand", True),
    "autorestart": _restart,
    "max_restarts": Becomes("restart.limit", int),
    "restart_delay": Becomes("restart.backoff.initial restart.backoff.max", _pause, default=0),
    "exp_backoff_restart_delay": Becomes("restart.backoff.initial", _pause, unless_set=True, default=0),
    "wait_ready": Becomes(
        default=False, advice="notify = true waits for READY=1 on NOTIFY_SOCKET, not for process.send"
    ),
    "watch": Becomes(default=False, advice="poolctl run --watch"),
    "source_map_support": Becomes(default=False, advice="node --enable-source-maps does this"),
    "time": Becomes(default=False, advice=_LOGS),
    **Becomes.advised(_LOGS, "log_date_format"),
    **Becomes.advised("watch = { exclude } of poolctl run --watch", "ignore_watch"),
    **Becomes.advised("POOLCTL_INDEX has the number of the process", "instance_var", "increment_var"),
    **Becomes.advised("start_timeout limits how long a start takes", "listen_timeout"),
    **Becomes.advised("poolctl list -o name,pids shows the pids", "pid_file", "pid"),
    **Becomes.advised(ONE_LOG, "error_file", "error", "err", "err_file", "err_log"),
    **Becomes.unless(
        disable_source_map_support=True, disable_logs=False, shutdown_with_message=False, append_env_to_name=False,
        filter_env=False, cron_restart=0,
    ),
    **Becomes.nothing("a server is called by it", "name"),
    **Becomes.nothing("a server has one log, of all its processes", "merge_logs", "combine_logs"),
    **Becomes.nothing(
        "of pm2's monitoring", "pmx", "automation", "io", "trace", "disable_trace", "deep_monitoring", "v8",
        "event_loop_inspector",
    ),
    **Becomes.nothing("it reads the version of the source for pm2's own pages", "vizion"),
    **Becomes.nothing("of Windows", "windowsHide"),
    **Becomes.nothing("of the command pm2 start", "force"),
    **Becomes.nothing("of several processes", "exec_mode"),
}  # fmt: skip
