"""The command's entry point: it never prints a traceback, and Ctrl-C at any time exits with 130.

The fast lane parses and runs frequent commands with the standard library alone, because importing Typer takes several
times as long as a bare interpreter start. Command lines that are not simple go to the Typer application.

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

    from poolctl.cli.outcome import Outcome

INTERRUPTED = 130
DEBUG_VARIABLE = "POOLCTL_DEBUG"
REPORT_TO = "the project's issue tracker"
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
            code = _run(sys.argv[1:])
            _ctrl_c_raises = False  # nothing to clean up
        except KeyboardInterrupt:
            pass  # after the command had completed
        _exit(code)
    return _run(list(args))


def _run(words: list[str]) -> int:
    try:
        if sys.platform == "win32":  # a basic import failed: os.geteuid, fcntl
            sys.stderr.write(
                "error: poolctl does not run on Windows itself; it runs in WSL 2, which is a Linux\n"
            )
            return 1
        _prepare_streams()
        if words[:1] == ["__complete"]:
            from poolctl.cli.command_line import module_of

            return int(module_of("completion").complete(words[1:]))
        return _print_outcome(_perform(words))
    except BaseException as error:
        try:
            return _explain(error, words)
        except KeyboardInterrupt:
            return INTERRUPTED  # Ctrl-C again while the first was being reported


def _exit(code: int) -> NoReturn:
    """Exit at once: the interpreter's cleanup takes a tenth of the command's time."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    os._exit(code)


def _perform(words: list[str]) -> Outcome:
    global _ctrl_c_raises
    from poolctl.cli.command_line import parse_simple_command_line, perform

    request = parse_simple_command_line(words)
    _ctrl_c_raises = True  # lets the command clean up
    if request is None:
        from poolctl.cli.typer_app import perform_args

        return perform_args(words)
    return perform(request)


def _print_outcome(outcome: Outcome) -> int:
    """Print the outcome; returns the exit code. A reader that has closed the pipe (`| head`) is not a failure."""
    from poolctl.cli.render import show

    if outcome.changed is not None:
        from poolctl.cli.reload_plan import drift_line

        outcome.notes.append(drift_line(outcome.changed))
    if outcome.exit_code == INTERRUPTED and _is_stdout_blocked():
        _discard_stdout()  # a flush would wait for a reader that has stopped reading, until a second Ctrl-C
    try:
        code = show(outcome)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return outcome.exit_code
    except OSError as error:
        code = _report_lost_output(error)
        return outcome.exit_code or code
    return code


def _report_lost_output(error: OSError) -> int:
    _discard_stdout()
    try:
        sys.stderr.write(f"error: cannot write the output: {error.strerror}\n")
    except OSError:
        pass  # both are on the same full disk
    return 1


def _explain(error: BaseException, words: list[str]) -> int:
    from poolctl.cli.command_line import json_form
    from poolctl.cli.outcome import Outcome, outcome_of
    from poolctl.cli.output import OutputError

    try:
        if isinstance(error, BrokenPipeError):
            _discard_stdout()
            return 0
        if isinstance(error, OutputError):
            return _report_lost_output(error)
        outcome = outcome_of(error)
        if outcome is None:
            if os.environ.get(DEBUG_VARIABLE):
                import traceback

                traceback.print_exception(error)
            outcome = Outcome.failed(1, *_unexpected_error(error))
        if form := json_form(words):
            outcome.form = form
        elif isinstance(error, KeyboardInterrupt):
            outcome.errors = []  # the user knows that it was interrupted
        return _print_outcome(outcome)
    except BrokenPipeError:
        _discard_stdout()
        return 1


def _unexpected_error(error: BaseException) -> tuple[str, str]:
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, (ImportError, SyntaxError)):
        # No application code is imported here, so an upgrade was interrupted, or a library was removed.
        try:
            from poolctl.installation import reinstall_command

            command = reinstall_command()
        except (ImportError, SyntaxError):
            command = ""
        hint = f"install it again{command and f': {command}'}; a running pool serves on"
        return f"this installation of poolctl is incomplete ({said})", hint
    if isinstance(error, FileNotFoundError) and _is_working_directory_removed():
        return "the working directory has been removed", "change to a directory that exists"
    hint = f"please report this to {REPORT_TO}, with the output of {DEBUG_VARIABLE}=1 and poolctl doctor"
    return f"internal error ({said})", hint


def _is_working_directory_removed() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


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


def _is_stdout_blocked() -> bool:
    """Whether a write to standard output would block."""
    import select

    from poolctl.cli.render import stdout_fd

    poll = select.poll()
    if (descriptor := stdout_fd()) >= 0:
        poll.register(descriptor, select.POLLOUT)
    return descriptor >= 0 and not poll.poll(0)


def _discard_stdout() -> None:
    """Discard buffered output, so that the interpreter's final flush prints no error."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


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
