"""Converts a server's table from a file into the table that the model validates.

References are replaced, short forms become long ones, relative paths absolute; later the values that follow from other
keys are added. All but the last happens before files are merged, because a path belongs to the file that holds it, and
because tables merge key by key only when both are tables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping

from poolctl.address import Address, AddressError, canonical, parse
from poolctl.config.values.key_rules import RULED, app_findings, findings_of_rules, missing_address
from poolctl.config.values.limits import LONGEST_SOCKET_PATH_BYTES, MOST_WORKERS
from poolctl.config.values.plain import (
    INTERNAL,
    Interpolated,
    exposed,
    host_and_port,
    is_port,
    number_from_environment,
    truth_from_environment,
)
from poolctl.config.values.problems import Finding, Path, Tree, shown

DEEPEST_LOOK = 5
WORKERS_ALLOWED = f"at least 1, at most {MOST_WORKERS}"
# Keys whose values are relative to the directory of their file.
PATHS = ("app_dir", "bind", "cwd", "env_file", "listen", "log", "python", "tls", "watch")
# Stands for an invalid address, so that the model reports only problems of the other keys.
NO_ADDRESS = Address("job", name="?")
EXPOSE_SCHEMES = ("http://", "https://", "ws://", "wss://", "http+unix://", "unix://")
REFERENCES_ALLOWED = "${VAR}, ${VAR:-default}, or $${ for a literal ${"
# The beginning of a reference to a server, which is replaced later: see rules/server_references.py.
OPENING = "${server."
_NAMING_SERVERS = (("env",), ("command",))

_reference = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_inside = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)
_unusable = re.compile("[\0\ud800-\udfff]")


def referenced_variables(text: str) -> Iterator[str]:
    """The names of the variables that a file's text refers to without a default; comments are skipped."""
    for line in text.splitlines():
        for match in _reference.finditer("" if line.lstrip().startswith("#") else line):
            inside = _inside.fullmatch(match[1] or "")
            if inside is not None and inside[2] is None:
                yield inside[1]


def interpolate(value: Tree, env: Mapping[str, str], findings: list[Finding], path: Path = ()) -> Tree:
    """The value with its references replaced; an invalid reference is a finding.

    Defaults apply if a variable is unset or empty, as in a shell; `$${` is a literal `${`. The value of a variable
    is not interpolated again. A value without references is returned itself.
    """
    if isinstance(value, str):
        return _text(value, env, findings, path)
    if isinstance(value, dict):
        return {key: interpolate(inner, env, findings, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner, env, findings, (*path, index)) for index, inner in enumerate(value)]
    return value


def _text(text: str, env: Mapping[str, str], findings: list[Finding], path: Path) -> str:
    if _unusable.search(text):
        findings.append(Finding(path, "the text holds a NUL or half a surrogate pair", "take it out"))
        return _unusable.sub("?", text)
    if "${" not in text:
        return text

    names_servers = _of_server(path)[:1] in _NAMING_SERVERS

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
    return Interpolated(result) if result != text else text


def _of_server(path: Path) -> Path:
    """The part of the path within the table of a server, or of the defaults."""
    if path[:1] == ("defaults",):
        return path[1:]
    return path[2:] if path[:1] == ("server",) else path[isinstance(path[0] if path else "", int) :]


def normalise(table: dict[str, Tree], base_dir: str, findings: list[Finding]) -> dict[str, Tree]:
    """A copy of the table of a server (or of the defaults) in its long form."""
    found = dict(table)
    for key, value in table.items():
        if key in STEPS:
            found[key] = STEPS[key](value, base_dir)
    for key in INTERNAL & found.keys():
        findings.append(Finding((key,), f"unknown key {key!r}", "take it out", shown(found.pop(key))))
    if "listen" in found:
        bind = found.pop("listen")
        if "bind" in found:
            message = "both 'listen' and 'bind' are given"
            findings.append(Finding(("listen",), message, "they mean the same: keep 'bind'"))
        found.setdefault("bind", bind)
    if "workers" in found:
        findings += _take_workers(found)
    return found


def _take_workers(table: dict[str, Tree]) -> Iterator[Finding]:
    written = table.pop("workers")
    workers = number_from_environment(written)
    number = isinstance(workers, int) and not isinstance(workers, bool)
    if "scale" in table:
        yield Finding(("workers",), "both 'workers' and 'scale' are given", "keep one of them")
    elif number and 1 <= workers <= MOST_WORKERS:
        table["scale"] = {"min": workers, "max": workers}
    else:
        hint = f"allowed is {WORKERS_ALLOWED}" if number else "expected a whole number"
        message = f"{shown(written)} is not allowed here"
        yield Finding(("workers",), message, hint, shown(written), WORKERS_ALLOWED)


def absolute(value: Tree, base_dir: str) -> Tree:
    """The path made absolute from the directory of its file; the model checks values of other types."""
    if not isinstance(value, str) or not value:
        return value
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return os.path.normpath(os.path.join(base_dir, value))


def _python(value: Tree, base_dir: str) -> Tree:
    path = absolute(value, base_dir)
    # A virtual environment is named by its directory.
    is_directory = isinstance(path, str) and os.path.isdir(path.encode("utf-8", "surrogateescape"))
    return os.path.join(path, "bin", "python") if is_directory else path


def _bind(value: Tree, base_dir: str) -> Tree:
    if isinstance(value, str) and value.lstrip()[:5].lower() == "unix:":
        try:
            return canonical(value, base_dir=base_dir)
        except AddressError:
            pass
    return value


def _restart(value: Tree, base_dir: str) -> Tree:
    # YAML reads a bare `no` as a truth value.
    value = "no" if value is False else value
    return {"policy": value} if isinstance(value, str) else value


def _recovery(value: Tree, base_dir: str) -> Tree:
    return {"strategy": value} if isinstance(value, str) else value


def _health(value: Tree, base_dir: str) -> Tree:
    return {"readiness": {"http": value}} if isinstance(value, str) else value


def _depends_on(value: Tree, base_dir: str) -> Tree:
    if not isinstance(value, (list, tuple)):
        return value
    return tuple({"name": entry} if isinstance(entry, str) else entry for entry in value)


def _env_file(value: Tree, base_dir: str) -> Tree:
    if isinstance(value, (list, tuple)):
        return tuple(absolute(path, base_dir) for path in value)
    return (absolute(value, base_dir),) if isinstance(value, str) and value else value


def _tls(value: Tree, base_dir: str) -> Tree:
    if not isinstance(value, dict):
        return value
    return {k: absolute(v, base_dir) if k in ("cert", "key", "ca") else v for k, v in value.items()}


def _log(value: Tree, base_dir: str) -> Tree:
    if not isinstance(value, dict) or "path" not in value:
        return value
    return value | {"path": absolute(value["path"], base_dir)}


def _watch(value: Tree, base_dir: str) -> Tree:
    if not isinstance(value, dict):
        return value
    return {
        key: [_pattern(each, base_dir) for each in inner] if isinstance(inner, (list, tuple)) else inner
        for key, inner in value.items()
    }


def _pattern(value: Tree, base_dir: str) -> Tree:
    """A file pattern made absolute; a name without a slash matches in every directory."""
    if isinstance(value, str) and value and "/" not in value.rstrip("/"):
        value = f"**/{value}"
    return absolute(value, base_dir)


def _labels(value: Tree, base_dir: str) -> Tree:
    # An unquoted `route.host = "a"` in TOML is a nested table.
    if not isinstance(value, dict) or not any(isinstance(inner, dict) for inner in value.values()):
        return value
    found: dict[str, Tree] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            found |= {f"{key}.{name}": each for name, each in _labels(inner, base_dir).items()}
        else:
            found[key] = inner
    return found


STEPS: dict[str, Callable[[Tree, str], Tree]] = {
    **dict.fromkeys(("app_dir", "cwd"), absolute),
    **dict.fromkeys(("bind", "listen"), _bind),
    "depends_on": _depends_on,
    "env_file": _env_file,
    "health": _health,
    "labels": _labels,
    "log": _log,
    "python": _python,
    "recovery": _recovery,
    "restart": _restart,
    "tls": _tls,
    "watch": _watch,
}


def nul_findings(value: Tree, path: Path = ()) -> list[Finding]:
    """The problems of texts with a NUL, which no path, argument or variable can contain."""
    if isinstance(value, str):
        return [Finding(path, "the text holds a NUL", "take it out")] if "\0" in value else []
    if len(path) > DEEPEST_LOOK or not isinstance(value, (dict, list, tuple)):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [finding for key, inner in items for finding in nul_findings(inner, (*path, key))]


def relocated(table: dict[str, Tree], base_dir: str, new_dir: str) -> dict[str, Tree]:
    """The server's table for a file in `new_dir`; its paths were relative to `base_dir`."""
    if os.path.abspath(base_dir) == os.path.abspath(new_dir):
        return table
    found = dict(table)
    for key in PATHS:
        # The value of a reference is not known yet.
        if key in found and "${" not in str(found[key]):
            value = STEPS[key](found[key], base_dir)
            found[key] = list(value) if isinstance(value, tuple) else value
    # Their defaults there would be others.
    found.setdefault("cwd", base_dir)
    if "command" not in found:
        found.setdefault("app_dir", base_dir)
    return found


def merged(under: dict[str, Tree], over: dict[str, Tree]) -> dict[str, Tree]:
    """A new table with both tables merged: nested tables merge deeply, anything else is taken whole from `over`."""
    found = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            found[key] = merged(under[key], over[key])
    return found


def derive(table: dict[str, Tree], base_dir: str, findings: list[Finding]) -> Address | None:
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
    if table.keys() & RULED:
        findings += findings_of_rules(table, address)
        scale = table.get("scale")
        if isinstance(scale, dict) and "max" not in scale and isinstance(scale.get("min"), int):
            table["scale"] = scale | {"max": max(scale["min"], 1)}
    findings += _expose(table, address)
    return address


def _address(table: dict[str, Tree], base_dir: str) -> Address | Finding | None:
    job, text, name = truth_from_environment(table.get("job")) is True, table.get("bind"), table.get("name")
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


def _expose(table: dict[str, Tree], address: Address | None) -> Iterator[Finding]:
    expose = table.get("expose")
    if expose is None:
        table["expose"] = exposed(address, bool(table.get("tls"))) if address else "?"
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
    """The message about an invalid host or port, and the fix; None for valid ones."""
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
