"""`poolctl run`: runs the pool in the foreground, or for the duration of a command (`run -- CMD…`)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from poolctl.cli.command_line import (
    NO_DEPS,
    OUTPUT,
    SELECTION,
    TIMEOUT,
    WATCH,
    Command,
    CommandRequest,
    Option,
    flag,
    validate_choice,
)
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.run_session.signals import blocked_signals, noted_signals, status_after, stopping_signals
from poolctl.cli.supervisor_requests import refuse_without_linux, supervisor_log_size
from poolctl.control.client import Client, NoSupervisor
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE
from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT, NOT_EXECUTABLE, NOT_FOUND
from poolctl.file_access import why_not_executable

FORMAT_VARIABLE = "POOLCTL_LOG_FORMAT"

COMMAND = Command(
    "Run the pool in the foreground, or around a command: -- CMD…",
    SELECTION,
    OUTPUT,
    TIMEOUT,
    NO_DEPS,
    WATCH,
    flag("--no-access-log", "Log no requests, even if the file enables it."),
    flag("--debug", "Run a single server in this process, so that breakpoints work."),
    Option("--log-format", "FORM", "Servers' output as text (default) or json."),
    Option("--stop-timeout", "DURATION", "Time limit for stopping everything (default as PID 1: 8s)."),
    section="Get started",
    takes_command=True,
    examples=(
        "poolctl run                   until Ctrl-C",
        "poolctl run --watch           applies changed code and configuration",
        "poolctl run -- pytest tests   until the tests end; exits with their code",
        "poolctl run --debug users     this server alone; breakpoint() stops here",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """Run the pool until it stops. The exit code says how it ended."""
    if request.get("debug"):
        from poolctl.cli.foreground_server import run_server_in_foreground

        run_server_in_foreground(request)
    refuse_without_linux()
    limit_seconds = request.seconds("stop_timeout")
    if os.getpid() == 1:  # in a container
        from poolctl.cli.run_session.init_process import STOP_SECONDS, continue_in_child

        limit_seconds = STOP_SECONDS if limit_seconds is None else limit_seconds
        continue_in_child(limit_seconds)
    command = request.get("command") or []
    path = program(command, os.environ) if command else ""
    pool = find_pool(request)
    request.selector(), request.verb_options()  # a wrong value is reported before anything runs
    form = request.get("log_format") or os.environ.get(FORMAT_VARIABLE) or "text"
    objects = validate_choice("--log-format", form, ("text", "json")) == "json"
    _refuse_running(pool)
    stop_signals, log_start = stopping_signals(os.environ), supervisor_log_size(pool)
    with blocked_signals(stop_signals):
        # Before there are threads, which `launch` must not find. Nothing could wait for a half-launched pool.
        with noted_signals(stop_signals, partial(status_after, has_command=bool(command))) as noted:
            from poolctl.supervisor.launch import launch

            keeper = launch(pool.files, supervisor_environment(request), lifeline=True)
        import asyncio  # now, while the supervisor starts

        from poolctl.cli.run_session.session import RunSession

        session = RunSession(
            request,
            pool,
            keeper,
            command=command,
            path=path,
            stop_signals=stop_signals,
            limit_seconds=limit_seconds,
            objects=objects,
            prints_logs=prints_logs(request),
        )
        return asyncio.run(session.run(noted, log_start))


def _refuse_running(pool: PoolRef) -> None:
    try:
        Client(pool.socket).ping()
    except NoSupervisor:
        return
    message = "a supervisor is already running for this pool"
    raise ControlError(message, exit_code=CONFLICT, hint="stop it with poolctl stop")


def prints_logs(request: CommandRequest) -> bool:
    """Whether to print the servers' output: only if no command follows `--` and no option -o is given."""
    return not request.get("command") and not request.output


def supervisor_environment(request: CommandRequest) -> Mapping[str, str]:
    """The environment of the pool's processes: this command's, and a variable that turns access logs on or off.

    --no-access-log turns them off. Otherwise they are on if the servers' output is printed to a terminal.
    """
    if request.get("no_access_log"):
        from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE

        return {**os.environ, NO_ACCESS_LOG_VARIABLE: "1"}
    if prints_logs(request) and sys.stdout.isatty():
        return {**os.environ, ACCESS_LOG_VARIABLE: "1"}
    return os.environ


def program(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The program's path. Raises Failure with exit code 127 if it does not exist, 126 if it cannot be executed."""
    name, search_path = command[0], env.get("PATH", os.defpath)
    found = shutil.which(name, path=search_path) if name else None
    if found:
        return found
    paths = [name] if "/" in name else [f"{directory}/{name}" for directory in search_path.split(":")]
    if not name or not any(map(os.path.lexists, paths)):
        why, fix = (
            ("file not found", "check the path") if "/" in name else ("command not found", "is it in $PATH?")
        )
        raise Failure(Outcome.failed(NOT_FOUND, f"{name}: {why}", hint=fix))
    why, fix = why_not_executable(name, search_path, os.curdir) or ("cannot be executed", "")
    raise Failure(Outcome.failed(NOT_EXECUTABLE, f"{name}: {why}", hint=fix))
