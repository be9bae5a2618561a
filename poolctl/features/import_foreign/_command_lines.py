"""Command lines: uvicorn, and gunicorn with an ASGI worker, become `app = …`; others become `command = …`.

A Procfile (foreman, honcho, overmind, Heroku) has one command line per entry: `name: shell command line`.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from poolctl.config import escaped, needs_shell

from ._foreign_pool import (
    PORT,
    ForeignPool,
    ForeignServer,
    Unreadable,
    bind_address,
    in_seconds,
    number,
    user_and_group,
)
from ._known_servers import apply_known_server, apply_known_server_of_script, program_of
from ._launchers import SHELLS, CommandLine, without_launchers
from ._settings import Becomes, Settings, Table, row_of, shown

DEFAULT_PORT = "8000"  # the default port of uvicorn and gunicorn
ASGI_WORKERS = ("uvicorn.workers.", "uvicorn_worker.", "asgi")
_PASSWORD = "--ssl-keyfile-password"
_CLIENT_AUTH = {"0": "none", "1": "optional", "2": "required"}
_call = re.compile(r"([^()]+)\((.*)\)", re.DOTALL)
_umask = re.compile("(?:0o?)?[0-7]{1,3}")


class _NotParsed(Exception):
    """The arguments do not match the program's documented options."""


def pool_of_command(words: Sequence[str]) -> ForeignPool:
    """The pool of one command line, as in `poolctl import -- gunicorn …`. Raises Unreadable."""
    pool = ForeignPool()
    program = without_launchers(words).words
    if not program:
        raise Unreadable("there is no command", "poolctl import -- gunicorn app:app --bind :8000")
    modules = (word for word in program[1:] if re.fullmatch(r"[A-Za-z_][\w.]*:[\w.()]+", word))
    module = next(modules, os.path.basename(program[0]))
    server = pool.add(module.partition(":")[0].rpartition(".")[2], 0)
    apply_command_words(server, [escaped(word) for word in words])
    return pool


def apply_command_words(server: ForeignServer, words: list[str], port: str = "") -> None:
    """Set the server's app or command from the words, and the keys of pool.toml that correspond to the options.

    `port` is the port that the other tool assigns, or ""; `{port}` in the words stands for it.
    """
    line = without_launchers(words, server.keys.get("env", {}).get("PORT", ""))
    for name, value in line.env.items():
        server.keys.setdefault("env", {})[name] = value
    if line.user:
        server.set("user", line.user)
    if line.python:
        line.python = _resolved(server, line.python)
    if line.directory:
        server.set("cwd", _resolved(server, line.directory))
    if line.python:
        is_absolute = os.path.isabs(line.python)
        bin_parent = line.python if is_absolute else os.path.relpath(line.python, server.keys.get("cwd", "."))
        server.keys.setdefault("env", {})["PATH"] = f"{bin_parent}/bin:${{PATH}}"
    if _apply_as_app(server, line, port) or not line.words:
        return
    if os.path.basename(line.words[0]) in SHELLS and len(line.words) > 2:
        server.set("command", line.argv)
        apply_known_server_of_script(server, line.words[-1], port)
    else:
        apply_known_server(server, line, port)
    if port and "bind" not in server.keys and any(PORT in word for word in line.words):
        everywhere = any(f"0.0.0.0:{PORT}" in word or word == "0.0.0.0" for word in line.words)
        server.set("bind", f"{'0.0.0.0' if everywhere else '127.0.0.1'}:{port}")


def _apply_as_app(server: ForeignServer, line: CommandLine, port: str) -> bool:
    """Apply a command line of uvicorn or gunicorn. Returns False for another program or if launchers must stay."""
    program = program_of(line.words)
    reader = {"uvicorn": _apply_uvicorn_options, "gunicorn": _apply_gunicorn_options}.get(program.name)
    if reader is None or (line.launchers and not line.python_launcher):
        return False
    keys, remarks = dict(server.keys), list(server.remarks)
    try:
        reader(server, line.words, line.words[program.first :], port)
    except (_NotParsed, argparse.ArgumentError, ValueError) as problem:
        server.keys, server.remarks = keys, remarks
        server.remark(f"{program.name}: {problem}: taken over as a program like any other")
        server.set("command", line.argv)
        return True
    if "app" in server.keys:
        _set_paths(server, line)
    elif line.launchers:
        server.keys, server.remarks = keys, remarks
        return False
    return True


def _set_paths(server: ForeignServer, line: CommandLine) -> None:
    """Set the app's interpreter and directory; relative paths of its options start from its working directory.

    uvicorn and gunicorn look for the app in the working directory, poolctl beside its file.
    """
    cwd, program = server.keys.get("cwd", ""), program_of(line.words)
    if directory := os.path.dirname(program.interpreter or line.words[0]):
        server.set("python", _resolved(server, program.interpreter or os.path.join(directory, "python3")))
    elif line.python:
        server.set("python", line.python)
    elif line.python_launcher and line.python_launcher != "uv run":
        server.remark(f"{line.python_launcher}: name its environment as `python`, unless it is .venv")
    for flag in program.flags:
        if flag != "-u":  # not needed: an app's output is not buffered
            server.remark(f"{program.interpreter} {flag}: no equivalent")
    if app_dir := server.keys.get("app_dir", "") or cwd:
        server.set("app_dir", cwd if app_dir == cwd else _resolved(server, app_dir))
    for key in ("cert", "key", "ca"):
        if key in server.keys.get("tls", {}):
            server.set(f"tls.{key}", _resolved(server, server.keys["tls"][key]))


def _resolved(server: ForeignServer, path: str) -> str:
    return path if path.startswith("${") else os.path.join(server.keys.get("cwd", ""), path)


def _proxies(value: str) -> list[str]:
    return [address.strip() for address in value.split(",") if address.strip()]


def _stop_timeout(value: str) -> str:
    # poolctl gives requests in progress 80 % of stop_timeout.
    return f"{math.ceil(float(value) / 0.8)}s"


def _recovery(timeout: str) -> dict[str, Any]:
    return {"heartbeat": 0} if float(timeout) == 0 else {"stuck_after": in_seconds(timeout)}


_TLS = {
    "certfile": Becomes("tls.cert"),
    "keyfile": Becomes("tls.key"),
    "ca-certs": Becomes("tls.ca"),
    "cert-reqs": Becomes("tls.client_auth", lambda value: _CLIENT_AUTH.get(value, value)),
    "ciphers": Becomes("tls.ciphers"),
}
_OF_BOTH: Table = {
    "--workers": Becomes("workers", number),
    "--root-path": Becomes("http.root_path"),
    "--forwarded-allow-ips": Becomes("http.trusted_proxies", _proxies),
    "--log-level": Becomes("http.log_level", str.lower),
    "--reload": Becomes(advice="poolctl run --watch reloads the code"),
    "--http2": Becomes(advice="the gateway speaks HTTP/2"),
}
UVICORN: Table = {
    **_OF_BOTH,
    **{f"--ssl-{option}": row for option, row in _TLS.items()},
    "--app-dir": Becomes("app_dir"),
    "--loop": Becomes("http.loop"),
    "--http": Becomes(
        "http.implementation", lambda value: value if value in ("auto", "h11", "httptools") else "",
        advice="an app is served with httptools or h11",
    ),
    "--ws": Becomes("http.websocket"),
    "--limit-concurrency": Becomes("http.max_concurrency", number),
    "--limit-max-requests": Becomes("http.max_requests", number),
    "--timeout-keep-alive": Becomes("http.keep_alive", in_seconds),
    "--timeout-graceful-shutdown": Becomes("stop_timeout", _stop_timeout),
    "--h11-max-incomplete-event-size": Becomes("http.max_head_size", number),
    "--factory": Becomes("factory", bool),
    "--access-log": Becomes("http.access_log", lambda value: value == "true"),
    "--date-header": Becomes(default=True),
    "--server-header": Becomes(default=True),
    "--lifespan": Becomes(default="auto"),
    _PASSWORD: Becomes(advice='tls.password_env = "VARIABLE" names where the password is'),
    **Becomes.nothing("the output of a server goes to its log", "--use-colors"),
}  # fmt: skip
GUNICORN: Table = {
    **_OF_BOTH,
    **{f"--{option}": row for option, row in _TLS.items()},
    "--chdir": Becomes("cwd"),
    "--keep-alive": Becomes("http.keep_alive", in_seconds),
    "--max-requests": Becomes("http.max_requests", number),
    "--worker-connections": Becomes("http.max_connections", number),
    "--graceful-timeout": Becomes("stop_timeout", _stop_timeout),
    "--umask": Becomes("umask"),
    "--preload": Becomes("preload", bool),
    "--timeout": Becomes("recovery", _recovery),
    "--daemon": Becomes(advice="poolctl start runs it in the background"),
    "--pid": Becomes(advice="poolctl list -o name,pids shows the pids"),
    "--config": Becomes(advice="its settings were not read"),
    "--error-logfile": Becomes(default="-", advice="the log of a server has it too"),
    "--asgi-loop": Becomes(default="auto"),
    "--asgi-lifespan": Becomes(default="auto"),
    "--forwarder-headers": Becomes(default="SCRIPT_NAME,PATH_INFO"),
    **Becomes.nothing("poolctl names its processes after their servers", "--name"),
    **Becomes.nothing(
        "the log of a server has all that its processes print",
        "--enable-stdio-inheritance",
        "--capture-output",
    ),
    **Becomes.nothing("of gunicorn's heartbeat: poolctl's is not a file", "--worker-tmp-dir"),
    **Becomes.nothing(
        "of gunicorn's master process: there is none", "--no-control-socket", "--control-socket*"
    ),
    **Becomes.nothing("gunicorn would end after it", "--check-config", "--print-config"),
}
# Options that take a value, switches with --no-…, and flags. An unknown option's value would be taken for the app.
_UVICORN_OPTIONS = """
    --host --port --uds --fd --reload-dir --reload-include --reload-exclude --reload-delay --ws-max-size --ws-max-queue
    --ws-ping-interval --ws-ping-timeout --ws-per-message-deflate --env-file --interface --log-config --backlog
    --limit-max-requests-jitter --header --timeout-worker-healthcheck --ssl-version --workers --root-path --app-dir
    --forwarded-allow-ips --log-level --ssl-certfile --ssl-keyfile --ssl-keyfile-password --ssl-ca-certs --ssl-cert-reqs
    --ssl-ciphers --loop --http --ws --lifespan --limit-concurrency --limit-max-requests --timeout-keep-alive
    --timeout-graceful-shutdown --h11-max-incomplete-event-size
"""
_UVICORN_SWITCHES = "--access-log --use-colors --proxy-headers --server-header --date-header"
_UVICORN_FLAGS = "--reload --http2 --reset-contextvars --version --factory"
_GUNICORN_OPTIONS = """
    -w/--workers -m/--umask -c/--config -t/--timeout -p/--pid -n/--name -u/--user -g/--group -k/--worker-class --backlog
    --threads --max-requests-jitter --limit-request-line --limit-request-fields --limit-request-field_size
    --reload-engine --access-logfile --access-logformat --log-file/--error-logfile --logger-class --log-config
    --log-config-json --log-syslog-to --log-syslog-prefix --log-syslog-facility --statsd-host --dogstatsd-tags
    --statsd-prefix --pythonpath --paster/--paste --proxy-allow-from --protocol --uwsgi-allow-from --ssl-version
    --http-protocols --http2-cleartext --http2-max-concurrent-streams --http2-initial-window-size --http2-max-frame-size
    --http2-max-header-list-size --header-map --asgi-disconnect-grace-period --http-parser --websocket-max-message-size
    --dirty-workers --dirty-timeout --dirty-threads --dirty-graceful-timeout --control-socket --control-socket-mode
    --worker-tmp-dir --root-path --forwarded-allow-ips --log-level --certfile --keyfile --ca-certs --cert-reqs --ciphers
    --chdir --keep-alive --max-requests --worker-connections --graceful-timeout --asgi-loop --asgi-lifespan
    --forwarder-headers
"""
_GUNICORN_LISTS = "-b/--bind -e/--env --reload-extra-file --paste-global --dirty-app"
_GUNICORN_FLAGS = """
    --reload --spew --check-config --print-config --preload --no-sendfile --reuse-port -D/--daemon --initgroups
    --disable-redirect-access-to-syslog --capture-output --log-syslog -R/--enable-stdio-inheritance
    --enable-backlog-metric --suppress-ragged-eofs --do-handshake-on-connect --permit-obsolete-folding
    --strip-header-spaces --permit-unconventional-http-method --permit-unconventional-http-version
    --casefold-http-method --no-control-socket
"""
# Removed, with this number of values, from a gunicorn that poolctl runs as a program with its own workers.
_OVERRIDDEN_OPTIONS = {"-b": 1, "--bind": 1, "-D": 0, "--daemon": 0, "-p": 1, "--pid": 1, "--reload": 0}


def _options(
    server: ForeignServer,
    arguments: list[str],
    rows: Table,
    values: str,
    flags: str,
    repeated: str = "",
    switches: str = "",
) -> Settings:
    """The options by their long names, unknown ones included; `app` is the first positional argument.

    Options take values, which form a list if they are `repeated`; `switches` have a `--no-…`. Raises
    argparse.ArgumentError.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    actions: list[tuple[Any, str]] = [
        ("store", values), ("append", repeated), ("store_true", flags),
        (argparse.BooleanOptionalAction, switches),
    ]  # fmt: skip
    for action, options in actions:
        for option in options.split():
            names = option.split("/")
            parser.add_argument(*names, dest=names[-1], action=action, default=None)
    parser.add_argument("app", nargs="?")
    parsed, unknown = parser.parse_known_args(arguments)
    found: dict[str, Any] = {word.partition("=")[0]: word.partition("=")[2] or True for word in unknown}
    found |= {key: value for key, value in vars(parsed).items() if value is not None}
    return Settings(server, found, lambda *_: server.at, rows, _shown_option)


def _shown_option(option: str, value: Any) -> str:
    if value is True or option == _PASSWORD:
        return option
    return f"{option} {'no' if value is False else shown(value)}"


def _apply_uvicorn_options(server: ForeignServer, words: list[str], arguments: list[str], port: str) -> None:
    options = _options(
        server, arguments, UVICORN, _UVICORN_OPTIONS, _UVICORN_FLAGS, switches=_UVICORN_SWITCHES
    )
    interface = options.take("--interface") or "auto"
    if interface == "asgi2":
        raise _NotParsed("--interface asgi2")
    _set_app(server, options.take("app") or "", "")
    if socket := options.take("--uds"):  # wins over host and port
        server.set("bind", f"unix:{_resolved(server, socket)}")
    else:
        host, own_port = options.take("--host") or "127.0.0.1", options.take("--port") or DEFAULT_PORT
        server.set("bind", bind_address(host, own_port.replace(PORT, port)))
    options.apply(server)
    if file := options.take("--env-file"):
        # The environment takes precedence over this file, and so do the files after it in `env_file`.
        server.set("env_file", [_resolved(server, file), *server.keys.get("env_file", [])])
    trusts_proxies = options.take("--proxy-headers")
    if trusts_proxies and "--forwarded-allow-ips" not in options:
        server.set("http.trusted_proxies", ["127.0.0.1"])
    if trusts_proxies is not False and "trusted_proxies" in server.keys.get("http", {}):
        server.set("http.proxy_headers", True)
    if interface != "auto":
        server.set("interface", interface.removesuffix("3"))
    options.remark_unread()


def _apply_gunicorn_options(server: ForeignServer, words: list[str], arguments: list[str], port: str) -> None:
    options = _options(server, arguments, GUNICORN, _GUNICORN_OPTIONS, _GUNICORN_FLAGS, _GUNICORN_LISTS)
    binds = [address.replace(PORT, port or DEFAULT_PORT) for address in options.take("--bind") or []]
    # Without --bind, gunicorn listens on $PORT if it is set.
    address = _bind(binds[0]) if binds else f":{port}" if port else f"127.0.0.1:{DEFAULT_PORT}"
    path = address.removeprefix("unix:")
    server.set("bind", address if path == address else f"unix:{_resolved(server, path)}")
    for other in binds[1:]:
        server.remark(f"--bind {other}: a server has one address")
    umask = options.take("--umask") or ""
    is_socket = server.keys["bind"].startswith("unix:")
    if is_socket and _umask.fullmatch(umask):
        server.set("socket_mode", f"{0o666 & ~int(umask, 8):04o}")
    owner = user_and_group(options.take("--user") or "", options.take("--group") or "")
    worker_class = options.take("--worker-class") or ""
    if worker_class.startswith(ASGI_WORKERS):
        if owner:
            server.set("user", owner)
        _apply_asgi_gunicorn_options(server, options, worker_class)
        return
    # Gunicorn keeps its options, except those that poolctl replaces.
    server.set("command", _without_options(words, _OVERRIDDEN_OPTIONS))
    if is_socket and owner:
        server.set("socket_owner", owner)
    if options.take("--certfile"):
        server.set("expose", "https://" + bind_address("localhost", server.keys["bind"].rpartition(":")[2]))
    if limit := options.take("--graceful-timeout"):
        server.set("stop_timeout", in_seconds(str(int(limit) + 5)))
    if not binds and (config := options.take("--config")):
        server.remark(f"{config}: where it has a bind, write that one here")
    for option in ("--daemon", "--pid", "--reload"):
        if options.take(option):
            server.remark(f"{option}: {row_of(option, GUNICORN).advice}")


def _apply_asgi_gunicorn_options(server: ForeignServer, options: Settings, worker_class: str) -> None:
    _set_app(server, options.take("app") or "", "application")
    cwd = server.keys.get("cwd", "")
    options.apply(server)
    if "--chdir" in options:
        server.keys["cwd"] = os.path.join(cwd, server.keys["cwd"])
    for index, path in enumerate((options.take("--pythonpath") or "").split(",")):
        if index:
            server.remark(f"--pythonpath {path}: app_dir is one directory")
        elif path:
            server.set("app_dir", path)
    if access_log := options.take("--access-logfile"):
        server.set("http.access_log", True)
        if access_log != "-":
            server.remark(f"--access-logfile {access_log}: the log of a server has its requests too")
    if worker_class.endswith("H11Worker"):
        server.set("http.implementation", "h11")
    if "trusted_proxies" in server.keys.get("http", {}):
        server.set("http.proxy_headers", True)
    for assignment in options.take("--env") or []:
        name, _, value = assignment.partition("=")
        server.keys.setdefault("env", {})[name] = value
    options.remark_unread()


def _set_app(server: ForeignServer, text: str, attribute: str) -> None:
    called = _call.fullmatch(text)
    if called and called[2].strip():
        raise _NotParsed(f"{text}: an app that is called with arguments")
    app = called[1] if called else text
    if ":" not in app and attribute and app:
        app = f"{app}:{attribute}"
    if not app or ":" not in app:
        raise _NotParsed("no module:attribute among its arguments")
    server.set("app", app)
    if called:
        server.set("factory", True)


def _without_options(words: list[str], options: Mapping[str, int]) -> list[str]:
    """Return `words` without the `options` (numbers of values by name) and their values."""
    remaining, skipped = [], 0
    for word in words:
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        if skipped:
            skipped -= 1
        elif name in options and (word.startswith("--") or options[name] or word == name):
            skipped = options[name] if word == name else 0
        else:
            remaining.append(word)
    return remaining


def _bind(text: str) -> str:
    """The value of `bind` for an address in gunicorn's notation (HOST, HOST:PORT, unix:PATH). Raises _NotParsed."""
    if text.startswith("unix:"):
        return "unix:" + text.removeprefix("unix:").removeprefix("//")
    if text.startswith("fd://"):
        raise _NotParsed(f"--bind {text}: a descriptor of the caller")
    text = text.removeprefix("tcp://")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return bind_address(text, DEFAULT_PORT)
    return bind_address(host, port)


WEB = "web"
RELEASE = "release"
FIRST_PORT, PORT_STEP = 5000, 100  # of foreman, honcho and overmind

_procfile_entry = re.compile(r"([A-Za-z0-9_-]+):\s*(.+)")


def pool_of_procfile(text: str) -> ForeignPool:
    """The pool of a Procfile. Raises Unreadable."""
    pool = ForeignPool()
    entries = 0
    for line, row in enumerate(text.splitlines(), 1):
        entry = _procfile_entry.fullmatch(row.strip())
        if entry is None:
            if row.strip() and not row.lstrip().startswith("#"):
                pool.remark(f"not NAME: COMMAND: {row.strip()}", line)
            continue
        name, command = entry.groups()
        server = pool.add(name, line)
        if name == RELEASE:
            server.set("job", True)
        port = str(FIRST_PORT + PORT_STEP * entries)
        entries += 1
        with_port = re.sub(r"\$PORT\b|\$\{PORT(:?-[^}]*)?\}", PORT, command)
        try:
            words = shlex.split(with_port)
        except ValueError as problem:
            server.set("command", ["sh", "-c", escaped(command)])
            server.leave_out(f"the shell cannot read its command ({problem})")
        else:
            words = ["sh", "-c", with_port] if needs_shell(with_port) else words
            apply_command_words(server, [escaped(word) for word in words], port)
        is_command = "command" in server.keys and not ("bind" in server.keys or server.opens_own_socket)
        if name == WEB and is_command:
            # The program reads PORT and binds the port itself.
            server.set_env({"PORT": PORT})
            server.set("bind", f"127.0.0.1:{port}")
    if not entries:
        raise Unreadable("no line of it is NAME: COMMAND", "is this a Procfile?", 1)
    if any(server.name == RELEASE for server in pool.servers):
        for server in pool.servers:
            if server.name != RELEASE:
                server.set("depends_on", [{"name": RELEASE, "condition": "completed"}])
    pool.env_file = ".env"
    return pool
