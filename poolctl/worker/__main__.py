"""Entry point for worker processes; the first argument selects what to run.

`worker zygote`: fork workers on request. `worker serve N`: run one worker, with N descriptors after the control socket.
`worker app`: import an application and fork its workers on request. `worker debug N`: serve in the terminal, with N
descriptors after the specification. `worker command N`: run the server's command as a child, with N listeners after the
specification. `worker as UID GID COMMAND…`: switch to the user UID and execute COMMAND, which starts the application's
interpreter. `worker as` and `worker command` run in poolctl's interpreter, all others in the application's.
"""

from __future__ import annotations

import gc
import os
import sys

from ..bootstrap import uvicorn_problem
from ..installation import install_command

REQUESTS_FD = 3


def main() -> None:
    """Run what the first command-line argument selects: `zygote`, `app`, `as`, `command`, `debug` or `serve`."""
    role = sys.argv.pop(1)
    # Imports create no garbage, and collection would take a tenth of the time. `imports` enables it again.
    gc.disable()
    if role == "zygote":
        try:
            _require_uvicorn()
            from .zygote import run_base_zygote
        except ImportError as error:
            sys.exit(_report_unfit_to_supervisor(error))
        run_base_zygote()
    elif role == "app":
        from .zygote import run_after_exec as run_app_zygote

        run_app_zygote()
    elif role == "as":
        from .process_setup import switch_to_user

        uid, gid, *argv = sys.argv[1:]
        switch_to_user(int(uid), int(gid))
        os.execv(argv[0], argv)
    elif role == "command":
        from .command_process import run_command_in_child

        run_command_in_child()
    elif role == "debug":
        try:
            _require_uvicorn()
            from .foreground import serve_for_debugging
        except ImportError as error:
            sys.exit(_explain_import_error(error)[0])
        serve_for_debugging()
    else:
        from .worker_process import run_after_exec as run_worker

        run_worker()


class _TooOld(ImportError):
    """The interpreter's uvicorn is too old for workers."""


def _require_uvicorn() -> None:
    import uvicorn

    if (problem := uvicorn_problem(sys.executable, uvicorn.__version__)) is not None:
        raise _TooOld(*problem)


def _report_unfit_to_supervisor(error: ImportError) -> str:
    from ..keeper import wire

    line, reason, hint = _explain_import_error(error)
    wire.send(wire.socket_from_fd(REQUESTS_FD), {"event": "unfit", "reason": reason, "hint": hint})
    return line


def _explain_import_error(error: ImportError) -> tuple[str, str, str]:
    """A log line, the reason and a fix for an interpreter that cannot run workers."""
    reason, hint = str(error), "see zygotes.log beside the control socket"
    if isinstance(error, _TooOld):
        reason, hint = error.args
    elif error.name is not None and error.name.partition(".")[0] == "uvicorn":
        reason = (
            "has no uvicorn" if error.name == "uvicorn" else f"has another uvicorn than is needed ({error})"
        )
        hint = f"install it there: {install_command(sys.executable, 'uvicorn', upgrade=True)}"
    return f"{sys.executable} {reason}; {hint}", reason, hint
