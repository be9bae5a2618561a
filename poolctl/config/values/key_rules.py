"""Rules between the keys of one server. Its values are not validated yet, and may be of any type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from poolctl.address import Address
from poolctl.config.values.plain import (
    PLACEHOLDERS,
    binds_itself,
    placeholders,
    truth_from_environment,
    values_of,
)
from poolctl.config.values.problems import Finding, Path, Tree, shown
from poolctl.selection.regular_expressions import BadExpression, compiled

PROBES = ("startup", "readiness", "liveness")
HOOKS = ("before_start", "after_stop")
# A server without any of these keys is checked by the rules of `app` and `bind` alone.
RULED = frozenset(
    {
        "command", "every", "factory", "health", "hooks", "http", "job", "notify", "scale", "socket", "stop_signal",
        "tls", "user",
    }
)  # fmt: skip
TAKE_THE_SOCKET = "let the program take the socket ({fd}, or LISTEN_FDS), or write workers = 1"

_in_braces = re.compile(r"\{([A-Za-z_ ]{1,20})\}")
_app = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_user = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(?::[A-Za-z0-9_][A-Za-z0-9_.-]*\$?)?", re.ASCII)


def app_findings(app: Tree) -> list[Finding]:
    """The problem with the text of an app."""
    if app is None or callable(app):
        return []
    if not isinstance(app, str):
        message = f"{shown(app)} is no app"
        return [Finding(("app",), message, 'write "module:attribute"', allowed='"module:attribute"')]
    module, _, attribute = app.partition(":")
    # A module may be called "py", but a user who writes app.py means the file.
    if _app.fullmatch(app) and not module.endswith(".py"):
        return []
    if app.endswith(")"):
        fix = f'write app = "{app.partition("(")[0]}" and factory = true'
    elif "/" in app or module.endswith(".py"):
        module = module.removeprefix("./").removesuffix(".py").replace("/", ".")
        fix = f'write the module, not the file: "{module}:{attribute or "app"}"'
    elif ":" not in app:
        fix = f'write "{app}:app", if app is the name of the application in it'
    else:
        fix = 'write "module:attribute", such as "shop.users:app"'
    return [Finding(("app",), f"{shown(app)} is not module:attribute", fix, shown(app), '"module:attribute"')]


def missing_address(table: dict[str, Tree]) -> Finding | None:
    """Why a server that is not a job needs a `bind`, which is missing; None for a program without a port."""
    command = table.get("command")
    if command is None:
        return Finding(("bind",), "'bind' is missing", 'add bind = "127.0.0.1:8080", or another address')
    words = command if isinstance(command, (list, tuple)) else (command,)
    marks = {mark for word in (*words, *values_of(table.get("env"))) for mark in placeholders(word)}
    needs = [mark for mark in PLACEHOLDERS if mark in marks]
    needs += ["{fd}"] * any("{fd}" in str(word) for word in words)
    needs += [key for key in ("expose", "tls") if table.get(key)]
    needs += ["socket"] * (table.get("socket") == "program")
    if _part(table.get("scale"), "idle"):
        needs.append("scale.idle")
    probes = [(kind, _part(table.get("health"), kind)) for kind in PROBES]
    probed = [
        f"health.{kind} ({key})" for kind, probe in probes for key in ("http", "tcp") if _part(probe, key)
    ]
    needs += probed
    if not needs:
        return None
    listed = " and ".join(filter(None, (", ".join(needs[:-1]), needs[-1])))
    message = f"'bind' is missing, and {listed} need{'s' * (len(needs) == 1)} an address"
    without = "a program without a port needs no bind" + (", and is probed with exec" if probed else "")
    return Finding(("bind",), message, f'add bind = "127.0.0.1:8080", or take {listed} out: {without}')


def _part(table: Tree, key: str) -> Tree:
    """A value of a table, which may be plain or already validated."""
    return table.get(key) if isinstance(table, dict) else getattr(table, key, None)


def findings_of_rules(table: dict[str, Tree], address: Address | None) -> Iterator[Finding]:
    """Every contradiction between the keys of a server."""
    app, user = table.get("app"), table.get("user")
    if table.get("command") is not None:
        yield from _command(table, address)
    else:
        for key, value, text in (
            ("notify", True, "true"),
            ("job", True, "true"),
            ("socket", "program", '"program"'),
        ):
            if table.get(key) == value:
                yield Finding((key,), f"{key} = {text} needs a command", 'add command = ["prog", …]')
        if table.get("stop_signal") is not None:
            fix = "take it out: the worker of an app ends in order by itself"
            yield Finding(("stop_signal",), "stop_signal is for a command", fix)
    if table.get("factory") is True and not isinstance(app, str) and not callable(app):
        yield Finding(("factory",), "factory = true needs an app", 'add app = "module:function"')
    if table.get("every") is not None:
        yield from _every(table)
    ruled = (("scale", _scale), ("tls", _tls), ("http", _http), ("health", _health), ("hooks", _hooks))
    for key, rules in ruled:
        if isinstance(table.get(key), dict):
            yield from rules(table[key])
    if isinstance(user, str) and not _user.fullmatch(user):
        yield Finding(("user",), f"{shown(user)} is not name[:group]", 'write "www-data" or "www-data:web"')


def _every(table: dict[str, Tree]) -> Iterator[Finding]:
    if truth_from_environment(table.get("job")) is not True:
        command = "" if table.get("command") is not None else ', and command = ["prog", …] instead of an app'
        message = "every is for a job: a command that runs to its end"
        yield Finding(("every",), message, f"add job = true{command}")
        return
    if any(_part(table.get("hooks"), name) for name in HOOKS):
        message = "hooks belong to a start and a stop, which runs at certain times (every) do not have"
        yield Finding(("hooks",), message, "take hooks out, and let the command do it")
    if truth_from_environment(table.get("mandatory")) is True:
        message = "mandatory ends the pool when a server has failed, and a job with every runs again after a failed run"
        yield Finding(("mandatory",), message, "take mandatory out, and have [[notify]] report a failed run")


def _words(path: Path, command: Tree) -> Iterator[Finding]:
    """The problem of a command that is one string instead of a list, or that names no program."""
    if isinstance(command, str):
        import shlex

        try:
            words = ", ".join(f'"{word}"' for word in shlex.split(command))
        except ValueError:
            words = '"prog", "argument"'
        message = "a command is a list of words, not a line for a shell"
        yield Finding(path, message, f"write [{words}]")
    elif isinstance(command, (list, tuple)) and command and command[0] == "":
        yield Finding((*path, 0), "the program's name is empty", 'write ["prog", …]')


def _hooks(hooks: dict[str, Tree]) -> Iterator[Finding]:
    for name in HOOKS:
        yield from _words(("hooks", name), hooks.get(name))


def _command(table: dict[str, Tree], address: Address | None) -> Iterator[Finding]:
    command, job, scale = table["command"], table.get("job") is True, table.get("scale")
    yield from _words(("command",), command)
    if isinstance(command, str):
        return
    if table.get("app") is not None:
        yield Finding(("command",), "both 'app' and 'command' are given", "keep one of them")
    if table.get("handler_key"):
        yield Finding(("handler_key",), "a command has no handler", "keep 'command' or 'handler_key'")
    yield from _bound_twice(command)
    if table.get("tls"):
        fix = "take tls out, and give the program its certificates in its own way"
        yield Finding(("tls",), "a command speaks TLS itself, or does not", fix)
    least = scale.get("min", 1) if isinstance(scale, dict) else getattr(scale, "min", 1)
    many = isinstance(least, int) and least > 1
    itself = binds_itself(command, table.get("env"), table.get("socket"))
    if many and job:
        yield Finding(("scale",), f"a job runs once, and this is {least} workers", "write workers = 1")
    if least == 0:
        named = job or (address is not None and not address.listens)
        yield from _sleeping_command(scale, job=job, named=named, itself=itself)
    if itself and address is not None and address.kind != "tcp" and not job:
        yield _no_port(table, address)
    if itself and many:
        message = f"{least} processes cannot all bind {address.key if address else 'one address'}"
        yield Finding(("scale",), message, TAKE_THE_SOCKET)


def _no_port(table: dict[str, Tree], address: Address) -> Finding:
    """The problem of a program that needs a host and port, but has an address without them."""
    fix = "let it take the socket: {fd}, or LISTEN_FDS"
    words = table["command"] if isinstance(table["command"], (list, tuple)) else ()
    env = table.get("env")
    variables: dict[str, Tree] = env if isinstance(env, dict) else {}
    named = [("env", name) for name, value in variables.items() if placeholders(value)]
    if any(map(placeholders, words)) or named:
        message = f"{address.key} has no host and port for {{port}}, {{host}} and {{bind}}"
        return Finding(named[0] if named else ("command",), message, fix)
    message = f'socket = "program" is for a host and port, and this is {address.key}'
    return Finding(("socket",), message, fix)


def misspelt_placeholders(command: Iterable[str], env: Mapping[str, str]) -> Iterator[Finding]:
    """Warnings about words in braces that resemble a placeholder, but are passed on unchanged."""
    of_env = [mark.strip("{}") for mark in PLACEHOLDERS]
    of_command = [*of_env, "fd", "name"]
    texts: list[tuple[Path, str, list[str]]]
    texts = [(("command", index), word, of_command) for index, word in enumerate(command)]
    texts += [(("env", name), value, of_env) for name, value in env.items()]
    for path, text, known in texts:
        for written in _in_braces.finditer(text) if "{" in text else ():
            meant = next((each for each in known if _is_misspelt(written[1], each)), None)
            if meant is not None:
                message = f"{written[0]} is no placeholder, and is passed on as it is"
                yield Finding(path, message, f"write {{{meant}}} if you mean that", written[0])


def _is_misspelt(written: str, known: str) -> bool:
    """Whether it differs from the known word only in case and spaces, or in one letter."""
    word = written.strip().lower()
    shorter = min(len(word), len(known))
    if written == known or shorter < 3:
        return word == known != written
    same = next((at for at in range(shorter) if word[at] != known[at]), shorter)
    rest, meant = word[same:], known[same:]
    if rest == meant[1::-1] + meant[2:]:
        return True  # the word itself, or two letters swapped
    return meant in (rest, rest[1:]) or meant[1:] in (rest, rest[1:])


def _bound_twice(command: Tree) -> Iterator[Finding]:
    words = list(map(str, command)) if isinstance(command, (list, tuple)) else []
    # As in `uv run gunicorn` and `python3 -m gunicorn`.
    if not any(word.rpartition("/")[2] == "gunicorn" for word in words[:3]):
        return
    for index, word in enumerate(words):
        if "fd://" in word or "{fd}" in word:
            message = (
                f"gunicorn takes the socket from LISTEN_FDS, and {shown(word)} would pass it a second time"
            )
            yield Finding(("command", index), message, "leave out its --bind", word)


def _sleeping_command(scale: Tree, *, job: bool, named: bool, itself: bool) -> Iterator[Finding]:
    idle = scale.get("idle", 0) if isinstance(scale, dict) else scale.idle
    if named:
        what = "a job" if job else "a program without 'bind'"
        yield Finding(("scale", "min"), f"{what} is not woken by a request", "write workers = 1")
    elif itself:
        message = "a program that binds by itself has no listener while it sleeps"
        yield Finding(("scale", "min"), message, TAKE_THE_SOCKET)
    elif idle:
        message = "the traffic of a command is not seen, so that it can wake, but not go to sleep when idle"
        yield Finding(("scale", "idle"), message, "write idle = 0, or leave it out")


def _scale(scale: dict[str, Tree]) -> Iterator[Finding]:
    least, most = scale.get("min", 1), scale.get("max")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        message = f"scale.max = {most} is below scale.min = {least}"
        yield Finding(("scale", "max"), message, "raise scale.max, or lower scale.min")
    for key in ("awake", "asleep"):
        if scale.get(key) and least != 0:
            message = f"{key} is for a server that can sleep, and scale.min is {shown(least)}"
            yield Finding(("scale", key), message, f"write min = 0, or take {key} out")


def _tls(tls: dict[str, Tree]) -> Iterator[Finding]:
    if tls.get("client_auth") in ("optional", "required") and not tls.get("ca"):
        fix = 'add ca = "FILE", the certificates that clients\' are checked against'
        yield Finding(("tls", "client_auth"), f"client_auth = {tls['client_auth']!r} needs ca", fix)


def _http(http: dict[str, Tree]) -> Iterator[Finding]:
    implementation, root_path = http.get("implementation", "auto"), http.get("root_path")
    if http.get("http2") is True and implementation != "zttp":
        message = f"HTTP/2 needs the parser zttp, and http.implementation is {shown(implementation)}"
        yield Finding(("http", "http2"), message, 'write http = { implementation = "zttp", http2 = true }')
    if isinstance(root_path, str) and root_path and (root_path[0] != "/" or root_path[-1] == "/"):
        message = f"{shown(root_path)} does not begin with /, or ends with one"
        inner = root_path.strip("/")
        fix = f'write "/{inner}"' if inner else 'write ""'
        yield Finding(("http", "root_path"), message, fix, shown(root_path))


def _health(health: dict[str, Tree]) -> Iterator[Finding]:
    for key in PROBES:
        if isinstance(health.get(key), dict):
            yield from _probe(("health", key), health[key])


def _probe(path: Path, probe: dict[str, Tree]) -> Iterator[Finding]:
    kinds = [kind for kind in ("http", "tcp", "exec") if probe.get(kind) not in (None, False)]
    if len(kinds) != 1:
        message = f"a probe is one of http, tcp and exec, and this is {' and '.join(kinds) or 'none'}"
        yield Finding(path, message, "keep one of them" if kinds else 'add http = "/path"')
    if kinds in (["tcp"], ["exec"]):
        for key in [key for key in ("status", "body", "method", "headers") if key in probe]:
            message = f"{key} is for a probe with http, and this is one with {kinds[0]}"
            yield Finding((*path, key), message, f"take it out, or probe with http instead of {kinds[0]}")
    status, body = probe.get("status"), probe.get("body")
    for part in status.split(",") if isinstance(status, str) else ():
        least, dash, most = part.strip().partition("-")
        if dash and least.isdigit() and most.isdigit() and int(least) > int(most):
            message = f"the range {shown(part)} holds no status"
            yield Finding((*path, "status"), message, f'write "{most}-{least}"', shown(status))
    if isinstance(body, str):
        try:
            compiled(body)
        except BadExpression as bad:
            yield Finding((*path, "body"), str(bad), bad.fix or "correct the regular expression")
