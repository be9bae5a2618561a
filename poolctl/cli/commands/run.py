"""`poolctl run`: runs the pool in the foreground, or for the duration of a command (`run -- CMD…`)."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from poolctl.cli.group import TakesProgram
from poolctl.cli.options import (
    Form,
    NoDeps,
    Selection,
    Timeout,
    Watch,
    duration,
    examples,
    flags,
    with_options,
)
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import printable
from poolctl.cli.run_session.application import USUAL_PORT, file_path, is_application, written_file
from poolctl.cli.run_session.signals import blocked_signals, noted_signals, status_after, stopping_signals
from poolctl.cli.supervisor_requests import Request, refuse_without_linux, supervisor_log_size
from poolctl.config import ConfigNotFound
from poolctl.control.client import Client, NoSupervisor
from poolctl.control.other_users import BESIDE_ANOTHER, refuse_second_pool
from poolctl.control.pool_paths import (
    ACCESS_LOG_VARIABLE,
    RUNTIME_VARIABLE,
    STATE_VARIABLE,
    pool_dir_of_file,
)
from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT, NOT_EXECUTABLE, NOT_FOUND
from poolctl.file_access import why_not_executable

FORMAT_VARIABLE = "POOLCTL_LOG_FORMAT"

app = typer.Typer(add_completion=False)


class LogFormat(StrEnum):
    """The form in which the servers' output is printed."""

    TEXT = "text"
    JSON = "json"


@app.command(
    cls=TakesProgram,
    epilog=examples(
        "poolctl run                   until Ctrl-C",
        "poolctl run --watch           applies changed code and configuration",
        "poolctl run -- pytest tests   until the tests end; exits with their code",
        "poolctl run --debug users     this server alone; breakpoint() stops here",
        "poolctl run hello:app         this application, where there is no file",
    ),
)
@with_options
def run(
    ctx: typer.Context,
    place: Place,
    selection: Selection,
    output: Form = None,
    timeout: Timeout = None,
    no_deps: NoDeps = False,
    watch: Watch = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", "-p", min=1, max=65535, help="The port of MODULE:APP, which runs without a file (8000)."
        ),
    ] = None,
    no_access_log: Annotated[
        bool, typer.Option("--no-access-log", help="Log no requests, even if the file enables it.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Run a single server in this process, so that breakpoints work.")
    ] = False,
    timestamps: Annotated[
        bool, typer.Option("-t", "--timestamps", help="Begin each line of output with its time.")
    ] = False,
    abort_on_exit: Annotated[
        bool,
        typer.Option(
            "--abort-on-exit", help="End with the first server that ends by itself, and with its status."
        ),
    ] = False,
    isolated: Annotated[
        bool,
        typer.Option("--isolated", help="Run beside another pool of the file, in directories of its own."),
    ] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            metavar="FORM",
            envvar=FORMAT_VARIABLE,
            show_envvar=False,
            help="Servers' output as text (default) or json.",
        ),
    ] = None,
    stop_timeout: Annotated[
        float | None,
        typer.Option(
            "--stop-timeout",
            metavar="DURATION",
            parser=duration,
            help="Time limit for stopping everything (default as PID 1: 8s).",
        ),
    ] = None,
) -> Outcome:
    """Run the pool in the foreground, or around a command."""
    command = ctx.args
    if debug:
        from poolctl.cli.foreground_server import run_server_in_foreground

        source = ctx.get_parameter_source("log_format")
        not_with = {
            "a command": command,
            "--watch": watch,
            "-o": output,
            "--timestamps": timestamps,
            "--abort-on-exit": abort_on_exit,
            "--isolated": isolated,
            "--log-format": source is not None and source.name == "COMMANDLINE",
            "--stop-timeout": stop_timeout,
            "--timeout": timeout,
            "--no-deps": no_deps,
        }
        for option, value in not_with.items():
            if value:
                raise UsageError(f"--debug and {option} cannot be combined", hint="poolctl run --debug NAME")
        run_server_in_foreground(place, selection, access_log=not no_access_log)
    refuse_without_linux()
    limit_seconds = stop_timeout
    if os.getpid() == 1:  # in a container
        from poolctl.cli.run_session.init_process import STOP_SECONDS, continue_in_child

        limit_seconds = STOP_SECONDS if limit_seconds is None else limit_seconds
        continue_in_child(limit_seconds)
    path = program(command, os.environ) if command else ""
    directories = _own_directories() if isolated else contextlib.nullcontext()
    with directories, _pool_to_run(place, selection, port, command) as (pool, selection):
        if note := refuse_second_pool(pool.files):
            sys.stderr.write(f"note: {printable(note)}\n")
        prints_logs = not command and not output
        stop_signals, log_start = stopping_signals(os.environ), supervisor_log_size(pool)
        with blocked_signals(stop_signals):
            # `launch` must run before any thread exists. Signals stay pending, because a half-launched pool cannot be
            # stopped.
            with noted_signals(stop_signals, partial(status_after, has_command=bool(command))) as noted:
                from poolctl.supervisor.launch import launch

                keeper = launch(
                    pool.files,
                    supervisor_environment(no_access_log=no_access_log, prints_logs=prints_logs),
                    lifeline=True,
                )
            import asyncio  # now, while the supervisor starts

            from poolctl.cli.run_session.session import RunSession

            session = RunSession(
                Request(
                    "start", place, selection, {"deps": not no_deps, **flags(final=abort_on_exit)}, timeout
                ),
                pool,
                keeper,
                command=command,
                path=path,
                stop_signals=stop_signals,
                limit_seconds=limit_seconds,
                objects=log_format == LogFormat.JSON,
                output=output,
                watch=watch,
                prints_logs=prints_logs,
                timestamps=timestamps or place.verbose,
                abort_on_exit=abort_on_exit,
                keeps_logs=not isolated,
            )
            return asyncio.run(session.run(noted, log_start))


@contextlib.contextmanager
def _own_directories() -> Iterator[None]:
    """Context manager: use temporary runtime and state directories, for the pool and the user's command, too."""
    names = (RUNTIME_VARIABLE, STATE_VARIABLE)
    saved = {name: os.environ[name] for name in names if name in os.environ}
    with TemporaryDirectory(prefix="poolctl-", ignore_cleanup_errors=True) as directory:
        os.environ.update({RUNTIME_VARIABLE: f"{directory}/run", STATE_VARIABLE: f"{directory}/state"})
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]
            os.environ.update(saved)


@contextlib.contextmanager
def _pool_to_run(
    place: Place, selection: Selection, port: int | None, command: Sequence[str]
) -> Iterator[tuple[PoolRef, Selection]]:
    """The pool of the file and the servers to start; without a file, a pool of the named application.

    Raises the errors of `find_pool`, UsageError for a port or an application together with a file, and Failure if the
    pool runs already.
    """
    application, *more = selection.targets or [""]
    if place.config and is_application(application):
        servers = f"poolctl -c {shlex.quote(str(place.config[0]))} list"
        hint = f"leave out -c, or name a server of the file: {servers} shows them"
        raise UsageError(f"{application} is an application, which runs without a file", hint=hint)
    try:
        pool = find_pool(place)
    except ConfigNotFound as missing:
        if more or not is_application(application):
            if command and not application:
                hint = f"poolctl import -- {shlex.join(command)}, where that is a server, writes one"
                raise ConfigNotFound(missing.message, hint) from None
            raise
    else:
        if port is not None:
            hint = "change `bind` in the file"
            raise UsageError("--port is for an application that runs without a file", hint=hint)
        selection.selector()  # a mistake in it is reported before anything runs
        _refuse_running(pool)
        yield pool, selection
        return
    file = file_path()
    temporary = PoolRef([file], pool_dir_of_file(os.environ, file))
    selection = replace(selection, targets=None)
    selection.selector()
    _refuse_running(temporary)  # before its file is overwritten
    with written_file(file, application, port or USUAL_PORT):
        if not place.quiet:
            sys.stderr.write(f"note: runs {application} without a file; `poolctl init` writes one\n")
        yield temporary, selection


def _refuse_running(pool: PoolRef) -> None:
    try:
        Client(pool.socket).ping()
    except NoSupervisor:
        return
    message = "a supervisor is already running for this pool"
    raise ControlError(message, exit_code=CONFLICT, hint=BESIDE_ANOTHER)


def supervisor_environment(*, no_access_log: bool, prints_logs: bool) -> Mapping[str, str]:
    """The environment of the pool's processes: this command's, and a variable that turns access logs on or off.

    --no-access-log turns them off. Otherwise they are on if the servers' output is printed to a terminal.
    """
    if no_access_log:
        from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE

        return {**os.environ, NO_ACCESS_LOG_VARIABLE: "1"}
    if prints_logs and sys.stdout.isatty():
        return {**os.environ, ACCESS_LOG_VARIABLE: "1"}
    return os.environ


def program(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The program's path. Raises Failure with exit code 127 if it does not exist, 126 if it cannot be executed."""
    name, search_path = command[0], env.get("PATH", os.defpath)
    path = shutil.which(name, path=search_path) if name else None
    if path:
        return path
    paths = [name] if "/" in name else [f"{directory}/{name}" for directory in search_path.split(":")]
    if not name or not any(map(os.path.lexists, paths)):
        why, fix = (
            ("file not found", "check the path") if "/" in name else ("command not found", "is it in $PATH?")
        )
        raise Failure(Outcome.failed(NOT_FOUND, f"{name}: {why}", hint=fix))
    why, fix = why_not_executable(name, search_path, os.curdir) or ("cannot be executed", "")
    raise Failure(Outcome.failed(NOT_EXECUTABLE, f"{name}: {why}", hint=fix))
