"""The command's entry point: it never prints a traceback, and Ctrl-C at any time exits with 130.

This module is loaded before the rest of the command, so that Ctrl-C is handled during all other imports.
"""

from __future__ import annotations

import gc
import os
import sys
from signal import SIGINT, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130
_ctrl_c_raises = False  # otherwise Ctrl-C kills the process at once


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` and return its exit code; never raises. Without `args` it runs sys.argv and exits."""
    global _ctrl_c_raises
    if args is None:
        # Imports create no garbage, and collections took a tenth of a short command's time.
        gc.set_threshold(50_000)
        code = INTERRUPTED
        try:
            from poolctl.bootstrap import reset_inherited_signals
            from poolctl.config import disable_pydantic_plugins

            reset_inherited_signals()
            _replace_streams_by_whole_ones()
            disable_pydantic_plugins()
            code = _run(None)
            _ctrl_c_raises = False  # nothing to clean up
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


def _replace_streams_by_whole_ones() -> None:
    """Have output written whole or fail, also in a pipe that does not block, and with PYTHONUNBUFFERED."""
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


def let_ctrl_c_raise() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, so that the command can clean up."""
    global _ctrl_c_raises
    _ctrl_c_raises = True


def install_ctrl_c() -> None:
    """Install the handler for Ctrl-C. Must not be called if SIGINT is ignored (nohup, `&` without job control)."""
    signal(SIGINT, _handle_sigint)
    sys.unraisablehook = _exit_on_discarded_interrupt


def _handle_sigint(number: int, frame: FrameType | None) -> None:
    global _ctrl_c_raises
    if not _ctrl_c_raises or _is_importing(frame):
        os._exit(INTERRUPTED)
    _ctrl_c_raises = False  # a second Ctrl-C exits at once
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported. An exception from a signal handler could then break a C or Rust module."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _exit_on_discarded_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Exit on a KeyboardInterrupt raised where Python can only report it, such as in a weak reference's callback."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(unraisable)
