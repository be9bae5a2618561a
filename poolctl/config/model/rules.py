"""What the keys of one server have to do with each other. The values may be wrong still: do not trust."""

from __future__ import annotations

import re
from typing import Any

from poolctl.address import Address
from poolctl.config.model.problems import Finding, shown
from poolctl.expressions import BadExpression, compiled

PLACEHOLDERS = ("{port}", "{host}", "{bind}")
# Only servers with one of these have anything to check beyond app and bind.
RULED = frozenset(
    {
        *("command", "factory", "health", "http", "job", "notify", "overlap", "scale", "tls", "log", "user"),
        "depends_on",
    }
)
LONGEST_SOCKET_PATH_BYTES = 107

_app = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_user = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(?::[A-Za-z0-9_][A-Za-z0-9_.-]*\$?)?", re.ASCII)


def app_findings(app: Any) -> list[Finding]:
    """What is wrong with an app as it is written."""
    if app is None or not isinstance(app, str):
        if app is None or callable(app):
            return []
        message = f"{shown(app)} is no app"
        return [Finding(("app",), message, 'write "module:attribute"', allowed='"module:attribute"')]
    # A module may be called "py"; a person who writes app.py means the file.
    if _app.fullmatch(app) and not app.partition(":")[0].endswith(".py"):
        return []
    if app.endswith(")"):
        fix = f'write app = "{app.partition("(")[0]}" and factory = true'
    elif "/" in app or app.partition(":")[0].endswith(".py"):
        module, _, attribute = app.partition(":")
        module = module.removeprefix("./").removesuffix(".py").replace("/", ".")
        fix = f'write the module, not the file: "{module}:{attribute or "app"}"'
    elif ":" not in app:
        fix = f'write "{app}:app", if app is the name of the application in it'
    else:
        fix = 'write "module:attribute", such as "shop.users:app"'
    return [Finding(("app",), f"{shown(app)} is not module:attribute", fix, shown(app), '"module:attribute"')]


def binds_itself(command: Any) -> bool:
    """Whether a command is told the address instead of being handed the socket."""
    if not isinstance(command, (list, tuple)):
        return False
    return any(isinstance(word, str) and any(mark in word for mark in PLACEHOLDERS) for word in command)


def findings_of_rules(table: dict[str, Any], address: Address | None) -> list[Finding]:
    """Every contradiction between the keys of a server."""
    found: list[Finding] = []
    has_command = table.get("command") is not None
    if has_command:
        found += _command(table, address)
    else:
        for key in ("notify", "job"):
            if table.get(key) is True:
                found.append(Finding((key,), f"{key} = true needs a command", 'add command = ["prog", …]'))
    if (
        table.get("factory") is True
        and not isinstance(table.get("app"), str)
        and not callable(table.get("app"))
    ):
        found.append(Finding(("factory",), "factory = true needs an app", 'add app = "module:function"'))
    found += _scale(table.get("scale"))
    found += _tls(table.get("tls"))
    found += _http(table.get("http"))
    found += _health(table.get("health"))
    user = table.get("user")
    if isinstance(user, str) and not _user.fullmatch(user):
        found.append(
            Finding(("user",), f"{shown(user)} is not name[:group]", 'write "www-data" or "www-data:web"')
        )
    return found


def _command(table: dict[str, Any], address: Address | None) -> list[Finding]:
    found: list[Finding] = []
    command = table["command"]
    if isinstance(command, str):
        import shlex

        try:
            words = ", ".join(f'"{word}"' for word in shlex.split(command))
        except ValueError:
            words = '"prog", "argument"'
        return [
            Finding(("command",), "a command is a list of words, not a line for a shell", f"write [{words}]")
        ]
    if table.get("app") is not None:
        found.append(Finding(("command",), "both 'app' and 'command' are given", "keep one of them"))
    if table.get("handler_key"):
        found.append(Finding(("handler_key",), "a command has no handler", "keep 'command' or 'handler_key'"))
    if isinstance(command, (list, tuple)) and command and command[0] == "":
        found.append(Finding(("command", 0), "the program's name is empty", 'write ["prog", …]'))
    if table.get("tls"):
        fix = "take tls out, and give the program its certificates in its own way"
        found.append(Finding(("tls",), "a command speaks TLS itself, or does not", fix))
    scale = table.get("scale")
    least = scale.get("min", 1) if isinstance(scale, dict) else getattr(scale, "min", 1)
    many = isinstance(least, int) and least > 1
    if many and table.get("job") is True:
        found.append(
            Finding(("scale",), f"a job runs once, and this is {least} workers", "write workers = 1")
        )
    itself = binds_itself(command)
    if least == 0:
        found += _sleeping_command(scale, job=table.get("job") is True, itself=itself)
    if not itself:
        return found
    if address is not None and address.kind != "tcp" and table.get("job") is not True:
        message = f"{address.key} has no host and port for {{port}}, {{host}} and {{bind}}"
        found.append(Finding(("command",), message, "let it take the socket: {fd}, or LISTEN_FDS"))
    if many:
        message = f"{least} processes cannot all bind {address.key if address else 'one address'}"
        fix = "let the program take the socket ({fd}, or LISTEN_FDS), or write workers = 1"
        found.append(Finding(("scale",), message, fix))
    return found


def _sleeping_command(scale: Any, *, job: bool, itself: bool) -> list[Finding]:
    if job:
        return [Finding(("scale", "min"), "a job is not woken by a request", "write workers = 1")]
    if itself:
        message = "a program that binds by itself has nobody who listens while it sleeps"
        fix = "let the program take the socket ({fd}, or LISTEN_FDS), or write workers = 1"
        return [Finding(("scale", "min"), message, fix)]
    idle = scale.get("idle", 0) if isinstance(scale, dict) else scale.idle
    if idle:
        message = "the traffic of a command is not seen: it wakes, and cannot be told when to sleep"
        return [Finding(("scale", "idle"), message, "write idle = 0, or leave it out")]
    return []


def _scale(scale: Any) -> list[Finding]:
    if not isinstance(scale, dict):
        return []
    least, most = scale.get("min", 1), scale.get("max")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        return [
            Finding(
                ("scale", "max"),
                f"scale.max = {most} is below scale.min = {least}",
                "raise scale.max, or lower scale.min",
            )
        ]
    return []


def _tls(tls: Any) -> list[Finding]:
    if not isinstance(tls, dict):
        return []
    found: list[Finding] = []
    if tls.get("client_auth") in ("optional", "required") and not tls.get("ca"):
        fix = 'add ca = "FILE", the certificates that clients\' are checked against'
        found.append(Finding(("tls", "client_auth"), f"client_auth = {tls['client_auth']!r} needs ca", fix))
    return found


def _http(http: Any) -> list[Finding]:
    if not isinstance(http, dict):
        return []
    found: list[Finding] = []
    implementation = http.get("implementation", "auto")
    if http.get("http2") is True and implementation != "zttp":
        message = f"HTTP/2 needs the parser zttp, and http.implementation is {shown(implementation)}"
        found.append(
            Finding(("http", "http2"), message, 'write http = { implementation = "zttp", http2 = true }')
        )
    root_path = http.get("root_path")
    if not isinstance(root_path, str) or not root_path:
        return found
    if root_path.startswith("/") and not root_path.endswith("/"):
        return found
    message = f"{shown(root_path)} does not begin with /, or ends with one"
    fix = f'write "/{root_path.strip("/")}"' if root_path.strip("/") else 'write ""'
    return [*found, Finding(("http", "root_path"), message, fix, shown(root_path))]


def _health(health: Any) -> list[Finding]:
    if not isinstance(health, dict):
        return []
    found: list[Finding] = []
    for key in ("startup", "readiness", "liveness"):
        probe = health.get(key)
        if not isinstance(probe, dict):
            continue
        kinds = [kind for kind in ("http", "tcp", "exec") if probe.get(kind) not in (None, False)]
        if len(kinds) != 1:
            message = f"a probe is one of http, tcp and exec, and this is {' and '.join(kinds) or 'none'}"
            found.append(
                Finding(("health", key), message, "keep one of them" if kinds else 'add http = "/path"')
            )
        found += _of_http(("health", key), probe, kinds)
        body = probe.get("body")
        if isinstance(body, str):
            try:
                compiled(body)
            except BadExpression as bad:
                fix = bad.fix or "correct the regular expression"
                found.append(Finding(("health", key, "body"), str(bad), fix))
    return found


def _of_http(path: tuple[str, ...], probe: dict[str, Any], kinds: list[str]) -> list[Finding]:
    """What only an HTTP probe looks at, and ranges of statuses that hold none."""
    found: list[Finding] = []
    if kinds in (["tcp"], ["exec"]):
        for key in ("status", "body", "method", "headers"):
            if key in probe:
                message = f"{key} is for a probe with http, and this is one with {kinds[0]}"
                found.append(
                    Finding((*path, key), message, f"take it out, or ask by http instead of {kinds[0]}")
                )
    status = probe.get("status")
    for part in status.split(",") if isinstance(status, str) else ():
        least, dash, most = part.strip().partition("-")
        if dash and least.isdigit() and most.isdigit() and int(least) > int(most):
            message = f"the range {shown(part)} holds no status"
            found.append(Finding((*path, "status"), message, f'write "{most}-{least}"', shown(status)))
    return found
