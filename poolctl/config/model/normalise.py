"""Short forms into long ones, relative paths into absolute ones: one file's table at a time.

It happens before files are merged, because a path belongs to the file that holds it, and because tables merge
key by key only when both are tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from poolctl import address
from poolctl.config.model import MOST_WORKERS
from poolctl.config.model.problems import Finding, shown
from poolctl.config.model.value_types import number_from_environment

# Fields of ServerConfig that are no keys of a file.
INTERNAL = frozenset({"address", "base_dir", "from_file", "handlers", "derived_expose", "origins"})

DEEPEST_LOOK = 5
WORKERS_ALLOWED = f"at least 1, at most {MOST_WORKERS}"

# Keys whose values are relative to the directory of their file.
PATHS = ("app_dir", "bind", "cwd", "env_file", "listen", "log", "python", "tls")

Step = Callable[[Any, str], Any]


def normalise(table: dict[str, Any], base_dir: str, findings: list[Finding]) -> dict[str, Any]:
    """The table of one server (or of the defaults) in its long form; the given one is left as it is."""
    found = dict(table)
    for key, value in table.items():
        step = STEPS.get(key)
        if step is not None:
            found[key] = step(value, base_dir)
    if "listen" in found:
        bind = found.pop("listen")
        if "bind" in found:
            message = "both 'listen' and 'bind' are given"
            findings.append(Finding(("listen",), message, "they mean the same: keep 'bind'"))
        found.setdefault("bind", bind)
    if "workers" in found:
        findings += _take_workers(found)
    return found


def _take_workers(table: dict[str, Any]) -> Iterator[Finding]:
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


def absolute(value: Any, base_dir: str) -> Any:
    """An absolute path, from the directory of its file; values of other types are left to the model."""
    if not isinstance(value, str) or not value:
        return value
    if value == "~" or value.startswith("~/"):
        value = os.path.expanduser(value)
    return os.path.normpath(os.path.join(base_dir, value))


def _python(value: Any, base_dir: str) -> Any:
    path = absolute(value, base_dir)
    if isinstance(path, str) and os.path.isdir(path):
        # A virtual environment.
        return os.path.join(path, "bin", "python")
    return path


def _bind(value: Any, base_dir: str) -> Any:
    if not isinstance(value, str) or value.lstrip()[:5].lower() != "unix:":
        return value
    try:
        return address.canonical(value, base_dir=base_dir)
    except address.AddressError:
        return value


def _restart(value: Any, base_dir: str) -> Any:
    if value is False:
        # YAML reads a bare `no` as a truth value.
        return {"policy": "no"}
    return {"policy": value} if isinstance(value, str) else value


def _recovery(value: Any, base_dir: str) -> Any:
    return {"strategy": value} if isinstance(value, str) else value


def _health(value: Any, base_dir: str) -> Any:
    return {"readiness": {"http": value}} if isinstance(value, str) else value


def _depends_on(value: Any, base_dir: str) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    return tuple({"name": entry} if isinstance(entry, str) else entry for entry in value)


def _env_file(value: Any, base_dir: str) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(absolute(path, base_dir) for path in value)
    return (absolute(value, base_dir),) if isinstance(value, str) and value else value


def _tls(value: Any, base_dir: str) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: absolute(v, base_dir) if k in ("cert", "key", "ca") else v for k, v in value.items()}


def _log(value: Any, base_dir: str) -> Any:
    if not isinstance(value, dict) or "path" not in value:
        return value
    return value | {"path": absolute(value["path"], base_dir)}


STEPS: dict[str, Step] = {
    "app_dir": absolute,
    "bind": _bind,
    "cwd": absolute,
    "depends_on": _depends_on,
    "env_file": _env_file,
    "health": _health,
    "listen": _bind,
    "log": _log,
    "python": _python,
    "recovery": _recovery,
    "restart": _restart,
    "tls": _tls,
}


def refuse_internal(table: dict[str, Any], findings: list[Finding]) -> None:
    """Take out the fields that only ServerConfig itself may set."""
    for key in INTERNAL & table.keys():
        findings.append(Finding((key,), f"unknown key {key!r}", "take it out", shown(table.pop(key))))


def nul_findings(value: Any, path: tuple[str | int, ...] = ()) -> list[Finding]:
    """Texts with a NUL, which no path, argument or variable can hold; in files they are found by their escapes."""
    if isinstance(value, str):
        return [Finding(path, "the text holds a NUL", "take it out")] if "\0" in value else []
    if len(path) > DEEPEST_LOOK or not isinstance(value, (dict, list, tuple)):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [finding for key, inner in items for finding in nul_findings(inner, (*path, key))]


def relocated(table: dict[str, Any], base_dir: str, new_dir: str) -> dict[str, Any]:
    """The same server for a file in `new_dir`, where its relative paths began in `base_dir`."""
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


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both tables in a new one: tables merge deeply, anything else is taken whole from `over`."""
    found = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            found[key] = merged(under[key], over[key])
    return found
