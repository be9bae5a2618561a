"""The command's entry point: it never prints a traceback, and Ctrl-C at any time exits with 130."""

from __future__ import annotations

import gc
import os
import sys

from poolctl.cli import interrupts
from poolctl.exit_codes import INTERRUPTED

TYPE_CHECKING = False  # nothing is imported that can wait until Ctrl-C is handled
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` and return its exit code; never raises. Without `args` it runs sys.argv and exits."""
    if args is None:
        interrupts.install_ctrl_c()
        # Imports create no garbage, and collections took a tenth of a short command's time.
        gc.set_threshold(50_000)
        code = INTERRUPTED
        try:
            from poolctl.bootstrap import reset_inherited_signals
            from poolctl.config import disable_pydantic_plugins

            reset_inherited_signals()
            _install_whole_streams()
            disable_pydantic_plugins()
            code = _run(None)
            interrupts.let_ctrl_c_exit()  # nothing to clean up
        except KeyboardInterrupt:
            pass  # after the command had completed
        _exit(code)
    return _run(args)


def _run(args: Sequence[str] | None) -> int:
    try:
        if sys.platform == "win32":  # a basic import failed: os.geteuid, fcntl
            sys.stderr.write(
                "error: poolctl does not run on Windows itself; it runs in WSL 2, which is a Linux\n"
            )
            return 1
        _prepare_streams()
        from poolctl.cli.app import app

        app(args, prog_name="poolctl")
        return 0  # never: it exits
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException as error:  # of an import
        from poolctl.cli.report import explain

        return explain(error)


def _exit(code: int) -> NoReturn:
    """Exit at once: the interpreter's cleanup takes a tenth of the command's time."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    os._exit(code)


def _install_whole_streams() -> None:
    """Make writes complete or fail, even to non-blocking pipes and with PYTHONUNBUFFERED."""
    from poolctl.cli.output import whole_stream

    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            setattr(sys, name, whole_stream(stream))


def _prepare_streams() -> None:
    """Ensure that output fails neither on unencodable characters nor on a stream closed by the parent.

    No file or socket gets the number of a closed stream, and a server that replaces this process has all three.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from poolctl.worker.process_setup import fill_standard_descriptors

        fill_standard_descriptors()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
