"""Converts a server's table from a file into the table that the model validates.

Before files are merged, references to variables are replaced (`interpolate`), short forms become long ones, and
relative paths become absolute (`normalise`): a path is relative to the file that has it, and two values merge key by
key only if both are tables. After the merge, values derived from other keys are added, and contradictions between keys
are found (`derive`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from poolctl.address import Address, AddressError, canonical, parse
from poolctl.config.values.plain import (
    LONGEST_SOCKET_PATH_BYTES,
    PLACEHOLDERS,
    PROXIED,
    STANDARD_STREAMS,
    Interpolated,
    binds_itself,
    exposed_url,
    host_and_port,
    is_port,
    placeholders,
    truth_if_interpolated,
    values_in,
)
from poolctl.config.values.problems import Finding, KeyPath, Tree, shown
from poolctl.selection.regular_expressions import BadExpression, check

DEEPEST_LOOK = 5
# Of a log that is printed, for `logs` and the causes of failures: the file and its predecessor together.
_SMALL_LOG_BYTES = 2 * 1024 * 1024
# Stands for an invalid address, so that the model reports only problems of the other keys.
NO_ADDRESS = Address("job", name="?")
EXPOSE_SCHEMES = ("http://", "https://", "ws://", "wss://", "http+unix://", "unix://")
REFERENCES_ALLOWED = "${VAR}, ${VAR:-default}, or $${ for a literal ${"
# The beginning of a reference to a server, which is replaced later: see rules/conflicts.py.
OPENING = "${server."
_NAMING_SERVERS = (("env",), ("command",))

_reference = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_inside = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)
_unusable = re.compile("[\0\ud800-\udfff]")


def required_variables(text: str) -> Iterator[str]:
    """The names of the variables that a file's text refers to without a default; comments are skipped."""
    for line in text.splitlines():
        for match in _reference.finditer("" if line.lstrip().startswith("#") else line):
            inside = _inside.fullmatch(match[1] or "")
            if inside is not None and inside[2] is None:
                yield inside[1]


def interpolate(value: Tree, env: Mapping[str, str], findings: list[Finding], path: KeyPath = ()) -> Tree:
    """The value with its references replaced; an invalid reference is a finding.

    Defaults apply if a variable is unset or empty, as in a shell; `$${` is a literal `${`. The value of a variable
    is not interpolated again. A text without references is returned unchanged.
    """
    if isinstance(value, str):
        return _expanded_text(value, env, findings, path)
    if isinstance(value, dict):
        return {key: interpolate(inner, env, findings, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner, env, findings, (*path, index)) for index, inner in enumerate(value)]
    return value


def _expanded_text(text: str, env: Mapping[str, str], findings: list[Finding], path: KeyPath) -> str:
    if _unusable.search(text):
        findings.append(Finding(path, "the text holds a NUL or half a surrogate pair", "take it out"))
        return _unusable.sub("?", text)
    if "${" not in text:
        return text

    names_servers = _path_within_server(path)[:1] in _NAMING_SERVERS

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0] if names_servers and text.startswith(OPENING, match.start() + 1) else "${"
        if match[2] and match[0].startswith(OPENING):
            if not names_servers:
                message = "the address of a server can be used in 'env' and 'command' only"
                findings.append(Finding(path, message, "write the address itself", match[0]))
            return match[0]
        inside = _inside.fullmatch(match[1])
        if not match[2] or inside is None or "${" in (inside[2] or ""):
            message, hint = f"{match[0]!r} is no reference", f"write {REFERENCES_ALLOWED}"
            findings.append(Finding(path, message, hint, allowed=REFERENCES_ALLOWED))
            return ""
        name, default = inside[1], inside[2]
        found = env.get(name) or default
        if found is None and name not in env:
            message, hint = f"the environment variable {name} is not set", "set it, or give a default: "
            findings.append(Finding(path, message, f"{hint}${{{name}:-…}}", match[0]))
        return (found or "").replace(OPENING, f"${OPENING}") if names_servers else found or ""

    result = _reference.sub(replaced, text)
    if _unusable.search(result):
        message = "the environment variable holds bytes that are no text"
        findings.append(Finding(path, message, "set it to UTF-8"))
        result = _unusable.sub("?", result)
    if result == text:
        return text
    found = Interpolated(result)
    found.written = text
    return found


def _path_within_server(path: KeyPath) -> KeyPath:
    """The path within the server's table or [defaults]: `("server", 0, "http")` becomes `("http",)`."""
    if path[:1] == ("defaults",):
        return path[1:]
    return path[2:] if path[:1] == ("server",) else path[isinstance(path[0] if path else "", int) :]


def absolute(value: Tree, base_dir: str) -> Tree:
    """The path made absolute from the directory of its file; a value that is not a path is returned unchanged."""
    if not isinstance(value, str) or not value or value in STANDARD_STREAMS:
        return value
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return os.path.normpath(os.path.join(base_dir, value))


def absolute_interpreter(value: Tree, base_dir: str) -> Tree:
    """The path of an interpreter, or that of a virtual environment."""
    path = absolute(value, base_dir)
    # A virtual environment is named by its directory.
    is_directory = isinstance(path, str) and os.path.isdir(path.encode("utf-8", "surrogateescape"))
    return os.path.join(path, "bin", "python") if is_directory else path


def absolute_address(value: Tree, base_dir: str) -> Tree:
    """The address, with the path of a Unix socket made absolute."""
    if isinstance(value, str) and value.lstrip()[:5].lower() == "unix:":
        try:
            return canonical(value, base_dir=base_dir)
        except AddressError:
            pass
    return value


def absolute_pattern(value: Tree, base_dir: str) -> Tree:
    """A file pattern made absolute; a name without a slash matches in every directory."""
    if isinstance(value, str) and value and "/" not in value.rstrip("/"):
        value = f"**/{value}"
    return absolute(value, base_dir)


def nul_findings(value: Tree, path: KeyPath = ()) -> list[Finding]:
    """The problems of texts with a NUL, which no path, argument or variable can contain."""
    if isinstance(value, str):
        return [Finding(path, "the text holds a NUL", "take it out")] if "\0" in value else []
    if len(path) > DEEPEST_LOOK or not isinstance(value, (dict, list, tuple)):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [finding for key, inner in items for finding in nul_findings(inner, (*path, key))]


def merged(under: dict[str, Tree], over: dict[str, Tree]) -> dict[str, Tree]:
    """A new table with the keys of both: where both have a key, nested tables are merged, other values are `over`'s."""
    found = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            found[key] = merged(under[key], over[key])
    return found


def with_own_log_file(log: dict[str, Tree]) -> dict[str, Tree]:
    """The table of a log; if its path is a standard stream, which `poolctl run` prints, with a small file of its own.

    The small file is at the path that a log without `path` has.
    """
    if log.get("path") not in STANDARD_STREAMS:
        return log
    small = {"max_size": _SMALL_LOG_BYTES // 2, "keep": 1}
    return {key: value for key, value in log.items() if key != "path"} | small


def add_derived_values(table: dict[str, Tree], base_dir: str, findings: list[Finding]) -> Address | None:
    """Add the derived values to a normalised table; contradictions are findings.

    Returns the address, or None if no address can be read.
    """
    found = _address(table, base_dir)
    address = found if isinstance(found, Address) else None
    if isinstance(found, Finding):
        findings.append(found)
    table["address"] = address or NO_ADDRESS
    table["bind"] = address.key if address else "?"
    table["base_dir"] = base_dir
    table.setdefault("cwd", base_dir)
    table.setdefault("app_dir", base_dir)
    if "app" in table:
        findings += app_findings(table["app"])
    findings += findings_of_rules(table, address)
    log = table.get("log")
    if isinstance(log, dict):
        table["log"] = with_own_log_file(log)
    scale = table.get("scale")
    if isinstance(scale, dict) and "max" not in scale and isinstance(scale.get("min"), int):
        table["scale"] = scale | {"max": max(scale["min"], 1)}
    findings += _complete_and_check_expose(table, address)
    return address


def _address(table: dict[str, Tree], base_dir: str) -> Address | Finding | None:
    job, text, name = truth_if_interpolated(table.get("job")) is True, table.get("bind"), table.get("name")
    if "bind" not in table:
        if not job and (missing := missing_address(table)) is not None:
            return missing
        return Address("job" if job else "process", name=name) if isinstance(name, str) else None
    if not isinstance(text, str):
        port = isinstance(text, int) and not isinstance(text, bool) and 0 < text < 65536
        fix = f'write bind = ":{text}"' if port else 'write bind = "127.0.0.1:8080"'
        return Finding(("bind",), f"{shown(text)} is not an address", fix, shown(text), "an address")
    if job:
        return Finding(("bind",), "a job has no address", "take out 'bind', or 'job'", shown(text))
    try:
        address = parse(text, base_dir=base_dir)
    except AddressError as problem:
        return Finding(("bind",), problem.message, problem.hint, shown(text), "an address")
    if not address.listens:
        fix = "write job = true instead of 'bind'" if address.kind == "job" else "take out 'bind'"
        return Finding(("bind",), f"{shown(text)} is not an address", fix)
    if address.path and len(address.path.encode("utf-8", "surrogateescape")) > LONGEST_SOCKET_PATH_BYTES:
        limit = f"{LONGEST_SOCKET_PATH_BYTES} bytes"
        message = f"the path of the unix socket is longer than {limit}: {address.path}"
        return Finding(("bind",), message, "choose a shorter one: the system allows no more (unix(7))")
    return address


def _complete_and_check_expose(table: dict[str, Tree], address: Address | None) -> Iterator[Finding]:
    expose = table.get("expose")
    if expose is None:
        table["expose"] = exposed_url(address, bool(table.get("tls"))) if address else "?"
        table["derived_expose"] = True
    if not isinstance(expose, str):
        return
    head, scheme, rest = expose.partition("://")
    message, fix = "", 'write "http://HOST:PORT"'
    if not expose or not expose.isprintable() or " " in expose or (scheme and not rest):
        message = f"{shown(expose)} is no address that clients could use"
    elif scheme and head.lower() + scheme not in EXPOSE_SCHEMES:
        message = f"{shown(expose)} has the scheme {head!r}"
    elif wrong := _wrong_authority(expose):
        message, fix = wrong
    if message:
        yield Finding(("expose",), message, fix, shown(expose), "a URL")


def _wrong_authority(expose: str) -> tuple[str, str] | None:
    scheme, separator, rest = expose.rpartition("://")
    if "unix" in scheme.lower() or expose.lower().startswith(("unix:", "fd:")):
        return None
    if (found := host_and_port(rest)) is None:
        fix = 'write "http://HOST:PORT", an address of IPv6 in brackets: "http://[::1]:PORT"'
        return f"{shown(expose)} has no host that clients could use", fix
    host, port = found
    if not host and (separator or not port):
        return f"{shown(expose)} has no host", 'write "http://HOST:PORT"'
    if port == "auto" or is_port(port):
        return None
    return f"port {port[:20]} of {shown(expose)} is not one", "ports are 1 to 65535"


PROBES = ("startup", "readiness", "liveness")
HOOKS = ("before_start", "after_stop")
TAKE_THE_SOCKET = (
    'let the program take the socket ({fd}, or LISTEN_FDS), write socket = "proxied", or write workers = 1'
)

# Keys of a server for the file of a Unix socket.
SOCKET_FILE_KEYS = frozenset({"socket_mode", "socket_owner"})

_in_braces = re.compile(r"\{([A-Za-z_ ]{1,20})\}")
_app = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_user = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(?::[A-Za-z0-9_][A-Za-z0-9_.-]*\$?)?", re.ASCII)


def app_findings(app: Tree) -> list[Finding]:
    """A list with the problem of a value of `app`; empty if the value is valid."""
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
    """The problem of a table without `bind` that needs one; None for a program that needs no address."""
    command = table.get("command")
    if command is None:
        return Finding(("bind",), "'bind' is missing", 'add bind = "127.0.0.1:8080", or another address')
    words = command if isinstance(command, (list, tuple)) else (command,)
    marks = {mark for word in (*words, *values_in(table.get("env"))) for mark in placeholders(word)}
    needs = [mark for mark in PLACEHOLDERS if mark in marks]
    needs += ["{fd}"] * any(placeholders(word, ["{fd}"]) for word in words)
    needs += [key for key in ("expose", "tls") if table.get(key)]
    socket = table.get("socket")
    has_port = socket in ("program", PROXIED)
    needs += [f'socket = "{socket}"'] * has_port
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
    if has_port:
        return Finding(("bind",), message, 'add bind = "127.0.0.1:8080"')
    without = "a program without a port needs no bind" + (", and is probed with exec" if probed else "")
    return Finding(("bind",), message, f'add bind = "127.0.0.1:8080", or take {listed} out: {without}')


def _part(table: Tree, key: str) -> Tree:
    return table.get(key) if isinstance(table, dict) else getattr(table, key, None)


def ready_after_obstacle(table: Mapping[str, Tree], *, listens: bool) -> str:
    """Why `ready_after` does not apply to the server; "" if it does."""
    if table.get("command") is None:
        return "an app is ready when it has started"
    if truth_if_interpolated(table.get("job")) is True:
        return "a job is ready when it has ended"
    if listens:
        return "a program with an address is ready when it accepts connections"
    if truth_if_interpolated(table.get("notify")) is True:
        return "with notify, a program is ready when it says so"
    if _part(table.get("health"), "startup") or _part(table.get("health"), "readiness"):
        return "with a startup or readiness probe, a program is ready when it has passed"
    return ""


def findings_of_rules(table: dict[str, Tree], address: Address | None) -> Iterator[Finding]:
    """Every contradiction between the keys of a server."""
    app = table.get("app")
    if table.get("command") is not None:
        yield from _command_rules(table, address)
    else:
        for key, value, text in (
            ("notify", True, "true"),
            ("job", True, "true"),
            ("socket", "program", '"program"'),
            ("socket", PROXIED, '"proxied"'),
            ("stdin", "open", '"open"'),
        ):
            if table.get(key) == value:
                yield Finding((key,), f"{key} = {text} needs a command", 'add command = ["prog", …]')
        for key in ("stop_signal", "stop_group"):
            if table.get(key) is not None:
                fix = "take it out: the worker of an app ends in order by itself"
                yield Finding((key,), f"{key} is for a command", fix)
    if "backend_protocol" in table and not table.get("command"):
        message = "backend_protocol is for a command: an app speaks HTTP/1.1 with the gateway"
        yield Finding(("backend_protocol",), message, "take it out")
    if "forward" in table and table.get("socket") != PROXIED:
        message = "forward is for a command whose connections HAProxy forwards"
        yield Finding(("forward",), message, 'add socket = "proxied", or take it out')
    if "ready_after" in table:
        listens = address is not None and address.listens
        if obstacle := ready_after_obstacle(table, listens=listens):
            yield Finding(("ready_after",), f"ready_after has no effect: {obstacle}", "take it out")
    if table.get("factory") is True and not isinstance(app, str) and not callable(app):
        yield Finding(("factory",), "factory = true needs an app", 'add app = "module:function"')
    if table.get("every") is not None:
        yield from _schedule_rules(table)
    ruled = (
        ("scale", _scale_rules),
        ("tls", _tls_rules),
        ("http", _http_rules),
        ("health", _health_rules),
        ("hooks", _hooks_rules),
    )
    for key, rules in ruled:
        if isinstance(table.get(key), dict):
            yield from rules(table[key])
    for key in ("user", "socket_owner"):
        yield from account_findings((key,), table.get(key))
    if address is not None and address.kind != "tcp":
        yield from _unfilled_placeholders(table, address)
    if address is not None and address.kind != "unix":
        for key in sorted(SOCKET_FILE_KEYS):
            if table.get(key) is not None:
                yield no_socket_file((key,), address)


def account_findings(path: KeyPath, account: Tree) -> Iterator[Finding]:
    """The problem of a text that is not USER or USER:GROUP."""
    if isinstance(account, str) and not _user.fullmatch(account):
        yield Finding(path, f"{shown(account)} is not name[:group]", 'write "www-data" or "www-data:web"')


def no_socket_file(path: KeyPath, address: Address) -> Finding:
    """The problem of a key for the file of a Unix socket, where the address is another."""
    fix = "take it out, or bind a Unix socket: unix:/PATH"
    if address.kind == "fd":
        fix = "take it out, and write SocketMode=, SocketUser= and SocketGroup= into the .socket unit"
    found = f"the address is {address.key}" if address.listens else "it has no address"
    return Finding(path, f"{path[-1]} is for the file of a Unix socket, and {found}", fix)


def _schedule_rules(table: dict[str, Tree]) -> Iterator[Finding]:
    if truth_if_interpolated(table.get("job")) is not True:
        command = "" if table.get("command") is not None else ', and command = ["prog", …] instead of an app'
        message = "every is for a job: a command that runs to its end"
        yield Finding(("every",), message, f"add job = true{command}")
        return
    if any(_part(table.get("hooks"), name) for name in HOOKS):
        message = "hooks belong to a start and a stop, which runs at certain times (every) do not have"
        yield Finding(("hooks",), message, "take hooks out, and let the command do it")
    if truth_if_interpolated(table.get("mandatory")) is True:
        message = "mandatory ends the pool when a server has failed, and a job with every runs again after a failed run"
        yield Finding(("mandatory",), message, "take mandatory out, and have [[notify]] report a failed run")


def _word_list_rules(path: KeyPath, command: Tree) -> Iterator[Finding]:
    if isinstance(command, (list, tuple)) and command and command[0] == "":
        yield Finding((*path, 0), "the program's name is empty", 'write ["prog", …]')


def _hooks_rules(hooks: dict[str, Tree]) -> Iterator[Finding]:
    for name in HOOKS:
        yield from _word_list_rules(("hooks", name), hooks.get(name))


def _command_rules(table: dict[str, Tree], address: Address | None) -> Iterator[Finding]:
    command, job, scale = table["command"], table.get("job") is True, table.get("scale")
    yield from _word_list_rules(("command",), command)
    if isinstance(command, str):
        return
    if table.get("app") is not None:
        yield Finding(("command",), "both 'app' and 'command' are given", "keep one of them")
    if table.get("handler_key"):
        yield Finding(("handler_key",), "a command has no handler", "keep 'command' or 'handler_key'")
    yield from _gunicorn_socket_rules(command)
    if table.get("tls"):
        fix = "take tls out, and give the program its certificates in its own way"
        yield Finding(("tls",), "a command speaks TLS itself, or does not", fix)
    least = scale.get("min", 1) if isinstance(scale, dict) else getattr(scale, "min", 1)
    many = isinstance(least, int) and least > 1
    itself = binds_itself(command, table.get("env"), table.get("socket"))
    if many and job:
        yield Finding(("scale",), f"a job runs once, and this is {least} workers", "write workers = 1")
    if table.get("socket") == PROXIED and job:
        yield Finding(("socket",), "a job has no address to be forwarded", "take it out")
    if least == 0:
        named = job or (address is not None and not address.listens)
        yield from _sleep_rules(scale, job=job, has_no_address=named, binds_itself=itself)
    if itself and address is not None and address.kind != "tcp" and not job:
        yield _missing_port(table, address)
    if itself and many:
        message = f"{least} processes cannot all bind {address.key if address else 'one address'}"
        yield Finding(("scale",), message, TAKE_THE_SOCKET)


def _missing_port(table: dict[str, Tree], address: Address) -> Finding:
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


def probe_and_hook_commands(table: Tree) -> Iterator[tuple[KeyPath, Sequence[str]]]:
    """The commands of the probes and hooks of a server, each with the path of its key."""
    health, hooks = _part(table, "health"), _part(table, "hooks")
    found: list[tuple[KeyPath, Tree]]
    found = [(("health", kind, "exec"), _part(_part(health, kind), "exec")) for kind in PROBES]
    found += [(("hooks", name), _part(hooks, name)) for name in HOOKS]
    return ((path, words) for path, words in found if isinstance(words, (list, tuple)))


def _unfilled_placeholders(table: dict[str, Tree], address: Address) -> Iterator[Finding]:
    """The problems of probes and hooks that ask for a host and a port of an address without them."""
    needed = [mark for mark in PLACEHOLDERS if mark != "{bind}" or not address.listens]
    for path, words in probe_and_hook_commands(table):
        found = {mark for word in words for mark in placeholders(word, needed)}
        if found:
            marks = " and ".join(mark for mark in needed if mark in found)
            message = f"{address.key} has no host and port for {marks}"
            yield Finding(path, message, "take it out, or double the braces to pass it on as it is")


def misspelt_placeholders(
    command: Iterable[str],
    env: Mapping[str, str],
    others: Iterable[tuple[KeyPath, Sequence[str]]] = (),
) -> Iterator[Finding]:
    """Warnings about words in braces that resemble a placeholder, but are passed on unchanged.

    `others` are the commands of probes and hooks.
    """
    of_env = [mark.strip("{}") for mark in PLACEHOLDERS]
    of_command = [*of_env, "fd", "name"]
    texts: list[tuple[KeyPath, str, list[str]]]
    texts = [(("command", index), word, of_command) for index, word in enumerate(command)]
    texts += [(("env", name), value, of_env) for name, value in env.items()]
    texts += [
        ((*path, index), word, [*of_env, "name"])
        for path, words in others
        for index, word in enumerate(words)
    ]
    for path, text, known in texts:
        for written in _in_braces.finditer(text) if "{" in text else ():
            meant = next((each for each in known if _is_misspelt(written[1], each)), None)
            if meant is not None:
                message = f"{written[0]} is no placeholder, and is passed on as it is"
                yield Finding(path, message, f"write {{{meant}}} if you mean that", written[0])


def _is_misspelt(written: str, known: str) -> bool:
    """Whether the word differs from the known one only in case and spaces, or in one letter."""
    word = written.strip().lower()
    shorter = min(len(word), len(known))
    if written == known or shorter < 3:
        return word == known != written
    same = next((at for at in range(shorter) if word[at] != known[at]), shorter)
    rest, meant = word[same:], known[same:]
    if rest == meant[1::-1] + meant[2:]:
        return True  # the word itself, or two letters swapped
    return meant in (rest, rest[1:]) or meant[1:] in (rest, rest[1:])


def _gunicorn_socket_rules(command: Tree) -> Iterator[Finding]:
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


def _sleep_rules(scale: Tree, *, job: bool, has_no_address: bool, binds_itself: bool) -> Iterator[Finding]:
    idle = scale.get("idle", 0) if isinstance(scale, dict) else scale.idle
    if has_no_address:
        what = "a job" if job else "a program without 'bind'"
        yield Finding(("scale", "min"), f"{what} is not woken by a request", "write workers = 1")
    elif binds_itself:
        message = "a program that binds by itself has no listener while it sleeps"
        yield Finding(("scale", "min"), message, TAKE_THE_SOCKET)
    elif idle:
        message = "the traffic of a command is not seen, so that it can wake, but not go to sleep when idle"
        yield Finding(("scale", "idle"), message, "write idle = 0, or leave it out")


def _scale_rules(scale: dict[str, Tree]) -> Iterator[Finding]:
    least, most = scale.get("min", 1), scale.get("max")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        message = f"scale.max = {most} is below scale.min = {least}"
        yield Finding(("scale", "max"), message, "raise scale.max, or lower scale.min")
    for key in ("awake", "asleep"):
        if scale.get(key) and least != 0:
            message = f"{key} is for a server that can sleep, and scale.min is {shown(least)}"
            yield Finding(("scale", key), message, f"write min = 0, or take {key} out")


def _tls_rules(tls: dict[str, Tree]) -> Iterator[Finding]:
    if tls.get("client_auth") in ("optional", "required") and not tls.get("ca"):
        fix = 'add ca = "FILE", the certificates that clients\' are checked against'
        yield Finding(("tls", "client_auth"), f"client_auth = {tls['client_auth']!r} needs ca", fix)


def _http_rules(http: dict[str, Tree]) -> Iterator[Finding]:
    root_path = http.get("root_path")
    if isinstance(root_path, str) and root_path and (root_path[0] != "/" or root_path[-1] == "/"):
        message = f"{shown(root_path)} does not begin with /, or ends with one"
        inner = root_path.strip("/")
        fix = f'write "/{inner}"' if inner else 'write ""'
        yield Finding(("http", "root_path"), message, fix, shown(root_path))


def _health_rules(health: dict[str, Tree]) -> Iterator[Finding]:
    for key in PROBES:
        if isinstance(health.get(key), dict):
            yield from _probe_rules(("health", key), health[key])


def _probe_rules(path: KeyPath, probe: dict[str, Tree]) -> Iterator[Finding]:
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
            check(body)
        except BadExpression as bad:
            yield Finding((*path, "body"), str(bad), bad.fix or "correct the regular expression")
