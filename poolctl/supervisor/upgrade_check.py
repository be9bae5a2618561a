"""Checks, before an upgrade, whether this version of poolctl can take over a pool; nothing is changed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence

import poolctl
from poolctl import bootstrap
from poolctl.config import Configuration, ServerConfig, interpreter, load
from poolctl.control.answers import ErrorEntry, error_entries
from poolctl.core.server_entry import Entry, restore
from poolctl.errors import PoolError, ServerError
from poolctl.json_form import to_json
from poolctl.keeper import wire
from poolctl.keeper.spawn import spawn
from poolctl.runners.local.zygotes import InterpreterZygoteIdentity
from poolctl.runners.worker_spec import user_ids
from poolctl.worker.process_setup import START_VARIABLES

from .takeover.state_store import NotUnderstood, decoded
from .verbs.upgrade import TakeoverCheckReport

# The only variables passed on: an interpreter and its libraries need them, and they hold no secrets.
_VARIABLES = ("PATH", "HOME", "LANG", "LC_", "TZ", *START_VARIABLES)
_ZYGOTE_SECONDS = 30.0


def print_takeover_check(files: Sequence[str]) -> str | None:
    """Print a TakeoverCheckReport: can this version run this pool on this host? Return an error, or None.

    Reads two lines of JSON from stdin: the configuration in force, and each server's desired state. If the
    configuration has no errors, imports all modules in this interpreter, and those of zygotes in the servers'
    interpreters. Raises the exceptions of the imports.
    """
    in_force, _, desired = sys.stdin.buffer.read().partition(b"\n")
    problem, errors = "", list[ErrorEntry]()
    servers: Sequence[ServerConfig] = []
    try:
        stored = decoded(in_force)
        servers = stored.servers
        errors += map(ErrorEntry.of, Configuration(servers, stored.tables).startup_problems())
    except NotUnderstood as unsupported:
        problem = str(unsupported)
        try:
            servers = config = load(files, os.environ)
            errors += map(ErrorEntry.of, config.problems or config.startup_problems())
        except PoolError as error:
            errors += error_entries(error)
    if not errors:
        records = json.loads(desired)
        for server in servers:
            restore(Entry(server), records.get(server.name, {}))
        _import_everything()
        if failed := _zygote_failure(server for server in servers if not (server.command or server.disabled)):
            return failed
    print(json.dumps(to_json(TakeoverCheckReport(problem=problem, errors=tuple(errors)))))
    return None


def _import_everything() -> None:
    """Import every module of poolctl that runs in this interpreter. Raises the exceptions of the imports."""
    for module in pkgutil.walk_packages(poolctl.__path__, "poolctl."):
        name = module.name
        # Zygotes and workers have interpreters of their own.
        if name == "poolctl.__main__" or name.startswith("poolctl.worker."):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            # A feature may need a library that is not installed. If the pool uses the feature, the checks of its tables
            # have reported that.
            if not name.startswith("poolctl.features.") or str(missing.name).startswith("poolctl"):
                raise


def _zygote_failure(servers: Iterable[ServerConfig]) -> str:
    """Start a zygote of this version in each interpreter of `servers`; return why one does not come up, or ""."""
    sources = {InterpreterZygoteIdentity(sys.executable): None}
    for server in servers:
        if not server.command:
            with contextlib.suppress(ServerError):  # its user is unknown, so it has no zygote
                path = interpreter(server.python)
                sources[InterpreterZygoteIdentity.for_user(path, user_ids(server))] = None
    failures = (f"{source.interpreter} {why}" for source in sources if (why := _start_failure(source)))
    return next(failures, "")


def _start_failure(source: InterpreterZygoteIdentity) -> str:
    argv = bootstrap.command(source.interpreter, "worker", "zygote")
    argv = argv if source.user is None else bootstrap.as_user(*source.user, argv)
    env = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    ours, theirs = wire.pair()
    with ours, tempfile.TemporaryFile() as output:
        try:
            with theirs:
                pid = spawn(argv, env, [theirs.fileno()], output.fileno(), session=True)
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        try:
            ours.settimeout(_ZYGOTE_SECONDS)
            message, _ = wire.receive(ours) or ({}, [])
        except TimeoutError:
            return f"was not up within {_ZYGOTE_SECONDS:g} s"
        finally:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if message.get("event") == "up":
            return ""
        output.seek(0)
        lines = output.read().decode(errors="replace").split("\n")
        return str(message.get("reason") or next(filter(None, reversed(lines)), "exited"))
