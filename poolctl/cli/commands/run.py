"""`poolctl run`: the pool in the foreground, or around a command (`run -- CMD…`)."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stderr

from poolctl.cli.outcome import Failure, Outcome, outcome_of
from poolctl.cli.pool_ref import find_place
from poolctl.cli.request import Request
from poolctl.cli.run import pid_one
from poolctl.cli.run.stop_signals import StopSignals, Terminated, deferred_signals
from poolctl.cli.run.user_command import program
from poolctl.cli.session import Session
from poolctl.cli.stdout import TolerantStream
from poolctl.control.client import Client, NoSupervisor
from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT, DONE, INTERRUPTED

# `run -- CMD` that SIGTERM reaches before CMD runs ends as CMD would have.
_TERMINATED = 128 + signal.SIGTERM


def perform(request: Request) -> Outcome:
    """Run the pool until it is told to end; the exit code is the contract's for the way it ended."""
    if request.get("debug"):
        from poolctl.cli.run.debug_server import perform as become

        become(request)
    from poolctl.supervisor.launch import launch

    limit_seconds = request.seconds("stop_timeout")
    if pid_one.is_first():
        limit_seconds = pid_one.STOP_SECONDS if limit_seconds is None else limit_seconds
        pid_one.stand_apart(limit_seconds)
    command = request.get("command") or []
    path = program(command, os.environ) if command else ""
    place = find_place(request)
    session = Session(request, place, command, limit_seconds)
    request.selector(), request.options()  # a wrong one is said before anything runs
    _refuse_running(session.client)
    with redirect_stderr(TolerantStream(sys.stderr)), StopSignals(session.reload) as signals:
        lifeline = -1
        try:
            with deferred_signals():  # what is half launched could not be waited for
                lifeline = launch(place.files, os.environ, lifeline=True)
            code = _live(session, path, lifeline)
        except (ControlError, Failure) as failure:
            session.outcome = outcome_of(failure) or session.outcome
            code = session.outcome.exit_code
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Terminated:
            code = _TERMINATED if command else DONE
        try:
            if lifeline >= 0:
                session.stop()
                os.close(lifeline)
                code = INTERRUPTED if signals.interrupted else session.status_of_pool(code)
        except (KeyboardInterrupt, Terminated):
            pass  # asked for the third time: the lifeline ends with us, and the keeper sees to the rest
    session.outcome.exit_code = code
    return session.outcome


def _live(session: Session, path: str, lifeline: int) -> int:
    if not session.start():
        code = session.outcome.exit_code
        session.tell()
        return code
    session.watch()
    return session.run_command(path, lifeline) if session.command else session.stay(lifeline)


def _refuse_running(client: Client) -> None:
    try:
        client.ping()
    except NoSupervisor:
        return
    raise ControlError(
        "a supervisor is already running for this pool", exit_code=CONFLICT, hint="poolctl stop ends it"
    )
